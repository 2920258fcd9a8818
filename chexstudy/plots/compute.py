"""What performance costs: against pairs trained on, and against operations counted."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.transforms import ScaledTranslation

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate, draw_seeds
from chexstudy.plots.measurements import (
    describe_interval,
    interval,
    name_place,
    prefer_data_set,
    prefer_setting,
    require_rows,
    select_rows,
    short_name,
    summarise_seeds,
    write_row,
)
from chexstudy.plots.style import INK, ArmStyle, arm_styles, new_figure, scale_log, title_panel

_COSTS = ["pairs_trained", "flops", "seconds"]
# Up to this loss of AUROC, the whole interval included, a saving counts as free.
MARGIN = 0.02


def _select(results: pd.DataFrame, costs: pd.DataFrame) -> tuple:
    """Macro zero-shot AUROC of each arm on the preferred test set beside its mean cost over seeds.

    With them the rows measured, ``costs`` (one row an arm and seed), and what curation saves and loses (`_judge`).
    """
    rows = require_rows(select_rows(results, "zero_shot", metric="auroc", finding="macro"), "zero-shot AUROC")
    rows = prefer_setting(prefer_data_set(rows))
    mean = costs.groupby("arm", sort=False)[_COSTS].mean().reset_index()
    table = require_rows(summarise_seeds(rows).merge(mean, on="arm"), "arm with both a cost and a zero-shot AUROC")
    return table, rows, costs, *_judge(results, table)


def _judge(results: pd.DataFrame, table: pd.DataFrame) -> tuple[str, str]:
    """What the curated arm saves against all pairs and at what loss, and a note for the figure if the saving is free.

    It is free only if the whole 95 % interval of the paired difference in AUROC lies above minus ``MARGIN``.
    """
    flops = table.set_index("arm").flops
    if not {"curated", "full"} <= set(flops.index):
        return "", ""
    saved = 100 * (1 - flops["curated"] / flops["full"])
    spent = f"The curated arm spent {100 - saved:.0f} % of the operations of training on all pairs"
    of_arms = {"arm": "curated", "reference": "full", "metric": "auroc_difference", "finding": "macro"}
    place = {"data_set": table.data_set.iloc[0], "setting": table.setting.iloc[0]}
    difference = summarise_seeds(select_rows(results, "zero_shot_difference", **of_arms, **place))
    if difference.empty:
        return f"{spent}; the paired difference in AUROC was not measured.", ""
    row = difference.iloc[0]
    found = f"{spent}, at an AUROC difference of {write_row(row, '+.3f')}"
    if saved <= 0:
        return f"{found}: it saved nothing.", ""
    if row.ci_low >= -MARGIN:
        return f"{found}: no more than {MARGIN} is lost.", f"{saved:.0f} % saved"
    if row.ci_high < 0:
        return f"{found}: the saving has a price.", ""
    return f"{found}: a loss of more than {MARGIN} is not excluded.", ""


def _plot(table: pd.DataFrame, rows: pd.DataFrame, costs: pd.DataFrame, judged: str, note: str) -> Drawing:
    """AUROC against pairs trained on and against operations, and both costs relative to the dearest arm."""
    figure = new_figure(height_mm=66)
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    panels[1].sharey(panels[0])
    looks = arm_styles(table.arm)
    unit, unit_name = choose_unit(table.flops.max())
    scaled, costs = table.assign(flops=table.flops / unit), costs.assign(flops=costs.flops / unit)
    labels = {"pairs_trained": "Pairs trained on (log)", "flops": f"Compute ({unit_name}, log)"}
    for axes, (cost, label) in zip(panels, labels.items(), strict=False):
        by_arm = scaled.set_index("arm", drop=False).loc[list(looks)]
        for (arm, style), shift in zip(looks.items(), _spread_equal(by_arm[cost]), strict=True):
            of_seeds = rows[(rows.arm == arm) & (rows.seed >= 0)].merge(costs, on=["arm", "seed"], suffixes=("_", ""))
            drawn = len(axes.lines)
            if len(of_seeds) > 1:
                draw_seeds(axes, of_seeds[cost], of_seeds.value, style, vertical=True)
            draw_estimate(axes, by_arm[cost][arm], interval(by_arm.loc[arm]), style, vertical=True, size=5)
            aside = ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
            for line in axes.lines[drawn:]:
                line.set_transform(axes.transData + aside)
        scale_log(axes)
        axes.set(xlim=(scaled[cost].min() / 1.7, scaled[cost].max() * 1.7), xlabel=label)
        axes.grid(axis="y")
    panels[0].set_ylabel("Macro AUROC, zero-shot")
    panels[1].tick_params(labelleft=False)
    if note:
        _annotate_saving(panels[1], scaled.set_index("arm").flops, note)
    _draw_relative_costs(panels[2], table, looks)
    for axes, letter, title in zip(panels, "abc", ("By data", "By compute", "Relative cost"), strict=True):
        title_panel(axes, letter, title)
    add_arm_legend(figure, looks.values())
    return figure


def choose_unit(flops: float) -> tuple[float, str]:
    """The unit in which the dearest arm's operations are a number of few digits."""
    names = {1e9: "GFLOPs", 1e12: "TFLOPs", 1e15: "PFLOPs", 1e18: "EFLOPs", 1e21: "ZFLOPs"}
    unit = max((unit for unit in names if unit <= flops), default=1e9)
    return unit, names[unit]


