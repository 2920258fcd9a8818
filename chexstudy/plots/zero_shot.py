"""Zero-shot classification by arm and test set, with the paired differences to the curated arm."""

import pandas as pd
from matplotlib.figure import Figure as Drawing

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_values_and_differences, forest_height_mm, level_groups
from chexstudy.plots.measurements import (
    describe_interval,
    interval,
    name_data_set,
    name_place,
    name_setting,
    prefer_data_set,
    prefer_setting,
    require_rows,
    seed_values,
    select_rows,
    short_name,
    state_arms,
    summarise_seeds,
    write_row,
)
from chexstudy.plots.style import arm_style, arm_styles, new_figure, order_arms

TASK, DIFFERENCE = "zero_shot", "zero_shot_difference"


def _select(results: pd.DataFrame) -> pd.DataFrame:
    """Macro AUROC and its differences, for all arms, test sets and prompts."""
    values = require_rows(select_rows(results, TASK, metric="auroc", finding="macro"), "zero-shot auroc")
    differences = select_rows(results, DIFFERENCE, metric="auroc_difference", finding="macro")
    return pd.concat([values, differences], ignore_index=True)


def _plot(rows: pd.DataFrame) -> Drawing:
    """Two forests side by side: every arm, and the paired differences between arms."""
    values, differences = _group_values(rows[rows.task == TASK]), _group_differences(rows[rows.task == DIFFERENCE])
    heights = level_groups(list(values.values()), [differences.get(key, Group("", [])) for key in values])
    figure = new_figure(height_mm=17 + forest_height_mm(heights))
    titles = {"a": "AUROC by arm", "b": "Paired differences, 95 % intervals"}
    labels = ("AUROC", "Difference in AUROC, same patients")
    draw_values_and_differences(figure, values, differences, labels, titles, chance=0.5)
    return figure


def _group_values(rows: pd.DataFrame) -> dict[tuple[str, str], Group]:
    """Estimates of every arm under (data set, setting)."""
    groups, looks = {}, arm_styles(rows.arm)
    for (data_set, setting), group in summarise_seeds(rows).groupby(["data_set", "setting"], sort=True):
        by_arm = group.set_index("arm")
        estimates = [
            Estimate(
                style.name,
                interval(by_arm.loc[arm]),
                style,
                seed_values(rows, arm=arm, data_set=data_set, setting=setting),
            )
            for arm, style in looks.items()
            if arm in by_arm.index
        ]
        heading = "  ·  ".join(part for part in (name_data_set(data_set), name_setting(setting)) if part)
        groups[data_set, setting] = Group(f"{heading}  ·  n = {int(group.n.max()):,}", estimates)
    return groups


def _group_differences(rows: pd.DataFrame) -> dict[tuple[str, str], Group]:
    """Differences under (data set, setting); the curated arm's first, coloured as the arm compared with."""
    groups = {}
    for key, group in summarise_seeds(rows).groupby(["data_set", "setting"], sort=True):
        pairs, estimates = {(row.arm, row.reference): row for row in group.itertuples()}, []
        for first in order_arms(first for first, _ in pairs):
            for second in order_arms(other for one, other in pairs if one == first):
                label = f"{short_name(first)} \N{MINUS SIGN} {short_name(second)}"
                seeds = seed_values(rows, arm=first, reference=second, data_set=key[0], setting=key[1])
                estimates.append(Estimate(label, interval(pairs[first, second]), arm_style(second), seeds))
        groups[key] = Group("", estimates)
    return groups


def _describe(rows: pd.DataFrame) -> str:
    text = "Zero-shot classification. a, AUROC (mean over findings) of each arm, by test set and prompts. "
    if (rows.task == DIFFERENCE).any():
        text += (
            "b, differences between arms on the same patients and seeds; right of the line the first arm is better. "
        )
    return text + describe_interval(rows[rows.task == TASK])


def _conclude(rows: pd.DataFrame) -> str:
    """Every arm on the preferred test set, and what the curated arm loses against all pairs."""
    values = prefer_setting(prefer_data_set(rows[rows.task == TASK]))
    place = values.iloc[0]
    text = f"Macro zero-shot AUROC ({name_place(place)}): {state_arms(values)}"
    here = rows[(rows.data_set == place.data_set) & (rows.setting == place.setting)]
    for row in summarise_seeds(here[(here.arm == "curated") & (here.reference == "full")]).itertuples():
        text += f"; curated minus all pairs {write_row(row, '+.3f')}"
    return text + "."


zero_shot = Figure("zero_shot", _select, _plot, _describe, _conclude)
