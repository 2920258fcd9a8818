"""How prototypes move over the map of pairs while curation goes on."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing

from chexstudy.plots.figure import Figure
from chexstudy.plots.maps import (
    PATH_HANDLE,
    PROTOTYPE_HANDLE,
    band_handles,
    draw_background,
    draw_bands,
    draw_prototypes,
    last_prototypes,
    require_pairs,
)
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import GREY, add_legend, frame_map, new_figure, title_panel

_COLUMNS, _MOST_PANELS = 3, 6


def _select(pairs: pd.DataFrame, trajectory: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trajectory, and the pairs that have a place.

    Args:
        pairs: mapped pairs (`chexstudy.plots.maps`); ``step`` tells when each was scored. With a column ``stage`` there
            is one map a stage (`chexstudy.curation.records.stage_maps.join_stage_maps`).
        trajectory: ``snapshot, step, phase, prototype, x, y`` (`chexstudy.vectors.umap.trace_prototypes`), and
            ``stage`` where there are stages (`chexstudy.curation.records.stage_maps.trace_over_stages`).
    """
    return require_rows(trajectory, "prototype snapshots"), require_pairs(pairs)


def _plot(trajectory: pd.DataFrame, pairs: pd.DataFrame) -> Drawing:
    """The map at up to six snapshots: pairs scored since the snapshot before, by band, and the prototypes' paths."""
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


def _describe(trajectory: pd.DataFrame, pairs: pd.DataFrame, seed: int = 0) -> str:
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


def _conclude(trajectory: pd.DataFrame, _: pd.DataFrame) -> str:
    """How far the prototypes moved over the map, beside how far apart they ended."""
    ordered = trajectory.sort_values("snapshot").groupby("prototype")[["x", "y"]]
    moved = np.hypot(*(ordered.last() - ordered.first()).to_numpy().T)
    last = last_prototypes(trajectory)[["x", "y"]]
    apart = np.hypot(*(last - last.mean()).to_numpy().T).mean()
    return (
        f"From first to last snapshot prototypes moved {np.median(moved):.1f} units of the map (median, at most "
        f"{moved.max():.1f}); at the end they lie {apart:.1f} from their centre on average."
    )


prototype_evolution = Figure("prototype_evolution", _select, _plot, _describe, _conclude)
