"""Rows in blocks: what is larger than memory is read piece by piece, as float32."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_BLOCK_ROWS = 4096


def read_rows(features: np.ndarray, rows: slice | np.ndarray) -> Tensor:
    """A copy of some rows as float32 ``(count, dim)``; a read-only memory map stays untouched."""
    return torch.from_numpy(np.array(features[rows], dtype=np.float32))


def iterate_blocks(features: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive blocks of rows: where they lie, and a float32 copy."""
    for start in range(0, len(features), _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, len(features)))
        yield rows, read_rows(features, rows)


class RowView:
    """Some rows of an array as an array of their own, read when asked for."""

    def __init__(self, features: np.ndarray, rows: np.ndarray):
        self._features, self._rows = features, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._features[self._rows[rows]]
