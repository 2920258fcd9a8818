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

# Heading with an arrow to better, and by what values are multiplied.
_METRICS = {
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
_ROW_MM, _GAP = 3.9, 1.35
_MOST_TICKS = 6


def _select_ablation(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `chexstudy.experiments.curator_ablation.tabulate_settings`, which is drawn in its order."""
    return require_rows(table, "settings")


def _plot_ablation(table: pd.DataFrame) -> Drawing:
    """Every setting of every constant, with all other constants as in the reference, by each measure."""
    places = _place_settings(table)
    span = max(places.values()) + 1
    metrics = _order_metrics(table)
    figure = new_figure(height_mm=_ROW_MM * (span + 0.6) + 22)
    grid = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric, letter in zip(grid, metrics, "abcdefghi", strict=False):
        heading, scale = _METRICS[metric]
        _draw_metric(axes, table[(table.metric == metric) & np.isfinite(table.measure)], places, scale)
        title_panel(axes, letter, heading)
        axes.set_ylim(span - 0.4, -0.9)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    _label_lines(grid[0], table, places)
    handles = [legend_mark(_REFERENCE), legend_mark(_OTHER), Line2D([], [], label="its measure", **_DASHED)]
    add_legend(figure, handles, 3)
    return figure


def _order_metrics(table: pd.DataFrame) -> list[str]:
    return [name for name in _METRICS if (table.metric == name).any()]


def _place_settings(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Height on the axes by factor and value, factors apart by a heading."""
    places, y = {}, 0.0
    for factor, values in table.groupby("factor", sort=False).value:
        places |= {(factor, value): y + place for place, value in enumerate(values.unique(), start=1)}
        y += values.nunique() + _GAP
    return places


def _draw_metric(axes: Axes, rows: pd.DataFrame, places: dict[tuple[str, str], float], scale: float) -> None:
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
    return _METRICS[metric][0].replace("\n", " ").rstrip(" \N{LEFTWARDS ARROW}\N{RIGHTWARDS ARROW}")


def _conclude_ablation(table: pd.DataFrame) -> str:
    """The constant that moves each measure farthest."""
    ends = table.groupby(["metric", "factor"], sort=False).measure.agg(lambda values: values.max() - values.min())
    ends = ends[ends > 0]
    if ends.empty:
        return "No constant moves a measure."
    farthest = ends.groupby("metric", sort=False).idxmax()
    words = [f"{_name_metric(metric)} by {ends[place]:.2g} ({place[1]})" for metric, place in farthest.items()]
    return f"The constant that moves each measure farthest: {'; '.join(words)}."


def _select_law(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `chexstudy.experiments.selection_stability.average_ratio_law`, one row a setting."""
    return require_rows(table, "settings")


def _plot_law(table: pd.DataFrame) -> Drawing:
    """The measured fraction selected by the published rule against the law, and the departure from it."""
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
    axes.set_xlabel("0.10 + cap \N{MULTIPLICATION SIGN} K / B (%)")
    axes.set_ylabel("Measured fraction selected (%)")
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
    """How far the measured fractions lie from the law."""
    off = 100 * (table.measure - table.law)
    return f"In {len(table)} settings the fraction selected is {off.min():+.1f} to {off.max():+.1f} points off the law."


curator_ablation = Figure("curator_ablation", _select_ablation, _plot_ablation, _describe_ablation, _conclude_ablation)
trained_ablation = replace(curator_ablation, name="trained_ablation")
ratio_law = Figure("ratio_law", _select_law, _plot_law, _describe_law, _conclude_law)
