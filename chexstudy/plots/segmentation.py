"""How well structures are outlined, by encoder, decoder and share of the labels, and what the outlines look like."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from chexstudy.evaluation.encoders import NO_ENCODER
from chexstudy.evaluation.scores import MACRO
from chexstudy.evaluation.segmentation.decoders import DECODERS
from chexstudy.evaluation.segmentation.metrics import FALSE_POSITIVE, FOUND, MISSED, measure_case
from chexstudy.plots.adaptation import draw_by_share
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate, draw_seeds, spread_arms
from chexstudy.plots.looks import INK, PALE, ArmStyle, arm_styles
from chexstudy.plots.measurements import (
    NothingToDraw,
    interval,
    prefer_data_set,
    require_rows,
    seed_values,
    select_rows,
    summarise_seeds,
)
from chexstudy.plots.style import (
    DOUBLE_MM,
    add_legend,
    clear_frame,
    name_lines,
    new_figure,
    show_radiograph,
    title_panel,
)
from chexstudy.plots.words import describe_interval, name_data_set, write_row

SEGMENTATION, DIFFERENCE, MEAN_MASK, PIXEL_UNET = "segmentation", "segmentation_difference", "mean_mask", "pixel_unet"
_MEASURES = {
    "dice": ("Dice", "mean over images"),
    "hd95": ("HD95", "pixels"),
    "missed": ("Missed", "share of images"),
    "dice_difference": ("Dice \N{MINUS SIGN} small U-Net", "same patients"),
}
_DECODER_NAMES = {
    "unet": "U-Net",
    "published_unet": "U-Net as published",
    "linear": "Linear",
    "normalised_linear": "Linear, normalised",
    "normalised_linear_4": "Linear, normalised, four blocks",
    "upernet": "UPerNet",
}
_BASELINES = {
    PIXEL_UNET: ArmStyle("Small U-Net on pixels", "#009E73", "P"),
    MEAN_MASK: ArmStyle("Mean training mask", "#5E4B3C", "d"),
}
_RULES = {
    "median": "Median Dice",
    "worst_decile": "Worst decile",
    "missed": "First missed",
    "false_positive": "First false alarm",
}
_TRUTH, _PREDICTED = ("#56B4E9", "-"), ("#E69F00", (0, (3, 1.2)))
_PAGE_MM = 230.0


@dataclass(frozen=True)
class OutlineCard:
    """One structure of one radiograph, as it is and as it was outlined."""

    pixels: np.ndarray  # ``(height, width)`` uint8
    structure: str
    rule: str  # by which it was chosen, one of `choose_cases`
    truth: np.ndarray  # bool, of the same field as the pixels; it may be finer
    predicted: np.ndarray


# --- by encoder, decoder and share of the labels ----------------------------------------------------------------------


def _looks(rows: pd.DataFrame) -> dict[tuple[str, str], ArmStyle]:
    """The look of every encoder (an arm and no head) and baseline (a head and no arm), in the order of all figures."""
    encoders = arm_styles(set(rows.arm) - {NO_ENCODER})
    baselines = {("", head): style for head, style in _BASELINES.items() if (rows["head"] == head).any()}
    return {(arm, ""): style for arm, style in encoders.items()} | baselines


def _of_line(rows: pd.DataFrame, arm: str, head: str) -> pd.DataFrame:
    """Rows of an encoder or of a baseline."""
    return rows[rows["head"] == head] if head else rows[rows.arm == arm]


def _list_decoders(rows: pd.DataFrame) -> list[str]:
    """Decoders on encoders, those that most encoders have first, then in the order of `DECODERS`."""
    encoders = rows[rows.arm != NO_ENCODER].groupby("head").arm.nunique()
    return sorted(encoders.index, key=lambda head: (-encoders[head], list(DECODERS).index(head)))


def _select(results: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Measures with all the labels on the preferred test set, and differences to the small U-Net."""
    wanted = {"variant": "", "setting": "", "metric": list(_MEASURES)} | wanted
    rows = prefer_data_set(require_rows(select_rows(results, SEGMENTATION, **wanted), "outlined structures"))
    minus = select_rows(results, DIFFERENCE, reference=PIXEL_UNET, data_set=rows.data_set.iloc[0], **wanted)
    return pd.concat([rows, minus[minus.arm != NO_ENCODER]], ignore_index=True)