def _spread_equal(costs: pd.Series) -> list[float]:
    """How many points aside each arm is drawn, so that arms of nearly equal cost do not cover each other."""
    logs, shifts = np.log(costs.to_numpy(dtype=float)), []
    for place, value in enumerate(logs):
        near = np.flatnonzero(np.abs(logs - value) < np.log(1.15))
        shifts.append(6.0 * (int((near < place).sum()) - (len(near) - 1) / 2))
    return shifts


def _draw_relative_costs(axes: Axes, table: pd.DataFrame, looks: dict[str, ArmStyle]) -> None:
    ordered = table.set_index("arm").loc[list(looks)]
    for line, (cost, word, hatch) in enumerate(
        zip(_COSTS, ("pairs", "FLOPs", "time"), ("", "////", "...."), strict=True)
    ):
        share = 100 * ordered[cost] / ordered[cost].max()
        for place, (value, style) in enumerate(zip(share, looks.values(), strict=True)):
            y, face = place + (line - 1) * 0.26, "white" if hatch else style.colour
            axes.barh(y, value, 0.22, facecolor=face, edgecolor=style.colour, hatch=hatch, lw=0.6)
            axes.text(value + 2, y, f"{value:.0f} % {word}", va="center", fontsize=5.5)
    axes.set_yticks(range(len(looks)), [style.name for style in looks.values()])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 150), xticks=[0, 50, 100], xlabel="% of the dearest arm")


def _annotate_saving(axes: Axes, flops: pd.Series, note: str) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.12 * (high - low), high)
    y, ends = low - 0.08 * (high - low), (flops["curated"], flops["full"])
    axes.annotate("", (ends[0], y), (ends[1], y), arrowprops={"arrowstyle": "->", "color": INK, "lw": 0.7})
    axes.text(np.sqrt(ends[0] * ends[1]), y, note, ha="center", va="bottom", fontsize=6.5)


def _describe(table: pd.DataFrame, rows: pd.DataFrame, costs: pd.DataFrame, judged: str, note: str) -> str:
    return (
        f"Performance against cost ({name_place(table.iloc[0])}): macro zero-shot AUROC by pairs trained on (a) and by "
        "operations, warm-up and scoring included (b); costs relative to the dearest arm (c). Arms of nearly equal "
        f"cost are drawn side by side. {f'{judged} ' if judged else ''}{describe_interval(rows)}"
    )


def _conclude(table: pd.DataFrame, rows: pd.DataFrame, costs: pd.DataFrame, judged: str, note: str) -> str:
    """What the curated arm saves against all pairs; without both, what each arm cost."""
    spent = (f"{short_name(row.arm)} {row.flops:.2g}" for row in table.itertuples())
    return judged or f"Operations by arm: {', '.join(spent)}."


compute = Figure("compute", _select, _plot, _describe, _conclude)
