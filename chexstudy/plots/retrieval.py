"""Retrieval of reports by images and of images by reports, by arm."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullLocator

from chexstudy.evaluation.image_text.retrieval import CUTOFFS, DIRECTIONS
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import (
    Estimate,
    Group,
    add_arm_legend,
    draw_estimate,
    draw_forest,
    draw_seeds,
    forest_height_mm,
)
from chexstudy.plots.measurements import (
    describe_interval,
    name_data_set,
    preferred_data_set,
    require_rows,
    seed_values,
    select_rows,
    state_arms,
    summarise_seeds,
)
from chexstudy.plots.style import GREY, arm_style, new_figure, order_arms, title_panel

TASK, DIFFERENCE = "retrieval", "retrieval_difference"
_TITLES = dict(zip(DIRECTIONS, ("Report of an image", "Image of a report"), strict=True))
_BY_CHANCE = " by chance"


def select_retrieval(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the figure; the setting is ``image_to_text`` or ``text_to_image``."""
    names = [f"recall@{cutoff}" for cutoff in CUTOFFS] + ["median_rank"]
    metrics = names + [name + _BY_CHANCE for name in names] + [f"{name}_difference" for name in names]
    rows = pd.concat([select_rows(results, task, metric=metrics) for task in (TASK, DIFFERENCE)], ignore_index=True)
    return require_rows(rows, "retrieval")


def plot_retrieval(results: pd.DataFrame) -> Drawing:
    """For each data set: recall at 1, 5 and 10 in both directions, the median rank, and the paired differences."""
    rows = select_retrieval(results)
    data_sets = sorted(set(rows.data_set[rows.task == TASK]))
    values, differences = rows[rows.task == TASK], rows[rows.task == DIFFERENCE]
    arms = order_arms(values.arm)
    groups = {name: _group_differences(differences[differences.data_set == name]) for name in data_sets}
    lines = max((sum(len(group.estimates) + 1.35 for group in one) for one in groups.values()), default=0)
    height = max(46.0, forest_height_mm([0]) + 3.3 * lines + 12)
    figure = new_figure(height_mm=height * len(data_sets) + 10)
    has_differences = any(groups.values())
    ratios = [1.25, 1.25, 0.8] + [1.1] * has_differences
    panels = figure.subplots(len(data_sets), len(ratios), squeeze=False, width_ratios=ratios)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for data_set, axes in zip(data_sets, panels, strict=True):
        of_set = values[values.data_set == data_set]
        for one, (direction, title) in zip(axes, _TITLES.items(), strict=False):
            _draw_recall(one, of_set[of_set.setting == direction], arms)
            title_panel(one, next(letters), title)
        axes[1].sharey(axes[0])
        axes[1].tick_params(labelleft=False)
        axes[0].set_ylabel(f"{name_data_set(data_set)}\nRecall (%)" if len(data_sets) > 1 else "Recall (%)")
        _draw_median_rank(axes[2], of_set, arms)
        title_panel(axes[2], next(letters), "Median rank")
        if has_differences:
            heights = [len(group.estimates) for group in groups[data_set]]
            draw_forest(axes[3], groups[data_set], heights, reference=0.0, heading_at_axes=True)
            axes[3].set_yticks([])
            axes[3].set_xlabel("Difference in recall (points)")
            axes[3].margins(x=0.08)
            title_panel(axes[3], next(letters), "Curated minus …")
    add_arm_legend(figure, [arm_style(arm, arms) for arm in arms])
    return figure


def _draw_recall(axes: Axes, rows: pd.DataFrame, arms: list[str]) -> None:
    summary = summarise_seeds(rows)
    offsets = np.linspace(-0.3, 0.3, len(arms)) if len(arms) > 1 else [0.0]
    for place, cutoff in enumerate(CUTOFFS):
        chance = summary[summary.metric == f"recall@{cutoff}{_BY_CHANCE}"]
        if len(chance):
            axes.plot(
                [place - 0.42, place + 0.42], [100 * chance.value.iloc[0]] * 2, color=GREY, linewidth=0.8,
                linestyle=(0, (3, 2)), gid="chance", zorder=1,
            )  # fmt: skip
        for arm, offset in zip(arms, offsets, strict=True):
            metric = f"recall@{cutoff}"
            for row in summary[(summary.arm == arm) & (summary.metric == metric)].itertuples():
                style, x = arm_style(arm, arms), place + offset
                seeds = 100 * seed_values(rows, arm=arm, metric=metric, setting=row.setting)
                draw_seeds(axes, np.full(len(seeds), x + 0.07), seeds, style)
                draw_estimate(axes, x, 100 * row.value, 100 * row.ci_low, 100 * row.ci_high, style, vertical=True)
    axes.set_xticks(range(len(CUTOFFS)), [f"at {cutoff}" for cutoff in CUTOFFS])
    axes.set_xlim(-0.55, len(CUTOFFS) - 0.45)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#ECECEC", linewidth=0.5)
    axes.tick_params(axis="x", length=0)


