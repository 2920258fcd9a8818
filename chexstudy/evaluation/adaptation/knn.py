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
from chexstudy.statistics.ranking import known_labels, macro_mean, rank_metrics
from chexstudy.vectors.neighbours import find_most_similar

NEIGHBOURS = (5, 10, 20, 50, 100, 200)
_TEMPERATURE = 0.07
_BLOCK_ROWS = 1024


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
        found, similar = find_most_similar(self.rows, _scale(features), self.neighbours)
        return _vote(self.labels, found, similar, (self.neighbours,))[0]


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
    rows = _scale(train_features)
    found, similar = find_most_similar(rows, _scale(validation_features), max(candidates))
    scores = _vote(train_labels, found, similar, candidates)
    means = [[float(macro_mean(values)) for values in rank_metrics(validation_labels, one)] for one in scores]
    table = pd.DataFrame(means, columns=list(METRICS))
    table.insert(0, "neighbours", candidates)
    return FittedNeighbours(rows, train_labels, int(candidates[choose_row(table, "number of neighbours")]), table)


def _scale(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _vote(labels: np.ndarray, found: np.ndarray, similar: np.ndarray, candidates: Sequence[int]) -> list[np.ndarray]:
    """Share of the votes ``(queries, findings)`` that say present, for each k; neighbours are nearest first."""
    known = known_labels(labels)
    present = np.where(known, labels, 0.0)
    prior = present.sum(axis=0) / known.sum(axis=0)
    shares = [np.empty((len(found), labels.shape[1])) for _ in candidates]
    for start in range(0, len(found), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        # The nearest neighbour votes with weight 1, which cancels and keeps the others from overflowing.
        weights = np.exp((similar[block].astype(float) - similar[block, :1]) / _TEMPERATURE)
        for k, share in zip(candidates, shares, strict=True):
            near, weight = found[block, :k], weights[:, :k]
            saying = np.einsum("qk,qkf->qf", weight, present[near])
            voting = np.einsum("qk,qkf->qf", weight, known[near].astype(float))
            share[block] = np.divide(saying, voting, out=np.tile(prior, (len(near), 1)), where=voting > 0)
    return shares
