"""The cohort table: one row an image, the contract between every source and everything after it.

Columns: ``image_id`` (``source/official-name``, never a position), ``patient_id`` (with its source, ``nih/1280``, so
that two never collide), ``study_id``, ``source``, ``split`` (train | validate | test | test_enriched), ``view`` (PA |
AP | lateral | unknown), ``sex`` (F | M | unknown), ``age_years`` (may be null), ``image_path`` (absolute, or from the
table's folder), ``report``, ``report_origin`` (written | template | none), then an ``Int8`` column for each finding:
present 1, absent 0, uncertain -1, not stated null; and outcomes: ``outcome_<name>`` (``Int8``: it happened 1, it did
not 0, unknown null) and, with a time, ``outcome_<name>_years`` (``float32``: years from the image to the event or to
the end of observation).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import patient_key
from chexstudy.inputs.tables import name_place
from chexstudy.runs import artifact_path, require_whole

SPLITS = ("train", "validate", "test", "test_enriched")
VIEWS = ("PA", "AP", "lateral", "unknown")
SEXES = ("F", "M", "unknown")
REPORT_ORIGINS = ("written", "template", "none")
NO_FINDING = "No Finding"
# The source whose images are drawn, and show no patient.
PHANTOM = "phantom"

OUTCOME_PREFIX = "outcome_"
YEARS_SUFFIX = "_years"

_CLOSED = MappingProxyType({"split": SPLITS, "view": VIEWS, "sex": SEXES, "report_origin": REPORT_ORIGINS})
_SMALL_NUMBER = re.compile(r"-?\d{1,3}(\.\d{1,3})?")
_WORD = re.compile(r"[A-Za-z]{1,12}|[A-Za-z]{3,12}\d")
_FEW_WORDS = 5  # different ones in a column
_A_TIME = "; a time is a number of years above 0, and is empty only where the outcome is unknown."
_TEXT_COLUMNS = ("image_id", "patient_id", "study_id", "source", "image_path")
RESERVED_COLUMNS = (
    *("image_id", "patient_id", "study_id", "source", "split", "view", "sex", "age_years"),
    *("image_path", "report", "report_origin"),
)


def finding_columns(cohort: pd.DataFrame) -> list[str]:
    """The finding columns of a cohort table, in the table's order."""
    return [name for name in cohort.columns if name not in RESERVED_COLUMNS and not name.startswith(OUTCOME_PREFIX)]


def outcome_names(cohort: pd.DataFrame) -> list[str]:
    """The outcomes of a cohort table, without the prefix of their columns, in the table's order."""
    columns = [name for name in cohort.columns if name.startswith(OUTCOME_PREFIX)]
    # A time without its event stays in the list, for validation to name it.
    times = {f"{name}{YEARS_SUFFIX}" for name in columns if not name.endswith(YEARS_SUFFIX)}
    return [name.removeprefix(OUTCOME_PREFIX) for name in columns if name not in times]


def outcome_columns(cohort: pd.DataFrame) -> list[str]:
    """The outcome columns of a cohort table: of each outcome the event, then the time if it has one."""
    columns = [f"{OUTCOME_PREFIX}{name}" for name in outcome_names(cohort)]
    return [one for name in columns for one in (name, f"{name}{YEARS_SUFFIX}") if one in cohort.columns]


def label_matrix(cohort: pd.DataFrame, findings: list[str]) -> np.ndarray:
    """Labels as float32 ``(images, findings)``: 1, 0, -1 (uncertain) and NaN (not stated)."""
    return cohort[findings].to_numpy(dtype="float32", na_value=np.nan)


