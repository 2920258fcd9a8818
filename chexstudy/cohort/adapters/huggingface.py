"""Hugging Face ``datasets``: a folder saved by ``save_to_disk``, or a folder of parquet files with an image column.

A set that was downloaded from the Hub (``hf download --repo-type dataset NAME --local-dir FOLDER``) is such a folder.
Nothing is downloaded here, and files that cells point to are read only if they lie in the folder. Images are unpacked
once into the study, their bytes as they are. An image without a name of its own is called by the hash of its bytes.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow
from pyarrow import parquet

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
from chexstudy.cohort.interchange.formats import tell_image_kind
from chexstudy.errors import StudyError

NAME = "huggingface"
_HOLDING = "a dataset saved by datasets.save_to_disk, or parquet files with images"
SAVED_MARKS = ("dataset_dict.json", "state.json")
SHARD_NAME = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_IMAGE_NAMES = ("image", "img", "jpg", "png", "pixel_values", "image_bytes")
_ROWS_AT_ONCE = 64
_ROWS_A_PART = 1000
_HASH_DIGITS = 24
_MISSING = "missing"


def build_huggingface(
    data_root: str | Path,
    seed: int,
    *,
    unpack_to: str | Path,
    source: str | None = None,
    columns: Mapping[str, object] | None = None,
    values: Mapping[str, Mapping] | None = None,
    fractions: Mapping[str, float] | None = None,
    word_budget: int | None = None,
) -> pd.DataFrame:
    """The cohort of a dataset folder.

    Without a column named split, the names of the dataset's splits tell it; where all are ``train``, patients are split
    70/10/20. Cells of class labels count as the names of their classes.

    Args:
        data_root: the folder.
        seed: seed of the split and of template reports.
        unpack_to: the folder in which images are unpacked, each dataset in the same place.
        source, columns, values, fractions, word_budget: as for `chexstudy.cohort.adapters.folder.build_folder`, on top
            of ``cohort.yaml`` in the folder and of what the names of columns tell; ``image_path`` is the image column.
            Nested columns are ``labels.Mass``.
    """
    folder = require_folder(data_root, _HOLDING)
    given = {"source": source, "columns": columns, "values": values, "fractions": fractions, "word_budget": word_budget}
    mapping = read_mapping(folder, given)
    chosen = str((mapping.get("columns") or {}).get("image_path") or "")
    saved = any((folder / mark).is_file() for mark in SAVED_MARKS)
    parts = _list_saved(folder, chosen) if saved else _list_parquet(folder, chosen)
    rows = unpack_parts(parts, Path(unpack_to) / NAME, Path(__file__), chosen)
    rows[KEY] = _number_repeats(rows[KEY])
    return build_from_rows(rows, Path(unpack_to), NAME, seed, mapping)


# --- finding ----------------------------------------------------------------------------------------------------------


def _list_parquet(folder: Path, chosen: str) -> list[Part]:
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise StudyError(f"{folder} holds no parquet files: set data_root to the folder that holds {_HOLDING}.")
    parts = []
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        read = partial(_read_parquet, file, folder, chosen)
        parts.append(Part(name, (file,), partial(_read_samples, file.name, read, folder), _tell_split(file, folder)))
    return parts


def _tell_split(file: Path, folder: Path) -> str | None:
    named = SHARD_NAME.fullmatch(file.stem)
    if named:
        # That is how the library itself names the files of a split: a word that is none is worth a complaint.
        return tell_split([named["split"]]) or named["split"]
    return tell_split([file.stem, *reversed(file.relative_to(folder).parts[:-1])])


def _list_saved(folder: Path, chosen: str) -> list[Part]:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise StudyError(
            "a dataset saved by save_to_disk needs the library datasets: run `pip install 'chexstudy[interchange]'`."
        ) from None
    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:
        # The library raises nearly anything on files that are missing or damaged.
        raise StudyError(
            f"the dataset in {folder} cannot be loaded ({type(error).__name__}): save or fetch it again."
        ) from None
    splits = loaded if isinstance(loaded, DatasetDict) else {"": loaded}
    parts = []
    for split, dataset in splits.items():
        files = tuple(Path(file["filename"]) for file in dataset.cache_files)
        column = _choose_image_column(dataset.features.arrow_schema, chosen, split or folder.name)
        for start in range(0, len(dataset), _ROWS_A_PART):
            read = partial(_slice_saved, dataset, column, start)
            name = f"{split or 'dataset'}/{start:08d}"
            named = (tell_split([split]) or split) if split else None
            parts.append(Part(name, files, partial(_read_samples, folder.name, read, folder), named))
    if not parts:
        raise StudyError(f"the dataset in {folder} has no rows.")
    return parts


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
    is_bytes = pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type)
    return is_bytes and field.name.lower() in _IMAGE_NAMES


def _read_features(schema: pyarrow.Schema) -> dict[str, dict]:
    """What the library wrote down of the columns; nothing if another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


# --- reading ----------------------------------------------------------------------------------------------------------

_Table = tuple[str, pyarrow.Table]


def _read_parquet(file: Path, folder: Path, chosen: str) -> Iterator[_Table]:
    opened = parquet.ParquetFile(file)
    column = _choose_image_column(opened.schema_arrow, chosen, file.relative_to(folder).as_posix())
    for batch in opened.iter_batches(_ROWS_AT_ONCE):
        yield column, pyarrow.Table.from_batches([batch], opened.schema_arrow)


def _slice_saved(dataset, column: str, start: int) -> Iterator[_Table]:
    arrow = dataset.with_format("arrow")
    for first in range(start, min(start + _ROWS_A_PART, len(dataset)), _ROWS_AT_ONCE):
        yield column, arrow[first : min(first + _ROWS_AT_ONCE, start + _ROWS_A_PART)]


def _read_samples(where: str, read: Callable[[], Iterable[_Table]], folder: Path) -> Iterator[Sample]:
    number = 0
    try:
        for column, table in read():
            classes = {
                name: feature["names"]
                for name, feature in _read_features(table.schema).items()
                if feature.get("_type") == "ClassLabel" and feature.get("names")
            }
            for row in table.to_pylist():
                image, name = _read_image(row.pop(column), folder)
                for label, names in classes.items():
                    row[label] = _name_class(row[label], names)
                key = name or (hashlib.sha256(image).hexdigest()[:_HASH_DIGITS] if image is not None else _MISSING)
                kind = tell_image_kind(image) if image is not None else _MISSING
                yield Sample(f"{number:06d}.{kind}", image, row, key)
                number += 1
    except (pyarrow.ArrowException, OSError):
        after = f" after {number} rows" if number else ""
        raise StudyError(f"the dataset file {where} is damaged or cut short{after}: fetch it again.") from None


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


def _name_class(cell: object, names: list[str]) -> object:
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None


def _number_repeats(keys: pd.Series) -> pd.Series:
    """Keys made unique: those that repeat get the number of the repetition."""
    repetition = keys.groupby(keys).cumcount()
    return keys.where(repetition == 0, keys + "-" + repetition.astype("str"))
