"""Outcomes from frozen features: survival by predicted risk, and how well each model ranks patients."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MultipleLocator

from chexstudy.evaluation.outcomes.prediction import AGE_SEX, BOTH, IMAGE, ORACLE, TASK
from chexstudy.evaluation.outcomes.survival import GROUP_NAMES
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_values_and_differences, forest_height_mm, level_groups
from chexstudy.plots.looks import INK, ArmStyle, order_arms
from chexstudy.plots.measurements import interval, require_rows, seed_values, select_rows, summarise_seeds
from chexstudy.plots.style import name_lines, new_figure, title_panel
from chexstudy.plots.words import describe_interval, name_data_set, short_name, write_row

_GROUP_LOOKS = {"low": ("#56B4E9", "-"), "medium": ("#E69F00", (0, (4, 1.5))), "high": ("#B0230F", (0, (1.5, 1)))}
_SETTING_STYLES = {
    AGE_SEX: ArmStyle("Age and sex", "#8A8A8A", "s"),
    IMAGE: ArmStyle("Image", "#0072B2", "o"),
    BOTH: ArmStyle("Image, age and sex", "#D55E00", "D"),
    ORACLE: ArmStyle("True hazard", "#222222", "P"),
}
# Of the first arm alone: they know nothing of the image.
_WITHOUT_IMAGE = (AGE_SEX, ORACLE)
_METRICS = ["c_index", "auroc", "c_index_difference", "auroc_difference"]
_KAPLAN_MEIER_MM = 62
# Beyond this share still observed a curve rests on few.
_LEAST_OBSERVED = 0.1


def _select(results: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """C-index, or AUROC where an outcome has no time, and the differences, on the test set at natural prevalence.

    With them by outcome the Kaplan-Meier curves of the first two outcomes and the first seed, by the risk of the whole
    model; ``curves`` are those of one encoder (`chexstudy.evaluation.outcomes.prediction.curves_artifact`).
    """
    rows = require_rows(select_rows(results, TASK, metric=_METRICS), "outcomes")
    names = sorted(set(rows.data_set))
    rows = rows[rows.data_set == next((name for name in names if name.endswith("/test")), names[0])]
    chosen = curves[(curves.data_set == rows.data_set.iloc[0]) & (curves.setting == BOTH)]
    chosen = chosen[chosen.seed == chosen.seed.min()]
    by_outcome = {name: chosen[chosen.outcome == name] for name in list(dict.fromkeys(chosen.outcome))[:2]}
    return rows.reset_index(drop=True), by_outcome


def _plot(rows: pd.DataFrame, curves: dict[str, pd.DataFrame]) -> Drawing:
    order = [*curves, *(name for name in dict.fromkeys(rows.finding) if name not in curves)]
    rows = rows.sort_values("finding", key=lambda names: names.map(order.index), kind="stable")
    is_gain = rows.metric.str.endswith("_difference")
    values, by_outcome = _group_values(rows[~is_gain]), summarise_seeds(rows[is_gain]).groupby("finding", sort=False)
    gains = {name: Group("", _list_models(own, rows[:0], [IMAGE, BOTH])) for name, own in by_outcome}
    height = 17 + forest_height_mm(
        level_groups(list(values.values()), [gains.get(one, Group("", [])) for one in values])
    )
    figure = lower = new_figure(height_mm=height + _KAPLAN_MEIER_MM * bool(curves))
    letters = iter("abcd")
    if curves:
        above, lower = figure.subfigures(2, 1, height_ratios=[_KAPLAN_MEIER_MM, height])
        panels = above.subplots(2, len(curves), height_ratios=[1, 0.22], sharex="col", squeeze=False)
        for (curve, below), (name, own) in zip(panels.T, curves.items(), strict=True):
            # Where a tenth of the patients of each group is still observed at most.
            end = max(one.years[one.at_risk >= _LEAST_OBSERVED * one.n].max() for _, one in own.groupby("group"))
            _draw_survival(curve, own, end)
            _list_at_risk(below, own, end)
            title_panel(curve, next(letters), f"{_name_outcome(name)}, by predicted risk")
    titles = {next(letters): "How well patients are ranked", next(letters): "Gain over age and sex, 95 % intervals"}
    labels = ("C-index; AUROC of outcomes without a time", "Difference, same patients")
    draw_values_and_differences(lower, values, gains, labels, titles, chance=0.5, heading_at_axes=True)
    return figure


def _draw_survival(axes: Axes, curves: pd.DataFrame, end: float) -> None:
    for group, (colour, dashes) in _GROUP_LOOKS.items():
        own = curves[curves.group == group]
        if own.empty:
            continue
        label = f"{group} risk ({int(own.events.iloc[0])} of {int(own.n.iloc[0])})"
        axes.fill_between(
            own.years, own.ci_low, own.ci_high, step="post", color=colour, alpha=0.16, linewidth=0, gid="band"
        )
        axes.step(
            own.years, own.survival, where="post", color=colour, linestyle=dashes, label=label, gid=f"survival {group}"
        )
    lowest = curves.ci_low[curves.years <= end].min()
    axes.set(xlim=(0, end), ylim=(max(0.0, np.floor(10 * (lowest - 0.02)) / 10), 1.005), ylabel="Without the event")
    axes.tick_params(labelbottom=False)
    p = curves.log_rank_p.iloc[0]
    legend = axes.legend(loc="lower left", title=_write_p(p) if np.isfinite(p) else None, alignment="left")
    legend.get_title().set_fontsize(6.5)


def _list_at_risk(axes: Axes, curves: pd.DataFrame, end: float) -> None:
    present = [group for group in GROUP_NAMES if (curves.group == group).any()]
    for row, group in enumerate(present):
        own = curves[curves.group == group]
        for tick in np.arange(0, end + 0.01, 2.0):
            # Those whose time is this tick or later; the last step before it tells no less.
            left = own.at_risk[own.years >= tick]
            axes.text(
                tick, row, f"{int(left.iloc[0]) if len(left) else 0}", ha="center", va="center", fontsize=6,
                color=INK, gid="at risk", clip_on=False,
            )  # fmt: skip
    name_lines(axes, present)
    for label, group in zip(axes.get_yticklabels(), present, strict=True):
        label.set(color=_GROUP_LOOKS[group][0], fontweight="bold")
    # The first numbers are centred on the axis and reach over it.
    axes.tick_params(axis="y", pad=12)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.set_xlabel("Years from the image")
    axes.set_title("Patients still observed", loc="left", fontsize=6, pad=2)


def _write_p(p: float) -> str:
    if p < 1e-4:
        return f"log-rank p < 10$^{{{int(np.floor(np.log10(max(p, 1e-300)))) + 1}}}$"
    return f"log-rank p = {p:.2g}"


def _group_values(rows: pd.DataFrame) -> dict[str, Group]:
    groups = {}
    for name, own in summarise_seeds(rows).groupby("finding", sort=False):
        counted = own[own.setting.isin(_SETTING_STYLES)]
        count = f"{int(counted.positives.max())} of {int(counted.n.max()):,}"
        groups[name] = Group(f"{_name_outcome(name)}  ·  {count}", _list_models(own, rows, list(_SETTING_STYLES)))
    return groups


def _list_models(summary: pd.DataFrame, rows: pd.DataFrame, settings: list[str]) -> list[Estimate]:
    """Estimates of one outcome by model and arm; ``rows`` have the single seeds' values."""
    arms, estimates = order_arms(summary.arm), []
    for setting in settings:
        # What does not depend on the encoder is the same for every arm and seed.
        fixed, style = setting in _WITHOUT_IMAGE, _SETTING_STYLES[setting]
        for arm in arms[:1] if fixed else arms:
            for row in summary[(summary.setting == setting) & (summary.arm == arm)].itertuples():
                named = {"arm": arm, "finding": row.finding, "setting": setting, "metric": row.metric}
                label = style.name if fixed or len(arms) == 1 else f"{style.name} ({short_name(arm)})"
                estimates.append(
                    Estimate(label, interval(row), style, seed_values(rows[: 0 if fixed else None], **named))
                )
    return estimates


