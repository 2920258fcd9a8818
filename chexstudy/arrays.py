"""Large arrays as ``.npy`` files that are written from the first row to the last: what was written outlives a kill.

Written and not mapped: on a full disk a mapped file kills the process.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.runs import atomic_path, has_grown, refused_writes, seal_artifact

_BLOCK_BYTES = 2**24


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
    """Write what a ``.npy`` file begins with; numpy leaves room for it to be written again with more rows."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class GrowingArray:
    """A ``.npy`` file whose rows are written from the first to the last.

    What `flush` has made safe is hashed as it was written, ``NAME.growing.json``, and counts for a later process only
    if it reads the same.

    Until the whole array of this shape lies at ``final``, it is ``NAME.growing.npy`` beside it, and ``rows`` says how
    many are there. With ``keep`` it goes on with what an earlier process has written under the same key.
    """

    def __init__(self, final: Path, shape: tuple[int, ...], dtype: np.dtype | type, keep: bool = False, key: str = ""):
        self.final, self.shape, self.dtype, self._key = final, shape, np.dtype(dtype), key
        self.path = final.with_name(f"{final.stem}.growing.npy")
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self.rows = count_grown_rows(final, key) if keep else 0
        with refused_writes(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "r+b" if self.rows else "w+b")  # noqa: SIM115
            write_header(self._file, shape, self.dtype)
            self._start = self._file.tell()
            self._file.flush()
        self._hash_from_disk(self.rows)

    def require(self, rows: int) -> None:
        """Make sure that so many rows are there."""
        if self.rows < rows:
            raise StudyError(
                f"{self.path} holds {self.rows} rows and not the {rows} that its checkpoint counts: remove the arm's "
                "folder and train it again."
            )

    def write(self, row: int, values: np.ndarray) -> None:
        """Write rows from number ``row`` on; those beyond are forgotten."""
        if row != self.rows:
            self._hash_from_disk(row)
        content = np.ascontiguousarray(values, self.dtype).data
        with refused_writes(self.final):
            self._file.seek(self._start + row * self._row_bytes)
            self._file.write(content)
        self._hash.update(content)
        self.rows = row + len(values)

    def flush(self) -> None:
        """Make sure that what was written outlives a power cut."""
        with refused_writes(self.final):
            self._file.flush()
            os.fsync(self._file.fileno())
        with atomic_path(_place_hash(self.final)) as temporary:
            size = self._start + self.rows * self._row_bytes
            grown = {"key": self._key, "rows": self.rows, "bytes": size, "sha256": self._hash.hexdigest()}
            temporary.write_text(json.dumps(grown) + "\n")

    def finish(self) -> None:
        """Move the whole array to its place."""
        self.require(self.shape[0])
        with refused_writes(self.final):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        seal_artifact(self.final, self._hash.hexdigest(), self._key)
        os.replace(self.path, self.final)
        _place_hash(self.final).unlink(missing_ok=True)

    def _hash_from_disk(self, rows: int) -> None:
        """Hash header and rows that an earlier process wrote."""
        self._file.flush()
        self._hash = _hash_beginning(self.path, self._start + rows * self._row_bytes)


def grow_arrays(
    finals: Sequence[Path],
    rows: int,
    rows_a_part: int,
    key: str,
    compute: Callable[[slice], Sequence[np.ndarray]],
    label: str,
) -> None:
    """Compute arrays of equally many rows part by part, unless they are there.

    A killed computation goes on at the part it was at. ``compute`` gives the rows of a slice, one array for each of
    ``finals``, where the arrays will lie.
    """
    if all(has_grown(final, key) for final in finals):
        return
    done = min(rows - 1, *(count_grown_rows(final, key) for final in finals)) // rows_a_part * rows_a_part
    growing: list[GrowingArray] = []
    starts = range(done, rows, rows_a_part)
    for start in progress(starts, label=f"{label}, parts of {rows_a_part}"):
        arrays = compute(slice(start, min(start + rows_a_part, rows)))
        if not growing:
            kinds = [((rows, *array.shape[1:]), array.dtype, done > 0, key) for array in arrays]
            growing = [GrowingArray(final, *kind) for final, kind in zip(finals, kinds, strict=True)]
        for one, array in zip(growing, arrays, strict=True):
            one.write(start, array)
            one.flush()
    for one in growing:
        one.finish()


def count_grown_rows(final: Path, key: str = "") -> int:
    """How many rows of an array that is not finished are as they were written; none if any byte or the key differs."""
    try:
        grown = json.loads(_place_hash(final).read_bytes())
        rows, expected = int(grown["rows"]), grown["sha256"]
        found = _hash_beginning(final.with_name(f"{final.stem}.growing.npy"), int(grown["bytes"])).hexdigest()
    except (OSError, ValueError, LookupError, TypeError):
        return 0
    return rows if found == expected and grown.get("key") == key else 0


def _place_hash(final: Path) -> Path:
    return final.with_name(f"{final.stem}.growing.json")


def _hash_beginning(path: Path, size: int):
    """SHA-256 of a file's first bytes, as a hash object that goes on."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size and (block := file.read(min(size, _BLOCK_BYTES))):
            digest.update(block)
            size -= len(block)
    return digest
