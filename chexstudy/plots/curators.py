"""What each constant of the curator changes, and which method of curation is good at what."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate, spread_arms
from chexstudy.plots.looks import ACCENT, GREY, INK, SEQUENCE, ArmStyle
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_legend, legend_mark, name_lines, new_figure, title_panel
from chexstudy.plots.words import describe_sample

# Heading with an arrow to better, and by what values are multiplied.
_ABLATION_METRICS = {
    "keep_ratio": ("Kept (%)", 100),
    "rare_recall": ("Rare findings\nkept (%) \N{RIGHTWARDS ARROW}", 100),
    "enrichment": ("Tail over\nchance (\N{MULTIPLICATION SIGN}) \N{RIGHTWARDS ARROW}", 1),
    "duplicates_removed": ("Copies\nremoved (%) \N{RIGHTWARDS ARROW}", 100),
    "mismatched_kept": ("Mismatched\nkept (%) \N{LEFTWARDS ARROW}", 100),
    "redundancy": ("Redundancy\n(cosine) \N{LEFTWARDS ARROW}", 1),
    "knn_coverage": ("Covered by\nneighbours (%) \N{RIGHTWARDS ARROW}", 100),
    "auroc": ("Zero-shot\nAUROC \N{RIGHTWARDS ARROW}", 1),
    "auroc_tail": ("Zero-shot\nAUROC, tail \N{RIGHTWARDS ARROW}", 1),
}
_REFERENCE = ArmStyle("reference setting", ACCENT, "D")
_OTHER = ArmStyle("other setting", SEQUENCE[1], "o")
_DASHED = {"color": ACCENT, "linewidth": 0.7, "linestyle": (0, (3, 2))}
_ABLATION_ROW_MM, _GAP = 3.9, 1.35
_MOST_TICKS = 6
RANDOM = "random"
_PUBLISHED = "bands"
# Heading, whether more is better, and the factor by which values are shown.
METHOD_METRICS: dict[str, tuple[str, bool, float]] = {
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
    "filtered": "Prototype bands, filtered",
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
_IN_A_ROW, _METHOD_ROW_MM = 5, 3.8


# One row a setting (and measure), drawn in this order; of `tabulate_settings` or of `average_ratio_law`.
_select_settings = partial(require_rows, what="settings")


def _plot_ablation(table: pd.DataFrame) -> Drawing:
    places = _place_settings(table)
    span = max(places.values()) + 1
    metrics = _order_metrics(table)
    figure = new_figure(height_mm=_ABLATION_ROW_MM * (span + 0.6) + 22)
    grid = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric, letter in zip(grid, metrics, "abcdefghi", strict=False):
        heading, scale = _ABLATION_METRICS[metric]
        _draw_ablation_metric(axes, table[(table.metric == metric) & table.measure.notna()], places, scale)
        title_panel(axes, letter, heading)
        axes.set_ylim(span - 0.4, -0.9)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    _label_lines(grid[0], table, places)
    handles = [legend_mark(_REFERENCE), legend_mark(_OTHER), Line2D([], [], label="its measure", **_DASHED)]
    add_legend(figure, handles, 3)
    return figure


def _order_metrics(table: pd.DataFrame) -> list[str]:
    return [name for name in _ABLATION_METRICS if (table.metric == name).any()]


def _place_settings(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Height on the axes by factor and value, factors apart by a heading."""
    places, y = {}, 0.0
    for factor, values in table.groupby("factor", sort=False).value:
        places |= {(factor, value): y + place for place, value in enumerate(values.unique(), start=1)}
        y += values.nunique() + _GAP
    return places


def _draw_ablation_metric(axes: Axes, rows: pd.DataFrame, places: dict[tuple[str, str], float], scale: float) -> None:
    if rows.published.any():
        axes.axvline(scale * rows.measure[rows.published].median(), zorder=1, gid="published", **_DASHED)
    for row in rows.itertuples():
        ends = (scale * row.measure, scale * row.ci_low, scale * row.ci_high)
        draw_estimate(axes, places[row.factor, row.value], ends, _REFERENCE if row.published else _OTHER)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.grid(axis="x")
    axes.margins(x=0.12)


