"""X5. Outcomes from frozen features: survival by predicted risk, and how well each model ranks patients."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MultipleLocator

from chexstudy.evaluation.outcomes.prediction import AGE_SEX, BOTH, IMAGE, ORACLE, TASK
from chexstudy.evaluation.outcomes.survival import GROUP_NAMES
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_chance, draw_forest, forest_height_mm, level_groups
from chexstudy.plots.measurements import (
    describe_interval,
    name_data_set,
    require_rows,
    seed_values,
    select_rows,
    summarise_seeds,
)
from chexstudy.plots.style import INK, ArmStyle, arm_style, new_figure, order_arms, title_panel
from chexstudy.results import write_interval

_GROUP_LOOKS = {"low": ("#56B4E9", "-"), "medium": ("#E69F00", (0, (4, 1.5))), "high": ("#B0230F", (0, (1.5, 1)))}
_SETTING_STYLES = {
    AGE_SEX: ArmStyle("Age and sex", "#8A8A8A", "s"),
    IMAGE: ArmStyle("Image", "#0072B2", "o"),
    BOTH: ArmStyle("Image, age and sex", "#D55E00", "D"),
    ORACLE: ArmStyle("True hazard", "#222222", "P"),
}
_WORDS = {"cvd": "cardiovascular"}
# Of the first arm alone: they know nothing of the image.
_WITHOUT_IMAGE = (AGE_SEX, ORACLE)
_RANKING = ("c_index", "auroc")
_KAPLAN_MEIER_MM = 62
# Beyond this share still observed a curve rests on few.
_LEAST_OBSERVED = 0.1


def select_outcomes(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the figure: C-index, or AUROC where an outcome has no time, and the paired differences.

    Those of the first test set at natural prevalence.
    """
    metrics = [*_RANKING, *(f"{metric}_difference" for metric in _RANKING)]
    rows = select_rows(results, TASK, metric=metrics)
    require_rows(rows, "outcomes")
    names = sorted(set(rows.data_set))
    data_set = next((name for name in names if name.endswith("/test")), names[0])
    return rows[rows.data_set == data_set].reset_index(drop=True)


def select_curves(curves: pd.DataFrame, data_set: str) -> dict[str, pd.DataFrame]:
    """Kaplan-Meier curves of the first two outcomes and the first seed, by outcome, by the risk of the whole model.

    Args:
        curves: as `chexstudy.evaluation.outcomes.prediction.curves_artifact` says.
        data_set: which test set.
    """
    rows = curves[(curves.data_set == data_set) & (curves.setting == BOTH)]
    rows = rows[rows.seed == rows.seed.min()]
    return {name: rows[rows.outcome == name] for name in list(dict.fromkeys(rows.outcome))[:2]}


def plot_outcomes(results: pd.DataFrame, curves: pd.DataFrame) -> Drawing:
    """Survival by risk group of up to two outcomes, above forests of every model and of its gain over age and sex.

    Args:
        results: rows of the results table, of one encoder or several.
        curves: Kaplan-Meier curves of one encoder.
    """
    rows = select_outcomes(results)
    chosen = select_curves(curves, rows.data_set.iloc[0])
    order = [*chosen, *(name for name in dict.fromkeys(rows.finding) if name not in chosen)]
    rows = rows.sort_values("finding", key=lambda names: names.map(order.index), kind="stable")
    values = _group_values(rows[~rows.metric.str.endswith("_difference")])
    differences = _group_differences(rows[rows.metric.str.endswith("_difference")])
    left = list(values.values())
    right = [differences.get(name, Group("", [])) for name in values]
    heights = level_groups(left, right)
    upper = _KAPLAN_MEIER_MM if chosen else 0
    figure = new_figure(height_mm=upper + 17 + forest_height_mm(heights))
    letters = iter("abcd")
    lower = figure
    if chosen:
        above, lower = figure.subfigures(2, 1, height_ratios=[upper, 17 + forest_height_mm(heights)])
        panels = above.subplots(2, len(chosen), height_ratios=[1, 0.22], sharex="col", squeeze=False)
        for column, (name, own) in enumerate(chosen.items()):
            _draw_survival(panels[0, column], own)
            _list_at_risk(panels[1, column], own)
            title_panel(panels[0, column], next(letters), f"{_name_outcome(name)}, by predicted risk")
            panels[0, column].set_ylabel("Without the event")
    axes = lower.subplots(1, 2, width_ratios=[1.15, 1])
    draw_forest(axes[0], left, heights, heading_at_axes=True)
    axes[0].set_xlabel("C-index; AUROC of outcomes without a time")
    axes[0].margins(x=0.06)
    draw_chance(axes[0], 0.5)
    title_panel(axes[0], next(letters), "How well patients are ranked")
    draw_forest(axes[1], right, heights, reference=0.0, number_format="+.3f")
    axes[1].set_xlabel("Difference, same patients")
    axes[1].margins(x=0.08)
    title_panel(axes[1], next(letters), "Gain over age and sex, 95 % intervals")
    return figure


