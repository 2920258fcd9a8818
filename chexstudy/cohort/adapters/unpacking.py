"""What the packed sources share: images unpacked once into the study, and fields made a table for a folder's rules.

A part (a tar shard, a parquet file) is unpacked when its table is in place; a killed build goes on at the next one.
What the fields mean is said as for a folder (see `chexstudy.cohort.adapters.folder`), or guessed by name, but never
that every image is of another patient: ``patient_id: none`` says so.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow
from pyarrow import parquet

from chexstudy.cohort.adapters.column_mapping import (
    MAPPING_FILE,
    WORDS,
    guess_names,
    name_plainly,
    read_mapping_file,
    refuse_unknown,
)
from chexstudy.cohort.adapters.folder import check_folder
from chexstudy.cohort.table import REPORT_ORIGINS
from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.runs import atomic_path, hash_file, hash_values

IMAGE_FILE = "__image__"  # where the image lies, from the source's own folder
KEY = "__key__"  # what the archive calls the sample
PART_SPLIT = "__split__"  # the split that the name of the part tells
LISTS = "__lists__"  # which fields are lists or bytes, separated by line ends
_BYTES = "__bytes__"
_FINGERPRINT = b"fingerprint"
# Said by the archive's layout alone: a field of that name would speak for it, and name any file as the image.
_RESERVED = (IMAGE_FILE, KEY, PART_SPLIT, LISTS, _BYTES)
_DEEPEST = 50
_MOST_FIELDS = 10_000
_LABELS = "labels."
_SEVERAL = (list, tuple, set, bytes)

_REPORTS = (("report",), ("findings", "impression"), ("findings",), ("impression",), ("text",), ("txt",), ("caption",))
_MAPPING = ("source", "columns", "values", "fractions", "word_budget")


@dataclass(frozen=True)
class Sample:
    """One image of a part."""

    name: str  # where its file goes within the part's folder; plain names joined by slashes
    image: bytes | None  # the bytes of the file, or None if the archive holds none
    fields: Mapping[str, object]  # what is said of it, nested as it may be
    key: str = ""  # what the archive calls it; empty if it does not


@dataclass(frozen=True)
class Part:
    """What is unpacked at once."""

    name: str  # its folder, relative to where the archive is unpacked; no other part's
    file: Path  # what it is read from; another size or time means that it must be read again
    read: Callable[[], Iterable[Sample]]  # yields its samples; raises a StudyError if it is damaged
    split: str | None = None  # the split that its name tells, if it does


def read_mapping(folder: Path, given: Mapping[str, object]) -> dict[str, object]:
    """What ``cohort.yaml`` in the archive's folder says, under what is given as options."""
    path = folder / MAPPING_FILE
    mapping = read_mapping_file(path) if path.is_file() else {}
    mapping |= {name: value for name, value in given.items() if value is not None}
    refuse_unknown(mapping, _MAPPING, "the mapping of an archive")
    if not isinstance(mapping.get("columns", {}), Mapping):
        raise StudyError("the mapping's entry 'columns' must be pairs of 'name: value'.")
    return mapping


def tell_split(words: Iterable[str]) -> str | None:
    """The first of the words that names a split, in the contract's wording."""
    return next((WORDS["split"][word.lower()] for word in words if word.lower() in WORDS["split"]), None)


def unpack_parts(parts: list[Part], folder: Path, reader: Path, choices: object) -> pd.DataFrame:
    """Unpack what is not unpacked yet; return the fields of all samples, one row an image, everything as text.

    Parts that are no longer there are removed, those of another version of their module ``reader`` or of other
    ``choices`` unpacked again. Columns are ``__image__`` (a path from ``folder``), ``__key__``, ``__split__``,
    ``__lists__`` and the fields, nested ones joined by dots; a field that is a list is empty.
    """
    code = [hash_file(path) for path in (Path(__file__), reader)]
    _remove_others({part.name for part in parts}, folder)
    tables = []
    for part in progress(parts, len(parts), "unpacking images"):
        status, table = part.file.stat(), _table_of(part.name, folder)
        fingerprint = hash_values(str(part.file), status.st_size, status.st_mtime_ns, code, choices, part.split)
        if not _is_unpacked(table, folder, fingerprint):
            _unpack(part, folder, fingerprint)
        tables.append(pd.read_parquet(table))
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if rows.empty:
        raise StudyError(f"there is no image in {', '.join(part.file.name for part in parts[:3])}: check data_root.")
    return rows.drop(columns=_BYTES)


def _unpack(part: Part, folder: Path, fingerprint: str) -> None:
    place = folder / part.name
    # Every refusal of the disk inside comes out as one sentence, and only the table makes the images count.
    with atomic_path(_table_of(part.name, folder)) as temporary:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        rows = [_store(sample, part, place, number) for number, sample in enumerate(part.read(), start=1)]
        table = pyarrow.Table.from_pandas(_as_text_table(rows), preserve_index=False)
        kept = {**(table.schema.metadata or {}), _FINGERPRINT: fingerprint.encode()}
        parquet.write_table(table.replace_schema_metadata(kept), temporary)


def _store(sample: Sample, part: Part, place: Path, number: int) -> dict[str, object]:
    path, fields = place / sample.name, _flatten(sample.fields)
    reserved = [name for name in _RESERVED if name in fields]
    if reserved:
        raise StudyError(
            f"sample {number} of {part.name} has a field {reserved[0]!r}, which only the archive itself may tell: take "
            "it out of the metadata."
        )
    if sample.image is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.image)
    return {
        IMAGE_FILE: f"{part.name}/{sample.name}",
        KEY: sample.key or None,
        PART_SPLIT: part.split,
        # An archive without the image is a row whose file is missing: it goes to quarantine with the others.
        _BYTES: -1 if sample.image is None else len(sample.image),
        LISTS: "\n".join(name for name, value in fields.items() if isinstance(value, _SEVERAL)) or None,
        **{name: None if isinstance(value, _SEVERAL) else value for name, value in fields.items()},
    }


