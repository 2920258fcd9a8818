"""A proportion among cases that come in patients, and perhaps in training seeds, with an interval.

Bootstrap percentiles of a proportion of 1 are [1, 1], however few cases it rests on. Wilson's score interval has no
such fault; it takes an effective number of cases here: the number that would give, with independent cases, the variance
that the patients (and seeds) show.
"""

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import CONFIDENCE, LEAST_PATIENTS


def measure_proportion(members: np.ndarray, hits: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """The share of hits among the members, bool ``(cases,)`` or ``(seeds, cases)``, and the ends of its 95 % interval.

    Members of all seeds count alike, and may differ between seeds; ``patients`` are whole numbers ``(cases,)``. The
    variance is that of a ratio by linearisation, clustered by patient, or by patient and by seed (Cameron, Gelbach and
    Miller 2011); the number of patients, not of cases, says which Student's t is used. NaN without members; no interval
    with members of fewer than five patients. Where all or none are hits, the effective number is that of the patients.
    """
    members, hits = np.atleast_2d(np.asarray(members, dtype=bool)), np.atleast_2d(np.asarray(hits, dtype=bool))
    patients = np.asarray(patients)
    if members.shape != hits.shape or members.shape[1:] != patients.shape:
        raise StudyError(
            f"a proportion needs one member, hit and patient a case, not {members.shape}, {hits.shape} and "
            f"{patients.shape}."
        )
    seed, case = np.nonzero(members)
    total = len(case)
    if total == 0:
        return np.nan, np.nan, np.nan
    hit = hits[seed, case]
    share = float(hit.mean())
    own = np.unique(patients[case], return_inverse=True)[1]
    count = int(own.max()) + 1
    if count < LEAST_PATIENTS:
        return share, np.nan, np.nan
    residual = hit - share
    effective = float(count)
    if 0 < share < 1:
        variance = clustered_variance(residual, own)
        seeds = np.unique(seed, return_inverse=True)[1]
        if seeds.max() > 0:
            both = clustered_variance(residual, own * (seeds.max() + 1) + seeds)
            variance += max(0.0, clustered_variance(residual, seeds) - both)
        # Patients who differ less than chance would have it say nothing: no more cases than there are.
        effective = min(share * (1 - share) / variance, float(np.unique(case).size)) if variance > 0 else effective
    return share, *score_interval(share, effective, student.ppf(0.5 + CONFIDENCE / 2, count - 1))


def clustered_variance(residual: np.ndarray, cluster: np.ndarray) -> float:
    """Variance of a mean from its residuals ``(n,)`` and the number ``(n,)`` of the cluster each is in."""
    totals = np.bincount(cluster, weights=residual)
    clusters = np.unique(cluster).size
    return float(np.sum(totals**2)) / len(residual) ** 2 * clusters / max(1, clusters - 1)


def score_interval(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927) of a share of ``n``, perhaps effective, cases."""
    square = quantile**2 / n
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval by the normal quantile: `score_interval` but for its last bit, which results keep."""
    z = norm.ppf(0.5 + CONFIDENCE / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
