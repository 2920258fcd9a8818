"""What each constant of the curator changes: one row a constant, one column a measure."""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate
from chexstudy.plots.measurements import describe_sample, require_rows
from chexstudy.plots.style import ACCENT, INK, SEQUENCE, ArmStyle, add_legend, legend_mark, new_figure, title_panel

# Heading, and whether more is better (None: it is neither).
_METRICS: dict[str, tuple[str, bool | None]] = {
    "keep_ratio": ("Kept (%)", None),
    "rare_recall": ("Rare findings\nkept (%)", True),
    "enrichment": ("Tail over\nchance (\N{MULTIPLICATION SIGN})", True),
    "duplicates_removed": ("Copies\nremoved (%)", True),
    "mismatched_kept": ("Mismatched\nkept (%)", False),
    "redundancy": ("Redundancy\n(cosine)", False),
    "knn_coverage": ("Covered by\nneighbours (%)", True),
    "auroc": ("Zero-shot\nAUROC", True),
    "auroc_tail": ("Zero-shot\nAUROC, tail", True),
}
_IN_PERCENT = ("keep_ratio", "rare_recall", "duplicates_removed", "mismatched_kept", "knn_coverage")
_REFERENCE = ArmStyle("reference setting", ACCENT, "D")
_OTHER = ArmStyle("other setting", SEQUENCE[1], "o")
_ROW_MM, _GAP = 3.9, 1.35
_MOST_TICKS = 6


def plot_curator_ablation(table: pd.DataFrame) -> Drawing:
    """Every setting of every constant, with all other constants as in the reference, by each measure.

    Args:
        table: one row a factor, value and metric: ``factor``, ``value`` (text), ``published`` (whether it is the
            reference's own: the published value, or for a size the study's), ``metric``, ``measure``, ``ci_low``,
            ``ci_high`` (NaN where there is none), and ``seeds`` and ``n`` for the caption. Factors and values are drawn
            in the order in which they come.
    """
    require_rows(table, "settings")
    metrics = _order_metrics(table)
    lines = _list_lines(table)
    span = max(line for line, *_ in lines) + 1
    figure = new_figure(height_mm=_ROW_MM * (span + 0.6) + 22)
    grid = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric, letter in zip(grid, metrics, "abcdefgh", strict=False):
        heading, is_better = _METRICS.get(metric, (metric.replace("_", " ").capitalize(), None))
        arrow = {True: " \N{RIGHTWARDS ARROW}", False: " \N{LEFTWARDS ARROW}", None: ""}[is_better]
        rows = table[table.metric == metric]
        _draw_metric(axes, rows, lines, 100 if metric in _IN_PERCENT else 1)
        title_panel(axes, letter, heading + arrow)
        axes.set_ylim(span - 0.4, -0.9)
    _label_lines(grid[0], lines)
    handles = [legend_mark(_REFERENCE), legend_mark(_OTHER)]
    handles.append(Line2D([], [], color=ACCENT, linewidth=0.7, linestyle=(0, (3, 2)), label="its measure"))
    add_legend(figure, handles, 3)
    return figure


def _order_metrics(table: pd.DataFrame) -> list[str]:
    known = [name for name in _METRICS if (table.metric == name).any()]
    return known + [name for name in table.metric.unique() if name not in known]


def _list_lines(table: pd.DataFrame) -> list[tuple[float, str, str, bool]]:
    """Height on the axes, factor, value and whether it is the reference's own, factors apart by a heading."""
    lines, y = [], 0.0
    for factor in table.factor.unique():
        rows = table[table.factor == factor].drop_duplicates("value")
        for place, row in enumerate(rows.itertuples(), start=1):
            lines.append((y + place, factor, str(row.value), bool(row.published)))
        y += len(rows) + _GAP
    return lines


def _draw_metric(axes: Axes, rows: pd.DataFrame, lines: list, scale: float) -> None:
    found = {(row.factor, str(row.value)): row for row in rows.itertuples()}
    reference = [row.measure for row in found.values() if row.published and np.isfinite(row.measure)]
    if reference:
        axes.axvline(
            scale * float(np.median(reference)), color=ACCENT, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1,
            gid="published",
        )  # fmt: skip
    for y, factor, value, _ in lines:
        row = found.get((factor, value))
        if row is None or not np.isfinite(row.measure):
            continue
        style = _REFERENCE if row.published else _OTHER
        draw_estimate(axes, scale * row.measure, y, scale * row.ci_low, scale * row.ci_high, style)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#ECECEC", linewidth=0.5)
    axes.margins(x=0.12)


