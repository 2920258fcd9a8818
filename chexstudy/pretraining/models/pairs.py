"""The training pairs as the engine sees them: pixels and tokens by row."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from chexstudy.cohort.pixels.store import PixelStore
from chexstudy.cohort.reports import training_text
from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.loading import gather_pixels
from chexstudy.pretraining.models.texts import TokenisedTexts


class TrainingPairs:
    """Images and tokenised reports of the training split, in the cohort's order, held ready for the engine.

    ``tokenize`` goes from texts to ``input_ids`` and ``attention_mask``; it is called once.
    """

    def __init__(self, cohort: pd.DataFrame, store: PixelStore, tokenize: Callable[[Sequence[str]], dict[str, Tensor]]):
        self.table = cohort[cohort.split == "train"].reset_index(drop=True)
        if self.table.empty:
            raise StudyError("the cohort has no training pairs: check its `split` column.")
        self.image_ids = self.table.image_id.to_numpy()
        self._store, self._store_rows = store, store.rows(self.table.image_id)
        tokens = tokenize([training_text(report) for report in self.table.report])
        self.texts = TokenisedTexts(tokens["input_ids"], tokens["attention_mask"])

    def __len__(self) -> int:
        return len(self.table)

    def pixels(self, rows: np.ndarray, pin_memory: bool = False) -> Tensor:
        """uint8 ``(batch, 1, size, size)`` in main memory, page-locked for a GPU if asked for."""
        return gather_pixels(self._store, self._store_rows[rows], pin_memory)
