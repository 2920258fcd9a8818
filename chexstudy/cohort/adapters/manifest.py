"""A table, the meaning of its columns and a set of image files: a cohort, and what is wrong with it.

This is what a folder of one's own and every public data set have in common. A data set says what is its own in a
`DatasetSpec`: a YAML file in ``datasets/``, and where its table needs code, a module beside it that calls `register`.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from chexstudy.cohort.adapters.column_mapping import (
    EACH_ANOTHER,
    MAPPED,
    UNSAID,
    WORDS,
    ColumnMapping,
    guess_names,
    plain_word,
)
from chexstudy.cohort.adapters.layout import (
    IMAGES_WITHOUT_ROW,
    Download,
    ImageFinder,
    is_image,
    parse_years,
    resolve_links,
)
from chexstudy.cohort.finding_names import canonical_name
from chexstudy.cohort.pseudo_reports import TemplateRules, template_report
from chexstudy.cohort.reports import SECTION_HEADINGS, says_nothing
from chexstudy.cohort.splits import carve_validation, split_patients
from chexstudy.cohort.table import OUTCOME_PREFIX, RESERVED_COLUMNS, YEARS_SUFFIX, tell_first, validate_cohort
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import is_rounded, normalise_ids, unify_patients
from chexstudy.inputs.tables import NESTED, name_place
from chexstudy.inputs.yaml_files import read_data_beside

VALIDATE_SHARE = 0.1  # of the training patients, where the table's own split has no validation
_OLDEST_YEARS = 120
# Notes in ``cohort.attrs``: how many patients were, how many rows name an image that the folder lacks and are left out,
# how many images stand for a patient each because nobody is told, how many reports are not in English, how many
# patients no official split places, and which columns of the table nothing takes.
PATIENTS_UNIFIED = "patients_written_in_several_ways"
NOT_IN_FOLDER = "images_named_but_not_in_the_folder_and_left_out"
NOT_ENGLISH = "written_reports_not_in_english"
NO_PATIENT_TOLD = "images_taken_for_a_patient_each_because_none_is_told"
SPLIT_AT_RANDOM = "patients_split_at_random"
UNUSED = "columns"
# In the ``attrs`` of what a data set's ``read`` gives: whose numbers its patients have, where its folder decides that.
PATIENTS_OF = "patients_of"
_SPLIT = "official split"
_SECTIONS = {heading for headings in SECTION_HEADINGS.values() for heading in headings}
_A_LABEL = (
    "; a label is 1 (present), 0 (absent), -1 (uncertain) or empty (not stated), or an entry under 'values: labels' "
    "that says what it means."
)


@dataclass(frozen=True)
class DatasetSpec:
    """What is a public data set's own."""

    name: str  # of the source, the first part of every id
    title: str  # for people
    address: str  # where it is had
    licence: str  # its terms, in a few words
    size: str  # how much it holds, in a few words
    holding: str  # what its folder holds, to follow "the folder that holds"
    # The contract's columns -> columns of the table, as in ``cohort.yaml``. Findings go by their official names, which
    # template reports are written with; the cohort has their canonical ones.
    # Empty for masks of other sources' images.
    columns: Mapping[str, object] = field(default_factory=dict)
    # ``(download, options)`` to one row an image, every cell text or missing, an index as `read_text_table` gives it.
    # Numbers in ``attrs`` are notes for the user; `PATIENTS_OF` there goes before ``patients_of``. Without code it is
    # the set's own table.
    read: Callable[[Download, Mapping[str, str]], pd.DataFrame] = lambda download, _: download.read()
    # Kind of word (`column_mapping.WORDS`) -> word of the table, in lower case -> value of the contract.
    words: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    # Files or ends of paths, ``*`` for what differs between deliveries: those its table goes by, the newest first, and
    # those that tell the set (its tables, if none is given; the path of the folder's own name on).
    tables: tuple[str, ...] = ()
    told_by: tuple[str, ...] = ()
    is_image: Callable[[str], bool] = is_image  # which files, by their paths from the folder, are its radiographs
    is_own_name: Callable[[str], bool] = lambda name: False  # whether an image's name, without ending, tells the set
    # Split -> the file that lists its images; of one list fewer than splits, the last one is what is not listed.
    split_lists: Mapping[str, str] = field(default_factory=dict)
    list_annotations: Callable[[Download], list] = lambda download: []
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> what it can be, the default first
    # Of the reports that are written from its labels; none are, without.
    templates: TemplateRules | None = field(default_factory=TemplateRules)
    width_mm: float = math.nan  # of what an image shows, where that is the same for all
    language: str = "en"  # of its written reports
    report_id: str = ""  # the column of its table that numbers them, if it does
    patients_of: str = ""  # the source whose numbers its patients have; its own if empty

    def open(self, data_root: str | Path) -> Download:
        """Its folder."""
        return Download(data_root, self.holding, self.tables)

    def choose(self, given: Mapping[str, str]) -> dict[str, str]:
        """Its options with what was given for some, or a StudyError."""
        for name, choice in given.items():
            if name not in self.options:
                known = f"its options are {', '.join(self.options)}" if self.options else "it has none"
                raise StudyError(f"the source {self.name} has no option {name!r}: {known}.")
            if choice not in self.options[name]:
                raise StudyError(
                    f"the option {name!r} of the source {self.name} cannot be {choice!r}: choose "
                    f"{' or '.join(self.options[name])}."
                )
        return {name: choices[0] for name, choices in self.options.items()} | dict(given)


