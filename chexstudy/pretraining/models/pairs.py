"""The training pairs as the engine sees them: pixels and tokens by row."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor

from chexstudy.cohort.pixels.store import PixelStore
from chexstudy.cohort.reports import training_text
from chexstudy.pretraining.models.images import TrainingImages
from chexstudy.pretraining.models.texts import TokenisedTexts


class TrainingPairs(TrainingImages):
    """Images and tokenised reports of the training split, in the cohort's order, held ready for the engine.

    ``tokenize`` goes from texts to ``input_ids`` and ``attention_mask``; it is called once.
    """

    kind = "pairs"

    def __init__(self, cohort: pd.DataFrame, store: PixelStore, tokenize: Callable[[Sequence[str]], dict[str, Tensor]]):
        super().__init__(cohort, store)
        tokens = tokenize([training_text(report) for report in self.table.report])
        self.texts = TokenisedTexts(tokens["input_ids"], tokens["attention_mask"])
