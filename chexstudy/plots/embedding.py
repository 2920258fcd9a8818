"""The joint space before curation: a map of all training pairs, how dense it is where, and where the rare lie."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from chexstudy.cohort.prevalence import NO_TIER, TIERS
from chexstudy.plots.figure import Figure
from chexstudy.plots.maps import draw_background, draw_density
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import ACCENT, GREY, INK, add_colour_bar, frame_map, new_figure, title_panel

_TIER_NAMES = {NO_TIER: "no finding"} | {tier: tier for tier in TIERS}


def _select(pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """The pairs without their names, and their percentiles of density.

    Args:
        pairs: one row a pair with ``x``, ``y``, ``density`` (larger is denser) and ``tier`` (the rarest tier among its
            findings, ``none`` if it has no finding; no such column without labels).
    """
    return require_rows(pairs, "mapped pairs").drop(columns="image_id"), pairs.density.rank(pct=True) * 100


def _plot(pairs: pd.DataFrame, percentile: pd.Series) -> Drawing:
    """Map coloured by density, the same map with the tail findings marked, and density by prevalence tier.

    Without tiers, the distribution of density beside the map.
    """
    figure, with_tiers = new_figure(66), "tier" in pairs
    left, *others = figure.subplots(1, 3, width_ratios=(1, 1, 0.9)) if with_tiers else figure.subplots(1, 2)
    points = draw_density(left, pairs)
    beside = [left, *others[:-1]]
    add_colour_bar(points, beside, "Density percentile (a)", location="bottom", shrink=0.4, aspect=40)
    title_panel(left, "a", "How dense")
    if not with_tiers:
        _draw_densities(others[0], pairs.density)
        return figure
    middle, right = others
    rare = pairs[pairs.tier == TIERS[-1]]
    draw_background(middle, pairs)
    middle.scatter(rare.x, rare.y, s=5, c=ACCENT, linewidths=0, rasterized=True, zorder=2, gid="tail")
    frame_map(middle, pairs)
    title_panel(middle, "b", f"Tail findings (n = {len(rare):,})")
    _draw_density_by_tier(right, pairs.tier, percentile)
    title_panel(right, "c", "Density by prevalence tier")
    return figure


def _draw_densities(axes: Axes, density: pd.Series) -> None:
    shown = density.clip(*density.quantile([0.002, 0.998]))
    sns.histplot(x=shown, bins=40, stat="percent", color=GREY, edgecolor="white", linewidth=0.3, ax=axes)
    axes.set(xlabel="Local density (right: denser)", ylabel="Share of pairs (%)")
    title_panel(axes, "b", "Local density of pairs")


def _draw_density_by_tier(axes: Axes, tier: pd.Series, percentile: pd.Series) -> None:
    counts = tier.value_counts()
    present = [name for name in _TIER_NAMES if counts.get(name, 0) > 1]
    sns.boxplot(
        x=percentile.to_numpy(), y=tier.to_numpy(), order=present, hue=tier.to_numpy(), hue_order=present,
        palette={name: ACCENT if name == TIERS[-1] else "white" for name in present}, legend=False, saturation=1,
        width=0.55, showfliers=False, linecolor=GREY, medianprops={"color": INK, "linewidth": 1.4}, ax=axes,
    )  # fmt: skip
    axes.set_yticks(range(len(present)), [f"{_TIER_NAMES[name]}\n(n = {counts[name]:,})" for name in present])
    axes.set(xlabel="Density percentile", ylabel="", xlim=(0, 100))


def _describe(pairs: pd.DataFrame, percentile: pd.Series, seed: int = 0) -> str:
    text = (
        f"The joint image-text space of the scoring model, n = {len(pairs):,} training pairs (UMAP, seed {seed}; only "
        "neighbourhoods have meaning, not axes). a, local density: one over the mean distance to the nearest pairs, as "
        "a percentile. "
    )
    if "tier" not in pairs:
        return text + "b, its distribution over the pairs. No intervals."
    return text + (
        "b, pairs with a tail finding. c, density of pairs by the rarest tier among their findings (box: quartiles; "
        f"whiskers: 1.5 interquartile ranges). Median percentiles: {_state_medians(pairs, percentile)}. No intervals."
    )


def _state_medians(pairs: pd.DataFrame, percentile: pd.Series) -> str:
    medians = percentile.groupby(pairs.tier).median()
    return "; ".join(f"{word} {medians[name]:.0f}" for name, word in _TIER_NAMES.items() if name in medians)


def _conclude(pairs: pd.DataFrame, percentile: pd.Series) -> str:
    """Whether rare findings lie in thinner regions."""
    if "tier" not in pairs:
        return f"{len(pairs):,} pairs are mapped; without labels it cannot be told where the rare lie."
    return f"Median density percentile of the pairs by their rarest finding: {_state_medians(pairs, percentile)}."


embedding = Figure("embedding", _select, _plot, _describe, _conclude)
