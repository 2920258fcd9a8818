"""Reliability before and after each recalibration, and how many positives each point rests on."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import NullLocator

from chexstudy.evaluation.robustness.report import AS_SCORED, PLATT, PLATT_SHIFTED, RECALIBRATIONS, TEMPERATURE
from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import describe_n, name_data_set, preferred_data_set, require_rows, select_rows
from chexstudy.plots.style import GREY, INK, new_figure, order_arms, title_panel

TASK = "calibration"
_LOOKS = {
    AS_SCORED: ("As scored", "#222222", "o"),
    TEMPERATURE: ("Temperature", "#E69F00", "s"),
    PLATT: ("Platt", "#0072B2", "^"),
    PLATT_SHIFTED: ("Platt, prevalence known", "#D55E00", "D"),
}
_SCORES = {"zero_shot": "zero-shot", "linear_probe": "linear probe"}


def select_calibration(curves: pd.DataFrame, *_) -> pd.DataFrame:
    """The reliability curves of the first arm on the preferred test set.

    Args:
        curves: what `chexstudy.evaluation.robustness.report.measure_robustness` gives.
    """
    rows = require_rows(curves, "reliability curves, which need labels in the validation and in the test split")
    rows = rows[rows.arm == order_arms(rows.arm)[0]]
    return rows[rows.data_set == preferred_data_set(rows)].reset_index(drop=True)


def plot_calibration(curves: pd.DataFrame, *_) -> Drawing:
    """A panel for each sort of scores: share of positives against probability, and below how many positives that is."""
    rows = select_calibration(curves)
    sorts = [name for name in _SCORES if (rows["head"] == name).any()]
    figure = new_figure(height_mm=92, width_mm=91.5 * len(sorts))
    axes = figure.subplots(2, len(sorts), squeeze=False, sharex="col", sharey="row", height_ratios=[3.2, 1])
    for place, name in enumerate(sorts):
        of_scores = rows[rows["head"] == name]
        _draw_curves(axes[0, place], axes[1, place], of_scores)
        title_panel(axes[0, place], "ab"[place], f"Reliability, {_SCORES[name]}")
        axes[1, place].set_xlabel("Predicted probability")
    axes[1, 0].set_ylim(0, 1.08 * rows.positives.max() + 1)
    axes[0, 0].set_ylabel("Share of positives")
    axes[1, 0].set_ylabel("Positives in bin")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names) if len(sorts) > 1 else 2)
    return figure


def _draw_curves(curve_axes, count_axes, rows: pd.DataFrame) -> None:
    # Rare findings crowd at the lower left; equal steps of probability would hide what happens there.
    low = 1e-3
    curve_axes.plot([low, 1], [low, 1], color=GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    for setting in RECALIBRATIONS:
        curve = rows[rows.setting == setting].sort_values("predicted")
        if curve.empty:
            continue
        name, colour, marker = _LOOKS[setting]
        x = np.maximum(curve.predicted.to_numpy(dtype=float), low)
        y, bottom, top = (
            np.maximum(curve[column].to_numpy(dtype=float), low) for column in ("observed", "ci_low", "ci_high")
        )
        curve_axes.vlines(x, bottom, top, color=colour, linewidth=0.9, alpha=0.6, zorder=2)
        curve_axes.plot(
            x, y, marker=marker, color=colour, markersize=3.6, markeredgecolor="white", markeredgewidth=0.4,
            linewidth=0.9, label=name, zorder=3,
        )  # fmt: skip
        count_axes.plot(x, curve.positives, marker=marker, color=colour, markersize=3, linewidth=0.7, zorder=3)
    for set_scale, set_limits in (
        (curve_axes.set_xscale, curve_axes.set_xlim),
        (curve_axes.set_yscale, curve_axes.set_ylim),
    ):
        set_scale("log")
        set_limits(low * 0.8, 1.15)
    ticks = [1e-3, 1e-2, 1e-1, 1]
    for axis in (curve_axes.xaxis, curve_axes.yaxis):
        axis.set_ticks(ticks, ["≤0.001", "0.01", "0.1", "1"])
        axis.set_minor_locator(NullLocator())
    curve_axes.grid(color="#ECECEC", linewidth=0.5)
    curve_axes.tick_params(labelbottom=False)
    count_axes.spines["bottom"].set_color(INK)


def _select_errors(rows: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """The mean calibration errors that belong to the curves."""
    place = {"arm": rows.arm.iloc[0], "data_set": rows.data_set.iloc[0], "finding": MACRO}
    return select_rows(results, TASK, metric="ece_mass", **place)


def _state_errors(rows: pd.DataFrame, measured: pd.DataFrame) -> str:
    values, errors = measured.set_index(["head", "setting"]).value, []
    for name in dict.fromkeys(rows["head"]):
        steps = [
            f"{values[name, setting]:.3f} {_LOOKS[setting][0].replace('As', 'as')}"
            for setting in RECALIBRATIONS
            if (name, setting) in values.index
        ]
        errors.append(f"{_SCORES[name]}: " + ", ".join(steps))
    return "; ".join(errors)


def describe_calibration(curves: pd.DataFrame, results: pd.DataFrame) -> str:
    """The caption of `plot_calibration`, with the calibration errors before and after from the results table."""
    rows = select_calibration(curves)
    arm, data_set, seed = rows.arm.iloc[0], rows.data_set.iloc[0], int(rows.seed.iloc[0])
    measured = _select_errors(rows, results)
    each = rows.groupby(["head", "setting"]).n
    return (
        f"Calibration of arm {arm!r}, seed {seed}, on {name_data_set(data_set)}: share of positives against predicted "
        f"probability, all findings that every method could be fitted for pooled, {int(each.sum().max()):,} labels in "
        f"bins of about {int(each.median().max()):,}, logarithmic axes; below, the positives in each bin. Temperature "
        "and Platt's line are fitted on validation, one a finding; the last also knows the prevalence of the test set. "
        "Bars are 95 % Wilson intervals, clustered by patient. Mean calibration error over findings (equal-mass bins): "
        f"{_state_errors(rows, measured)}. " + describe_n(measured)
    )


def conclude_calibration(curves: pd.DataFrame, results: pd.DataFrame) -> str:
    """The mean calibration error before and after each recalibration."""
    rows = select_calibration(curves)
    errors = _state_errors(rows, _select_errors(rows, results))
    return f"Mean calibration error over findings ({name_data_set(rows.data_set.iloc[0])}): {errors}."


calibration = Figure("calibration", select_calibration, plot_calibration, describe_calibration, conclude_calibration)
