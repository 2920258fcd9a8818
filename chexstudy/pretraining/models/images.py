"""The training images as the engine sees them, with or without a report."""

import hashlib

import numpy as np
import pandas as pd
from torch import Tensor

from chexstudy.cohort.pixels.store import PixelStore
from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.loading import gather_pixels
from chexstudy.progress import progress


class TrainingImages:
    """Images of the training split of a cohort, in the table's order, from the store that holds them.

    Attributes:
        table: the images' rows of the cohort.
        image_ids: ``(images,)``.
        side: of the stored images, in pixels.
    """

    kind = "images"  # what a row is

    def __init__(self, cohort: pd.DataFrame, store: PixelStore):
        self.table = cohort[cohort.split == "train"].reset_index(drop=True)
        if self.table.empty:
            raise StudyError(f"the cohort has no training {self.kind}: check its `split` column.")
        self.image_ids = self.table.image_id.to_numpy()
        self._store, self._store_rows = store, store.rows(self.table.image_id)
        self.side = store.size
        self._numbers, self._digests = np.full(len(self.table), -1), {}

    def __len__(self) -> int:
        return len(self.table)

    def pixels(self, rows: np.ndarray, pin_memory: bool = False) -> Tensor:
        """uint8 ``(batch, 1, size, size)`` in main memory, page-locked for a GPU if asked for."""
        return gather_pixels(self._store, self._store_rows[rows], pin_memory)

    def tell_copies(self, rows: np.ndarray) -> np.ndarray:
        """A number for each image ``(rows,)``, the same for those whose pixels are; an image is read for it once."""
        unknown = rows[self._numbers[rows] < 0]
        for row in unknown:
            digest = hashlib.sha256(self.pixels(np.array([row])).numpy()).digest()
            self._numbers[row] = self._digests.setdefault(digest, len(self._digests))
        return self._numbers[rows]

    def find_copies(self) -> np.ndarray:
        """Images ``(copies,)`` whose pixels an earlier one has too, by row."""
        for row in progress(range(len(self)), label="telling copies"):
            self.tell_copies(np.array([row]))
        return np.flatnonzero(pd.Series(self._numbers).duplicated())
