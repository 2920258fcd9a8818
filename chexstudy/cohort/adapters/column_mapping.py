"""What the columns of a user's table mean, from ``cohort.yaml`` or from options: checked entry by entry.

In the file every value is the text that was written: a column may be called ``No``, ``on`` or ``2024``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from chexstudy.cohort.splits import DEFAULT_FRACTIONS, check_fractions
from chexstudy.cohort.table import OUTCOME_PREFIX
from chexstudy.errors import StudyError, suggest
from chexstudy.inputs.identifiers import clean_text
from chexstudy.inputs.yaml_files import read_data_beside, read_yaml

MAPPING_FILE = "cohort.yaml"
NO_PATIENTS = "none"
EACH_ANOTHER = (
    f"if every image is of another patient, say 'patient_id: {NO_PATIENTS}' "
    "(images of one patient in two splits would make results too good)"
)

REQUIRED = ("image_path", "patient_id")
SINGLE = (*REQUIRED, "image_id", "study_id", "split", "view", "sex", "age_years")
MAPPED = (*SINGLE, "report", "findings", "outcomes")
_DATA = read_data_beside(__file__)
_NAMES = _DATA["names"]
# Kind of word -> word as tables write it, in lower case -> value of the contract.
WORDS = {
    kind: {word: value for value, words in values.items() for word in words} for kind, values in _DATA["words"].items()
}
_NOTHING = ("", "null", "~", "none")

# What an empty cell means.
UNSAID = {"split": None, "view": "unknown", "sex": "unknown", "labels": None, "outcomes": None}


@dataclass(frozen=True)
class ColumnMapping:
    """A mapping of columns, every entry of the type it must have."""

    table: str | None = None  # name of the table in the folder; None to look for it
    images: str = ""  # where the paths in the table start
    source: str = "folder"  # first part of every id
    columns: Mapping = field(default_factory=dict)  # contract column -> column of the table, or several
    # kind of word (`WORDS`) -> word of the table -> value of the contract
    values: Mapping = field(default_factory=dict)
    fractions: Mapping = field(default_factory=lambda: dict(DEFAULT_FRACTIONS))  # split -> share of patients
    word_budget: int | None = None  # of template reports

    def findings(self) -> dict[str, str]:
        """Finding -> column of the table."""
        return _as_pairs(self.columns.get("findings", ()))

    def outcomes(self, table: pd.DataFrame) -> dict[str, str]:
        """Outcome column of the contract -> column of the table."""
        pairs = _as_pairs(self.columns.get("outcomes", ()))
        mapped = {f"{OUTCOME_PREFIX}{name}": column for name, column in pairs.items()}
        return {name: name for name in table.columns if name.startswith(OUTCOME_PREFIX)} | mapped

    def report_columns(self) -> list[str]:
        """The columns that are joined to the report."""
        report = self.columns.get("report", ())
        return [report] if isinstance(report, str) else list(report)

    def single_columns(self) -> dict[str, str]:
        """Contract column -> column of the table, for those that are one column each."""
        single = {name: self.columns[name] for name in SINGLE if name in self.columns}
        if single.get("patient_id", "").lower() == NO_PATIENTS:
            del single["patient_id"]
        return single

    def words(self, kind: str) -> dict[str, object]:
        """Word of the table, as `plain_word` has it -> value of the contract."""
        return WORDS[kind] | self.values.get(kind, {})


def plain_word(word: object) -> str:
    """Lower case without blanks; ``1.0`` and ``1`` are the same word."""
    text = str(word).strip().lower()
    return text.removesuffix(".0") if text.lstrip("-").replace(".", "", 1).isdigit() else text


def guess_names(columns: Iterable[str]) -> dict[str, str]:
    """Contract column -> the column that is called like it."""
    by_name = name_plainly(columns)
    found = {column: next((name for name in names if name in by_name), None) for column, names in _NAMES.items()}
    return {column: by_name[name] for column, name in found.items() if name}


def name_plainly(columns: Iterable[str]) -> dict[str, str]:
    """Name in lower case without blanks, hyphens and underscores -> the first column called so."""
    own = (column for column in reversed(list(columns)) if not column.startswith("__"))
    return {re.sub(r"[\s_-]+", "", column.lower()): column for column in own}


def read_mapping_file(path: Path) -> dict:
    """The mapping that lies in a folder."""
    mapping = read_yaml(path, "the mapping", words=True)
    if not isinstance(mapping, dict) or "columns" not in mapping:
        raise StudyError(f"{path} is not a mapping with an entry 'columns': see `chexstudy cohort build --help`.")
    return mapping


def check_mapping(options: Mapping[str, object]) -> ColumnMapping:
    """Options, or what `read_mapping_file` gives, as a mapping whose entries are what they must be."""
    refuse_unknown(options, ColumnMapping.__dataclass_fields__, "the mapping")
    given = dict(options)
    for name in given.keys() & {"table", "images", "source"}:
        given[name] = _require_text(name, given[name])
    if "/" in given.get("source", ""):
        raise StudyError("the mapping's entry 'source' is the first part of every image_id: write it without a '/'.")
    for name in given.keys() & _READERS.keys():
        given[name] = {own: _READERS[name](own, value) for own, value in _require_pairs(name, given[name]).items()}
    if "fractions" in given:
        check_fractions(given["fractions"])
    if "word_budget" in given:
        budget = _read_number("word_budget", given["word_budget"])
        if budget < 1 or budget != int(budget):
            raise StudyError("the mapping's entry 'word_budget' must be a whole number of words, 1 or more.")
        given["word_budget"] = int(budget)
    return ColumnMapping(**given)


def refuse_unknown(entries: Iterable[object], known: Iterable[str], what: str) -> None:
    """Raise a StudyError unless all entries of a file are known ones."""
    unknown = [str(name) for name in entries if name not in known]
    if unknown:
        guess = suggest(unknown[0], known, f"its entries are {', '.join(known)}", cutoff=0.7)
        raise StudyError(f"{what} has no entry {unknown[0]!r}: {guess}.")


def _as_pairs(columns: object) -> dict[str, str]:
    """Own name -> column of the table, of pairs or of names that are the same in both."""
    if isinstance(columns, Mapping):
        return dict(columns)
    return {name: name for name in ([columns] if isinstance(columns, str) else columns)}


def _require_text(entry: str, value: object) -> str:
    if isinstance(value, str) and clean_text(value):
        return clean_text(value)
    if value is None or isinstance(value, str):
        raise StudyError(f"the mapping's entry {entry!r} is empty: give it a text, or take the entry out.")
    kind = {bool: "a truth value", int: "a number", float: "a number", list: "a list"}.get(type(value), "pairs")
    raise StudyError(f"the mapping's entry {entry!r} must be a text, not {kind}: put it in quotes.")


def _require_pairs(entry: str, value: object) -> Mapping:
    if not isinstance(value, Mapping):
        raise StudyError(f"the mapping's entry {entry!r} must be pairs of 'name: value'.")
    return value


def _read_column(name: str, value: object) -> object:
    """The column or columns of the table that hold a column of the contract."""
    entry = f"columns: {name}"
    if name == "patient_id" and not (isinstance(value, str) and value.strip()):
        raise StudyError(f"the mapping's entry {entry!r} names no column: name one; {EACH_ANOTHER}.")
    if name in MAPPED and name not in SINGLE and isinstance(value, list | tuple | Mapping):
        if not value:
            raise StudyError(f"the mapping's entry {entry!r} is empty: name a column, or take the entry out.")
        if not isinstance(value, Mapping):
            return [_require_text(entry, one) for one in value]
        if name != "report":
            return {_require_text(entry, own): _require_text(f"{entry}: {own}", one) for own, one in value.items()}
    return _require_text(entry, value)


def _read_values(kind: str, words: object) -> dict[str, object]:
    if kind not in WORDS:
        raise StudyError(f"the mapping cannot translate values of {kind!r}: it can those of {', '.join(WORDS)}.")
    allowed = {plain_word(value): value for value in WORDS[kind].values()}
    choice = ", ".join(map(str, allowed.values()))
    if kind != "split":
        allowed |= dict.fromkeys(_NOTHING, UNSAID[kind])
        choice += " or null"
    translated = {}
    for word, value in _require_pairs(kind, words).items():
        meant = "" if value is None else plain_word(value)
        if meant not in allowed:
            raise StudyError(f"the mapping's entry 'values: {kind}: {word}' is none of {choice}: choose one.")
        translated[plain_word(word)] = allowed[meant]
    return translated


def _read_number(entry: str, value: object) -> float:
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise StudyError(f"the mapping's entry {entry!r} must be a number.")


_READERS = {
    "columns": _read_column,
    "values": _read_values,
    "fractions": lambda split, share: _read_number(f"fractions: {split}", share),
}
