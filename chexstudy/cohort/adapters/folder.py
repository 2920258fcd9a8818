"""Your own data: a folder of images and one table (CSV or Parquet), joined by a mapping of columns.

The mapping is given as options or lies in the folder as ``cohort.yaml``::

    table: labels.csv                  # one row an image; need not be said if the folder holds one table
    images: images                     # where the paths in the table start; the folder itself if not said
    source: my_hospital                # the first part of every image_id
    columns:
      image_path: File
      patient_id: Patient              # or the word none: every image is another patient
      report: [Findings, Impression]   # one column or several; without it, reports are written from the labels
      findings: [Mass, Nodule]         # or {Pleural Effusion: effusion_label}
      outcomes: {death: Died, death_years: Followed}   # optional; columns named outcome_... are taken as they are
      split: Split                     # optional, as are study_id, image_id, view, sex and age_years
    values:                            # optional: how words in the table translate
      labels: {"2": -1, unclear: -1}
      outcomes: {alive at last contact: 0}
      view: {frontal: PA}

``check_folder`` says everything that is wrong at once; ``build_folder`` stops at the first of it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.cohort.adapters.column_mapping import (
    EACH_ANOTHER,
    MAPPED,
    MAPPING_FILE,
    REQUIRED,
    UNSAID,
    WORDS,
    ColumnMapping,
    check_mapping,
    guess_names,
    plain_word,
    read_mapping_file,
)
from chexstudy.cohort.adapters.layout import IMAGES_WITHOUT_ROW, ImageFinder, parse_years, require_folder
from chexstudy.cohort.copies import find_shared_files
from chexstudy.cohort.reports import SECTION_HEADINGS, says_nothing, template_report
from chexstudy.cohort.splits import carve_validation, split_patients
from chexstudy.cohort.table import OUTCOME_PREFIX, RESERVED_COLUMNS, YEARS_SUFFIX, show_value, validate_cohort
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import is_rounded, normalise_ids, unify_patients
from chexstudy.inputs.tables import NESTED, is_table, name_place, read_text_table

VALIDATE_SHARE = 0.1  # of the training patients, where the table's own split has no validation
# Notes in ``cohort.attrs``: how many patients were, and which columns of the table nothing takes.
PATIENTS_UNIFIED = "patients_written_in_several_ways"
UNUSED = "columns"
_HOLDING = "the images and their table"


@dataclass(frozen=True)
class FolderReport:
    """What a dry run found."""

    problems: tuple[str, ...]  # one sentence for each thing that must be mended; empty if the cohort can be built
    available_columns: tuple[str, ...] = ()  # the table's columns
    # of the table's rows in their file, as `chexstudy.inputs.tables.read_text_table` gives them
    places: pd.Index = field(default_factory=lambda: pd.Index([]))
    without_image: tuple[int, ...] = ()  # positions of rows that name a file that is not there; they go to quarantine
    without_row: tuple[Path, ...] = ()  # image files that no row names; they take no part
    cohort: pd.DataFrame | None = None  # the cohort table, or None if there are problems


def build_folder(
    data_root: str | Path,
    seed: int,
    *,
    table: str | None = None,
    images: str | None = None,
    source: str | None = None,
    columns: Mapping[str, object] | None = None,
    values: Mapping[str, Mapping] | None = None,
    fractions: Mapping[str, float] | None = None,
    word_budget: int | None = None,
) -> pd.DataFrame:
    """The cohort of your own folder.

    Args:
        data_root: the folder.
        seed: seed of the split and of pseudo-reports.
        table: the table's name in the folder; not needed if it holds one table only.
        images: the subfolder in which the table's paths start; the folder itself if not given.
        source: the name of the cohort's source; ``folder`` if not given.
        columns: contract column -> column of the table; if not given, ``cohort.yaml`` in the folder is read.
        values: ``split``, ``view``, ``sex``, ``labels`` or ``outcomes`` -> word in the table -> value of the contract.
        fractions: split -> share of patients, where the table has no split.
        word_budget: see :func:`chexstudy.cohort.reports.template_report`.
    """
    given = {"table": table, "images": images, "source": source, "columns": columns, "values": values}
    report = check_folder(data_root, seed, **given, fractions=fractions, word_budget=word_budget)
    if report.problems:
        raise StudyError(report.problems[0])
    return report.cohort


def check_folder(data_root: str | Path, seed: int = 0, **options: object) -> FolderReport:
    """Build the cohort without raising and say everything that is wrong; same arguments as :func:`build_folder`."""
    try:
        folder = require_folder(data_root, _HOLDING)
        mapping = _read_mapping(folder, options)
        path = _find_table(folder, mapping)
        table = read_text_table(path)
    except StudyError as error:
        return FolderReport((str(error),))
    report = FolderReport((), tuple(table.columns), table.index)
    problems = _find_column_problems(table, mapping, path)
    if problems:
        return replace(report, problems=tuple(problems))
    finder = ImageFinder(folder / mapping.images)
    cohort, problems = _translate(table, mapping, path, finder, seed)
    files = [Path(image) for image in cohort["image_path"]]
    absent = [number for number, file in enumerate(files) if not os.path.isfile(file)]
    if len(files) and len(absent) == len(files):
        problems.append(
            f"none of the {len(files)} files named in column {mapping.columns['image_path']!r} of {path.name} exists "
            f"in {finder.folder}: set images to the subfolder in which the paths start."
        )
    named = {os.path.realpath(file) for file in files}
    unlisted = tuple(image for image in finder.images if os.path.realpath(image) not in named)
    if not problems:
        try:
            cohort = validate_cohort(cohort, path.name)
        except StudyError as error:
            problems.append(str(error))
    report = replace(report, problems=tuple(problems), without_image=tuple(absent), without_row=unlisted)
    if problems:
        return report
    cohort.attrs[IMAGES_WITHOUT_ROW] = len(unlisted)
    unused = _tell_unused(table, mapping)
    cohort.attrs |= {UNUSED: unused} if unused else {}
    return replace(report, cohort=cohort)


# --- the mapping ----------------------------------------------------------------------------------------------------


def _read_mapping(folder: Path, options: Mapping[str, object]) -> ColumnMapping:
    options = {name: value for name, value in options.items() if value is not None}
    path = folder / MAPPING_FILE
    if "columns" not in options:
        if not path.is_file():
            raise StudyError(
                f"no columns were given and {folder} has no {MAPPING_FILE}: say which column of the table holds "
                f"{' and which '.join(REQUIRED)}."
            )
        options = read_mapping_file(path) | options
    return check_mapping(options)


def _find_table(folder: Path, mapping: ColumnMapping) -> Path:
    if mapping.table:
        return folder / mapping.table
    tables = sorted(path for path in folder.iterdir() if is_table(path.name) and not path.name.startswith("."))
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise StudyError(f"{folder} must hold one CSV or Parquet table, or 'table' must name it (found: {found}).")
    return tables[0]


def _find_column_problems(table: pd.DataFrame, mapping: ColumnMapping, path: Path) -> list[str]:
    has = f"it has {', '.join(map(repr, table.columns))}"
    problems = [
        f"the mapping has no column {name!r}: it can have {', '.join(MAPPED)}."
        for name in mapping.columns
        if name not in MAPPED
    ]
    if "image_path" not in mapping.columns:
        problems.append(f"the mapping does not say which column of {path.name} holds image_path; {has}.")
    if "patient_id" not in mapping.columns:
        problems.append(
            f"the mapping does not say which column of {path.name} holds patient_id; {has}; {EACH_ANOTHER}."
        )
    if not mapping.report_columns() and not mapping.findings():
        problems.append(
            f"the mapping names neither a report nor findings of {path.name}, so no image has a text; {has}."
        )
    for what, name in _list_asked(table, mapping):
        if name in table.attrs[NESTED]:
            problems.append(
                f"column {name!r} of {path.name}, for {what}, holds lists or the like: write one value a cell."
            )
        elif name not in table:
            hint = f"; {EACH_ANOTHER}" if what == "patient_id" else ""
            problems.append(f"{path.name} has no column {name!r} for {what}; {has}{hint}.")
    problems += [
        f"a finding cannot be named {finding!r}, which is a column of its own in a cohort: rename it in 'findings'."
        for finding in mapping.findings()
        if finding in RESERVED_COLUMNS
    ]
    problems += [
        f"a finding cannot be named {finding!r}, because columns that begin with {OUTCOME_PREFIX!r} are outcomes: "
        "rename it in 'findings', or move it to 'outcomes'."
        for finding in mapping.findings()
        if finding.startswith(OUTCOME_PREFIX)
    ]
    if table.empty:
        problems.append(f"{path.name} has no rows.")
    return problems


def _list_asked(table: pd.DataFrame, mapping: ColumnMapping) -> list[tuple[str, str]]:
    """What the mapping takes from the table, in words, and the column it takes it from."""
    asked = [*mapping.single_columns().items(), *(("report", name) for name in mapping.report_columns())]
    asked += [(f"the finding {finding!r}", name) for finding, name in mapping.findings().items()]
    outcomes = mapping.outcomes(table).items()
    return asked + [(f"the outcome {name.removeprefix(OUTCOME_PREFIX)!r}", own) for name, own in outcomes]


# --- the table ------------------------------------------------------------------------------------------------------


def _translate(
    table: pd.DataFrame, mapping: ColumnMapping, path: Path, finder: ImageFinder, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The cohort, and what is wrong with it that the contract's own validation would not tell as well."""
    cells = {name: table[column] for name, column in mapping.single_columns().items()}
    paths = (
        cells["image_path"].fillna("").str.replace("\0", "").str.strip().str.replace("\\", "/").str.removeprefix("./")
    )
    files = [finder.find(name) for name in paths]
    ids = {name: normalise_ids(cells[name]) for name in ("image_id", "patient_id", "study_id") if name in cells}
    problems = _find_id_problems({"image_path": normalise_ids(paths), **ids}, path)
    problems += _find_shared_files(files, table.index, mapping, path) if not problems else []
    own = ids.get("image_id", normalise_ids(paths)).fillna("")
    cohort = pd.DataFrame(
        {name: mapping.source + "/" + ids.get(name, own).fillna("") for name in ("image_id", "patient_id", "study_id")}
    )
    if "patient_id" in ids:
        cohort["patient_id"], unified = unify_patients(cohort["patient_id"])
        cohort.attrs |= {PATIENTS_UNIFIED: unified} if unified else {}
    cohort["source"] = mapping.source
    cohort["image_path"] = [str(file) for file in files]
    for name in ("view", "sex", "split"):
        if name in cells:
            cohort[name] = _translate_words(cells[name], name, mapping).where(cells[name].notna(), UNSAID[name])
            problems += _find_unknown_words(cohort[name], cells[name], name, path)
        elif name != "split":
            cohort[name] = "unknown"
    cohort["age_years"] = parse_years(cells["age_years"]) if "age_years" in cells else float("nan")
    if "age_years" in cells:
        problems += _find_wrong_ages(cohort["age_years"], cells["age_years"], path)
    for finding, column in mapping.findings().items():
        cohort[finding] = _translate_words(table[column], "labels", mapping)
    for name, column in mapping.outcomes(table).items():
        is_time = name.endswith(YEARS_SUFFIX)
        cohort[name] = table[column].str.strip() if is_time else _translate_words(table[column], "outcomes", mapping)
    problems += _find_wrong_labels(cohort, table, mapping, path)
    if problems:
        return cohort, problems
    cohort = cohort.astype(dict.fromkeys(mapping.findings(), "Int8"))
    _write_reports(cohort, table, mapping, seed)
    if "split" not in cells:
        return split_patients(cohort, mapping.fractions, seed), []
    if not (cohort["split"] == "validate").any():
        return carve_validation(cohort, VALIDATE_SHARE, seed), []
    return cohort, []


