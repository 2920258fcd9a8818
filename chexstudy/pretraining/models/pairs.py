"""The training pairs as the engine sees them: pixels and tokens by row."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor

from chexstudy.cohort.pixels.store import PixelStore
from chexstudy.cohort.reports import training_text
from chexstudy.pretraining.models.images import TrainingImages
from chexstudy.pretraining.models.texts import TokenisedTexts


class TrainingPairs(TrainingImages):
    """Images with a report of the training split and their tokens, in the cohort's order, held ready for the engine.

    ``tokenize`` goes from texts to ``input_ids`` and ``attention_mask``; it is called once.
    """

    kind = "pairs"

    def __init__(self, cohort: pd.DataFrame, store: PixelStore, tokenize: Callable[[Sequence[str]], dict[str, Tensor]]):
        training = cohort[cohort.split == "train"]
        texts = training.report.map(training_text)
        super().__init__(training[texts != ""], store)
        tokens = tokenize(texts[texts != ""].tolist())
        self.texts = TokenisedTexts(tokens["input_ids"], tokens["attention_mask"])
