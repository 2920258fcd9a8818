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
        keep: go on with what an earlier process has written.

    Attributes:
        rows: how many rows are there.

    Raises:
        StudyError: the place cannot be written.
    """

    def __init__(self, final: Path, shape: tuple[int, ...], dtype: np.dtype | type, keep: bool = False):
        self.final, self.shape, self.dtype = final, shape, np.dtype(dtype)
        self.path = final.with_name(f"{final.stem}.growing.npy")
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with refused_writes(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "r+b" if keep and self.path.exists() else "w+b")  # noqa: SIM115
            header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()
            self._file.flush()
        self.rows = max(0, os.fstat(self._file.fileno()).st_size - self._start) // self._row_bytes

    def require(self, rows: int) -> None:
        """Make sure that so many rows are there.

        Raises:
            StudyError: they are not.
        """
        if self.rows < rows:
            raise StudyError(
                f"{self.path} holds {self.rows} rows and not the {rows} that its checkpoint counts: remove the arm's "
                "folder and train it again."
            )

    def write(self, row: int, values: np.ndarray) -> None:
        """Write rows from number ``row`` on.

        Raises:
            StudyError: the disk is full.
        """
        with refused_writes(self.final):
            self._file.seek(self._start + row * self._row_bytes)
            self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.rows = max(self.rows, row + len(values))

    def flush(self) -> None:
        """Make sure that what was written outlives a power cut.

        Raises:
            StudyError: the disk is full.
        """
        with refused_writes(self.final):
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Move the whole array to its place."""
        self.require(self.shape[0])
        self.flush()
        self._file.close()
        os.replace(self.path, self.final)
