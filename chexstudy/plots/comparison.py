"""Which method of curation is good at what: one row a method, one column a measure, random choice as the line."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate, spread_arms
from chexstudy.plots.measurements import describe_sample, require_rows
from chexstudy.plots.style import (
    ACCENT,
    GREY,
    INK,
    SEQUENCE,
    ArmStyle,
    add_legend,
    legend_mark,
    name_lines,
    new_figure,
    title_panel,
)

RANDOM = "random"
_PUBLISHED = "bands"
# Heading, whether more is better, and the factor by which values are shown.
_METRICS: dict[str, tuple[str, bool, float]] = {
    "rare_recall": ("Rare findings\nkept (%)", True, 100),
    "redundancy": ("Redundancy", False, 1),
    "coverage_radius": ("Coverage\nradius", False, 1),
    "knn_coverage": ("kNN\ncoverage (%)", True, 100),
    "mismatched_kept": ("Mismatched\nkept (%)", False, 100),
    "junk_kept": ("Junk\nkept (%)", False, 100),
    "auroc_macro": ("AUROC,\nall findings", True, 1),
    "auroc_head": ("AUROC,\ncommon", True, 1),
    "auroc_medium": ("AUROC,\nmedium", True, 1),
    "auroc_tail": ("AUROC,\nrare", True, 1),
}
_NAMES = {
    "bands": "Prototype bands (published)",
    "budgeted": "Prototype bands, budgeted",
    "k_centre": "k-centre (farthest point)",
    "density": "Density (inverse kNN)",
    "semdedup": "SemDeDup",
    "d4": "D4",
    "prototypicality_easy": "Prototypicality, easy first",
    "prototypicality_hard": "Prototypicality, hard first",
    "hierarchical": "Hierarchical k-means",
    "agreement": "Image-text agreement",
    "el2n": "EL2N",
    "learnability": "Learnability (JEST)",
    "infobatch": "InfoBatch",
}
_BUDGETS = {"same_data": ArmStyle("same data", GREY, "o"), "same_compute": ArmStyle("same compute", GREY, "s")}
_VERDICTS = {"better": SEQUENCE[1], "even": GREY, "worse": ACCENT}
_LINES = ("-", (0, (3, 2)))
_IN_A_ROW, _ROW_MM = 5, 3.8


def _name_method(method: str) -> str:
    return _NAMES.get(method, method.replace("_", " ").capitalize())


def _select(table: pd.DataFrame) -> pd.DataFrame:
    """The numbers drawn, with ``verdict`` against random choice at the same kind of budget.

    Args:
        table: of `chexstudy.experiments.curator_comparison.tabulate_comparison`.
    """
    require_rows(table[table.measure.notna()], "methods")
    chance = table[table.method == RANDOM].set_index(["metric", "budget_kind"]).measure
    verdicts = [_judge(row, float(chance.get((row.metric, row.budget_kind), np.nan))) for row in table.itertuples()]
    return table.assign(verdict=verdicts)


def _judge(row, reference: float) -> str:
    """Whether and to which side an interval lies beyond the measure of random choice (NaN if there is none)."""
    if not np.isfinite([reference, row.ci_low, row.ci_high]).all() or row.ci_low <= reference <= row.ci_high:
        return "even"
    return "better" if (row.measure > reference) == _METRICS[row.metric][1] else "worse"


def _plot(table: pd.DataFrame) -> Drawing:
    """Every method by every measure, best on the whole at the top, with random choice as the reference."""
    table = table[table.measure.notna()]
    metrics = [name for name in _METRICS if (table.metric == name).any()]
    methods = order_methods(table)
    bands = [metrics[start : start + _IN_A_ROW] for start in range(0, len(metrics), _IN_A_ROW)]
    figure = new_figure(height_mm=len(bands) * (_ROW_MM * (len(methods) + 0.8) + 13) + 12)
    grid = figure.subplots(len(bands), min(_IN_A_ROW, len(metrics)), squeeze=False, sharey=True)
    for axes, metric, letter in zip(grid.ravel(), metrics, "abcdefghij", strict=False):
        heading, rising, scale = _METRICS[metric]
        _draw_metric(axes, table[table.metric == metric], scale, methods)
        title_panel(axes, letter, heading + (" \N{RIGHTWARDS ARROW}" if rising else " \N{LEFTWARDS ARROW}"))
    for unused in grid.ravel()[len(metrics) :]:
        unused.set_axis_off()
    for first in grid[:, 0]:
        first.tick_params(axis="y", labelleft=True)
        name_lines(first, [_name_method(method) for method in methods])
        for label, method in zip(first.get_yticklabels(), methods, strict=True):
            label.set_fontweight("bold" if method in (RANDOM, _PUBLISHED) else "normal")
    words = ("better than random", "interval holds random", "worse than random")
    handles = [Patch(facecolor=colour, label=word) for colour, word in zip(_VERDICTS.values(), words, strict=True)]
    kinds = _list_budgets(table)
    handles += [legend_mark(_BUDGETS[kind]) for kind in kinds]
    handles += [
        Line2D([], [], color=INK, linewidth=0.7, linestyle=line, label=f"random, {_BUDGETS[kind].name}")
        for kind, line in zip(kinds, _LINES, strict=False)
    ]
    add_legend(figure, handles, 4)
    return figure


def _list_budgets(table: pd.DataFrame) -> list[str]:
    return [kind for kind in _BUDGETS if (table.budget_kind == kind).any()]


def order_methods(table: pd.DataFrame) -> list[str]:
    """Methods by their mean rank over all measures, best first; of equal ones, by name.

    A rank is taken within a measure and kind of budget, as a share of the methods measured, so that a method that
    lacks a measure is not moved by it.
    """
    known = table[table.measure.notna()]
    merit = known.measure.where(known.metric.map(lambda metric: _METRICS[metric][1]), -known.measure)
    rank = merit.groupby([known.metric, known.budget_kind]).rank(ascending=False, pct=True)
    mean = rank.groupby(known.method).mean()
    return sorted(mean.index, key=lambda method: (mean[method], method))


def _draw_metric(axes: Axes, rows: pd.DataFrame, scale: float, methods: list[str]) -> None:
    kinds = _list_budgets(rows)
    for kind, line, offset in zip(kinds, _LINES, spread_arms(len(kinds), 0.36), strict=False):
        of_kind = rows[rows.budget_kind == kind]
        for reference in of_kind.measure[of_kind.method == RANDOM].iloc[:1]:
            axes.axvline(scale * reference, color=INK, linewidth=0.7, linestyle=line, zorder=1, gid="random")
        for row in of_kind.itertuples():
            colour = INK if row.method == RANDOM else _VERDICTS[row.verdict]
            style, ends = ArmStyle("", colour, _BUDGETS[kind].marker), (row.measure, row.ci_low, row.ci_high)
            size = 4.0 if len(kinds) == 1 else 3.2
            draw_estimate(axes, methods.index(row.method) + offset, scale * np.array(ends), style, size=size)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color="#F2F2F2")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.1)


def _count_beyond(table: pd.DataFrame) -> str:
    verdicts = table.verdict[table.measure.notna() & (table.method != RANDOM)]
    better, worse = ((verdicts == verdict).sum() for verdict in ("better", "worse"))
    return f"Of {len(verdicts)} measures {better} are better than random choice, {worse} worse"


def _describe(table: pd.DataFrame) -> str:
    interval = "Lines are 95 % intervals" if table.ci_low.notna().any() else "No intervals could be computed"
    budgets = " and ".join(f"the {_BUDGETS[kind].name}" for kind in _list_budgets(table))
    return (
        f"Methods of curation at {budgets}, from the best mean rank over all panels at the top to the worst. Lines "
        "down the panels: random choice; arrows point to better. Blue and orange: the interval lies beyond random, "
        f"without correction for the number of comparisons; grey: it holds it. {_count_beyond(table)}. "
        f"{interval}; {describe_sample(table, 'pairs to choose from or judged on')}."
    )


def _conclude(table: pd.DataFrame) -> str:
    """How many measures of how many methods are beyond random, and which method is best on the whole."""
    return f"{_count_beyond(table)}; the best mean rank has {_name_method(order_methods(table)[0])}."


method_comparison = Figure("method_comparison", _select, _plot, _describe, _conclude)