def require_columns(table: pd.DataFrame, names: Iterable[str], origin: str) -> None:
    """Raise a StudyError unless the table has these columns; the sentence lists those it has."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        several, has = "s" * (len(missing) > 1), ", ".join(map(repr, table.columns))
        raise StudyError(f"{origin} lacks the column{several} {', '.join(map(repr, missing))}; it has {has}.")


def validate_cohort(cohort: pd.DataFrame, origin: str = "the cohort table") -> pd.DataFrame:
    """A cohort table, called ``origin``, checked against the contract, with its order of columns and their types."""
    require_columns(cohort, RESERVED_COLUMNS, origin)
    if cohort.empty:
        raise StudyError(f"{origin} has no rows: check the folder it was built from and the quarantine list.")
    findings, outcomes, places = finding_columns(cohort), outcome_columns(cohort), cohort.index
    cohort = cohort.reset_index(drop=True)[[*RESERVED_COLUMNS, *findings, *outcomes]]

    def refuse(wrong: pd.Series, name: str, expected: str, held: str | None = None) -> None:
        for problem in tell_first(wrong, cohort[name].set_axis(places), origin, expected, held):
            raise StudyError(problem)

    def take_numbers(name: str, allowed: list[int], expected: str) -> None:
        numbers = pd.to_numeric(cohort[name], errors="coerce")
        refuse(cohort[name].notna() & ~numbers.isin(allowed), name, expected)
        cohort[name] = numbers.astype("Int8")

    for name in findings:
        take_numbers(name, [1, 0, -1], "; a label is 1 (present), 0 (absent), -1 (uncertain) or empty (not stated).")
    for outcome in outcome_names(cohort):
        name, years_name = f"{OUTCOME_PREFIX}{outcome}", f"{OUTCOME_PREFIX}{outcome}{YEARS_SUFFIX}"
        if not outcome or outcome.endswith(YEARS_SUFFIX):
            raise StudyError(
                f"{origin}: the time {name!r} has no event column {name.removesuffix(YEARS_SUFFIX)!r}: add it, 1 where "
                "the event happened and 0 where observation ended without it."
            )
        take_numbers(name, [1, 0], "; an outcome is 1 (it happened), 0 (it did not) or empty (unknown).")
        if years_name in cohort:
            cells = cohort[years_name]
            years = pd.to_numeric(cells, errors="coerce").astype("float32")
            possible = years.gt(0) & np.isfinite(years)
            refuse((cohort[name].notna() & cells.isna()) | (cells.notna() & ~possible), years_name, _A_TIME)
            cohort[years_name] = years
    for name in RESERVED_COLUMNS:
        if name == "age_years":
            years = pd.to_numeric(cohort[name], errors="coerce").astype("float32")
            expected = ": expected an age from 0 to 120 years, or empty."
            refuse(cohort[name].notna() & ~years.between(0, 120), name, expected)
            cohort[name] = years
        else:
            refuse(cohort[name].isna(), name, "; every row needs a value there.")
            cohort[name] = cohort[name].astype(str)
    for name in _TEXT_COLUMNS:
        refuse(cohort[name] == "", name, ": expected a text that is not empty.", "")
    for name, words in _CLOSED.items():
        refuse(~cohort[name].isin(words), name, f": expected one of {', '.join(words)}.")
    repeated = cohort["image_id"].duplicated(keep=False)
    refuse(repeated, "image_id", ": every image_id must be there once and only once.", "")
    _refuse_shared_patients(cohort, places, origin)
    return cohort


def _refuse_shared_patients(cohort: pd.DataFrame, places: pd.Index, origin: str) -> None:
    patients = cohort["patient_id"].map({name: patient_key(name) for name in cohort["patient_id"].unique()})
    splits = cohort.groupby(patients)["split"].nunique()
    shared = splits.index[splits > 1]
    if len(shared):
        # Identifiers of patients and images stay out of messages.
        rows = cohort[patients == shared[0]].drop_duplicates("split")
        (first, split), (second, other) = list(rows["split"].items())[:2]
        raise StudyError(
            f"{origin}: {name_place(places, first)} ({split}) and {name_place(places, second)} ({other}) are of one "
            f"patient; {len(shared)} patient(s) lie in more than one split: give all images of a patient the same "
            "split."
        )


def tell_first(wrong: pd.Series, cells: pd.Series, origin: str, told: str, held: str | None = None) -> list[str]:
    """One sentence on the first wrong cell, which ``held`` something, or none; ``{count}`` in it is how many are."""
    rows = np.flatnonzero(wrong)
    if not len(rows):
        return []
    cell, place = cells.iloc[rows[0]], name_place(cells.index, rows[0])
    if held is None:
        held = " is empty" if pd.isna(cell) else f" holds {show_value(cell, cells)}"
    return [f"{origin}: {place}, column {cells.name!r}{held}{told.format(count=len(rows))}"]


def show_value(value: object, cells: pd.Series) -> str:
    """How a message speaks of a wrong value in a column of few words: itself, if it is a word or a small number.

    Anything else may come from a column that was taken for another: a report, a name, an identifier. So may a word of a
    column with many of them.
    """
    value = value.item() if isinstance(value, np.generic) else value
    text = str(value).strip()
    is_telling = _SMALL_NUMBER.fullmatch(text) or (_WORD.fullmatch(text) and cells.nunique() <= _FEW_WORDS)
    return repr(value) if is_telling else f"a text of {len(text)} characters"


def write_cohort(cohort: pd.DataFrame, path: str | Path) -> Path:
    """Validate a cohort table and write it as parquet, atomically."""
    path = Path(path)
    cohort = validate_cohort(cohort, str(path.name))
    with artifact_path(path) as temporary:
        cohort.to_parquet(temporary, index=False)
    return path


def read_cohort(path: str | Path) -> pd.DataFrame:
    """Read and validate a cohort table."""
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"there is no cohort table at {path}: build one with `chexstudy cohort build`.")
    require_whole(path)
    try:
        cohort = pd.read_parquet(path)
    except (OSError, ValueError):
        raise StudyError(
            f"{path} is not a parquet table that can be read: build it again with `chexstudy cohort build`."
        ) from None
    return validate_cohort(cohort, str(path))
