"""Estimates with intervals under each other, in groups with a heading: the form of most comparisons."""

from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from chexstudy.plots.style import GREY, INK, ArmStyle, add_legend, legend_mark
from chexstudy.results import write_interval

ROW_MM = 3.9


@dataclass(frozen=True)
class Estimate:
    """One line of a forest: a value, its interval (NaN where there is none) and the single seeds' values."""

    label: str
    value: float
    low: float
    high: float
    style: ArmStyle
    seeds: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Group:
    """Lines under one heading."""

    heading: str
    estimates: list[Estimate]


def draw_estimate(
    axes: Axes, x: float, y: float, low: float, high: float, style: ArmStyle, vertical: bool = False, size: float = 4.2
) -> None:
    """A marker with its 95 % interval, along x or (``vertical``) along y."""
    if np.isfinite(low) and np.isfinite(high):
        across, along = ([x, x], [low, high]) if vertical else ([low, high], [y, y])
        axes.plot(across, along, color=style.colour, linewidth=1.1, solid_capstyle="butt", gid="interval", zorder=2)
    axes.plot(
        [x], [y], style.marker, color=style.colour, markersize=size, markeredgecolor="white", markeredgewidth=0.4,
        gid="estimate", zorder=4,
    )  # fmt: skip


def draw_seeds(axes: Axes, x, y, style: ArmStyle) -> None:
    """The values of single seeds, as small open marks."""
    axes.plot(
        x, y, style.marker, color=style.colour, markersize=2.2, markerfacecolor="white", markeredgewidth=0.5,
        linestyle="none", gid="seeds", zorder=3,
    )  # fmt: skip


def level_groups(*columns: list[Group]) -> list[int]:
    """How many lines each group needs so that forests drawn side by side keep level."""
    rows = max(len(groups) for groups in columns)
    return [max(len(groups[i].estimates) if i < len(groups) else 0 for groups in columns) for i in range(rows)]


def forest_height_mm(heights: list[int]) -> float:
    """Height of a forest's axes at a legible spacing."""
    return ROW_MM * sum(height + 1.35 for height in heights)


def draw_forest(
    axes: Axes,
    groups: list[Group],
    heights: list[int],
    reference: float | None = None,
    number_format: str = "",
    heading_at_axes: bool = False,
) -> None:
    """Draw groups of estimates from the top down.

    Args:
        heights: lines kept for each group (`level_groups`).
        reference: a value marked by a vertical line, such as no difference.
        number_format: if given, value and interval are written to the right of the axes, for example ``+.3f``.
        heading_at_axes: begin headings at the axes' left end, not at the figure's.
    """
    y, ticks, labels = 0.0, [], []
    for group, height in zip(groups, heights, strict=False):
        # A heading runs over the labels or out of the axes, but never narrows them.
        start = axes.transAxes if heading_at_axes else axes.figure.transFigure
        heading = axes.text(
            0.0 if heading_at_axes else 0.008, y, group.heading,
            transform=blended_transform_factory(start, axes.transData),
            fontweight="bold", fontsize=6.5, va="center", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
        heading.set_in_layout(False)
        for line, estimate in enumerate(group.estimates, start=1):
            ticks.append(y + line)
            labels.append(estimate.label)
            if len(estimate.seeds):
                draw_seeds(axes, estimate.seeds, np.full(len(estimate.seeds), y + line + 0.32), estimate.style)
            draw_estimate(axes, estimate.value, y + line, estimate.low, estimate.high, estimate.style)
            if number_format:
                axes.text(
                    1.03, y + line, write_interval(estimate.value, estimate.low, estimate.high, number_format),
                    transform=axes.get_yaxis_transform(), va="center", fontsize=6,
                )  # fmt: skip
        y += height + 1.35
    axes.set_ylim(y - 0.75, -0.75)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#ECECEC", linewidth=0.5)
    if reference is not None:
        axes.axvline(reference, color=INK, linewidth=0.6, zorder=1)


def add_arm_legend(figure: Drawing, styles: list[ArmStyle]) -> None:
    """One legend of arms for a whole figure, under it."""
    by_name = {style.name: style for style in styles}
    handles = [legend_mark(style) for style in by_name.values()]
    add_legend(figure, handles, min(5, len(handles)))


def draw_chance(axes: Axes, value: float) -> None:
    """A dashed line where a blind model would be, if the axes reach it."""
    low, high = axes.get_xlim()
    if low <= value <= high:
        axes.axvline(value, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