def describe_outcomes(results: pd.DataFrame, curves: pd.DataFrame) -> str:
    rows = select_outcomes(results)
    chosen = select_curves(curves, rows.data_set.iloc[0])
    text = f"Outcomes predicted from frozen features, {name_data_set(rows.data_set.iloc[0])}. "
    if chosen:
        first = next(iter(chosen.values()))
        groups = first.drop_duplicates("group")
        text += (
            f"Above, Kaplan-Meier curves with pointwise 95 % intervals (log-log) of {groups.n.sum():,} patients, one "
            f"image each, the earliest, in thirds of the risk by {_SETTING_STYLES[BOTH].name.lower()} cut on the "
            f"training split (seed {int(first.seed.iloc[0])}); numbers under them are patients still observed; "
            "p of the log-rank test. "
        )
    text += (
        "Below, left, Harrell's C-index of each model by outcome, images of a patient drawn together, and the AUROC "
        "where an outcome has no time; the true hazard is the ceiling. Right, its difference to age and sex alone. "
    )
    return text + describe_interval(rows)


# --- curves -----------------------------------------------------------------------------------------------------------


def _draw_survival(axes: Axes, curves: pd.DataFrame) -> None:
    """One step line with its band a risk group."""
    end = _last_year(curves)
    for group in GROUP_NAMES:
        own = curves[curves.group == group]
        if own.empty:
            continue
        colour, dashes = _GROUP_LOOKS[group]
        count = f"{int(own.events.iloc[0])} of {int(own.n.iloc[0])}"
        axes.fill_between(
            own.years, own.ci_low, own.ci_high, step="post", color=colour, alpha=0.16, linewidth=0, gid="band"
        )
        axes.step(
            own.years, own.survival, where="post", color=colour, linestyle=dashes, label=f"{group} risk ({count})",
            gid=f"survival {group}",
        )  # fmt: skip
    shown = curves[curves.years <= end]
    axes.set_xlim(0, end)
    axes.set_ylim(max(0.0, np.floor(10 * (shown.ci_low.min() - 0.02)) / 10), 1.005)
    axes.tick_params(labelbottom=False)
    p = curves.log_rank_p.iloc[0]
    legend = axes.legend(loc="lower left", title=_write_p(p) if np.isfinite(p) else None, alignment="left")
    legend.get_title().set_fontsize(6.5)


def _list_at_risk(axes: Axes, curves: pd.DataFrame) -> None:
    """Numbers still observed under the ticks of the curves."""
    end = _last_year(curves)
    ticks = np.arange(0, end + 0.01, 2.0)
    present = [group for group in GROUP_NAMES if (curves.group == group).any()]
    for row, group in enumerate(present):
        own = curves[curves.group == group]
        # Those whose time is this tick or later; the last step before it tells no less.
        later = [own.at_risk[own.years >= tick] for tick in ticks]
        for tick, left in zip(ticks, later, strict=True):
            axes.text(
                tick, row, f"{int(left.iloc[0]) if len(left) else 0}", ha="center", va="center", fontsize=6,
                color=INK, gid="at risk", clip_on=False,
            )  # fmt: skip
    axes.set_ylim(len(present) - 0.4, -0.6)
    axes.set_yticks(range(len(present)), present)
    for label, group in zip(axes.get_yticklabels(), present, strict=True):
        label.set_color(_GROUP_LOOKS[group][0])
        label.set_fontweight("bold")
    # The first numbers are centred on the axis and reach over it.
    axes.tick_params(axis="y", length=0, pad=12)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.set_xlabel("Years from the image")
    axes.set_title("Patients still observed", loc="left", fontsize=6, pad=2)