DATASETS: dict[str, DatasetSpec] = {}


def register(module: str, **code: Callable) -> DatasetSpec:
    """Make the data set known that the YAML file beside a module (``__file__``) tells; ``data`` is the module's own."""
    told = {
        name: tuple(value) if isinstance(value, list) else value for name, value in read_data_beside(module).items()
    }
    told.pop("data", None)
    rules = told.pop("templates", {})
    templates = None if rules is None else TemplateRules(**rules)
    name = Path(module).stem
    DATASETS[name] = DatasetSpec(name=name, templates=templates, **told, **code)
    return DATASETS[name]


@dataclass(frozen=True)
class ManifestReport:
    """What a dry run found."""

    problems: tuple[str, ...]  # one sentence for each thing that must be mended; empty if the cohort can be built
    # of the table's rows in their file, as `chexstudy.inputs.tables.read_text_table` gives them
    places: pd.Index = field(default_factory=lambda: pd.Index([]))
    without_image: tuple[int, ...] = ()  # positions of rows that name a file that is not there; they go to quarantine
    without_row: tuple[Path, ...] = ()  # image files that no row names; they take no part
    cohort: pd.DataFrame | None = None  # the cohort table, or None if there are problems
    report_ids: pd.Series | None = None  # of its rows, the data set's own, if it has some

    def require_cohort(self) -> pd.DataFrame:
        """The cohort, or its first problem as an error."""
        if self.problems:
            raise StudyError(self.problems[0])
        return self.cohort


def check_dataset(
    spec: DatasetSpec, data_root: str | Path, seed: int, options: Mapping[str, str] = MappingProxyType({})
) -> ManifestReport:
    """The cohort of a public data set; what is wrong is said and not raised.

    Rows whose image is not there are counted and left out, as few people download a whole set. Official lists make the
    splits, and validation patients come out of training; else patients are split 70/10/20. Words for view, sex and age
    that are not known tell nothing: nobody mends a public table.
    """
    try:
        download = spec.open(data_root)
        if not spec.columns:
            raise StudyError(
                f"{spec.name} holds masks of other sources' images and none of its own: list it beside them in a "
                "manifest, with `role: annotate`."
            )
        table = spec.read(download, spec.choose(options))
        table, columns = _read_official_split(table, download, spec)
        columns = _leave_out_unsaid(table, columns)
    except StudyError as error:
        return ManifestReport((str(error),))
    mapping = ColumnMapping(source=spec.name, columns=columns, values=spec.words)
    for name, column in mapping.single_columns().items():
        if name in ("view", "sex") and column in table:
            known = table[column].map(plain_word, na_action="ignore").isin(mapping.words(name))
            table[column] = table[column].where(known)
        elif name == "age_years" and column in table:
            table[column] = table[column].where(parse_years(table[column]) <= _OLDEST_YEARS)
    finder = ImageFinder(download.folder, list(filter(spec.is_image, download.files)), anywhere=True)
    notes = {name: note for name, note in table.attrs.items() if name != NESTED}
    if "image_path" in mapping.columns and mapping.columns["image_path"] in table:
        column = mapping.columns["image_path"]
        is_there = table[column].fillna("").map(finder.find).map(os.path.isfile).to_numpy(dtype=bool)
        if len(table) and not is_there.any():
            return ManifestReport(
                (
                    f"none of the {len(table)} files named in column {column!r} of {download.table.name} exists in "
                    f"{download.folder}: set data_root to the folder that holds {spec.holding}.",
                )
            )
        if not is_there.all():
            notes[NOT_IN_FOLDER] = int((~is_there).sum())
            table = table[is_there]
    report = check_manifest(table, mapping, download.table.name, finder, seed, spec.templates)
    if report.cohort is None:
        return report
    cohort = report.cohort.rename(columns={name: canonical_name(name) for name in mapping.findings()})
    owner = notes.pop(PATIENTS_OF, spec.patients_of)
    if owner:
        cohort["patient_id"] = owner + cohort["patient_id"].str.removeprefix(spec.name)
    if spec.language != "en":
        notes[NOT_ENGLISH] = int((cohort["report_origin"] == "written").sum())
    if "patient_id" not in mapping.single_columns():
        notes[NO_PATIENT_TOLD] = len(cohort)
    cohort.attrs.pop(UNUSED, None)
    cohort.attrs |= notes
    report_ids = normalise_ids(table[spec.report_id]).set_axis(cohort.index) if spec.report_id in table else None
    return replace(report, cohort=cohort, report_ids=report_ids)


