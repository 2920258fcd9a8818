"""Prototypes on a map of pairs: the framework with its bands and decisions, and how they move over training."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from chexstudy.curation.online.decisions import BANDS
from chexstudy.plots.figure import Figure
from chexstudy.plots.looks import BAND_COLOURS, BAND_MARKERS, GREY, INK
from chexstudy.plots.maps import (
    PATH_HANDLE,
    PROTOTYPE_HANDLE,
    REGION_HANDLE,
    band_handles,
    decision_handles,
    draw_background,
    draw_bands,
    draw_decisions,
    draw_prototypes,
    draw_regions,
    last_prototypes,
    list_bands,
    require_pairs,
)
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_legend, clear_frame, frame_map, new_figure, show_radiograph, title_panel

_PLACES = ("nearest", "median", "farthest")
_MOST_SHOWN = 3
_COLUMNS, _MOST_PANELS = 3, 6


def _select_framework(pairs: pd.DataFrame, trajectory: pd.DataFrame, read_pixels: Callable[[str], np.ndarray]) -> tuple:
    """Pairs and kept pairs by prototype and band, the pairs that have a place, and the prototypes of the last snapshot.

    ``trajectory`` is of `chexstudy.vectors.umap.trace_prototypes`; ``read_pixels`` gives the pixels ``(height, width)``
    uint8 of an ``image_id``.
    """
    pairs = require_pairs(pairs)
    counts = pairs.groupby(["prototype", "band"]).agg(
        pairs=("kept", "size"), kept=("kept", "sum"), median_distance=("distance", "median")
    )
    return counts.reset_index(), pairs, last_prototypes(trajectory), read_pixels


def _plot_framework(_: pd.DataFrame, pairs: pd.DataFrame, prototypes: pd.DataFrame, read_pixels: Callable) -> Drawing:
    figure = new_figure(height_mm=128)
    strips = figure.subfigures(3, 1, height_ratios=[0.24, 1.0, 0.42])
    _draw_pipeline(strips[0].subplots(), pairs)
    bands, decisions, distances = strips[1].subplots(1, 3, width_ratios=[1, 1, 0.8])
    draw_bands(bands, pairs)
    draw_regions(bands, pairs)
    draw_prototypes(bands, prototypes)
    title_panel(bands, "b", "Bands around prototypes")
    draw_decisions(decisions, pairs)
    draw_prototypes(decisions, prototypes, numbered=False)
    title_panel(decisions, "c", "Kept and dropped")
    for axes in (bands, decisions):
        frame_map(axes, pairs)
    handles = [*band_handles(pairs), PROTOTYPE_HANDLE, REGION_HANDLE, *decision_handles(pairs)]
    strips[1].legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=0.9)
    _draw_distances(distances, pairs)
    title_panel(distances, "d", "Distance to prototype")
    _draw_examples(strips[2], pairs, read_pixels)
    return figure


def _draw_pipeline(axes: Axes, pairs: pd.DataFrame) -> None:
    shares = pairs.band.value_counts(normalize=True).mul(100).reindex(list(BANDS), fill_value=0.0)
    kept = int(pairs.kept.sum())
    steps = (
        ("Score", f"{len(pairs):,} pairs,\nno gradient"),
        ("Assign", f"to {pairs.prototype.nunique()} prototypes\nby distance"),
        ("Band", " / ".join(f"{shares[band]:.0f}" for band in BANDS) + " %\ncentral / support / outlier"),
        ("Select", "thin central, keep\nsupport, drop outlier"),
        ("Train", f"on {kept:,} pairs\n({100 * kept / len(pairs):.1f} % kept)"),
    )
    axes.set(xlim=(0, len(steps)), ylim=(0, 1))
    clear_frame(axes)
    for place, (verb, text) in enumerate(steps):
        axes.add_patch(
            FancyBboxPatch(
                (place + 0.04, 0.06), 0.84, 0.88, boxstyle="round,pad=0,rounding_size=0.05", mutation_aspect=0.4,
                facecolor="#F6F6F6", edgecolor=GREY, linewidth=0.6,
            )
        )  # fmt: skip
        axes.text(place + 0.46, 0.76, verb, ha="center", va="center", fontweight="bold")
        axes.text(place + 0.46, 0.36, text, ha="center", va="center", fontsize=6.5, linespacing=1.25)
        if place:
            axes.add_patch(
                FancyArrowPatch((place - 0.12, 0.5), (place + 0.04, 0.5), arrowstyle="-|>", mutation_scale=7, lw=0.8,
                                color=INK, shrinkA=0.5, shrinkB=0.5)
            )  # fmt: skip
    title_panel(axes, "a", "Curation, from scoring to training")


def _draw_distances(axes: Axes, pairs: pd.DataFrame) -> None:
    """Every pair at its distance, one line a prototype; filled if kept."""
    order = np.sort(pairs.prototype.unique())
    line_of = {prototype: line for line, prototype in enumerate(order)}
    # A fixed pattern spreads the points of a line; it carries no meaning.
    spread = ((np.arange(len(pairs)) * 0.6180339887) % 1 - 0.5) * 0.72
    y = pairs.prototype.map(line_of).to_numpy(dtype=float) + spread
    kept = pairs.kept.to_numpy(dtype=bool)
    for band in list_bands(pairs):
        chosen = (pairs.band == band).to_numpy()
        for decision, size, alpha in ((False, 1.2, 0.35), (True, 2.6, 1.0)):
            mask = chosen & (kept == decision)
            axes.scatter(
                pairs.distance[mask], y[mask], s=size if band != "outlier" else 3, c=BAND_COLOURS[band],
                marker=BAND_MARKERS[band], linewidths=0.4 if band == "outlier" else 0,
                alpha=1.0 if band == "outlier" else alpha, rasterized=True,
            )  # fmt: skip
    axes.set_yticks(range(len(order)), [str(prototype) for prototype in order])
    if len(order) > 16:
        axes.set_yticks(range(0, len(order), 8), [str(prototype) for prototype in order[::8]])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(order) - 0.5, -0.5), ylabel="Prototype", xlabel="Distance (pale: dropped)")


def choose_examples(pairs: pd.DataFrame) -> pd.DataFrame:
    """The nearest, median and farthest pair of each of the largest prototypes, one row an image."""
    rows = []
    for prototype in pairs.prototype.value_counts().index[:_MOST_SHOWN]:
        members = pairs[pairs.prototype == prototype].sort_values(["distance", "image_id"])
        for place, position in zip(_PLACES, (0, len(members) // 2, len(members) - 1), strict=True):
            rows.append(members.iloc[position].to_dict() | {"place": place})
    return pd.DataFrame(rows)


def _draw_examples(figure, pairs: pd.DataFrame, read_pixels: Callable[[str], np.ndarray]) -> None:
    examples = choose_examples(pairs)
    axes = figure.subplots(1, len(examples), squeeze=False)[0]
    for position, (one, row) in enumerate(zip(axes, examples.itertuples(), strict=True)):
        show_radiograph(one, read_pixels(row.image_id))
        one.set(xticks=[], yticks=[])
        one.spines[:].set(visible=True, color=BAND_COLOURS[row.band], linewidth=1.6)
        one.set_xlabel(f"{row.place}\n{'kept' if row.kept else 'dropped'}", fontsize=6.5)
        if row.place == _PLACES[0]:
            one.set_title(f"prototype {row.prototype}", fontsize=6.5)
        if position == 0:
            title_panel(one, "e", f"prototype {row.prototype}")


def _describe_framework(_: pd.DataFrame, pairs: pd.DataFrame, *__, seed: int = 0) -> str:
    by_band = pairs.groupby("band").kept.agg(["size", "sum"]).reindex(list_bands(pairs), fill_value=0)
    counts = "; ".join(f"{band} {int(row['sum']):,} of {int(row['size']):,} kept" for band, row in by_band.iterrows())
    return (
        "Prototype-driven curation on a map of all scored pairs (UMAP of their joint image and text features; only "
        "neighbourhoods have meaning, not axes). a, the curator's steps. b, bands of distance within each super-batch, "
        "with outlines of the prototypes' regions. c, decisions. d, distance of every pair to its prototype. "
        f"Stars: prototypes after curation, placed between their nearest pairs. n = {len(pairs):,} pairs, "
        f"{int(pairs.kept.sum()):,} kept ({100 * pairs.kept.mean():.1f} %): {counts}. Seed {seed}; counts of all "
        "pairs, no intervals."
    )


def _conclude_framework(_: pd.DataFrame, pairs: pd.DataFrame, *__) -> str:
    bands = pairs.groupby("band").kept.mean().mul(100).reindex(list_bands(pairs)).dropna()
    of_bands = ", ".join(f"{share:.0f} % of the {band} band" for band, share in bands.items())
    return f"{int(pairs.kept.sum()):,} of {len(pairs):,} pairs were kept ({100 * pairs.kept.mean():.1f} %): {of_bands}."


framework = Figure("framework", _select_framework, _plot_framework, _describe_framework, _conclude_framework)


def _select_evolution(pairs: pd.DataFrame, trajectory: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trajectory, and the pairs that have a place; where both have a ``stage``, there is one map a stage.

    See `chexstudy.curation.records.stage_maps.join_stage_maps` and `chexstudy.vectors.umap.trace_prototypes`.
    """
    return require_rows(trajectory, "prototype snapshots"), require_pairs(pairs)


