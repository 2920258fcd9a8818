"""Marks on a map of pairs: bands, kept and dropped, regions of prototypes. Figures of maps are made of these.

A table of mapped pairs has one row a pair: ``image_id``, ``x``, ``y``, and from the ledger ``prototype``, ``distance``,
``band``, ``kept`` and ``step``. Points are rasterised in PDF, so that a map of many pairs stays a small file.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D
from scipy.ndimage import gaussian_filter

from chexstudy.curation.online.decisions import BANDS, LEDGER_BANDS
from chexstudy.plots.looks import ACCENT, BAND_COLOURS, BAND_MARKERS, GREY, INK, PALE
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import frame_map

_GRID = 120
_REGION = 0.75  # of a prototype's pairs lie within its outline
_DECISIONS = {"dropped": (PALE, 2.1), "kept": (ACCENT, 3.0)}  # colour and size
# A region of fewer pairs than this would be drawn around noise.
_FEWEST_IN_A_REGION = 12


def require_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Mapped pairs with a place, or a `StudyError` if there are none."""
    return require_rows(pairs[pairs.x.notna() & pairs.y.notna()].reset_index(drop=True), "mapped pairs")


def list_bands(pairs: pd.DataFrame) -> list[str]:
    """The bands of prototypes, and what the mismatch filter set aside if there is any."""
    return [band for band in LEDGER_BANDS if band in BANDS or (pairs.band == band).any()]


def draw_bands(axes: Axes, pairs: pd.DataFrame, size: float = 3.0) -> None:
    """Pairs coloured by band, the rare bands on top."""
    for order, (band, scale) in enumerate(zip(list_bands(pairs), (0.7, 1.3, 1.6, 1.6), strict=False), start=1):
        chosen = pairs[pairs.band == band]
        axes.scatter(
            chosen.x, chosen.y, s=size * scale, c=BAND_COLOURS[band], marker=BAND_MARKERS[band], zorder=order,
            linewidths=0.5 if band == "outlier" else 0, rasterized=True, gid=f"band {band}",
        )  # fmt: skip


def draw_decisions(axes: Axes, pairs: pd.DataFrame) -> None:
    """Dropped pairs pale, kept ones on top."""
    for name, (colour, size) in _DECISIONS.items():
        chosen = pairs[pairs.kept.to_numpy(dtype=bool) == (name == "kept")]
        axes.scatter(chosen.x, chosen.y, s=size, c=colour, linewidths=0, rasterized=True, gid=name, zorder=2)


def draw_background(axes: Axes, pairs: pd.DataFrame) -> None:
    """All pairs, pale, for what is drawn on top."""
    axes.scatter(pairs.x, pairs.y, s=1.5, c=PALE, linewidths=0, rasterized=True, zorder=1, gid="pairs")


def draw_density(axes: Axes, pairs: pd.DataFrame) -> PathCollection:
    """Pairs coloured by the percentile of their ``density``."""
    percentile = 100 * pairs.density.rank(pct=True).to_numpy()
    order = np.argsort(percentile, kind="stable")
    points = axes.scatter(
        pairs.x.iloc[order], pairs.y.iloc[order], c=percentile[order], s=1.6, cmap="cividis", linewidths=0,
        rasterized=True,
    )  # fmt: skip
    frame_map(axes, pairs)
    return points


def draw_regions(axes: Axes, pairs: pd.DataFrame) -> None:
    """Outline where each prototype's pairs lie: the densest area that holds three quarters of them."""
    spans = [(pairs[name].min(), pairs[name].max()) for name in ("x", "y")]
    edges = [
        np.linspace(low - 0.1 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6, _GRID + 1) for low, high in spans
    ]
    centres = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    for _, members in pairs.groupby("prototype"):
        if len(members) < _FEWEST_IN_A_REGION:
            continue
        counts, _, _ = np.histogram2d(members.x, members.y, bins=edges)
        density = gaussian_filter(counts, sigma=2.4)
        ordered = np.sort(density.ravel())[::-1]
        level = ordered[np.searchsorted(np.cumsum(ordered), _REGION * ordered.sum())]
        if 0 < level < density.max():
            axes.contour(*centres, density.T, levels=[level], colors=[INK], linewidths=0.6, alpha=0.7, zorder=4)


def draw_prototypes(axes: Axes, prototypes: pd.DataFrame, numbered: bool = True) -> None:
    """Prototypes as white stars, with their numbers."""
    axes.scatter(
        prototypes.x, prototypes.y, s=34, marker="*", c="white", edgecolors=INK, linewidths=0.8, zorder=6,
        gid="prototypes",
    )  # fmt: skip
    if numbered:
        for row in prototypes.itertuples():
            axes.annotate(
                str(row.prototype), (row.x, row.y), (3.5, 2), textcoords="offset points", fontsize=6.5, zorder=7,
                fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.2},
            )  # fmt: skip


def last_prototypes(trajectory: pd.DataFrame) -> pd.DataFrame:
    """The prototypes of the last snapshot."""
    return trajectory[trajectory.snapshot == trajectory.snapshot.max()]


def band_handles(pairs: pd.DataFrame) -> list[Line2D]:
    """Legend entries of the bands with the share of pairs in each."""
    return [
        Line2D(
            [], [], linestyle="none", marker=BAND_MARKERS[band], color=BAND_COLOURS[band], markersize=4,
            label=f"{band} ({100 * (pairs.band == band).mean():.0f} %)",
        )
        for band in list_bands(pairs)
    ]  # fmt: skip


def decision_handles(pairs: pd.DataFrame) -> list[Line2D]:
    """Legend entries of kept and dropped with their counts."""
    kept = int(pairs.kept.sum())
    return [
        Line2D(
            [], [], linestyle="none", marker="o", color=_DECISIONS[name][0], markersize=4, label=f"{name} ({count:,})"
        )
        for name, count in (("kept", kept), ("dropped", len(pairs) - kept))
    ]


PROTOTYPE_HANDLE = Line2D(
    [], [], linestyle="none", marker="*", color="white", markeredgecolor=INK, markersize=7, label="prototype"
)
REGION_HANDLE = Line2D([], [], color=INK, linewidth=0.6, label=f"{100 * _REGION:.0f} % of its pairs")
PATH_HANDLE = Line2D([], [], color=GREY, linewidth=1.0, label="path so far")
