"""AUROCs of models on the same cases: their covariance without resampling, and p values of their differences.

Two estimates. ``patients=None`` takes every case as a draw of its own (DeLong, DeLong and Clarke-Pearson 1988), by the
midranks of Sun and Xu (2014, IEEE Signal Processing Letters 21: 1389) in O(n log n): right for one image a patient.
With ``patients`` given, cases of one patient may resemble each other in any way (Obuchowski 1997, Biometrics 53: 567):
right for several images a patient, and equal to the first for one. On several images a patient the first is too sure
of itself where a patient's images share the label, and too unsure where they differ in it.

Both are large-sample estimates: with few patients of a class, with training seeds, for macro
means or for average precision, use the bootstrap of `chexstudy.statistics.bootstrap` or the permutation test of
`chexstudy.statistics.permutation`.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from chexstudy.errors import StudyError
from chexstudy.statistics.ranking import known_labels


def correlate_areas(
    labels: np.ndarray, scores: np.ndarray, patients: Sequence | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs of several models for one finding ``(models,)`` and their covariance ``(models, models)``.

    Labels ``(cases,)`` of -1 and NaN are left out; of scores ``(cases, models)`` ties count half. Without ``patients``
    ``(cases,)`` every case is taken as another patient. NaN where the finding has one class only; no covariance with
    fewer than two patients of a class.
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
    models = scores.shape[1]
    if present.all() or not present.any():
        return np.full(models, np.nan), np.full((models, models), np.nan)
    of_positives = np.stack([_place(scores[present, one], scores[~present, one]) for one in range(models)])
    of_negatives = np.stack([1 - _place(scores[~present, one], scores[present, one]) for one in range(models)])
    areas = of_positives.mean(axis=1)
    group = np.arange(len(labels))
    if patients is not None:
        group = np.unique(np.asarray(patients, dtype=str)[known], return_inverse=True)[1]
    return areas, _covariance_of_clusters(of_positives, of_negatives, group[present], group[~present])


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


def contrast_p_value(areas: np.ndarray, covariance: np.ndarray, contrast: Sequence[float] = (1.0, -1.0)) -> float:
    """Two-sided p value of a contrast of AUROCs: two models', or the mean over seeds of one minus that of another.

    1 for models that rank every case alike; NaN where the variance is 0 but the contrast is not.
    """
    contrast = np.asarray(contrast, dtype=float)
    if contrast.shape != areas.shape:
        raise StudyError(f"the contrast has {contrast.size} weights for {areas.size} models: give one for each.")
    value, variance = float(contrast @ areas), float(contrast @ covariance @ contrast)
    # What is left of a variance of zero by rounding.
    if variance <= 1e-14 * float(np.abs(contrast) @ np.abs(covariance) @ np.abs(contrast)):
        return 1.0 if abs(value) <= 1e-12 else np.nan
    return float(2 * norm.sf(abs(value / np.sqrt(variance))))
