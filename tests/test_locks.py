import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import jupytext
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.workflow import locks
from chexstudy.workflow.locks import hold_study, tell_holder

HOLD = """\
import subprocess, sys, time
from chexstudy.workflow.locks import hold_study, inherited_descriptors
from chexstudy.runs import Run

with hold_study(Run("x"), "a run of 01_first"):
    if "child" in sys.argv:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=inherited_descriptors())
    print("held", flush=True)
    time.sleep(60)
"""
NOTEBOOK = """\
# %% tags=["parameters"]
study = "x"  # name of the study
seed = 0  # seed

# %%
from chexstudy.workflow.notebook import start_notebook

run = start_notebook("01_tiny", globals(), folder={folder!r})

# %%
import time
from pathlib import Path

Path({folder!r}, "idle").touch()
while not Path({folder!r}, "go on").exists():
    time.sleep(0.05)

# %%
assert Path({folder!r}, "go on").exists()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "_SECONDS_OF_PATIENCE", 0.2)


@pytest.fixture
def start():
    """Starts a process that holds study x, and returns it; all of its group end with the test."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_second_process_is_told_who_is_at_work(home, start):
    process = start()
    sentence = (
        rf"study 'x' is in use by a run of 01_first \(process {process.pid}, since .* UTC\): wait until that is "
        r"done, or give this run another --study\."
    )
    with pytest.raises(StudyError, match=sentence), hold_study(Run("x"), "another"):
        raise AssertionError("both hold it")
    assert tell_holder(Run("x")).startswith("a run of 01_first")
    with hold_study(Run("y"), "another"):
        assert tell_holder(Run("y")).startswith("another")


def test_the_lock_of_a_killed_process_holds_nobody_up(home, start):
    process = start()
    process.kill()
    process.wait()
    assert tell_holder(Run("x")) is None
    with hold_study(Run("x"), "another"):
        assert json.loads(Run("x").path(".lock").read_text())["what"] == "another"


def test_what_a_killed_process_started_keeps_the_lock(home, start):
    process = start("child")
    process.kill()
    process.wait()
    with pytest.raises(StudyError, match="which has ended, but not the processes it started"), hold_study(Run("x"), ""):
        raise AssertionError("both hold it")
    os.killpg(process.pid, signal.SIGKILL)
    time.sleep(0.1)
    with hold_study(Run("x"), "another"):
        pass


def test_whoever_holds_a_study_is_not_held_up_by_itself(home):
    run = Run("x")
    with hold_study(run, "outer"):
        with hold_study(run, "inner"):
            pass
        assert tell_holder(run).startswith("outer")
        # A study removed meanwhile is locked anew.
        run.path(".lock").unlink()
        with hold_study(run, "second"):
            assert tell_holder(run).startswith("second")
    assert tell_holder(run) is None


def test_where_files_cannot_be_locked_it_says_so_and_goes_on(home, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("chexstudy.runs.fcntl.flock", refuse)
    with hold_study(Run("x"), "a run"):
        assert os.environ["CHEXSTUDY_LOCK"].startswith("-1:")
        assert locks.inherited_descriptors() == ()
    assert "lies on a file system without locks" in capsys.readouterr().out


def test_an_open_notebook_holds_its_study_while_cells_run_and_not_when_idle(home, tmp_path, monkeypatch):
    (tmp_path / "01_tiny.py").write_text(NOTEBOOK.format(folder=str(tmp_path)))
    notebook = jupytext.read(tmp_path / "01_tiny.py")
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    run, cells = Run("x"), [cell for cell in notebook.cells if cell.cell_type == "code"]
    with client.setup_kernel():
        client.execute_cell(cells[0], 0)
        client.execute_cell(cells[1], 1)
        assert tell_holder(run).startswith("the notebook 01_tiny (process ")
        deadline = time.monotonic() + 10
        while tell_holder(run) and time.monotonic() < deadline:
            time.sleep(0.05)
        with hold_study(run, "a run"):
            with pytest.raises(CellExecutionError, match=r"StudyError: study 'x' is in use by a run \(process"):
                client.execute_cell(cells[2], 2)
            assert not (tmp_path / "idle").exists()
        (tmp_path / "go on").touch()
        client.execute_cell(cells[2], 2)
        assert tell_holder(run).startswith("the notebook 01_tiny")
        client.execute_cell(cells[3], 3)
