"""Performance against compute and against data at several budgets, and what is saved at equal performance."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from chexstudy.evaluation.scores import MACRO
from chexstudy.experiments.budget_sweep import COSTS, SAVING, ZERO_SHOT, judge_saving, write_ends, write_saving
from chexstudy.experiments.equal_performance import AT_LEAST
from chexstudy.plots.compute import choose_unit
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate
from chexstudy.plots.measurements import describe_n, interval, name_data_set, require_rows, select_rows, summarise_seeds
from chexstudy.plots.style import (
    INK,
    add_legend,
    arm_style,
    draw_marks,
    legend_mark,
    new_figure,
    scale_log,
    title_panel,
)
from chexstudy.pretraining.arms.budgets import CURATED, FULL, RANDOM, read_budget
from chexstudy.pretraining.arms.definitions import name_arms

# In each panel the saving against the random arm that is given as much of what the panel counts.
_PAIRED = {"flops": "random_same_compute", "pairs_trained": "random_same_data"}


def _select(results: pd.DataFrame, costs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Macro AUROC of each arm at each budget, and its mean cost over seeds; the rows measured; and what is saved.

    Points have ``kept``, the share of the pairs; savings `select_savings` describes.

    Args:
        results: rows of the results table.
        costs: one row an arm and seed with ``pairs_trained`` and ``flops``.
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


def _plot(table: pd.DataFrame, _: pd.DataFrame, savings: pd.DataFrame) -> Drawing:
    """AUROC against operations and against pairs trained on, a line a way to spend them, all pairs as a point.

    A bracket shows a saving where its whole interval lies on one side of none: against all pairs if that can be told,
    else that of the largest budget against random training paired in what the panel counts.
    """
    unit, unit_name = choose_unit(table.flops.max())
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


def _describe(table: pd.DataFrame, rows: pd.DataFrame, savings: pd.DataFrame) -> str:
    """The caption, with what is saved in operations at equal performance, or that it cannot be told."""
    shares = ", ".join(f"{100 * share:g}" for share in sorted(table.kept[table.arm == CURATED].unique()))
    seeds = int(table.seeds.max())
    drawn = f"patients and seeds resampled; {seeds} seeds" if seeds > 1 else "patients resampled; 1 seed"
    return (
        f"Performance against compute and data ({name_data_set(rows.data_set.iloc[0])}): macro zero-shot AUROC by "
        "operations counted, warm-up and scoring included (a), and by pairs trained on, each counted as often as it is "
        f"seen (b). Curated arms keep exactly {shares} % of the pairs (at the foot); beside them random pairs of the "
        "same number, and random batches of all pairs for the same operations. Dotted: both end in training on all "
        "pairs, whose epochs in between are no points of a curve, because their learning rate has not fallen. Bands "
        f"and the bar are 95 % intervals, {drawn}. {_conclude(table, rows, savings)} {describe_n(rows)}"
    )


def _conclude(table: pd.DataFrame, rows: pd.DataFrame, savings: pd.DataFrame) -> str:
    """One or two sentences on the operations saved at equal performance: what can be told, and what cannot."""
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


budgets = Figure("budgets", _select, _plot, _describe, _conclude)
