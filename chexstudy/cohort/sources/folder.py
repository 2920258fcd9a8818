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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import yaml

from chexstudy.cohort.reports import SECTION_HEADINGS, template_report
from chexstudy.cohort.sources.layout import (
    IMAGES_WITHOUT_ROW,
    list_images,
    parse_years,
    read_table,
    require_folder,
)
from chexstudy.cohort.splits import DEFAULT_FRACTIONS, carve_validation, check_fractions, split_patients
from chexstudy.cohort.table import OUTCOME_PREFIX, RESERVED_COLUMNS, YEARS_SUFFIX, show_value, validate_cohort
from chexstudy.errors import StudyError

MAPPING_FILE = "cohort.yaml"
NO_PATIENTS = "none"
VALIDATE_SHARE = 0.1  # of the training patients, where the table's own split has no validation

_REQUIRED = ("image_path", "patient_id")
_SINGLE = (*_REQUIRED, "image_id", "study_id", "split", "view", "sex", "age_years")
_MAPPED = (*_SINGLE, "report", "findings", "outcomes")
_YAML_BOOLEANS = MappingProxyType({True: ("true", "yes", "on"), False: ("false", "no", "off")})
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_HOLDING = "the images and their table"

# How tables word what the contract says in one way; compared in lower case.
WORDS = MappingProxyType(
    {
        "split": {
            **dict.fromkeys(("train", "training"), "train"),
            **dict.fromkeys(("validate", "validation", "valid", "val", "dev"), "validate"),
            **dict.fromkeys(("test", "testing"), "test"),
            "test_enriched": "test_enriched",
        },
        "view": {
            **dict.fromkeys(("pa", "posteroanterior", "postero-anterior"), "PA"),
            **dict.fromkeys(("ap", "anteroposterior", "antero-posterior"), "AP"),
            **dict.fromkeys(("lateral", "lat", "ll", "rl"), "lateral"),
            "unknown": "unknown",
        },
        "sex": {
            **dict.fromkeys(("f", "female", "woman"), "F"),
            **dict.fromkeys(("m", "male", "man"), "M"),
            **dict.fromkeys(("unknown", "u", "o", "other"), "unknown"),
        },
        "labels": {
            **dict.fromkeys(("1", "true", "yes", "present", "positive"), 1),
            **dict.fromkeys(("0", "false", "no", "absent", "negative"), 0),
            **dict.fromkeys(("-1", "uncertain"), -1),
        },
        "outcomes": {
            **dict.fromkeys(("1", "true", "yes", "event", "dead", "died", "deceased"), 1),
            **dict.fromkeys(("0", "false", "no", "censored", "alive"), 0),
        },
    }
)


@dataclass(frozen=True)
class FolderReport:
    """What a dry run found.

    Attributes:
        problems: one sentence for each thing that must be mended; empty if the cohort can be built.
        available_columns: the table's columns.
        rows: rows of the table.
        rows_without_image: rows that name a file that is not there; they go to quarantine.
        images_without_row: image files that no row names; they take no part.
        cohort: the cohort table, or None if there are problems.
    """

    problems: tuple[str, ...]
    available_columns: tuple[str, ...] = ()
    rows: int = 0
    rows_without_image: int = 0
    images_without_row: int = 0
    cohort: pd.DataFrame | None = None


@dataclass(frozen=True)
class _Mapping:
    table: str | None = None
    images: str = ""
    source: str = "folder"
    columns: Mapping = field(default_factory=dict)
    values: Mapping = field(default_factory=dict)
    fractions: Mapping = field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    word_budget: int | None = None

    def findings(self) -> dict[str, str]:
        """Finding -> column of the table."""
        return _as_pairs(self.columns.get("findings"))

    def outcomes(self, table: pd.DataFrame) -> dict[str, str]:
        """Outcome column of the contract -> column of the table."""
        mapped = {f"{OUTCOME_PREFIX}{name}": column for name, column in _as_pairs(self.columns.get("outcomes")).items()}
        return {name: name for name in table.columns if name.startswith(OUTCOME_PREFIX)} | mapped

    def report_columns(self) -> list[str]:
        return _as_names(self.columns.get("report") or [])

    def single_columns(self) -> dict[str, str]:
        """Contract column -> column of the table, for those that are one column each."""
        single = {name: str(self.columns[name]) for name in _SINGLE if self.columns.get(name)}
        if single.get("patient_id", "").lower() == NO_PATIENTS:
            del single["patient_id"]
        return single


def _as_pairs(columns: object) -> dict[str, str]:
    """Own name -> column of the table, of pairs or of names that are the same in both."""
    if isinstance(columns, Mapping):
        return {str(name): str(column) for name, column in columns.items()}
    return {name: name for name in _as_names(columns or [])}