def _label_lines(axes: Axes, lines: list) -> None:
    axes.set_yticks([y for y, *_ in lines], [value for _, _, value, _ in lines])
    for label, (*_, reference) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if reference else "normal")
    for factor in dict.fromkeys(factor for _, factor, *_ in lines):
        first = min(y for y, name, *_ in lines if name == factor)
        heading = axes.annotate(
            factor, (0, first - 1), (-3, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            ha="right", va="center", fontweight="bold", fontsize=6.5, color=INK, annotation_clip=False,
        )  # fmt: skip
        heading.set_gid("factor")
    for each in axes.figure.axes:
        each.tick_params(axis="y", length=0)
        each.spines["left"].set_visible(False)


def describe_curator_ablation(table: pd.DataFrame, reference: str = "the published curator", over: str = "") -> str:
    """The caption of `plot_curator_ablation`.

    Args:
        reference: the reference in words, such as ``the published curator with K = 6``.
        over: what the intervals are over, such as ``over seeds``.
    """
    metrics = _order_metrics(table)
    counts = f"{table.factor.nunique()} constants, {len(_list_lines(table))} settings"
    drawn = table.ci_low.notna()
    words = f"95 % intervals {over}".strip()
    interval = f"Lines are {words}. " if drawn.any() else "No intervals could be computed. "
    without = [
        _METRICS.get(metric, (metric, None))[0].replace("\n", " ")
        for metric in metrics
        if not drawn[table.metric == metric].any()
    ]
    if without and drawn.any():
        interval += f"None for: {', '.join(without)}. "
    return (
        f"Ablation of the curator. One constant is changed, all others are as in the reference, {reference}. Diamonds "
        "and bold: the reference's own setting; dashed: its measure. Arrows point to better. "
        f"{interval}{counts}, {describe_sample(table, 'pairs')}."
    )


def plot_ratio_law(table: pd.DataFrame) -> Drawing:
    """The measured fraction selected by the published rule against ``0.10 + central_cap * prototypes / super_batch``.

    Args:
        table: as `chexstudy.experiments.selection_stability.average_ratio_law` makes it, one row a setting.
    """
    require_rows(table, "settings")
    figure = new_figure(height_mm=78, width_mm=134)
    axes, rest = figure.subplots(1, 2, width_ratios=[1.25, 1])
    top = 1.08 * float(max(table.law.max(), table.measure.max()))
    axes.plot([0, 100 * top], [0, 100 * top], color=INK, linewidth=0.7, zorder=1, gid="law")
    rest.axhline(0, color=INK, linewidth=0.7, zorder=1)
    counts = sorted(table.prototypes.unique())
    colours = [SEQUENCE[place % 8] for place in (0, 2, 4, 3, 6, 7, 1, 5)]
    markers = "osD^vP<>"
    for place, count in enumerate(counts):
        style = ArmStyle(f"K = {count}", colours[place % 8], markers[place % 8])
        for row in table[table.prototypes == count].itertuples():
            draw_estimate(axes, 100 * row.law, 100 * row.measure, 100 * row.ci_low, 100 * row.ci_high, style, True)
            off = 100 * (row.measure - row.law)
            low, high = 100 * (row.ci_low - row.law), 100 * (row.ci_high - row.law)
            # Settings of one super-batch stand beside each other, not on each other.
            beside = row.super_batch * 2 ** (0.12 * (place - (len(counts) - 1) / 2))
            draw_estimate(rest, beside, off, low, high, style, True)
    axes.set_xlim(0, 100 * top)
    axes.set_ylim(0, 100 * top)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel("0.10 + cap \N{MULTIPLICATION SIGN} K / B (%)")
    axes.set_ylabel("Measured fraction selected (%)")
    title_panel(axes, "a", "Ratio law")
    rest.set_xscale("log", base=2)
    batches = sorted(table.super_batch.unique())
    if len(batches) <= _MOST_TICKS:
        rest.set_xticks(batches)
        rest.xaxis.set_minor_locator(NullLocator())
    rest.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    rest.set_xlabel("Super-batch, B (pairs, log)")
    rest.set_ylabel("Measured minus law (points)")
    rest.margins(x=0.12, y=0.15)
    title_panel(rest, "b", "Departure")
    handles = [
        Line2D([], [], linestyle="none", marker=markers[place % 8], color=colours[place % 8], label=f"K = {count}")
        for place, count in enumerate(counts)
    ]
    add_legend(figure, handles, min(len(handles), 6))
    return figure


def describe_ratio_law(table: pd.DataFrame) -> str:
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


def conclude_curator_ablation(table: pd.DataFrame) -> str:
    """The constant that moves each measure farthest."""
    ends = table.groupby(["metric", "factor"], sort=False).measure.agg(lambda values: values.max() - values.min())
    ends = ends[ends > 0]
    if ends.empty:
        return "No constant moves a measure."
    farthest = ends.groupby("metric", sort=False).idxmax()
    words = [
        f"{_METRICS.get(metric, (metric, None))[0].replace(chr(10), ' ')} by {ends[place]:.2g} ({place[1]})"
        for metric, place in farthest.items()
    ]
    return f"The constant that moves each measure farthest: {'; '.join(words)}."


curator_ablation = Figure(
    "curator_ablation", lambda table: table, plot_curator_ablation, describe_curator_ablation, conclude_curator_ablation
)
trained_ablation = replace(curator_ablation, name="trained_ablation")


def conclude_ratio_law(table: pd.DataFrame) -> str:
    """How far the measured fractions lie from the law."""
    off = 100 * (table.measure - table.law)
    return f"In {len(table)} settings the fraction selected is {off.min():+.1f} to {off.max():+.1f} points off the law."


ratio_law = Figure("ratio_law", lambda table: table, plot_ratio_law, describe_ratio_law, conclude_ratio_law)
