"""The groups of a cohort that an audit compares and a group quota protects: one naming for both, ``kind=group``.

Kinds: ``finding``, ``tier`` (prevalence), ``sex``, ``age`` (band), ``view``, ``source``, ``report`` (origin, and
``long``) and ``duplicate``.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Number

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS, measure_prevalence, prevalence_tiers
from chexstudy.cohort.table import SEXES, VIEWS, finding_columns, label_matrix, show_value
from chexstudy.errors import StudyError

# Children, and then twenty years at a time: the span in which disease and body habitus of chest radiographs change.
AGE_BANDS = {"0-17": (0, 18), "18-39": (18, 40), "40-59": (40, 60), "60-79": (60, 80), "80+": (80, np.inf)}
NEAR_DUPLICATE, LONG = "near-duplicate", "long"
_NAMES_SHOWN = 12
_NOT_GROUPS = ("image_id", "patient_id", "study_id", "image_path", "report")


@dataclass(frozen=True)
class Group:
    """Pairs that share something, and those of which it is known whether they do."""

    kind: str  # see the module
    name: str  # within its kind
    members: np.ndarray  # ``(pairs,)`` bool
    known: np.ndarray  # ``(pairs,)`` bool: the members and all they can be compared with


def list_groups(cohort: pd.DataFrame, near_duplicate: np.ndarray | None = None) -> list[Group]:
    """Every group of a cohort, those without a member too, kind by kind; a kind whose column is absent has none.

    A finding's group holds the pairs labelled present; those labelled uncertain are neither in it nor compared with it,
    those that do not state it are, as reports seldom state what is absent. Tiers are those of this cohort. Unknown sex,
    view and age are no groups. A report is long if it has more words than three quarters of the reports.
    ``near_duplicate (pairs,)`` says which pairs repeat another, if it is known.
    """
    # A table of the user's own may have columns beside the reserved ones that are no finding's.
    findings = [
        name
        for name in finding_columns(cohort)
        if pd.api.types.is_numeric_dtype(cohort[name]) and cohort[name].dropna().isin([1, 0, -1]).all()
    ]
    labels = label_matrix(cohort, findings)
    groups = [
        Group("finding", name, labels[:, place] == 1, labels[:, place] != -1) for place, name in enumerate(findings)
    ]
    if findings:
        tiers = prevalence_tiers(measure_prevalence(cohort[findings]))
        for tier in TIERS:
            of_tier = [findings.index(name) for name in tiers.index[tiers == tier]]
            members = (labels[:, of_tier] == 1).any(axis=1)
            groups.append(Group("tier", tier, members, members | ~(labels[:, of_tier] == -1).any(axis=1)))
    groups += _list_values(cohort, "sex", SEXES)
    if "age_years" in cohort:
        age = cohort.age_years.to_numpy(dtype=float, na_value=np.nan)
        for name, (youngest, too_old) in AGE_BANDS.items():
            groups.append(Group("age", name, (age >= youngest) & (age < too_old), ~np.isnan(age)))
    groups += _list_values(cohort, "view", VIEWS)
    groups += _list_values(cohort, "source", sorted(set(cohort["source"])) if "source" in cohort else ())
    groups += _list_values(cohort, "report", ("written", "template"), "report_origin")
    if "report" in cohort:
        words = cohort["report"].astype("string").str.count(r"\S+").to_numpy(dtype=float, na_value=0)
        has = words > 0
        groups.append(Group("report", LONG, has & (words > np.quantile(words[has], 0.75) if has.any() else has), has))
    if near_duplicate is not None:
        everywhere = np.ones(len(cohort), dtype=bool)
        groups.append(Group("duplicate", NEAR_DUPLICATE, np.asarray(near_duplicate, dtype=bool), everywhere))
    return groups


def _list_values(cohort: pd.DataFrame, kind: str, names: Iterable[str], column: str = "") -> list[Group]:
    column = column or kind
    if column not in cohort:
        return []
    names = [name for name in names if name != "unknown"]
    known = cohort[column].isin(names).to_numpy()
    return [Group(kind, name, (cohort[column] == name).to_numpy(dtype=bool, na_value=False), known) for name in names]


def find_members(table: pd.DataFrame, kind: str, name: str) -> np.ndarray:
    """Which pairs ``(pairs,)`` are in a group: one of `list_groups`, or those with a value in a column of the table."""
    groups = list_groups(table)
    known = {one.name: one.members for one in groups if one.kind == kind}
    of_kind = known
    if not of_kind and kind in table and kind not in _NOT_GROUPS:
        values = table[kind].map(lambda value: f"{value:g}" if isinstance(value, Number) else str(value), "ignore")
        of_kind = {value: (values == value).to_numpy(dtype=bool, na_value=False) for value in values.dropna().unique()}
    if not of_kind:
        there = dict.fromkeys(group.kind for group in groups)
        raise StudyError(f"there is no group by {kind!r}: take {', '.join([*there, 'or a column of the table'])}.")
    if name not in of_kind or not of_kind[name].any():
        filled = [one for one, members in of_kind.items() if members.any()]
        # A column of many values may hold names or texts, which messages must not show.
        there = f"none of the {len(filled)} values of {kind} is this"
        if len(filled) <= _NAMES_SHOWN:
            shown = [one if one in known else show_value(one, table[kind]) for one in filled]
            there = f"{kind} is one of {', '.join(shown)}"
        raise StudyError(f"no pair has {kind}={name}: {there}.")
    return of_kind[name]


def mark_near_duplicates(
    cohort: pd.DataFrame, truth: pd.DataFrame | None = None, features: np.ndarray | None = None
) -> np.ndarray | None:
    """Which pairs repeat another one: by the phantom's truth if given, else pairs embedded exactly like an earlier one.

    Exact equality finds copies of a file alone; more would need a threshold for each encoder. Features are ``(pairs,
    dim)``.
    """
    if truth is not None:
        original = cohort.image_id.map(truth.set_index("image_id").duplicate_of.fillna(""))
        if original.isna().any():
            raise StudyError(f"the truth lacks {original.isna().sum():,} of the pairs: it belongs to another cohort.")
        return (original != "").to_numpy()
    if features is None:
        return None
    if len(features) != len(cohort):
        raise StudyError(f"{len(features):,} features for {len(cohort):,} pairs: pass one row a pair, in their order.")
    digests = [hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in features]
    return pd.Series(digests).duplicated().to_numpy()
