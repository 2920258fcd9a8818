"""The bootstrap with patients as the unit that is drawn: intervals, paired differences and their p values.

Images of one patient resemble each other, so the bootstrap draws patients: a resample is a whole-number weight for each
case (how often its patient was drawn), and every metric accepts such weights. All metrics of one evaluation share the
same resamples; the interval of a macro mean or of a difference between arms therefore holds their correlation.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from chexstudy.errors import StudyError
from chexstudy.statistics.ranking import known_labels

RESAMPLES = 1000
CONFIDENCE = 0.95
# Below five patients of a class a bootstrap interval covers far less than it claims, so none is given.
LEAST_PATIENTS = 5
_LEAST_EVALUABLE = 0.9


def bootstrap_patients(patient_ids: Sequence, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often the patient of each case was drawn ``(resamples, cases)``, as many patients a row as there are."""
    if len(patient_ids) == 0 or resamples < 1:
        raise StudyError("a bootstrap needs at least one case and one resample: check the split and the resamples.")
    patients, patient_of_case = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    count = len(patients)
    drawn = np.empty((count, resamples), dtype=np.int32)
    for resample in range(resamples):
        drawn[:, resample] = np.bincount(generator.integers(count, size=count), minlength=count)
    return drawn[patient_of_case].T


def count_patients(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many patients have a case among the members ``(cases, columns)`` of each column ``(columns,)``.

    Two cases are of one patient if they were drawn equally often in every resample: ``weights`` ``(resamples, cases)``
    are those of `bootstrap_patients`.
    """
    # The first draws tell any two patients apart but for a chance of about 1e-30.
    patient = np.unique(weights[:64], axis=1, return_inverse=True)[1]
    return np.array([len(np.unique(patient[column])) for column in members.T])


def count_scarcer_patients(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Patients with the finding or patients without it, whichever are fewer ``(findings,)``; see `count_patients`."""
    known = known_labels(labels)
    return np.minimum(*(count_patients(known & one, weights) for one in (labels == 1, labels != 1)))


def interval(replicates: np.ndarray, patients: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap percentile interval over the first axis, expanded for few patients.

    A percentile interval of k patients is too narrow: their spread is that of k, not k - 1, and it uses the normal
    where Student's t belongs. The expanded one (Hesterberg 2015, The American Statistician 69(4)) goes further out, to
    the quantile at Phi(-sqrt(k / (k - 1)) t(k - 1)). With many patients both are the same.

    ``replicates`` ``(resamples, ...)`` are NaN where the metric could not be had; ``patients`` ``(...)`` is how many it
    rests on, in a ranking those of the scarcer class; without it, many. The ends ``(...)`` are NaN with fewer than five
    patients, or where fewer than 90 % of the resamples could be evaluated.
    """
    replicates = np.asarray(replicates, dtype=float)
    shape = replicates.shape[1:]
    count = np.broadcast_to(np.inf if patients is None else np.asarray(patients, dtype=float), shape)
    enough = (np.mean(~np.isnan(replicates), axis=0) >= _LEAST_EVALUABLE) & (count >= LEAST_PATIENTS)
    ends = np.full((2, *shape), np.nan)
    for place in np.ndindex(shape):
        if enough[place]:
            tail = _tail_probability(count[place])
            ends[(slice(None), *place)] = np.nanquantile(replicates[(slice(None), *place)], [tail, 1 - tail])
    return ends[0], ends[1]


def _tail_probability(patients: float) -> float:
    if np.isinf(patients):
        return (1 - CONFIDENCE) / 2
    reach = np.sqrt(patients / (patients - 1)) * student.ppf(0.5 + CONFIDENCE / 2, patients - 1)
    return float(norm.cdf(-reach))


def resample_seeds(replicates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The mean over training seeds in each resample, the seeds drawn again too (hierarchical bootstrap).

    The spread of a mean of S drawn seeds is too small by (S - 1) / S, a half for two seeds; its deviation from the mean
    of all is therefore stretched by sqrt(S / (S - 1)). One seed cannot be drawn: the result then holds patients alone.
    Where seeds differ by more than patients do, two or three of them still say too little: if patients did not vary at
    all, the interval would cover 62 % with two seeds, 80 % with three and 89 % with five.

    The patients of a resample are the same for all seeds in ``replicates`` ``(seeds, resamples, ...)``.
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
    """First minus second ``(seeds, ...)``, seed k with seed k, and on the same resamples of patients.

    The replicates are ``(seeds, resamples, ...)``; the generator draws seeds; ``patients`` is as in `interval`.
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
    what the interval tells. 1 where both rank alike in every resample, NaN where there is no interval.
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
