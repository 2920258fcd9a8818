"""What outlines look like: radiographs chosen by rule, failures among them, with the truth and what a model drew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from chexstudy.cohort.images.decode import place_square
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.segmentation.metrics import FALSE_POSITIVE, FOUND, MISSED, measure_case
from chexstudy.evaluation.segmentation.run import SegmentationPlan
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.segmentation import name_decoder
from chexstudy.plots.style import DOUBLE_MM, add_legend, clear_frame, new_figure, show_radiograph

_RULES = {
    "median": "Median Dice",
    "worst_decile": "Worst decile",
    "missed": "First missed",
    "false_positive": "First false alarm",
}
_TRUTH, _PREDICTED = ("#56B4E9", "-"), ("#E69F00", (0, (3, 1.2)))
_PAGE_MM, _COLUMNS = 190.0, 4


@dataclass(frozen=True)
class OutlineCard:
    """One structure of one radiograph, as it is and as it was outlined."""

    pixels: np.ndarray  # ``(side, side)`` uint8, of the pixel store
    structure: str
    rule: str  # by which it was chosen, one of `choose_cases`
    truth: np.ndarray  # bool ``(height, width)``, of the original image
    predicted: np.ndarray
    fit: str  # how the pixel store made the original image square


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
    chosen: pd.DataFrame,
    look: Callable[[str], tuple[np.ndarray, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    fit: str,
) -> list[OutlineCard]:
    """Cards of `choose_cases`; ``look`` gives an image's pixels, its predicted and its true masks by structure."""
    cards = []
    for one in chosen.itertuples():
        pixels, predicted, truth = look(one.image_id)
        cards.append(OutlineCard(pixels, one.structure, one.rule, truth[one.structure], predicted[one.structure], fit))
    return cards


def collect_outlines(evaluation: Evaluation, plan: SegmentationPlan, count: int) -> list[OutlineCard]:
    """Cards of so many structures, those that the plan's first encoder, decoder and seed outline worst."""
    if not plan.structures:
        return []
    task, place = plan.list_work()[0][1][0], (plan.encoders[0], plan.seeds[0])
    rows = evaluation.test_sets()[evaluation.main_test_set()]
    table = task.read(evaluation, *place, rows)
    dice = {one: table[f"{one}: dice"].mean() for one in plan.structures if f"{one}: dice" in table}
    chosen = choose_cases(table, sorted(dice, key=dice.get)[:count])
    look = task.look(evaluation, *place, rows[rows.image_id.isin(chosen.image_id)])
    return make_cards(chosen, look, evaluation.store.fit)


def _select(cards: Sequence[OutlineCard]) -> tuple[pd.DataFrame, Sequence[OutlineCard]]:
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


def _plot(numbers: pd.DataFrame, cards: Sequence[OutlineCard]) -> Drawing:
    """A row a structure, a column a rule: the radiograph with both outlines. Under few rules several stand in a row."""
    structures = list(dict.fromkeys(numbers.structure))
    rules = [rule for rule in _RULES if (numbers.rule == rule).any()]
    abreast = min(max(_COLUMNS // len(rules), 1), len(structures))
    rows, columns = -(-len(structures) // abreast), abreast * len(rules)
    side = min(DOUBLE_MM / max(columns, 3), _PAGE_MM / rows) - 3
    figure = new_figure(height_mm=rows * (side + 4) + 12, width_mm=(side + 2) * columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel():
        clear_frame(axes)
        axes.set_box_aspect(1)
    places = grid.reshape(-1, len(rules))
    for axes, structure in zip(places[:, 0], structures, strict=False):
        axes.set_ylabel(structure, fontsize=7)
    for axes, rule in zip(grid[0], rules * abreast, strict=True):
        axes.set_title(_RULES[rule], fontsize=7, loc="left")
    for row, card in zip(numbers.itertuples(), cards, strict=True):
        axes = places[structures.index(card.structure), rules.index(card.rule)]
        show_radiograph(axes, card.pixels)
        for mask, look in ((card.truth, _TRUTH), (card.predicted, _PREDICTED)):
            _outline(axes, mask, len(card.pixels), card.fit, look)
        words = {MISSED: "missed", FALSE_POSITIVE: "not there"}
        axes.set_xlabel(words.get(row.outcome, f"Dice {row.dice:.2f}, HD95 {row.hd95:.1f} px"), fontsize=6, labelpad=2)
    handles = [
        Line2D([], [], color=colour, linestyle=line, linewidth=1.2, label=name)
        for (colour, line), name in ((_TRUTH, "truth"), (_PREDICTED, "outlined by the model"))
    ]
    add_legend(figure, handles)
    return figure


def _outline(axes: Axes, mask: np.ndarray, side: int, fit: str, look: tuple) -> None:
    """The edge of an original image's mask where that image lies on the square of the pixel store."""
    if not mask.any():
        return
    resized, corner = place_square(mask.shape, side, fit)
    y, x = (
        (np.arange(count + 2) - 0.5) * whole / count - first - 0.5
        for count, whole, first in zip(mask.shape, resized, corner, strict=True)
    )
    colour, line = look
    # A structure that is cut off by the rim is closed along it.
    closed = np.pad(mask, 1).astype(float)
    axes.contour(x, y, closed, levels=[0.5], colors=[colour], linestyles=[line], linewidths=0.9)
    axes.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))


def _describe(numbers: pd.DataFrame, _: Sequence[OutlineCard], encoder: str, decoder: str) -> str:
    """The caption; ``encoder`` is arm and seed."""
    return (
        f"Outlines by {name_decoder(decoder)} on the frozen encoder {encoder}, "
        f"{len(numbers)} test radiographs by rule. Of those that show a structure the one with the median Dice and the "
        "one a tenth of the way from the worst; the first on which it was missed; the first without it on which "
        "something was outlined. A place is empty where there is no such image; no interval."
    )


def _conclude(numbers: pd.DataFrame, _: Sequence[OutlineCard]) -> str:
    worst = numbers[numbers.rule == "worst_decile"]
    words = ", ".join(f"{row.structure} {row.dice:.2f}" for row in worst.itertuples())
    missed = numbers.structure[numbers.rule == MISSED]
    return (
        f"A tenth of the images that show a structure have a Dice of at most: {words}; missed at least once: "
        f"{', '.join(missed) or 'none'}."
    )


outlines = Figure("outlines", _select, _plot, _describe, _conclude)
