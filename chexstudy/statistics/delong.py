"""AUROCs of models on the same cases: their covariance without resampling, and what follows from it.

Two estimates. ``patients=None`` takes every case as a draw of its own (DeLong, DeLong and Clarke-Pearson 1988), by the
midranks of Sun and Xu (2014, IEEE Signal Processing Letters 21: 1389) in O(n log n): right for one image a patient.
With ``patients`` given, cases of one patient may resemble each other in any way (Obuchowski 1997, Biometrics 53: 567):
right for several images a patient, and equal to the first for one. On several images a patient the first is too sure
of itself where a patient's images share the label, and too unsure where they differ in it.

Both are large-sample estimates with normal intervals: with few patients of a class, with training seeds, for macro
means or for average precision, use the bootstrap of `chexstudy.statistics.bootstrap` or the permutation test of
`chexstudy.statistics.permutation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import CONFIDENCE
from chexstudy.statistics.ranking import known_labels


@dataclass(frozen=True)
class CorrelatedAreas:
    """AUROCs of one finding by several models on the same cases."""

    areas: np.ndarray  # ``(models,)``; NaN where the finding has one class only
    covariance: np.ndarray  # ``(models, models)``; NaN with fewer than two patients of a class
    positives: int  # how many cases have the finding
    negatives: int  # how many do not


@dataclass(frozen=True)
class AreaComparison:
    """A contrast of AUROCs against zero."""

    value: float  # the contrast, for two models the first minus the second
    ci_low: float  # lower end of its interval; NaN where no variance can be had
    ci_high: float  # upper end
    z: float  # the contrast over its standard error
    p: float  # two-sided p value


def correlate_areas(labels: np.ndarray, scores: np.ndarray, patients: Sequence | None = None) -> CorrelatedAreas:
    """AUROCs of several models for one finding and their covariance.

    Args:
        labels: ``(cases,)``, 1, 0, -1 or NaN; the last two are left out.
        scores: ``(cases, models)``, higher means more likely present; ties count half.
        patients: ``(cases,)``, the patient of each case: the estimate for several images a patient. Without it, every
            case is taken as another patient.
    """
    labels, scores = np.asarray(labels, dtype=float), np.asarray(scores)
    if labels.ndim != 1 or scores.ndim != 2 or len(labels) != len(scores):
        raise StudyError(f"labels {labels.shape} must be (cases,) and scores {scores.shape} (cases, models).")
    if patients is not None and len(patients) != len(labels):
        raise StudyError(f"there are {len(patients)} patients named for {len(labels)} cases: name one for each case.")
    known = known_labels(labels)
    labels, scores = labels[known], scores[known]
    if np.isnan(scores).any():
        raise StudyError("some scores are NaN: score every case with a known label.")
    present = labels == 1
    positives, negatives = int(present.sum()), int((~present).sum())
    models = scores.shape[1]
    if not (positives and negatives):
        return CorrelatedAreas(np.full(models, np.nan), np.full((models, models), np.nan), positives, negatives)
    of_positives = np.stack([_place(scores[present, one], scores[~present, one]) for one in range(models)])
    of_negatives = np.stack([1 - _place(scores[~present, one], scores[present, one]) for one in range(models)])
    areas = of_positives.mean(axis=1)
    if patients is None:
        group = np.arange(len(labels))
    else:
        group = np.unique(np.asarray(patients, dtype=str)[known], return_inverse=True)[1]
    covariance = _covariance_of_clusters(of_positives, of_negatives, group[present], group[~present])
    return CorrelatedAreas(areas, covariance, positives, negatives)


def _place(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the others below each score, ties counting half.

    Sun and Xu's difference of two midranks, that among all cases and that within the own class, is this count.
    """
    others = np.sort(others)
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2 * len(others))


def _covariance_of_clusters(of_positives, of_negatives, positive_group, negative_group) -> np.ndarray:
    """Obuchowski's covariance ``(models, models)`` from structural components ``(models, cases)`` of each class.

    Where every case is a cluster of its own, the cross term is zero and the rest is DeLong's.
    """
    groups = max(positive_group.max(), negative_group.max()) + 1
    parts, sums = [], []
    for components, group in ((of_positives, positive_group), (of_negatives, negative_group)):
        count = components.shape[1]
        deviations = components - components.mean(axis=1, keepdims=True)
        # (models, groups): summed within a patient, so that what a patient's images share is counted as one.
        summed = np.stack([np.bincount(group, weights=one, minlength=groups) for one in deviations])
        holding = len(np.unique(group))
        if holding < 2:
            return np.full((len(components), len(components)), np.nan)
        parts.append(summed @ summed.T * holding / (holding - 1) / count**2)
        sums.append(summed / count)
    holding = len(np.union1d(positive_group, negative_group))
    cross = sums[0] @ sums[1].T * holding / (holding - 1)
    return parts[0] + parts[1] + cross + cross.T


def compare_areas(areas: CorrelatedAreas, contrast: Sequence[float] = (1.0, -1.0)) -> AreaComparison:
    """Test a contrast of AUROCs ``(models,)``: two models', or the mean over seeds of one model minus that of another.

    Returns:
        The contrast with its normal 95 % interval and p value. Models that rank every case alike differ by exactly 0,
        with p = 1; where the variance is 0 but the contrast is not, nothing but the contrast can be told.
    """
    contrast = np.asarray(contrast, dtype=float)
    if contrast.shape != areas.areas.shape:
        raise StudyError(f"the contrast has {contrast.size} weights for {areas.areas.size} models: give one for each.")
    value = float(contrast @ areas.areas)
    variance = float(contrast @ areas.covariance @ contrast)
    # What is left of a variance of zero by rounding.
    if variance <= 1e-14 * float(np.abs(contrast) @ np.abs(areas.covariance) @ np.abs(contrast)):
        if abs(value) <= 1e-12:
            return AreaComparison(0.0, 0.0, 0.0, 0.0, 1.0)
        return AreaComparison(value, np.nan, np.nan, np.nan, np.nan)
    error = np.sqrt(variance)
    reach = norm.ppf(0.5 + CONFIDENCE / 2) * error
    z = value / error
    return AreaComparison(value, value - reach, value + reach, z, float(2 * norm.sf(abs(z))))