def _select_structures(results: pd.DataFrame) -> pd.DataFrame:
    """One decoder on every encoder, by structure, the mean first and then those that are outlined best."""
    rows = _select(results)
    decoders = _list_decoders(rows)[:1]
    rows = rows[rows["head"].isin([*decoders, *_BASELINES])].copy()
    dice = rows[rows.metric == "dice"].groupby("finding").value.mean().sort_values(ascending=False)
    order = [MACRO, *dice.index.drop(MACRO, errors="ignore")]
    rows["heading"] = [
        "Mean" if row.finding == MACRO else f"{row.finding[:1].upper()}{row.finding[1:]} ({row.positives:,})"
        for row in rows.itertuples()
    ]
    return _sort(rows, rows.finding, order)


def _select_decoders(results: pd.DataFrame) -> pd.DataFrame:
    """Every decoder on every encoder, mean over structures; what needs no encoder last."""
    rows = _select(results, finding=MACRO)
    decoders = _list_decoders(rows)
    if len(decoders) < 2:
        raise NothingToDraw("there is nothing to compare with one decoder")
    rows = rows.assign(heading=rows["head"].map(_DECODER_NAMES).fillna("No encoder"))
    return _sort(rows, rows["head"], [*decoders, *_BASELINES])


def _sort(rows: pd.DataFrame, by: pd.Series, order: Sequence[str]) -> pd.DataFrame:
    return rows.iloc[np.argsort(pd.Index(order).get_indexer(by), kind="stable")].reset_index(drop=True)


def _plot(rows: pd.DataFrame) -> Drawing:
    """A panel a measure: under each heading a mark an encoder or baseline."""
    looks, headings = _looks(rows), list(dict.fromkeys(rows.heading))
    metrics = [metric for metric in _MEASURES if (rows.metric == metric).any()]
    figure = new_figure(height_mm=24 + len(headings) * (3 + 2.2 * len(looks)))
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric, letter in zip(grid, metrics, "abcd", strict=False):
        for (place, heading), (aside, line) in product(
            enumerate(headings), zip(spread_arms(len(looks), 0.76), looks, strict=True)
        ):
            own = _of_line(rows[(rows.metric == metric) & (rows.heading == heading)], *line)
            for row in summarise_seeds(own).itertuples():
                draw_estimate(axes, place + aside, interval(row), looks[line], size=3.6)
                draw_seeds(axes, place + aside, seed_values(own), looks[line])
        for place in range(1, len(headings)):
            axes.axhline(place - 0.5, color=PALE, linewidth=0.5, zorder=0)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.margins(x=0.08)
        title, label = _MEASURES[metric]
        axes.set_xlabel(label)
        title_panel(axes, letter, title)
        if metric == "dice_difference":
            axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    name_lines(grid[0], headings)
    add_arm_legend(figure, looks.values())
    return figure


def _describe(rows: pd.DataFrame) -> str:
    decoders = ", ".join(_DECODER_NAMES[head] for head in _list_decoders(rows))
    minus = "dice_difference" in set(rows.metric)
    return (
        f"Structures outlined from frozen encoders (decoder: {decoders}), beside a small U-Net trained end to end on "
        "the same images and the mean mask of the training images, which looks at no image. Dice and the 95th "
        "percentile of the distance between the boundaries (HD95), means over images at their original size; a missed "
        "structure has Dice 0 and the image's diagonal as HD95, and leaves no mean. Missed: share of the images that "
        "show a structure (how many do, in brackets) on which nothing was outlined. "
        + "The last panel is paired by patient and seed: left of the line the small U-Net is better. " * minus
        + describe_interval(rows[rows.metric == "dice"])
    )


def _conclude(rows: pd.DataFrame) -> str:
    """Means over structures, and where frozen encoders lose to the small U-Net by a paired interval."""
    dice = rows[(rows.metric == "dice") & (rows.finding == MACRO)]
    words = [
        f"{style.name} {write_row(row)}"
        for line, style in _looks(dice).items()
        for row in [summarise_seeds(_of_line(dice, *line)).sort_values("value").iloc[-1]]
    ]
    minus = summarise_seeds(rows[(rows.metric == "dice_difference") & (rows.finding != MACRO)])
    lost = minus[minus.ci_high < 0].groupby("finding").arm.nunique()
    losses = ", ".join(f"{structure} ({count} of {minus.arm.nunique()} encoders)" for structure, count in lost.items())
    sentence = f"Dice, mean over structures ({name_data_set(dice.data_set.iloc[0])}): {'; '.join(words)}"
    return sentence + (f". Below the small U-Net: {losses or 'no encoder on any structure'}." if len(minus) else ".")


