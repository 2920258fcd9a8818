"""Whoever was started by a process that is killed ends soon after it, and leaves no folder behind for long."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from chexstudy import children
from chexstudy.children import end_with_parent, fits_sockets, has_ended, temporary_folder

# What the parent starts writes down its process id first.
_WORK = """
import os, signal, sys, time
from pathlib import Path
from chexstudy import children
def work(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)
"""
_START_TWO = """else:
    command = [sys.executable, __file__, sys.argv[1], "child"]
    both = [subprocess.Popen(command, env=os.environ | children.name_parent()) for _ in range(2)]
    both[0].wait()
"""
_PARENTS = {
    "a pool of workers": f"""{_WORK}
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn"), children.end_with_parent, (os.getpid(),)) as pool:
        list(pool.map(work, [sys.argv[1]] * 2))
""",
    "a process": f"""{_WORK}
import subprocess
if len(sys.argv) > 2:
    children.end_with_parent()
    work(sys.argv[1])
{_START_TWO}""",
    "a process that does not want to end": f"""{_WORK}
import subprocess
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    children._SECONDS_TO_END = 0.5
    children.end_with_parent()
    work(sys.argv[1])
{_START_TWO}""",
}


def _wait_until(happened, seconds):
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(0.05)
    return happened()


def _is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return not has_ended(process) and not Path("/proc").exists()


@pytest.mark.parametrize("parent", _PARENTS)
def test_children_end_with_a_parent_that_is_killed(tmp_path, parent):
    program, started = tmp_path / "parent.py", tmp_path / "started"
    program.write_text(_PARENTS[parent])
    started.mkdir()
    process = subprocess.Popen([sys.executable, str(program), str(started)], cwd=tmp_path)
    try:
        assert _wait_until(lambda: len(list(started.iterdir())) == 2, 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = [int(path.name) for path in started.iterdir()]
    assert _wait_until(lambda: not any(map(_is_running, left)), 5)


def test_a_child_that_looks_too_late_ends_at_once():
    program = "from chexstudy import children; children.end_with_parent(1234567); import time; time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == -signal.SIGTERM


def test_a_process_started_by_hand_outlives_its_parent(monkeypatch):
    monkeypatch.delenv("CHEXSTUDY_PARENT", raising=False)
    monkeypatch.setattr(children.threading, "Thread", lambda **_: pytest.fail("it watches"))
    end_with_parent()


def test_folders_left_by_the_dead_are_taken_away(monkeypatch, request):
    # Shorter than the folders of pytest, which leave no room for sockets.
    tmp_path = Path(tempfile.mkdtemp(prefix="t-"))
    request.addfinalizer(lambda: shutil.rmtree(tmp_path))
    monkeypatch.setattr(children.tempfile, "gettempdir", lambda: str(tmp_path))
    dead = int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE).stdout)
    mine = children._MACHINE
    others = [f"chexstudy-{mine}-{os.getppid()}-a", f"chexstudy-000000-{dead}-a", "chexstudy-mine", "others"]
    for name in (f"chexstudy-{mine}-{dead}-a_b1", *others):
        (tmp_path / name / "deep").mkdir(parents=True)
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert sorted(os.listdir(tmp_path)) == sorted([*others, folder.name])
    assert sorted(os.listdir(tmp_path)) == sorted(others)


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_a_long_temporary_folder_leaves_room_for_sockets(tmp_path, monkeypatch, name):
    place = tmp_path / name
    place.mkdir()
    monkeypatch.setattr(children.tempfile, "gettempdir", lambda: str(place))
    with temporary_folder() as folder:
        assert fits_sockets(folder)
        assert len(f"{folder}/kernel-5") <= 103
