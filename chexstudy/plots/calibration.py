"""Reliability before and after each recalibration, and how many positives each point rests on."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import NullLocator

from chexstudy.evaluation.robustness.report import AS_SCORED, PLATT, PLATT_SHIFTED, RECALIBRATIONS, TEMPERATURE
from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import describe_n, name_data_set, prefer_data_set, require_rows, select_rows
from chexstudy.plots.style import GREY, INK, ArmStyle, draw_marks, new_figure, order_arms, title_panel

_LOOKS = {
    AS_SCORED: ArmStyle("As scored", "#222222", "o"),
    TEMPERATURE: ArmStyle("Temperature", "#E69F00", "s"),
    PLATT: ArmStyle("Platt", "#0072B2", "^"),
    PLATT_SHIFTED: ArmStyle("Platt, prevalence known", "#D55E00", "D"),
}
_SCORES = {"zero_shot": "zero-shot", "linear_probe": "linear probe"}


def _select(curves: pd.DataFrame, results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The reliability curves of the first arm on the preferred test set, and the mean calibration errors to them.

    Args:
        curves: what `chexstudy.evaluation.robustness.report.measure_robustness` gives.
    """
    rows = require_rows(curves, "reliability curves, which need labels in the validation and in the test split")
    rows = prefer_data_set(rows[rows.arm == order_arms(rows.arm)[0]])
    place = {"arm": rows.arm.iloc[0], "data_set": rows.data_set.iloc[0], "finding": MACRO}
    return rows, select_rows(results, "calibration", metric="ece_mass", **place)


def _plot(rows: pd.DataFrame, errors: pd.DataFrame) -> Drawing:
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


def _describe(rows: pd.DataFrame, errors: pd.DataFrame) -> str:
    first, each = rows.iloc[0], rows.groupby(["head", "setting"]).n
    return (
        f"Calibration of arm {first.arm!r}, seed {first.seed}, on {name_data_set(first.data_set)}: share of positives "
        "against predicted probability, all findings that every method could be fitted for pooled, "
        f"{int(each.sum().max()):,} labels in bins of about {int(each.median().max()):,}, logarithmic axes; below, the "
        "positives in each bin. Temperature and Platt's line are fitted on validation, one a finding; the last also "
        "knows the prevalence of the test set. Bars are 95 % Wilson intervals, clustered by patient. Mean calibration "
        f"error over findings (equal-mass bins): {_state_errors(rows, errors)}. {describe_n(errors)}"
    )


def _conclude(rows: pd.DataFrame, errors: pd.DataFrame) -> str:
    """The mean calibration error before and after each recalibration."""
    where = name_data_set(rows.data_set.iloc[0])
    return f"Mean calibration error over findings ({where}): {_state_errors(rows, errors)}."


calibration = Figure("calibration", _select, _plot, _describe, _conclude)
