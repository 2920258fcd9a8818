"""Nearest neighbours on frozen features: nothing is trained, the labelled images themselves answer.

This is the classifier of DINO (Caron et al. 2021, arXiv 2104.14294, appendix F.1; Wu et al. 2018): the k most
similar training images vote with the weight ``exp(cosine / 0.07)``. Here each finding is voted on by itself, so that an
image may have many; with one label an image, the finding with the largest share is DINO's answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.table import label_matrix
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.linear import read_vectors
from chexstudy.evaluation.adaptation.training import METRICS, check_splits, choose_row
from chexstudy.statistics.ranking import known_labels, macro_mean, rank_metrics
from chexstudy.vectors.neighbours import find_most_similar

NEIGHBOURS = (5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class FittedNeighbours:
    """Labelled images that answer for their neighbourhood."""

    rows: np.ndarray  # ``(images, channels)`` float32, unit-norm features of the training images
    labels: np.ndarray  # ``(images, findings)`` float32; 1 and 0 vote, all others do not
    neighbours: int  # k, chosen on validation
    # one row a k: ``neighbours``, ``auroc`` and ``auprc``, means over the findings that the validation split can judge
    validation: pd.DataFrame
    temperature: float  # of the votes
    parts: str  # what is read, as in `chexstudy.evaluation.adaptation.linear.linear_head`
    blocks: int | None  # likewise
    encoder: dict  # `ImageEncoder.describe` of the encoder whose features are kept here
    findings: tuple[str, ...]  # in the order of the scores

    def score(self, features: FrozenFeatures, image_ids: Sequence[str]) -> np.ndarray:
        """Probabilities ``(images, findings)`` from 0 to 1, float64: shares of the votes.

        Where none of the k neighbours knows a label, the finding's share among all training images stands in.
        """
        features.check_encoder(self.encoder)
        queries = _unit_vectors(features, image_ids, self.parts, self.blocks)
        found, similar = find_most_similar(self.rows, queries, self.neighbours)
        return _vote(self.labels, found, similar, (self.neighbours,), self.temperature)[0]


def fit_neighbours(
    features: FrozenFeatures,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    findings: Sequence[str],
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    parts: str = "pooled",
    blocks: int | None = None,
    choose_by: str = "auroc",
) -> FittedNeighbours:
    """Choose how many neighbours answer, on validation; each candidate is a prefix of one search.

    Of the candidates, those beyond the number of training images are left out, and if all are, all training images
    answer. Equally good candidates: the first is taken.

    Args:
        features: of the images of both splits.
        train: cohort rows that answer.
        validation: cohort rows k is chosen on.
        findings: what is asked; labels 1 and 0, all others are left out.
        neighbours: the candidates for k.
        temperature: of the votes.
        parts: as in `chexstudy.evaluation.adaptation.linear.linear_head`.
        blocks: likewise.
        choose_by: ``auroc`` or ``auprc``, the mean over findings.
    """
    findings = tuple(findings)
    if choose_by not in METRICS:
        raise StudyError(f"the number of neighbours is chosen by {' or '.join(METRICS)}, not {choose_by!r}.")
    if not len(neighbours) or min(neighbours) < 1 or not temperature > 0:
        raise StudyError("neighbours need one candidate or more, each 1 or more, and a temperature above 0.")
    check_splits(train, validation, findings)
    candidates = tuple(k for k in neighbours if k <= len(train)) or (len(train),)
    labels, validation_labels = label_matrix(train, list(findings)), label_matrix(validation, list(findings))
    rows = _unit_vectors(features, train.image_id, parts, blocks)
    queries = _unit_vectors(features, validation.image_id, parts, blocks)
    found, similar = find_most_similar(rows, queries, min(max(candidates), len(rows)))
    scores = _vote(labels, found, similar, candidates, temperature)
    means = [[float(macro_mean(values)) for values in rank_metrics(validation_labels, one)] for one in scores]
    table = pd.DataFrame(means, columns=list(METRICS))
    table.insert(0, "neighbours", candidates)
    chosen = choose_row(table, choose_by, "number of neighbours")
    return FittedNeighbours(
        rows,
        labels,
        int(candidates[chosen]),
        table,
        temperature,
        parts,
        blocks,
        features.encoder,
        findings,
    )


def _unit_vectors(features: FrozenFeatures, image_ids: Sequence[str], parts: str, blocks: int | None) -> np.ndarray:
    vectors = read_vectors(features, image_ids, parts, blocks)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _vote(
    labels: np.ndarray, found: np.ndarray, similar: np.ndarray, candidates: Sequence[int], temperature: float
) -> list[np.ndarray]:
    """Share of the votes ``(queries, findings)`` that say present, for each k; neighbours are nearest first."""
    known = known_labels(labels)
    present = np.where(known, labels, 0.0)
    prior = present.sum(axis=0) / known.sum(axis=0)
    shares = [np.empty((len(found), labels.shape[1])) for _ in candidates]
    for start in range(0, len(found), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        # The nearest neighbour votes with weight 1, which cancels and keeps the others from overflowing.
        weights = np.exp((similar[block].astype(float) - similar[block, :1]) / temperature)
        for k, share in zip(candidates, shares, strict=True):
            near, weight = found[block, :k], weights[:, :k]
            saying = np.einsum("qk,qkf->qf", weight, present[near])
            voting = np.einsum("qk,qkf->qf", weight, known[near].astype(float))
            share[block] = np.divide(saying, voting, out=np.tile(prior, (len(near), 1)), where=voting > 0)
    return shares
