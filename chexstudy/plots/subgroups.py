"""Subgroups of patients: each against the rest, the gap between worst and best, and what curation does to it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from chexstudy.evaluation.scores import MACRO
from chexstudy.evaluation.subgroups.gaps import (
    AGAINST_REST,
    EQUALISED_ODDS,
    GAP,
    STANDARDISED,
    SUBGROUP,
    SUBGROUP_GAP,
    WIDENING,
)
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, add_arm_legend, draw_estimate, draw_forest, forest_height_mm
from chexstudy.plots.measurements import name_data_set, preferred_data_set, require_rows, seed_values, select_rows
from chexstudy.plots.style import INK, arm_style, new_figure, order_arms, title_panel
from chexstudy.results import OVER_SEEDS, write_interval

_WORDS = {("sex", "F"): "women", ("sex", "M"): "men"}
_HEADINGS = {"age": "Age (years)", "tpr": "TPR", "fpr": "FPR"}
_AGAINST = {
    "auroc": "AUROC, each group against the rest",
    "auroc" + STANDARDISED: "The same at one mix of findings",
    "tpr": "TPR at carried thresholds, against the rest",
    "fpr": "FPR at carried thresholds, against the rest",
}
_ARM_MM, _SPACE_MM, _HEADING_MM = 1.35, 1.6, 4.4
_PREFERRED_GAP = "auroc"


def select_subgroups(results: pd.DataFrame) -> pd.DataFrame:
    """Rows of the results table that the figure is drawn from: subgroups and their gaps on the preferred test set."""
    rows = pd.concat([select_rows(results, task) for task in (SUBGROUP, SUBGROUP_GAP)], ignore_index=True)
    rows = rows[(rows.task == SUBGROUP_GAP) | (rows.finding == MACRO)]
    require_rows(rows, "two groups in each of which five patients have a finding and five lack it")
    rows = rows[rows.data_set == preferred_data_set(rows)]
    return rows.drop(columns=["study", "flops", "seconds"], errors="ignore").reset_index(drop=True)


def plot_subgroups(results: pd.DataFrame) -> Drawing:
    """Each subgroup against the rest by arm, as it is and standardised; gaps by arm; and what the curated arm widens.

    TPR and FPR are drawn if thresholds were carried from validation.
    """
    chosen = select_subgroups(results)
    gaps = chosen[chosen.task == SUBGROUP_GAP]
    metrics = [metric for metric in _AGAINST if (gaps.metric == metric + AGAINST_REST).any()]
    arms = order_arms(set(gaps.arm))
    groups = _list_groups(gaps)
    below = [_group_gaps(gaps, arms), _group_widening(gaps)]
    below = [(title, one) for title, one in zip(_BELOW, below, strict=True) if one]
    bands = (len(metrics) + 1) // 2
    tall = sum(_HEADING_MM + len(of_kind) * (_SPACE_MM + _ARM_MM * len(arms)) for of_kind in groups.values()) + 13
    low = max((forest_height_mm([len(group.estimates) for group in one]) for _, one in below), default=0) + 13
    heights = [tall] * bands + [low] * bool(below)
    figure = new_figure(height_mm=sum(heights) + 8)
    # Every row has margins of its own: long labels of one panel do not squeeze those above and below.
    rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    grid = np.array([one.subplots(1, 2) for one in rows])
    letters = iter("abcdefgh")
    for place, metric in enumerate(metrics):
        axes = grid[place // 2, place % 2]
        _draw_against_rest(axes, gaps, metric, arms, groups)
        title_panel(axes, next(letters), _AGAINST[metric])
    for pair in grid[:bands]:
        drawn = [axes.get_xlim() for axes in pair if axes.has_data()]
        for axes in pair:
            axes.set_xlim(min(low for low, _ in drawn), max(high for _, high in drawn))
    for axes, (title, one) in zip(grid[-1], below, strict=False):
        lines = [len(group.estimates) for group in one]
        draw_forest(axes, one, lines, reference=0.0, number_format="+.3f", heading_at_axes=True)
        axes.set_xlabel("Difference in macro AUROC")
        title_panel(axes, next(letters), title)
    for axes in grid.ravel()[[*range(len(metrics), 2 * bands), *range(2 * bands + len(below), grid.size)]]:
        axes.remove()
    add_arm_legend(figure, [arm_style(arm, arms) for arm in arms])
    return figure


_BELOW = ("Gap, worst group minus best", "Gap widened by curation, compared with")


def _list_groups(gaps: pd.DataFrame) -> dict[str, list[str]]:
    """Groups by what they are grouped by."""
    compared = gaps[gaps.metric == "auroc" + AGAINST_REST]
    kinds = sorted(set(compared.setting), key=_order_kind)
    return {kind: sorted(set(compared.group[compared.setting == kind])) for kind in kinds}


def _order_kind(kind: str) -> tuple[int, str]:
    known = ("sex", "age", "view", "source")
    return known.index(kind) if kind in known else len(known), kind


def _name_kind(kind: str) -> str:
    return _HEADINGS.get(kind, kind.replace("_", " ").capitalize())


def _draw_against_rest(axes: Axes, gaps: pd.DataFrame, metric: str, arms: list[str], groups: dict) -> None:
    """A line a group, on it one mark an arm; a heading over each grouping."""
    rows = gaps[(gaps.metric == metric + AGAINST_REST) & (gaps.seed == OVER_SEEDS)].set_index(
        ["arm", "setting", "group"]
    )
    y, ticks, labels = 0.0, [], []
    for kind, names in groups.items():
        heading = axes.text(
            0.0, y + 0.35 * _HEADING_MM, _name_kind(kind), transform=axes.get_yaxis_transform(), fontweight="bold",
            fontsize=6.5, va="center", zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
        heading.set_in_layout(False)
        y += _HEADING_MM
        for group in names:
            count = 0
            for place, arm in enumerate(arms):
                if (arm, kind, group) in rows.index:
                    row, style = rows.loc[(arm, kind, group)], arm_style(arm, arms)
                    draw_estimate(axes, row.value, y + _ARM_MM * place, row.ci_low, row.ci_high, style, size=3.2)
                    count = int(row.n)
            ticks.append(y + _ARM_MM * (len(arms) - 1) / 2)
            labels.append(f"{_WORDS.get((kind, group), group)} ({count:,})")
            y += _ARM_MM * len(arms) + _SPACE_MM
    axes.set_ylim(y, -0.5)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#ECECEC", linewidth=0.5)
    axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    kind = _HEADINGS.get(metric, "AUROC")
    axes.set_xlabel(f"Difference in macro {kind} (images in brackets)")


def _group_gaps(gaps: pd.DataFrame, arms: list[str]) -> list[Group]:
    chosen = gaps[gaps.metric == _PREFERRED_GAP + GAP]
    return [
        Group(_name_kind(kind), [_estimate(chosen[chosen.arm == arm], kind, arm) for arm in arms])
        for kind in _list_groups(gaps)
    ]


def _estimate(rows: pd.DataFrame, kind: str, arm: str) -> Estimate:
    row = rows[(rows.setting == kind) & (rows.seed == OVER_SEEDS)].iloc[0]
    style = arm_style(arm)
    seeds = seed_values(rows, setting=kind)
    return Estimate(style.name, row.value, row.ci_low, row.ci_high, style, seeds)


def _group_widening(gaps: pd.DataFrame) -> list[Group]:
    rows = gaps[gaps.metric == _PREFERRED_GAP + WIDENING]
    if rows.empty:
        return []
    rows, others = rows.set_index(["setting", "reference"]), order_arms(set(rows.reference))
    groups = []
    for kind in _list_groups(gaps):
        estimates = [
            Estimate(arm_style(other).name, row.value, row.ci_low, row.ci_high, arm_style(other))
            for other, row in ((one, rows.loc[(kind, one)]) for one in others)
        ]
        groups.append(Group(_name_kind(kind), estimates))
    return groups


def describe_subgroups(results: pd.DataFrame) -> str:
    """The caption of `plot_subgroups`; it says on what groups are compared and names the gaps beyond chance."""
    rows = select_subgroups(results)
    gaps = rows[rows.task == SUBGROUP_GAP]
    seeds = gaps.seed[gaps.seed != OVER_SEEDS].nunique()
    drawn = "patients and seeds resampled" if seeds > 1 else "patients resampled, one seed"
    exposure = {"seen": ", may have been seen in training", "unknown": ", exposure unknown"}
    known = next((words for state, words in exposure.items() if (gaps.exposure == state).any()), "")
    count = _count_findings(results, rows)
    compared = ", ".join(f"{_name_kind(kind).lower()} {count[kind]}" for kind in _list_groups(gaps))
    parts = [
        f"Subgroups ({name_data_set(gaps.data_set.iloc[0])}{known}, zero-shot). Groups are compared in the macro mean "
        f"over the findings that five patients have and five lack in every group ({compared}). The rest is the mean of "
        f"the other groups, weighted by patients. Bars are 95 % intervals, {drawn}; those of gaps hold for all pairs "
        "of groups at once."
    ]
    if (gaps.metric == "auroc" + STANDARDISED + AGAINST_REST).any():
        parts.append("At one mix of findings, images are weighted so that findings are as common in every group.")
    if (gaps.metric == "tpr" + AGAINST_REST).any():
        parts.append("Thresholds are those that leave nine in ten cases without the finding uncalled on validation.")
        parts.append(_describe_odds(gaps))
    for metric, words in ((_PREFERRED_GAP, "AUROC"), ("tpr", "TPR"), ("fpr", "FPR")):
        parts.append(_describe_sure(gaps, f"{metric}{GAP}", f"gaps in {words}"))
    parts.append(_describe_sure(gaps, f"{_PREFERRED_GAP}{WIDENING}", "gaps widened or narrowed by curation"))
    return " ".join(part for part in parts if part)


def _count_findings(results: pd.DataFrame, rows: pd.DataFrame) -> dict[str, int]:
    """How many findings each grouping is compared on: those with a value in all of its groups."""
    of_set = select_rows(results, SUBGROUP, metric="auroc", data_set=str(rows.data_set.iloc[0]), seed=OVER_SEEDS)
    of_set = of_set[of_set.finding != MACRO]
    counts = {}
    for kind, groups in _list_groups(rows[rows.task == SUBGROUP_GAP]).items():
        of_kind = of_set[(of_set.setting == kind) & of_set.group.isin(groups)]
        counts[kind] = int((of_kind.groupby("finding").group.nunique() == len(groups)).sum())
    return counts


def _describe_odds(gaps: pd.DataFrame) -> str:
    rows = gaps[(gaps.metric == EQUALISED_ODDS + GAP) & (gaps.arm == "curated")]
    if rows.empty:
        return ""
    sizes = [
        f"{_name_kind(row.setting).lower()} {write_interval(row.value, row.ci_low, row.ci_high)}"
        for row in rows.itertuples()
    ]
    return f"Equalised-odds gap of the curated arm, the larger of those in TPR and FPR: {'; '.join(sizes)}."


def _describe_sure(gaps: pd.DataFrame, metric: str, what: str) -> str:
    corrected = gaps[(gaps.metric == f"{metric}_p_holm") & (gaps.value < 0.05)]
    tested = int((gaps.metric == f"{metric}_p_holm").sum())
    if tested == 0:
        return ""
    values = gaps[(gaps.metric == metric) & (gaps.seed == OVER_SEEDS)].set_index(["arm", "reference", "setting"])
    said = []
    for row in corrected.itertuples():
        value = values.loc[(row.arm, row.reference, row.setting)]
        arm = " minus ".join(arm_style(one).name.lower() for one in (row.arm, row.reference) if one)
        numbers = write_interval(value.value, value.ci_low, value.ci_high, "+.3f")
        said.append(f"{_name_kind(row.setting).lower()}, {arm} {numbers}")
    said = "; ".join(said) if said else "none"
    return f"Beyond chance after correction by Holm over groupings, {what}: {said} (of {tested})."


def tabulate_gaps(results: pd.DataFrame) -> pd.DataFrame:
    """Gaps in macro AUROC with their intervals, and after standardisation, by data set, grouping and arm, as text."""
    rows = select_rows(results, SUBGROUP_GAP, seed=OVER_SEEDS)
    wanted = {f"auroc{GAP}": "gap", f"auroc{STANDARDISED}{GAP}": "at one mix of findings"}
    wanted |= {f"tpr{GAP}": "gap in TPR", f"fpr{GAP}": "gap in FPR"}
    shown = rows[rows.metric.isin(list(wanted))]
    shown = shown.assign(
        text=[write_interval(row.value, row.ci_low, row.ci_high) for row in shown.itertuples()],
        column=shown.metric.map(wanted),
    )
    table = shown.pivot(index=["data_set", "setting", "arm"], columns="column", values="text")
    holm = rows[rows.metric == f"auroc{GAP}_p_holm"].set_index(["data_set", "setting", "arm"]).value
    table["p (Holm)"] = holm.round(3).reindex(table.index)
    order = [*[name for name in wanted.values() if name in table], "p (Holm)"]
    return table[order].rename_axis(index={"setting": "grouping"}, columns=None).replace(np.nan, "")


def conclude_subgroups(results: pd.DataFrame) -> str:
    """The largest gap of the curated arm, and which gaps are beyond chance."""
    gaps = select_subgroups(results)
    gaps = gaps[gaps.task == SUBGROUP_GAP]
    own = gaps[(gaps.metric == _PREFERRED_GAP + GAP) & (gaps.arm == "curated") & (gaps.seed == OVER_SEEDS)]
    text = "The curated arm has no gap that could be measured."
    if len(own):
        row = own.loc[own.value.idxmin()]
        gap = write_interval(row.value, row.ci_low, row.ci_high, "+.3f")
        text = f"The curated arm's widest gap in macro AUROC is by {_name_kind(row.setting).lower()}, {gap}."
    return f"{text} {_describe_sure(gaps, _PREFERRED_GAP + GAP, 'gaps in AUROC')}".strip()


subgroups = Figure(
    name="subgroups",
    select=select_subgroups,
    plot=plot_subgroups,
    describe=describe_subgroups,
    conclude=conclude_subgroups,
)
