"""Prototype cards: for each prototype the radiographs nearest to it, halfway and farthest, and what became of them."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch, Rectangle

from chexstudy.curation.online.decisions import BANDS
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import ACCENT, BAND_COLOURS, GREY, INK, PALE, add_legend, clear_frame, new_figure

PLACES = ("nearest", "median", "farthest")
_EACH = 3
_MOST_CARDS = 8


def list_prototype_cards(ledger: pd.DataFrame) -> pd.DataFrame:
    """The pairs shown on the cards of the most used prototypes; one with few members shows each of them once.

    Args:
        ledger: one epoch's decisions, with ``image_id``, ``prototype``, ``distance``, ``band`` and ``kept``.

    Returns:
        One row a radiograph, prototypes in their order: ``prototype``; its ``members``, their ``usage`` (share of all
        pairs) and ``keep_rate``; ``place``, ``image_id``, ``distance``, ``band``, ``kept``.
    """
    rows = []
    shown = np.sort(ledger.prototype.value_counts(sort=False).sort_index().nlargest(_MOST_CARDS, keep="first").index)
    for prototype in shown:
        members = ledger[ledger.prototype == prototype].sort_values(["distance", "image_id"]).reset_index(drop=True)
        whole = {
            "prototype": int(prototype),
            "members": len(members),
            "usage": len(members) / len(ledger),
            "keep_rate": float(members.kept.mean()),
        }
        for place, positions in _choose_positions(len(members)).items():
            for row in members.iloc[positions].itertuples():
                rows.append(
                    whole
                    | {"place": place, "image_id": row.image_id, "distance": float(row.distance)}
                    | {"band": row.band, "kept": bool(row.kept)}
                )
    names = ["prototype", "members", "usage", "keep_rate", "place", "image_id", "distance", "band", "kept"]
    return pd.DataFrame(rows, columns=names)


def _choose_positions(members: int) -> dict[str, list[int]]:
    """Positions in the order of distance for each place, none in two."""
    nearest = list(range(min(_EACH, members)))
    farthest = [position for position in range(max(members - _EACH, 0), members) if position not in nearest]
    start = max(0, (members - _EACH) // 2)
    median = [position for position in range(start, min(start + _EACH, members))]
    median = [position for position in median if position not in {*nearest, *farthest}]
    return dict(zip(PLACES, (nearest, median, farthest), strict=True))


def plot_prototype_cards(ledger: pd.DataFrame, read_pixels: Callable[[str], np.ndarray]) -> Drawing:
    """One row a prototype: its usage and share kept, the distances of its pairs by band, and nine of its radiographs.

    Args:
        read_pixels: from an ``image_id`` to its pixels ``(height, width)`` uint8.
    """
    require_rows(ledger, "curation decisions")
    cards = list_prototype_cards(ledger)
    shown = cards.prototype.unique()
    figure = new_figure(height_mm=18.5 * len(shown) + 12)
    grid = figure.subplots(len(shown), 3, squeeze=False, width_ratios=[1.5, 1.4, len(PLACES) * _EACH * 1.18])
    spans = ledger.distance.min(), ledger.distance.max()
    for line, prototype in enumerate(shown):
        card = cards[cards.prototype == prototype]
        _write_card(grid[line, 0], card.iloc[0])
        _draw_distances(grid[line, 1], ledger[ledger.prototype == prototype], spans, line == len(shown) - 1)
        _draw_radiographs(grid[line, 2], card, read_pixels)
    for place, column in zip(PLACES, _columns(), strict=True):
        grid[0, 2].text(column[0], 1.1, place, fontweight="bold", fontsize=7, va="bottom")
    grid[0, 1].set_title("distance", loc="left", fontweight="bold", fontsize=7)
    handles = [Patch(facecolor=BAND_COLOURS[band], label=f"{band} band") for band in BANDS]
    add_legend(figure, handles)
    return figure


def _write_card(axes: Axes, card: pd.Series) -> None:
    """The prototype's number, how many pairs it has, and a bar of the share kept."""
    clear_frame(axes)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.text(0, 0.86, f"Prototype {card.prototype}", fontweight="bold", va="center")
    axes.text(0, 0.62, f"{card.members:,} pairs ({100 * card.usage:.0f} %)", va="center", fontsize=6)
    axes.text(0, 0.42, f"{100 * card.keep_rate:.0f} % kept", va="center", fontsize=6)
    axes.barh(0.22, 0.92, 0.1, color=PALE)
    axes.barh(0.22, 0.92 * card.keep_rate, 0.1, color=ACCENT, gid="kept")