def check_manifest(
    table: pd.DataFrame,
    mapping: ColumnMapping,
    origin: str,
    finder: ImageFinder,
    seed: int,
    templates: TemplateRules | None = None,
) -> ManifestReport:
    """Build a cohort without raising and say everything that is wrong.

    ``table`` has a row an image, every cell text or missing, and is called ``origin``. By ``templates`` a report that
    says nothing is written from labels; without them only in a cohort without reports.
    """
    problems = _find_column_problems(table, mapping, origin)
    if problems:
        return ManifestReport(tuple(problems), table.index)
    cohort, problems = _translate(table, mapping, origin, finder, seed, templates)
    files = list(cohort["image_path"])
    absent = [number for number, file in enumerate(files) if not os.path.isfile(file)]
    if len(files) and len(absent) == len(files):
        problems.append(
            f"none of the {len(files)} files named in column {mapping.columns['image_path']!r} of {origin} exists "
            f"in {finder.folder}: set images to the subfolder in which the paths start."
        )
    listed = set(files)
    others = [name for name in finder.images if f"{finder.folder}/{name}" not in listed]
    meant = finder.list_meant(table[mapping.columns["image_path"]].dropna()) if others else set()
    others = [f"{finder.folder}/{name}" for name in others if name not in meant]
    named = set(map(resolve_links, files)) if others else set()
    unlisted = tuple(Path(image) for image in others if resolve_links(image) not in named)
    if not problems:
        try:
            cohort = validate_cohort(cohort, origin)
        except StudyError as error:
            problems.append(str(error))
    report = ManifestReport(tuple(problems), table.index, tuple(absent), unlisted)
    if problems:
        return report
    cohort.attrs[IMAGES_WITHOUT_ROW] = len(unlisted)
    if "split" not in mapping.single_columns():
        cohort.attrs[SPLIT_AT_RANDOM] = cohort["patient_id"].nunique()
    unused = _tell_unused(table, mapping)
    cohort.attrs |= {UNUSED: unused} if unused else {}
    return replace(report, cohort=cohort)


# --- official layouts -------------------------------------------------------------------------------------------------


def _read_official_split(
    table: pd.DataFrame, download: Download, spec: DatasetSpec
) -> tuple[pd.DataFrame, Mapping[str, object]]:
    """The table with a column of the splits that the official lists make, if they are there, and the mapping."""
    lists = {
        split: set(path.read_text().split())
        for split, name in spec.split_lists.items()
        if (path := download.find(name)) is not None
    }
    if not lists:
        return table, spec.columns
    names = table[spec.columns["image_path"]]
    listed = pd.DataFrame({split: names.isin(images) for split, images in lists.items()})
    if len(lists) == len(spec.split_lists) - 1:
        listed[next(split for split in spec.split_lists if split not in lists)] = ~listed.any(axis=1)
    wrong = table.index[listed.sum(axis=1) != 1]
    if len(wrong):
        raise StudyError(
            f"{len(wrong)} images (the first is that of {name_place(wrong, 0)}) are in neither or in both of "
            f"{' and '.join(spec.split_lists.values())}: mend the lists, or take both away to split patients at random."
        )
    return table.assign(**{_SPLIT: listed.idxmax(axis=1).astype("str")}), {**spec.columns, "split": _SPLIT}


def _leave_out_unsaid(table: pd.DataFrame, columns: Mapping[str, object]) -> dict[str, object]:
    """The mapping without split and findings of which no row says anything, as where their file was not fetched."""
    unsaid = set(table.columns[table.isna().all()])
    findings = ColumnMapping(columns=columns).findings().items()
    told = {**columns, "findings": {name: column for name, column in findings if column not in unsaid}}
    return {name: column for name, column in told.items() if column and (name != "split" or column not in unsaid)}


