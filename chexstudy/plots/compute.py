"""What performance costs: against pairs trained on, and against operations counted."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate, draw_seeds
from chexstudy.plots.measurements import (
    describe_interval,
    name_data_set,
    name_setting,
    preferred_data_set,
    preferred_setting,
    require_rows,
    select_rows,
    short_name,
    summarise_seeds,
)
from chexstudy.plots.style import INK, arm_style, new_figure, order_arms, title_panel
from chexstudy.results import write_interval

# Up to this loss of AUROC, the whole interval included, a saving counts as free.
MARGIN = 0.02


def select_compute(results: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Macro zero-shot AUROC of each arm on the preferred test set beside its mean cost over seeds.

    Args:
        costs: one row an arm and seed with ``pairs_trained``, ``flops`` and ``seconds``.

    Returns:
        As `summarise_seeds`, with the cost columns.
    """
    rows = _measured(results)
    mean = costs.groupby("arm", sort=False)[["pairs_trained", "flops", "seconds"]].mean().reset_index()
    table = summarise_seeds(rows).merge(mean, on="arm")
    return require_rows(table, "arm with both a cost and a zero-shot AUROC")


def _measured(results: pd.DataFrame) -> pd.DataFrame:
    rows = require_rows(select_rows(results, "zero_shot", metric="auroc", finding="macro"), "zero-shot AUROC")
    rows = rows[rows.data_set == preferred_data_set(rows)]
    return rows[rows.setting == preferred_setting(rows)]


def plot_compute(results: pd.DataFrame, costs: pd.DataFrame) -> Drawing:
    """AUROC against pairs trained on and against operations, and both costs relative to the dearest arm."""
    table = select_compute(results, costs)
    rows = _measured(results)
    figure = new_figure(height_mm=66)
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    axes[1].sharey(axes[0])
    arms = order_arms(table.arm)
    unit, unit_name = choose_unit(table.flops.max())
    scaled, costs = table.assign(flops=table.flops / unit), costs.assign(flops=costs.flops / unit)
    for one, cost, label in (
        (axes[0], "pairs_trained", "Pairs trained on (log)"),
        (axes[1], "flops", f"Compute ({unit_name}, log)"),
    ):
        for arm, shift in zip(arms, _spread_equal([scaled.set_index("arm")[cost][arm] for arm in arms]), strict=True):
            row, style = scaled[scaled.arm == arm].iloc[0], arm_style(arm, arms)
            of_seeds = rows[(rows.arm == arm) & (rows.seed >= 0)].merge(costs, on=["arm", "seed"], suffixes=("_", ""))
            drawn = len(one.lines)
            if len(of_seeds) > 1:
                draw_seeds(one, of_seeds[cost], of_seeds.value, style)
            draw_estimate(one, row[cost], row.value, row.ci_low, row.ci_high, style, vertical=True, size=5)
            aside = ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
            for line in one.lines[drawn:]:
                line.set_transform(one.transData + aside)
        scale_log(one, scaled[cost])
        one.set_xlabel(label)
        one.grid(axis="y", color="#ECECEC", linewidth=0.5)
    axes[0].set_ylabel("Macro AUROC, zero-shot")
    axes[1].tick_params(labelleft=False)
    title_panel(axes[0], "a", "By data")
    title_panel(axes[1], "b", "By compute")
    _annotate_saving(axes[1], results, table, unit)
    _draw_relative_costs(axes[2], table, arms)
    title_panel(axes[2], "c", "Relative cost")
    add_arm_legend(figure, [arm_style(arm, arms) for arm in arms])
    return figure


def choose_unit(flops: float) -> tuple[float, str]:
    """The unit in which the dearest arm's operations are a number of few digits."""
    names = {1e9: "GFLOPs", 1e12: "TFLOPs", 1e15: "PFLOPs", 1e18: "EFLOPs", 1e21: "ZFLOPs"}
    unit = max((unit for unit in names if unit <= flops), default=1e9)
    return unit, names[unit]


def _spread_equal(costs: list[float]) -> list[float]:
    """How many points aside each arm is drawn, so that arms of nearly equal cost do not cover each other."""
    logs = np.log(np.asarray(costs, dtype=float))
    shifts = []
    for place, value in enumerate(logs):
        near = np.flatnonzero(np.abs(logs - value) < np.log(1.15))
        shifts.append(6.0 * (int((near < place).sum()) - (len(near) - 1) / 2))
    return shifts


