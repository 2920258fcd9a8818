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
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.style import (
    ACCENT,
    DOUBLE_MM,
    GREY,
    INK,
    ArmStyle,
    add_legend,
    clear_frame,
    new_figure,
    title_panel,
)
from chexstudy.results import write_interval

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
_PANELS = {"pointing_game": "Pointing game", "mass_inside": "Share of attention inside"}
_REGIONS = {FINDING: "the finding", LUNGS: "the lungs"}


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
    """The cards of chosen examples.

    Args:
        chosen: ``image_id`` and ``finding``, one row an example.
        rows: cohort rows that hold these images.
        scores: ``(rows, findings)``, logits.
        findings: columns of the scores.
        weights: ``(examples, tokens)``, attention of the example's finding.
        pixels: uint8 ``(examples, size, size)``.
        regions: where findings are, as far as that is known.
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

    Args:
        evaluation: what the head was measured with.
        fitted: the head; None gives no cards.
        features: of the encoder, with patches.
        regions: where findings are, by test set.
        count: how many examples, at most.
        specificity: a finding is detected above this share of the validation images without it.
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


# --- X1: overlay and confidences --------------------------------------------------------------------------------------


def select_attention(cards: Sequence[AttentionCard]) -> pd.DataFrame:
    """What the bars show: one row an example and finding, without any identifier."""
    if not cards:
        raise NothingToDraw("there is nothing to draw without a finding detected on an image where its place is known")
    return pd.DataFrame(
        [
            {
                "example": number,
                "attention_of": card.finding,
                "finding": finding,
                "confidence": confidence,
                "present": finding in card.present,
            }
            for number, card in enumerate(cards, start=1)
            for finding, confidence in _bars(card)
        ],
        columns=["example", "attention_of", "finding", "confidence", "present"],
    )


def plot_attention(cards: Sequence[AttentionCard]) -> Drawing:
    """Radiographs under their attention, each beside the confidences of all findings; two a row.

    Args:
        cards: what to show.
    """
    columns = min(2, len(cards))
    rows = -(-len(cards) // columns)
    bars = max(len(_bars(card)) for card in cards)
    height = max(_SMALLEST_CARD_MM, _BAR_MM * bars) + 9
    figure = new_figure(height_mm=rows * height + 6, width_mm=DOUBLE_MM * columns / 2)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1.7, 1.0] * columns)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        picture, chart = grid[row, 2 * column : 2 * column + 2]
        if place >= len(cards):
            picture.set_axis_off()
            chart.set_axis_off()
            continue
        _draw_overlay(picture, cards[place])
        title_panel(picture, "abcdefghijklmnopqrstuvwxyz"[place % 26], cards[place].finding)
        _draw_bars(chart, cards[place])
        chart.set_xlabel("confidence" if row == rows - 1 or place + columns >= len(cards) else "")
    colours = {"attention": _GREEN, "present": ACCENT, "absent or not known": _ABSENT}
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    if any(card.mask is not None for card in cards):
        handles.append(Line2D([], [], color=_OUTLINE, linewidth=1.2, label="where the finding is"))
    add_legend(figure, handles)
    return figure


def describe_attention(cards: Sequence[AttentionCard], head: tuple[str, str], encoder: str, specificity: float) -> str:
    """The caption of `plot_attention`.

    Args:
        cards: what is shown.
        head: a head and its variant.
        encoder: arm and seed of the frozen encoder.
        specificity: at which a finding counts as detected.
    """
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


def _bars(card: AttentionCard) -> list[tuple[str, float]]:
    """The highest confidences; the finding that is shown is among them, whatever its own."""
    order = sorted(card.confidences, key=lambda finding: -card.confidences[finding])
    kept = order[:_MOST_BARS]
    if card.finding not in kept:
        kept[-1] = card.finding
    return [(finding, float(card.confidences[finding])) for finding in kept]


def _draw_overlay(axes: Axes, card: AttentionCard) -> None:
    size = len(card.pixels)
    spread = spread_map(card.weights, size)
    span = spread.max() - spread.min()
    strength = ((spread - spread.min()) / span) ** _POWER if span > 0 else np.zeros_like(spread)
    axes.imshow(card.pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.imshow(
        np.ones_like(spread),
        cmap=ListedColormap([_GREEN]),
        alpha=strength * _STRONGEST_ALPHA,
        interpolation="nearest",
        gid="attention",
    )
    if card.mask is not None and card.mask.any() and not card.mask.all():
        axes.contour(card.mask.astype(float), levels=[0.5], colors=[_OUTLINE], linewidths=1.0)
    clear_frame(axes)
    # Scaled to its own range, even attention would look like a choice.
    axes.set_xlabel(f"strongest patch {np.max(card.weights) / np.mean(card.weights):.1f} times the mean", fontsize=5.5)


def _draw_bars(axes: Axes, card: AttentionCard) -> None:
    bars = _bars(card)
    colours = [ACCENT if finding in card.present else _ABSENT for finding, _ in bars]
    axes.barh(range(len(bars)), [confidence for _, confidence in bars], color=colours, height=0.72)
    axes.set_yticks(range(len(bars)), [finding for finding, _ in bars], fontsize=5)
    for label, (finding, _) in zip(axes.get_yticklabels(), bars, strict=True):
        if finding in card.present:
            label.set_color(ACCENT)
        if finding == card.finding:
            label.set_fontweight("bold")
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(axis="y", length=0, pad=1.5)


# --- pointing game ----------------------------------------------------------------------------------------------------


def select_pointing(results: pd.DataFrame, head: tuple[str, str], data_set: str) -> pd.DataFrame:
    """Pointing game and mass inside of every finding, with what three blind maps reach.

    Args:
        results: the results table.
        head: a head and its variant, empty for the head itself.
        data_set: one data set.

    Returns:
        One row a finding and measure, smallest regions first and ``macro`` before all: ``finding, measure, region,
        value, ci_low, ci_high, chance, mean_map, centre, n``. Findings without a case are left to the results table.
    """
    own = results[(results.task == TASK) & (results.data_set == data_set)]
    own = own[(own["head"] == head[0]) & (own.variant == head[1])]
    kind = LUNGS if (own.group == LUNGS).any() else FINDING
    table = own.set_index(["metric", "finding"])
    if own.empty or not (own.n > 0).any():
        raise NothingToDraw(f"there is nothing to draw, no region of a finding is known on {data_set}")
    seen = own[(own.metric == "area_inside") & (own.n > 0)].sort_values("value", kind="stable")
    findings = [MACRO, *(finding for finding in seen.finding if finding != MACRO)]
    rows = []
    for measure in _PANELS:
        for finding in findings:
            row = table.loc[(measure, finding)]
            rows.append(
                {
                    "finding": finding,
                    "measure": measure,
                    "region": kind,
                    "value": row.value,
                    "ci_low": row.ci_low,
                    "ci_high": row.ci_high,
                    "chance": table.value["area_inside", finding],
                    "mean_map": table.value[f"{measure}_mean_map", finding],
                    "centre": table.value[f"{measure}_centre", finding],
                    "n": int(row.n),
                }
            )
    return pd.DataFrame(rows)


def plot_pointing(results: pd.DataFrame, head: tuple[str, str], data_set: str) -> Drawing:
    """Pointing game and mass inside by finding, against chance; arguments and errors as in `select_pointing`."""
    table = select_pointing(results, head, data_set)
    heights = [1, max(1, table.finding.nunique() - 1)]
    figure = new_figure(height_mm=forest_height_mm(heights) + 22)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (measure, title), letter in zip(panels, _PANELS.items(), "ab", strict=True):
        shown = table[table.measure == measure]
        groups = [Group("All findings", _estimates(shown, shown.finding == MACRO))]
        groups.append(Group("By finding, smallest region first", _estimates(shown, shown.finding != MACRO)))
        if letter == "b":
            groups = [Group("", group.estimates) for group in groups]
        draw_forest(axes, groups, heights)
        places = [1.0, *(np.arange(len(shown) - 1) + heights[0] + 1.35 + 1)]
        for column, (_, marker, colour) in _BASELINES.items():
            axes.plot(
                shown[column], places, marker, color=colour, markersize=6 if marker == "|" else 3,
                markerfacecolor="none", markeredgewidth=0.8, linestyle="none", gid=column, zorder=3,
            )  # fmt: skip
        # Zero is the worst there is: bars of attention that never hits must be seen to reach it.
        axes.set_xlim(-0.02, max(1.02 if measure == "pointing_game" else 0.0, axes.get_xlim()[1]))
        title_panel(axes, letter, title)
        axes.set_xlabel(
            f"share {'of maxima' if measure == 'pointing_game' else 'of attention'} inside {_region(table)}"
        )
    handles = [Line2D([], [], marker="o", color=ACCENT, linewidth=1.1, markersize=4, label=_HEAD_STYLE.name)]
    handles += [
        Line2D([], [], marker=marker, color=colour, markerfacecolor="none", linestyle="none", markersize=4, label=name)
        for name, marker, colour in _BASELINES.values()
    ]
    add_legend(figure, handles)
    return figure


def describe_pointing(results: pd.DataFrame, head: tuple[str, str], data_set: str, encoder: str) -> str:
    """The caption of `plot_pointing`; ``encoder`` names arm and seed of the frozen encoder."""
    table = select_pointing(results, head, data_set)
    cases = int(table.n[table.finding == MACRO].iloc[0])
    return (
        f"Does {name_head(*head)} look at {_region(table)}? {cases} cases (an image and a finding that it has, region "
        f"known) of {table.finding.nunique() - 1} findings on {data_set}; encoder {encoder}, frozen. a, share of "
        "maps whose maximum lies inside the region. b, mean share of the attention inside. Lines: 95 % intervals, "
        "patients drawn; none with fewer than five patients. Chance is the region's share of the image; the mean map "
        "is the head's own attention averaged over all images of the data set, blind to the image at hand; the centre "
        "is a Gaussian."
    )


def _estimates(table: pd.DataFrame, chosen: pd.Series) -> list[Estimate]:
    return [
        Estimate(f"{_label(row.finding)} ({row.n})", row.value, row.ci_low, row.ci_high, _HEAD_STYLE)
        for row in table[chosen].itertuples()
    ]


def _label(finding: str) -> str:
    return "Mean" if finding == MACRO else finding


def _region(table: pd.DataFrame) -> str:
    return _REGIONS[table.region.iloc[0]]


def conclude_attention(cards: Sequence[AttentionCard]) -> str:
    """How far the strongest patch stands out on the examples."""
    strongest = [np.max(card.weights) / np.mean(card.weights) for card in cards]
    return (
        f"On {len(cards)} examples ({', '.join(card.finding for card in cards)}) the strongest patch has "
        f"{min(strongest):.1f} to {max(strongest):.1f} times the mean attention."
    )


def conclude_pointing(results: pd.DataFrame, head: tuple[str, str], data_set: str) -> str:
    """How often the maximum lies on the finding, beside what blind maps reach."""
    table = select_pointing(results, head, data_set)
    row = table[(table.measure == "pointing_game") & (table.finding == MACRO)].iloc[0]
    share = write_interval(row.value, row.ci_low, row.ci_high)
    return (
        f"The maximum of the attention lies inside {_region(table)} in {share} of {row.n} cases ({data_set}); chance "
        f"gives {row.chance:.3f}, the mean map {row.mean_map:.3f}."
    )


attention = Figure("attention", select_attention, plot_attention, describe_attention, conclude_attention)
pointing_test = Figure("pointing_test", select_pointing, plot_pointing, describe_pointing, conclude_pointing)
pointing_test_enriched = replace(pointing_test, name="pointing_test_enriched")
