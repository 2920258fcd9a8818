"""Nearest neighbours on frozen features: nothing is trained, the labelled images themselves answer.

``vote`` is the classifier of DINO (Caron et al. 2021, arXiv 2104.14294, appendix F.1; Wu et al. 2018): the k most
similar training images vote with the weight ``exp(cosine / 0.07)``. Here each finding is voted on by itself, so that an
image may have many; with one label an image, the finding with the largest share is DINO's answer. ``ml_knn`` (Zhang and
Zhou 2007, Pattern Recognition 40(7)) asks how often, among training images, those with the finding have as many
neighbours with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.table import label_matrix
from chexstudy.curation.clustering import find_most_similar
from chexstudy.errors import StudyError
from chexstudy.evaluation.heads.features import FrozenFeatures
from chexstudy.evaluation.heads.linear import read_vectors
from chexstudy.evaluation.heads.training import METRICS, check_splits, choose_row
from chexstudy.evaluation.statistics import known_labels, macro_mean, rank_metrics

NEIGHBOURS = (5, 10, 20, 50, 100, 200)
METHODS = ("vote", "ml_knn")
TEMPERATURE = 0.07
_SMOOTHING = 1.0
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class FittedNeighbours:
    """Labelled images that answer for their neighbourhood.

    Attributes:
        rows: ``(images, channels)`` float32, unit-norm features of the training images.
        labels: ``(images, findings)`` float32; 1 and 0 vote, all others do not.
        neighbours: k, chosen on validation.
        validation: one row a k: ``neighbours``, ``auroc`` and ``auprc``, means over the findings that the validation
            split can judge.
        method: ``vote`` or ``ml_knn``.
        temperature: of the votes.
        chances: for ``ml_knn``, ``(findings, k + 1)``: the probability of each finding given how many neighbours have
            it; None for ``vote``.
        parts: what is read, as in `chexstudy.evaluation.heads.linear.linear_head`.
        blocks: likewise.
        encoder: `ImageEncoder.describe` of the encoder whose features are kept here.
        findings: in the order of the scores.
    """

    rows: np.ndarray
    labels: np.ndarray
    neighbours: int
    validation: pd.DataFrame
    method: str
    temperature: float
    chances: np.ndarray | None
    parts: str
    blocks: int | None
    encoder: dict
    findings: tuple[str, ...]

    def score(self, features: FrozenFeatures, image_ids: Sequence[str]) -> np.ndarray:
        """Probabilities ``(images, findings)`` from 0 to 1, float64; shares of the votes, or those of ML-kNN.

        Where none of the k neighbours knows a label, the finding's share among all training images stands in.

        Raises:
            StudyError: the features are of another encoder, or lack an image.
        """
        features.check_encoder(self.encoder)
        queries = _unit_vectors(features, image_ids, self.parts, self.blocks)
        found, similar = find_most_similar(self.rows, queries, self.neighbours)
        if self.chances is not None:
            return _read_chances(self.chances, _count_present(self.labels, found, (self.neighbours,))[0])
        return _vote(self.labels, found, similar, (self.neighbours,), self.temperature)[0]


def fit_neighbours(
    features: FrozenFeatures,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    findings: Sequence[str],
    *,
    method: str = "vote",
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    parts: str = "pooled",
    blocks: int | None = None,
    choose_by: str = "auroc",
) -> FittedNeighbours:
    """Choose how many neighbours answer, on validation; each candidate is a prefix of one search.

    Of the candidates, those beyond the number of training images are left out, and if all are, all training images
    answer. In ``ml_knn`` no image is its own neighbour, prior and likelihood are smoothed by 1 as published, and an
    image whose label is not known is neither counted nor a neighbour that has the finding. Equally good candidates: the
    first is taken.

    Args:
        features: of the images of both splits.
        train: cohort rows that answer.
        validation: cohort rows k is chosen on.
        findings: what is asked; labels 1 and 0, all others are left out.
        method: ``vote`` or ``ml_knn``.
        neighbours: the candidates for k.
        temperature: of the votes; ``ml_knn`` has none.
        parts: as in `chexstudy.evaluation.heads.linear.linear_head`.
        blocks: likewise.
        choose_by: ``auroc`` or ``auprc``, the mean over findings.

    Raises:
        StudyError: an option is out of range, validation can judge no finding and there is more than one candidate, or
            as `chexstudy.evaluation.heads.training.check_splits` and `linear_head` say.
    """
    findings = tuple(findings)
    if method not in METHODS:
        raise StudyError(f"neighbours answer by {' or '.join(METHODS)}, not {method!r}.")
    if choose_by not in METRICS:
        raise StudyError(f"the number of neighbours is chosen by {' or '.join(METRICS)}, not {choose_by!r}.")
    if not len(neighbours) or min(neighbours) < 1 or not temperature > 0:
        raise StudyError("neighbours need one candidate or more, each 1 or more, and a temperature above 0.")
    check_splits(train, validation, findings)
    # In ml_knn a training image has one neighbour less than there are images.
    most = max(1, len(train) - (method == "ml_knn"))
    candidates = tuple(k for k in neighbours if k <= most) or (most,)
    labels, validation_labels = label_matrix(train, list(findings)), label_matrix(validation, list(findings))
    rows = _unit_vectors(features, train.image_id, parts, blocks)
    queries = _unit_vectors(features, validation.image_id, parts, blocks)
    found, similar = find_most_similar(rows, queries, min(max(candidates), len(rows)))
    chances = [None] * len(candidates)
    if method == "ml_knn":
        chances = _learn_chances(rows, labels, candidates)
        counts = _count_present(labels, found, candidates)
        scores = [_read_chances(*pair) for pair in zip(chances, counts, strict=True)]
    else:
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
        method,
        temperature,
        chances[chosen],
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


def _count_present(labels: np.ndarray, found: np.ndarray, candidates: Sequence[int]) -> list[np.ndarray]:
    """How many of the k nearest have each finding, ``(queries, findings)``, for each k."""
    present = (labels == 1).astype(np.int32)
    counts = [np.empty((len(found), labels.shape[1]), dtype=np.int64) for _ in candidates]
    for start in range(0, len(found), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        for k, count in zip(candidates, counts, strict=True):
            count[block] = present[found[block, :k]].sum(axis=1)
    return counts


def _learn_chances(rows: np.ndarray, labels: np.ndarray, candidates: Sequence[int]) -> list[np.ndarray]:
    """Probability of each finding given how many of the k neighbours have it, ``(findings, k + 1)``, for each k."""
    found = _leave_self_out(find_most_similar(rows, rows, min(max(candidates) + 1, len(rows)))[0])
    known = known_labels(labels)
    has, lacks = known & (labels == 1), known & (labels != 1)
    prior = (_SMOOTHING + has.sum(axis=0)) / (2 * _SMOOTHING + known.sum(axis=0))
    chances = []
    for k, counts in zip(candidates, _count_present(labels, found, candidates), strict=True):
        likelihoods = []
        for members in (has, lacks):
            seen = np.stack(
                [np.bincount(count[member], minlength=k + 1) for count, member in zip(counts.T, members.T, strict=True)]
            )
            total = seen.sum(axis=1, keepdims=True)
            likelihoods.append((_SMOOTHING + seen) / (_SMOOTHING * (k + 1) + total))
        of_present = prior[:, None] * likelihoods[0]
        chances.append(of_present / (of_present + (1 - prior)[:, None] * likelihoods[1]))
    return chances


def _leave_self_out(found: np.ndarray) -> np.ndarray:
    """Neighbours ``(images, k)`` of images among themselves, of ``(images, k + 1)`` found."""
    own = found == np.arange(len(found))[:, None]
    # Copies of an image may have pushed it off the end of its own list: the last one found goes instead.
    own[~own.any(axis=1), -1] = True
    return found[~own].reshape(len(found), -1)


def _read_chances(chances: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return chances[np.arange(len(chances)), counts]
