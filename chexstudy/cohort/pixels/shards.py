"""The shards of a pixel store: plain ``.npy`` files of a fixed number of images, each with a record of how it went.

A shard is cut by position in the cohort, whoever writes it. Its record (``.parquet``, a row an image looked at) is
written after it, atomically: with one a shard is finished, without one it is made anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from chexstudy.arrays import write_header
from chexstudy.cohort.pixels.turning import mend_pixels
from chexstudy.cohort.quality import CheckedImage
from chexstudy.errors import StudyError
from chexstudy.runs import atomic_path, hash_file, hash_values

_OUTCOMES = ["reason", "detail", "sha256"]


class ShardedImages:
    """Images in one or more arrays, addressed as if they were one ``uint8 (images, size, size)``; read-only.

    ``rows`` are those to show, all if not given; those in ``turned`` (row of all -> kind, see
    `chexstudy.cohort.pixels.turning`) are given upright.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        turned: Mapping[int, str] = MappingProxyType({}),
        rows: np.ndarray | None = None,
    ):
        # Plain views of the mapped files: indexing a memmap itself costs a microsecond more, each time.
        self._shards = [np.asarray(shard) for shard in shards]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._turned, self._rows = dict(turned), rows
        self.shape = (int(self._ends[-1]) if rows is None else len(rows), *self._shards[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """A copy of one image ``(size, size)`` or of several ``(n, size, size)``; negative rows count from the end."""
        chosen = np.arange(len(self))[rows]
        return self.take(chosen) if chosen.ndim else self.take(chosen[None])[0]

    def take(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Images ``(n, size, size)`` in the order asked for, rows from 0, into ``out`` if given."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked of {len(self)} images")
        if self._rows is not None:
            rows = self._rows[rows]
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        numbers = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(rows, kind="stable")
        # Places count from the end of a shard: no list of beginnings is needed.
        places = rows - self._ends[numbers]
        for position, number, place in zip(order, numbers[order].tolist(), places[order].tolist(), strict=True):
            out[position] = self._shards[number][place]
        if self._turned:
            for position, row in enumerate(rows.tolist()):
                if row in self._turned:
                    out[position] = mend_pixels(out[position], self._turned[row])
        return out


def name_shard(number: int) -> str:
    """File name of a shard, counted from 0."""
    return f"shard-{number:05d}.npy"


def write_shard(path: Path, checked: Iterable[CheckedImage], size: int, key: str) -> pd.DataFrame:
    """Write the usable images and then, under a key of what they are made of, the record of all (see `read_record`)."""
    # An old record must never stand beside a new shard.
    _place_record(path).unlink(missing_ok=True)
    outcomes, rows = [], 0
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            write_header(file, (rows, size, size), np.uint8)
            for image in checked:
                outcomes.append((image.reason, image.detail, image.sha256))
                if image.pixels is not None:
                    file.write(image.pixels.data)
                    rows += 1
            # The number of rows is known at the end only.
            file.seek(0)
            write_header(file, (rows, size, size), np.uint8)
        record = pd.DataFrame(outcomes, columns=_OUTCOMES, dtype="str")
        record.attrs = {"key": key, "images": rows, "sha256": hash_file(temporary)}
    record.attrs["outcomes"] = _hash_outcomes(record)
    with atomic_path(_place_record(path)) as temporary:
        record.to_parquet(temporary, index=False)
    return record


def read_record(path: Path, key: str, size: int) -> pd.DataFrame | None:
    """What became of the images of a shard; None if it is not finished.

    ``reason`` (empty if the image is stored), ``detail`` and ``sha256`` of every image looked at, in order, with
    ``key``, ``images`` and the ``sha256`` of the shard in ``attrs``.
    """
    try:
        record = pd.read_parquet(_place_record(path))
        if record.attrs["key"] != key or record.attrs["outcomes"] != _hash_outcomes(record):
            return None
        open_shard(path, record.attrs["images"], size, record.attrs["sha256"])
    except (OSError, ValueError, KeyError, StudyError):
        return None
    return record


def open_shard(path: Path, images: int, size: int, sha256: str) -> np.ndarray:
    """A shard's ``uint8 (images, size, size)``, mapped from disk and read-only."""
    again = "make the store again with the same options: finished shards are kept and only this one is made anew"
    if not path.is_file():
        raise StudyError(f"the pixel store lacks {path}: {again}.")
    try:
        # An empty file cannot be mapped, and a shard may hold no usable image.
        shard = np.load(path, mmap_mode="r" if images else None, allow_pickle=False)
        found = f"{shard.dtype} {shard.shape}"
    except (OSError, ValueError, EOFError):
        shard, found = None, f"{path.stat().st_size} bytes that are no whole array"
    if shard is None or shard.shape != (images, size, size) or shard.dtype != np.uint8:
        raise StudyError(f"{path} is damaged, it holds {found} and not uint8 {(images, size, size)}: {again}.")
    if hash_file(path) != sha256:
        raise StudyError(f"{path} is damaged, its SHA-256 is not the one that was written down: {again}.")
    return shard


def remove_shards(folder: Path, after: int = 0) -> None:
    """Delete shards from the number ``after`` on, and their records; those of a larger store that was here before."""
    for path in folder.glob("shard-*.npy"):
        if path.stem.removeprefix("shard-").isdecimal() and int(path.stem.removeprefix("shard-")) >= after:
            path.unlink()
            _place_record(path).unlink(missing_ok=True)


def _place_record(path: Path) -> Path:
    return path.with_suffix(".parquet")


def _hash_outcomes(record: pd.DataFrame) -> str:
    return hash_values(record[_OUTCOMES].to_dict("list"))
