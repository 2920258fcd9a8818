"""Ranking metrics and their uncertainty, with patients as the unit that is drawn.

Images of one patient resemble each other, so the bootstrap draws patients: a resample is a whole-number weight for each
case (how often its patient was drawn), and every metric accepts such weights. All metrics of one evaluation share the
same resamples; the interval of a macro mean or of a difference between arms therefore holds their correlation.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import norm
from scipy.stats import t as student

from chexstudy.errors import StudyError

RESAMPLES = 1000
CONFIDENCE = 0.95
# Below five patients of a class a bootstrap interval covers far less than it claims, so none is given.
LEAST_PATIENTS = 5
_LEAST_EVALUABLE = 0.9
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

    Args:
        labels: ``(cases, findings)``, 1 present, 0 absent, -1 and NaN left out.
        scores: ``(cases, findings)``, higher means more likely present. A column of NaN alone was not predicted.
        weights: ``(resamples, cases)``, how often each case counts; without it, each once.

    Returns:
        AUROC and average precision, each ``(findings,)`` without weights and ``(resamples, findings)`` with them; NaN
        where a finding has one class only or was not predicted.
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

    # ``(bins, cases)``, which negatives each bin holds: those between two scores of positives, or tied with one
    negatives: csr_array
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


def bootstrap_patients(patient_ids: Sequence, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw patients with replacement and weigh every case by how often its patient was drawn.

    Args:
        patient_ids: ``(cases,)``, the patient of each case.
        resamples: how many times to draw.
        generator: source of randomness.

    Returns:
        Whole numbers ``(resamples, cases)``; a row is one draw of as many patients as there are.
    """
    if len(patient_ids) == 0 or resamples < 1:
        raise StudyError("a bootstrap needs at least one case and one resample: check the split and the resamples.")
    patients, patient_of_case = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    count = len(patients)
    drawn = np.empty((count, resamples), dtype=np.int32)
    for resample in range(resamples):
        drawn[:, resample] = np.bincount(generator.integers(count, size=count), minlength=count)
    return drawn[patient_of_case].T


