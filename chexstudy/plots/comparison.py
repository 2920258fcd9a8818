"""Which method of curation is good at what: one row a method, one column a measure, random choice as the line."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate
from chexstudy.plots.measurements import describe_sample, require_rows
from chexstudy.plots.style import (
    ACCENT,
    GREY,
    INK,
    SEQUENCE,
    ArmStyle,
    add_legend,
    legend_mark,
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
    "random": "Random",
    "k_centre": "k-centre (farthest point)",
    "facility_location": "Facility location",
    "density": "Density (inverse kNN)",
    "semdedup": "SemDeDup",
    "d4": "D4",
    "prototypicality_easy": "Prototypicality, easy first",
    "prototypicality_hard": "Prototypicality, hard first",
    "hierarchical": "Hierarchical k-means",
    "agreement": "Image-text agreement",
    "loss": "Loss",
    "el2n": "EL2N",
    "learnability": "Learnability (JEST)",
    "infobatch": "InfoBatch",
}
_BUDGETS = {"same_data": "same data", "same_compute": "same compute"}
_MARKERS = {"same_data": "o", "same_compute": "s"}
_BETTER, _WORSE, _EVEN = SEQUENCE[1], ACCENT, GREY
_IN_A_ROW, _ROW_MM = 5, 3.8


def name_method(method: str) -> str:
    """A method as a reader knows it."""
    return _NAMES.get(method, method.replace("_", " ").capitalize())


def plot_method_comparison(table: pd.DataFrame) -> Drawing:
    """Every method by every measure, best on the whole at the top, with random choice as the reference.

    Args:
        table: one row a method, metric and kind of budget: ``method``, ``metric``, ``measure``, ``ci_low``, ``ci_high``
            (NaN where there is none), ``budget_kind`` (``same_data`` or ``same_compute``), and ``seeds`` and ``n`` for
            the caption.
    """
    require_rows(table[table.measure.notna()], "methods")
    metrics = _order_metrics(table)
    methods = order_methods(table)
    bands = [metrics[start : start + _IN_A_ROW] for start in range(0, len(metrics), _IN_A_ROW)]
    figure = new_figure(height_mm=len(bands) * (_ROW_MM * (len(methods) + 0.8) + 13) + 12)
    rows = figure.subplots(len(bands), min(_IN_A_ROW, len(metrics)), squeeze=False, sharey=True)
    letters = iter("abcdefghijklmnop")
    for axes_row, some in zip(rows, bands, strict=True):
        for axes in axes_row[len(some) :]:
            axes.set_axis_off()
        for axes, metric in zip(axes_row, some, strict=False):
            heading, more, _ = _describe_metric(metric)
            _draw_metric(axes, table[table.metric == metric], metric, methods)
            arrow = " \N{RIGHTWARDS ARROW}" if more else " \N{LEFTWARDS ARROW}"
            title_panel(axes, next(letters), heading + arrow)
        _label_methods(axes_row[0], methods)
    add_legend(figure, _handles(table), 4)
    return figure


def _describe_metric(metric: str) -> tuple[str, bool, float]:
    return _METRICS.get(metric, (metric.replace("_", " ").capitalize(), True, 1))


def _order_metrics(table: pd.DataFrame) -> list[str]:
    there = set(table.metric[table.measure.notna()])
    return [name for name in _METRICS if name in there] + sorted(there - set(_METRICS))


def order_methods(table: pd.DataFrame) -> list[str]:
    """Methods by their mean rank over all measures, best first; of equal ones, by name.

    A rank is taken within a measure and kind of budget, as a share of the methods measured, so that a method that
    lacks a measure is not moved by it.
    """
    known = table[table.measure.notna()]
    rising = known.metric.map(lambda metric: _describe_metric(metric)[1])
    merit = known.measure.where(rising, -known.measure)
    rank = merit.groupby([known.metric, known.budget_kind]).rank(ascending=False, pct=True)
    mean = rank.groupby(known.method).mean()
    return sorted(mean.index, key=lambda method: (mean[method], method))


def judge_against_random(row, reference: float) -> str:
    """``better``, ``worse`` or ``even``: whether a measure's interval lies beyond the measure of random choice.

    Args:
        row: with ``metric``, ``measure``, ``ci_low`` and ``ci_high``.
        reference: the measure of random choice at the same kind of budget, NaN if there is none.
    """
    if not np.isfinite([reference, row.ci_low, row.ci_high]).all() or row.ci_low <= reference <= row.ci_high:
        return "even"
    return "better" if (row.measure > reference) == _describe_metric(row.metric)[1] else "worse"


def _draw_metric(axes: Axes, rows: pd.DataFrame, metric: str, methods: list[str]) -> None:
    scale = _describe_metric(metric)[2]
    kinds = [kind for kind in _MARKERS if (rows.budget_kind == kind).any()]
    for kind in kinds:
        of_kind = rows[(rows.budget_kind == kind) & rows.measure.notna()]
        chance = of_kind[of_kind.method == RANDOM]
        reference = float(chance.measure.iloc[0]) if len(chance) else np.nan
        if np.isfinite(reference):
            line = "-" if kind == kinds[0] else (0, (3, 2))
            axes.axvline(scale * reference, color=INK, linewidth=0.7, linestyle=line, zorder=1, gid="random")
        offset = 0.0 if len(kinds) == 1 else {kinds[0]: -0.18, kinds[-1]: 0.18}[kind]
        for row in of_kind.itertuples():
            verdict = judge_against_random(row, reference)
            colour = {"better": _BETTER, "worse": _WORSE, "even": _EVEN}[verdict]
            style = ArmStyle(verdict, INK if row.method == RANDOM else colour, _MARKERS[kind])
            y = methods.index(row.method) + offset
            size = 4.0 if len(kinds) == 1 else 3.2
            draw_estimate(axes, scale * row.measure, y, scale * row.ci_low, scale * row.ci_high, style, size=size)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.yaxis.grid(True, color="#F2F2F2", linewidth=0.5)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.1)


def _label_methods(axes: Axes, methods: list[str]) -> None:
    axes.tick_params(axis="y", labelleft=True)
    axes.set_yticks(range(len(methods)), [name_method(method) for method in methods])
    for label, method in zip(axes.get_yticklabels(), methods, strict=True):
        label.set_fontweight("bold" if method in (RANDOM, _PUBLISHED) else "normal")


def _handles(table: pd.DataFrame) -> list:
    kinds = [kind for kind in _MARKERS if (table.budget_kind == kind).any()]
    handles: list = [
        Patch(facecolor=colour, label=label)
        for colour, label in (
            (_BETTER, "better than random"),
            (_EVEN, "interval holds random"),
            (_WORSE, "worse than random"),
        )
    ]
    handles += [legend_mark(ArmStyle(_BUDGETS[kind], GREY, _MARKERS[kind])) for kind in kinds]
    lines = ("-", (0, (3, 2)))
    handles += [
        Line2D([], [], color=INK, linewidth=0.7, linestyle=line, label=f"random, {_BUDGETS[kind]}")
        for kind, line in zip(kinds, lines, strict=False)
    ]
    return handles


def list_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The numbers drawn, with ``verdict`` against random choice at the same kind of budget."""
    chance = table[table.method == RANDOM].set_index(["metric", "budget_kind"]).measure
    verdicts = [
        judge_against_random(row, float(chance.get((row.metric, row.budget_kind), np.nan)))
        for row in table.itertuples()
    ]
    return table.assign(verdict=verdicts)


