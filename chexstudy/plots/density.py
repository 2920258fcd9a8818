"""Where in the feature space the kept pairs lie: in its dense middle or at its thin edges."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate, draw_seeds
from chexstudy.plots.measurements import require_rows, seed_values, select_rows, summarise_seeds
from chexstudy.plots.style import ACCENT, GREY, INK, PALE, arm_style, frame_map, new_figure, title_panel
from chexstudy.results import OVER_SEEDS, write_interval


def select_density(results: pd.DataFrame) -> pd.DataFrame:
    """The curated arm's keep rates by density tenth, with a column ``decile`` (1 the thinnest)."""
    rows = select_rows(results, "curation", arm="curated", metric="keep_rate", group="density")
    return rows.assign(decile=rows.finding.astype(int)).reset_index(drop=True)


def plot_density(pairs: pd.DataFrame, results: pd.DataFrame) -> Drawing:
    """The distribution of local density for kept and dropped pairs, keep rate by tenth, and density over the map.

    Args:
        pairs: one row a pair with ``density`` (larger is denser; any monotone measure) and ``kept``; with ``x`` and
            ``y``, coordinates of the map, a third panel shows where dense and thin are.
        results: rows of the results table, for the keep rates.
    """
    pairs, rates = pairs[pairs.density.notna()], select_density(results)
    if rates.empty:
        require_rows(pairs, "local density and no keep rate by density")
    with_map = {"x", "y"} <= set(pairs.columns) and len(pairs) > 0
    panels = [panel for panel, there in (("share", len(pairs)), ("rate", len(rates)), ("map", with_map)) if there]
    figure = new_figure(height_mm=62)
    axes = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    letters = dict(zip(panels, "abc", strict=False))
    if "share" in axes:
        _draw_distributions(axes["share"], pairs)
        title_panel(axes["share"], letters["share"], "Local density of pairs")
    if "rate" in axes:
        _draw_keep_rates(axes["rate"], rates)
        title_panel(axes["rate"], letters["rate"], "Kept, by density")
    if "map" in axes:
        _draw_density_map(axes["map"], pairs)
        title_panel(axes["map"], letters["map"], "Density over the map")
    return figure


def _draw_distributions(axes: Axes, pairs: pd.DataFrame) -> None:
    low, high = np.quantile(pairs.density, [0.002, 0.998])
    edges = np.linspace(low, high if high > low else low + 1e-6, 41)
    kept = pairs.kept.to_numpy(dtype=bool)
    density = pairs.density.clip(edges[0], edges[-1]).to_numpy()
    for values, label, colour, style, filled in (
        (density, "all", GREY, "-", True),
        (density[~kept], "dropped", INK, (0, (3, 1.5)), False),
        (density[kept], "kept", ACCENT, "-", False),
    ):
        if len(values):
            share, _ = np.histogram(values, edges)
            share = 100 * share / len(values)
            if filled:
                axes.stairs(share, edges, fill=True, color=PALE, label=f"{label}, n = {len(values):,}")
            else:
                axes.stairs(
                    share, edges, color=colour, linestyle=style, linewidth=1.2, label=f"{label}, {len(values):,}"
                )
    axes.set_xlabel("Local density (right: denser)")
    axes.set_ylabel("Share of pairs (%)")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.5)
    axes.legend(loc="upper left")


def _draw_keep_rates(axes: Axes, rows: pd.DataFrame) -> None:
    style = arm_style("curated")
    summary = summarise_seeds(rows)
    summary = summary.assign(decile=summary.finding.astype(int)).sort_values("decile")
    axes.plot(summary.decile, 100 * summary.value, color=style.colour, linewidth=0.6, alpha=0.6, zorder=1)
    for row in summary.itertuples():
        seeds = 100 * seed_values(rows, finding=row.finding)
        draw_seeds(axes, np.full(len(seeds), row.decile + 0.25), seeds, style)
        draw_estimate(axes, row.decile, 100 * row.value, 100 * row.ci_low, 100 * row.ci_high, style, vertical=True)
    axes.set_xticks(range(1, 11))
    axes.set_xlim(0.4, 10.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Tenth of local density (1 thinnest)")
    axes.set_ylabel("Kept (%)")
    axes.grid(axis="y", color="#ECECEC", linewidth=0.5)


def _draw_density_map(axes: Axes, pairs: pd.DataFrame) -> None:
    rank = pairs.density.rank(pct=True).to_numpy()
    order = np.argsort(rank, kind="stable")
    points = axes.scatter(
        pairs.x.to_numpy()[order], pairs.y.to_numpy()[order], c=100 * rank[order], s=1.6, cmap="cividis", linewidths=0,
        rasterized=True, vmin=0, vmax=100,
    )  # fmt: skip
    frame_map(axes, pairs)
    bar = axes.figure.colorbar(points, ax=axes, shrink=0.75, aspect=24, pad=0.02)
    bar.set_label("Percentile of density")
    bar.outline.set_visible(False)


def describe_density(pairs: pd.DataFrame, results: pd.DataFrame, seed: int = 0) -> str:
    """The caption of `plot_density`; ``seed`` is that of ``pairs``."""
    pairs, rows = pairs[pairs.density.notna()], select_density(results)
    parts = ["Local density of pairs in the joint feature space, and what curation keeps of it."]
    letters = iter("abc")
    if len(pairs):
        parts.append(
            f"{next(letters)}, density of n = {len(pairs):,} scored pairs, of which {int(pairs.kept.sum()):,} kept, "
            f"seed {seed}; counts, no interval."
        )
    if len(rows):
        seeds = rows.seed[rows.seed != OVER_SEEDS].nunique()
        marks = f"Large marks are {seeds} seeds together, small ones single seeds" if seeds > 1 else "One seed"
        bars = "Wilson's with patients as clusters" if seeds == 1 else "Wilson's with patients and seeds as clusters"
        interval = f"bars are 95 % intervals ({bars})" if summarise_seeds(rows).ci_low.notna().any() else "no intervals"
        parts.append(
            f"{next(letters)}, keep rates by tenth of density, about {int(rows.n.median()):,} pairs each. "
            f"{marks}; {interval}."
        )
    if {"x", "y"} <= set(pairs.columns) and len(pairs):
        parts.append(f"{next(letters)}, the same densities over the map of the pairs (UMAP; axes have no meaning).")
    return " ".join(parts)


def conclude_density(pairs: pd.DataFrame, results: pd.DataFrame) -> str:
    """What was kept of the thinnest and of the densest tenth."""
    summary = summarise_seeds(select_density(results)).set_index("finding")
    if not {"1", "10"} <= set(summary.index):
        return f"{int(pairs.kept.sum()):,} of {len(pairs):,} pairs were kept; keep rates by density were not measured."
    shares = 100 * summary.loc[["1", "10"], ["value", "ci_low", "ci_high"]].astype(float)
    thinnest, densest = (write_interval(*share, ".1f") for share in shares.to_numpy())
    return f"Of the thinnest tenth of pairs {thinnest} % were kept, of the densest {densest} %."


density = Figure(
    name="density",
    select=lambda _, results: select_density(results),
    plot=plot_density,
    describe=describe_density,
    conclude=conclude_density,
)
