"""What a gain over a random choice is made of and what it costs: forests of the methods at the centre of the bench."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from chexstudy.experiments.regimes.contrasts import MAIN_METHOD, MAIN_METRIC, is_resolved, take_near
from chexstudy.experiments.regimes.design import STARTS, read_design
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import (
    ROW_MM,
    Estimate,
    Group,
    draw_estimate,
    draw_forest,
    forest_height_mm,
    frame_lines,
    level_groups,
    spread_arms,
)
from chexstudy.plots.looks import ACCENT, GREY, INK, SEQUENCE, ArmStyle
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.regimes import PROBE_METRIC, START_WORDS, count_resolved, describe_pools, describe_rest, name_form
from chexstudy.plots.style import add_legend, legend_mark, name_lines, new_figure, title_panel

_TAIL_METRIC = "zero_shot_auroc_tail"
_PANELS = {MAIN_METRIC: "Zero-shot, all", _TAIL_METRIC: "Zero-shot, tail", PROBE_METRIC: "Linear probe, all"}
_AGAINST = "Filter (50 %), budgeted bands minus"
PARTS = {
    "Noise removed (truth)": ("truly_sound",),
    "Normal films thinned (truth)": ("truly_sick", "truly_sound_and_sick"),
    "Tail raised (truth)": ("truly_balanced", "truly_sound_and_balanced"),
    "Agreement alone": ("agreement", "filtered_random_half"),
    "Diversity alone": ("bands", "budgeted", "hierarchical", "k_centre"),
    "Diversity after the filter": (
        *("filtered", "filtered_half", "filtered_most", "filtered_budgeted", MAIN_METHOD, "filtered_budgeted_most"),
        *("filtered_hierarchical_half", "filtered_k_centre_half"),
    ),
    "More compute": ("random_same_compute",),
}
# What the main method is held against beside a random choice.
STEPS = (
    *("truly_sound", "truly_sound_and_sick", "truly_sound_and_balanced"),
    *("filtered_random_half", "agreement", "bands", "random_same_compute"),
)
# Heading, whether more is better (None: neither), and the factor by which values are shown.
COSTS: dict[str, tuple[str, bool | None, float]] = {
    "specificity_healthy": ("Specificity\non healthy", True, 100),
    "sensitivity_sick": ("Sensitivity,\nany finding", True, 100),
    "calibration_error": ("Calibration\nerror", False, 100),
    "recall_at_10_text_to_image": ("Image by report,\nrecall at 10", True, 100),
    "recall_at_10_image_to_text": ("Report by image,\nrecall at 10", True, 100),
    "kept_mismatched": ("Wrong reports\nchosen", False, 100),
    "kept_junk": ("Junk\nchosen", False, 100),
    "kept_repeated": ("Copies\nchosen", False, 100),
    "kept_healthy": ("Healthy\nchosen", None, 100),
    "kept_women": ("Women\nchosen", None, 100),
    "recall_head": ("Head findings\nkept", True, 100),
    "recall_medium": ("Medium findings\nkept", True, 100),
    "recall_tail": ("Tail findings\nkept", True, 100),
    "kept_words": ("Words\na report", None, 1),
    "kept_age": ("Age in\nyears", None, 1),
}
_COSTLY = ("bands", "filtered", MAIN_METHOD, "filtered_random_half", "agreement", "truly_sound_and_sick")
_BETTER, _WORSE = SEQUENCE[1], ACCENT
_START_MARKERS = dict(zip(STARTS, "os", strict=True))
_IN_A_ROW = 5
_NOTHING = (np.nan, np.nan, np.nan)
_COLOURS = "Blue and orange: better and worse, p < 0.05 by t tests over pools, Holm within a question"


def _look(row, rising: bool | None = True) -> ArmStyle:
    """Blue or orange where a gain is resolved and better or worse, black where it is neither, grey where it is not."""
    colour = GREY
    if is_resolved(row):
        colour = INK if rising is None else _BETTER if (row.gain > 0) == rising else _WORSE
    return ArmStyle("", colour, _START_MARKERS[row.start])


def _take_centre(answers: pd.DataFrame) -> pd.DataFrame:
    return take_near(answers, read_design().centre, "start")


def _select_parts(answers: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Gains at the centre by ``part``: those over random, and those of the main method over what it is made of.

    ``steps`` of `chexstudy.experiments.regimes.contrasts.compare_main`.
    """
    part = {method: heading for heading, methods in PARTS.items() for method in methods}
    over_random = _take_centre(answers)
    over_random = over_random.assign(part=over_random.method.map(part)).dropna(subset=["part"])
    if len(steps):
        own = _take_centre(steps.assign(method=steps.against))
        over_random = pd.concat([over_random, own.assign(part=_AGAINST)])
    rows = over_random[over_random.metric.isin(_PANELS)]
    return require_rows(rows.reset_index(drop=True), "gains at the centre of the bench")


