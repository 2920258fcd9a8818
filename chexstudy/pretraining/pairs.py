"""The training pairs as the engine sees them: pixels and tokens by row number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
_LENGTH_GROUPS = 4


@dataclass(frozen=True)
class TokenGroup:
    """Some texts of a batch, padded to the longest of them.

    Attributes:
        positions: where in the batch they belong ``(texts,)``.
        input_ids: ``(texts, length)``.
        mask: ``(texts, length)``, 1 for tokens.
    """

    positions: Tensor
    input_ids: Tensor
    mask: Tensor


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

    def tokens(self, rows: np.ndarray, device: torch.device) -> list[TokenGroup]:
        """Tokenised reports in groups of like length, so that little padding is computed.

        Returns:
            Groups that together hold every row once.
        """
        lengths = self._lengths[torch.from_numpy(rows)]
        order = torch.argsort(lengths, stable=True)
        groups = []
        for positions in torch.tensor_split(order, min(_LENGTH_GROUPS, len(order))):
            longest = int(lengths[positions[-1]])
            length = min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, self._input_ids.shape[1])
            chosen = torch.from_numpy(rows)[positions]
            tokens = (self._input_ids[chosen, :length], self._mask[chosen, :length])
            groups.append(TokenGroup(*(part.to(device) for part in (positions, *tokens))))
        return groups
