"""What an AUROC depends on besides the model, and what scores are worth as probabilities."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import NullLocator

from chexstudy.evaluation.robustness.report import AS_SCORED, PLATT, PLATT_SHIFTED, RECALIBRATIONS, TEMPERATURE
from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.figure import Figure
from chexstudy.plots.looks import GREY, INK, PALE, ArmStyle, arm_style, order_arms
from chexstudy.plots.measurements import prefer_data_set, require_rows, select_rows
from chexstudy.plots.style import draw_marks, new_figure, title_panel
from chexstudy.plots.words import describe_n, name_data_set, write_row

SPECTRUM, FAMILY = "spectrum", "prompt_family"
_NEGATIVES = {"healthy": ArmStyle("healthy", "#0072B2", "o"), "sick": ArmStyle("with another finding", "#D55E00", "s")}
_FAMILY_LOOKS = (
    ("#222222", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#D55E00", "D"), ("#CC79A7", "P"), ("#E69F00", "v"),
    ("#56B4E9", "X"), ("#8A8A8A", "<"),
)  # fmt: skip
_ROW_MM = 3.6
_LOOKS = {
    AS_SCORED: ArmStyle("As scored", "#222222", "o"),
    TEMPERATURE: ArmStyle("Temperature", "#E69F00", "s"),
    PLATT: ArmStyle("Platt", "#0072B2", "^"),
    PLATT_SHIFTED: ArmStyle("Platt, prevalence known", "#D55E00", "D"),
}
_SCORES = {"zero_shot": "zero-shot", "linear_probe": "linear probe"}


def _select_spectrum(results: pd.DataFrame) -> tuple[pd.DataFrame, str]:
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


def _plot_spectrum(rows: pd.DataFrame, gap: str) -> Drawing:
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
        # From the lowest to the highest of a finding, where there are several.
        for finding, values in shown.groupby("finding", sort=False).value:
            if len(values) > 1:
                axes.plot([values.min(), values.max()], [places[finding]] * 2, color=PALE, linewidth=2.2, zorder=1)
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


def _draw_negatives(axes: Axes, rows: pd.DataFrame, places: dict[str, int]) -> None:
    for (sort, style), shift in zip(_NEGATIVES.items(), (-0.14, 0.14), strict=True):
        own = rows[rows.group == sort]
        # Of no rows, pandas makes texts.
        y = own.finding.map(places).astype(float) + shift
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


def _describe_spectrum(rows: pd.DataFrame, gap: str) -> str:
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


def _conclude_spectrum(rows: pd.DataFrame, gap: str) -> str:
    parts = [f"against negatives with another finding the mean AUROC is {gap} lower than against healthy ones"]
    means = rows.value[(rows.task == FAMILY) & (rows.finding == MACRO)]
    parts = parts * bool(gap) + [f"by prompt family the mean goes from {means.min():.3f} to {means.max():.3f}"] * any(
        means
    )
    return f"{arm_style(rows.arm.iloc[0]).name}: {'; '.join(parts) or 'no mean over findings was measured'}."


spectrum = Figure("spectrum", _select_spectrum, _plot_spectrum, _describe_spectrum, _conclude_spectrum)


def _select_calibration(curves: pd.DataFrame, results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The reliability curves of the first arm on the preferred test set, and the mean calibration errors to them."""
    rows = require_rows(curves, "reliability curves, which need labels in the validation and in the test split")
    rows = prefer_data_set(rows[rows.arm == order_arms(rows.arm)[0]])
    place = {"arm": rows.arm.iloc[0], "data_set": rows.data_set.iloc[0], "finding": MACRO}
    return rows, select_rows(results, "calibration", metric="ece_mass", **place)