# --- columns ----------------------------------------------------------------------------------------------------------


def _find_column_problems(table: pd.DataFrame, mapping: ColumnMapping, origin: str) -> list[str]:
    has = f"it has {', '.join(map(repr, table.columns))}"
    problems = [
        f"the mapping has no column {name!r}: it can have {', '.join(MAPPED)}."
        for name in mapping.columns
        if name not in MAPPED
    ]
    if "image_path" not in mapping.columns:
        problems.append(f"the mapping does not say which column of {origin} holds image_path; {has}.")
    if "patient_id" not in mapping.columns:
        problems.append(f"the mapping does not say which column of {origin} holds patient_id; {has}; {EACH_ANOTHER}.")
    for what, name in _list_asked(table, mapping):
        if name in table.attrs.get(NESTED, ()):
            problems.append(
                f"column {name!r} of {origin}, for {what}, holds lists or the like: write one value a cell."
            )
        elif name not in table:
            hint = f"; {EACH_ANOTHER}" if what == "patient_id" else ""
            problems.append(f"{origin} has no column {name!r} for {what}; {has}{hint}.")
    for finding in mapping.findings():
        if finding in RESERVED_COLUMNS:
            why, move = "which is a column of its own in a cohort", ""
        elif finding.startswith(OUTCOME_PREFIX):
            why = f"because columns that begin with {OUTCOME_PREFIX!r} are outcomes"
            move = ", or move it to 'outcomes'"
        else:
            continue
        problems.append(f"a finding cannot be named {finding!r}, {why}: rename it in 'findings'{move}.")
    if table.empty:
        problems.append(f"{origin} has no rows.")
    return problems


def _list_asked(table: pd.DataFrame, mapping: ColumnMapping) -> list[tuple[str, str]]:
    """What the mapping takes from the table, in words, and the column it takes it from."""
    asked = [*mapping.single_columns().items(), *(("report", name) for name in mapping.report_columns())]
    asked += [(f"the finding {finding!r}", name) for finding, name in mapping.findings().items()]
    outcomes = mapping.outcomes(table).items()
    return asked + [(f"the outcome {name.removeprefix(OUTCOME_PREFIX)!r}", own) for name, own in outcomes]


# --- rows -------------------------------------------------------------------------------------------------------------


def _translate(
    table: pd.DataFrame,
    mapping: ColumnMapping,
    origin: str,
    finder: ImageFinder,
    seed: int,
    templates: TemplateRules | None,
) -> tuple[pd.DataFrame, list[str]]:
    """The cohort, and what is wrong with it that the contract's own validation would not tell as well."""
    cells = {name: table[column] for name, column in mapping.single_columns().items()}
    paths = cells["image_path"].fillna("").str.replace("\0", "").str.strip()
    paths = paths.str.replace("\\", "/").str.removeprefix("./")
    files = [finder.find(name) for name in paths]
    ids = {name: normalise_ids(cells[name]) for name in ("image_id", "patient_id", "study_id") if name in cells}
    problems = _find_id_problems({"image_path": normalise_ids(paths), **ids}, origin)
    if not problems:
        real = pd.Series(list(map(resolve_links, files)), paths.index, name=paths.name)
        problems += _find_repeats(real, "name the same file, written in two ways,", origin)
    own = ids.get("image_id", normalise_ids(paths)).fillna("")
    cohort = pd.DataFrame(
        {name: mapping.source + "/" + ids.get(name, own).fillna("") for name in ("image_id", "patient_id", "study_id")}
    )
    if "patient_id" in ids:
        cohort["patient_id"], unified = unify_patients(cohort["patient_id"])
        cohort.attrs |= {PATIENTS_UNIFIED: unified} if unified else {}
    cohort["source"] = mapping.source
    cohort["image_path"] = files
    for name in ("view", "sex", "split"):
        if name in cells:
            cohort[name] = _translate_words(cells[name], name, mapping).where(cells[name].notna(), UNSAID[name])
            allowed = sorted(set(WORDS[name].values()))
            told = (
                f"; expected one of {', '.join(allowed)}, or an entry under 'values: {name}' that says what it means."
            )
            problems += tell_first(~cohort[name].isin(allowed), cells[name], origin, told)
        elif name != "split":
            cohort[name] = "unknown"
    cohort["age_years"] = parse_years(cells["age_years"]) if "age_years" in cells else float("nan")
    if "age_years" in cells:
        wrong = (cohort["age_years"].isna() & cells["age_years"].notna()) | (cohort["age_years"] > _OLDEST_YEARS)
        told = f"; expected an age from 0 to {_OLDEST_YEARS} years, or empty."
        problems += tell_first(wrong, cells["age_years"], origin, told)
    for finding, column in mapping.findings().items():
        cohort[finding] = _translate_words(table[column], "labels", mapping)
        wrong = cohort[finding].notna() & ~cohort[finding].isin([1, 0, -1])
        problems += tell_first(wrong, table[column], origin, _A_LABEL)
    for name, column in mapping.outcomes(table).items():
        is_time = name.endswith(YEARS_SUFFIX)
        cohort[name] = table[column].str.strip() if is_time else _translate_words(table[column], "outcomes", mapping)
    if problems:
        return cohort, problems
    cohort = cohort.astype(dict.fromkeys(mapping.findings(), "Int8"))
    _write_reports(cohort, table, mapping, seed, templates)
    if "split" not in cells:
        cohort = split_patients(cohort, mapping.fractions, seed)
    elif not (cohort["split"] == "validate").any():
        cohort = carve_validation(cohort, VALIDATE_SHARE, seed)
    return cohort, []


