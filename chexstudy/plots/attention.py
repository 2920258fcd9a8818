"""Where a head looks (the published overlay beside its confidences), and how often that is the finding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from chexstudy.cohort.annotations import FINDING, LUNGS, Regions, measure_lesion_sizes
from chexstudy.cohort.prevalence import measure_prevalence
from chexstudy.cohort.table import NO_FINDING, label_matrix
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.evaluation.adaptation.training import FittedHead
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.localisation.pointing_game import (
    TASK,
    absent_thresholds,
    choose_examples,
    read_attention,
    spread_map,
)
from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.adaptation import name_head
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_forest, forest_height_mm
from chexstudy.plots.looks import ACCENT, GREY, INK, ArmStyle
from chexstudy.plots.measurements import NothingToDraw, interval
from chexstudy.plots.style import (
    DOUBLE_MM,
    add_legend,
    clear_frame,
    name_lines,
    new_figure,
    show_radiograph,
    title_panel,
)
from chexstudy.plots.words import write_row

_GREEN = "#00C853"
_OUTLINE = "#FFD54F"
_ABSENT = "#BDBDBD"
# The published overlay raises the map to this power, so that weak attention is seen, too.
_POWER = 0.5
_STRONGEST_ALPHA = 0.75
_MOST_BARS = 40
_BAR_MM, _SMALLEST_CARD_MM = 2.35, 42.0
_HEAD_STYLE = ArmStyle("Attention of the head", ACCENT, "o")
_BASELINES = {
    "chance": ("Area of the region (chance)", "|", INK),
    "mean_map": ("Mean map of all images", "D", "#0072B2"),
    "centre": ("Centre of the image", "x", GREY),
}
_PANELS = {"pointing_game": ("Pointing game", "maxima"), "mass_inside": ("Share of attention inside", "attention")}


@dataclass(frozen=True)
class AttentionCard:
    """One radiograph with the attention of one finding and the confidences of all."""

    pixels: np.ndarray  # ``(size, size)`` uint8
    finding: str  # whose attention is shown
    weights: np.ndarray  # ``(tokens,)``, averaged over heads
    confidences: dict[str, float]  # probability of every finding by name
    present: frozenset[str]  # the findings that the image truly has
    mask: np.ndarray | None = None  # bool ``(size, size)``, where the finding is; None where that is not known


def make_cards(
    chosen: pd.DataFrame,
    rows: pd.DataFrame,
    scores: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    pixels: np.ndarray,
    regions: Regions,
) -> list[AttentionCard]:
    """The cards of chosen examples: ``image_id`` and ``finding``, one row each, with the attention ``(examples,
    tokens)`` of that finding, the logits ``scores`` of ``rows`` of the cohort, and pixels ``(examples, size, size)``.
    """
    place = pd.Index(rows.image_id).get_indexer(chosen.image_id)
    confidences = 1 / (1 + np.exp(-scores[place]))
    present = rows[list(findings)].eq(1).fillna(False).to_numpy(dtype=bool)[place]
    # Lungs are no place of a finding: they are not drawn as one.
    outlines = regions.kind == FINDING
    return [
        AttentionCard(
            pixels[number],
            one.finding,
            weights[number],
            dict(zip(findings, confidences[number].tolist(), strict=True)),
            frozenset(np.asarray(findings)[present[number]].tolist()),
            regions.mask(one.image_id, one.finding) if outlines else None,
        )
        for number, one in enumerate(chosen.itertuples())
    ]


def collect_cards(
    evaluation: Evaluation,
    fitted: FittedHead | None,
    features: FrozenFeatures | None,
    regions: Mapping[str, Regions],
    count: int,
    specificity: float,
) -> list[AttentionCard]:
    """Examples by rule, from the test set with most regions: for one finding after the other the first detected image.

    Findings come in the order of the size of their lesions, the smallest first, or where that is not known the rarest.
    A finding is detected above the ``specificity``, the share of the validation images without it. Without a fitted
    head there are no cards.
    """
    if fitted is None:
        return []
    findings, test_sets = evaluation.findings, evaluation.test_sets()
    shown = regions[main := max(test_sets, key=lambda name: len(regions[name].table))]
    rows, sizes = test_sets[main].reset_index(drop=True), measure_lesion_sizes(shown)
    validation = evaluation.cohort[evaluation.cohort.split == "validate"]
    scores, labels = fitted.score(features, rows.image_id), label_matrix(validation, findings)
    thresholds = absent_thresholds(fitted.score(features, validation.image_id), labels, specificity)
    rarest = measure_prevalence(evaluation.training).sort_values().index
    order = [one for one in (sizes.index if len(sizes) else rarest) if one != NO_FINDING]
    known = set(shown.table.image_id) or None
    chosen = choose_examples(rows, scores, thresholds, findings, order, count, known)
    if chosen.empty:
        return []
    number = pd.Index(findings).get_indexer(chosen.finding)
    weights = read_attention(fitted.head, features, chosen.image_id, np.arange(len(chosen)), number)[0]
    return make_cards(chosen, rows, scores, findings, weights, evaluation.store.read(chosen.image_id), shown)


def _select_attention(cards: Sequence[AttentionCard]) -> tuple[pd.DataFrame, Sequence[AttentionCard]]:
    """What the bars show: one row an example and finding, without any identifier; and the cards."""
    if not cards:
        raise NothingToDraw("there is nothing to draw without a finding detected on an image where its place is known")
    rows = [
        (number, card.finding, finding, confidence, finding in card.present)
        for number, card in enumerate(cards, start=1)
        for finding, confidence in _bars(card)
    ]
    return pd.DataFrame(rows, columns=["example", "attention_of", "finding", "confidence", "present"]), cards


def _plot_attention(bars: pd.DataFrame, cards: Sequence[AttentionCard]) -> Drawing:
    columns = min(2, len(cards))
    rows = -(-len(cards) // columns)
    height = max(_SMALLEST_CARD_MM, _BAR_MM * bars.groupby("example").size().max()) + 9
    figure = new_figure(height_mm=rows * height + 6, width_mm=DOUBLE_MM * columns / 2)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1.7, 1.0] * columns).reshape(-1, 2)
    for place, ((picture, chart), card) in enumerate(zip(grid, cards, strict=False)):
        _draw_overlay(picture, card)
        title_panel(picture, "abcdefghijklmnopqrstuvwxyz"[place % 26], card.finding)
        _draw_bars(chart, card)
        chart.set_xlabel("confidence" if place + columns >= len(cards) else "")
    for unused in grid[len(cards) :].ravel():
        unused.set_axis_off()
    colours = {"attention": _GREEN, "present": ACCENT, "absent or not known": _ABSENT}
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    if any(card.mask is not None for card in cards):
        handles.append(Line2D([], [], color=_OUTLINE, linewidth=1.2, label="where the finding is"))
    add_legend(figure, handles)
    return figure


def _describe_attention(
    _: pd.DataFrame, cards: Sequence[AttentionCard], head: tuple[str, str], encoder: str, specificity: float
) -> str:
    """The caption; ``head`` with its variant, ``encoder`` is arm and seed."""
    outlined = sum(card.mask is not None for card in cards)
    return (
        f"Attention of {name_head(*head)} on the frozen encoder {encoder}, {len(cards)} test radiographs. Green: the "
        "attention of the named finding, averaged over the head's heads, brought from the patches to the pixels "
        f"bilinearly, scaled from 0 to 1 within the image and raised to the power {_POWER}; under each, how far the "
        "strongest patch stands out. Bars: the confidence of every finding (the sigmoid of its logit), at most "
        f"{_MOST_BARS}, the highest first; coloured where the image truly has the finding. The true place is outlined "
        f"on {outlined} of {len(cards)}. Examples by rule: of the findings with the smallest lesions (the rarest where "
        "sizes are not known) the first image of the test set with most regions on which the finding is detected at "
        f"{specificity:.0%} specificity on validation."
    )


def _conclude_attention(_: pd.DataFrame, cards: Sequence[AttentionCard]) -> str:
    strongest = [_stand_out(card) for card in cards]
    return (
        f"On {len(cards)} examples ({', '.join(card.finding for card in cards)}) the strongest patch has "
        f"{min(strongest):.1f} to {max(strongest):.1f} times the mean attention."
    )


def _stand_out(card: AttentionCard) -> float:
    return np.max(card.weights) / np.mean(card.weights)


def _bars(card: AttentionCard) -> list[tuple[str, float]]:
    """The highest confidences; the finding that is shown is among them, whatever its own."""
    order = sorted(card.confidences, key=lambda finding: -card.confidences[finding])
    kept = order[:_MOST_BARS]
    if card.finding not in kept:
        kept[-1] = card.finding
    return [(finding, float(card.confidences[finding])) for finding in kept]


def _draw_overlay(axes: Axes, card: AttentionCard) -> None:
    spread = spread_map(card.weights, len(card.pixels))
    span = spread.max() - spread.min()
    strength = ((spread - spread.min()) / span) ** _POWER if span > 0 else np.zeros_like(spread)
    show_radiograph(axes, card.pixels)
    green = ListedColormap([_GREEN])
    axes.imshow(
        np.ones_like(spread), cmap=green, alpha=strength * _STRONGEST_ALPHA, interpolation="nearest", gid="attention"
    )
    if card.mask is not None and card.mask.any() and not card.mask.all():
        axes.contour(card.mask.astype(float), levels=[0.5], colors=[_OUTLINE], linewidths=1.0)
    clear_frame(axes)
    # Scaled to its own range, even attention would look like a choice.
    axes.set_xlabel(f"strongest patch {_stand_out(card):.1f} times the mean", fontsize=5.5)


def _draw_bars(axes: Axes, card: AttentionCard) -> None:
    findings, confidences = zip(*_bars(card), strict=True)
    colours = [ACCENT if finding in card.present else _ABSENT for finding in findings]
    axes.barh(range(len(findings)), confidences, color=colours, height=0.72)
    name_lines(axes, findings)
    axes.tick_params(axis="y", pad=1.5)
    for label, finding in zip(axes.get_yticklabels(), findings, strict=True):
        label.set(fontsize=5, fontweight="bold" if finding == card.finding else "normal")
        if finding in card.present:
            label.set_color(ACCENT)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def _select_pointing(results: pd.DataFrame, head: tuple[str, str], data_set: str) -> tuple:
    """Pointing game and mass inside of every finding, with what three blind maps reach; ``head`` and ``data_set``.

    One row a finding and measure, smallest regions first and ``macro`` before all: ``finding, measure, region, value,
    ci_low, ci_high, chance, mean_map, centre, n``. Findings without a case are left to the results table.
    """
    own = results[(results.task == TASK) & (results.data_set == data_set)]
    own = own[(own["head"] == head[0]) & (own.variant == head[1])]
    if not (own.n > 0).any():
        raise NothingToDraw(f"there is nothing to draw, no region of a finding is known on {data_set}")
    by_metric = {metric: rows.set_index("finding") for metric, rows in own.groupby("metric")}
    areas = by_metric["area_inside"]
    order = areas[areas.n > 0].sort_values("value", kind="stable").index
    findings = [MACRO, *(finding for finding in order if finding != MACRO)]
    tables = []
    for measure in _PANELS:
        table = by_metric[measure].loc[findings, ["value", "ci_low", "ci_high", "n"]]
        blind = {name: by_metric[f"{measure}_{name}"].value for name in ("mean_map", "centre")}
        kind = LUNGS if (own.group == LUNGS).any() else FINDING
        tables.append(table.assign(measure=measure, region=kind, chance=areas.value, **blind).reset_index())
    names = ["finding", "measure", "region", "value", "ci_low", "ci_high", *_BASELINES, "n"]
    return pd.concat(tables, ignore_index=True)[names], head, data_set


def _plot_pointing(table: pd.DataFrame, *_) -> Drawing:
    heights = [1, max(1, table.finding.nunique() - 1)]
    figure = new_figure(height_mm=forest_height_mm(heights) + 22)
    headings = ("All findings", "By finding, smallest region first")
    for axes, (measure, (title, label)), letter in zip(
        figure.subplots(1, 2, sharey=True), _PANELS.items(), "ab", strict=True
    ):
        shown = table[table.measure == measure]
        estimates = [
            Estimate(f"{'Mean' if row.finding == MACRO else row.finding} ({row.n})", interval(row), _HEAD_STYLE)
            for row in shown.itertuples()
        ]
        parts = zip(headings, (estimates[:1], estimates[1:]), strict=True)
        draw_forest(axes, [Group(heading if letter == "a" else "", part) for heading, part in parts], heights)
        places = [1.0, *(np.arange(len(shown) - 1) + heights[0] + 1.35 + 1)]
        for column, (_, marker, colour) in _BASELINES.items():
            axes.plot(
                shown[column], places, marker, color=colour, markersize=6 if marker == "|" else 3,
                markerfacecolor="none", markeredgewidth=0.8, linestyle="none", gid=column, zorder=3,
            )  # fmt: skip
        # Zero is the worst there is: bars of attention that never hits must be seen to reach it.
        axes.set_xlim(-0.02, max(1.02 if measure == "pointing_game" else 0.0, axes.get_xlim()[1]))
        title_panel(axes, letter, title)
        axes.set_xlabel(f"share of {label} inside {_name_region(table)}")
    handles = [Line2D([], [], marker="o", color=ACCENT, linewidth=1.1, markersize=4, label=_HEAD_STYLE.name)]
    handles += [
        Line2D([], [], marker=marker, color=colour, markerfacecolor="none", linestyle="none", markersize=4, label=name)
        for name, marker, colour in _BASELINES.values()
    ]
    add_legend(figure, handles)
    return figure


def _describe_pointing(table: pd.DataFrame, head: tuple[str, str], data_set: str, encoder: str) -> str:
    """The caption; ``encoder`` names arm and seed of the frozen encoder."""
    cases = int(table.n[table.finding == MACRO].iloc[0])
    return (
        f"Does {name_head(*head)} look at {_name_region(table)}? {cases} cases (an image and a finding that it has, "
        f"region known) of {table.finding.nunique() - 1} findings on {data_set}; encoder {encoder}, frozen. a, share "
        "of maps whose maximum lies inside the region. b, mean share of the attention inside. Lines: 95 % intervals, "
        "patients drawn; none with fewer than five patients. Chance is the region's share of the image; the mean map "
        "is the head's own attention averaged over all images of the data set, blind to the image at hand; the centre "
        "is a Gaussian."
    )


def _name_region(table: pd.DataFrame) -> str:
    return {FINDING: "the finding", LUNGS: "the lungs"}[table.region.iloc[0]]


def _conclude_pointing(table: pd.DataFrame, _: tuple[str, str], data_set: str) -> str:
    row = table[(table.measure == "pointing_game") & (table.finding == MACRO)].iloc[0]
    return (
        f"The maximum of the attention lies inside {_name_region(table)} in {write_row(row)} of {row.n} cases "
        f"({data_set}); chance gives {row.chance:.3f}, the mean map {row.mean_map:.3f}."
    )


attention = Figure("attention", _select_attention, _plot_attention, _describe_attention, _conclude_attention)
pointing_test = Figure("pointing_test", _select_pointing, _plot_pointing, _describe_pointing, _conclude_pointing)
pointing_test_enriched = replace(pointing_test, name="pointing_test_enriched")