def _as_names(names: object) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]


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

    Raises:
        StudyError: the first problem :func:`check_folder` finds.
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
        table = read_table(path)
    except StudyError as error:
        return FolderReport((str(error),))
    available = tuple(table.columns)
    problems = _find_column_problems(table, mapping, path)
    if problems:
        return FolderReport(tuple(problems), available, len(table))
    cohort, problems = _translate(table, mapping, path, folder, seed)
    files = [Path(image) for image in cohort["image_path"]]
    without_image = [not file.is_file() for file in files]
    if len(files) and all(without_image):
        problems.append(
            f"none of the {len(files)} files named in column {mapping.columns['image_path']!r} of {path.name} exists "
            f"(the first is {files[0]}): set images to the subfolder in which the paths start."
        )
    unlisted = {image.resolve() for image in list_images(folder / mapping.images)} - {file.resolve() for file in files}
    if not problems:
        try:
            cohort = validate_cohort(cohort, path.name)
        except StudyError as error:
            problems.append(str(error))
    counts = {"rows": len(table), "rows_without_image": sum(without_image), "images_without_row": len(unlisted)}
    if problems:
        return FolderReport(tuple(problems), available, **counts)
    cohort.attrs[IMAGES_WITHOUT_ROW] = len(unlisted)
    return FolderReport((), available, **counts, cohort=cohort)


# --- the mapping ----------------------------------------------------------------------------------------------------


def _read_mapping(folder: Path, options: Mapping[str, object]) -> _Mapping:
    options = {name: value for name, value in options.items() if value is not None}
    path = folder / MAPPING_FILE
    if "columns" not in options:
        if not path.is_file():
            raise StudyError(
                f"no columns were given and {folder} has no {MAPPING_FILE}: say which column of the table holds "
                f"{' and which '.join(_REQUIRED)}."
            )
        options = read_mapping_file(path) | options
    unknown = [name for name in options if name not in _Mapping.__dataclass_fields__]
    if unknown:
        raise StudyError(
            f"the mapping has no entry {unknown[0]!r}: its entries are {', '.join(_Mapping.__dataclass_fields__)}."
        )
    mapping = _Mapping(**options)
    wrong = [name for name in ("columns", "values", "fractions") if not isinstance(getattr(mapping, name), Mapping)]
    wrong += [name for name, words in mapping.values.items() if not isinstance(words, Mapping)] if not wrong else []
    if wrong:
        raise StudyError(f"the mapping's entry {wrong[0]!r} must be pairs of 'name: value'.")
    unknown = [name for name in mapping.values if name not in WORDS]
    if unknown:
        raise StudyError(f"the mapping cannot translate values of {unknown[0]!r}: it can those of {', '.join(WORDS)}.")
    check_fractions(mapping.fractions)
    return mapping


def read_mapping_file(path: Path) -> dict:
    """The mapping that lies in a folder.

    Raises:
        StudyError: it is no mapping, or says nothing of columns.
    """
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        mapping = None
    if not isinstance(mapping, dict) or "columns" not in mapping:
        raise StudyError(f"{path} is not a mapping with an entry 'columns': see `chexstudy cohort build --help`.")
    return mapping


def _find_table(folder: Path, mapping: _Mapping) -> Path:
    if mapping.table:
        return folder / mapping.table
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in _TABLE_SUFFIXES)
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise StudyError(f"{folder} must hold one CSV or Parquet table, or 'table' must name it (found: {found}).")
    return tables[0]


def _find_column_problems(table: pd.DataFrame, mapping: _Mapping, path: Path) -> list[str]:
    has = f"it has {', '.join(map(repr, table.columns))}"
    problems = [
        f"the mapping has no column {name!r}: it can have {', '.join(_MAPPED)}."
        for name in mapping.columns
        if name not in _MAPPED
    ]
    if not mapping.columns.get("image_path"):
        problems.append(f"the mapping does not say which column of {path.name} holds image_path; {has}.")
    if "patient_id" not in mapping.columns:
        problems.append(
            f"the mapping does not say which column of {path.name} holds patient_id; {has}; if every image is of "
            "another patient, say 'patient_id: none' (images of one patient in two splits would make results too good)."
        )
    if not mapping.report_columns() and not mapping.findings():
        problems.append(
            f"the mapping names neither a report nor findings of {path.name}, so no image has a text; {has}."
        )
    asked = [*mapping.single_columns().items(), *(("report", name) for name in mapping.report_columns())]
    asked += [(f"the finding {finding!r}", name) for finding, name in mapping.findings().items()]
    asked += [
        (f"the outcome {name.removeprefix(OUTCOME_PREFIX)!r}", own) for name, own in mapping.outcomes(table).items()
    ]
    problems += [f"{path.name} has no column {name!r} for {what}; {has}." for what, name in asked if name not in table]
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


# --- the table ------------------------------------------------------------------------------------------------------