def _draw_median_rank(axes: Axes, rows: pd.DataFrame, arms: list[str]) -> None:
    summary = summarise_seeds(rows[rows.metric.isin(["median_rank", "median_rank" + _BY_CHANCE])])
    offsets = np.linspace(-0.3, 0.3, len(arms)) if len(arms) > 1 else [0.0]
    for place, direction in enumerate(DIRECTIONS):
        of_direction = summary[summary.setting == direction]
        for row in of_direction[of_direction.metric != "median_rank"].iloc[:1].itertuples():
            axes.plot(
                [place - 0.42, place + 0.42], [row.value] * 2, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)),
                gid="chance", zorder=1,
            )  # fmt: skip
        for arm, offset in zip(arms, offsets, strict=True):
            for row in of_direction[(of_direction.arm == arm) & (of_direction.metric == "median_rank")].itertuples():
                style = arm_style(arm, arms)
                draw_estimate(axes, place + offset, row.value, row.ci_low, row.ci_high, style, vertical=True)
    axes.set_xticks(range(2), ["report", "image"])
    axes.set_xlim(-0.55, 1.55)
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("Rank (log, best on top)")
    axes.tick_params(axis="x", length=0)


def _group_differences(rows: pd.DataFrame) -> list[Group]:
    """Differences of the curated arm in recall, in percentage points, at the largest cutoff measured."""
    metrics = [
        f"recall@{cutoff}_difference" for cutoff in CUTOFFS if (rows.metric == f"recall@{cutoff}_difference").any()
    ]
    groups = []
    for direction, title in _TITLES.items():
        chosen = rows[(rows.setting == direction) & (rows.metric == (metrics[-1] if metrics else ""))]
        estimates = {}
        for row in summarise_seeds(chosen).itertuples():
            if row.arm == "curated":
                style = arm_style(row.reference)
                seeds = 100 * seed_values(chosen, reference=row.reference)
                estimates[row.reference] = Estimate(
                    style.name, 100 * row.value, 100 * row.ci_low, 100 * row.ci_high, style, seeds
                )
        if estimates:
            cutoff = metrics[-1].removesuffix("_difference").removeprefix("recall@")
            groups.append(Group(f"{title}, at {cutoff}", [estimates[arm] for arm in order_arms(estimates)]))
    return groups


def describe_retrieval(results: pd.DataFrame) -> str:
    rows = select_retrieval(results)
    values = rows[(rows.task == TASK) & ~rows.metric.str.endswith(_BY_CHANCE)]
    counts = values.groupby(["data_set", "setting"]).n.first().unstack()
    notes = [f"{texts:,} of {pairs:,} differ" for pairs, texts in counts[list(DIRECTIONS)].itertuples(index=False)]
    text = (
        "Retrieval between images and reports: recall at 1, 5 and 10 of the report of an image and of the image of a "
        "report, and the median rank of the right answer"
    )
    text += "; dashed, what chance gives. " if rows.metric.str.endswith(_BY_CHANCE).any() else ". "
    if (rows.task == DIFFERENCE).any():
        text += "Right, paired differences of the curated arm on the same pairs and seeds. "
    text += describe_interval(values)
    return text + (f" Identical reports count as one: {'; '.join(notes)}." if notes else "")


def conclude_retrieval(results: pd.DataFrame) -> str:
    """How often each arm finds the report of an image among its ten first, on the preferred test set."""
    rows = select_retrieval(results)
    rows = rows[(rows.task == TASK) & (rows.setting == DIRECTIONS[0])]
    rows = rows[rows.data_set == preferred_data_set(rows)]
    cutoff = max(cutoff for cutoff in CUTOFFS if (rows.metric == f"recall@{cutoff}").any())
    found = rows[rows.metric == f"recall@{cutoff}"]
    where = name_data_set(found.data_set.iloc[0])
    text = f"The report of an image is among the first {cutoff} ({where}), in %: {state_arms(found, '.1f', 100)}"
    chance = rows.value[rows.metric == f"recall@{cutoff}{_BY_CHANCE}"]
    return text + (f"; chance gives {100 * chance.mean():.1f}." if len(chance) else ".")


retrieval = Figure("retrieval", select_retrieval, plot_retrieval, describe_retrieval, conclude_retrieval)
