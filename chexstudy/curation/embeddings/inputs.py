"""Embeddings, ids and signals that a user brings: read without a copy, checked in blocks of rows, normalised once.

An embedding file is mapped, not loaded, so that what it takes of memory is one block. Every complaint is one sentence
that names the file, how many rows are at fault and the first of them, by its number: ids may name patients.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.devices import memory_of
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import normalise_ids, show_id
from chexstudy.inputs.tables import list_columns, name_place, read_typed_table
from chexstudy.progress import progress

# 4,096 rows of 1,024 numbers are 32 MiB in float64.
_BLOCK_NUMBERS = 2**22
_SAME = 1e-6


def read_columns(path: Path, needed: Sequence[str], optional: Sequence[str] | None = ()) -> pd.DataFrame:
    """Columns of a CSV or Parquet table: those needed, and those of the optional that are there; None reads all."""
    table = read_typed_table(path, None if optional is None else [*needed, *optional])
    missing = [name for name in needed if name not in table]
    if missing:
        there = list_columns(path)
        raise StudyError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(there) or 'none'}.")
    return table


def read_image_ids(path: Path) -> np.ndarray:
    """The ids of the rows of an embedding file ``(rows,)``, texts or whole numbers, from the column ``image_id``."""
    ids, name = read_columns(path, ["image_id"])["image_id"], str(path)
    places, ids = ids.index, ids.reset_index(drop=True)
    if not len(ids):
        raise StudyError(f"{name} holds no rows: give one image_id for each embedding.")
    if isinstance(ids.dtype, pd.CategoricalDtype):
        ids = ids.astype(ids.cat.categories.dtype)
    same = normalise_ids(ids)
    empty = same.isna()
    if empty.any():
        place = name_place(places, int(empty.argmax()))
        raise StudyError(f"{name} has no image_id in {_count(empty.sum(), 'row')}, the first is {place}.")
    kind = pd.api.types.infer_dtype(ids)
    if kind not in ("string", "integer"):
        raise StudyError(f"{name} holds image_id of kind {kind}: they must be texts or whole numbers.")
    _refuse_repeats(same, places, name)
    return same.to_numpy(dtype=object) if kind == "string" else ids.to_numpy()


def _refuse_repeats(ids: pd.Series, places: pd.Index, name: str) -> None:
    twice = ids.duplicated().to_numpy()
    if twice.any():
        again = int(twice.argmax())
        first = int((ids == ids.iloc[again]).to_numpy().argmax())
        raise StudyError(
            f"{name} holds {_count(twice.sum(), 'image_id')} more than once, the first in {name_place(places, first)} "
            f"and {name_place(places, again)}."
        )


def read_matching_table(
    path: Path, image_ids: np.ndarray, needed: Sequence[str] = (), optional: Sequence[str] | None = ()
) -> pd.DataFrame:
    """Rows of a table in the order of ``image_ids`` ``(rows,)``; rows of other images are left out.

    It has a column ``image_id``, and those of `read_columns`.
    """
    table = read_columns(path, ["image_id", *needed], optional)
    ids, wanted = normalise_ids(table.image_id), normalise_ids(pd.Series(image_ids))
    _refuse_repeats(ids, table.index, str(path))
    places = pd.Index(ids).get_indexer(wanted)
    absent = places < 0
    if absent.any():
        raise StudyError(
            f"{path} has no row for {absent.sum():,} of the {len(image_ids):,} embedded images, the first is that of "
            f"row {absent.argmax()}: its ids are written as {show_id(ids.dropna())}, the embeddings' as "
            f"{show_id(wanted[absent])}."
        )
    return table.iloc[places].reset_index(drop=True)


def read_losses(path: Path, image_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Losses ``(rows,)`` in the order of ``image_ids``: of ``loss`` and, if there is one, of ``reference_loss``."""
    table = read_matching_table(path, image_ids, ["loss"], ["reference_loss"])
    losses = {name: table[name] for name in ("loss", "reference_loss") if name in table}
    return {name: _read_numbers(column, f"column {name!r} of {path}") for name, column in losses.items()}