def _plot_evolution(trajectory: pd.DataFrame, pairs: pd.DataFrame) -> Drawing:
    shown = choose_snapshots(trajectory)
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(height_mm=58 * rows + 9)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    corners, before = _corners(pairs, trajectory), -np.inf
    for axes, snapshot, letter in zip(grid, shown, "abcdef", strict=False):
        at = trajectory[trajectory.snapshot == snapshot]
        step = at.step.iloc[0]
        on_map = pairs[pairs.stage == at.stage.iloc[0]] if has_stages(pairs, trajectory) else pairs
        # A snapshot carries the number of steps done before it; pairs scored in those steps shaped it.
        since = on_map[(on_map.step >= before) & (on_map.step < step)] if len(shown) > 1 else on_map
        draw_background(axes, on_map)
        draw_bands(axes, since, size=3.5)
        for _, path in trajectory[trajectory.snapshot <= snapshot].groupby("prototype"):
            axes.plot(path.x, path.y, color=GREY, linewidth=1.0, zorder=5, gid="path")
        draw_prototypes(axes, at)
        frame_map(axes, corners)
        title_panel(axes, letter, f"step {step:,} · " + (f"{len(since):,} scored" if len(since) else "start"))
        before = step
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    add_legend(figure, [*band_handles(pairs), PROTOTYPE_HANDLE, PATH_HANDLE])
    return figure


