"""AUROC and average precision of many findings at once, on cases that may be weighted as a resample has drawn them."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from chexstudy.errors import StudyError

# Cases times resamples held at once: a block stays in a core's cache, and memory does not grow with the cohort.
_BLOCK = 1_000_000


def known_labels(labels: np.ndarray) -> np.ndarray:
    """Where a label says present (1) or absent (0); uncertain (-1) and not stated (NaN) enter no metric."""
    return ~np.isnan(labels) & (labels != -1)


def rank_metrics(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of many findings at once.

    Both are read off at the positives alone. The AUROC is their weighted mean of (negatives below + negatives tied / 2)
    / all negatives, the average precision their weighted mean of the precision at their score; equal to scikit-learn's
    ``roc_auc_score`` and ``average_precision_score``, ties included.

    Labels ``(cases, findings)`` of -1 and NaN are left out; a column of scores that are all NaN was not predicted.
    ``weights`` ``(resamples, cases)`` tell how often each case counts; without them, each once. Both metrics
    are ``(findings,)``, with weights ``(resamples, findings)``; NaN where a finding has one class only or was not
    predicted.
    """
    return _measure_ranks(labels, scores, weights, with_precision=True)


def _measure_ranks(labels, scores, weights, with_precision) -> tuple[np.ndarray, np.ndarray]:
    """`rank_metrics`, the average precision only if asked for."""
    labels, scores = np.asarray(labels, dtype=float), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise StudyError(
            f"labels {labels.shape} and scores {scores.shape} must both be (cases, findings) of one shape."
        )
    cases, findings = labels.shape
    by_case = np.ones((cases, 1), dtype=np.int32) if weights is None else np.asarray(weights).T
    if by_case.shape[0] != cases:
        raise StudyError(
            f"the weights hold {by_case.shape[0]} cases and the labels {cases}: draw them for these cases."
        )
    whole = np.issubdtype(by_case.dtype, np.integer)
    number = np.promote_types(by_case.dtype, np.int32) if whole else np.dtype(float)
    resamples = by_case.shape[1]
    known = known_labels(labels)
    missing = np.isnan(scores)
    ranked = []
    for finding in range(findings):
        if missing[:, finding].all():
            continue
        if missing[:, finding].any():
            raise StudyError(
                f"the scores of finding number {finding} are NaN for some cases: score every case or none."
            )
        ranking = _rank_cases(labels[:, finding], scores[:, finding], known[:, finding], number)
        if ranking is not None:
            ranked.append((finding, ranking))
    area = np.full((resamples, findings), np.nan)
    precision = np.full((resamples, findings), np.nan)
    width = max(1, _BLOCK // max(1, cases))
    for start in range(0, resamples, width):
        rows = slice(start, start + width)
        block = np.ascontiguousarray(by_case[:, rows], dtype=number)
        for finding, ranking in ranked:
            area[rows, finding], precision[rows, finding] = _rank_block(block, ranking, with_precision)
    return (area[0], precision[0]) if weights is None else (area, precision)


@dataclass(frozen=True)
class _Ranking:
    """One finding's cases in ascending order of score, gathered where no positive lies between them."""

    negatives: csr_array  # ``(bins, cases)``, those between two scores of positives, or tied with one
    positives: csr_array  # ``(scores, cases)``, which positives have each score
    lower: np.ndarray  # ``(scores,)``, how many bins lie below a score of positives
    upper: np.ndarray  # ``(scores,)``, the same with the bin tied with it


def _rank_cases(labels: np.ndarray, scores: np.ndarray, known: np.ndarray, number: np.dtype) -> _Ranking | None:
    """The ranking of one finding for weights of the type ``number``; None where it has one class only."""
    negatives = np.flatnonzero(known & (labels != 1))
    positives = np.flatnonzero(known & (labels == 1))
    if not (len(negatives) and len(positives)):
        return None
    levels, level = np.unique(scores[positives], return_inverse=True)
    # Below the first positive 0, tied with it 1, between it and the second 2, ...: most are empty and left out.
    place = sum(np.searchsorted(levels, scores[negatives], side) for side in ("left", "right"))
    places, occupied = np.unique(place, return_inverse=True)

    def gather(rows: np.ndarray, cases: np.ndarray, count: int) -> csr_array:
        return csr_array((np.ones(len(rows), dtype=number), (rows, cases)), shape=(count, len(labels)))

    return _Ranking(
        gather(occupied, negatives, len(places)),
        gather(level, positives, len(levels)),
        *(np.searchsorted(places, 2 * np.arange(len(levels)) + tied, "right") for tied in (0, 1)),
    )


def _rank_block(block: np.ndarray, ranking: _Ranking, with_precision: bool):
    """One finding's metrics in a block of weights ``(cases, resamples)``."""
    below = _running_sum(ranking.negatives @ block)
    positive_weight = ranking.positives @ block
    lower = below[ranking.lower]
    won = np.einsum("ij,ij->j", positive_weight, lower + below[ranking.upper], dtype=float) / 2
    negative_total, positive_total = below[-1].astype(float), positive_weight.sum(axis=0).astype(float)
    evaluable = (negative_total > 0) & (positive_total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = np.where(evaluable, won / (negative_total * positive_total), np.nan)
        if not with_precision:
            return area, np.nan
        positives_below = _running_sum(positive_weight)
        true_positives = positives_below[-1] - positives_below[:-1]
        flagged = true_positives + (below[-1] - lower)
        share = np.divide(true_positives, flagged, out=np.zeros(flagged.shape), where=flagged > 0)
        hits = np.einsum("ij,ij->j", positive_weight, share, dtype=float)
        return area, np.where(evaluable, hits / positive_total, np.nan)


def _running_sum(weights: np.ndarray) -> np.ndarray:
    total = np.zeros((len(weights) + 1, weights.shape[1]), dtype=weights.dtype)
    np.cumsum(weights, axis=0, out=total[1:])
    return total


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve; arguments, shapes and errors as in `rank_metrics`."""
    return _measure_ranks(labels, scores, weights, with_precision=False)[0]


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the precision-recall curve as average precision; arguments as in `rank_metrics`."""
    return rank_metrics(labels, scores, weights)[1]


def macro_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the findings that can be evaluated; NaN where none can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=-1)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Medians ``(resamples,)`` of values ``(cases,)``, each as often there as its weight ``(resamples, cases)`` says.

    Values that are NaN do not count; NaN where nothing does.
    """
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]
    running = np.cumsum(weights[:, order], axis=1)
    if not order.size:
        return np.full(len(weights), np.nan)
    # Shares such as three thirds add up to half the total only to within rounding.
    half, slack = running[:, -1:] / 2, 1e-9 * running[:, -1:]
    lower = np.argmax(running >= half - slack, axis=1)
    upper = np.argmax(running > half + slack, axis=1)
    return np.where(half[:, 0] > 0, (values[order][lower] + values[order][upper]) / 2, np.nan)
