"""What performance costs in pairs and in operations, by arm and at several budgets."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.transforms import ScaledTranslation

from chexstudy.evaluation.scores import MACRO
from chexstudy.experiments.budget_sweep import COSTS, SAVING, ZERO_SHOT, judge_saving, write_ends, write_saving
from chexstudy.experiments.equal_performance import AT_LEAST
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate, draw_seeds
from chexstudy.plots.looks import INK, ArmStyle, arm_style, arm_styles
from chexstudy.plots.measurements import (
    interval,
    prefer_data_set,
    prefer_setting,
    require_rows,
    select_rows,
    summarise_seeds,
)
from chexstudy.plots.style import add_legend, draw_marks, legend_mark, new_figure, scale_log, title_panel
from chexstudy.plots.words import describe_interval, describe_n, name_data_set, name_place, short_name, write_row
from chexstudy.pretraining.arms.budgets import CURATED, FULL, RANDOM, read_budget
from chexstudy.pretraining.arms.definitions import name_arms

_COSTS = ["pairs_trained", "flops", "seconds"]
# Up to this loss of AUROC, the whole interval included, a saving counts as free.
MARGIN = 0.02
# In each panel the saving against the random arm that is given as much of what the panel counts.
_PAIRED = {"flops": "random_same_compute", "pairs_trained": "random_same_data"}


def _select_compute(results: pd.DataFrame, costs: pd.DataFrame) -> tuple:
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


def _plot_compute(table: pd.DataFrame, rows: pd.DataFrame, costs: pd.DataFrame, judged: str, note: str) -> Drawing:
    figure = new_figure(height_mm=66)
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    panels[1].sharey(panels[0])
    looks = arm_styles(table.arm)
    unit, unit_name = _choose_unit(table.flops.max())
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


def _choose_unit(flops: float) -> tuple[float, str]:
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


def _describe_compute(table: pd.DataFrame, rows: pd.DataFrame, costs: pd.DataFrame, judged: str, note: str) -> str:
    return (
        f"Performance against cost ({name_place(table.iloc[0])}): macro zero-shot AUROC by pairs trained on (a) and by "
        "operations, warm-up and scoring included (b); costs relative to the dearest arm (c). Arms of nearly equal "
        f"cost are drawn side by side. {f'{judged} ' if judged else ''}{describe_interval(rows)}"
    )


def _conclude_compute(table: pd.DataFrame, rows: pd.DataFrame, costs: pd.DataFrame, judged: str, note: str) -> str:
    spent = (f"{short_name(row.arm)} {row.flops:.2g}" for row in table.itertuples())
    return judged or f"Operations by arm: {', '.join(spent)}."


compute = Figure("compute", _select_compute, _plot_compute, _describe_compute, _conclude_compute)


def _select_budgets(results: pd.DataFrame, costs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Macro AUROC of each arm at each budget, and its mean cost over seeds; the rows measured; and what is saved.

    Points have ``kept``, the share of the pairs; ``costs`` one row an arm and seed.
    """
    rows = require_rows(select_rows(results, ZERO_SHOT, finding=MACRO), "arms at budgets, macro")
    mean = name_arms(costs).groupby(["arm", "variant"])[list(COSTS)].mean().reset_index()
    table = summarise_seeds(rows).merge(mean, on=["arm", "variant"])
    require_rows(table, "arms with both a cost and a zero-shot AUROC")
    columns = ["arm", "kept", "value", "ci_low", "ci_high", "n", "seeds", *COSTS]
    table = table.assign(kept=table.variant.map(read_budget))[columns].sort_values(["arm", "kept"], ignore_index=True)
    return table, rows, select_savings(results)


def select_savings(results: pd.DataFrame) -> pd.DataFrame:
    """What each side saves against another at equal macro AUROC, the curve against all pairs first, then by budget.

    Rows of the results table with ``verdict`` and ``kept`` (the curated arm's budget, 1 for the curve).
    """
    rows = results[(results.task == SAVING) & (results.finding == MACRO)].reset_index(drop=True)
    rows["kept"] = rows.variant.map(read_budget)
    rows["verdict"] = [judge_saving(row.ci_low, row.ci_high) for row in rows.itertuples()]
    return rows.sort_values(["kept", "reference"], ascending=[False, True], ignore_index=True)


def _plot_budgets(table: pd.DataFrame, _: pd.DataFrame, savings: pd.DataFrame) -> Drawing:
    """AUROC against operations and against pairs trained on, a line a way to spend them, all pairs as a point.

    A bracket shows a saving where its whole interval lies on one side of none: against all pairs if that can be told,
    else that of the largest budget against random training paired in what the panel counts.
    """
    unit, unit_name = _choose_unit(table.flops.max())
    table = table.assign(flops=table.flops / unit)
    figure = new_figure(height_mm=78)
    panels = figure.subplots(1, 2, sharey=True)
    labels = {"flops": f"Compute ({unit_name}, log)", "pairs_trained": "Pairs trained on (log)"}
    for axes, (cost, label) in zip(panels, labels.items(), strict=True):
        _draw_families(axes, table, cost)
        scale_log(axes)
        axes.set(xlim=(table[cost].min() / 1.2, table[cost].max() * 1.2), xlabel=label)
        axes.grid(axis="y")
        _draw_saving(axes, table, savings[savings.metric == COSTS[cost]], cost)
    low, high = panels[0].get_ylim()
    panels[0].set(ylim=(low - 0.07 * (high - low), high), ylabel="Macro AUROC, zero-shot")
    panels[1].tick_params(labelleft=False)
    title_panel(panels[0], "a", "By compute")
    title_panel(panels[1], "b", "By data")
    families = [family for family in (CURATED, *RANDOM, FULL) if (table.arm == family).any()]
    add_legend(figure, [legend_mark(arm_style(one), "none" if one == FULL else "-") for one in families], 4)
    return figure


