import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import papermill
import pytest

from chexstudy.errors import StudyError
from chexstudy.workflow import identity
from chexstudy.workflow.runner import (
    NotebookFailure,
    find_notebook,
    list_notebooks,
    rerun_notebooks,
    run_notebooks,
)

FIRST = """\
# %% [markdown]
# # First

# %% tags=["parameters"]
study = "x"  # name of the study
seed = 0  # seed
rate = 0.1  # a number

# %%
import json, os, sys
from pathlib import Path

folder = Path(os.environ["CHEXSTUDY_HOME"]) / "runs" / study
print("seed", seed)

# %%
names = ("CHEXSTUDY_HEADLESS", "CHEXSTUDY_CWD", "HF_HUB_OFFLINE", "NUMBA_CACHE_DIR")
seen = {"seed": seed, "rate": rate, "python": sys.executable, **{name: os.environ.get(name) for name in names}}
(folder / "seen.json").write_text(json.dumps(seen))
"""
SECOND = """\
# %% tags=["parameters"]
study = "x"  # name of the study
seed = 0  # seed
fate = "end well"  # what happens

# %%
import os, time
from chexstudy.errors import StudyError

if fate == "user":
    raise StudyError("the data is not there: put it there.")
if fate == "bug":
    {}["key"]
if fate == "die":
    os._exit(3)
if fate == "wait":
    print("waiting", flush=True)
    time.sleep(60)
"""
PROFILE = "title: Tiny\ndescription: Two cells.\ncost: seconds\ndefaults: {seed: 3, rate: 2}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    # What happens to a notebook is no part of what the study is.
    monkeypatch.setattr(identity, "FREE", identity.FREE | {"fate"})
    folder = tmp_path / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (folder / "01_first.py").write_text(FIRST)
    (folder / "02_second.py").write_text(SECOND)
    (folder / "not_a_step.py").write_text("")
    (folder / "profiles" / "tiny.yaml").write_text(PROFILE)
    return folder


def read_timings(home, study):
    return {path.stem: json.loads(path.read_text()) for path in (home / "runs" / study / "timings").iterdir()}


def test_notebooks_are_found_by_name_file_or_number(folder):
    assert list_notebooks(folder) == ["01_first", "02_second"]
    for name in ("02_second", "02_second.py", "notebooks/02_second.ipynb", "2", "02"):
        assert find_notebook(name, folder) == "02_second"
    with pytest.raises(StudyError, match=r"no notebook '02_secnd'; the notebooks are .*: did you mean '02_second'"):
        find_notebook("02_secnd", folder)


def test_without_notebooks_it_says_what_is_wrong(tmp_path):
    with pytest.raises(StudyError, match="there are no notebooks at"):
        run_notebooks(None, "tiny", folder=tmp_path)


def test_all_notebooks_run_in_order_with_this_interpreter(folder, home, capfd, monkeypatch, tmp_path):
    # A kernel of the same name that does not work, as on many a machine: it must not be asked.
    registered = tmp_path / "jupyter" / "kernels" / "python3"
    registered.mkdir(parents=True)
    (registered / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)

    executed = run_notebooks(None, "tiny", {"seed": 5}, study="mine", folder=folder)

    assert executed == [home / "runs/mine/notebooks" / f"{name}.ipynb" for name in ("01_first", "02_second")]
    assert json.loads((home / "runs/mine/seen.json").read_text()) == {
        "seed": 5,
        "rate": 2.0,
        "python": sys.executable,
        "CHEXSTUDY_HEADLESS": "1",
        "CHEXSTUDY_CWD": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "NUMBA_CACHE_DIR": str(home / "runs/.cache/numba"),
    }
    notebook = nbformat.read(executed[0], as_version=4)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == [1, 2, 3, 4]
    assert sorted(os.listdir(home / "runs/mine/notebooks")) == ["01_first.ipynb", "02_second.ipynb"]
    record = read_timings(home, "mine")
    assert [(entry["state"], entry["parameters"]["seed"]) for entry in record.values()] == [("done", 5)] * 2
    assert all(entry["seconds"] > 0 and entry["largest_process_bytes"] > 2**20 for entry in record.values())
    printed = capfd.readouterr().out
    assert printed.index("Expected cost: seconds") < printed.index("[1/2] 01_first")
    assert "      seed 5\n" in printed
    assert printed.index("[1/2] 01_first done after") < printed.index("[2/2] 02_second done after")
    assert printed.index("notebook ") < printed.rindex("02_second  done")


def test_braces_and_dollars_are_letters_like_others(folder, tmp_path, monkeypatch):
    home = tmp_path / "$HOME" / "ho{m}e{}"
    monkeypatch.setenv("CHEXSTUDY_HOME", str(home))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    (executed,) = run_notebooks(["01"], "tiny", study="a{b}{0}", folder=folder)
    assert executed == home / "runs" / "a{b}{0}" / "notebooks" / "01_first.ipynb"
    assert executed.is_file()
    seen = json.loads((home / "runs" / "a{b}{0}" / "seen.json").read_text())
    assert seen["NUMBA_CACHE_DIR"] == str(home / "runs/.cache/numba")