def count_patients(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many patients have a case among the members of each column.

    Two cases are of one patient if they were drawn equally often in every resample.

    Args:
        members: ``(cases, columns)``, bool.
        weights: ``(resamples, cases)`` of `bootstrap_patients`.

    Returns:
        ``(columns,)``.
    """
    # The first draws tell any two patients apart but for a chance of about 1e-30.
    patient = np.unique(weights[:64], axis=1, return_inverse=True)[1]
    return np.array([len(np.unique(patient[column])) for column in members.T])


def count_scarcer_patients(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Patients with the finding or patients without it, whichever are fewer: ``(findings,)``.

    Args:
        labels: ``(cases, findings)``, 1, 0, -1 or NaN.
        weights: ``(resamples, cases)`` of `bootstrap_patients`.
    """
    known = known_labels(labels)
    return np.minimum(*(count_patients(known & one, weights) for one in (labels == 1, labels != 1)))


def interval(
    replicates: np.ndarray, confidence: float = CONFIDENCE, patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap percentile interval over the first axis, expanded for few patients.

    A percentile interval of k patients is too narrow: their spread is that of k, not k - 1, and it uses the normal
    where Student's t belongs. The expanded one (Hesterberg 2015, The American Statistician 69(4)) goes further out, to
    the quantile at Phi(-sqrt(k / (k - 1)) t(k - 1)). With many patients both are the same.

    Args:
        replicates: ``(resamples, ...)``, the metric in each resample; NaN where it could not be had.
        confidence: share of the distribution between the ends.
        patients: ``(...)``, how many patients the metric rests on, in a ranking those of the scarcer class; without it,
            many.

    Returns:
        Low and high ends ``(...)``; NaN with fewer than five patients, or where fewer than 90 % of the resamples could
        be evaluated.
    """
    replicates = np.asarray(replicates, dtype=float)
    shape = replicates.shape[1:]
    count = np.broadcast_to(np.inf if patients is None else np.asarray(patients, dtype=float), shape)
    enough = (np.mean(~np.isnan(replicates), axis=0) >= _LEAST_EVALUABLE) & (count >= LEAST_PATIENTS)
    ends = np.full((2, *shape), np.nan)
    for place in np.ndindex(shape):
        if enough[place]:
            tail = _tail_probability(count[place], confidence)
            ends[(slice(None), *place)] = np.nanquantile(replicates[(slice(None), *place)], [tail, 1 - tail])
    return ends[0], ends[1]


def _tail_probability(patients: float, confidence: float) -> float:
    if np.isinf(patients):
        return (1 - confidence) / 2
    reach = np.sqrt(patients / (patients - 1)) * student.ppf(0.5 + confidence / 2, patients - 1)
    return float(norm.cdf(-reach))


def resample_seeds(replicates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The mean over training seeds in each resample, the seeds drawn again too (hierarchical bootstrap).

    The spread of a mean of S drawn seeds is too small by (S - 1) / S, a half for two seeds; its deviation from the mean
    of all is therefore stretched by sqrt(S / (S - 1)). One seed cannot be drawn: the result then holds patients alone.
    Where seeds differ by more than patients do, two or three of them still say too little: if patients did not vary at
    all, the interval would cover 62 % with two seeds, 80 % with three and 89 % with five.

    Args:
        replicates: ``(seeds, resamples, ...)``, the patients of a resample being the same for all seeds.
        generator: source of randomness.

    Returns:
        ``(resamples, ...)``.
    """
    replicates = np.asarray(replicates, dtype=float)
    seeds, resamples = replicates.shape[:2]
    mean = replicates.mean(axis=0)
    if seeds == 1:
        return mean
    chosen = generator.integers(seeds, size=(seeds, resamples))
    drawn = replicates[chosen, np.arange(resamples)].mean(axis=0)
    return mean + np.sqrt(seeds / (seeds - 1)) * (drawn - mean)


@dataclass(frozen=True)
class Difference:
    """A difference between two arms, mean over seeds."""

    value: np.ndarray  # ``(...)``, first minus second
    ci_low: np.ndarray  # ``(...)``, lower end of the 95 % interval
    ci_high: np.ndarray  # ``(...)``, upper end
    replicates: np.ndarray  # ``(resamples, ...)``, the difference in each resample
    seeds: int  # number of seeds; with one, the interval holds the variation of patients but not of training


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    first_replicates: np.ndarray,
    second_replicates: np.ndarray,
    generator: np.random.Generator,
    patients: np.ndarray | None = None,
) -> Difference:
    """First minus second, seed by seed and on the same resamples of patients.

    Args:
        first: ``(seeds, ...)``, the metric of the first arm on all cases.
        second: the same of the second arm; seed k is compared with seed k.
        first_replicates: ``(seeds, resamples, ...)``, the metric of the first arm in each resample of patients.
        second_replicates: the same of the second arm in the same resamples.
        generator: draws the seeds.
        patients: ``(...)``, as in `interval`.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    first_replicates, second_replicates = np.asarray(first_replicates), np.asarray(second_replicates)
    if first.shape != second.shape or first_replicates.shape != second_replicates.shape:
        raise StudyError(
            f"a paired difference needs the same seeds, resamples and findings in both arms, not {first.shape} with "
            f"{first_replicates.shape} against {second.shape} with {second_replicates.shape}."
        )
    replicates = resample_seeds(first_replicates - second_replicates, generator)
    low, high = interval(replicates, patients=patients)
    return Difference((first - second).mean(axis=0), low, high, replicates, len(first))


def difference_p_values(difference: Difference, patients: np.ndarray) -> np.ndarray:
    """Two-sided p values of differences, from the spread of the bootstrap and Student's t.

    Degrees of freedom are one fewer than the patients a difference rests on, as in `interval`: the p value then tells
    what the interval tells.

    Args:
        difference: of `paired_difference`.
        patients: ``(...)``, how many patients each rests on.

    Returns:
        ``(...)``; 1 where both rank alike in every resample, NaN where there is no interval.
    """
    patients = np.asarray(patients)
    with warnings.catch_warnings():
        # A column of NaN alone is a finding that cannot be evaluated.
        warnings.simplefilter("ignore", RuntimeWarning)
        spread = np.nanstd(difference.replicates, axis=0) * np.sqrt(patients / np.maximum(patients - 1, 1))
    known = np.isfinite(difference.ci_low)
    # Two arms that rank alike in every resample do not differ.
    distance = np.divide(np.abs(difference.value), spread, out=np.zeros(spread.shape), where=known & (spread > 0))
    return np.where(known, 2 * student.sf(distance, np.maximum(patients - 1, 1)), np.nan)