def _draw_families(axes: Axes, table: pd.DataFrame, cost: str) -> None:
    full = table[table.arm == FULL]
    # The curated arm last, so that it is drawn over the others.
    for family in (one for one in (*RANDOM, CURATED) if (table.arm == one).any()):
        rows, style = table[table.arm == family].sort_values(cost), arm_style(family)
        over = 1 if family == CURATED else 0
        axes.fill_between(rows[cost], rows.ci_low, rows.ci_high, color=style.colour, alpha=0.1, linewidth=0, zorder=1)
        for end in (rows.ci_low, rows.ci_high):
            axes.plot(rows[cost], end, color=style.colour, linewidth=0.5, alpha=0.6, gid="band", zorder=2)
        draw_marks(axes, rows[cost], rows.value, style, 4.4, linestyle="-", linewidth=1.2, gid=family, zorder=4 + over)
        if len(full) and family in RANDOM:
            # Random training at a budget of everything is training on all pairs.
            last = pd.concat([rows.tail(1), full])
            axes.plot(last[cost], last.value, color=style.colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=3)
    for row in full.itertuples():
        draw_estimate(axes, getattr(row, cost), interval(row), arm_style(FULL), vertical=True, size=5)
    for row in table[table.arm == CURATED].itertuples():
        # At the foot of the panel, where no line runs.
        axes.annotate(
            f"{100 * row.kept:g} %", (getattr(row, cost), row.value), (getattr(row, cost), 0.02), ha="center",
            va="bottom", textcoords=axes.get_xaxis_transform(), fontsize=6, color=arm_style(CURATED).colour, gid="kept",
            zorder=6, arrowprops={"arrowstyle": "-", "color": arm_style(CURATED).colour, "lw": 0.4, "alpha": 0.6},
        )  # fmt: skip


def _draw_saving(axes: Axes, table: pd.DataFrame, savings: pd.DataFrame, cost: str) -> None:
    """The first saving that can be told, from the one cost to the other at the height of the performance."""
    told = savings[(savings.verdict == "saved") & savings.reference.isin([FULL, _PAIRED[cost]])]
    by_arm = table.set_index(["arm", "kept"])
    for row in told.head(1).itertuples():
        # One side is a point; the other cost follows from the share saved.
        is_full = row.reference == FULL
        point = by_arm.loc[(FULL if is_full else CURATED, row.kept)]
        own, height = point[cost], point["value"]
        ends = (own * (1 - row.value), own) if is_full else (own, own / (1 - row.value))
        open_ended = "<-" if is_full else "->"
        style = open_ended if row.setting == AT_LEAST else "|-|,widthA=0.25,widthB=0.25"
        axes.annotate(
            "", (ends[1], height), (ends[0], height), zorder=7,
            arrowprops={"arrowstyle": style, "color": INK, "lw": 0.8, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        axes.annotate(
            f"{write_saving(row.value, row.setting)} saved", ((ends[0] * ends[1]) ** 0.5, height), (0, 4),
            textcoords="offset points", ha="center", va="bottom", fontsize=6.5, gid="saving", zorder=7,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip


def _describe_budgets(table: pd.DataFrame, rows: pd.DataFrame, savings: pd.DataFrame) -> str:
    shares = ", ".join(f"{100 * share:g}" for share in sorted(table.kept[table.arm == CURATED].unique()))
    seeds = int(table.seeds.max())
    drawn = f"patients and seeds resampled; {seeds} seeds" if seeds > 1 else "patients resampled; 1 seed"
    return (
        f"Performance against compute and data ({name_data_set(rows.data_set.iloc[0])}): macro zero-shot AUROC by "
        "operations counted, warm-up and scoring included (a), and by pairs trained on, each counted as often as it is "
        f"seen (b). Curated arms keep exactly {shares} % of the pairs (at the foot); beside them random pairs of the "
        "same number, and random batches of all pairs for the same operations. Dotted: both end in training on all "
        "pairs, whose epochs in between are no points of a curve, because their learning rate has not fallen. Bands "
        f"and the bar are 95 % intervals, {drawn}. {_conclude_budgets(table, rows, savings)} {describe_n(rows)}"
    )


def _conclude_budgets(table: pd.DataFrame, rows: pd.DataFrame, savings: pd.DataFrame) -> str:
    savings = savings[savings.metric == COSTS["flops"]]
    if savings.empty:
        return "What is saved at equal performance was not measured."
    told = savings[savings.verdict != "cannot be told"]
    parts = [
        f"{write_saving(row.value, row.setting)} ({write_ends(row.ci_low, row.ci_high)}) {_name_comparison(row)}"
        for row in told.itertuples()
    ]
    sentence = f"Operations saved at equal performance: {'; '.join(parts)}." if parts else ""
    silent = len(savings) - len(told)
    if not silent:
        return sentence
    which = f"{silent} of {len(savings)} comparisons" if parts else f"any of {len(savings)} comparisons"
    return (
        f"{sentence} What is saved at equal performance cannot be told for {which}: intervals reach to both sides of "
        "none, or beyond the budgets measured."
    ).strip()


def _name_comparison(row) -> str:
    if row.reference == FULL:
        return "by curation against all pairs"
    family = arm_style(row.reference).name
    return f"by keeping {100 * row.kept:g} % against {family[0].lower()}{family[1:]}"


budgets = Figure("budgets", _select_budgets, _plot_budgets, _describe_budgets, _conclude_budgets)
