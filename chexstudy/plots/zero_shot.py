"""Zero-shot classification by arm and test set, with the paired differences to the curated arm."""

import pandas as pd
from matplotlib.figure import Figure as Drawing

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_chance, draw_forest, forest_height_mm, level_groups
from chexstudy.plots.measurements import (
    describe_interval,
    name_data_set,
    name_setting,
    preferred_data_set,
    preferred_setting,
    require_rows,
    seed_values,
    select_rows,
    short_name,
    state_arms,
    summarise_seeds,
)
from chexstudy.plots.style import arm_style, new_figure, order_arms, title_panel
from chexstudy.results import write_interval

TASK, DIFFERENCE = "zero_shot", "zero_shot_difference"
_METRIC_NAMES = {"auroc": "AUROC", "auprc": "Average precision"}


def select_zero_shot(results: pd.DataFrame, metric: str = "auroc", finding: str = "macro") -> pd.DataFrame:
    """The rows of the figure: one metric of one finding or mean, for all arms, test sets and prompt settings."""
    values = select_rows(results, TASK, metric=metric, finding=finding)
    require_rows(values, f"zero-shot {metric}")
    differences = select_rows(results, DIFFERENCE, metric=f"{metric}_difference", finding=finding)
    return pd.concat([values, differences], ignore_index=True)


def plot_zero_shot(results: pd.DataFrame, metric: str = "auroc", finding: str = "macro") -> Drawing:
    """Two forests side by side: the metric of every arm, and the paired differences between arms.

    Args:
        metric: ``auroc`` or ``auprc``.
        finding: ``macro``, a tier, or one finding.
    """
    rows = select_zero_shot(results, metric, finding)
    values, differences = group_values(rows[rows.task == TASK]), group_differences(rows[rows.task == DIFFERENCE])
    return plot_forests(
        values, differences, _METRIC_NAMES.get(metric, metric), chance=0.5 if metric == "auroc" else None
    )


def plot_forests(values: dict, differences: dict, name: str, chance: float | None) -> Drawing:
    """Forests of values and, if there are any, of differences, with the same groups level.

    Args:
        values: for each (data set, setting) its `Group`.
        differences: the same keys, or none.
        chance: what a blind model gets.
    """
    left = list(values.values())
    right = [differences.get(key, Group("", [])) for key in values]
    heights = level_groups(left, right)
    figure = new_figure(height_mm=17 + forest_height_mm(heights))
    has_differences = any(group.estimates for group in right)
    axes = figure.subplots(1, 2, width_ratios=[1.15, 1]) if has_differences else [figure.subplots()]
    draw_forest(axes[0], left, heights)
    axes[0].set_xlabel(name)
    axes[0].margins(x=0.06)
    if chance is not None:
        draw_chance(axes[0], chance)
    title_panel(axes[0], "a", f"{name} by arm")
    if has_differences:
        draw_forest(axes[1], right, heights, reference=0.0, number_format="+.3f")
        axes[1].set_xlabel(f"Difference in {name}, same patients")
        axes[1].margins(x=0.08)
        title_panel(axes[1], "b", "Paired differences, 95 % intervals")
    return figure


def group_values(rows: pd.DataFrame) -> dict[tuple[str, str], Group]:
    """Estimates of every arm under (data set, setting)."""
    summary, arms = summarise_seeds(rows), sorted(set(rows.arm))
    groups = {}
    for (data_set, setting), group in summary.groupby(["data_set", "setting"], sort=True):
        by_arm = group.set_index("arm")
        estimates = []
        for arm in order_arms(by_arm.index):
            row, style = by_arm.loc[arm], arm_style(arm, arms)
            seeds = seed_values(rows, arm=arm, data_set=data_set, setting=setting)
            estimates.append(Estimate(style.name, row.value, row.ci_low, row.ci_high, style, seeds))
        heading = "  ·  ".join(part for part in (name_data_set(data_set), name_setting(setting)) if part)
        groups[data_set, setting] = Group(f"{heading}  ·  n = {int(group.n.max()):,}", estimates)
    return groups


def group_differences(rows: pd.DataFrame) -> dict[tuple[str, str], Group]:
    """Differences under (data set, setting); the curated arm's first, coloured as the arm compared with."""
    groups = {}
    for key, group in summarise_seeds(rows).groupby(["data_set", "setting"], sort=True):
        pairs = {(row.arm, row.reference): row for row in group.itertuples()}
        estimates = []
        for first in order_arms(first for first, _ in pairs):
            for second in order_arms(other for one, other in pairs if one == first):
                row, style = pairs[first, second], arm_style(second)
                label = f"{short_name(first)} \N{MINUS SIGN} {short_name(second)}"
                seeds = seed_values(rows, arm=first, reference=second, data_set=key[0], setting=key[1])
                estimates.append(Estimate(label, row.value, row.ci_low, row.ci_high, style, seeds))
        groups[key] = Group("", estimates)
    return groups


def describe_zero_shot(results: pd.DataFrame, metric: str = "auroc", finding: str = "macro") -> str:
    rows = select_zero_shot(results, metric, finding)
    values = rows[rows.task == TASK]
    means = {"macro": "findings", "head": "common findings", "medium": "findings of medium prevalence"}
    means["tail"] = "rare findings"
    what = f"mean over {means[finding]}" if finding in means else finding
    name = _METRIC_NAMES.get(metric, metric)
    text = f"Zero-shot classification. a, {name} ({what}) of each arm, by test set and prompts. "
    if (rows.task == DIFFERENCE).any():
        text += (
            "b, differences between arms on the same patients and seeds; right of the line the first arm is better. "
        )
    return text + describe_interval(values)


def conclude_zero_shot(results: pd.DataFrame) -> str:
    """Every arm on the preferred test set, and what the curated arm loses against all pairs."""
    rows = select_zero_shot(results)
    of_task = rows.task == TASK
    place = {"data_set": preferred_data_set(rows[of_task]), "setting": preferred_setting(rows[of_task])}
    rows = rows[(rows.data_set == place["data_set"]) & (rows.setting == place["setting"])]
    where = f"{name_data_set(place['data_set'])}, {name_setting(place['setting'])}"
    text = f"Macro zero-shot AUROC ({where}): {state_arms(rows[rows.task == TASK])}"
    against_full = summarise_seeds(rows[(rows.arm == "curated") & (rows.reference == "full")])
    for row in against_full.itertuples():
        text += f"; curated minus all pairs {write_interval(row.value, row.ci_low, row.ci_high, '+.3f')}"
    return text + "."


zero_shot = Figure("zero_shot", select_zero_shot, plot_zero_shot, describe_zero_shot, conclude_zero_shot)