def _name_outcome(name: str) -> str:
    return " ".join("cardiovascular" if word == "cvd" else word for word in name.split("_")).capitalize()


def _describe(rows: pd.DataFrame, curves: dict[str, pd.DataFrame]) -> str:
    text = f"Outcomes predicted from frozen features, {name_data_set(rows.data_set.iloc[0])}. "
    if curves:
        first = next(iter(curves.values()))
        text += (
            "Above, Kaplan-Meier curves with pointwise 95 % intervals (log-log) of "
            f"{first.drop_duplicates('group').n.sum():,} patients, one image each, the earliest, in thirds of the risk "
            f"by image, age and sex cut on the training split (seed {int(first.seed.iloc[0])}); numbers under them are "
            "patients still observed; p of the log-rank test. "
        )
    text += (
        "Below, left, Harrell's C-index of each model by outcome, images of a patient drawn together, and the AUROC "
        "where an outcome has no time; the true hazard is the ceiling. Right, its difference to age and sex alone. "
    )
    return text + describe_interval(rows)


def _conclude(rows: pd.DataFrame, *_) -> str:
    gains = summarise_seeds(rows[rows.metric.str.endswith("_difference")])
    gains = gains[(gains.setting == BOTH) & (gains.reference == AGE_SEX)]
    words = [f"{_name_outcome(row.finding).lower()} {write_row(row, '+.3f')}" for row in gains.itertuples()]
    return f"What the image adds to age and sex in C-index or AUROC: {'; '.join(words) or 'not measured'}."


outcomes = Figure("outcomes", _select, _plot, _describe, _conclude)
