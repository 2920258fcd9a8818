"""What a curator saw and decided: the ledger of an arm, and the features that each decision was made on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.curation.records.ledger import read_ledger
from chexstudy.errors import StudyError
from chexstudy.runs import Run


@dataclass(frozen=True)
class ScoredPairs:
    """Decisions and features, row by row."""

    ledger: pd.DataFrame  # one row a decision
    features: np.ndarray  # joint features it was made on ``(decisions, dim)``, float16, perhaps memory-mapped

    def in_last_epoch(self) -> "ScoredPairs":
        """The decisions of the epoch that decided, where there are several."""
        last = self.ledger.epoch == self.ledger.epoch.max()
        # Epochs follow one another, so these are the last rows.
        return ScoredPairs(self.ledger[last].reset_index(drop=True), self.features[-int(last.sum()) :])

    def in_order_of(self, image_ids: Sequence[str]) -> "ScoredPairs":
        """The decisions of the last epoch, one for each of these images, in their order."""
        last = self.in_last_epoch()
        places = pd.Index(last.ledger.image_id).get_indexer(image_ids)
        if len(places) != len(last.ledger) or (places < 0).any():
            raise StudyError(
                f"the ledger holds {len(last.ledger):,} pairs that are not the {len(places):,} training pairs of the "
                "study now: train the arm again."
            )
        return ScoredPairs(last.ledger.iloc[places].reset_index(drop=True), last.features[places])


def read_scored_pairs(run: Run, arm: str, seed: int) -> ScoredPairs:
    """All decisions of an arm, in the order in which they were made."""
    features = run.read_array(f"pretraining/{arm}/seed{seed}/features.npy", memory_map=True)
    return ScoredPairs(read_ledger(run, arm, seed), features)


def add_map(run: Run, pairs: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    """The pairs with their places ``x`` and ``y`` on the map of an arm, where one was fitted."""
    name = f"pretraining/{arm}/seed{seed}/map.parquet"
    return pairs.merge(run.read_table(name), on="image_id") if run.has(name) else pairs