def _translate_words(cells: pd.Series, kind: str, mapping: ColumnMapping) -> pd.Series:
    """Words of the table as values of the contract; unknown words stay as they are, empty cells become None."""
    words = mapping.words(kind)
    translated = [None if pd.isna(cell) else words.get(plain_word(cell), cell) for cell in cells]
    return pd.Series(translated, index=cells.index, dtype="object")


def _write_reports(cohort: pd.DataFrame, table: pd.DataFrame, mapping: ColumnMapping, seed: int) -> None:
    columns = mapping.report_columns()
    if not columns:
        labels = cohort[list(mapping.findings())].to_dict("records")
        cohort["report"] = [
            template_report(row, image_id, seed, mapping.word_budget)
            for row, image_id in zip(labels, cohort["image_id"], strict=True)
        ]
        cohort["report_origin"] = "template"
    else:
        parts = table[columns].fillna("")
        cohort["report"] = [
            "\n".join(
                _head_section(column, text) for column, text in zip(columns, row, strict=True) if not says_nothing(text)
            )
            for row in parts.itertuples(index=False, name=None)
        ]
        cohort["report_origin"] = "written"
    cohort["report_origin"] = cohort["report_origin"].where(cohort["report"] != "", "none")


def _head_section(column: str, text: str) -> str:
    """A column that is named like a section opens that section."""
    is_section = any(column.lower() in headings for headings in SECTION_HEADINGS.values())
    return f"{column.upper()}: {text}" if is_section else text


