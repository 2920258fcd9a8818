"""The last handler: what nobody foresaw becomes one sentence, a log, and an exit code.

The words of an exception may hold what a cell of the data holds, so neither the sentence nor the log repeats them: they
name kinds and places in the code. ``--debug`` shows all.
"""

import errno
import os
import platform
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from chexstudy import __version__, paths

_LONGEST_NAME = 60
_HINTS = {
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space, or set CHEXSTUDY_HOME to another disk",
    errno.EDQUOT: "free some space, or set CHEXSTUDY_HOME to another disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file is where a folder is wanted: take it away, or choose another place",
    errno.EEXIST: "a file is where a folder is wanted: take it away, or choose another place",
    errno.EISDIR: "a folder is where a file is wanted: name a file",
    errno.EMFILE: "close other programs, or raise the limit with `ulimit -n`",
    errno.ENOENT: "see whether the name is right",
}
_OUT_OF_MEMORY = "memory ran out: use a smaller profile, fewer workers or smaller batches, or close other programs."


def tell_mistake(error: BaseException) -> str | None:
    """What the system or the user's files refuse, as one sentence with what to do; None for anything else."""
    name = type(error).__name__
    if isinstance(error, MemoryError) or name in ("OutOfMemoryError", "BrokenProcessPool"):
        return _OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return _OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOENT and error.filename is None:
            return "the folder you stand in was removed: change to another one and give the command again."
        hint, reason = _HINTS.get(error.errno, "mend it, or choose another place"), os.strerror(error.errno)
        if error.filename is None:
            return f"the system refuses: {reason}; {hint}."
        return f"{_shorten(error.filename)} cannot be used: {reason}; {hint}."
    return None


def tell_unforeseen(error: BaseException) -> str:
    """One sentence about an error that is our mistake; it names a log, in which stands where it happened."""
    place, kind = _find_place(error), type(error).__name__
    log = _write_log(error)
    look = f"where it came from is in {log}, and" if log else "no log could be written, but"
    return f"this should not happen: {kind} at {place}; {look} `--debug` shows all, to be sent with a report of it."


def _shorten(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if len(text) <= 2 * _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…{text[-_LONGEST_NAME:]}"


def _find_place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(paths.PACKAGE)] or list(frames)
    if not ours:
        return "an unknown place"
    file = Path(ours[-1].filename)
    file = file.relative_to(paths.REPOSITORY) if file.is_relative_to(paths.REPOSITORY) else Path(file.name)
    return f"{file}, line {ours[-1].lineno}"


def _write_log(error: BaseException) -> Path | None:
    now = datetime.now(UTC)
    lines = [f"chexstudy {__version__}, Python {platform.python_version()}, {platform.platform()}, {now.isoformat()}"]
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        kind = type(error)
        lines += ["", f"{kind.__module__}.{kind.__qualname__}"]
        for frame in traceback.extract_tb(error.__traceback__):
            lines.append(f"  {frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line}")
        error = error.__cause__ or error.__context__
    try:
        path = paths.runs() / ".logs" / f"{now:%Y-%m-%dT%H%M%S}-{os.getpid()}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except Exception:  # without a log the sentence still has to be said
        return None
    return path


def silence(stream: object) -> None:
    """Let what is still to be written to standard output go nowhere: its reader is gone or its disk is full."""
    if stream is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
