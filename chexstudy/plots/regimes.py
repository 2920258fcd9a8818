"""Where curation gains over a random choice: a phase diagram of measured cells, and curves along single conditions."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure as Drawing

from chexstudy.cohort.prevalence import TIERS
from chexstudy.experiments.regimes.contrasts import MAIN_METHOD, MAIN_METRIC, is_resolved, take_near
from chexstudy.experiments.regimes.design import SCORERS, STARTS, read_design
from chexstudy.plots.curators import name_method
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate, spread_arms
from chexstudy.plots.looks import ACCENT, GREY, INK, SEQUENCE, ArmStyle
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_colour_bar, new_figure, title_panel

_TASKS = {"zero_shot": "zero-shot", "probe": "linear-probe"}
_TIER_WORDS = {"macro": "All findings"} | {tier: tier.capitalize() for tier in TIERS}
AUROCS = [f"{task}_auroc_{tier}" for task in _TASKS for tier in _TIER_WORDS]
PROBE_METRIC = "probe_auroc_macro"
START_WORDS = {"scratch": "from scratch", "upstream": "from upstream encoders"}
# Orange where random choice is better, blue where the method is.
_DIVERGING = LinearSegmentedColormap.from_list("gain", [ACCENT, "#F7F7F7", SEQUENCE[1]])
_TILE_POINTS, _ROW_MM = 19.0, 8.2
_FORMS = {
    "random_same_compute": "Random, same compute",
    "filtered": "Filter (auto), bands",
    "filtered_half": "Filter (50 %), bands",
    "filtered_most": "Filter (70 %), bands",
    "filtered_budgeted": "Filter (auto), budgeted bands",
    "filtered_budgeted_half": "Filter (50 %), budgeted bands",
    "filtered_budgeted_most": "Filter (70 %), budgeted bands",
    "filtered_random_half": "Filter (50 %), random",
    "filtered_k_centre_half": "Filter (50 %), farthest points",
    "filtered_hierarchical_half": "Filter (50 %), hierarchical",
    "filtered_semdedup": "Filter (auto), SemDeDup",
    "truly_sick": "Truly with a finding",
    "truly_sound_and_sick": "Truly sound, with a finding",
    "truly_balanced": "Truly label-balanced",
    "truly_sound_and_balanced": "Truly sound, label-balanced",
}
_CURVES = {
    MAIN_METHOD: (SEQUENCE[1], "o"),
    "filtered": (SEQUENCE[3], "s"),
    "bands": (ACCENT, "^"),
    "filtered_semdedup": (SEQUENCE[6], "D"),
    "semdedup": (GREY, "v"),
}
# Conditions that curves run along, with the name of the axis and how a level is written.
_CONDITIONS = {
    "budget": ("Pairs chosen (log)", "{:,}"),
    "pool": ("Pairs to choose from (log)", "{:,}"),
    "wrong": ("Wrong pairs (%)", "{:g}"),
    "duplicates": ("Near-duplicates (%)", "{:g}"),
    "scorer": ("Scorer", "{}"),
    "side": ("Side of the images (pixels)", "{}"),
}
_IN_A_ROW = 4


def name_form(method: str) -> str:
    """A method of the bench as words: the form of the filter, what a control knows, or the method's own name."""
    return _FORMS.get(method) or name_method(method)


def describe_pools(rows: pd.DataFrame) -> str:
    """``n = 3 to 10 pools``, with the kind of interval."""
    low, high = int(rows.pools.min()), int(rows.pools.max())
    count = f"{low} to {high} pools" if low < high else f"{low} pool{'s' * (low > 1)}"
    return f"95 % intervals are Student's t over drawn pools, each with test patients of its own; n = {count}"


def describe_rest(rows: pd.DataFrame, *but: str) -> str:
    """What is the same in all cells that are shown, such as ``4 % near-duplicates``, ``but`` for some conditions."""
    one = rows.iloc[0]
    words = {
        "pool": f"pools of {one.pool:,} drawn pairs",
        "budget": f"{one.budget:,} chosen",
        "wrong": f"{100 * one.wrong:g} % wrong pairs",
        "duplicates": f"{100 * one.duplicates:g} % near-duplicates",
        "scorer": f"scorer {one.scorer}",
        "start": START_WORDS[one.start],
        "side": f"{one.side} px",
    }
    return ", ".join(word for name, word in words.items() if name not in but and rows[name].nunique() == 1)


def count_resolved(rows: pd.DataFrame) -> tuple[int, int]:
    """Of how many rows the gain is above and below zero after correction."""
    known = [row.gain for row in rows.itertuples() if is_resolved(row)]
    return sum(gain > 0 for gain in known), sum(gain < 0 for gain in known)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _name_task(metric: str) -> str:
    return _TASKS[metric.partition("_auroc_")[0]]


