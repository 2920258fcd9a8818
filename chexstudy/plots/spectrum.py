"""What an AUROC depends on besides the model: who the negatives are, and which sentences are asked."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import (
    describe_n,
    name_data_set,
    prefer_data_set,
    require_rows,
    select_rows,
    write_row,
)
from chexstudy.plots.style import GREY, INK, PALE, ArmStyle, arm_style, draw_marks, new_figure, order_arms, title_panel

SPECTRUM, FAMILY = "spectrum", "prompt_family"
_NEGATIVES = {
    "healthy": ArmStyle("healthy", "#0072B2", "o"),
    "sick": ArmStyle("with another finding", "#D55E00", "s"),
}
_FAMILY_LOOKS = (
    ("#222222", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#D55E00", "D"), ("#CC79A7", "P"), ("#E69F00", "v"),
    ("#56B4E9", "X"), ("#8A8A8A", "<"),
)  # fmt: skip
_ROW_MM = 3.6


def _select(results: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The AUROC of every finding against healthy and sick negatives, and with each prompt family.

    Those of the first arm on the preferred test set; with them the mean loss from healthy to sick negatives in words.
    """
    rows = select_rows(results, SPECTRUM, metric="auroc", group=list(_NEGATIVES))
    rows = pd.concat([rows, select_rows(results, FAMILY, metric="auroc")], ignore_index=True)
    require_rows(rows, "AUROC by negatives or by prompt family")
    rows = prefer_data_set(rows[rows.arm == order_arms(rows.arm)[0]])
    place = {"arm": rows.arm.iloc[0], "data_set": rows.data_set.iloc[0], "finding": MACRO}
    gap = select_rows(results, SPECTRUM, metric="auroc_difference", **place)
    return rows, write_row(gap.iloc[0]) if len(gap) else ""


def _plot(rows: pd.DataFrame, gap: str) -> Drawing:
    """Panels over the same findings: healthy against sick negatives, and all prompt families; those with rows."""
    negatives, families = rows[rows.task == SPECTRUM], rows[rows.task == FAMILY]
    order = _order_findings(negatives, families)
    figure = new_figure(height_mm=34 + _ROW_MM * len(order))
    panels = [
        (_draw_negatives, negatives, "Negatives: healthy or with something else"),
        (_draw_families, families, "Prompt families"),
    ]
    panels = [panel for panel in panels if len(panel[1])]
    places = {finding: place for place, finding in enumerate(order)}
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, letter, (draw, shown, title) in zip(grid, "ab", panels, strict=False):
        _draw_spans(axes, shown, places)
        draw(axes, shown, places)
        axes.axvline(0.5, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
        axes.set_xlabel("AUROC")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09 * 24 / max(len(order), 12)), ncols=3)
        title_panel(axes, letter, title)
    grid[0].set_yticks(range(len(order)), ["Mean over findings" if one == MACRO else one for one in order])
    grid[0].set_ylim(len(order) - 0.4, -0.6)
    return figure


def _order_findings(negatives: pd.DataFrame, families: pd.DataFrame) -> list[str]:
    """The mean first, then findings by what healthy negatives add; those with one sort of negatives last."""
    wide = negatives.pivot(index="finding", columns="group", values="value").reindex(columns=["healthy", "sick"])
    gap = (wide.healthy - wide.sick).sort_values(ascending=False, kind="stable")
    order = dict.fromkeys([*gap.index, *families.finding])
    return [MACRO] * (MACRO in order) + [finding for finding in order if finding != MACRO]


def _draw_spans(axes: Axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    """From the lowest to the highest of a finding, where there are several."""
    for finding, values in rows.groupby("finding", sort=False).value:
        if len(values) > 1:
            axes.plot([values.min(), values.max()], [places[finding]] * 2, color=PALE, linewidth=2.2, zorder=1)


def _draw_negatives(axes: Axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    for (sort, style), shift in zip(_NEGATIVES.items(), (-0.14, 0.14), strict=True):
        own = rows[rows.group == sort]
        y = own.finding.map(places) + shift
        axes.hlines(y, own.ci_low, own.ci_high, color=style.colour, linewidth=0.9, gid="interval", zorder=2)
        draw_marks(axes, own.value, y, style, label=style.name, zorder=3)


def _draw_families(axes: Axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    for number, (family, own) in enumerate(rows.groupby("setting", sort=False)):
        style = ArmStyle(family.replace("_", " "), *_FAMILY_LOOKS[number % len(_FAMILY_LOOKS)])
        draw_marks(axes, own.value, own.finding.map(places), style, 3.8, label=style.name, zorder=3)
        certain = own[own.ci_high < 0.5]
        axes.plot(
            certain.value, certain.finding.map(places), "o", color="none", markersize=7, markeredgecolor=INK,
            markeredgewidth=0.7, zorder=4, gid="inverted",
        )  # fmt: skip


def _describe(rows: pd.DataFrame, gap: str) -> str:
    text = (
        f"What zero-shot AUROC depends on besides the model, {arm_style(rows.arm.iloc[0]).name.lower()} arm on "
        f"{name_data_set(rows.data_set.iloc[0])}. a, each finding against people without any finding and against "
        "people with another one, prompts chosen on validation; bars are 95 % intervals, patients and seeds resampled. "
    )
    if gap:
        text += f"Mean difference on the same resamples {gap}. "
    means = rows[(rows.task == FAMILY) & (rows.finding == MACRO)].sort_values("value")
    if len(means):
        low, high = (f"{row.value:.3f} ({row.setting.replace('_', ' ')})" for row in means.iloc[[0, -1]].itertuples())
        text += (
            f"b, the same scores with each prompt family against all negatives; the mean goes from {low} to {high}. "
            "Rings mark findings whose whole interval lies under 0.5. "
        )
    return text + describe_n(rows[rows.finding == MACRO] if (rows.finding == MACRO).any() else rows)


def _conclude(rows: pd.DataFrame, gap: str) -> str:
    """What sick negatives cost, and how far prompt families differ."""
    parts = [f"against negatives with another finding the mean AUROC is {gap} lower than against healthy ones"]
    means = rows.value[(rows.task == FAMILY) & (rows.finding == MACRO)]
    parts = parts * bool(gap) + [f"by prompt family the mean goes from {means.min():.3f} to {means.max():.3f}"] * any(
        means
    )
    return f"{arm_style(rows.arm.iloc[0]).name}: {'; '.join(parts) or 'no mean over findings was measured'}."


spectrum = Figure("spectrum", _select, _plot, _describe, _conclude)
