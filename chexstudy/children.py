"""Processes that end when the one that started them ends, however it ends, and folders that are left by nobody.

A parent that is killed cannot end its children. So they look after it themselves: Linux tells them by a signal, and a
thread of theirs watches whose children they are. Asked to end first, as by ``kill``, they are ended a moment later.
"""

import ctypes
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from pathlib import Path

from chexstudy.errors import StudyError

_PARENT = "CHEXSTUDY_PARENT"
_SET_PARENT_DEATH_SIGNAL = 1
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 4.0
_TASKS_AHEAD = 4  # per worker: enough to keep it busy, few enough that results do not pile up
# A socket's path may have 103 bytes on macOS and 107 on Linux, and those of a kernel are called kernel-1 to kernel-5.
_LONGEST_FOLDER = 90
_MACHINE = sha256(platform.node().encode()).hexdigest()[:6]
_FOLDER = re.compile(rf"chexstudy-{_MACHINE}-(\d+)-\w+")


def name_parent() -> dict[str, str]:
    """Environment for a process that is to call `end_with_parent`."""
    return {_PARENT: str(os.getpid())}


def end_with_parent(parent: int | None = None) -> None:
    """From now on, end this process soon after the one that started it: ``parent``, or who called `name_parent`.

    Where nobody did, nothing is done: an engine started by hand outlives its terminal.
    """
    told = os.environ.pop(_PARENT, None)
    if parent is None and told is None:
        return
    parent = parent or int(told)
    is_told = sys.platform == "linux" and ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM) == 0
    if os.getppid() != parent:
        # It ended before anybody looked.
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=_watch, args=(parent, is_told), daemon=True).start()


def _watch(parent: int, is_told: bool) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if not is_told:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_END)
    os.kill(os.getpid(), signal.SIGKILL)


def work_in_order(work: Callable, items: Sequence, workers: int, items_a_task: int) -> Iterator:
    """What ``work`` gives for each item, in their order, from so many processes."""
    # Spawned rather than forked: the parent may hold threads of torch or of a notebook's kernel.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, end_with_parent, (os.getpid(),)) as pool:
        starts = range(0, len(items), items_a_task)
        tasks = (pool.submit(_work_through, work, items[start : start + items_a_task]) for start in starts)
        ahead: deque[Future] = deque(islice(tasks, workers * _TASKS_AHEAD))
        try:
            while ahead:
                yield from ahead.popleft().result()
                ahead.extend(islice(tasks, 1))
        except BrokenProcessPool:
            raise StudyError(
                "a process that reads or draws images died, most likely for want of memory: "
                "ask for fewer workers, or workers=1 to see which image is at fault."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _work_through(work: Callable, items: Sequence) -> list:
    return [work(item) for item in items]


def has_ended(process: int) -> bool:
    """Whether there is no such process on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the time of the block, short enough for sockets where that can be had.

    Those that processes of this machine have left, because they were killed, are taken away first.
    """
    places = dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp"))
    usable = [place for place in places if os.access(place, os.W_OK | os.X_OK)]
    prefix = f"chexstudy-{_MACHINE}-{os.getpid()}-"
    short = [place for place in usable if len(os.fsencode(os.path.join(place, prefix))) + 8 <= _LONGEST_FOLDER]
    for place in usable:
        for folder in Path(place).glob(f"chexstudy-{_MACHINE}-*"):
            match = _FOLDER.fullmatch(folder.name)
            if match and has_ended(int(match[1])):
                shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=next(iter(short), None), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def fits_sockets(folder: Path) -> bool:
    """Whether sockets can lie in a folder: their paths are short everywhere."""
    return len(os.fsencode(folder)) <= _LONGEST_FOLDER