def _draw_distances(axes: Axes, members: pd.DataFrame, spans: tuple[float, float], with_ticks: bool) -> None:
    """Histogram of the members' distances, stacked by band."""
    edges = np.linspace(*spans, 25) if spans[1] > spans[0] else 10
    values = [members.distance[members.band == band].to_numpy(dtype=float) for band in BANDS]
    axes.hist(values, bins=edges, stacked=True, color=[BAND_COLOURS[band] for band in BANDS])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelbottom=with_ticks, labelsize=5.5)
    axes.locator_params(axis="x", nbins=3)


def _columns() -> np.ndarray:
    """Left edges of the radiographs ``(places, each)``, in widths of one; places stand a little apart."""
    edges = np.arange(len(PLACES) * _EACH, dtype=float).reshape(len(PLACES), _EACH)
    return edges * 1.08 + 0.14 * np.arange(len(PLACES))[:, None]


def _draw_radiographs(axes: Axes, card: pd.DataFrame, read_pixels: Callable[[str], np.ndarray]) -> None:
    """All radiographs of a card in one row; one panel for all is much faster to lay out than one each."""
    columns = _columns()
    for place, edges in zip(PLACES, columns, strict=True):
        for left, row in zip(edges, card[card.place == place].itertuples(), strict=False):
            axes.imshow(read_pixels(row.image_id), cmap="gray", vmin=0, vmax=255, extent=(left, left + 1, 0, 1))
            axes.add_patch(
                Rectangle((left, 0), 1, 1, fill=False, edgecolor=BAND_COLOURS[row.band], linewidth=1.6, gid="frame")
            )
            axes.text(
                left + 0.5, -0.06, f"{row.distance:.2f} {'kept' if row.kept else 'dropped'}", fontsize=5.2,
                ha="center", va="top", color=INK if row.kept else GREY,
            )  # fmt: skip
    clear_frame(axes)
    axes.set_xlim(-0.02, columns[-1, -1] + 1.02)
    axes.set_ylim(-0.22, 1.04)
    axes.set_aspect("equal")


def describe_prototype_cards(ledger: pd.DataFrame, *_, seed: int = 0) -> str:
    count, shown = ledger.prototype.nunique(), min(_MOST_CARDS, ledger.prototype.nunique())
    which = "all" if shown == count else f"the {shown} most used of {count}"
    return (
        f"Prototype cards, {which} prototypes. Left: pairs assigned to the prototype (share of all pairs) and the "
        "share of them kept; middle: distances of its pairs, stacked by band; right: the three radiographs nearest to "
        "it, at the median and farthest, framed in the colour of their band, with distance and decision. Bands are "
        "cut within each super-batch, so equal distances can be of different bands. "
        f"n = {len(ledger):,} pairs, seed {seed}; counts of all pairs, no intervals."
    )


def conclude_prototype_cards(ledger: pd.DataFrame, *_) -> str:
    """The most and the least used prototype, and what was kept of each."""
    used = ledger.groupby("prototype").kept.agg(["size", "mean"]).sort_values("size", kind="stable")
    words = [
        f"{100 * size / len(ledger):.0f} % of the pairs, {100 * kept:.0f} % kept" for size, kept in used.to_numpy()
    ]
    most, least = used.index[-1], used.index[0]
    return f"The most used prototype is {most} ({words[-1]}), the least used {least} ({words[0]})."


prototype_cards = Figure(
    name="prototype_cards",
    select=lambda ledger, _: list_prototype_cards(ledger),
    plot=plot_prototype_cards,
    describe=describe_prototype_cards,
    conclude=conclude_prototype_cards,
)