# --- problems -------------------------------------------------------------------------------------------------------


def _find_id_problems(ids: Mapping[str, pd.Series], path: Path) -> list[str]:
    problems = []
    for name, cells in ids.items():
        problems += _find_empty_cells(cells, path)
        problems += _find_duplicates(cells, path) if name.startswith("image") else _find_rounded(cells, path)
    return problems


def _find_empty_cells(cells: pd.Series, path: Path) -> list[str]:
    empty = np.flatnonzero(cells.isna())
    if not len(empty):
        return []
    return [
        f"{path.name}: {name_place(cells.index, empty[0])}, column {cells.name!r} is empty ({len(empty)} rows are; "
        "nan, unknown or -1 say no more): fill it in."
    ]


def _find_duplicates(names: pd.Series, path: Path) -> list[str]:
    repeated = names.duplicated() & names.notna()
    if not repeated.any():
        return []
    again = int(repeated.argmax())
    first = int((names == names.iloc[again]).argmax())
    return [
        f"{path.name}: {name_place(names.index, first)} and {name_place(names.index, again)} hold the same in column "
        f"{names.name!r} ({names[repeated].nunique()} images repeat): give each image one row."
    ]


def _find_rounded(ids: pd.Series, path: Path) -> list[str]:
    rounded = np.flatnonzero(ids.map(is_rounded, na_action="ignore").eq(True))
    if not len(rounded):
        return []
    return [
        f"{path.name}: {name_place(ids.index, rounded[0])}, column {ids.name!r} holds a number that a spreadsheet has "
        f"rounded, as in 1.2E+15 ({len(rounded)} rows do): save the identifiers as text."
    ]