@pytest.mark.parametrize(
    ("fate", "sentence", "by_study"),
    [
        ("user", "the data is not there: put it there.", True),
        ("bug", "02_second stopped in cell 3 with KeyError: 'key'", False),
        ("die", "02_second: its Python process died, most often because memory ran out: try a smaller profile.", False),
    ],
)
def test_a_failure_is_one_sentence_and_the_cells_so_far_are_kept(folder, home, capfd, fate, sentence, by_study):
    with pytest.raises(NotebookFailure) as caught:
        run_notebooks(["2"], "tiny", {"fate": fate}, folder=folder)
    failed = home / "runs/tiny/notebooks/02_second.failed.ipynb"
    assert str(caught.value) == f"{sentence}\nThe notebook up to there: {failed}"
    assert caught.value.by_study is by_study
    assert os.listdir(failed.parent) == [failed.name]
    assert nbformat.read(failed, as_version=4).cells
    assert read_timings(home, "tiny")["02_second"]["state"] == "failed"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_failure_stops_the_study_and_a_later_success_clears_it_away(folder, home, capfd):
    (folder / "03_third.py").write_text(SECOND)
    notebooks = home / "runs/tiny/notebooks"
    with pytest.raises(NotebookFailure):
        run_notebooks(None, "tiny", {"fate": "user"}, folder=folder)
    assert sorted(os.listdir(notebooks)) == ["01_first.ipynb", "02_second.failed.ipynb"]
    assert "03_third   not run" in capfd.readouterr().out
    run_notebooks(["02_second"], "tiny", folder=folder)
    assert sorted(os.listdir(notebooks)) == ["01_first.ipynb", "02_second.ipynb"]


def test_a_disk_that_fills_up_leaves_no_half_notebook(folder, home, monkeypatch):
    def execute(notebook, output_path, **options):
        Path(output_path).write_text('{"cells": [')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(StudyError, match="No space left on device; free some space"):
        run_notebooks(["01"], "tiny", folder=folder)
    assert os.listdir(home / "runs/tiny/notebooks") == []


def test_a_run_that_failed_does_not_change_what_a_study_is_run_again_with(folder, home):
    run_notebooks(["02"], "tiny", {"seed": 1}, folder=folder)
    with pytest.raises(NotebookFailure):
        run_notebooks(["02"], "tiny", {"seed": 2, "fate": "user"}, folder=folder)
    record = read_timings(home, "tiny")["02_second"]
    assert (record["state"], record["parameters"]["seed"]) == ("done", 1)
    assert (record["unfinished"]["state"], record["unfinished"]["parameters"]["seed"]) == ("failed", 2)
    rerun_notebooks("tiny", folder=folder)
    record = read_timings(home, "tiny")["02_second"]
    assert (record["state"], record["parameters"]["seed"], "unfinished" in record) == ("done", 1, False)


def test_a_study_is_run_again_with_the_parameters_it_was_run_with(folder, home, capsys):
    run_notebooks(["01"], "tiny", {"seed": "8"}, from_text=True, study="mine", folder=folder, quiet=True)
    seen = home / "runs/mine/seen.json"
    before = seen.read_text()
    seen.unlink()
    rerun_notebooks("mine", quiet=True, folder=folder)
    assert seen.read_text() == before
    with pytest.raises(
        StudyError, match=r"no notebook of study 'other' was run yet: run `chexstudy run all --study other`"
    ):
        rerun_notebooks("other", folder=folder)
    for damaged in (b"", b"{", b"[]"):
        (home / "runs/mine/timings/01_first.json").write_bytes(damaged)
        with pytest.raises(StudyError, match=r"01_first\.json of study 'mine' is not what was written there"):
            rerun_notebooks("mine", folder=folder)
    run_notebooks(["01"], "tiny", study="mine", folder=folder, quiet=True)
    assert "01_first.json of study 'mine' is not what was written there" in capsys.readouterr().out
    assert list(read_timings(home, "mine")) == ["01_first"]


@pytest.mark.parametrize(
    ("parameters", "study", "sentence"),
    [
        ({"sede": 1}, None, "the study has no parameter 'sede'; .*did you mean 'seed'"),
        ({"seed": "1"}, None, "parameter 'seed' of 01_first must be a whole number"),
        ({"study": "a"}, "b", "named twice, 'b' and 'a'"),
        ({"study": "../a"}, None, "plain folder name"),
        ({"study": ""}, None, "plain folder name"),
        ({}, "", "plain folder name"),
        ({}, "a\nb", "plain folder name"),
        ({}, "x" * 300, "name of study 'xxxxxxxxxxxxxxxxxxxx...' is too long: give it at most 200 bytes"),
    ],
)
def test_a_wrong_parameter_stops_before_anything_is_started(folder, home, parameters, study, sentence):
    with pytest.raises(StudyError, match=sentence):
        run_notebooks(None, "tiny", parameters, study=study, folder=folder)
    assert not (home / "runs").exists()


def spawn(folder, home, study, fate):
    program = (
        # Started in the background, tests and all they start would ignore a Ctrl-C.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; from chexstudy.workflow.runner import run_notebooks\n"
        f"run_notebooks(['02'], 'tiny', dict(fate={fate!r}), study={study!r}, folder=Path({str(folder)!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "CHEXSTUDY_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kernels_of(process):
    """Process ids of the running kernels whose parent is this process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process.pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
def test_ctrl_c_stops_the_kernel_and_says_so_once(folder, home):
    process = spawn(folder, home, "stopped", "wait")
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    for line in process.stdout:
        if line.strip() == "waiting":
            break
    kernels = kernels_of(process)
    assert kernels
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    watchdog.cancel()
    assert "02_second stopped after" in out
    assert errors.count("KeyboardInterrupt") == 1
    assert "ERROR" not in errors
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{kernel}").exists() for kernel in kernels):
        time.sleep(0.1)
    assert not [kernel for kernel in kernels if Path(f"/proc/{kernel}").exists()]
    assert os.listdir(home / "runs/stopped/notebooks") == ["02_second.failed.ipynb"]


def test_studies_side_by_side_do_not_meet(folder, home):
    processes = [spawn(folder, home, f"study{number}", "end well") for number in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
