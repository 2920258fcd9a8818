"""What an encoder's features are worth while it is trained: labelled neighbours answer for validation images."""

import numpy as np
import pandas as pd

from chexstudy.cohort.table import finding_columns, label_matrix
from chexstudy.statistics.ranking import auroc, known_labels, macro_mean
from chexstudy.vectors.neighbour_votes import scale_rows, share_votes
from chexstudy.vectors.neighbours import find_most_similar

_MOST_IMAGES = 4000  # of each kind
_NEIGHBOURS = 20


class NeighbourProbe:
    """Labelled training images as references, labelled validation images as queries, spread evenly over the cohort.

    ``image_ids`` are those of references, then queries; none where the cohort has no finding that both know.
    """

    def __init__(self, cohort: pd.DataFrame):
        findings = finding_columns(cohort)
        parts = [_pick_labelled(cohort[cohort.split == split], findings) for split in ("train", "validate")]
        references, queries = (label_matrix(part, findings) for part in parts)
        judged = known_labels(references).any(axis=0)
        judged &= (queries == 1).any(axis=0) & (queries == 0).any(axis=0)
        self._references, self._queries = references[:, judged], queries[:, judged]
        self.image_ids = np.concatenate([part.image_id for part in parts]) if judged.any() else np.array([])

    def measure(self, features: np.ndarray) -> float:
        """Macro AUROC of the neighbours' votes for the queries, from features of all images ``(images, dim)``."""
        rows, queries = np.split(scale_rows(features), [len(self._references)])
        count = min(_NEIGHBOURS, len(rows))
        (scores,) = share_votes(self._references, *find_most_similar(rows, queries, count), (count,))
        return float(macro_mean(auroc(self._queries, scores)))


def _pick_labelled(table: pd.DataFrame, findings: list[str]) -> pd.DataFrame:
    labelled = table[known_labels(label_matrix(table, findings)).any(axis=1)]
    return labelled.iloc[np.linspace(0, len(labelled) - 1, min(len(labelled), _MOST_IMAGES)).round().astype(int)]