def scale_log(axes: Axes, costs: pd.Series) -> None:
    """A log axis with room beside the points and ticks at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.set_xlim(costs.min() / 1.7, costs.max() * 1.7)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_relative_costs(axes: Axes, table: pd.DataFrame, arms: list[str]) -> None:
    parts = (("pairs_trained", "pairs", ""), ("flops", "FLOPs", "////"), ("seconds", "time", "...."))
    ordered = table.set_index("arm").loc[arms]
    for line, (cost, word, hatch) in enumerate(parts):
        share = 100 * ordered[cost] / ordered[cost].max()
        y = np.arange(len(arms)) + (line - 1) * 0.26
        for arm, place, value in zip(arms, y, share, strict=True):
            colour = arm_style(arm, arms).colour
            axes.barh(place, value, 0.22, facecolor="white" if hatch else colour, edgecolor=colour, hatch=hatch, lw=0.6)
            axes.text(value + 2, place, f"{value:.0f} % {word}", va="center", fontsize=5.5)
    axes.set_yticks(np.arange(len(arms)), [arm_style(arm, arms).name for arm in arms])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 150)
    axes.set_xticks([0, 50, 100])
    axes.set_xlabel("% of the dearest arm")


def _judge(results: pd.DataFrame, table: pd.DataFrame) -> tuple[str, str]:
    """What the curated arm saves against all pairs and at what loss, and a note for the figure if the saving is free.

    It is free only if the whole 95 % interval of the paired difference in AUROC lies above minus ``MARGIN``.
    """
    by_arm = table.set_index("arm")
    if not {"curated", "full"} <= set(by_arm.index):
        return "", ""
    saved = 100 * (1 - by_arm.flops["curated"] / by_arm.flops["full"])
    spent = f"The curated arm spent {100 - saved:.0f} % of the operations of training on all pairs"
    difference = summarise_seeds(
        select_rows(
            results, "zero_shot_difference", arm="curated", reference="full", metric="auroc_difference",
            finding="macro",            data_set=table.data_set.iloc[0], setting=table.setting.iloc[0],
        )
    )  # fmt: skip
    if difference.empty:
        return f"{spent}; the paired difference in AUROC was not measured.", ""
    row = difference.iloc[0]
    found = f"{spent}, at an AUROC difference of {write_interval(row.value, row.ci_low, row.ci_high, '+.3f')}"
    if saved <= 0:
        return f"{found}: it saved nothing.", ""
    if row.ci_low >= -MARGIN:
        return f"{found}: no more than {MARGIN} is lost.", f"{saved:.0f} % saved"
    if row.ci_high < 0:
        return f"{found}: the saving has a price.", ""
    return f"{found}: a loss of more than {MARGIN} is not excluded.", ""


def _annotate_saving(axes: Axes, results: pd.DataFrame, table: pd.DataFrame, unit: float) -> None:
    _, note = _judge(results, table)
    if not note:
        return
    by_arm = table.set_index("arm")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.12 * (high - low), high)
    y, ends = low - 0.08 * (high - low), (by_arm.flops["curated"] / unit, by_arm.flops["full"] / unit)
    axes.annotate("", (ends[0], y), (ends[1], y), arrowprops={"arrowstyle": "->", "color": INK, "lw": 0.7})
    axes.text(np.sqrt(ends[0] * ends[1]), y, note, ha="center", va="bottom", fontsize=6.5)


def describe_compute(results: pd.DataFrame, costs: pd.DataFrame) -> str:
    """The caption of `plot_compute`, with what came out for the saving."""
    table = select_compute(results, costs)
    rows = _measured(results)
    where = ", ".join(
        part for part in (name_data_set(table.data_set.iloc[0]), name_setting(table.setting.iloc[0])) if part
    )
    return (
        f"Performance against cost ({where}): macro zero-shot AUROC by pairs trained on (a) and by operations, warm-up "
        "and scoring included (b); costs relative to the dearest arm (c). Arms of nearly equal cost are drawn side by "
        f"side. {_judge(results, table)[0]} "
    ).replace("  ", " ") + describe_interval(rows)


def conclude_compute(results: pd.DataFrame, costs: pd.DataFrame) -> str:
    """What the curated arm saves against all pairs; without both, what each arm cost."""
    table = select_compute(results, costs)
    spent = (f"{short_name(row.arm)} {row.flops:.2g}" for row in table.itertuples())
    return _judge(results, table)[0] or f"Operations by arm: {', '.join(spent)}."


compute = Figure("compute", select_compute, plot_compute, describe_compute, conclude_compute)