def _translate(
    table: pd.DataFrame, mapping: _Mapping, path: Path, folder: Path, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The cohort, and what is wrong with it that the contract's own validation would not tell as well."""
    cells = {name: table[column] for name, column in mapping.single_columns().items()}
    problems = _find_id_problems(cells, path)
    paths = cells["image_path"].fillna("").str.strip().str.replace("\\", "/")
    ids = {
        name: cells.get(name, cells.get("image_id", paths)).fillna("")
        for name in ("image_id", "patient_id", "study_id")
    }
    cohort = pd.DataFrame({name: mapping.source + "/" + own for name, own in ids.items()})
    cohort["source"] = mapping.source
    cohort["image_path"] = [str(folder / mapping.images / name) for name in paths]
    for name in ("view", "sex", "split"):
        if name in cells:
            unsaid = None if name == "split" else "unknown"
            cohort[name] = _translate_words(cells[name], name, mapping).where(cells[name].notna(), unsaid)
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


def _translate_words(cells: pd.Series, kind: str, mapping: _Mapping) -> pd.Series:
    """Words of the table as values of the contract; unknown words stay as they are, empty cells become None."""
    words = dict(WORDS[kind])
    for word, value in mapping.values.get(kind, {}).items():
        # YAML reads an unquoted yes or no as true or false.
        words |= dict.fromkeys(_YAML_BOOLEANS.get(word, ()) if isinstance(word, bool) else (_plain_word(word),), value)
    translated = [None if pd.isna(cell) else words.get(_plain_word(cell), cell) for cell in cells]
    return pd.Series(translated, index=cells.index, dtype="object")


def _plain_word(word: object) -> str:
    """Lower case without blanks; ``1.0`` and ``1`` are the same word."""
    text = str(word).strip().lower()
    return text.removesuffix(".0") if text.lstrip("-").replace(".", "", 1).isdigit() else text


def _write_reports(cohort: pd.DataFrame, table: pd.DataFrame, mapping: _Mapping, seed: int) -> None:
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
            "\n".join(_head_section(column, text) for column, text in zip(columns, row, strict=True) if text.strip())
            for row in parts.itertuples(index=False, name=None)
        ]
        cohort["report_origin"] = "written"
    cohort["report_origin"] = cohort["report_origin"].where(cohort["report"] != "", "none")


def _head_section(column: str, text: str) -> str:
    """A column that is named like a section opens that section."""
    is_section = any(column.lower() in headings for headings in SECTION_HEADINGS.values())
    return f"{column.upper()}: {text}" if is_section else text


# --- problems -------------------------------------------------------------------------------------------------------


def _find_id_problems(cells: Mapping[str, pd.Series], path: Path) -> list[str]:
    problems = []
    for name in ("image_path", "image_id", "patient_id", "study_id"):
        if name in cells:
            problems += _find_empty_cells(cells[name], path)
            problems += _find_duplicates(cells[name], path) if name.startswith("image") else []
    return problems


def _find_empty_cells(cells: pd.Series, path: Path) -> list[str]:
    empty = cells.index[cells.isna() | (cells.str.strip() == "")]
    if not len(empty):
        return []
    return [f"{path.name}: row {empty[0]}, column {cells.name!r} is empty ({len(empty)} rows are): fill it in."]


def _find_duplicates(names: pd.Series, path: Path) -> list[str]:
    stated = names.dropna()
    repeats = stated[stated.duplicated()]
    if repeats.empty:
        return []
    first, again = stated.index[stated == repeats.iloc[0]][:2]
    return [
        f"{path.name}: rows {first} and {again} hold the same {repeats.iloc[0]!r} in column {names.name!r} "
        f"({repeats.nunique()} images repeat): give each image one row."
    ]


def _find_unknown_words(translated: pd.Series, cells: pd.Series, kind: str, path: Path) -> list[str]:
    allowed = sorted(set(WORDS[kind].values()))
    wrong = translated.index[~translated.isin(allowed)]
    if not len(wrong):
        return []
    held = "is empty" if pd.isna(cells[wrong[0]]) else f"holds {show_value(cells[wrong[0]])!r}"
    return [
        f"{path.name}: row {wrong[0]}, column {cells.name!r} {held}; expected one of {', '.join(allowed)}, or an entry "
        f"under 'values: {kind}' that says what it means."
    ]


def _find_wrong_ages(years: pd.Series, cells: pd.Series, path: Path) -> list[str]:
    wrong = years.index[(years.isna() & cells.notna()) | (years > 120)]
    if not len(wrong):
        return []
    return [
        f"{path.name}: row {wrong[0]}, column {cells.name!r} holds {show_value(cells[wrong[0]])!r}; "
        "expected an age from 0 to 120 years, or empty."
    ]


def _find_wrong_labels(cohort: pd.DataFrame, table: pd.DataFrame, mapping: _Mapping, path: Path) -> list[str]:
    problems = []
    for finding, column in mapping.findings().items():
        wrong = cohort.index[cohort[finding].notna() & ~cohort[finding].isin([1, 0, -1])]
        if len(wrong):
            problems.append(
                f"{path.name}: row {wrong[0]} ({cohort['image_id'][wrong[0]]}), column {column!r} holds "
                f"{show_value(table[column][wrong[0]])!r}; a label is 1 (present), 0 (absent), -1 (uncertain) or empty "
                "(not stated), or an entry under 'values: labels' that says what it means."
            )
    return problems
