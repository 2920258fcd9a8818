"""Contact sheets of radiographs, with outlines of masks where there are any."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from chexstudy.cohort.annotations import read_masks
from chexstudy.cohort.table import label_matrix
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.style import ACCENT, DOUBLE_MM, SEQUENCE, add_legend, clear_frame, new_figure
from chexstudy.study import Study

_CONTOUR_COLOURS = (ACCENT, SEQUENCE[2], SEQUENCE[5], SEQUENCE[6])
_MOST = 24
_LINE_STYLES = ("-", "--", ":", "-.")


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


def plot_radiographs(sheet: Sheet, columns: int = 6) -> Drawing:
    """Radiographs in rows of ``columns``, each with its title."""
    if not sheet.pixels:
        raise NothingToDraw("there is nothing to draw without radiographs")
    columns = min(columns, len(sheet.pixels))
    rows = -(-len(sheet.pixels) // columns)
    lines = max(title.count("\n") + 1 for title in sheet.titles)
    names = sorted({name for masks in sheet.masks for name in masks})
    side = DOUBLE_MM / max(columns, 3)
    figure = new_figure(height_mm=rows * (side + 3.2 * lines) + 6 * bool(names), width_mm=side * columns)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, axes in enumerate(grid):
        clear_frame(axes)
        if place >= len(sheet.pixels):
            continue
        axes.imshow(sheet.pixels[place], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(sheet.titles[place], fontsize=6.5, loc="left", pad=2)
        for name, mask in sheet.masks[place].items():
            colour, line = _look(names.index(name))
            # A mask without an edge has no outline, and matplotlib would warn.
            if mask.any() and not mask.all():
                axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=0.8, linestyles=[line])
    if names:
        handles = [_mask_handle(name, *_look(place)) for place, name in enumerate(names)]
        add_legend(figure, handles)
    return figure


def _mask_handle(name: str, colour: str, line: str) -> Line2D:
    """A legend entry of one kind of mask."""
    return Line2D([], [], color=colour, linestyle=line, linewidth=1.0, label=name.replace("_", " "))


def _look(place: int) -> tuple[str, str]:
    return _CONTOUR_COLOURS[place % len(_CONTOUR_COLOURS)], _LINE_STYLES[place % len(_LINE_STYLES)]


def describe_radiographs(sheet: Sheet, seed: int) -> str:
    return f"{sheet.about}, {len(sheet.pixels[0])} pixels a side; seed {seed}; no interval."


radiographs = Figure(
    name="radiographs",
    select=lambda _: pd.DataFrame(),
    plot=plot_radiographs,
    describe=describe_radiographs,
    conclude=lambda sheet: f"{sheet.about}{', each with its outline' if all(sheet.masks) else ''}.",
)