def _corners(pairs: pd.DataFrame, trajectory: pd.DataFrame) -> pd.DataFrame:
    """Points whose frame holds every stage: one frame for all, so that what moves in the picture moves on the map."""
    if not has_stages(pairs, trajectory):
        return pairs
    edges = pairs.groupby("stage")[["x", "y"]].quantile([0.002, 0.998])
    return pd.concat([edges, trajectory[["x", "y"]]], ignore_index=True)


def has_stages(pairs: pd.DataFrame, trajectory: pd.DataFrame) -> bool:
    """Whether there is a map a stage, and not one for all snapshots."""
    return "stage" in pairs and "stage" in trajectory


def choose_snapshots(trajectory: pd.DataFrame) -> list[int]:
    """Up to six snapshots, evenly spaced, the first and the last among them; with stages, the ends of stages."""
    snapshots = np.sort(trajectory.snapshot.unique())
    if "stage" in trajectory:
        # The start and the last snapshot of each stage, so that a panel shows all that is new on its map.
        ends = trajectory.groupby("stage").snapshot.max().to_numpy()
        snapshots = np.unique(np.concatenate([snapshots[:1], ends]))
    places = np.linspace(0, len(snapshots) - 1, min(_MOST_PANELS, len(snapshots)))
    return [int(snapshots[round(float(place))]) for place in places]


def _describe_evolution(trajectory: pd.DataFrame, pairs: pd.DataFrame, seed: int = 0) -> str:
    shown, every = len(choose_snapshots(trajectory)), trajectory.snapshot.nunique()
    maps = (
        f"One map (UMAP of the joint features of all scored pairs, fitted once; axes have no meaning) at {shown} of "
        f"{every} snapshots. Coloured: pairs scored since the snapshot before, by band; grey: all others."
    )
    if has_stages(pairs, trajectory):
        maps = (
            f"Maps of {pairs.stage.nunique()} stages (UMAP of the joint features at which pairs were scored; each map "
            "starts from the one before, and pairs on both stay near their places; axes have no meaning) at "
            f"{shown} of {every} snapshots. Coloured: pairs scored since the panel before, by band; grey: other pairs "
            "of the stage."
        )
    return (
        f"Prototypes over training. {maps} Stars and lines: prototypes, placed between their nearest pairs, and their "
        f"paths so far. n = {pairs.image_id.nunique():,} pairs, {trajectory.prototype.nunique()} prototypes, seed "
        f"{seed}; no intervals."
    )


def _conclude_evolution(trajectory: pd.DataFrame, _: pd.DataFrame) -> str:
    ordered = trajectory.sort_values("snapshot").groupby("prototype")[["x", "y"]]
    moved = np.hypot(*(ordered.last() - ordered.first()).to_numpy().T)
    last = last_prototypes(trajectory)[["x", "y"]]
    apart = np.hypot(*(last - last.mean()).to_numpy().T).mean()
    return (
        f"From first to last snapshot prototypes moved {np.median(moved):.1f} units of the map (median, at most "
        f"{moved.max():.1f}); at the end they lie {apart:.1f} from their centre on average."
    )


prototype_evolution = Figure(
    "prototype_evolution", _select_evolution, _plot_evolution, _describe_evolution, _conclude_evolution
)
