"""The joint space before curation: a map of all training pairs, how dense it is where, and where the rare lie."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from chexstudy.plots.maps import draw_background
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import ACCENT, GREY, INK, clear_frame, frame_map, new_figure, title_panel

_MADE_BY = "02_embed_pairs"
_TIERS = ("none", "head", "medium", "tail")
_TIER_NAMES = {"none": "no finding", "head": "head", "medium": "medium", "tail": "tail"}


def plot_embedding(pairs: pd.DataFrame) -> Figure:
    """Map coloured by density, the same map with the tail findings marked, and density by prevalence tier.

    Args:
        pairs: one row a pair with ``x``, ``y``, ``density`` (larger is denser) and ``tier`` (the rarest tier among its
            findings, ``none`` if it has no finding).

    Raises:
        StudyError: there are no pairs.
    """
    require_rows(pairs, "mapped pairs", _MADE_BY)
    percentile = pairs.density.rank(pct=True).to_numpy() * 100
    figure = new_figure(62)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    order = np.argsort(percentile, kind="stable")
    points = left.scatter(
        pairs.x.iloc[order],
        pairs.y.iloc[order],
        c=percentile[order],
        s=1.6,
        cmap="cividis",
        linewidths=0,
        rasterized=True,
    )
    bar = figure.colorbar(points, ax=left, location="bottom", shrink=0.7, aspect=30, pad=0.03)
    bar.set_label("Density percentile")
    bar.outline.set_visible(False)
    draw_background(middle, pairs)
    rare = pairs[pairs.tier == "tail"]
    middle.scatter(rare.x, rare.y, s=5, c=ACCENT, linewidths=0, rasterized=True, zorder=2, gid="tail")
    for axes, letter, title in ((left, "a", "How dense"), (middle, "b", f"Tail findings (n = {len(rare):,})")):
        clear_frame(axes)
        frame_map(axes, pairs)
        title_panel(axes, letter, title)
    _draw_density_by_tier(right, pairs.tier.to_numpy(), percentile)
    title_panel(right, "c", "Density by prevalence tier")
    return figure


def _draw_density_by_tier(axes, tier: np.ndarray, percentile: np.ndarray) -> None:
    present = [name for name in _TIERS if (tier == name).sum() > 1]
    groups = [percentile[tier == name] for name in present]
    parts = axes.boxplot(
        groups,
        vert=False,
        widths=0.55,
        showfliers=False,
        patch_artist=True,
        medianprops={"color": INK, "linewidth": 1.4},
    )
    for name, box in zip(present, parts["boxes"], strict=True):
        box.set(facecolor=ACCENT if name == "tail" else "white", edgecolor=GREY, alpha=0.8)
    for line in (*parts["whiskers"], *parts["caps"]):
        line.set_color(GREY)
    names = [f"{_TIER_NAMES[name]}\n(n = {len(group):,})" for name, group in zip(present, groups, strict=True)]
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.invert_yaxis()
    axes.set_xlabel("Density percentile")
    axes.set_xlim(0, 100)


def describe_embedding(pairs: pd.DataFrame, seed: int = 0) -> str:
    """The caption of `plot_embedding`."""
    medians = (pairs.density.rank(pct=True) * 100).groupby(pairs.tier).median()
    known = "; ".join(f"{_TIER_NAMES[name]} {medians[name]:.0f}" for name in _TIERS if name in medians)
    return (
        f"The joint image-text space of the scoring model, n = {len(pairs):,} training pairs (UMAP, seed {seed}; only "
        "neighbourhoods have meaning, not axes). a, local density: one over the mean distance to the nearest pairs, as "
        "a percentile. b, pairs with a tail finding. c, density of pairs by the rarest tier among their findings (box: "
        f"quartiles; whiskers: 1.5 interquartile ranges). Median percentiles: {known}. No intervals."
    )