def _select_labels(results: pd.DataFrame) -> pd.DataFrame:
    """Means over structures by the share of the patients, of one decoder on every encoder and of the baselines."""
    rows = select_rows(results, SEGMENTATION, variant="", finding=MACRO, metric=["dice", "hd95"])
    require_rows(rows[rows.setting != ""], "outlines learnt from shares of the labels")
    rows = prefer_data_set(rows)
    thinned = rows[rows.setting != ""]
    decoder = _list_decoders(thinned)[:1]
    # What was not learnt from fewer labels is no curve.
    learnt = thinned[["arm", "head"]].drop_duplicates()
    rows = rows.merge(learnt, on=["arm", "head"])
    return rows[rows["head"].isin([*decoder, *_BASELINES])].reset_index(drop=True)


def _plot_labels(rows: pd.DataFrame) -> Drawing:
    """Dice and HD95 against the share of the labels, a line an encoder or baseline."""
    looks = _looks(rows)
    figure = new_figure(height_mm=78)
    for axes, metric, letter in zip(figure.subplots(1, 2), ("dice", "hd95"), "ab", strict=True):
        own = rows[rows.metric == metric]
        draw_by_share(axes, [(style, _of_line(own, *line)) for line, style in looks.items()])
        axes.set_ylabel({"dice": "Dice", "hd95": "HD95 (pixels)"}[metric])
        title_panel(axes, letter, _MEASURES[metric][0])
    add_arm_legend(figure, looks.values())
    return figure


def _describe_labels(rows: pd.DataFrame) -> str:
    return (
        "Label efficiency of segmentation, means over structures, decoder "
        f"{_DECODER_NAMES[_list_decoders(rows)[0]]}. Patients of smaller shares are among those of larger ones, each "
        "seed draws others. " + describe_interval(rows)
    )


def _conclude_labels(rows: pd.DataFrame) -> str:
    dice = rows[rows.metric == "dice"]
    share = min(dice.setting[dice.setting != ""], key=float)
    few = dice[dice.setting == share]
    words = (
        f"{style.name} {write_row(summarise_seeds(_of_line(few, *line)).iloc[0])}"
        for line, style in _looks(few).items()
    )
    return f"Dice with {float(share):.0%} of the labelled patients: {'; '.join(words)}."


# --- outlines ---------------------------------------------------------------------------------------------------------


