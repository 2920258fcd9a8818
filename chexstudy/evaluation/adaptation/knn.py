"""Nearest neighbours on frozen features: nothing is trained, the labelled images themselves answer.

This is the classifier of DINO (Caron et al. 2021, arXiv 2104.14294, appendix F.1; Wu et al. 2018): the k most
similar training images vote with the weight ``exp(cosine / 0.07)``. Here each finding is voted on by itself, so that an
image may have many; with one label an image, the finding with the largest share is DINO's answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.evaluation.adaptation.training import METRICS, choose_row
from chexstudy.statistics.ranking import macro_mean, rank_metrics
from chexstudy.vectors.neighbour_votes import scale_rows, share_votes
from chexstudy.vectors.neighbours import find_most_similar

NEIGHBOURS = (5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class FittedNeighbours:
    """Labelled images that answer for their neighbourhood."""

    rows: np.ndarray  # ``(images, channels)`` float32, unit-norm features of the training images
    labels: np.ndarray  # ``(images, findings)`` float32; 1 and 0 vote, all others do not
    neighbours: int  # k, chosen on validation
    # one row a k: ``neighbours``, ``auroc`` and ``auprc``, means over the findings that the validation split can judge
    validation: pd.DataFrame

    def score(self, features: np.ndarray) -> np.ndarray:
        """Probabilities ``(images, findings)`` from 0 to 1, float64, of features ``(images, channels)``.

        They are shares of the votes. Where none of the k neighbours knows a label, the finding's share among all
        training images stands in.
        """
        found, similar = find_most_similar(self.rows, scale_rows(features), self.neighbours)
        return share_votes(self.labels, found, similar, (self.neighbours,))[0]


def fit_neighbours(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> FittedNeighbours:
    """Choose how many neighbours answer by the macro AUROC on validation; each candidate is a prefix of one search.

    Of the candidates, those beyond the number of training images are left out, and if all are, all training images
    answer. Equally good candidates: the first is taken. Arguments as in
    `chexstudy.evaluation.adaptation.logistic_path.fit_linear_probe`, ``neighbours`` being the candidates.
    """
    candidates = tuple(k for k in neighbours if k <= len(train_features)) or (len(train_features),)
    rows = scale_rows(train_features)
    found, similar = find_most_similar(rows, scale_rows(validation_features), max(candidates))
    scores = share_votes(train_labels, found, similar, candidates)
    means = [[float(macro_mean(values)) for values in rank_metrics(validation_labels, one)] for one in scores]
    table = pd.DataFrame(means, columns=list(METRICS))
    table.insert(0, "neighbours", candidates)
    return FittedNeighbours(rows, train_labels, int(candidates[choose_row(table, "number of neighbours")]), table)
