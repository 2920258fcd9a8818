"""What an AUROC depends on besides the model: who the negatives are, and which sentences are asked."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing

from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import describe_n, name_data_set, preferred_data_set, require_rows, select_rows
from chexstudy.plots.style import GREY, INK, PALE, arm_style, new_figure, order_arms, title_panel
from chexstudy.results import write_interval

SPECTRUM, FAMILY = "spectrum", "prompt_family"
_HEALTHY, _SICK = "#0072B2", "#D55E00"
_FAMILY_LOOKS = (
    ("#222222", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#D55E00", "D"), ("#CC79A7", "P"), ("#E69F00", "v"),
    ("#56B4E9", "X"), ("#8A8A8A", "<"),
)  # fmt: skip
_ROW_MM = 3.6


def select_spectrum(results: pd.DataFrame) -> pd.DataFrame:
    """The AUROC of every finding against healthy and sick negatives, and with each prompt family.

    Those of the first arm on the preferred test set.
    """
    rows = select_rows(results, SPECTRUM, metric="auroc")
    rows = rows[rows.group.isin(["healthy", "sick"])]
    rows = pd.concat([rows, select_rows(results, FAMILY, metric="auroc")], ignore_index=True)
    require_rows(rows, "AUROC by negatives or by prompt family")
    rows = rows[rows.arm == order_arms(rows.arm)[0]]
    return rows[rows.data_set == preferred_data_set(rows)].reset_index(drop=True)


def plot_spectrum(results: pd.DataFrame) -> Drawing:
    """Panels over the same findings: healthy against sick negatives, and all prompt families; those with rows."""
    rows = select_spectrum(results)
    negatives, families = rows[rows.task == SPECTRUM], rows[rows.task == FAMILY]
    order = _order_findings(negatives, families)
    figure = new_figure(height_mm=34 + _ROW_MM * len(order))
    panels = [
        (_draw_negatives, negatives, "Negatives: healthy or with something else"),
        (_draw_families, families, "Prompt families"),
    ]
    panels = [panel for panel in panels if len(panel[1])]
    places = {finding: place for place, finding in enumerate(order)}
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, letter, (draw, shown, title) in zip(row, "ab", panels, strict=False):
        draw(axes, shown, places)
        axes.axvline(0.5, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
        axes.set_xlabel("AUROC")
        axes.grid(axis="x", color="#ECECEC", linewidth=0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09 * 24 / max(len(order), 12)), ncols=3)
        title_panel(axes, letter, title)
    row[0].set_yticks(list(places.values()), [_name(finding) for finding in places])
    row[0].set_ylim(len(order) - 0.4, -0.6)
    return figure


def _name(finding: str) -> str:
    return "Mean over findings" if finding == MACRO else finding


def _order_findings(negatives: pd.DataFrame, families: pd.DataFrame) -> list[str]:
    """The mean first, then findings by what healthy negatives add; those with one sort of negatives last."""
    wide = negatives.pivot(index="finding", columns="group", values="value").reindex(columns=["healthy", "sick"])
    gap = (wide.healthy - wide.sick).sort_values(ascending=False, kind="stable")
    others = [finding for finding in dict.fromkeys(families.finding) if finding not in gap.index]
    found = [finding for finding in (*gap.index, *others) if finding != MACRO]
    has_mean = MACRO in gap.index or (families.finding == MACRO).any()
    return ([MACRO] if has_mean else []) + found


def _draw_negatives(axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    shift = {"healthy": -0.14, "sick": 0.14}
    looks = {"healthy": (_HEALTHY, "o", "healthy"), "sick": (_SICK, "s", "with another finding")}
    for finding, own in rows.groupby("finding", sort=False):
        values = own.set_index("group").value
        if len(values) == 2:
            axes.plot([values.sick, values.healthy], [places[finding]] * 2, color=PALE, linewidth=2.2, zorder=1)
    for sort, (colour, marker, name) in looks.items():
        own = rows[rows.group == sort]
        y = np.array([places[finding] for finding in own.finding]) + shift[sort]
        axes.hlines(y, own.ci_low, own.ci_high, color=colour, linewidth=0.9, gid="interval", zorder=2)
        axes.plot(
            own.value, y, marker, color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.4,
            label=name, zorder=3,
        )  # fmt: skip


def _draw_families(axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    spans = rows.groupby("finding").value.agg(["min", "max"])
    for finding, span in spans.iterrows():
        axes.plot([span["min"], span["max"]], [places[finding]] * 2, color=PALE, linewidth=2.2, zorder=1)
    for number, (family, own) in enumerate(rows.groupby("setting", sort=False)):
        colour, marker = _FAMILY_LOOKS[number % len(_FAMILY_LOOKS)]
        y = [places[finding] for finding in own.finding]
        axes.plot(
            own.value, y, marker, color=colour, markersize=3.8, markeredgecolor="white", markeredgewidth=0.4,
            linestyle="none", label=family.replace("_", " "), zorder=3,
        )  # fmt: skip
        certain = own[own.ci_high < 0.5]
        axes.plot(
            certain.value, [places[finding] for finding in certain.finding], "o", color="none", markersize=7,
            markeredgecolor=INK, markeredgewidth=0.7, zorder=4, gid="inverted",
        )  # fmt: skip


def describe_spectrum(results: pd.DataFrame) -> str:
    """The caption of `plot_spectrum`, with the mean loss from healthy to sick negatives and the spread of families."""
    rows = select_spectrum(results)
    arm, data_set = rows.arm.iloc[0], rows.data_set.iloc[0]
    text = (
        f"What zero-shot AUROC depends on besides the model, {arm_style(arm).name.lower()} arm on "
        f"{name_data_set(data_set)}. a, each finding against people without any finding and against people with "
        "another one, prompts chosen on validation; bars are 95 % intervals, patients and seeds resampled. "
    )
    gap = select_rows(results, SPECTRUM, metric="auroc_difference", finding=MACRO, arm=arm, data_set=data_set)
    if len(gap):
        one = gap.iloc[0]
        text += f"Mean difference on the same resamples {write_interval(one.value, one.ci_low, one.ci_high)}. "
    means = rows[(rows.task == FAMILY) & (rows.finding == MACRO)]
    if len(means):
        low, high = means.loc[means.value.idxmin()], means.loc[means.value.idxmax()]
        text += (
            f"b, the same scores with each prompt family against all negatives; the mean goes from {low.value:.3f} "
            f"({low.setting.replace('_', ' ')}) to {high.value:.3f} ({high.setting.replace('_', ' ')}). Rings mark "
            "findings whose whole interval lies under 0.5. "
        )
    return text + describe_n(rows[rows.finding == MACRO] if (rows.finding == MACRO).any() else rows)


def conclude_spectrum(results: pd.DataFrame) -> str:
    """What sick negatives cost, and how far prompt families differ."""
    rows = select_spectrum(results)
    of_arm = {"arm": rows.arm.iloc[0], "data_set": rows.data_set.iloc[0], "finding": MACRO}
    parts = [
        "against negatives with another finding the mean AUROC is "
        f"{write_interval(gap.value, gap.ci_low, gap.ci_high)} lower than against healthy ones"
        for gap in select_rows(results, SPECTRUM, metric="auroc_difference", **of_arm).itertuples()
    ]
    means = rows.value[(rows.task == FAMILY) & (rows.finding == MACRO)]
    if len(means):
        parts.append(f"by prompt family the mean goes from {means.min():.3f} to {means.max():.3f}")
    return f"{arm_style(of_arm['arm']).name}: {'; '.join(parts) or 'no mean over findings was measured'}."


spectrum = Figure("spectrum", select_spectrum, plot_spectrum, describe_spectrum, conclude_spectrum)