def _read_numbers(column: pd.Series, name: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        raise StudyError(f"{name} holds {column.dtype}, not numbers.")
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isfinite(numbers)
    if bad.any():
        raise StudyError(f"{name} has no finite number in {_count(bad.sum(), 'row')}, the first is row {bad.argmax()}.")
    return numbers


def open_embeddings(path: Path) -> np.ndarray:
    """Map a ``.npy`` file of embeddings, ``(rows, dim)`` of float16, float32 or float64."""
    if not path.is_file():
        raise StudyError(f"there is no file at {path}.")
    with open(path, "rb") as handle:
        try:
            version = np.lib.format.read_magic(handle)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(handle)
        except ValueError:
            raise StudyError(f"{path} is not an .npy file: write it with numpy.save.") from None
        start = handle.tell()
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        held = "objects" if dtype.hasobject else "texts" if dtype.kind in "US" else f"{dtype.name} values"
        raise StudyError(f"{path} holds {held}: embeddings must be float16, float32 or float64.")
    if len(shape) != 2 or min(shape) < 1:
        what = "has the shape" if len(shape) != 2 else "is empty, its shape is"
        raise StudyError(f"{path} {what} {shape}: embeddings are one row an image, (rows, dim).")
    whole = start + shape[0] * shape[1] * dtype.itemsize
    size = path.stat().st_size
    if size < whole:
        raise StudyError(f"{path} is cut short: it has {size:,} of {whole:,} bytes, so write or copy it again.")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def require_same_rows(paths: Mapping[str, Path], sides: Mapping[str, np.ndarray], other: Path, rows: int) -> None:
    """Raise a StudyError unless all sides have as many rows as another file."""
    for side, path in paths.items():
        if len(sides[side]) != rows:
            counts = [_count(number, "row") for number in (len(sides[side]), rows)]
            same = "they must hold the same images in the same order"
            raise StudyError(f"{path} has {counts[0]} and {other} {counts[1]}: {same}.")


def require_one_space(who: str, sides: Mapping[str, np.ndarray], paths: Mapping[str, Path]) -> None:
    """Raise a StudyError unless image and text embeddings are of one width."""
    if sides["image"].shape[1] != sides["text"].shape[1]:
        widths = [f"{paths[side]} {has}{sides[side].shape[1]:,}" for side, has in (("image", "has "), ("text", ""))]
        raise StudyError(
            f"{who} compares image and text, but {widths[0]} numbers a row and {widths[1]}: give embeddings of one "
            "joint space."
        )


def normalise_rows(embeddings: np.ndarray, name: str, out: np.ndarray, length: float = 1.0) -> None:
    """Write every row, scaled to Euclidean ``length``, into ``out`` float32, and refuse rows without a direction.

    Works in blocks of rows, in float64 and after division by the row's largest number, so that neither very large nor
    very small numbers overflow or vanish.
    """
    bad, zero = np.zeros(len(embeddings), bool), np.zeros(len(embeddings), bool)
    first, varied = None, False
    step = max(1, _BLOCK_NUMBERS // embeddings.shape[1])
    for start in progress(range(0, len(embeddings), step), label=f"reading {Path(name).name}"):
        rows = slice(start, start + step)
        block = np.array(embeddings[rows], dtype=np.float64)
        largest = np.maximum(block.max(axis=1), -block.min(axis=1))
        bad[rows], zero[rows] = ~np.isfinite(largest), largest == 0
        usable = ~(bad[rows] | zero[rows])
        block[~usable] = 0
        block /= np.where(usable, largest, 1)[:, None]
        norms = np.sqrt(np.einsum("ij,ij->i", block, block))
        block *= (length / np.where(usable, norms, 1))[:, None]
        out[rows] = block
        if not varied and usable.any():
            first = block[usable.argmax()].copy() if first is None else first
            varied = bool(np.abs(block[usable] - first).max() > _SAME * length)
    for rows, what in ((bad, "NaN or infinite values"), (zero, "nothing but zeros")):
        if rows.any():
            raise StudyError(
                f"{name} holds {what} in {_count(rows.sum(), 'row')}, the first is row "
                f"{rows.argmax()}: embed these images again, or leave them out."
            )
    if not varied and len(embeddings) > 1:
        raise StudyError(
            f"all {len(embeddings):,} rows of {name} have the same direction: there is nothing to choose by."
        )


def allocate_features(rows: int, dim: int, folder: Path) -> np.ndarray:
    """An array ``(rows, dim)``, float32, to write features to: in memory, or on disk where it is too large for that.

    The file in ``folder`` has no name and is gone with the array.
    """
    size = rows * dim * 4
    if size <= _largest_in_memory():
        return np.empty((rows, dim), np.float32)
    # Looked at beforehand: a mapped file that finds the disk full takes the whole process down.
    if shutil.disk_usage(folder).free < size:
        raise StudyError(f"the features need {size / 1e9:.1f} GB in {folder} meanwhile: free some space there.")
    with tempfile.TemporaryFile(dir=folder) as scratch:
        scratch.truncate(size)
        return np.memmap(scratch, np.float32, "r+", shape=(rows, dim))


def _largest_in_memory() -> int:
    """Features of more bytes than this go to disk: methods need room for work of their own beside them."""
    return memory_of("cpu") // 4


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
