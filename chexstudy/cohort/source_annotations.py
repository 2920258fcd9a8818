"""How sources tell where organs and findings are: boxes, pictures, run lengths and polygons, read once and checked.

What cannot be of its image is refused in a sentence: a mask in other proportions, with greys inside, empty on every
image, torn as where rows were taken for columns, or with right and left exchanged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.ndimage import maximum_filter, minimum_filter

from chexstudy.cohort.annotations import (
    ANNOTATIONS,
    BOX,
    OUTLINE,
    Annotation,
    decode_mask,
    make_outline,
    write_annotations,
)
from chexstudy.cohort.images.decode import read_dimensions
from chexstudy.cohort.images.unreadable import UnreadableImage
from chexstudy.errors import StudyError
from chexstudy.inputs.tables import name_place
from chexstudy.progress import progress
from chexstudy.runs import Run, hash_values

# How near to black or white a level is the same, and what share of a picture may lie between: edges that were resized.
_NEARLY, _GREY_EDGES = 0.125, 0.05
_DARK = 32  # a picture without a lighter level is no mask, but for one of two levels
# How much of a mask hangs together if height and width are exchanged, and how much more than as it is: so no one of
# 12,000 masks of the phantom and 401 of Shenzhen's lungs is taken for torn, and 95 % of lungs are that were.
_WHOLE, _TORN = 0.9, 0.05
_LEAST_BEYOND, _MOST_BEYOND = 8, 0.05  # pixels, and share of the longer side, a polygon may go beyond its picture
_ROUNDED = 1.5  # pixels that proportions may differ by: sides are whole numbers
_LEAST_COMPARED, _COMPARED = 5, 50  # pairs of right and left that are compared


@dataclass(frozen=True)
class Box:
    """A rectangle about a structure, as its source gives it."""

    image_id: str
    structure: str
    box: tuple[float, float, float, float]  # left, top, width and height
    picture: tuple[int, int]  # height and width of the picture in whose pixels the box is given

    def read(self) -> Annotation:
        return Annotation(self.image_id, self.structure, BOX, *self.picture, None, np.array(self.box, np.float32))


@dataclass(frozen=True)
class MaskFile:
    """A picture that is bright inside a structure."""

    image_id: str
    structure: str
    path: Path

    def read(self) -> Annotation:
        try:
            with Image.open(self.path) as picture:
                grey = np.asarray(picture.convert("L"))
        except (OSError, ValueError, Image.DecompressionBombError):
            raise StudyError(f"the mask {self.path} cannot be read: fetch it again, or take it away.") from None
        # Black may be 0 and white 1; edges may be grey, as where a mask was resized or kept as JPEG.
        white = max(int(grey.max()), 1)
        between = (grey > white * _NEARLY) & (grey < white * (1 - _NEARLY))
        # All within two pixels is of one level, as it is not on an edge.
        is_flat = maximum_filter(grey, 5) == minimum_filter(grey, 5) if between.any() else between
        is_noise = white < _DARK and len(np.unique(grey)) > 2
        if is_noise or between.mean() > _GREY_EDGES or (between & is_flat).any():
            levels = ", ".join(map(str, np.unique(grey[between])[:3]))
            raise StudyError(
                f"the mask {self.path} is not black outside and white inside, there are levels between 0 and {white} "
                f"({levels}): give each structure a mask of its own."
            )
        return make_outline(self.image_id, self.structure, grey > white / 2)


@dataclass(frozen=True)
class RunLengths:
    """A mask told as runs of pixels inside a structure, in one of the ways that public data sets have.

    ``gaps``: lengths of runs outside and inside, one after the other, down the columns (SIIM-ACR, CANDID-PTX);
    ``starts``: first pixel, counted from 1, and length of each run inside, along the rows (CheXmask);
    ``coco``: as gaps, packed into the characters of COCO's tools (CheXlocalize).
    """

    image_id: str
    structure: str
    runs: str  # numbers with blanks between, or COCO's characters
    picture: tuple[int, int]  # height and width
    place: str  # where it stands, for messages
    way: str = "gaps"

    def read(self) -> Annotation:
        height, width = self.picture
        try:
            numbers = np.array(_unpack_coco(self.runs) if self.way == "coco" else self.runs.split(), dtype=np.int64)
            gaps = _tell_gaps(numbers) if self.way == "starts" else numbers
        except (ValueError, IndexError):
            gaps = np.array([-1])
        if (gaps < 0).any() or gaps.sum() > height * width or (self.way != "coco" and len(gaps) % 2):
            ways = {"gaps": "gaps and lengths of runs down columns", "starts": "starts and lengths of runs along rows"}
            raise StudyError(
                f"{self.place}: the mask is not told by {ways.get(self.way, 'runs packed as COCO does')} of {height} x "
                f"{width} pixels: take the table as it was published."
            )
        # What follows the last run is outside.
        runs = np.append(gaps, [0] * (len(gaps) % 2) + [height * width - gaps.sum()])
        own, other = (height, width) if self.way != "starts" else (width, height)
        whole = _measure_coherence(runs, other)
        if whole > _WHOLE and _measure_coherence(runs, own) < whole - _TORN:
            raise StudyError(
                f"{self.place}: the mask is torn, and would be whole with {height} x {width} pixels read as {width} x "
                f"{height}: take the table as it was published, rows as rows and height as height."
            )
        mask = decode_mask(runs, height, width) if self.way == "starts" else decode_mask(runs, width, height).T
        return make_outline(self.image_id, self.structure, mask)


def list_runs(image_ids: pd.Series, finding: str, runs: pd.Series, origin: str) -> list[RunLengths]:
    """Masks of a table with a row a mask, on pictures of 1,024 x 1,024 pixels, as Kaggle and CANDID-PTX tell them."""
    places = [f"{origin}, {name_place(runs.index, row)}" for row in range(len(runs))]
    rows = zip(image_ids, runs, places, strict=True)
    return [RunLengths(image_id, finding, told, (1024, 1024), place) for image_id, told, place in rows]


def _tell_gaps(numbers: np.ndarray) -> np.ndarray:
    """Lengths of runs outside and inside, of starts counted from 1 and lengths."""
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    outside = starts - np.concatenate([[0], (starts + lengths)[:-1]])
    return np.stack([outside, lengths], axis=1).ravel()


def _unpack_coco(text: str) -> list[int]:
    """Run lengths: five bits a character, the lowest first; from the fourth on less the last but one."""
    runs, position = [], 0
    while position < len(text):
        number, shift, more = 0, 0, True
        while more:
            bits = ord(text[position]) - 48
            number |= (bits & 31) << shift
            more, shift, position = bool(bits & 32), shift + 5, position + 1
        number -= (bits & 16) and 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _measure_coherence(runs: np.ndarray, line: int) -> float:
    """The share of the pixels inside with one inside a line further on; what is torn has few."""
    edges = np.concatenate([[0], np.cumsum(runs)])
    inside = np.concatenate([[0], np.cumsum(np.where(np.arange(len(runs)) % 2, runs, 0))])
    first, after = (np.interp(edges[at : len(runs) + at] + line, edges, inside)[1::2] for at in (0, 1))
    return float((after - first).sum() / max(inside[-1], 1))


@dataclass(frozen=True)
class Polygon:
    """A region within a closed line, or within several, as its source gives their corners."""

    image_id: str
    structure: str
    lines: tuple[tuple[tuple[float, float], ...], ...]  # of each line the corners, from the left and from the top
    picture: tuple[int, int]  # height and width

    def read(self) -> Annotation:
        corners = np.array([corner for line in self.lines for corner in line])
        beyond = np.maximum(-corners, corners - self.picture[::-1]).max()
        if beyond > max(_LEAST_BEYOND, _MOST_BEYOND * max(self.picture)):
            raise StudyError(
                f"an outline of {self.structure} goes {beyond:.0f} pixels beyond its picture of {self.picture[1]} x "
                f"{self.picture[0]}: take the pictures on which the outlines were drawn, in their own size."
            )
        canvas = Image.new("1", self.picture[::-1])
        for line in self.lines:
            ImageDraw.Draw(canvas).polygon(line, fill=1)
        return make_outline(self.image_id, self.structure, np.asarray(canvas))


def build_annotations(
    run: Run, listed: Sequence[Box | MaskFile | RunLengths | Polygon], files: Mapping[str, Path] = MappingProxyType({})
) -> None:
    """Bring what a source annotates into the study, checked against the images' ``files``; what is current stays."""
    parameters = {"annotations": hash_values([_fingerprint(one) for one in listed])}
    if run.is_current(ANNOTATIONS, run.key(parameters)):
        return
    write_annotations(_read_checked(progress(listed, label="reading annotations"), files), run.path(ANNOTATIONS))
    run.record(ANNOTATIONS, parameters)