def _translate_words(cells: pd.Series, kind: str, mapping: ColumnMapping) -> pd.Series:
    """Words of the table as values of the contract; unknown words stay as they are, empty cells become None."""
    words = mapping.words(kind)
    known = {cell: words.get(plain_word(cell), cell) for cell in cells.dropna().unique()}
    return cells.astype("object").map(known, na_action="ignore").where(cells.notna(), None)


def _write_reports(
    cohort: pd.DataFrame, table: pd.DataFrame, mapping: ColumnMapping, seed: int, templates: TemplateRules | None
) -> None:
    columns = mapping.report_columns()
    cohort["report"] = [
        "\n".join(
            # A column that is named like a section opens that section.
            f"{column.upper()}: {row[column]}" if column.lower() in _SECTIONS else row[column]
            for column in columns
            if not says_nothing(row[column])
        )
        for row in table[columns].fillna("").to_dict("records") or [{}] * len(table)
    ]
    cohort["report_origin"] = "written"
    if templates is not None or not columns:
        silent = cohort["report"] == ""
        labels = cohort.loc[silent, list(mapping.findings())].to_dict("records")
        rules = templates or TemplateRules(word_budget=mapping.word_budget)
        cohort.loc[silent, "report"] = [
            template_report(row, image_id, seed, rules)
            for row, image_id in zip(labels, cohort.loc[silent, "image_id"], strict=True)
        ]
        cohort.loc[silent, "report_origin"] = "template"
    cohort["report_origin"] = cohort["report_origin"].where(cohort["report"] != "", "none")


# --- problems ---------------------------------------------------------------------------------------------------------


def _find_id_problems(ids: Mapping[str, pd.Series], origin: str) -> list[str]:
    problems = []
    for name, cells in ids.items():
        told = " ({count} rows are; nan, unknown or -1 say no more): fill it in."
        problems += tell_first(cells.isna(), cells, origin, told)
        if name.startswith("image"):
            problems += _find_repeats(cells, "hold the same", origin)
        else:
            rounded = cells.map(is_rounded, na_action="ignore").eq(True)
            held = " holds a number that a spreadsheet has rounded, as in 1.2E+15"
            problems += tell_first(rounded, cells, origin, " ({count} rows do): save the identifiers as text.", held)
    return problems


def _find_repeats(keys: pd.Series, told: str, origin: str) -> list[str]:
    """One sentence about the first two rows of one key, none if no two have one."""
    repeated = keys.duplicated() & keys.notna()
    if not repeated.any():
        return []
    again = int(repeated.argmax())
    first = int((keys == keys.iloc[again]).argmax())
    return [
        f"{origin}: {name_place(keys.index, first)} and {name_place(keys.index, again)} {told} in column "
        f"{keys.name!r} ({keys[repeated].nunique()} images repeat): give each image one row."
    ]


def _tell_unused(table: pd.DataFrame, mapping: ColumnMapping) -> str:
    """Which columns nothing uses, and how those that look like a column of the contract would be."""
    used = {name for _, name in _list_asked(table, mapping)} | {"source", "report_origin"}
    unused = [name for name in table.columns if name not in used and not name.startswith("__")]
    if not unused:
        return ""
    guessed = guess_names(table.columns).items()
    add = ", ".join(f"{name}: {own}" for name, own in guessed if own in unused and name not in mapping.columns)
    verb = "is" if len(unused) == 1 else "are"
    return f"{', '.join(unused)} {verb} not used{f': add {add}' if add else ''}."