def _label_lines(axes: Axes, table: pd.DataFrame, places: dict[tuple[str, str], float]) -> None:
    axes.set_yticks(list(places.values()), [value for _, value in places])
    own = set(table.loc[table.published, ["factor", "value"]].itertuples(index=False, name=None))
    for label, setting in zip(axes.get_yticklabels(), places, strict=True):
        label.set_fontweight("bold" if setting in own else "normal")
    heads = {}
    for (factor, _), y in places.items():
        heads.setdefault(factor, y - 1)
    for factor, y in heads.items():
        axes.annotate(
            factor, (0, y), (-3, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            ha="right", va="center", fontweight="bold", fontsize=6.5, color=INK, annotation_clip=False, gid="factor",
        )  # fmt: skip


def _describe_ablation(table: pd.DataFrame, reference: str = "the published curator", over: str = "") -> str:
    """The caption; ``reference`` in words, and what the intervals are ``over``, such as ``over seeds``."""
    interval = "No intervals could be computed. "
    if table.ci_low.notna().any():
        interval = f"Lines are {f'95 % intervals {over}'.strip()}. "
        without = [one for one in _order_metrics(table) if table.ci_low[table.metric == one].isna().all()]
        interval += f"None for: {', '.join(map(_name_metric, without))}. " if without else ""
    return (
        f"Ablation of the curator. One constant is changed, all others are as in the reference, {reference}. Diamonds "
        "and bold: the reference's own setting; dashed: its measure. Arrows point to better. "
        f"{interval}{table.factor.nunique()} constants, {len(_place_settings(table))} settings, "
        f"{describe_sample(table, 'pairs')}."
    )


def _name_metric(metric: str) -> str:
    return _ABLATION_METRICS[metric][0].replace("\n", " ").rstrip(" \N{LEFTWARDS ARROW}\N{RIGHTWARDS ARROW}")


def _conclude_ablation(table: pd.DataFrame) -> str:
    ends = table.groupby(["metric", "factor"], sort=False).measure.agg(lambda values: values.max() - values.min())
    ends = ends[ends > 0]
    if ends.empty:
        return "No constant moves a measure."
    farthest = ends.groupby("metric", sort=False).idxmax()
    words = [f"{_name_metric(metric)} by {ends[place]:.2g} ({place[1]})" for metric, place in farthest.items()]
    return f"The constant that moves each measure farthest: {'; '.join(words)}."


def _plot_law(table: pd.DataFrame) -> Drawing:
    figure = new_figure(height_mm=78, width_mm=134)
    axes, rest = figure.subplots(1, 2, width_ratios=[1.25, 1])
    top = 108 * max(table.law.max(), table.measure.max())
    axes.plot([0, top], [0, top], color=INK, linewidth=0.7, zorder=1, gid="law")
    rest.axhline(0, color=INK, linewidth=0.7, zorder=1)
    colours, handles = [SEQUENCE[place] for place in (0, 2, 4, 3, 6, 7, 1, 5)], []
    by_count = table.groupby("prototypes")
    for place, (count, rows) in enumerate(by_count):
        style = ArmStyle(f"K = {count}", colours[place % 8], "osD^vP<>"[place % 8])
        handles.append(Line2D([], [], linestyle="none", marker=style.marker, color=style.colour, label=style.name))
        for row in rows.itertuples():
            ends = np.array([row.measure, row.ci_low, row.ci_high])
            draw_estimate(axes, 100 * row.law, 100 * ends, style, vertical=True)
            # Settings of one super-batch stand beside each other, not on each other.
            beside = row.super_batch * 2 ** (0.12 * (place - (len(by_count) - 1) / 2))
            draw_estimate(rest, beside, 100 * (ends - row.law), style, vertical=True)
    axes.set(xlim=(0, top), ylim=(0, top))
    axes.set_aspect("equal", adjustable="box")
    axes.set(xlabel="0.10 + cap \N{MULTIPLICATION SIGN} K / B (%)", ylabel="Measured fraction selected (%)")
    title_panel(axes, "a", "Ratio law")
    rest.set_xscale("log", base=2)
    batches = sorted(table.super_batch.unique())
    if len(batches) <= _MOST_TICKS:
        rest.set_xticks(batches)
        rest.xaxis.set_minor_locator(NullLocator())
    rest.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    rest.set(xlabel="Super-batch, B (pairs, log)", ylabel="Measured minus law (points)")
    rest.margins(x=0.12, y=0.15)
    title_panel(rest, "b", "Departure")
    add_legend(figure, handles, min(len(handles), 6))
    return figure


def _describe_law(table: pd.DataFrame) -> str:
    off = 100 * (table.measure - table.law)
    least, most = (f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") for value in (off.min(), off.max()))
    interval = "Lines are 95 % intervals over seeds" if table.ci_low.notna().any() else "No intervals"
    return (
        "The fraction that the published rule selects is set by its constants, not the data: measured against 0.10 + "
        "cap \N{MULTIPLICATION SIGN} K / B, at most 0.95, for K prototypes, cap central members each and super-batches "
        f"of B pairs (a), and the departure by B (b). Over {len(table)} settings the measured fraction lies from "
        f"{least} to {most} points off. Prototypes with fewer central members than the cap keep less. "
        f"{interval}, {describe_sample(table, 'pairs')}."
    )


def _conclude_law(table: pd.DataFrame) -> str:
    off = 100 * (table.measure - table.law)
    return f"In {len(table)} settings the fraction selected is {off.min():+.1f} to {off.max():+.1f} points off the law."


curator_ablation = Figure("curator_ablation", _select_settings, _plot_ablation, _describe_ablation, _conclude_ablation)
trained_ablation = replace(curator_ablation, name="trained_ablation")
ratio_law = Figure("ratio_law", _select_settings, _plot_law, _describe_law, _conclude_law)


def name_method(method: str) -> str:
    """A method of curation as words."""
    return _NAMES.get(method, method.replace("_", " ").capitalize())


def _select(table: pd.DataFrame) -> pd.DataFrame:
    """`chexstudy.experiments.curator_comparison.tabulate_comparison` with ``verdict`` against random choice."""
    require_rows(table[table.measure.notna()], "methods")
    chance = table[table.method == RANDOM].set_index(["metric", "budget_kind"]).measure
    verdicts = [_judge(row, float(chance.get((row.metric, row.budget_kind), np.nan))) for row in table.itertuples()]
    return table.assign(verdict=verdicts)


def _judge(row, reference: float) -> str:
    """Whether and to which side an interval lies beyond the measure of random choice (NaN if there is none)."""
    if not np.isfinite([reference, row.ci_low, row.ci_high]).all() or row.ci_low <= reference <= row.ci_high:
        return "even"
    return "better" if (row.measure > reference) == METHOD_METRICS[row.metric][1] else "worse"


def _plot(table: pd.DataFrame) -> Drawing:
    table = table[table.measure.notna()]
    metrics = [name for name in METHOD_METRICS if (table.metric == name).any()]
    methods = order_methods(table)
    bands = [metrics[start : start + _IN_A_ROW] for start in range(0, len(metrics), _IN_A_ROW)]
    figure = new_figure(height_mm=len(bands) * (_METHOD_ROW_MM * (len(methods) + 0.8) + 13) + 12)
    grid = figure.subplots(len(bands), min(_IN_A_ROW, len(metrics)), squeeze=False, sharey=True)
    for axes, metric, letter in zip(grid.ravel(), metrics, "abcdefghij", strict=False):
        heading, rising, scale = METHOD_METRICS[metric]
        _draw_method_metric(axes, table[table.metric == metric], scale, methods)
        title_panel(axes, letter, heading + (" \N{RIGHTWARDS ARROW}" if rising else " \N{LEFTWARDS ARROW}"))
    for unused in grid.ravel()[len(metrics) :]:
        unused.set_axis_off()
    for first in grid[:, 0]:
        first.tick_params(axis="y", labelleft=True)
        name_lines(first, [name_method(method) for method in methods])
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
    merit = known.measure.where(known.metric.map(lambda metric: METHOD_METRICS[metric][1]), -known.measure)
    rank = merit.groupby([known.metric, known.budget_kind]).rank(ascending=False, pct=True)
    mean = rank.groupby(known.method).mean()
    return sorted(mean.index, key=lambda method: (mean[method], method))


def _draw_method_metric(axes: Axes, rows: pd.DataFrame, scale: float, methods: list[str]) -> None:
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
    return f"{_count_beyond(table)}; the best mean rank has {name_method(order_methods(table)[0])}."


method_comparison = Figure("method_comparison", _select, _plot, _describe, _conclude)