def _fingerprint(one: Box | MaskFile | RunLengths | Polygon) -> list:
    """All of it but its place; of a file size and time."""
    if isinstance(one, MaskFile):
        status = one.path.stat()
        return [one.image_id, one.structure, status.st_size, status.st_mtime_ns]
    return [value for name, value in vars(one).items() if name != "place"]


def _read_checked(
    listed: Iterable[Box | MaskFile | RunLengths | Polygon], files: Mapping[str, Path]
) -> Iterator[Annotation]:
    size, filled, centres = ("", None), {}, {}
    for one in listed:
        row = one.read()
        image_id, structure, kind, height, width, runs, _ = row
        if size[0] != image_id:
            size = image_id, _read_size(files.get(image_id))
        if size[1] and abs(height * size[1][1] - width * size[1][0]) > _ROUNDED * max(height, width, *size[1]):
            raise StudyError(
                f"{_name_place(one)} is of a picture of {width} x {height} pixels and its image has {size[1][1]} x "
                f"{size[1][0]}, in other proportions: take the images on which it was drawn, not cut or stretched."
            )
        if kind == OUTLINE:
            filled[structure] = filled.get(structure, False) or len(runs) > 1
            side, _, part = structure.partition(" ")
            if side in ("right", "left") and len(runs) > 1 and len(centres) < _COMPARED:
                centre = np.argwhere(decode_mask(runs, height, width)).mean(axis=0)
                centres.setdefault((image_id, part), {})[side] = centre
        yield row
    for structure in [name for name, is_filled in filled.items() if not is_filled]:
        raise StudyError(f"every mask of {structure} is empty: see whether its files are those that were published.")
    across = [both["left"] - both["right"] for both in centres.values() if len(both) == 2]
    kept = sum(right > abs(down) for down, right in across)
    if len(across) >= _LEAST_COMPARED and kept * 2 < len(across):
        raise StudyError(
            f"right structures lie left of the left ones in {kept} of {len(across)} pictures, as they must where the "
            "patient looks at us: the masks are mirrored, their sides are exchanged, or rows were taken for columns."
        )


def _read_size(path: Path | None) -> tuple[int, int] | None:
    try:
        return None if path is None else read_dimensions(path)[:2]
    except UnreadableImage:
        return None  # it goes to quarantine


def _name_place(one: Box | MaskFile | RunLengths | Polygon) -> str:
    place = getattr(one, "path", None) or getattr(one, "place", None)
    return f"the mask {place}" if place else f"an outline or a box of {one.structure}"