def describe_method_comparison(table: pd.DataFrame) -> str:
    """The caption of `plot_method_comparison`; it counts what is beyond random."""
    judged = list_comparison(table[table.measure.notna()])
    others = judged[judged.method != RANDOM]
    counts = others.verdict.value_counts()
    with_interval = table.ci_low.notna().any()
    interval = "Lines are 95 % intervals" if with_interval else "No intervals could be computed"
    budgets = " and ".join(f"the {_BUDGETS[kind]}" for kind in _MARKERS if (table.budget_kind == kind).any())
    return (
        f"Methods of curation at {budgets}, from the best mean rank over all panels at the top to the worst. Lines "
        "down the panels: random choice; arrows point to better. Blue and orange: the interval lies beyond random, "
        "without correction for the number of comparisons; grey: it holds it. "
        f"Of {len(others)} measures {counts.get('better', 0)} are better than random, {counts.get('worse', 0)} worse. "
        f"{interval}; {describe_sample(table, 'pairs to choose from or judged on')}."
    )


def conclude_method_comparison(table: pd.DataFrame) -> str:
    """How many measures of how many methods are beyond random, and which method is best on the whole."""
    others = list_comparison(table)
    others = others[others.measure.notna() & (others.method != RANDOM)]
    counts = others.verdict.value_counts()
    return (
        f"Of {len(others)} measures {counts.get('better', 0)} are better than those of random choice and "
        f"{counts.get('worse', 0)} worse; the best mean rank has {name_method(order_methods(table)[0])}."
    )


method_comparison = Figure(
    name="method_comparison",
    select=list_comparison,
    plot=plot_method_comparison,
    describe=describe_method_comparison,
    conclude=conclude_method_comparison,
)