def _plot_calibration(rows: pd.DataFrame, errors: pd.DataFrame) -> Drawing:
    """A panel for each sort of scores: share of positives against probability, and below how many positives that is."""
    sorts = [name for name in _SCORES if (rows["head"] == name).any()]
    figure = new_figure(height_mm=92, width_mm=91.5 * len(sorts))
    axes = figure.subplots(2, len(sorts), squeeze=False, sharex="col", sharey="row", height_ratios=[3.2, 1])
    for place, name in enumerate(sorts):
        _draw_curves(axes[0, place], axes[1, place], rows[rows["head"] == name])
        title_panel(axes[0, place], "ab"[place], f"Reliability, {_SCORES[name]}")
        axes[1, place].set_xlabel("Predicted probability")
    axes[0, 0].set_ylabel("Share of positives")
    axes[1, 0].set(ylim=(0, 1.08 * rows.positives.max() + 1), ylabel="Positives in bin")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names) if len(sorts) > 1 else 2)
    return figure


def _draw_curves(curve_axes: Axes, count_axes: Axes, rows: pd.DataFrame) -> None:
    # Rare findings crowd at the lower left; equal steps of probability would hide what happens there.
    low = 1e-3
    curve_axes.plot([low, 1], [low, 1], color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    for setting in RECALIBRATIONS:
        curve, style = rows[rows.setting == setting].sort_values("predicted"), _LOOKS[setting]
        if curve.empty:
            continue
        x, y, bottom, top = np.maximum(curve[["predicted", "observed", "ci_low", "ci_high"]].to_numpy(float), low).T
        curve_axes.vlines(x, bottom, top, color=style.colour, linewidth=0.9, alpha=0.6, zorder=2)
        draw_marks(curve_axes, x, y, style, 3.6, linestyle="-", linewidth=0.9, label=style.name, zorder=3)
        count_axes.plot(
            x, curve.positives, marker=style.marker, color=style.colour, markersize=3, linewidth=0.7, zorder=3
        )
    curve_axes.set(xscale="log", yscale="log", xlim=(low * 0.8, 1.15), ylim=(low * 0.8, 1.15))
    for axis in (curve_axes.xaxis, curve_axes.yaxis):
        axis.set_ticks([1e-3, 1e-2, 1e-1, 1], ["≤0.001", "0.01", "0.1", "1"])
        axis.set_minor_locator(NullLocator())
    curve_axes.grid()
    curve_axes.tick_params(labelbottom=False)
    count_axes.spines["bottom"].set_color(INK)


def _state_errors(rows: pd.DataFrame, errors: pd.DataFrame) -> str:
    values, parts = errors.set_index(["head", "setting"]).value, []
    for name in dict.fromkeys(rows["head"]):
        measured = [setting for setting in RECALIBRATIONS if (name, setting) in values.index]
        steps = [f"{values[name, one]:.3f} {_LOOKS[one].name.replace('As', 'as')}" for one in measured]
        parts.append(f"{_SCORES[name]}: {', '.join(steps)}")
    return "; ".join(parts)


def _describe_calibration(rows: pd.DataFrame, errors: pd.DataFrame) -> str:
    first, each = rows.iloc[0], rows.groupby(["head", "setting"]).n
    return (
        f"Calibration of arm {first.arm!r}, seed {first.seed}, on {name_data_set(first.data_set)}: share of positives "
        "against predicted probability, all findings that every method could be fitted for pooled, "
        f"{int(each.sum().max()):,} labels in bins of about {int(each.median().max()):,}, logarithmic axes; below, the "
        "positives in each bin. Temperature and Platt's line are fitted on validation, one a finding; the last also "
        "knows the prevalence of the test set. Bars are 95 % Wilson intervals, clustered by patient. Mean calibration "
        f"error over findings (equal-mass bins): {_state_errors(rows, errors)}. {describe_n(errors)}"
    )


def _conclude_calibration(rows: pd.DataFrame, errors: pd.DataFrame) -> str:
    where = name_data_set(rows.data_set.iloc[0])
    return f"Mean calibration error over findings ({where}): {_state_errors(rows, errors)}."


calibration = Figure(
    "calibration", _select_calibration, _plot_calibration, _describe_calibration, _conclude_calibration
)