def choose_cases(table: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """Which images are shown, by rule: ``image_id, structure, rule``, at most one a structure and rule.

    Of the images that show the structure, by Dice, the one in the middle and the one a tenth from the worst; the first
    on which it was missed; and the first without it on which it was outlined.

    Args:
        table: a row an image in the order of the data set, of `measure_image` with ``image_id``.
    """
    chosen = []
    for structure in structures:
        outcome, dice = table[f"{structure}: outcome"], table[f"{structure}: dice"]
        shown = dice[outcome.isin([FOUND, MISSED])].sort_values(kind="stable").index
        places = {"median": (len(shown) - 1) // 2, "worst_decile": (len(shown) - 1) // 10} if len(shown) else {}
        rows = {rule: shown[place] for rule, place in places.items()}
        rows |= {rule: table.index[outcome == rule][0] for rule in (MISSED, FALSE_POSITIVE) if (outcome == rule).any()}
        chosen += [(table.image_id[row], structure, rule) for rule, row in rows.items()]
    return pd.DataFrame(chosen, columns=["image_id", "structure", "rule"])


def make_cards(
    chosen: pd.DataFrame, look: Callable[[str], tuple[np.ndarray, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]
) -> list[OutlineCard]:
    """Cards of `choose_cases`; ``look`` gives an image's pixels, its predicted and its true masks by structure."""
    cards = []
    for one in chosen.itertuples():
        pixels, predicted, truth = look(one.image_id)
        cards.append(OutlineCard(pixels, one.structure, one.rule, truth[one.structure], predicted[one.structure]))
    return cards


def _select_cards(cards: Sequence[OutlineCard]) -> tuple[pd.DataFrame, Sequence[OutlineCard]]:
    """How well each card's outline agrees, without any identifier; and the cards."""
    if not cards:
        raise NothingToDraw("there is nothing to draw without an outlined structure")
    rows = [
        {"structure": card.structure, "rule": card.rule}
        | {name: case[name] for name in ("outcome", "dice", "hd95", "surface_dice")}
        for card in cards
        for case in [measure_case(card.predicted, card.truth)]
    ]
    return pd.DataFrame(rows), cards


def _plot_cards(numbers: pd.DataFrame, cards: Sequence[OutlineCard]) -> Drawing:
    """A row a structure, a column a rule: the radiograph with both outlines."""
    structures = list(dict.fromkeys(numbers.structure))
    rules = [rule for rule in _RULES if (numbers.rule == rule).any()]
    side = min(DOUBLE_MM / max(len(rules), 3), _PAGE_MM / len(structures)) - 3
    figure = new_figure(height_mm=len(structures) * (side + 4) + 12, width_mm=side * len(rules) + 6)
    grid = figure.subplots(len(structures), len(rules), squeeze=False)
    for axes in grid.ravel():
        clear_frame(axes)
        axes.set_box_aspect(1)
    for row, card in zip(numbers.itertuples(), cards, strict=True):
        axes = grid[structures.index(card.structure), rules.index(card.rule)]
        show_radiograph(axes, card.pixels)
        for mask, look in ((card.truth, _TRUTH), (card.predicted, _PREDICTED)):
            _outline(axes, mask, card.pixels.shape, look)
        words = {MISSED: "missed", FALSE_POSITIVE: "not there"}
        axes.set_xlabel(words.get(row.outcome, f"Dice {row.dice:.2f}, HD95 {row.hd95:.1f} px"), fontsize=6, labelpad=2)
    for axes, rule in zip(grid[0], rules, strict=True):
        axes.set_title(_RULES[rule], fontsize=7, loc="left")
    for axes, structure in zip(grid[:, 0], structures, strict=True):
        axes.set_ylabel(structure, fontsize=7)
    handles = [
        Line2D([], [], color=colour, linestyle=line, linewidth=1.2, label=name)
        for (colour, line), name in ((_TRUTH, "truth"), (_PREDICTED, "outlined by the model"))
    ]
    add_legend(figure, handles)
    return figure


def _outline(axes: Axes, mask: np.ndarray, shape: tuple[int, int], look: tuple) -> None:
    """The edge of a mask over a picture of the same field, along the sides of its pixels at the picture's rim."""
    if not mask.any():
        return
    # A structure that is cut off by the rim is closed along it.
    padded = np.pad(mask, 1).astype(float)
    steps = [size / count for size, count in zip(shape, mask.shape, strict=True)]
    y, x = ((np.arange(count + 2) - 0.5) * step - 0.5 for count, step in zip(mask.shape, steps, strict=True))
    colour, line = look
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linestyles=[line], linewidths=0.9)


def _describe_cards(numbers: pd.DataFrame, _: Sequence[OutlineCard], encoder: str, decoder: str) -> str:
    """The caption; ``encoder`` is arm and seed."""
    return (
        f"Outlines by {_DECODER_NAMES.get(decoder, decoder)} on the frozen encoder {encoder}, "
        f"{len(numbers)} test radiographs by rule. Of those that show a structure the one with the median Dice and the "
        "one a tenth of the way from the worst; the first on which it was missed; the first without it on which "
        "something was outlined. A place is empty where there is no such image; no interval."
    )


def _conclude_cards(numbers: pd.DataFrame, _: Sequence[OutlineCard]) -> str:
    worst = numbers[numbers.rule == "worst_decile"]
    words = ", ".join(f"{row.structure} {row.dice:.2f}" for row in worst.itertuples())
    missed = numbers.structure[numbers.rule == MISSED]
    return (
        f"A tenth of the images that show a structure have a Dice of at most: {words}; missed at least once: "
        f"{', '.join(missed) or 'none'}."
    )


segmentation = Figure("segmentation", _select_structures, _plot, _describe, _conclude)
segmentation_decoders = replace(segmentation, name="segmentation_decoders", select=_select_decoders)
segmentation_labels = Figure("segmentation_labels", _select_labels, _plot_labels, _describe_labels, _conclude_labels)
outlines = Figure("outlines", _select_cards, _plot_cards, _describe_cards, _conclude_cards)