def _last_year(curves: pd.DataFrame) -> float:
    """Where a tenth of the patients of each group is still observed at most."""
    ends = [own.years[own.at_risk >= _LEAST_OBSERVED * own.n].max() for _, own in curves.groupby("group")]
    return float(max(ends))


def _write_p(p: float) -> str:
    if p < 1e-4:
        return f"log-rank p < 10$^{{{int(np.floor(np.log10(max(p, 1e-300)))) + 1}}}$"
    return f"log-rank p = {p:.2g}"


# --- forests ----------------------------------------------------------------------------------------------------------


def _group_values(rows: pd.DataFrame) -> dict[str, Group]:
    """Estimates of every model, by outcome."""
    arms = order_arms(rows.arm)
    groups = {}
    for name, own in summarise_seeds(rows).groupby("finding", sort=False):
        estimates = []
        for setting, style in _SETTING_STYLES.items():
            for arm in arms[:1] if setting in _WITHOUT_IMAGE else arms:
                for row in own[(own.setting == setting) & (own.arm == arm)].itertuples():
                    seeds = seed_values(rows, arm=arm, finding=name, setting=setting, metric=row.metric)
                    # What does not depend on the encoder is the same for every seed.
                    seeds = seeds[:0] if setting in _WITHOUT_IMAGE else seeds
                    label = _name_model(style, setting, arm, arms)
                    estimates.append(Estimate(label, row.value, row.ci_low, row.ci_high, style, seeds))
        counted = own[own.setting.isin(_SETTING_STYLES)]
        count = f"{int(counted.positives.max())} of {int(counted.n.max()):,}"
        groups[name] = Group(f"{_name_outcome(name)}  ·  {count}", estimates)
    return groups


def _group_differences(rows: pd.DataFrame) -> dict[str, Group]:
    """The gain of every model with the image over age and sex, by outcome."""
    arms = order_arms(rows.arm)
    groups = {}
    for name, own in summarise_seeds(rows).groupby("finding", sort=False):
        estimates = []
        for setting in (IMAGE, BOTH):
            for arm in arms:
                for row in own[(own.setting == setting) & (own.arm == arm)].itertuples():
                    style = _SETTING_STYLES[setting]
                    label = _name_model(style, setting, arm, arms)
                    estimates.append(Estimate(label, row.value, row.ci_low, row.ci_high, style))
        groups[name] = Group("", estimates)
    return groups


def _name_model(style: ArmStyle, setting: str, arm: str, arms: list[str]) -> str:
    if len(arms) == 1 or setting in _WITHOUT_IMAGE:
        return style.name
    name = arm_style(arm, arms).name.partition(" (")[0]
    return f"{style.name} ({name[:1].lower()}{name[1:]})"


def _name_outcome(name: str) -> str:
    text = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def conclude_outcomes(results: pd.DataFrame, _: pd.DataFrame) -> str:
    """What the image adds to age and sex for each outcome."""
    rows = select_outcomes(results)
    gains = summarise_seeds(rows[rows.metric.str.endswith("_difference")])
    words = [
        f"{_name_outcome(row.finding).lower()} {write_interval(row.value, row.ci_low, row.ci_high, '+.3f')}"
        for row in gains[(gains.setting == BOTH) & (gains.reference == AGE_SEX)].itertuples()
    ]
    return f"What the image adds to age and sex in C-index or AUROC: {'; '.join(words) or 'not measured'}."


outcomes = Figure(
    name="outcomes",
    select=lambda results, _: select_outcomes(results),
    plot=plot_outcomes,
    describe=describe_outcomes,
    conclude=conclude_outcomes,
)