def _select_phase(answers: pd.DataFrame, method: str = MAIN_METHOD, task: str = "zero_shot") -> pd.DataFrame:
    """Gains of a method by ``pool``, ``budget``, ``wrong`` and ``start`` at the centre's other conditions."""
    near = take_near(answers, read_design().centre, "pool", "budget", "wrong", "start")
    rows = near[(near.method == method) & near.metric.isin([f"{task}_auroc_{tier}" for tier in _TIER_WORDS])]
    return require_rows(rows.reset_index(drop=True), f"gains of {method}")


def _plot_phase(rows: pd.DataFrame) -> Drawing:
    starts = [start for start in STARTS if start in set(rows.start)]
    lines = sorted(set(zip(rows.wrong, rows.budget, strict=True)))
    figure = new_figure(height_mm=len(starts) * (_ROW_MM * max(len(lines), 3) + 14) + 6)
    grid = figure.subplots(len(starts), len(_TIER_WORDS), squeeze=False, sharex=True, sharey=True)
    most = max(0.01, np.ceil(100 * rows.gain.abs().max()) / 100)
    letters = iter("abcdefgh")
    for panels, start in zip(grid, starts, strict=True):
        for axes, (tier, words) in zip(panels, _TIER_WORDS.items(), strict=True):
            own = rows[(rows.start == start) & rows.metric.str.endswith(tier)]
            drawn = _draw_cells(axes, own, lines, most)
            title_panel(axes, next(letters), words)
        panels[0].set_ylabel(f"{start.capitalize()}:\nwrong pairs, chosen")
    ratios = sorted(set(rows.pool / rows.budget))
    for axes in grid[-1]:
        axes.set_xticks(np.log2(ratios), [f"{ratio:g}" for ratio in ratios])
        axes.set_xlabel("Pool over budget (log)")
    grid[0, 0].set_yticks(range(len(lines)), [f"{100 * wrong:g} %, {budget:,}" for wrong, budget in lines])
    grid[0, 0].set_ylim(-0.6, len(lines) - 0.4)
    grid[0, 0].set_xlim(np.log2(ratios[0]) - 1.1, np.log2(ratios[-1]) + 1.1)
    add_colour_bar(drawn, list(grid.ravel()), "AUROC minus random's", shrink=0.5, aspect=30)
    return figure


def _draw_cells(axes: Axes, rows: pd.DataFrame, lines: list[tuple[float, int]], most: float):
    """A square at each measured cell, framed where its gain is resolved, with gain and number of pools."""
    x = np.log2(rows.pool / rows.budget)
    y = [lines.index(place) for place in zip(rows.wrong, rows.budget, strict=True)]
    known = [is_resolved(row) for row in rows.itertuples()]
    drawn = axes.scatter(
        x, y, _TILE_POINTS**2, rows.gain, marker="s", cmap=_DIVERGING, norm=Normalize(-most, most), gid="cells",
        edgecolors=[INK if one else "#CCCCCC" for one in known], linewidths=[1.3 if one else 0.4 for one in known],
    )  # fmt: skip
    for place, height, row, resolved in zip(x, y, rows.itertuples(), known, strict=True):
        weight, colour = ("bold" if resolved else "normal"), ("white" if abs(row.gain) > 0.75 * most else INK)
        shown = _signed(row.gain).replace("0.", ".")
        style = {"ha": "center", "va": "center", "color": colour}
        axes.text(place, height + 0.12, shown, fontsize=5, fontweight=weight, **style)
        axes.text(place, height - 0.2, f"n {row.pools}", fontsize=4, **style)
    axes.tick_params(length=0)
    return drawn


def _describe_phase(rows: pd.DataFrame) -> str:
    macro = rows[rows.metric.str.endswith("macro")]
    better, worse = count_resolved(macro)
    return (
        f"When curation pays: {_name_task(rows.metric[0])} AUROC of {name_form(rows.method[0])} minus that of a random "
        "choice of as many pairs, by pool over budget and by share of wrong pairs and budget, for "
        "all findings and by prevalence. Each "
        "square is a measured cell, nothing between them is filled in; of "
        f"{len(macro)} cells {better} gain and {worse} lose over all findings (black frame: p < 0.05, t test over "
        "pools, Holm over the cells and methods of its question). "
        f"{describe_rest(rows).capitalize()}; {describe_pools(rows)} (in each square)."
    )


def _conclude_phase(rows: pd.DataFrame) -> str:
    macro = rows[rows.metric.str.endswith("macro")]
    better, worse = count_resolved(macro)
    return (
        f"{name_form(rows.method[0])} minus random, {_name_task(rows.metric[0])}, all findings: above zero in {better} "
        f"and below in {worse} of {len(macro)} cells, from {_signed(macro.gain.min())} to {_signed(macro.gain.max())}."
    )


