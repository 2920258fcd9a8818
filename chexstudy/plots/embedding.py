"""The joint space before curation: a map of all training pairs, how dense it is where, and where the rare lie."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Drawing

from chexstudy.cohort.prevalence import NO_TIER, TIERS
from chexstudy.plots.figure import Figure
from chexstudy.plots.maps import draw_background
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import ACCENT, GREY, INK, clear_frame, frame_map, new_figure, title_panel

_TIER_NAMES = {NO_TIER: "no finding"} | {tier: tier for tier in TIERS}


def plot_embedding(pairs: pd.DataFrame) -> Drawing:
    """Map coloured by density, the same map with the tail findings marked, and density by prevalence tier.

    Args:
        pairs: one row a pair with ``x``, ``y``, ``density`` (larger is denser) and ``tier`` (the rarest tier among its
            findings, ``none`` if it has no finding); without ``tier``, the distribution of density beside the map.
    """
    require_rows(pairs, "mapped pairs")
    percentile = pairs.density.rank(pct=True).to_numpy() * 100
    with_tiers = "tier" in pairs
    figure = new_figure(66)
    left, *others = figure.subplots(1, 3, width_ratios=(1, 1, 0.9)) if with_tiers else figure.subplots(1, 2)
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
    bar = figure.colorbar(points, ax=[left, *others[:-1]], location="bottom", shrink=0.4, aspect=40, pad=0.02)
    bar.set_label("Density percentile (a)")
    bar.outline.set_visible(False)
    clear_frame(left)
    frame_map(left, pairs)
    title_panel(left, "a", "How dense")
    if not with_tiers:
        _draw_densities(others[0], pairs.density)
        title_panel(others[0], "b", "Local density of pairs")
        return figure
    middle, right = others
    rare = pairs[pairs.tier == TIERS[-1]]
    draw_background(middle, pairs)
    middle.scatter(rare.x, rare.y, s=5, c=ACCENT, linewidths=0, rasterized=True, zorder=2, gid="tail")
    clear_frame(middle)
    frame_map(middle, pairs)
    title_panel(middle, "b", f"Tail findings (n = {len(rare):,})")
    _draw_density_by_tier(right, pairs.tier, percentile)
    title_panel(right, "c", "Density by prevalence tier")
    return figure


def _draw_densities(axes, density: pd.Series) -> None:
    shown = density.clip(*density.quantile([0.002, 0.998]))
    sns.histplot(x=shown, bins=40, stat="percent", color=GREY, edgecolor="white", linewidth=0.3, ax=axes)
    axes.set_xlabel("Local density (right: denser)")
    axes.set_ylabel("Share of pairs (%)")


def _draw_density_by_tier(axes, tier: pd.Series, percentile: np.ndarray) -> None:
    counts = tier.value_counts()
    present = [name for name in _TIER_NAMES if counts.get(name, 0) > 1]
    sns.boxplot(
        x=percentile,
        y=tier.to_numpy(),
        order=present,
        hue=tier.to_numpy(),
        hue_order=present,
        palette={name: ACCENT if name == TIERS[-1] else "white" for name in present},
        legend=False,
        saturation=1,
        width=0.55,
        showfliers=False,
        linecolor=GREY,
        medianprops={"color": INK, "linewidth": 1.4},
        ax=axes,
    )
    axes.set_yticks(range(len(present)), [f"{_TIER_NAMES[name]}\n(n = {counts[name]:,})" for name in present])
    axes.set_xlabel("Density percentile")
    axes.set_ylabel("")
    axes.set_xlim(0, 100)


def describe_embedding(pairs: pd.DataFrame, seed: int = 0) -> str:
    text = (
        f"The joint image-text space of the scoring model, n = {len(pairs):,} training pairs (UMAP, seed {seed}; only "
        "neighbourhoods have meaning, not axes). a, local density: one over the mean distance to the nearest pairs, as "
        "a percentile. "
    )
    if "tier" not in pairs:
        return text + "b, its distribution over the pairs. No intervals."
    return text + (
        "b, pairs with a tail finding. c, density of pairs by the rarest tier among their findings (box: quartiles; "
        f"whiskers: 1.5 interquartile ranges). Median percentiles: {_state_medians(pairs)}. No intervals."
    )


def _state_medians(pairs: pd.DataFrame) -> str:
    medians = (pairs.density.rank(pct=True) * 100).groupby(pairs.tier).median()
    return "; ".join(f"{word} {medians[name]:.0f}" for name, word in _TIER_NAMES.items() if name in medians)


def conclude_embedding(pairs: pd.DataFrame) -> str:
    """Whether rare findings lie in thinner regions."""
    if "tier" not in pairs:
        return f"{len(pairs):,} pairs are mapped; without labels it cannot be told where the rare lie."
    return f"Median density percentile of the pairs by their rarest finding: {_state_medians(pairs)}."


embedding = Figure(
    name="embedding",
    select=lambda pairs: pairs.drop(columns="image_id"),
    plot=plot_embedding,
    describe=describe_embedding,
    conclude=conclude_embedding,
)
