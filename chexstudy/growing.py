"""An array on disk that grows while an arm is trained: what was written before a checkpoint is there after a kill."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from chexstudy.errors import StudyError
from chexstudy.runs import atomic_path, refused_writes, seal_artifact

_BLOCK_BYTES = 2**24


class GrowingArray:
    """A ``.npy`` file whose rows are written from the first to the last.

    Written and not mapped: on a full disk a mapped file kills the process. What `flush` has made safe is hashed as it
    was written, ``NAME.growing.json``, and counts for a later process only if it reads the same.

    Args:
        final: where the whole array will lie; until then it is ``NAME.growing.npy`` beside it.
        shape: of the whole array, rows first.
        dtype: of its elements.
        keep: go on with what an earlier process has written.

    Attributes:
        rows: how many rows are there.
    """

    def __init__(self, final: Path, shape: tuple[int, ...], dtype: np.dtype | type, keep: bool = False):
        self.final, self.shape, self.dtype = final, shape, np.dtype(dtype)
        self.path = final.with_name(f"{final.stem}.growing.npy")
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self.rows = count_grown_rows(final) if keep else 0
        with refused_writes(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "r+b" if self.rows else "w+b")  # noqa: SIM115
            header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
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
            grown = {
                "rows": self.rows,
                "bytes": self._start + self.rows * self._row_bytes,
                "sha256": self._hash.hexdigest(),
            }
            temporary.write_text(json.dumps(grown) + "\n")

    def finish(self) -> None:
        """Move the whole array to its place."""
        self.require(self.shape[0])
        with refused_writes(self.final):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        seal_artifact(self.final, self._hash.hexdigest())
        os.replace(self.path, self.final)
        _place_hash(self.final).unlink(missing_ok=True)

    def _hash_from_disk(self, rows: int) -> None:
        """Hash header and rows that an earlier process wrote."""
        self._file.flush()
        self._hash = _hash_beginning(self.path, self._start + rows * self._row_bytes)


def count_grown_rows(final: Path) -> int:
    """How many rows of an array that is not finished are as they were written; none if any byte differs."""
    try:
        grown = json.loads(_place_hash(final).read_bytes())
        rows, expected = int(grown["rows"]), grown["sha256"]
        found = _hash_beginning(final.with_name(f"{final.stem}.growing.npy"), int(grown["bytes"])).hexdigest()
    except (OSError, ValueError, LookupError, TypeError):
        return 0
    return rows if found == expected else 0


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
