"""Where organs and findings are on the images of a cohort: outlines and boxes, read when the cohort is built.

``annotations.parquet`` has a row for each structure of an image: ``image_id``, ``structure`` (a finding's or an organ's
name), ``kind``, and ``height`` and ``width``, the size in pixels of the picture on which it was drawn. Of the kind
``outline``, ``runs`` are the lengths of alternating runs of background and structure, row by row from the top left,
beginning with background (0 if the first pixel is structure); they add up to height times width. Of the kind ``box``,
``box`` is left, top, width and height in pixels of that picture. Several rows of one structure make one region.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from chexstudy.cohort.images.decode import fit_square, place_square
from chexstudy.cohort.pixels.store import read_turned
from chexstudy.cohort.pixels.turning import UPRIGHT, turn_back
from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.runs import Run, artifact_path

ANNOTATIONS = "annotations.parquet"
OUTLINE, BOX = "outline", "box"
LUNG_STRUCTURES = ("lungs", "right lung", "left lung")
FINDING, LUNGS = "finding", "lungs"
_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "structure": pa.string(),
        "kind": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "runs": pa.list_(pa.int32()),
        "box": pa.list_(pa.float32()),
    }
)
_ROWS_A_GROUP = 2_000
_HALF = 127


class Annotation(NamedTuple):
    """A row of the table."""

    image_id: str
    structure: str
    kind: str
    height: int
    width: int
    runs: np.ndarray | None
    box: np.ndarray | None


@dataclass(frozen=True)
class Regions:
    """Where findings are on the images of a pixel store."""

    # A row a finding of an image: ``image_id``, ``finding`` and ``mask``, bool ``(size, size)`` and not empty.
    table: pd.DataFrame
    kind: str = FINDING  # ``finding`` (its outline or boxes) or ``lungs`` (no outline is known, the mask is theirs)
    missing: str = ""  # one sentence on what is not at hand, where the table is empty for that

    def mask(self, image_id: str, finding: str) -> np.ndarray | None:
        """The mask of a finding on an image, or None."""
        found = self.table[(self.table.image_id == image_id) & (self.table.finding == finding)]
        return found["mask"].iloc[0] if len(found) else None


def make_outline(image_id: str, structure: str, mask: np.ndarray) -> Annotation:
    """The row of a boolean mask ``(height, width)``."""
    return Annotation(image_id, structure, OUTLINE, *mask.shape, encode_mask(mask), None)


def encode_mask(mask: np.ndarray) -> np.ndarray:
    """Run lengths (int32) of a boolean mask ``(height, width)``."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    if flat.size and flat[0]:
        edges = np.concatenate([[0], edges])
    return np.diff(edges).astype(np.int32)


