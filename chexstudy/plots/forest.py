"""Estimates with intervals under each other, in groups with a heading: the form of most comparisons."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from chexstudy.plots.looks import GREY, INK, ArmStyle
from chexstudy.plots.measurements import interval, seed_values, summarise_seeds
from chexstudy.plots.style import add_legend, draw_marks, legend_mark, title_panel
from chexstudy.results import write_interval

ROW_MM = 3.9


@dataclass(frozen=True)
class Estimate:
    """One line of a forest: its ``value`` and the ends of its interval (NaN where there is none), and single seeds'."""

    label: str
    ends: tuple[float, float, float]
    style: ArmStyle
    seeds: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Group:
    """Lines under one heading."""

    heading: str
    estimates: list[Estimate]


def list_estimates(rows: pd.DataFrame, column: str, looks: Mapping[str, ArmStyle], scale: float = 1) -> list[Estimate]:
    """The estimates, over seeds and of each, of those ``looks`` whose key some rows have in a column."""
    found = {getattr(row, column): row for row in summarise_seeds(rows).itertuples()}
    return [
        Estimate(style.name, interval(found[key], scale), style, scale * seed_values(rows, **{column: key}))
        for key, style in looks.items()
        if key in found
    ]


def draw_estimate(
    axes: Axes,
    place: float,
    ends: tuple[float, float, float],
    style: ArmStyle,
    vertical: bool = False,
    size: float = 4.2,
) -> None:
    """A marker at a value with its 95 % interval (``value, low, high``), along x or (``vertical``) along y."""
    value, *interval = ends
    if np.isfinite(interval).all():
        across, along = ([place, place], interval) if vertical else (interval, [place, place])
        axes.plot(across, along, color=style.colour, linewidth=1.1, solid_capstyle="butt", gid="interval", zorder=2)
    x, y = (place, value) if vertical else (value, place)
    draw_marks(axes, [x], [y], style, size, gid="estimate", zorder=4)


def draw_seeds(axes: Axes, place: float, seeds: np.ndarray, style: ArmStyle, vertical: bool = False) -> None:
    """The values of single seeds, as small open marks."""
    places = np.full(len(seeds), place)
    axes.plot(
        *((places, seeds) if vertical else (seeds, places)), style.marker, color=style.colour, markersize=2.2,
        markerfacecolor="white", markeredgewidth=0.5, linestyle="none", gid="seeds", zorder=3,
    )  # fmt: skip


def spread_arms(count: int, width: float = 0.6) -> np.ndarray:
    """How far aside of their place so many marks stand."""
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(1)


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

    ``heights`` are the lines kept for each group (`level_groups`). A vertical line marks the ``reference``, such as no
    difference. With a ``number_format``, such as ``+.3f``, value and interval are written to the right of the axes.
    """
    y, lines = 0.0, {}
    for group, height in zip(groups, heights, strict=False):
        head_group(axes, y, group.heading, at_axes=heading_at_axes)
        for line, estimate in enumerate(group.estimates, start=1):
            lines[y + line] = estimate.label
            if len(estimate.seeds):
                draw_seeds(axes, y + line + 0.32, estimate.seeds, estimate.style)
            draw_estimate(axes, y + line, estimate.ends, estimate.style)
            if number_format:
                axes.text(
                    1.03, y + line, write_interval(*estimate.ends, number_format),
                    transform=axes.get_yaxis_transform(), va="center", fontsize=6,
                )  # fmt: skip
        y += height + 1.35
    axes.set_ylim(y - 0.75, -0.75)
    frame_lines(axes, lines, reference)


def head_group(axes: Axes, y: float, heading: str, at_axes: bool = True) -> None:
    """A heading that runs over the labels or out of the axes, but never narrows them."""
    start = axes.transAxes if at_axes else axes.figure.transFigure
    axes.text(
        0.0 if at_axes else 0.008, y, heading, transform=blended_transform_factory(start, axes.transData),
        fontweight="bold", fontsize=6.5, va="center", zorder=5, in_layout=False,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip


def frame_lines(axes: Axes, lines: dict[float, str], reference: float | None = None, ticks: int = 4) -> None:
    """Labels of the lines of a forest, few ticks along x, and a line at the reference."""
    axes.set_yticks(list(lines), list(lines.values()))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10]))
    axes.grid(axis="x")
    if reference is not None:
        axes.axvline(reference, color=INK, linewidth=0.6, zorder=1)


def draw_values_and_differences(
    figure,
    values: dict,
    differences: dict,
    labels: tuple[str, str],
    titles: dict[str, str],
    chance: float | None,
    **options,
) -> None:
    """Forests of values and, if there are any, of differences, with the groups of the same keys level.

    ``titles`` are those of both panels by their letters, ``chance`` is what a blind model gets.
    """
    left, right = list(values.values()), [differences.get(key, Group("", [])) for key in values]
    heights, both = level_groups(left, right), any(group.estimates for group in right)
    panels = figure.subplots(1, 2, width_ratios=[1.15, 1]) if both else [figure.subplots()]
    draw_forest(panels[0], left, heights, **options)
    panels[0].margins(x=0.06)
    if chance is not None and panels[0].get_xlim()[0] <= chance <= panels[0].get_xlim()[1]:
        panels[0].axvline(chance, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    if both:
        draw_forest(panels[1], right, heights, reference=0.0, number_format="+.3f")
        panels[1].margins(x=0.08)
    for axes, label, (letter, title) in zip(panels, labels, titles.items(), strict=False):
        axes.set_xlabel(label)
        title_panel(axes, letter, title)


def add_arm_legend(figure: Drawing, styles: Iterable[ArmStyle]) -> None:
    """One legend of looks for a whole figure, under it."""
    handles = [legend_mark(style) for style in styles]
    add_legend(figure, handles, min(5, len(handles)))
