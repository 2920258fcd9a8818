"""Copies: image files of equal bytes under several names, and one file that several rows name.

A copy of a test image among the training images makes every measurement too good, whoever the patient is said to be.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.runs import hash_file

_PROBE = 4096  # bytes


def find_copies(files: Sequence[str | Path]) -> list[list[int]]:
    """Which files hold the same bytes: groups of two and more positions in ``files``, in their order.

    Files of equal size are compared by a piece from their middle, and only those that agree there are read whole.
    Empty and missing files, and whatever is not a regular file, are nobody's copy.
    """
    groups = [list(range(len(files)))]
    for tell_apart in (_measure, _read_middle, hash_file):
        groups = [part for group in groups for part in _split_group(group, files, tell_apart)]
    return sorted(groups)


def refuse_shared_files(files: Iterable[str | Path]) -> None:
    """Raise a StudyError if two rows name one image file, however its path is written."""
    named = pd.Series([os.path.realpath(file) for file in files])
    shared = named[named.duplicated(keep=False)]
    if len(shared):
        first, second = shared.index[shared == shared.iloc[0]][:2]
        raise StudyError(
            f"the cohort table: rows {first} and {second} name one image file, and {len(shared)} rows share their file "
            "with another: keep one row for each file, or mend the column of paths."
        )


def _split_group(
    group: list[int], files: Sequence[str | Path], tell_apart: Callable[[Path], Hashable]
) -> list[list[int]]:
    parts = defaultdict(list)
    for position in group:
        try:
            parts[tell_apart(Path(files[position]))].append(position)
        except OSError:
            continue  # why it cannot be read is said when the images are
    return [part for key, part in parts.items() if key is not None and len(part) > 1]


def _measure(file: Path) -> int | None:
    status = file.stat()
    return status.st_size or None if stat.S_ISREG(status.st_mode) else None


def _read_middle(file: Path) -> bytes:
    with open(file, "rb") as handle:
        handle.seek(max(0, (file.stat().st_size - _PROBE) // 2))
        return handle.read(_PROBE)