def _plot_parts(rows: pd.DataFrame) -> Drawing:
    order = {**PARTS, _AGAINST: STEPS}
    order = {
        heading: [one for one in own if one in set(rows.method[rows.part == heading])] for heading, own in order.items()
    }
    order = {heading: own for heading, own in order.items() if own}
    panels = [(start, metric) for start in STARTS for metric in _PANELS if start in set(rows.start)]
    heights = level_groups([Group(heading, [None] * len(own)) for heading, own in order.items()])
    figure = new_figure(height_mm=forest_height_mm(heights) + 26)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (start, metric), letter in zip(grid, panels, "abcdef", strict=False):
        own = rows[(rows.start == start) & (rows.metric == metric)].set_index(["part", "method"])
        groups = [
            Group(heading if axes is grid[0] else "", [_find_estimate(own, (heading, one)) for one in methods])
            for heading, methods in order.items()
        ]
        draw_forest(axes, groups, heights, reference=0.0)
        axes.tick_params(axis="y", labelleft=axes is grid[0])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=2, steps=[1, 2, 5, 10]))
        axes.set_xlabel(_PANELS[metric])
        title_panel(axes, letter, start.capitalize())
    _add_verdicts(figure)
    return figure


def _find_estimate(rows: pd.DataFrame, place: tuple[str, str]) -> Estimate:
    """A line of a forest, empty where it was not measured."""
    if place not in rows.index:
        return Estimate(name_form(place[1]), _NOTHING, ArmStyle("", GREY, "o"))
    row = rows.loc[place]
    return Estimate(name_form(place[1]), (row.gain, row.ci_low, row.ci_high), _look(row))


def _add_verdicts(figure: Drawing, starts: tuple[str, ...] = (), neither: bool = False) -> None:
    words = (
        {_BETTER: "better", _WORSE: "worse"} | ({INK: "changed, neither"} if neither else {}) | {GREY: "not resolved"}
    )
    handles = [Patch(facecolor=colour, label=word) for colour, word in words.items()]
    handles += [legend_mark(ArmStyle(START_WORDS[start], INK, _START_MARKERS[start])) for start in starts]
    add_legend(figure, handles)


def _describe_parts(rows: pd.DataFrame) -> str:
    macro = rows[(rows.metric == MAIN_METRIC) & (rows.part != _AGAINST)]
    better, worse = count_resolved(macro)
    return (
        "What the gain is made of: AUROC minus that of a random choice of as many pairs, zero-shot and of a linear "
        "probe, for choices that know the truth, for parts of the method, and for random choice with as many "
        "operations; at the bottom the main method minus each of its parts. Of "
        f"{len(macro)} differences from random over all findings {better} are above zero and {worse} below. "
        f"{_COLOURS}. {describe_rest(rows).capitalize()}; {describe_pools(rows)}."
    )


def _conclude_parts(rows: pd.DataFrame) -> str:
    macro = rows[rows.metric == MAIN_METRIC]
    best = macro[macro.part != _AGAINST].sort_values("gain").iloc[-1]
    return (
        f"The largest gain over random has {name_form(best.method)} ({START_WORDS[best.start]}): {best.gain:+.3f}, "
        f"{'resolved' if is_resolved(best) else 'not resolved'} over {best.pools} pools."
    )


def _select_costs(answers: pd.DataFrame) -> pd.DataFrame:
    """Differences from random at the centre in all but AUROC; what was chosen is the same at every start."""
    rows = _take_centre(answers)
    rows = rows[rows.metric.isin(COSTS) & rows.method.isin(_COSTLY)]
    of_choice = rows.metric.str.startswith(("kept_", "recall_")) & ~rows.metric.str.startswith("recall_at")
    rows = rows[~of_choice | ~rows.duplicated(["method", "metric"])]
    return require_rows(rows.reset_index(drop=True), "differences at the centre of the bench")


