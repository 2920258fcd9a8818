"""Hugging Face ``datasets``: a folder saved by ``save_to_disk``, or a folder of parquet files with an image column.

``hf download --repo-type dataset NAME --local-dir FOLDER`` makes such a folder. Nothing is downloaded here, and files
that cells point to are read only within the folder. An image without a name is called by the hash of its bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow
from pyarrow import ipc, parquet

from chexstudy.cohort.adapters.layout import require_folder
from chexstudy.cohort.adapters.unpacking import (
    KEY,
    Part,
    Sample,
    build_from_rows,
    read_mapping,
    tell_split,
    unpack_parts,
)
from chexstudy.cohort.images.decode import tell_picture_kind
from chexstudy.errors import StudyError

NAME = "huggingface"
_HOLDING = "a dataset saved by datasets.save_to_disk, or parquet files with images"
SAVED_MARKS = ("dataset_dict.json", "state.json")
SHARD_NAME = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_IMAGE_NAMES = ("image", "img", "jpg", "png", "pixel_values", "image_bytes")
_ROWS_AT_ONCE = 64
_HASH_DIGITS = 24
_MISSING = "missing"


def build_huggingface(data_root: str | Path, seed: int, unpack_to: str | Path, **options) -> pd.DataFrame:
    """The cohort of a dataset folder; patients are split here where all its splits are called train."""
    folder = require_folder(data_root, _HOLDING)
    mapping = read_mapping(folder, options)
    chosen = str((mapping.get("columns") or {}).get("image_path") or "")
    parts = [_make_part(file, folder, chosen) for file in _list_files(folder)]
    rows = unpack_parts(parts, Path(unpack_to) / NAME, Path(__file__), chosen)
    # Keys that repeat get the number of the repetition.
    repetition = rows.groupby(KEY).cumcount()
    rows[KEY] = rows[KEY].where(repetition == 0, rows[KEY] + "-" + repetition.astype("str"))
    return build_from_rows(rows, Path(unpack_to), NAME, seed, mapping)


def _list_files(folder: Path) -> list[Path]:
    """Arrow files in the order in which the records of ``save_to_disk`` name them, or else all parquet files."""
    splits, saved = (folder / mark for mark in SAVED_MARKS)
    if not splits.is_file() and not saved.is_file():
        files = sorted(path for path in folder.rglob("*.parquet") if path.is_file() and not path.name.startswith("."))
        if not files:
            raise StudyError(f"{folder} holds no parquet files: set data_root to the folder that holds {_HOLDING}.")
        return files
    try:
        names = json.loads(splits.read_bytes())["splits"] if splits.is_file() else [""]
        return [
            folder / split / Path(part["filename"]).name
            for split in names
            for part in json.loads((folder / split / saved.name).read_bytes())["_data_files"]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StudyError(
            f"the dataset in {folder} cannot be loaded ({type(error).__name__}): save or fetch it again."
        ) from None


def _make_part(file: Path, folder: Path, chosen: str) -> Part:
    name = file.relative_to(folder).with_suffix("").as_posix()
    if not file.is_file():
        raise StudyError(f"the dataset in {folder} lacks {file.name}, which its own record names: fetch it again.")
    return Part(name, file, partial(_read_samples, file, folder, chosen), _tell_split(file, folder))


def _tell_split(file: Path, folder: Path) -> str | None:
    if file.suffix == ".arrow":
        return None if file.parent == folder else tell_split([file.parent.name]) or file.parent.name
    named = SHARD_NAME.fullmatch(file.stem)
    if named:
        # That is how the library itself names the files of a split: a word that is none is worth a complaint.
        return tell_split([named["split"]]) or named["split"]
    return tell_split([file.stem, *reversed(file.relative_to(folder).parts[:-1])])


def _choose_image_column(schema: pyarrow.Schema, chosen: str, where: str) -> str:
    has = f"it has {', '.join(map(repr, schema.names))}"
    if chosen:
        if chosen not in schema.names:
            raise StudyError(f"{where} has no column {chosen!r} for image_path; {has}.")
        return chosen
    declared = [name for name, feature in _read_features(schema).items() if feature.get("_type") == "Image"]
    found = declared or [field.name for field in schema if _may_hold_images(field)]
    if len(found) != 1:
        problem = f"several image columns ({', '.join(found)})" if found else "no image column"
        raise StudyError(
            f"{where} has {problem}: say which holds the images by 'columns: {{image_path: NAME}}'; {has}."
        )
    return found[0]


def _may_hold_images(field: pyarrow.Field) -> bool:
    if pyarrow.types.is_struct(field.type):
        return "bytes" in {child.name for child in field.type}
    return field.type in (pyarrow.binary(), pyarrow.large_binary()) and field.name.lower() in _IMAGE_NAMES


def _read_features(schema: pyarrow.Schema) -> dict[str, dict]:
    """What the library wrote down of the columns; nothing if another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _read_batches(file: Path) -> Iterator[pyarrow.Table]:
    if file.suffix == ".parquet":
        opened = parquet.ParquetFile(file)
        schema, batches = opened.schema_arrow, opened.iter_batches(_ROWS_AT_ONCE)
    else:
        batches = ipc.open_stream(pyarrow.memory_map(str(file)))
        schema = batches.schema
    for batch in batches:
        for start in range(0, len(batch), _ROWS_AT_ONCE):
            yield pyarrow.Table.from_batches([batch.slice(start, _ROWS_AT_ONCE)], schema)


def _read_samples(file: Path, folder: Path, chosen: str) -> Iterator[Sample]:
    number = 0
    try:
        for table in _read_batches(file):
            column = _choose_image_column(table.schema, chosen, file.relative_to(folder).as_posix())
            classes = {
                name: feature["names"]
                for name, feature in _read_features(table.schema).items()
                if feature.get("_type") == "ClassLabel" and feature.get("names")
            }
            for row in table.to_pylist():
                image, name = _read_image(row.pop(column), folder)
                for label, names in classes.items():
                    one = row[label]
                    row[label] = names[one] if isinstance(one, int) and 0 <= one < len(names) else None
                key = name or (hashlib.sha256(image).hexdigest()[:_HASH_DIGITS] if image is not None else _MISSING)
                kind = tell_picture_kind(image) or "dcm" if image is not None else _MISSING
                yield Sample(f"{number:06d}.{kind}", image, row, key)
                number += 1
    except (pyarrow.ArrowException, OSError):
        after = f" after {number} rows" if number else ""
        raise StudyError(f"the dataset file {file.name} is damaged or cut short{after}: fetch it again.") from None


def _read_image(cell: object, folder: Path) -> tuple[bytes | None, str]:
    """The bytes of an image cell, or None if they are nowhere to be had, and the name it goes by."""
    if not isinstance(cell, Mapping):
        return (cell if isinstance(cell, bytes) else None), ""
    path, image = str(cell.get("path") or ""), cell.get("bytes")
    if image is None and path:
        file = (folder / path).resolve()
        if file.is_relative_to(folder) and file.is_file():
            image = file.read_bytes()
    return image, re.split(r"[/\\]", path)[-1]
