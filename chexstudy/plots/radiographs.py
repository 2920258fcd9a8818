"""Contact sheets of radiographs, with outlines of masks where there are any."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from chexstudy.cohort.annotations import read_masks
from chexstudy.cohort.orientation import LATERAL, UNKNOWN
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.pixels.turning import KINDS, UPRIGHT, mend_pixels
from chexstudy.cohort.table import label_matrix
from chexstudy.plots.figure import Figure
from chexstudy.plots.looks import ACCENT, SEQUENCE
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.style import DOUBLE_MM, add_legend, clear_frame, new_figure, show_radiograph
from chexstudy.study import Study

_LOOKS = ((ACCENT, "-"), (SEQUENCE[2], "--"), (SEQUENCE[5], ":"), (SEQUENCE[6], "-."))
_MOST, _IN_A_ROW, _OF_A_KIND = 24, 6, 3


@dataclass(frozen=True)
class Sheet:
    """Radiographs with what is written over and drawn into each."""

    pixels: list[np.ndarray]  # images ``(height, width)`` uint8
    titles: list[str]  # one an image; never a patient identifier
    # of each image its masks ``(height, width)`` by name; a name has one colour and line on the whole sheet
    masks: list[Mapping[str, np.ndarray]]
    about: str  # which radiographs these are


def collect_radiographs(study: Study) -> Sheet:
    """A training radiograph for each of the commonest labels, with as few others as can be, or else the first ones.

    On the phantom with the finding's true outline.
    """
    train = study.train
    present = pd.DataFrame(label_matrix(train, study.findings) == 1, columns=study.findings)
    labels = [name for name in present.sum().sort_values(ascending=False).index if present[name].any()][:_MOST]
    alone = present.sum(axis=1)
    rows = [alone[present[name]].sort_values(kind="stable").index[0] for name in labels] or list(train.index[:_MOST])
    titles = labels or [f"{train.view[row]}, {train.sex[row]}" for row in rows]
    image_ids = list(train.image_id[rows])
    masks = [{} for _ in rows]
    if labels and study.run.has("truth.parquet"):
        drawn = read_masks(study.run, image_ids)
        of_labels = [drawn[image_id].get(name) for name, image_id in zip(labels, image_ids, strict=True)]
        masks = [{} if mask is None else {"true outline": mask} for mask in of_labels]
    about = (
        f"One training radiograph for each of {len(labels)} labels" if labels else f"{len(rows)} training radiographs"
    )
    return Sheet(list(study.pixels.read(image_ids)), titles, masks, about)


def collect_orientation(study: Study, found: pd.DataFrame) -> Sheet:
    """Images that lie wrong (a row each: `chexstudy.cohort.orientation.find_orientation`), and beside them upright."""
    wrong = found[~found.found.isin([UPRIGHT, LATERAL, UNKNOWN])].sort_values("probability", ascending=False)
    shown = wrong.groupby("found").head(_OF_A_KIND).sort_values("found", kind="stable")[: _MOST // 2]
    pixels, titles = [], []
    filed = open_pixel_store(study.run, as_filed=True).read(shown.image_id)
    for image, kind in zip(filed, shown.found, strict=True):
        pixels.append(image)
        titles.append(kind)
        if kind in KINDS:
            pixels.append(mend_pixels(image, kind))
            titles.append("turned back")
    about = f"{len(shown)} of {len(wrong)} images found to lie wrong, or unlike the others"
    return Sheet(pixels, titles, [{} for _ in pixels], about if len(wrong) else "images found to lie wrong")


def collect_duplicates(study: Study, groups: pd.DataFrame) -> Sheet:
    """The first two images of some groups (`chexstudy.cohort.near_duplicates.tabulate_near_duplicates`) side by side.

    Groups in two splits come first, then those whose images are least alike.
    """
    pairs = groups[groups.groupby("group").cumcount() < 2]
    order = pairs.groupby("group").agg(
        splits=("split", "nunique"), alike=("similarity", "min"), evidence=("evidence", "min")
    )
    order = order.sort_values(["splits", "alike"], ascending=[False, True], kind="stable")[: _MOST // 2]
    shown = pairs.set_index("group").loc[order.index]
    pixels = list(open_pixel_store(study.run, as_filed=True).read(shown.image_id))
    titles = [f"{row.split}\n{row.similarity:.2f}, {row.evidence}" for row in shown.itertuples()]
    number = groups.group.nunique()
    about = f"{len(order)} of {number} groups of near-duplicates, two images each" if number else "near-duplicates"
    return Sheet(pixels, titles, [{} for _ in pixels], about)


def _select(sheet: Sheet) -> tuple[pd.DataFrame, Sheet]:
    if not sheet.pixels:
        raise NothingToDraw(f"there is nothing to draw without {sheet.about}")
    return pd.DataFrame(), sheet


def _plot(_: pd.DataFrame, sheet: Sheet) -> Drawing:
    columns = min(_IN_A_ROW, len(sheet.pixels))
    rows = -(-len(sheet.pixels) // columns)
    lines = max(title.count("\n") + 1 for title in sheet.titles)
    names = sorted({name for masks in sheet.masks for name in masks})
    looks = {name: {"color": colour, "linestyle": line} for name, (colour, line) in zip(names, cycle(_LOOKS))}
    side = DOUBLE_MM / max(columns, 3)
    figure = new_figure(height_mm=rows * (side + 3.2 * lines) + 6 * bool(names), width_mm=side * columns)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        clear_frame(axes)
    for axes, pixels, title, masks in zip(grid, sheet.pixels, sheet.titles, sheet.masks, strict=False):
        show_radiograph(axes, pixels)
        axes.set_title(title, fontsize=6.5, loc="left", pad=2)
        for name, mask in masks.items():
            # A mask without an edge has no outline, and matplotlib would warn.
            if mask.any() and not mask.all():
                look = {f"{key}s": [value] for key, value in looks[name].items()}
                axes.contour(mask.astype(float), levels=[0.5], linewidths=0.8, **look)
    if names:
        add_legend(figure, [Line2D([], [], linewidth=1.0, label=one.replace("_", " "), **looks[one]) for one in names])
    return figure


def _describe(_: pd.DataFrame, sheet: Sheet, seed: int) -> str:
    return f"{sheet.about}, {len(sheet.pixels[0])} pixels a side; seed {seed}; no interval."


def _conclude(_: pd.DataFrame, sheet: Sheet) -> str:
    return f"{sheet.about}{', each with its outline' if all(sheet.masks) else ''}."


radiographs = Figure("radiographs", _select, _plot, _describe, _conclude)
orientation = Figure("orientation", _select, _plot, _describe, _conclude)
duplicates = Figure("duplicates", _select, _plot, _describe, _conclude)
