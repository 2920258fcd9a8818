"""How common findings are in a cohort: prevalence, and the head, the medium and the tail of the long tail."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.errors import StudyError

TIERS = ("head", "medium", "tail")
NO_TIER = "none"
# The division of CXR-LT (Holste et al. 2024, Medical Image Analysis 97): a head finding is on more than 10 % of the
# training images, a tail finding on less than 1 %, the rest are medium.
HEAD_ABOVE = 0.10
TAIL_BELOW = 0.01


def measure_prevalence(cohort: pd.DataFrame) -> pd.Series:
    """Share of all images with each finding present: what is absent is seldom stated, so unstated counts so."""
    findings = finding_columns(cohort)
    present = label_matrix(cohort, findings) == 1
    return pd.Series(present.sum(axis=0) / max(1, len(cohort)), index=findings, name="prevalence")


def prevalence_tiers(prevalence: pd.Series) -> pd.Series:
    """Divide findings into ``head``, ``medium`` and ``tail``, in the order given; ``No Finding`` is in none of them.

    CXR-LT counts ``No Finding`` as one more head class; here it is in no tier, because it is no disease and what an arm
    gains on it says nothing of how it treats the common ones. A prevalence is a share of the training images.
    """
    prevalence = prevalence.drop(NO_FINDING, errors="ignore").astype(float)
    if not prevalence.between(0, 1).all():
        raise StudyError("a prevalence is a share from 0 to 1: divide the number of positives by the number of images.")
    number = np.select([prevalence > HEAD_ABOVE, prevalence < TAIL_BELOW], [0, 2], default=1)
    return pd.Series([TIERS[one] for one in number], index=prevalence.index, name="tier", dtype=object)


def tiers_of_pairs(cohort: pd.DataFrame, tiers: Mapping[str, str]) -> np.ndarray:
    """The rarest tier among the findings of each image ``(images,)``; ``none`` where it has none of these findings."""
    rarest = np.full(len(cohort), NO_TIER, dtype=object)
    for tier in TIERS:
        rarest[has_finding_of(tier, cohort, tiers)] = tier
    return rarest


def has_finding_of(tier: str, cohort: pd.DataFrame, tiers: Mapping[str, str]) -> np.ndarray:
    """Which images have a finding of a tier present ``(images,)``; ``tiers`` is the tier of each finding."""
    findings = [finding for finding in finding_columns(cohort) if tiers.get(finding) == tier]
    return (label_matrix(cohort, findings) == 1).any(axis=1)
