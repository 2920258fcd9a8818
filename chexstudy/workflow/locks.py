"""One lock a study: whoever writes into its run folder holds it, and a second one is refused in one sentence.

The operating system keeps the lock (``flock`` on ``runs/<study>/.lock``) and lets go of it when its holder ends,
however it ends: a killed run leaves none behind, and the file only tells in words who holds it. Kernels and engines
that a holder starts inherit the open file. They work under its lock, and keep it if they outlive the holder.

On network folders: NFS passes the lock on to its server, so that it holds between machines, unless mounted ``nolock``;
Lustre wants ``-o flock``. Where the file system knows no locks a line says so and the run goes on.

A notebook in JupyterLab holds the lock while its cells run, so that one left open keeps nobody waiting.
"""

import ast
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from chexstudy.children import has_ended
from chexstudy.errors import StudyError
from chexstudy.runs import NO_LOCKS, Run, hold_lock, lock_file

LOCK = ".lock"
# Longer than the pause of a notebook, which would otherwise be refused or refuse others between two of its cells.
_SECONDS_OF_PATIENCE = 3.0
_SECONDS_BETWEEN_CELLS = 1.5
_INHERITED = "CHEXSTUDY_LOCK"

_held: tuple[Path, int] | None = None
_guard = threading.RLock()


@contextmanager
def hold_study(run: Run, what: str) -> Iterator[None]:
    """Hold the study within the block; nothing happens where this process or the one that started it holds it.

    ``what`` tells those who are refused who holds it.
    """
    if _is_held(run):
        yield
        return
    take_study(run, what)
    try:
        yield
    finally:
        release_study()


def take_study(run: Run, what: str) -> None:
    """Hold the study until `release_study` or the end of this process, in place of any other study."""
    global _held
    with _guard:
        if _is_held(run):
            return
        release_study()
        path = run.folder / LOCK
        descriptor = _wait_for(run, path)
        if descriptor != NO_LOCKS:
            now = datetime.now(UTC).isoformat()
            words = {"what": what, "process": os.getpid(), "host": platform.node(), "since": now}
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(words).encode(), 0)
        _held = path, descriptor
        os.environ[_INHERITED] = f"{descriptor}:{path}"


def release_study() -> None:
    """Let go of the study this process holds, if it holds one."""
    global _held
    with _guard:
        if _held is not None:
            if _held[1] != NO_LOCKS:
                # Closed and not unlocked: what this process started, and has not ended, keeps it.
                os.close(_held[1])
            _held = None
            os.environ.pop(_INHERITED, None)


def is_inherited(run: Run) -> bool:
    """Whether a process that started this one holds the study."""
    descriptor, path = _read_inherited()
    own = _held is not None and _held[0] == path
    return path == run.folder / LOCK and not own and _is_open_file(descriptor, path)


def inherited_descriptors() -> tuple[int, ...]:
    """What `subprocess.Popen` takes as ``pass_fds`` for a process that works under this one's lock."""
    descriptor, path = _read_inherited()
    return (descriptor,) if descriptor != NO_LOCKS and _is_open_file(descriptor, path) else ()


def _read_inherited() -> tuple[int, Path]:
    descriptor, _, path = os.environ.get(_INHERITED, f"{NO_LOCKS}:").partition(":")
    return int(descriptor), Path(path)


def tell_holder(run: Run) -> str | None:
    """Who is at work on the study, in words; None if nobody is."""
    path = run.folder / LOCK
    if _is_held(run):
        return _describe(path)
    if os.access(path, os.R_OK | os.W_OK):
        with hold_lock(path) as is_free:
            return None if is_free else _describe(path)
    return None


def hold_while_cells_run(run: Run, what: str) -> None:
    """Hold the study now and, in IPython, whenever a cell runs; elsewhere until this process ends."""
    global _cells
    take_study(run, what)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or is_inherited(run):
        return
    if _cells is None:
        _cells = _Cells()
        shell.ast_transformers.append(_cells)
        shell.events.register("post_run_cell", _cells.pause)
    _cells.study = run, what


class _Cells(ast.NodeTransformer):
    """Puts a first statement into every cell, which takes the lock, and lets go of it some time after the last one.

    A statement and not an event: an exception of an event does not stop the cell.
    """

    def __init__(self):
        self.study: tuple[Run, str] | None = None
        self._pause: threading.Timer | None = None

    def visit(self, node: ast.AST) -> ast.AST:
        first = node.body[0] if isinstance(node, ast.Module) and node.body else None
        if first and not (isinstance(first, ast.ImportFrom) and first.module == "__future__"):
            statement = ast.parse("__import__('chexstudy.workflow.locks').workflow.locks.resume_study()").body[0]
            node.body.insert(0, ast.copy_location(statement, first))
            ast.fix_missing_locations(node)
        return node

    def resume(self) -> None:
        with _guard:
            self._pause = None
            take_study(*self.study)

    def pause(self, *_: object) -> None:
        self._pause = pause = threading.Timer(_SECONDS_BETWEEN_CELLS, lambda: self._release_after(pause))
        pause.daemon = True
        pause.start()

    def _release_after(self, pause: threading.Timer) -> None:
        with _guard:
            # Another cell may have begun meanwhile.
            if self._pause is pause:
                release_study()


_cells: _Cells | None = None


def resume_study() -> None:
    """Take the notebook's study again; every cell begins with this."""
    _cells.resume()


def _is_held(run: Run) -> bool:
    mine = _held is not None and _held[0] == run.folder / LOCK and _is_open_file(_held[1], _held[0])
    return mine or is_inherited(run)


def _is_open_file(descriptor: int, path: Path) -> bool:
    try:
        return descriptor == NO_LOCKS or os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _wait_for(run: Run, path: Path) -> int:
    """The locked file, or `NO_LOCKS`."""
    until = time.monotonic() + _SECONDS_OF_PATIENCE
    while True:
        descriptor = lock_file(path)
        if descriptor is None:
            if time.monotonic() > until:
                raise StudyError(
                    f"study {run.study!r} is in use by {_describe(path)}: wait until that is done, or give this run "
                    "another --study."
                )
            time.sleep(0.1)
            continue
        if descriptor == NO_LOCKS:
            print(f"{path.parent} lies on a file system without locks: see to it that one run at a time uses it.")
        if _is_open_file(descriptor, path):
            return descriptor
        # The study was removed between opening and locking.
        os.close(descriptor)


def _describe(path: Path) -> str:
    try:
        words = json.loads(path.read_text())
        what, process, since = words["what"], int(words["process"]), words["since"][:16].replace("T", " ")
        elsewhere = "" if words["host"] == platform.node() else f" on {words['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    ended = "" if elsewhere or not has_ended(process) else ", which has ended, but not the processes it started"
    return f"{what} (process {process}{elsewhere}, since {since} UTC{ended})"
