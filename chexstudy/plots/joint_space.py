"""Dense and thin regions of the joint space: where the rare lie, and what curation keeps of them."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from chexstudy.cohort.prevalence import NO_TIER, TIERS
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate, draw_seeds
from chexstudy.plots.looks import ACCENT, GREY, INK, PALE, arm_style
from chexstudy.plots.maps import draw_background, draw_density
from chexstudy.plots.measurements import interval, require_rows, seed_values, select_rows, summarise_seeds
from chexstudy.plots.style import add_colour_bar, frame_map, new_figure, title_panel
from chexstudy.plots.words import write_row
from chexstudy.results import OVER_SEEDS

_TIER_NAMES = {NO_TIER: "no finding"} | {tier: tier for tier in TIERS}


def _select_embedding(pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """The pairs without their names, and their percentiles of density (larger is denser).

    ``tier`` is the rarest among the findings of a pair, ``none`` if it has none; there is none without labels.
    """
    return require_rows(pairs, "mapped pairs").drop(columns="image_id"), pairs.density.rank(pct=True) * 100


def _plot_embedding(pairs: pd.DataFrame, percentile: pd.Series) -> Drawing:
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
        shown, axes = pairs.density.clip(*pairs.density.quantile([0.002, 0.998])), others[0]
        sns.histplot(x=shown, bins=40, stat="percent", color=GREY, edgecolor="white", linewidth=0.3, ax=axes)
        axes.set(xlabel="Local density (right: denser)", ylabel="Share of pairs (%)")
        title_panel(axes, "b", "Local density of pairs")
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


def _describe_embedding(pairs: pd.DataFrame, percentile: pd.Series, seed: int = 0) -> str:
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


def _conclude_embedding(pairs: pd.DataFrame, percentile: pd.Series) -> str:
    if "tier" not in pairs:
        return f"{len(pairs):,} pairs are mapped; without labels it cannot be told where the rare lie."
    return f"Median density percentile of the pairs by their rarest finding: {_state_medians(pairs, percentile)}."


embedding = Figure("embedding", _select_embedding, _plot_embedding, _describe_embedding, _conclude_embedding)


def _select_density(pairs: pd.DataFrame, results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curated arm's keep rates by density tenth (``decile``, 1 the thinnest), and the pairs whose density is known.

    Pairs have ``density`` (larger is denser; any monotone measure) and ``kept``; where they have ``x`` and ``y``,
    coordinates of the map, a third panel shows where dense and thin are.
    """
    rates = select_rows(results, "curation", arm="curated", metric="keep_rate", group="density")
    pairs = pairs[pairs.density.notna()]
    if rates.empty:
        require_rows(pairs, "local density and no keep rate by density")
    return rates.assign(decile=rates.finding.astype(int)), pairs


def _list_panels(rates: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, str]:
    """The letters of the panels there are numbers for."""
    there = {"share": len(pairs), "rate": len(rates), "map": len(pairs) and {"x", "y"} <= set(pairs)}
    return dict(zip([panel for panel, numbers in there.items() if numbers], "abc", strict=False))


def _plot_density(rates: pd.DataFrame, pairs: pd.DataFrame) -> Drawing:
    letters = _list_panels(rates, pairs)
    titles = {"share": "Local density of pairs", "rate": "Kept, by density", "map": "Density over the map"}
    grid = new_figure(height_mm=62).subplots(1, len(letters), squeeze=False)[0]
    for axes, (panel, letter) in zip(grid, letters.items(), strict=True):
        if panel == "share":
            _draw_distributions(axes, pairs)
        elif panel == "rate":
            _draw_keep_rates(axes, rates)
        else:
            points = draw_density(axes, pairs)
            points.set_clim(0, 100)
            add_colour_bar(points, axes, "Percentile of density", shrink=0.75, aspect=24)
        title_panel(axes, letter, titles[panel])
    return grid[0].figure


def _draw_distributions(axes: Axes, pairs: pd.DataFrame) -> None:
    low, high = np.quantile(pairs.density, [0.002, 0.998])
    edges = np.linspace(low, high if high > low else low + 1e-6, 41)
    kept = pairs.kept.to_numpy(dtype=bool)
    density = pairs.density.clip(edges[0], edges[-1]).to_numpy()
    looks = {
        "all, n =": (density, {"color": PALE, "fill": True}),
        "dropped,": (density[~kept], {"color": INK, "linestyle": (0, (3, 1.5)), "linewidth": 1.2}),
        "kept,": (density[kept], {"color": ACCENT, "linestyle": "-", "linewidth": 1.2}),
    }
    for word, (values, look) in looks.items():
        if len(values):
            share = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(share, edges, label=f"{word} {len(values):,}", **look)
    axes.set(xlabel="Local density (right: denser)", ylabel="Share of pairs (%)", ylim=(0, axes.get_ylim()[1] * 1.5))
    axes.legend(loc="upper left")


def _draw_keep_rates(axes: Axes, rates: pd.DataFrame) -> None:
    style, summary = arm_style("curated"), summarise_seeds(rates)
    summary = summary.assign(decile=summary.finding.astype(int)).sort_values("decile")
    axes.plot(summary.decile, 100 * summary.value, color=style.colour, linewidth=0.6, alpha=0.6, zorder=1)
    for row in summary.itertuples():
        draw_seeds(axes, row.decile + 0.25, 100 * seed_values(rates, finding=row.finding), style, vertical=True)
        draw_estimate(axes, row.decile, interval(row, 100), style, vertical=True)
    axes.set(xticks=range(1, 11), xlim=(0.4, 10.6), ylim=(0, None))
    axes.set(xlabel="Tenth of local density (1 thinnest)", ylabel="Kept (%)")
    axes.grid(axis="y")


def _describe_density(rates: pd.DataFrame, pairs: pd.DataFrame, seed: int = 0) -> str:
    letters = _list_panels(rates, pairs)
    parts = ["Local density of pairs in the joint feature space, and what curation keeps of it."]
    if "share" in letters:
        parts.append(
            f"a, density of n = {len(pairs):,} scored pairs, of which {int(pairs.kept.sum()):,} kept, seed {seed}; "
            "counts, no interval."
        )
    if "rate" in letters:
        seeds = rates.seed[rates.seed != OVER_SEEDS].nunique()
        marks = f"Large marks are {seeds} seeds together, small ones single seeds" if seeds > 1 else "One seed"
        bars = f"bars are 95 % intervals (Wilson's with patients{' and seeds' * (seeds > 1)} as clusters)"
        parts.append(
            f"{letters['rate']}, keep rates by tenth of density, about {int(rates.n.median()):,} pairs each. {marks}; "
            f"{bars if summarise_seeds(rates).ci_low.notna().any() else 'no intervals'}."
        )
    if "map" in letters:
        parts.append(f"{letters['map']}, the same densities over the map of the pairs (UMAP; axes have no meaning).")
    return " ".join(parts)


def _conclude_density(rates: pd.DataFrame, pairs: pd.DataFrame) -> str:
    summary = summarise_seeds(rates).set_index("finding")
    if not {"1", "10"} <= set(summary.index):
        return f"{int(pairs.kept.sum()):,} of {len(pairs):,} pairs were kept; keep rates by density were not measured."
    thinnest, densest = (write_row(summary.loc[tenth], ".1f", 100) for tenth in ("1", "10"))
    return f"Of the thinnest tenth of pairs {thinnest} % were kept, of the densest {densest} %."


density = Figure("density", _select_density, _plot_density, _describe_density, _conclude_density)