def write_annotations(rows: Iterable[Annotation], path: str | Path) -> None:
    """Write the table; rows of an image must stand side by side."""
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    table = pa.table([pa.array(column, type=kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
    with artifact_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=_ROWS_A_GROUP, compression="zstd")


def decode_mask(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """The boolean mask ``(height, width)`` of its run lengths."""
    runs = np.asarray(runs, dtype=np.int64)
    if runs.sum() != height * width:
        raise StudyError(
            f"the runs of a mask add up to {runs.sum()} pixels, not to {height} x {width}: build the cohort again."
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


@dataclass(frozen=True)
class Outlines:
    """What is annotated on some images; a mask is drawn when it is asked for."""

    rows: Mapping[tuple[str, str], list[Annotation]]  # by image and structure
    turned: Mapping[str, str]  # images that lie wrong in their file -> how

    def draw(self, image_id: str, *structures: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """The mask of structures together, bool ``(height, width)``, upright, of a size or as it was drawn."""
        rows = [row for structure in structures for row in self.rows.get((image_id, structure), ())]
        drawn = [turn_back(_draw_row(row), self.turned.get(image_id, UPRIGHT)) for row in rows]
        size = size or drawn[0].shape
        return np.logical_or.reduce([scale_mask(mask, size) for mask in drawn])


def _draw_row(row: Annotation) -> np.ndarray:
    if row.kind == OUTLINE:
        return decode_mask(row.runs, row.height, row.width)
    mask = np.zeros((row.height, row.width), dtype=bool)
    left, top, width, height = row.box
    mask[max(round(top), 0) : round(top + height), max(round(left), 0) : round(left + width)] = True
    return mask


def read_outlines(run: Run, image_ids: Iterable[str], boxes: bool = True) -> Outlines:
    """What is annotated on images of a study, in outlines alone or in boxes, too."""
    asked = pc.field("image_id").isin(pa.array(list(image_ids), pa.string()))
    asked &= pc.field("kind").isin([OUTLINE, BOX] if boxes else [OUTLINE])
    table = pq.read_table(run.require(ANNOTATIONS), filters=asked).to_pandas()
    rows: dict[tuple[str, str], list[Annotation]] = {}
    for row in map(Annotation, *(table[name].to_numpy() for name in _SCHEMA.names)):
        rows.setdefault(row[:2], []).append(row)
    return Outlines(rows, read_turned(run))


def read_masks(run: Run, image_ids: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Image -> structure -> its mask, see `Outlines.draw`; an image without any is there, too."""
    masks: dict[str, dict[str, np.ndarray]] = {image_id: {} for image_id in image_ids}
    outlines = read_outlines(run, masks)
    for image_id, structure in outlines.rows:
        masks[image_id][structure] = outlines.draw(image_id, structure)
    return masks


def read_regions(run: Run, rows: pd.DataFrame, findings: Sequence[str], size: int, fit: str) -> Regions:
    """Where findings that the labels call present are; where no finding has an outline or a box, the lungs.

    ``No Finding`` is nowhere: it has no region, not even the lungs. The rows are of one source, and the regions in the
    order of rows and findings; where nothing is known there are none, and ``missing`` says why.
    """
    findings = [finding for finding in findings if finding != NO_FINDING]
    outlines, kind = read_outlines(run, rows.image_id), FINDING
    known = [(image_id, (structure,)) for image_id, structure in outlines.rows if structure in findings]
    if not known:
        kind, known = (
            LUNGS,
            [(one, LUNG_STRUCTURES) for one, structure in outlines.rows if structure in LUNG_STRUCTURES],
        )
    if not known:
        return Regions(
            pd.DataFrame(columns=["image_id", "finding", "mask"]),
            missing=f"nothing is known of where findings are on images of {rows.source.iloc[0]}: it has neither masks "
            "nor boxes, so that attention can be looked at and not measured.",
        )
    place = {image_id: number for number, image_id in enumerate(rows.image_id)}
    present = rows[findings].eq(1).fillna(False).to_numpy(dtype=bool)
    kept = {}
    for image_id, structures in dict.fromkeys(known):
        row = place[image_id]
        meant = range(len(findings)) if kind == LUNGS else [findings.index(structures[0])]
        numbers = [number for number in meant if present[row, number]]
        fitted = fit_mask(outlines.draw(image_id, *structures), size, fit) if numbers else None
        # A crop may cut the whole region away.
        kept |= {(row, number): (image_id, findings[number], fitted) for number in numbers if fitted.any()}
    return Regions(pd.DataFrame([kept[one] for one in sorted(kept)], columns=["image_id", "finding", "mask"]), kind)


def measure_lesion_sizes(regions: Regions) -> pd.Series:
    """Median share of the image that a finding's region covers, by finding, the smallest first."""
    areas = regions.table["mask"].map(np.mean).astype(float)
    return areas.groupby(regions.table["finding"]).median().sort_values(kind="stable")


def list_lesion_sizes(run: Run, rows: pd.DataFrame, findings: Sequence[str], size: int, fit: str) -> pd.Series:
    """`measure_lesion_sizes` of the findings of a cohort's rows; empty, and said, where they have no outlines."""
    regions = read_regions(run, rows, findings, size, fit)
    if regions.kind == FINDING and not regions.missing:
        return measure_lesion_sizes(regions)
    print(f"Lesion sizes are not known: {regions.missing or 'only the lungs have outlines here'}.")
    return pd.Series(dtype=float)


def scale_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another ``size`` (height, width) of the same picture, each pixel as the nearest one."""
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def fit_mask(mask: np.ndarray, size: int, fit: str) -> np.ndarray:
    """A mask of an original image as it lies in the pixel store: resized and cropped or padded as the image was.

    True where at least half of a pixel is inside. Of a region too small for that, the pixels it covers most are kept.
    """
    if mask.shape == (size, size):
        return mask
    share = fit_square(mask.astype(np.uint8) * 255, size, fit)
    inside = share > _HALF
    return inside if inside.any() or not share.any() else share == share.max()


def restore(values: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Values on a square of the pixel store ``(..., side, side)``, such as logits, on the original image; float32.

    The way back of `fit_square`, ``(..., *size)``, ``size`` height and width: bilinear between the centres of pixels,
    padding taken away, and minus infinity, a logit that says no, where the image was cut off.
    """
    values = np.asarray(values, np.float32)
    side = values.shape[-1]
    resized, corner = place_square(size, side, fit)
    # For each line of the resized image that of the square; a crop's outermost lines go on outside for now.
    lines = [np.clip(np.arange(count) - first, 0, side - 1) for count, first in zip(resized, corner, strict=True)]
    planes = values.reshape(-1, side, side)[:, lines[0][:, None], lines[1]]
    restored = np.stack(
        [np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BILINEAR)) for one in planes]
    )
    for axis in (0, 1):
        where = (np.arange(size[axis]) + 0.5) * resized[axis] / size[axis] - corner[axis]
        np.moveaxis(restored, axis + 1, 0)[(where < 0) | (where >= side)] = -np.inf
    return restored.reshape(*values.shape[:-2], *size)