def _find_shared_files(files: list[Path], places: pd.Index, mapping: ColumnMapping, path: Path) -> list[str]:
    shared = find_shared_files(files)
    if not shared:
        return []
    first, second = (name_place(places, number) for number in shared[0][:2])
    return [
        f"{path.name}: {first} and {second} name the same file in column {mapping.columns['image_path']!r}, written in "
        f"two ways ({len(shared)} files are named more than once): give each image one row."
    ]


def _find_unknown_words(translated: pd.Series, cells: pd.Series, kind: str, path: Path) -> list[str]:
    allowed = sorted(set(WORDS[kind].values()))
    wrong = np.flatnonzero(~translated.isin(allowed))
    if not len(wrong):
        return []
    cell = cells.iloc[wrong[0]]
    held = "is empty" if pd.isna(cell) else f"holds {show_value(cell, cells)}"
    return [
        f"{path.name}: {name_place(cells.index, wrong[0])}, column {cells.name!r} {held}; expected one of "
        f"{', '.join(allowed)}, or an entry under 'values: {kind}' that says what it means."
    ]


def _find_wrong_ages(years: pd.Series, cells: pd.Series, path: Path) -> list[str]:
    wrong = np.flatnonzero((years.isna() & cells.notna()) | (years > 120))
    if not len(wrong):
        return []
    return [
        f"{path.name}: {name_place(cells.index, wrong[0])}, column {cells.name!r} holds "
        f"{show_value(cells.iloc[wrong[0]], cells)}; expected an age from 0 to 120 years, or empty."
    ]


def _find_wrong_labels(cohort: pd.DataFrame, table: pd.DataFrame, mapping: ColumnMapping, path: Path) -> list[str]:
    problems = []
    for finding, column in mapping.findings().items():
        wrong = np.flatnonzero(cohort[finding].notna() & ~cohort[finding].isin([1, 0, -1]))
        if len(wrong):
            problems.append(
                f"{path.name}: {name_place(table.index, wrong[0])}, column {column!r} holds "
                f"{show_value(table[column].iloc[wrong[0]], table[column])}; a label is 1 (present), 0 (absent), "
                "-1 (uncertain) or empty (not stated), or an entry under 'values: labels' that says what it means."
            )
    return problems


def _tell_unused(table: pd.DataFrame, mapping: ColumnMapping) -> str:
    """Which columns nothing uses, and how those that look like a column of the contract would be."""
    used = {name for _, name in _list_asked(table, mapping)} | {"source", "report_origin"}
    unused = [name for name in table.columns if name not in used and not name.startswith("__")]
    if not unused:
        return ""
    guessed = {name: column for name, column in guess_names(table.columns).items() if column in unused}
    guessed = {name: column for name, column in guessed.items() if name not in mapping.columns}
    add = ", ".join(f"{name}: {column}" for name, column in guessed.items())
    verb = "is" if len(unused) == 1 else "are"
    return f"{', '.join(unused)} {verb} not used{f': add {add}' if add else ''}."
