"""Subgroups of patients: each against the rest, the gap between worst and best, and what curation does to it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

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
from chexstudy.plots.forest import (
    Group,
    add_arm_legend,
    draw_estimate,
    draw_forest,
    forest_height_mm,
    frame_lines,
    head_group,
    list_estimates,
)
from chexstudy.plots.looks import arm_style, arm_styles, order_arms
from chexstudy.plots.measurements import interval, prefer_data_set, require_rows, select_rows
from chexstudy.plots.style import new_figure, title_panel
from chexstudy.plots.words import name_data_set, name_exposure, write_row
from chexstudy.results import OVER_SEEDS

_WORDS = {("sex", "F"): "women", ("sex", "M"): "men"}
_HEADINGS = {"age": "Age (years)", "tpr": "TPR", "fpr": "FPR"}
_AGAINST = {
    "auroc": "AUROC, each group against the rest",
    "auroc" + STANDARDISED: "The same at one mix of findings",
    "tpr": "TPR at carried thresholds, against the rest",
    "fpr": "FPR at carried thresholds, against the rest",
}
_ARM_MM, _SPACE_MM, _HEADING_MM = 1.35, 1.6, 4.4
_GAP = "auroc" + GAP


def _select(results: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, int]]:
    """Subgroups and their gaps on the preferred test set.

    With them the groups by what they are grouped by, and on how many findings each grouping is compared: on those with
    a value in all of its groups.
    """
    rows = pd.concat([select_rows(results, task) for task in (SUBGROUP, SUBGROUP_GAP)], ignore_index=True)
    rows = rows[(rows.task == SUBGROUP_GAP) | (rows.finding == MACRO)]
    require_rows(rows, "two groups in each of which five patients have a finding and five lack it")
    # Average precision is not drawn.
    rows = prefer_data_set(rows[~rows.metric.str.startswith("auprc")])
    compared = rows[rows.metric == "auroc" + AGAINST_REST]
    kinds = sorted(set(compared.setting), key=_order_kind)
    groups = {kind: sorted(set(compared.group[compared.setting == kind])) for kind in kinds}
    findings = select_rows(results, SUBGROUP, metric="auroc", data_set=str(rows.data_set.iloc[0]), seed=OVER_SEEDS)
    findings = findings[findings.finding != MACRO]
    counts = {}
    for kind, names in groups.items():
        of_kind = findings[(findings.setting == kind) & findings.group.isin(names)]
        counts[kind] = int((of_kind.groupby("finding").group.nunique() == len(names)).sum())
    return rows.drop(columns=["study", "flops", "seconds"], errors="ignore").reset_index(drop=True), groups, counts


def _plot(rows: pd.DataFrame, groups: dict[str, list[str]], counts: dict[str, int]) -> Drawing:
    """Each subgroup against the rest by arm, as it is and standardised; gaps by arm; and what the curated arm widens.

    TPR and FPR are drawn if thresholds were carried from validation.
    """
    gaps = rows[rows.task == SUBGROUP_GAP]
    metrics = [metric for metric in _AGAINST if (gaps.metric == metric + AGAINST_REST).any()]
    looks = arm_styles(gaps.arm)
    below = {
        "Gap, worst group minus best": _group_gaps(gaps, groups, looks),
        "Gap widened by curation, compared with": _group_widening(gaps, groups),
    }
    below = {title: one for title, one in below.items() if one}
    bands = (len(metrics) + 1) // 2
    tall = sum(_HEADING_MM + len(names) * (_SPACE_MM + _ARM_MM * len(looks)) for names in groups.values()) + 13
    low = max((forest_height_mm([len(group.estimates) for group in one]) for one in below.values()), default=0) + 13
    heights = [tall] * bands + [low] * bool(below)
    figure = new_figure(height_mm=sum(heights) + 8)
    # Every row has margins of its own: long labels of one panel do not squeeze those above and below.
    strips = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    grid = np.array([one.subplots(1, 2) for one in strips])
    letters = iter("abcdefgh")
    for axes, metric in zip(grid[:bands].ravel(), metrics, strict=False):
        _draw_against_rest(axes, gaps, metric, looks, groups)
        title_panel(axes, next(letters), _AGAINST[metric])
    for pair in grid[:bands]:
        drawn = [axes.get_xlim() for axes in pair if axes.has_data()]
        for axes in pair:
            axes.set_xlim(min(low for low, _ in drawn), max(high for _, high in drawn))
    for axes, (title, one) in zip(grid[-1], below.items(), strict=False):
        lines = [len(group.estimates) for group in one]
        draw_forest(axes, one, lines, reference=0.0, number_format="+.3f", heading_at_axes=True)
        axes.set_xlabel("Difference in macro AUROC")
        title_panel(axes, next(letters), title)
    for axes in grid.ravel()[[*range(len(metrics), 2 * bands), *range(2 * bands + len(below), grid.size)]]:
        axes.remove()
    add_arm_legend(figure, looks.values())
    return figure


def _order_kind(kind: str) -> tuple[int, str]:
    known = ("sex", "age", "view", "source")
    return known.index(kind) if kind in known else len(known), kind


def _name_kind(kind: str) -> str:
    return _HEADINGS.get(kind, kind.replace("_", " ").capitalize())


def _draw_against_rest(axes: Axes, gaps: pd.DataFrame, metric: str, looks: dict, groups: dict) -> None:
    """A line a group, on it one mark an arm; a heading over each grouping."""
    rows = gaps[(gaps.metric == metric + AGAINST_REST) & (gaps.seed == OVER_SEEDS)]
    rows = rows.set_index(["arm", "setting", "group"])
    y, lines = 0.0, {}
    for kind, names in groups.items():
        head_group(axes, y + 0.35 * _HEADING_MM, _name_kind(kind))
        y += _HEADING_MM
        for group in names:
            count = 0
            for place, (arm, style) in enumerate(looks.items()):
                if (arm, kind, group) in rows.index:
                    row = rows.loc[(arm, kind, group)]
                    draw_estimate(axes, y + _ARM_MM * place, interval(row), style, size=3.2)
                    count = int(row.n)
            lines[y + _ARM_MM * (len(looks) - 1) / 2] = f"{_WORDS.get((kind, group), group)} ({count:,})"
            y += _ARM_MM * len(looks) + _SPACE_MM
    axes.set_ylim(y, -0.5)
    frame_lines(axes, lines, reference=0, ticks=5)
    axes.set_xlabel(f"Difference in macro {_HEADINGS.get(metric, 'AUROC')} (images in brackets)")


def _group_gaps(gaps: pd.DataFrame, groups: dict, looks: dict) -> list[Group]:
    rows = gaps[gaps.metric == _GAP]
    return [Group(_name_kind(kind), list_estimates(rows[rows.setting == kind], "arm", looks)) for kind in groups]


def _group_widening(gaps: pd.DataFrame, groups: dict) -> list[Group]:
    rows = gaps[gaps.metric == "auroc" + WIDENING]
    looks = {arm: arm_style(arm) for arm in order_arms(rows.reference)}
    lists = {kind: list_estimates(rows[rows.setting == kind], "reference", looks) for kind in groups}
    return [Group(_name_kind(kind), estimates) for kind, estimates in lists.items() if len(rows)]


def _describe(rows: pd.DataFrame, groups: dict[str, list[str]], counts: dict[str, int]) -> str:
    gaps = rows[rows.task == SUBGROUP_GAP]
    seeds = gaps.seed[gaps.seed != OVER_SEEDS].nunique()
    drawn = "patients and seeds resampled" if seeds > 1 else "patients resampled, one seed"
    compared = ", ".join(f"{_name_kind(kind).lower()} {count}" for kind, count in counts.items())
    parts = [
        f"Subgroups ({name_data_set(gaps.data_set.iloc[0])}{name_exposure(gaps)}, zero-shot). Groups are compared in "
        f"the macro mean over the findings that five patients have and five lack in every group ({compared}). The rest "
        f"is the mean of the other groups, weighted by patients. Bars are 95 % intervals, {drawn}; those of gaps hold "
        "for all pairs of groups at once."
    ]
    if (gaps.metric == "auroc" + STANDARDISED + AGAINST_REST).any():
        parts.append("At one mix of findings, images are weighted so that findings are as common in every group.")
    if (gaps.metric == "tpr" + AGAINST_REST).any():
        parts.append("Thresholds are those that leave nine in ten cases without the finding uncalled on validation.")
        odds = gaps[(gaps.metric == EQUALISED_ODDS + GAP) & (gaps.arm == "curated")]
        sizes = "; ".join(f"{_name_kind(row.setting).lower()} {write_row(row)}" for row in odds.itertuples())
        parts += [f"Equalised-odds gap of the curated arm, the larger of those in TPR and FPR: {sizes}."] * bool(sizes)
    for metric in ("auroc", "tpr", "fpr"):
        parts.append(_describe_sure(gaps, metric + GAP, f"gaps in {metric.upper()}"))
    parts.append(_describe_sure(gaps, "auroc" + WIDENING, "gaps widened or narrowed by curation"))
    return " ".join(part for part in parts if part)


def _describe_sure(gaps: pd.DataFrame, metric: str, what: str) -> str:
    tested = gaps[gaps.metric == f"{metric}_p_holm"]
    if tested.empty:
        return ""
    values = gaps[(gaps.metric == metric) & (gaps.seed == OVER_SEEDS)].set_index(["arm", "reference", "setting"])
    said = []
    for row in tested[tested.value < 0.05].itertuples():
        arm = " minus ".join(arm_style(one).name.lower() for one in (row.arm, row.reference) if one)
        numbers = write_row(values.loc[(row.arm, row.reference, row.setting)], "+.3f")
        said.append(f"{_name_kind(row.setting).lower()}, {arm} {numbers}")
    said = "; ".join(said) or "none"
    return f"Beyond chance after correction by Holm over groupings, {what}: {said} (of {len(tested)})."


def _conclude(rows: pd.DataFrame, *_) -> str:
    gaps = rows[rows.task == SUBGROUP_GAP]
    own = gaps[(gaps.metric == _GAP) & (gaps.arm == "curated") & (gaps.seed == OVER_SEEDS)]
    text = "The curated arm has no gap that could be measured."
    if len(own):
        row = own.loc[own.value.idxmin()]
        kind = _name_kind(row.setting).lower()
        text = f"The curated arm's widest gap in macro AUROC is by {kind}, {write_row(row, '+.3f')}."
    return f"{text} {_describe_sure(gaps, _GAP, 'gaps in AUROC')}".strip()


def tabulate_gaps(results: pd.DataFrame) -> pd.DataFrame:
    """Gaps in macro AUROC with their intervals, and after standardisation, by data set, grouping and arm, as text."""
    rows, keys = select_rows(results, SUBGROUP_GAP, seed=OVER_SEEDS), ["data_set", "setting", "arm"]
    wanted = {_GAP: "gap", f"auroc{STANDARDISED}{GAP}": "at one mix of findings"}
    wanted |= {f"tpr{GAP}": "gap in TPR", f"fpr{GAP}": "gap in FPR"}
    shown = rows[rows.metric.isin(list(wanted))]
    shown = shown.assign(text=[write_row(row) for row in shown.itertuples()], column=shown.metric.map(wanted))
    table = shown.pivot(index=keys, columns="column", values="text")
    table["p (Holm)"] = rows[rows.metric == f"{_GAP}_p_holm"].set_index(keys).value.round(3).reindex(table.index)
    order = [*[name for name in wanted.values() if name in table], "p (Holm)"]
    return table[order].rename_axis(index={"setting": "grouping"}, columns=None).replace(np.nan, "")


subgroups = Figure("subgroups", _select, _plot, _describe, _conclude)
