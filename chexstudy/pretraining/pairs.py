"""The training pairs as the engine sees them: pixels and tokens by row number."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chexstudy.cohort.pixels import PixelStore
from chexstudy.cohort.reports import training_text
from chexstudy.errors import StudyError

Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]
# Lengths are rounded up so that few shapes occur: fewer compilations, fewer counts of operations.
_LENGTH_STEP = 8


class TrainingPairs:
    """Images and tokenised reports of the training split, held ready for the engine.

    Args:
        cohort: cohort table; only ``split == "train"`` is used, in the table's order.
        store: pixel store that holds these images.
        tokenize: texts to ``input_ids`` and ``attention_mask``; called once.

    Raises:
        StudyError: no pair is in the training split.
    """

    def __init__(self, cohort: pd.DataFrame, store: PixelStore, tokenize: Tokenize):
        self.table = cohort[cohort.split == "train"].reset_index(drop=True)
        if self.table.empty:
            raise StudyError("the cohort has no training pairs: check its `split` column.")
        self.image_ids = self.table.image_id.to_numpy()
        self._images = store.images
        self._store_rows = store.rows(self.table.image_id)
        texts = [training_text(report) for report in self.table.report]
        tokens = tokenize(texts)
        self._input_ids, self._mask = tokens["input_ids"], tokens["attention_mask"]
        self._lengths = self._mask.sum(dim=1)

    def __len__(self) -> int:
        return len(self.table)

    def pixels(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """uint8 ``(batch, 1, size, size)``."""
        images = torch.from_numpy(np.ascontiguousarray(self._images[self._store_rows[rows]]))
        return images.unsqueeze(1).to(device, non_blocking=True)

    def tokens(self, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``(batch, length)``, cut to the longest text of the batch."""
        rows = torch.from_numpy(rows)
        longest = int(self._lengths[rows].max())
        length = min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, self._input_ids.shape[1])
        return self._input_ids[rows, :length].to(device), self._mask[rows, :length].to(device)
