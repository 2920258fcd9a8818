"""Contact sheets of radiographs, with outlines of masks where there are any."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from chexstudy.errors import StudyError
from chexstudy.plots.style import ACCENT, DOUBLE_MM, SEQUENCE, clear_frame, new_figure

_CONTOUR_COLOURS = (ACCENT, SEQUENCE[2], SEQUENCE[5], SEQUENCE[6])
_LINE_STYLES = ("-", "--", ":", "-.")


def plot_radiographs(
    pixels: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    masks: Sequence[Mapping[str, np.ndarray]] | None = None,
    columns: int = 6,
) -> Figure:
    """Radiographs in rows, each with a title.

    Args:
        pixels: images ``(height, width)`` uint8.
        titles: one an image, for example its findings; never a patient identifier.
        masks: for each image its masks ``(height, width)`` by name; a name has one colour and line on the whole sheet.
        columns: images a row.
    """
    for name, given in (("titles", titles), ("masks", masks)):
        if given is not None and len(given) != len(pixels):
            raise StudyError(f"{len(given)} {name} for {len(pixels)} radiographs: pass one each.")
    if len(pixels) == 0 or columns < 1:
        raise StudyError("there are no radiographs to draw: pass at least one, and at least one column.")
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    lines = max((title.count("\n") + 1 for title in titles), default=0) if titles else 0
    names = sorted({name for one in masks or () for name in one})
    side = DOUBLE_MM / max(columns, 3)
    figure = new_figure(height_mm=rows * (side + 3.2 * lines) + 6 * bool(names), width_mm=side * columns)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, axes in enumerate(grid):
        clear_frame(axes)
        if place >= len(pixels):
            continue
        axes.imshow(pixels[place], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if titles:
            axes.set_title(titles[place], fontsize=6.5, loc="left", pad=2)
        for name, mask in (masks[place] if masks else {}).items():
            colour, line = _look(names.index(name))
            # A mask without an edge has no outline, and matplotlib would warn.
            if mask.any() and not mask.all():
                axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=0.8, linestyles=[line])
    if names:
        handles = [_mask_handle(name, *_look(place)) for place, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _mask_handle(name: str, colour: str, line: str) -> Line2D:
    """A legend entry of one kind of mask."""
    return Line2D([], [], color=colour, linestyle=line, linewidth=1.0, label=name.replace("_", " "))


def _look(place: int) -> tuple[str, str]:
    return _CONTOUR_COLOURS[place % len(_CONTOUR_COLOURS)], _LINE_STYLES[place % len(_LINE_STYLES)]
