"""One look for all figures: sizes in millimetres, type, legends, scales and marks."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from chexstudy.plots.looks import ArmStyle

DOUBLE_MM = 183.0
_MM_PER_INCH = 25.4


def use_style() -> None:
    """Set the type, lines and sizes of all figures. `new_figure` calls it; so may a notebook for figures of its own."""
    plt.style.use(Path(__file__).with_name("figures.mplstyle"))


def new_figure(height_mm: float, width_mm: float = DOUBLE_MM) -> Figure:
    """An empty figure of a given size; its panels are laid out so that nothing overlaps.

    pyplot forgets it at once: a notebook shows the figure a cell returns, once, and none pile up in memory.
    """
    use_style()
    figure = plt.figure(figsize=(width_mm / _MM_PER_INCH, height_mm / _MM_PER_INCH), layout="constrained")
    figure.get_layout_engine().set(w_pad=2.5 / 72, h_pad=2.5 / 72, wspace=0.03, hspace=0.04)
    plt.close(figure)
    return figure


def title_panel(axes: Axes, letter: str, title: str = "", **options) -> None:
    """Put the panel's bold letter and its title over the left end of the axes."""
    axes.set_title(rf"$\mathbf{{{letter}}}$" + (f"   {title}" if title else ""), loc="left", **options)


def legend_mark(style: ArmStyle, line: str = "none") -> Line2D:
    """The legend entry of a look."""
    return Line2D([], [], linestyle=line, marker=style.marker, color=style.colour, markersize=4.2, label=style.name)


def add_legend(figure: Figure, handles: list, columns: int = 0) -> None:
    """One legend for a whole figure, under it; in one row if no number of columns is given."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns or len(handles))


def name_lines(axes: Axes, names: list[str], ticks: float = 0.0) -> None:
    """Write the names of lines 0, 1, ... from the top down; ``ticks`` is the length of their ticks."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=ticks)


def scale_log(axes: Axes, along: str = "x", parts: tuple[int, ...] = (1, 2, 5)) -> None:
    """A logarithmic axis with ticks at these parts of each decade, thousands written as ``k``."""
    axes.set(**{f"{along}scale": "log"})
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=parts))
    axis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axis.set_minor_locator(NullLocator())


def draw_marks(axes: Axes, x, y, style: ArmStyle, size: float = 4.0, **options) -> None:
    """Marks of one look with white edges, by themselves if no line is asked for."""
    options = {"linestyle": "none", "markeredgewidth": 0.4} | options
    axes.plot(x, y, marker=style.marker, color=style.colour, markersize=size, markeredgecolor="white", **options)


def show_radiograph(axes: Axes, pixels: np.ndarray, **options) -> None:
    """Pixels from 0, black, to 255, white, each as it is: smoothed, a file is larger and shows no more."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", **options)


def add_colour_bar(drawn, axes: Axes | list[Axes], label: str, **options) -> None:
    """A bar without a frame that says what the colours of a map or an image mean."""
    bar = drawn.axes.figure.colorbar(drawn, ax=axes, pad=0.02, **options)
    bar.set_label(label)
    bar.outline.set_visible(False)


def clear_frame(axes: Axes) -> None:
    """Leave nothing of the axes but what is drawn in them: for maps and radiographs."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def frame_map(axes: Axes, points: pd.DataFrame) -> None:
    """Limits of a map of points ``x, y`` that few far ones do not stretch, at one scale; call it after drawing."""
    for column, set_limits in (("x", axes.set_xlim), ("y", axes.set_ylim)):
        low, high = np.quantile(points[column], [0.002, 0.998])
        margin = 0.06 * (high - low) or 1.0
        low, high = max(low, points[column].min()) - margin, min(high, points[column].max()) + margin
        # auto=True lets the limits widen where the panel's shape asks for it.
        set_limits(low, high, auto=True)
    axes.set_aspect("equal", adjustable="datalim")
    clear_frame(axes)
