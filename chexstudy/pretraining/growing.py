"""An array on disk that grows while an arm is trained: what was written before a checkpoint is there after a kill."""

import os
from pathlib import Path

import numpy as np

from chexstudy.errors import StudyError
from chexstudy.runs import refused_writes


class GrowingArray:
    """A ``.npy`` file whose rows are written from the first to the last.

    Written and not mapped: on a full disk a mapped file kills the process.

    Args:
        final: where the whole array will lie; until then it is ``NAME.growing.npy`` beside it.
        shape: of the whole array, rows first.
        dtype: of its elements.
        first: rows that an earlier process has written and that stay.

    Raises:
        StudyError: fewer than ``first`` rows are there, or the place cannot be written.
    """

    def __init__(self, final: Path, shape: tuple[int, ...], dtype: np.dtype | type, first: int = 0):
        self.final, self.shape, self.dtype = final, shape, np.dtype(dtype)
        self.path = final.with_name(f"{final.stem}.growing.npy")
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with refused_writes(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "r+b" if self.path.exists() and first else "w+b")  # noqa: SIM115
            header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()
            self._file.truncate(min(self._place(first), os.fstat(self._file.fileno()).st_size))
        if os.fstat(self._file.fileno()).st_size < self._place(first):
            self._file.close()
            raise StudyError(
                f"{self.path} is not there as far as its checkpoint says: remove the arm's folder and train it again."
            )

    def _place(self, row: int) -> int:
        return self._start + row * self._row_bytes

    def write(self, row: int, values: np.ndarray) -> None:
        """Write rows from number ``row`` on.

        Raises:
            StudyError: the disk is full.
        """
        with refused_writes(self.final):
            self._file.seek(self._place(row))
            self._file.write(np.ascontiguousarray(values, self.dtype).data)

    def flush(self) -> None:
        """Make sure that what was written outlives a power cut."""
        with refused_writes(self.final):
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Move the whole array to its place."""
        self.flush()
        self._file.close()
        os.replace(self.path, self.final)

    def close(self) -> None:
        """Leave what was written for a later process."""
        self._file.close()
