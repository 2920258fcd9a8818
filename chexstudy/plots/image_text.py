"""Zero-shot classification and retrieval by arm and test set, with the paired differences to the curated arm."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from chexstudy.evaluation.image_text.retrieval import CUTOFFS, DIRECTIONS
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import (
    Estimate,
    Group,
    add_arm_legend,
    draw_estimate,
    draw_forest,
    draw_seeds,
    draw_values_and_differences,
    forest_height_mm,
    level_groups,
    list_estimates,
    spread_arms,
)
from chexstudy.plots.looks import GREY, ArmStyle, arm_style, arm_styles, order_arms
from chexstudy.plots.measurements import (
    interval,
    prefer_data_set,
    prefer_setting,
    require_rows,
    seed_values,
    select_rows,
    summarise_seeds,
)
from chexstudy.plots.style import new_figure, scale_log, title_panel
from chexstudy.plots.words import (
    describe_interval,
    name_data_set,
    name_place,
    name_setting,
    short_name,
    state_arms,
    write_row,
)

_ZERO_SHOT, _ZERO_SHOT_DIFFERENCE = "zero_shot", "zero_shot_difference"
_RETRIEVAL, _RETRIEVAL_DIFFERENCE = "retrieval", "retrieval_difference"
_TITLES = dict(zip(DIRECTIONS, ("Report of an image", "Image of a report"), strict=True))
_RECALLS = [f"recall@{cutoff}" for cutoff in CUTOFFS]
_RANK, _BY_CHANCE = "median_rank", " by chance"


def _select_zero_shot(results: pd.DataFrame) -> pd.DataFrame:
    """Macro AUROC and its differences, for all arms, test sets and prompts."""
    values = require_rows(select_rows(results, _ZERO_SHOT, metric="auroc", finding="macro"), "zero-shot auroc")
    differences = select_rows(results, _ZERO_SHOT_DIFFERENCE, metric="auroc_difference", finding="macro")
    return pd.concat([values, differences], ignore_index=True)


def _plot_zero_shot(rows: pd.DataFrame) -> Drawing:
    values = _group_values(rows[rows.task == _ZERO_SHOT])
    differences = _group_arm_differences(rows[rows.task == _ZERO_SHOT_DIFFERENCE])
    heights = level_groups(list(values.values()), [differences.get(key, Group("", [])) for key in values])
    figure = new_figure(height_mm=17 + forest_height_mm(heights))
    titles = {"a": "AUROC by arm", "b": "Paired differences, 95 % intervals"}
    labels = ("AUROC", "Difference in AUROC, same patients")
    draw_values_and_differences(figure, values, differences, labels, titles, chance=0.5)
    return figure


def _group_values(rows: pd.DataFrame) -> dict[tuple[str, str], Group]:
    """Estimates of every arm under (data set, setting)."""
    groups, looks = {}, arm_styles(rows.arm)
    for (data_set, setting), own in rows.groupby(["data_set", "setting"], sort=True):
        heading = "  ·  ".join(part for part in (name_data_set(data_set), name_setting(setting)) if part)
        heading += f"  ·  n = {int(summarise_seeds(own).n.max()):,}"
        groups[data_set, setting] = Group(heading, list_estimates(own, "arm", looks))
    return groups


def _group_arm_differences(rows: pd.DataFrame) -> dict[tuple[str, str], Group]:
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


def _describe_zero_shot(rows: pd.DataFrame) -> str:
    text = "Zero-shot classification. a, AUROC (mean over findings) of each arm, by test set and prompts. "
    if (rows.task == _ZERO_SHOT_DIFFERENCE).any():
        text += (
            "b, differences between arms on the same patients and seeds; right of the line the first arm is better. "
        )
    return text + describe_interval(rows[rows.task == _ZERO_SHOT])


def _conclude_zero_shot(rows: pd.DataFrame) -> str:
    values = prefer_setting(prefer_data_set(rows[rows.task == _ZERO_SHOT]))
    place = values.iloc[0]
    text = f"Macro zero-shot AUROC ({name_place(place)}): {state_arms(values)}"
    here = rows[(rows.data_set == place.data_set) & (rows.setting == place.setting)]
    for arm, reference in (("curated", "full"), ("filtered", "random_same_data")):
        for row in summarise_seeds(here[(here.arm == arm) & (here.reference == reference)]).itertuples():
            text += f"; {short_name(arm)} minus {short_name(reference)} {write_row(row, '+.3f')}"
    return text + "."


zero_shot = Figure("zero_shot", _select_zero_shot, _plot_zero_shot, _describe_zero_shot, _conclude_zero_shot)


def _select_retrieval(results: pd.DataFrame) -> pd.DataFrame:
    """Recall and median rank, with chance and differences; the setting is ``image_to_text`` or ``text_to_image``."""
    metrics = [name + kind for kind in ("", _BY_CHANCE, "_difference") for name in (*_RECALLS, _RANK)]
    rows = pd.concat(
        [select_rows(results, task, metric=metrics) for task in (_RETRIEVAL, _RETRIEVAL_DIFFERENCE)], ignore_index=True
    )
    return require_rows(rows, "retrieval")


def _plot_retrieval(rows: pd.DataFrame) -> Drawing:
    values, differences = rows[rows.task == _RETRIEVAL], rows[rows.task == _RETRIEVAL_DIFFERENCE]
    data_sets, looks = sorted(set(values.data_set)), arm_styles(values.arm)
    groups = {name: _group_recall_differences(differences[differences.data_set == name]) for name in data_sets}
    lines = max((sum(len(group.estimates) + 1.35 for group in one) for one in groups.values()), default=0)
    height = max(46.0, forest_height_mm([0]) + 3.3 * lines + 12)
    figure = new_figure(height_mm=height * len(data_sets) + 10)
    ratios = [1.25, 1.25, 0.8] + [1.1] * any(groups.values())
    panels = figure.subplots(len(data_sets), len(ratios), squeeze=False, width_ratios=ratios)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for data_set, axes in zip(data_sets, panels, strict=True):
        of_set = values[values.data_set == data_set]
        for one, (direction, title) in zip(axes, _TITLES.items(), strict=False):
            of_direction = of_set[of_set.setting == direction]
            _draw_arms(
                one,
                [of_direction[of_direction.metric.str.fullmatch(f"{name}({_BY_CHANCE})?")] for name in _RECALLS],
                looks,
                100,
            )
            one.set_xticks(range(len(CUTOFFS)), [f"at {cutoff}" for cutoff in CUTOFFS])
            one.set_ylim(bottom=0)
            one.grid(axis="y")
            title_panel(one, next(letters), title)
        axes[1].sharey(axes[0])
        axes[1].tick_params(labelleft=False)
        axes[0].set_ylabel(f"{name_data_set(data_set)}\nRecall (%)" if len(data_sets) > 1 else "Recall (%)")
        ranks = of_set[of_set.metric.str.startswith(_RANK)]
        _draw_arms(axes[2], [ranks[ranks.setting == direction] for direction in DIRECTIONS], looks, 1, with_seeds=False)
        axes[2].set_xticks(range(2), ["report", "image"])
        scale_log(axes[2], "y")
        axes[2].invert_yaxis()
        axes[2].set_ylabel("Rank (log, best on top)")
        title_panel(axes[2], next(letters), "Median rank")
        if len(axes) > 3:
            heights = [len(group.estimates) for group in groups[data_set]]
            draw_forest(axes[3], groups[data_set], heights, reference=0.0, heading_at_axes=True)
            axes[3].set(yticks=[], xlabel="Difference in recall (points)")
            axes[3].margins(x=0.08)
            title_panel(axes[3], next(letters), "Curated minus …")
    add_arm_legend(figure, looks.values())
    return figure


def _draw_arms(
    axes: Axes, places: list[pd.DataFrame], looks: dict[str, ArmStyle], scale: float, with_seeds: bool = True
) -> None:
    """The arms side by side at each place, over what chance gives there; one table of one measure a place."""
    for place, rows in enumerate(places):
        by_chance = rows.metric.str.endswith(_BY_CHANCE)
        for row in summarise_seeds(rows[by_chance]).iloc[:1].itertuples():
            axes.plot(
                [place - 0.42, place + 0.42], [scale * row.value] * 2, color=GREY, linewidth=0.8,
                linestyle=(0, (3, 2)), gid="chance", zorder=1,
            )  # fmt: skip
        summary = summarise_seeds(rows[~by_chance])
        for (arm, style), offset in zip(looks.items(), spread_arms(len(looks)), strict=True):
            for row in summary[summary.arm == arm].itertuples():
                if with_seeds:
                    seeds = scale * seed_values(rows[~by_chance], arm=arm)
                    draw_seeds(axes, place + offset + 0.07, seeds, style, vertical=True)
                draw_estimate(axes, place + offset, interval(row, scale), style, vertical=True)
    axes.set_xlim(-0.55, len(places) - 0.45)
    axes.tick_params(axis="x", length=0)


def _group_recall_differences(rows: pd.DataFrame) -> list[Group]:
    """Differences of the curated arm in recall, in percentage points, at the largest cutoff measured."""
    metric = next(
        (name + "_difference" for name in reversed(_RECALLS) if (rows.metric == name + "_difference").any()), ""
    )
    groups = []
    for direction, title in _TITLES.items():
        chosen = rows[(rows.setting == direction) & (rows.metric == metric) & (rows.arm == "curated")]
        looks = {arm: arm_style(arm) for arm in order_arms(chosen.reference)}
        if looks:
            cutoff = metric.removesuffix("_difference").removeprefix("recall@")
            groups.append(Group(f"{title}, at {cutoff}", list_estimates(chosen, "reference", looks, 100)))
    return groups


def _describe_retrieval(rows: pd.DataFrame) -> str:
    by_chance = rows.metric.str.endswith(_BY_CHANCE)
    values = rows[(rows.task == _RETRIEVAL) & ~by_chance]
    counts = values.groupby(["data_set", "setting"]).n.first().unstack()
    notes = [f"{texts:,} of {pairs:,} differ" for pairs, texts in counts[list(DIRECTIONS)].itertuples(index=False)]
    text = (
        "Retrieval between images and reports: recall at 1, 5 and 10 of the report of an image and of the image of a "
        f"report, and the median rank of the right answer{'; dashed, what chance gives' if by_chance.any() else ''}. "
    )
    if (rows.task == _RETRIEVAL_DIFFERENCE).any():
        text += "Right, paired differences of the curated arm on the same pairs and seeds. "
    text += describe_interval(values)
    return text + (f" Identical reports count as one: {'; '.join(notes)}." if notes else "")


def _conclude_retrieval(rows: pd.DataFrame) -> str:
    rows = prefer_data_set(rows[(rows.task == _RETRIEVAL) & (rows.setting == DIRECTIONS[0])])
    name = next(name for name in reversed(_RECALLS) if (rows.metric == name).any())
    found, where = rows[rows.metric == name], name_data_set(rows.data_set.iloc[0])
    cutoff = name.removeprefix("recall@")
    text = f"The report of an image is among the first {cutoff} ({where}), in %: {state_arms(found, '.1f', 100)}"
    chance = rows.value[rows.metric == name + _BY_CHANCE]
    return text + (f"; chance gives {100 * chance.mean():.1f}." if len(chance) else ".")


retrieval = Figure("retrieval", _select_retrieval, _plot_retrieval, _describe_retrieval, _conclude_retrieval)
