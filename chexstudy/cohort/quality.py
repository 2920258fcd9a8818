"""Quarantine: images that cannot be used, and reports that say nothing, are set aside with a reason and counted.

Nothing here stops at a bad file, and nothing is dropped without a row in the quarantine table.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.children import work_in_order
from chexstudy.cohort.copies import find_copies
from chexstudy.cohort.images.decode import decode_remarked, fit_square, read_bytes
from chexstudy.cohort.images.levels import is_blank
from chexstudy.cohort.images.unreadable import UnreadableImage
from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import SPLITS

EMPTY_REPORT = "empty report"
COPY = "copy in another split"
NEAR_DUPLICATE = "near-duplicate"
QUARANTINE_COLUMNS = ("image_id", "image_path", "reason", "detail")

_IMAGES_PER_TASK = 16
_TOO_FEW_FOR_WORKERS = 200  # starting a worker costs about a second


@dataclass(frozen=True)
class CheckedImage:
    """What became of one image file."""

    pixels: np.ndarray | None  # ``uint8 (size, size)``, or None if the file cannot be used
    sha256: str  # hash of the file's bytes, 64 hex digits; empty if there are none
    reason: str = ""  # one of :data:`chexstudy.cohort.images.unreadable.REASONS`; empty if the image can be used
    detail: str = ""  # what exactly was found; a remark on an image that can be used; mostly empty


def check_image(path: str | Path, size: int, fit: str) -> CheckedImage:
    """Read one image file once: hash, decode, resize, and see whether it shows anything."""
    sha256 = ""
    try:
        data = read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        image, remark = decode_remarked(data)
        pixels = fit_square(image, size, fit)
    except UnreadableImage as error:
        return CheckedImage(None, sha256, error.reason, error.detail)
    return CheckedImage(None, sha256, "blank") if is_blank(pixels) else CheckedImage(pixels, sha256, detail=remark)


def read_checked(paths: Iterable[str | Path], size: int, fit: str, workers: int = 2) -> Iterator[CheckedImage]:
    """Check image files in so many processes, in the order of the paths; few images are checked in this one."""
    check = partial(check_image, size=size, fit=fit)
    paths = [str(path) for path in paths]
    if workers <= 1 or len(paths) < _TOO_FEW_FOR_WORKERS:
        return map(check, paths)
    return work_in_order(check, paths, workers, _IMAGES_PER_TASK)


def set_aside_empty_reports(cohort: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Separate the rows whose report has neither findings nor impression; images that came without one stay."""
    is_empty = cohort["report"].map(training_text).eq("") & ~lacks_report(cohort)
    empty = cohort.loc[is_empty, ["image_id", "image_path"]].assign(reason=EMPTY_REPORT, detail="")
    return cohort[~is_empty], empty


def lacks_report(cohort: pd.DataFrame) -> pd.Series:
    """Whether an image came without a report: it is trained on by what needs none."""
    return cohort["report_origin"].eq("none") & cohort["report"].str.strip().eq("")


def set_aside_copies(cohort: pd.DataFrame, files: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The other rows, and those whose file a split nearer to the test has too, with ``copy_of``, its row's index."""
    split = cohort["split"].map(SPLITS.index).to_numpy()
    kept = {}
    for group in find_copies(files):
        nearest = max(group, key=split.__getitem__)
        kept |= {position: nearest for position in group if split[position] < split[nearest]}
    copies = cohort.iloc[list(kept)][["image_id", "image_path"]]
    stays = cohort.iloc[list(kept.values())]
    copies = copies.assign(reason=COPY, detail="also in " + stays["split"].to_numpy(), copy_of=stays.index)
    return cohort.drop(index=copies.index), copies


def split_by_reason(
    checked: pd.DataFrame, outcomes: pd.DataFrame, set_aside: pd.DataFrame, cohort: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The checked rows that can be used, and the quarantine table of all others in the cohort's order.

    ``outcomes`` has ``reason`` (empty: kept) and ``detail`` of each checked row; ``set_aside`` quarantine rows of
    others with the cohort's index, and ``copy_of`` of `set_aside_copies`: a copy of a file that cannot be used shares
    its reason.
    """
    is_bad = outcomes["reason"].ne("").to_numpy(bool)
    bad = checked.loc[is_bad, ["image_id", "image_path"]]
    bad[["reason", "detail"]] = outcomes.loc[is_bad, ["reason", "detail"]].to_numpy()
    spoiled = set_aside.index[set_aside["copy_of"].isin(bad.index)]
    both = pd.concat([set_aside, bad])
    both.loc[spoiled, ["reason", "detail"]] = bad.loc[
        set_aside.loc[spoiled, "copy_of"], ["reason", "detail"]
    ].to_numpy()
    quarantine = both.loc[cohort.index[cohort.index.isin(both.index)], list(QUARANTINE_COLUMNS)]
    return checked[~is_bad].reset_index(drop=True), quarantine.reset_index(drop=True)


def count_quarantine(quarantine: pd.DataFrame) -> pd.DataFrame:
    """How many images each source lost for each reason: ``source``, ``reason``, ``images``, the largest first."""
    sources = quarantine["image_id"].str.split("/", n=1).str[0].rename("source")
    counts = quarantine.groupby([sources, "reason"]).size().rename("images").reset_index()
    return counts.sort_values(["images", "source", "reason"], ascending=[False, True, True], ignore_index=True)


def resolve_image_paths(cohort: pd.DataFrame, root: str | Path) -> list[Path]:
    """The image files of a cohort; relative paths start at ``root``."""
    return [Path(root) / path for path in cohort["image_path"]]
