"""Prototype cards: for each prototype the radiographs nearest to it, halfway and farthest, and what became of them."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch, Rectangle

from chexstudy.curation.online.decisions import BANDS
from chexstudy.plots.figure import Figure
from chexstudy.plots.looks import ACCENT, BAND_COLOURS, GREY, INK, PALE
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_legend, clear_frame, new_figure, show_radiograph

_PLACES, _EACH = ("nearest", "median", "farthest"), 3
_MOST_CARDS = 8
# Left edges of the radiographs ``(places, each)``, in widths of one; places stand a little apart.
_EDGES = np.arange(9.0).reshape(len(_PLACES), _EACH) * 1.08 + 0.14 * np.arange(len(_PLACES))[:, None]


def _select(ledger: pd.DataFrame, read_pixels: Callable[[str], np.ndarray]) -> tuple:
    """The pairs shown on the cards of the most used prototypes; one with few members shows each of them once.

    One row a radiograph, prototypes in their order: ``prototype``; its ``members``, their ``usage`` (share of all
    pairs) and ``keep_rate``; ``place, image_id, distance, band, kept``. ``ledger`` holds one epoch's decisions,
    ``read_pixels`` gives the pixels ``(height, width)`` uint8 of an ``image_id``.
    """
    require_rows(ledger, "curation decisions")
    tables = []
    for prototype in sorted(ledger.prototype.value_counts(sort=False).sort_index().nlargest(_MOST_CARDS).index):
        members = ledger[ledger.prototype == prototype].sort_values(["distance", "image_id"])
        whole = {"members": len(members), "usage": len(members) / len(ledger), "keep_rate": members.kept.mean()}
        for place, positions in _choose_positions(len(members)).items():
            tables.append(members.iloc[positions].assign(**whole, place=place))
    names = ["prototype", "members", "usage", "keep_rate", "place", "image_id", "distance", "band", "kept"]
    return pd.concat(tables, ignore_index=True)[names], ledger, read_pixels


def _choose_positions(members: int) -> dict[str, list[int]]:
    """Positions in the order of distance for each place, none in two."""
    nearest = list(range(min(_EACH, members)))
    farthest = [position for position in range(max(members - _EACH, 0), members) if position not in nearest]
    start = max(0, (members - _EACH) // 2)
    median = [one for one in range(start, min(start + _EACH, members)) if one not in {*nearest, *farthest}]
    return dict(zip(_PLACES, (nearest, median, farthest), strict=True))


def _plot(cards: pd.DataFrame, ledger: pd.DataFrame, read_pixels: Callable[[str], np.ndarray]) -> Drawing:
    by_prototype = cards.groupby("prototype")
    figure = new_figure(height_mm=18.5 * len(by_prototype) + 12)
    grid = figure.subplots(len(by_prototype), 3, squeeze=False, width_ratios=[1.5, 1.4, _EDGES.size * 1.18])
    low, high = ledger.distance.min(), ledger.distance.max()
    edges = np.linspace(low, high, 25) if high > low else 10
    for (facts, distances, radiographs), (prototype, card) in zip(grid, by_prototype, strict=True):
        _write_card(facts, card.iloc[0])
        _draw_distances(distances, ledger[ledger.prototype == prototype], edges)
        _draw_radiographs(radiographs, card, read_pixels)
    grid[-1, 1].tick_params(labelbottom=True)
    for place, left in zip(_PLACES, _EDGES[:, 0], strict=True):
        grid[0, 2].text(left, 1.1, place, fontweight="bold", fontsize=7, va="bottom")
    grid[0, 1].set_title("distance", loc="left", fontweight="bold", fontsize=7)
    add_legend(figure, [Patch(facecolor=BAND_COLOURS[band], label=f"{band} band") for band in BANDS])
    return figure


def _write_card(axes: Axes, card: pd.Series) -> None:
    clear_frame(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0, 0.86, f"Prototype {card.prototype}", fontweight="bold", va="center")
    axes.text(0, 0.62, f"{card.members:,} pairs ({100 * card.usage:.0f} %)", va="center", fontsize=6)
    axes.text(0, 0.42, f"{100 * card.keep_rate:.0f} % kept", va="center", fontsize=6)
    axes.barh(0.22, 0.92, 0.1, color=PALE)
    axes.barh(0.22, 0.92 * card.keep_rate, 0.1, color=ACCENT, gid="kept")


def _draw_distances(axes: Axes, members: pd.DataFrame, edges: np.ndarray | int) -> None:
    values = [members.distance[members.band == band].to_numpy(dtype=float) for band in BANDS]
    axes.hist(values, bins=edges, stacked=True, color=[BAND_COLOURS[band] for band in BANDS])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelbottom=False, labelsize=5.5)
    axes.locator_params(axis="x", nbins=3)


def _draw_radiographs(axes: Axes, card: pd.DataFrame, read_pixels: Callable[[str], np.ndarray]) -> None:
    """All radiographs of a card in one row; one panel for all is much faster to lay out than one each."""
    for place, edges in zip(_PLACES, _EDGES, strict=True):
        for left, row in zip(edges, card[card.place == place].itertuples(), strict=False):
            show_radiograph(axes, read_pixels(row.image_id), extent=(left, left + 1, 0, 1))
            axes.add_patch(
                Rectangle((left, 0), 1, 1, fill=False, edgecolor=BAND_COLOURS[row.band], linewidth=1.6, gid="frame")
            )
            axes.text(
                left + 0.5, -0.06, f"{row.distance:.2f} {'kept' if row.kept else 'dropped'}", fontsize=5.2,
                ha="center", va="top", color=INK if row.kept else GREY,
            )  # fmt: skip
    clear_frame(axes)
    axes.set(xlim=(-0.02, _EDGES[-1, -1] + 1.02), ylim=(-0.22, 1.04), aspect="equal")


def _describe(cards: pd.DataFrame, ledger: pd.DataFrame, *_, seed: int = 0) -> str:
    count, shown = ledger.prototype.nunique(), cards.prototype.nunique()
    which = "all" if shown == count else f"the {shown} most used of {count}"
    return (
        f"Prototype cards, {which} prototypes. Left: pairs assigned to the prototype (share of all pairs) and the "
        "share of them kept; middle: distances of its pairs, stacked by band; right: the three radiographs nearest to "
        "it, at the median and farthest, framed in the colour of their band, with distance and decision. Bands are "
        "cut within each super-batch, so equal distances can be of different bands. "
        f"n = {len(ledger):,} pairs, seed {seed}; counts of all pairs, no intervals."
    )


def _conclude(cards: pd.DataFrame, ledger: pd.DataFrame, *_) -> str:
    used = ledger.groupby("prototype").kept.agg(["size", "mean"]).sort_values("size", kind="stable")
    least, most = (
        f"{place} ({100 * row['size'] / len(ledger):.0f} % of the pairs, {100 * row['mean']:.0f} % kept)"
        for place, row in used.iloc[[0, -1]].iterrows()
    )
    return f"The most used prototype is {most}, the least used {least}."


prototype_cards = Figure("prototype_cards", _select, _plot, _describe, _conclude)