def _plot_costs(rows: pd.DataFrame) -> Drawing:
    metrics = [metric for metric in COSTS if metric in set(rows.metric)]
    methods = [method for method in _COSTLY if method in set(rows.method)]
    count = -(-len(metrics) // _IN_A_ROW)
    figure = new_figure(height_mm=count * (ROW_MM * (len(methods) + 0.6) + 15) + 8)
    grid = figure.subplots(count, min(_IN_A_ROW, len(metrics)), squeeze=False, sharey=True)
    for axes, metric, letter in zip(grid.ravel(), metrics, "abcdefghijklmno", strict=False):
        heading, rising, scale = COSTS[metric]
        _draw_cost(axes, rows[rows.metric == metric], methods, rising, scale)
        arrow = {True: " \N{RIGHTWARDS ARROW}", False: " \N{LEFTWARDS ARROW}", None: ""}[rising]
        title_panel(axes, letter, heading + arrow)
    for unused in grid.ravel()[len(metrics) :]:
        unused.set_axis_off()
    for first in grid[:, 0]:
        first.tick_params(axis="y", labelleft=True)
        name_lines(first, [name_form(method) for method in methods])
    _add_verdicts(figure, tuple(start for start in STARTS if start in set(rows.start)), neither=True)
    return figure


def _draw_cost(axes: Axes, rows: pd.DataFrame, methods: list[str], rising: bool | None, scale: float) -> None:
    starts = [start for start in STARTS if start in set(rows.start)]
    for start, aside in zip(starts, spread_arms(len(starts), 0.36), strict=True):
        for row in rows[rows.start == start].itertuples():
            ends = scale * np.array([row.gain, row.ci_low, row.ci_high])
            draw_estimate(axes, methods.index(row.method) + aside, ends, _look(row, rising), size=3.4)
    frame_lines(axes, {}, reference=0.0)
    axes.margins(x=0.1)


def _describe_costs(rows: pd.DataFrame) -> str:
    judged = [(row, COSTS[row.metric][1]) for row in rows.itertuples() if is_resolved(row)]
    worse = sum(rising is not None and (row.gain > 0) != rising for row, rising in judged)
    return (
        "What a gain costs besides: each method minus a random choice of as many pairs, in how its model does and in "
        f"what it chose, in points of per cent but for words and years; arrows point to better. Of {len(rows)} "
        f"differences {worse} are worse than random. {_COLOURS}; black: changed, neither better nor worse. "
        f"{describe_rest(rows).capitalize()}; {describe_pools(rows)}."
    )


def _conclude_costs(rows: pd.DataFrame) -> str:
    main = rows[rows.method == MAIN_METHOD]
    worse = [
        COSTS[row.metric][0].replace("\n", " ")
        for row in main.itertuples()
        if COSTS[row.metric][1] is not None and is_resolved(row) and (row.gain > 0) != COSTS[row.metric][1]
    ]
    return f"{name_form(MAIN_METHOD)} is worse than random in: {', '.join(dict.fromkeys(worse)) or 'nothing resolved'}."


def _select_methods(answers: pd.DataFrame) -> pd.DataFrame:
    """Gains at the centre, from scratch, of all methods that know no truth, best first."""
    rows = take_near(answers, read_design().centre)
    rows = rows[~rows.method.str.startswith("truly_") & rows.metric.isin(_PANELS)]
    order = rows[rows.metric == MAIN_METRIC].set_index("method").gain
    rows = rows.assign(order=rows.method.map(order)).sort_values(["order", "method"], ascending=False, kind="stable")
    return require_rows(rows.drop(columns="order").reset_index(drop=True), "gains at the centre of the bench")


def _plot_methods(rows: pd.DataFrame) -> Drawing:
    methods = list(dict.fromkeys(rows.method))
    figure = new_figure(height_mm=forest_height_mm([len(methods)]) + 22)
    grid = figure.subplots(1, len(_PANELS), width_ratios=[1.2, 1, 1])
    for axes, (metric, title), letter in zip(grid, _PANELS.items(), "abc", strict=True):
        own = rows[rows.metric == metric].assign(part="").set_index(["part", "method"])
        lines = [_find_estimate(own, ("", method)) for method in methods]
        first = axes is grid[0]
        draw_forest(axes, [Group("", lines)], [len(lines)], reference=0.0, number_format="+.3f" if first else "")
        axes.set_ylim(top=0.3)
        axes.tick_params(axis="y", labelleft=first)
        axes.set_xlabel("AUROC minus random's")
        title_panel(axes, letter, title)
    _add_verdicts(figure)
    return figure


def _describe_methods(rows: pd.DataFrame) -> str:
    macro = rows[rows.metric == MAIN_METRIC]
    better, worse = count_resolved(macro)
    return (
        "Every method against a random choice of as many pairs, the largest gain first: macro AUROC zero-shot, that of "
        f"the tail, and by linear probe. Of {len(macro)} methods {better} are better than random and {worse} worse, "
        f"zero-shot over all findings. {_COLOURS}. {describe_rest(rows).capitalize()}; {describe_pools(rows)}."
    )


def _conclude_methods(rows: pd.DataFrame) -> str:
    macro = rows[rows.metric == MAIN_METRIC]
    names = [name_form(row.method) for row in macro.itertuples() if is_resolved(row) and row.gain > 0]
    return f"Better than random over all findings, after Holm: {', '.join(names) or 'none'} (of {len(macro)} methods)."


regimes_parts = Figure("regimes_parts", _select_parts, _plot_parts, _describe_parts, _conclude_parts)
regimes_costs = Figure("regimes_costs", _select_costs, _plot_costs, _describe_costs, _conclude_costs)
regimes_methods = Figure("regimes_methods", _select_methods, _plot_methods, _describe_methods, _conclude_methods)
