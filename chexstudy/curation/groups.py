"""The groups of a cohort that an audit compares and a floor protects: one naming for both, ``kind=group``.

Kinds: ``finding``, ``tier`` (prevalence), ``sex``, ``age`` (band), ``view``, ``source``, ``report`` (origin) and
``duplicate``.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.table import NO_FINDING, SEXES, VIEWS, finding_columns, label_matrix
from chexstudy.errors import StudyError
from chexstudy.evaluation.long_tail import measure_prevalence, prevalence_tiers
from chexstudy.evaluation.scores import TIERS

# Children, and then twenty years at a time: the span in which disease and body habitus of chest radiographs change.
AGE_BANDS = {"0-17": (0, 18), "18-39": (18, 40), "40-59": (40, 60), "60-79": (60, 80), "80+": (80, np.inf)}
KINDS = ("finding", "tier", "sex", "age", "view", "source", "report", "duplicate")
NEAR_DUPLICATE = "near-duplicate"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Group:
    """Pairs that share something, and those of which it is known whether they do.

    Attributes:
        kind: one of `KINDS`.
        name: within its kind.
        members: ``(pairs,)`` bool.
        known: ``(pairs,)`` bool: the members and all they can be compared with.
    """

    kind: str
    name: str
    members: np.ndarray
    known: np.ndarray

    def __str__(self) -> str:
        return f"{self.kind}={self.name}"


def list_groups(cohort: pd.DataFrame, near_duplicate: np.ndarray | None = None) -> list[Group]:
    """Every group of a cohort, those without a member too, kind by kind.

    A finding's group holds the pairs labelled present; pairs labelled uncertain are neither in it nor compared with
    it, while pairs whose report does not state the finding count as without it, as reports seldom state what is
    absent. Tiers are those of the long tail in this cohort (above 10 %, 1 to 10 %, below 1 % of the pairs). Unknown
    sex, view and age are no groups.

    Args:
        cohort: the rows of a cohort table that the curator could choose from.
        near_duplicate: ``(pairs,)`` bool, which pairs repeat another; None if it is not known.
    """
    findings = finding_columns(cohort)
    labels = label_matrix(cohort, findings)
    everywhere = np.ones(len(cohort), dtype=bool)
    groups = [
        Group("finding", name, labels[:, place] == 1, labels[:, place] != -1) for place, name in enumerate(findings)
    ]
    tiers = prevalence_tiers(measure_prevalence(cohort))
    for tier in TIERS:
        of_tier = [findings.index(name) for name in tiers.index[tiers == tier] if name != NO_FINDING]
        members = (labels[:, of_tier] == 1).any(axis=1)
        groups.append(Group("tier", tier, members, members | ~(labels[:, of_tier] == -1).any(axis=1)))
    groups += _list_values("sex", cohort.sex, SEXES)
    age = cohort.age_years.to_numpy(dtype=float, na_value=np.nan)
    for name, (youngest, too_old) in AGE_BANDS.items():
        groups.append(Group("age", name, (age >= youngest) & (age < too_old), ~np.isnan(age)))
    groups += _list_values("view", cohort.view, VIEWS)
    groups += _list_values("source", cohort.source, sorted(set(cohort.source)))
    groups += _list_values("report", cohort.report_origin, ("written", "template"))
    if near_duplicate is not None:
        groups.append(Group("duplicate", NEAR_DUPLICATE, np.asarray(near_duplicate, dtype=bool), everywhere))
    return groups


def _list_values(kind: str, values: pd.Series, names) -> list[Group]:
    names = [name for name in names if name != _UNKNOWN]
    known = values.isin(names).to_numpy()
    return [Group(kind, name, (values == name).to_numpy(), known) for name in names]


def find_group(groups: list[Group], kind: str, name: str) -> Group:
    """The group of this kind and name.

    Raises:
        StudyError: there is no such kind or name, or the group has no member.
    """
    kinds = list(dict.fromkeys(group.kind for group in groups))
    if kind not in kinds:
        raise StudyError(f"there is no kind of group {kind!r} in this cohort: it is one of {', '.join(kinds)}.")
    of_kind = {group.name: group for group in groups if group.kind == kind and group.members.any()}
    if name not in of_kind:
        raise StudyError(f"no pair of this cohort has {kind}={name}: {kind} is one of {', '.join(of_kind)}.")
    return of_kind[name]


def mark_near_duplicates(
    cohort: pd.DataFrame, truth: pd.DataFrame | None = None, features: np.ndarray | None = None
) -> np.ndarray | None:
    """Which pairs repeat another one: by the phantom's truth if given, else pairs embedded exactly like an earlier one.

    Exact equality finds copies of a file, not near copies; a threshold on similarity would need a choice per encoder.

    Args:
        cohort: rows of a cohort table.
        truth: the phantom's truth with ``image_id`` and ``duplicate_of``.
        features: ``(pairs, dim)`` in the cohort's order.

    Returns:
        ``(pairs,)`` bool, or None if neither is given.

    Raises:
        StudyError: the truth lacks a pair, or the features are not one row a pair.
    """
    if truth is not None:
        original = cohort.image_id.map(truth.set_index("image_id").duplicate_of.fillna(""))
        if original.isna().any():
            raise StudyError(
                f"the truth lacks image {cohort.image_id[original.isna()].iloc[0]!r}: it belongs to another cohort."
            )
        return (original != "").to_numpy()
    if features is None:
        return None
    if len(features) != len(cohort):
        raise StudyError(f"{len(features):,} features for {len(cohort):,} pairs: pass one row a pair, in their order.")
    digests = [hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in features]
    return pd.Series(digests).duplicated().to_numpy()