def _select_curves(answers: pd.DataFrame, metric: str = MAIN_METRIC) -> pd.DataFrame:
    """Gains of a macro AUROC ``along`` one condition at a time, of methods measured at two levels of it or more."""
    centre, parts = read_design().centre, []
    for start in STARTS:
        for name in _CONDITIONS:
            near = take_near(answers, replace(centre, start=start), name)
            own = near[near.method.isin(_CURVES) & (near.metric == metric)]
            own = own[own.groupby("method")[name].transform("nunique") > 1]
            if len(own):
                parts.append(own.assign(along=name))
    require_rows(pd.concat(parts) if parts else answers[:0], "cells that differ from the centre in one condition")
    return pd.concat(parts, ignore_index=True)


def _plot_curves(rows: pd.DataFrame) -> Drawing:
    panels = list(rows.groupby(["start", "along"], sort=False))
    count = -(-len(panels) // _IN_A_ROW)
    figure = new_figure(height_mm=48 * count + 10)
    grid = figure.subplots(count, min(_IN_A_ROW, len(panels)), squeeze=False, sharey=True)
    for axes, ((start, along), own), letter in zip(grid.ravel(), panels, "abcdefghijkl", strict=False):
        levels = sorted(set(own[along]), key=SCORERS.index if along == "scorer" else None)
        axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
        looks = {method: look for method, look in _CURVES.items() if method in set(own.method)}
        for (method, look), aside in zip(looks.items(), spread_arms(len(looks), 0.36), strict=True):
            _draw_curve(axes, own[own.method == method], along, levels, ArmStyle(name_form(method), *look), aside)
        axes.set_xticks(range(len(levels)), [_CONDITIONS[along][1].format(_in_percent(level)) for level in levels])
        axes.set(xlabel=_CONDITIONS[along][0], xlim=(-0.4, len(levels) - 0.6))
        axes.grid(axis="y")
        title_panel(axes, letter, start.capitalize())
    for unused in grid.ravel()[len(panels) :]:
        unused.set_axis_off()
    for first in grid[:, 0]:
        first.set_ylabel("AUROC minus random's")
    add_arm_legend(
        figure, [ArmStyle(name_form(one), *look) for one, look in _CURVES.items() if one in set(rows.method)]
    )
    return figure


def _in_percent(level):
    return 100 * level if isinstance(level, float) else level


def _draw_curve(axes: Axes, rows: pd.DataFrame, along: str, levels: list, style: ArmStyle, aside: float) -> None:
    rows = rows.assign(place=[levels.index(level) + aside for level in rows[along]]).sort_values("place")
    if along != "scorer":
        axes.plot(rows.place, rows.gain, color=style.colour, linewidth=0.7, alpha=0.6, gid="curve", zorder=2)
    for row in rows.itertuples():
        draw_estimate(axes, row.place, (row.gain, row.ci_low, row.ci_high), style, vertical=True)


def _describe_curves(rows: pd.DataFrame) -> str:
    panels = rows.groupby(["start", "along"], sort=False).ngroups
    centre = describe_rest(pd.DataFrame([asdict(read_design().centre)]), "start")
    better, worse = count_resolved(rows)
    return (
        f"How the gain hangs on the conditions: macro {_name_task(rows.metric[0])} AUROC minus that of a random "
        f"choice, along one condition in each of {panels} panels, all others as at the centre ({centre}). Of "
        f"{len(rows)} points {better} are above zero and {worse} below (p < 0.05, Holm within a question; bars are not "
        "corrected). "
        f"{describe_pools(rows)}. Lines only join the points."
    )


def _conclude_curves(rows: pd.DataFrame) -> str:
    words = []
    for method, own in rows.groupby("method", sort=False):
        better, worse = count_resolved(own)
        words.append(f"{name_form(method)}: {better} of {len(own)} above zero, {worse} below")
    return f"Points of the curves, {_name_task(rows.metric[0])}, resolved after Holm: {'; '.join(words)}."


regimes_phase = Figure("regimes_phase", _select_phase, _plot_phase, _describe_phase, _conclude_phase)
regimes_phase_bands = replace(regimes_phase, name="regimes_phase_bands", select=partial(_select_phase, method="bands"))
regimes_phase_probe = replace(regimes_phase, name="regimes_phase_probe", select=partial(_select_phase, task="probe"))
regimes_curves = Figure("regimes_curves", _select_curves, _plot_curves, _describe_curves, _conclude_curves)
regimes_curves_probe = replace(
    regimes_curves, name="regimes_curves_probe", select=partial(_select_curves, metric=PROBE_METRIC)
)
