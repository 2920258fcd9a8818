"""The pixel store: every image of a cohort read once, checked, resized, and kept as one ``uint8`` array on disk.

``pixels/images.npy`` is ``(images, size, size)``, mapped into memory when read; ``pixels/index.parquet`` says which row
is which image and holds the hash of its source file; ``pixels/manifest.json`` says how the pixels were made. The kept
rows are the run's ``cohort.parquet``, the others its ``quarantine.parquet``.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from chexstudy.cohort.images import check_fit
from chexstudy.cohort.quality import (
    CheckedImage,
    count_quarantine,
    read_checked,
    resolve_image_paths,
    set_aside_empty_reports,
    split_by_reason,
)
from chexstudy.cohort.table import validate_cohort, write_cohort
from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.runs import Run, atomic_path

IMAGES = "pixels/images.npy"
INDEX = "pixels/index.parquet"
MANIFEST = "pixels/manifest.json"
COHORT = "cohort.parquet"
QUARANTINE = "quarantine.parquet"
_MADE_BY = "notebook 01_build_cohort (or `chexstudy cohort build`)"


@dataclass(frozen=True)
class PixelStore:
    """The pixels of a cohort.

    Attributes:
        images: ``uint8 (images, size, size)``, grey levels, mapped from disk and read-only.
        image_ids: the image in each row.
        fit: how images were made square: ``crop`` or ``pad``.
    """

    images: np.ndarray
    image_ids: pd.Index
    fit: str

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Where images lie in the store, ``int64 (n,)``, in the order asked for.

        Raises:
            StudyError: an image is not in the store.
        """
        image_ids = list(image_ids)
        rows = self.image_ids.get_indexer(image_ids)
        if (rows < 0).any():
            first = image_ids[int(np.flatnonzero(rows < 0)[0])]
            raise StudyError(
                f"{(rows < 0).sum()} of {len(rows)} images are not in the pixel store (the first is {first}): "
                f"they are in quarantine or of another cohort; run {_MADE_BY} again for this one."
            )
        return rows.astype(np.int64)

    def read(self, image_ids: Iterable[str]) -> np.ndarray:
        """The pixels of images, ``uint8 (n, size, size)``, in the order asked for.

        Raises:
            StudyError: an image is not in the store.
        """
        return np.asarray(self.images[self.rows(image_ids)])


def build_pixel_store(
    run: Run, cohort: pd.DataFrame, size: int, fit: str = "crop", workers: int = 2, root: str | Path | None = None
) -> PixelStore:
    """Check and resize every image of a cohort, and write the store, the kept cohort and the quarantine list.

    A store that is current (same cohort, same source files by size and time, same size and fit, same code) is reused.

    Args:
        run: the study's folder.
        cohort: a cohort table; pairs that cannot be used are set aside.
        size: side of the stored images in pixels.
        fit: ``crop`` or ``pad``; see :func:`chexstudy.cohort.images.fit_square`.
        workers: number of processes that read images.
        root: the folder the cohort's relative image paths start from; the run's folder if not given.

    Raises:
        StudyError: the cohort breaks its contract, no image of it can be used, or the disk is full.
    """
    check_fit(size, fit)
    cohort = validate_cohort(cohort)
    files = resolve_image_paths(cohort, root or run.folder)
    cohort["image_path"] = [_portable_path(path, run.folder) for path in files]
    parameters = {"size": size, "fit": fit, "cohort": hash_cohort(cohort), "files": _fingerprint(files)}
    if is_current_store(run, parameters):
        return open_pixel_store(run)
    # Without its manifest a half-rebuilt store counts as none.
    run.path(MANIFEST).unlink(missing_ok=True)
    with_report, without_report = set_aside_empty_reports(cohort)
    files = resolve_image_paths(with_report, run.folder)
    checked = progress(read_checked(files, size, fit, workers), len(files), "reading images")
    with atomic_path(run.path(IMAGES)) as temporary:
        outcomes = _write_usable(temporary, checked, size)
    kept, quarantine = split_by_reason(with_report, outcomes[["reason", "detail"]], without_report, cohort)
    run.write_table(QUARANTINE, quarantine)
    counts = count_quarantine(quarantine)
    if kept.empty:
        run.path(IMAGES).unlink()
        raise StudyError(
            f"none of the {len(cohort)} images can be used (the most frequent reason: {counts['reason'][0]}): "
            f"see {run.path(QUARANTINE)} and mend the files or the path to them."
        )
    hashes = outcomes.loc[outcomes["reason"] == "", "sha256"].to_numpy()
    run.write_table(INDEX, pd.DataFrame({"image_id": kept["image_id"], "row": np.arange(len(kept)), "sha256": hashes}))
    write_cohort(kept, run.path(COHORT))
    run.write_json(MANIFEST, {**parameters, "images": len(kept), "quarantined": counts.to_dict("records")})
    run.record(MANIFEST, parameters)
    return open_pixel_store(run)


def open_pixel_store(run: Run) -> PixelStore:
    """The pixel store of a study.

    Raises:
        StudyError: there is none yet, or its files do not belong together.
    """
    manifest = run.read_json(MANIFEST, _MADE_BY)
    index = run.read_table(INDEX, _MADE_BY)
    images = run.read_array(IMAGES, _MADE_BY, memory_map=True)
    if images.shape != (len(index), manifest["size"], manifest["size"]) or images.dtype != np.uint8:
        raise StudyError(
            f"the pixel store of study {run.study!r} is damaged: {IMAGES} holds {images.dtype} {images.shape} for "
            f"{len(index)} images of {manifest['size']} pixels; delete {run.path(MANIFEST)} and run {_MADE_BY} again."
        )
    return PixelStore(images, pd.Index(index["image_id"]), manifest["fit"])


def is_current_store(run: Run, parameters: dict) -> bool:
    """Whether the study has a whole pixel store that was made with these parameters and this code."""
    whole = all(run.has(name) for name in (IMAGES, INDEX, COHORT, QUARANTINE))
    return whole and run.is_current(MANIFEST, run.key(parameters))


def hash_cohort(cohort: pd.DataFrame) -> str:
    """Hash of a cohort table's columns and rows, in their order, 64 hex digits."""
    digest = hashlib.sha256("\0".join(cohort.columns).encode())
    digest.update(pd.util.hash_pandas_object(cohort, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _write_usable(path: Path, checked: Iterable[CheckedImage], size: int) -> pd.DataFrame:
    """Write the usable images one after the other as a ``.npy`` file; return what became of each image.

    Written, not mapped: a full disk is then an error and not a killed process. The number of rows is known at the end
    only, and numpy leaves room in the header for it.
    """
    outcomes, rows = [], 0
    with open(path, "wb") as file:
        _write_header(file, rows, size)
        for image in checked:
            outcomes.append((image.reason, image.detail, image.sha256))
            if image.pixels is not None:
                file.write(image.pixels.data)
                rows += 1
        file.seek(0)
        _write_header(file, rows, size)
    return pd.DataFrame(outcomes, columns=["reason", "detail", "sha256"], dtype="str")


def _write_header(file: BinaryIO, rows: int, size: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _portable_path(path: Path, folder: Path) -> str:
    """Relative if the file lies in the study's folder, so that the folder can be moved; else absolute."""
    path = path.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _fingerprint(files: list[Path]) -> str:
    """Hash of the files' sizes and times of change: a replaced image makes the store stale."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            digest.update(b"missing\0")
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