def _as_text_table(rows: list[dict[str, object]]) -> pd.DataFrame:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if len(columns) > _MOST_FIELDS:
        raise StudyError(f"the samples have {len(columns):,} different fields, and may have {_MOST_FIELDS:,}.")
    # Half of a surrogate pair is JSON, but no text that can be written.
    texts = {
        name: [None if pd.isna(row.get(name)) else str(row[name]).encode(errors="replace").decode() for row in rows]
        for name in columns
    }
    return pd.DataFrame(texts, dtype="str")


def _flatten(fields: Mapping[str, object], before: str = "", depth: int = 1) -> dict[str, object]:
    """``{"labels": {"Mass": 1}}`` to ``{"labels.Mass": 1}``."""
    if depth > _DEEPEST:
        raise StudyError(f"the fields of a sample are nested more than {_DEEPEST} deep: write plain names and values.")
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{before}{name}.", depth + 1)
        else:
            flat[f"{before}{name}"] = value
    return flat


def _table_of(name: str, folder: Path) -> Path:
    return folder / f"{name}.parquet"


def _is_unpacked(path: Path, folder: Path, fingerprint: str) -> bool:
    try:
        if (parquet.read_schema(path).metadata or {}).get(_FINGERPRINT) != fingerprint.encode():
            return False
        table = parquet.read_table(path, columns=[IMAGE_FILE, _BYTES]).to_pydict()
        # Sizes are compared because a power cut can leave an image empty that was written before the table.
        images = zip(table[IMAGE_FILE], map(int, table[_BYTES]), strict=True)
        return all(size < 0 or (folder / image).stat().st_size == size for image, size in images)
    except (OSError, KeyError, pyarrow.ArrowException):
        return False


def _remove_others(names: set[str], folder: Path) -> None:
    """Remove the parts of an archive that was unpacked here before."""
    kept = {_table_of(name, folder) for name in names}
    for table in folder.rglob("*.parquet") if folder.is_dir() else ():
        place = table.with_suffix("")
        if table not in kept and place.is_dir():
            table.unlink()
            shutil.rmtree(place)


def build_from_rows(
    rows: pd.DataFrame, unpack_to: Path, name: str, seed: int, mapping: Mapping[str, object]
) -> pd.DataFrame:
    """The cohort of unpacked samples, by the rules of a folder with a table.

    Rows with a ``source`` and an ``image_id`` that begins with it, as of an exported cohort, keep both and the origin
    of reports, unless the mapping names a source. The table is written to ``unpack_to``; ``name`` is that of the source
    and its folder.
    """
    columns = _guess_columns(rows) | dict(mapping.get("columns") or {}) | {"image_path": IMAGE_FILE}
    # What is said to be nothing is not guessed; but patients must be named, or be said to be none by that word.
    columns = {name: column for name, column in columns.items() if column is not None or name == "patient_id"}
    _refuse_lists(rows, columns, name)
    table = f"{name}.parquet"
    with atomic_path(unpack_to / table) as temporary:
        rows.to_parquet(temporary, index=False)
    options = {"source": name, **mapping, "table": table, "images": name, "columns": columns}
    cohort = check_folder(unpack_to, seed, **options).require_cohort()
    if "source" in mapping or not {"source", "image_id"} <= set(rows.columns):
        return cohort
    source, images = rows["source"], rows["image_id"]
    if source.isna().any() or images.isna().any() or not all(map(str.startswith, images, source + "/")):
        return cohort
    for column in ("image_id", "patient_id", "study_id"):
        own = cohort[column].str.removeprefix(f"{name}/")
        cohort[column] = [
            identifier if identifier.startswith(f"{origin}/") else f"{origin}/{identifier}"
            for identifier, origin in zip(own, source, strict=True)
        ]
    cohort["source"] = source
    if "report_origin" in rows:
        known = rows["report_origin"].isin(REPORT_ORIGINS) & (cohort["report_origin"] == "written")
        cohort["report_origin"] = rows["report_origin"].where(known, cohort["report_origin"])
    return cohort


def _refuse_lists(rows: pd.DataFrame, columns: Mapping[str, object], name: str) -> None:
    lists = {field for fields in rows[LISTS].dropna().unique() for field in fields.split("\n")}
    for column in columns.values():
        used = column.values() if isinstance(column, Mapping) else [column] if isinstance(column, str) else column or ()
        wrong = next((field for field in used if field in lists), None)
        if wrong:
            raise StudyError(f"the field {wrong!r} of the {name} samples holds a list: write one value in each.")


def _guess_columns(rows: pd.DataFrame) -> dict[str, object]:
    """Contract column -> column of the rows, or columns, by their names."""
    guessed: dict[str, object] = dict(guess_names(rows.columns))
    by_name = name_plainly(rows.columns)
    reports = next((names for names in _REPORTS if all(name in by_name for name in names)), ())
    if reports:
        guessed["report"] = [by_name[name] for name in reports]
    findings = {column.removeprefix(_LABELS): column for column in rows.columns if column.startswith(_LABELS)}
    guessed |= {"findings": findings} if findings else {}
    if "image_id" not in guessed and rows[KEY].notna().all():
        guessed["image_id"] = KEY
    # Where everything is called train, as often in public sets, the name says nothing and patients are split here.
    if "split" not in guessed and rows[PART_SPLIT].notna().any() and set(rows[PART_SPLIT]) != {"train"}:
        guessed["split"] = PART_SPLIT
    return guessed
