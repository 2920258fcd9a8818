"""Patient-disjoint splits: seeded, and the same whatever the order of the rows."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from chexstudy.cohort.table import SPLITS
from chexstudy.errors import StudyError

# Splits that models are judged on: at natural prevalence, and enriched with rare findings.
TEST_SPLITS = ("test", "test_enriched")
DEFAULT_FRACTIONS = MappingProxyType({"train": 0.7, "validate": 0.1, "test": 0.2})


def split_patients(cohort: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> pd.DataFrame:
    """Give each patient, with all images, to one split.

    They are put in an order by hashing seed and ``patient_id``, which is cut at the fractions (split -> share of
    patients), exact to one patient whatever the order of the rows.
    """
    check_fractions(fractions)
    patients = sorted(set(cohort["patient_id"]), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    bounds = np.rint(np.cumsum(list(fractions.values())) * len(patients)).astype(int)
    names = np.repeat(list(fractions), np.diff(bounds, prepend=0))
    split_of_patient = dict(zip(patients, names.tolist(), strict=True))
    return cohort.assign(split=cohort["patient_id"].map(split_of_patient).astype("str"))


def carve_validation(cohort: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Move a share of the training patients to ``validate`` and leave the other splits as they are."""
    in_train = cohort["split"] == "train"
    carved = split_patients(cohort[in_train], {"train": 1 - share, "validate": share}, seed)
    return cohort.assign(split=cohort["split"].where(~in_train, carved["split"].reindex(cohort.index)))


def list_test_sets(cohort: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Held-out rows by data set, ``source/split``."""
    held_out = cohort[cohort.split.isin(TEST_SPLITS)]
    sets = {f"{source}/{split}": rows for (source, split), rows in held_out.groupby(["source", "split"])}
    if not sets:
        raise StudyError("the cohort has no test split: give some patients the split `test`.")
    return sets


def choose_main_test_set(data_sets: Iterable[str]) -> str:
    """The data set that stands for all where one must: in notebooks, in figures, in experiments.

    One that is enriched with rare findings, of which others have too few patients; else a plain test set; the first by
    name. Names, ``source/split``, alone decide: who sees images and who sees results choose the same.
    """
    names = sorted(set(data_sets))
    return next((name for end in ("/test_enriched", "/test") for name in names if name.endswith(end)), names[0])


def thin_splits(cohort: pd.DataFrame, most: Mapping[str, int], seed: int) -> pd.DataFrame:
    """Rows of at most so many images of each split, of test splits of each data set, of whole patients; 0 is all.

    Patients are drawn; those of fewer images are among those of more.
    """
    named = cohort.split.where(~cohort.split.isin(TEST_SPLITS), cohort.source + "/" + cohort.split)
    parts = [_thin(rows, most[rows.split.iloc[0]], seed) for _, rows in cohort.groupby(named)]
    return pd.concat(parts).sort_index() if parts else cohort


def _thin(rows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    if not most or len(rows) <= most:
        return rows
    order = np.random.default_rng(seed).permutation(np.sort(rows.patient_id.unique()))
    images = rows.groupby("patient_id").size()[order].cumsum()
    return rows[rows.patient_id.isin(images.index[images <= max(most, images.iloc[0])])]


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise a StudyError unless the fractions name splits of the contract and add up to 1."""
    unknown = [name for name in fractions if name not in SPLITS]
    if unknown:
        raise StudyError(f"there is no split named {unknown[0]!r}: the splits are {', '.join(SPLITS)}.")
    if any(share < 0 for share in fractions.values()) or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        told = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
        raise StudyError(f"the shares of the splits must be 0 or more and add up to 1, not {told}.")
