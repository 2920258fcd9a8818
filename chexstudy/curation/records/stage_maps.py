"""Maps of the stages of curation, chained: each starts where the one before ended, so that points move smoothly.

The model goes on learning while it curates, so features of different steps are not of one space. A stage gathers the
pairs scored in one stretch of steps, or in one epoch where there are several, and has a map of its own. Fitted apart,
maps of nearly the same pairs can differ by any rotation and by any arrangement of their islands. Here pairs that were
on the map before start at their old places and new ones between their nearest neighbours there; after a short fit the
map is laid over the last one by the pairs both show.

That is what AlignedUMAP does with a joint loss over all maps; a chain needs a small part of its time, keeps more
neighbours, and costs somewhat more movement (benchmarks/maps.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.vectors.umap import (
    check_snapshots,
    fit_map,
    lay_over,
    measure_trustworthiness,
    place_on_map,
    trace_prototypes,
)

_MOST_STAGES = 5
_FEWEST_TO_LAY_OVER = 3
_NEIGHBOURS_JUDGED = 15


@dataclass(frozen=True)
class Stage:
    """A stretch of curation with a map of its own."""

    number: int  # from 0
    first_step: int  # first step whose pairs are new in it
    last_step: int  # the last one
    # Ledger rows on its map ``(n,)`` int64: its own, and in one epoch those of the stage before, so that neighbouring
    # maps share pairs.
    rows: np.ndarray


def plan_stages(ledger: pd.DataFrame) -> list[Stage]:
    """The stages of a curation: its epochs, or up to five stretches of about equally many pairs if there is one."""
    if ledger.empty:
        raise StudyError("the ledger holds no decisions, so there is nothing to map: pretrain the curated arm again.")
    step, epoch = ledger.step.to_numpy(), ledger.epoch.to_numpy()
    epochs = np.unique(epoch)
    if len(epochs) > 1:
        own = [np.flatnonzero(epoch == one) for one in epochs]
        shown = own
    else:
        steps, place, pairs = np.unique(step, return_inverse=True, return_counts=True)
        # By the pair in a step's middle, so that stretches hold about as many pairs, and a small last step no stage.
        middle = np.cumsum(pairs) - pairs / 2
        stretch = (middle * min(_MOST_STAGES, len(steps)) / len(step)).astype(int)[place]
        own = [np.flatnonzero(stretch == number) for number in np.unique(stretch)]
        shown = [np.sort(np.concatenate(own[max(0, place - 1) : place + 1])) for place in range(len(own))]
    return [
        Stage(number, int(step[mine].min()), int(step[mine].max()), rows)
        for number, (mine, rows) in enumerate(zip(own, shown, strict=True))
    ]


def fit_stage_maps(
    features: Sequence[np.ndarray], names: Sequence[np.ndarray], seed: int, start: np.ndarray | None = None
) -> list[np.ndarray]:
    """Chained maps ``(n, 2)`` of successive features ``(n, dim)`` of partly the same pairs, in the units of the first.

    ``names`` ``(n,)`` tell which pair each row is; the first stage may ``start`` on the map of all pairs ``(n, 2)``.
    """
    maps: list[np.ndarray] = []
    for number, rows in enumerate(features):
        if number == 0:
            maps.append(fit_map(rows, seed, start))
            continue
        before = maps[-1]
        begin = place_on_map(rows, features[number - 1], before)
        _, old, new = np.intersect1d(names[number - 1], names[number], return_indices=True)
        begin[new] = before[old]
        fitted = fit_map(rows, seed, start=begin)
        maps.append(lay_over(fitted, begin, new) if len(new) >= _FEWEST_TO_LAY_OVER else fitted)
    return maps


def read_or_fit_stage_maps(
    run: Run,
    name: str,
    ledger: pd.DataFrame,
    features: np.ndarray,
    stages: Sequence[Stage],
    seed: int,
    inputs: tuple[str, ...],
    start: np.ndarray | None = None,
) -> pd.DataFrame:
    """The maps of all stages: read if they were fitted on these features with this seed, else fitted and written.

    ``features`` ``(n, dim)`` are those of the ledger's rows, ``start`` is that of `fit_stage_maps`, all else as in
    `chexstudy.vectors.umap.read_or_fit_map`. One row a stage and pair, with ``stage, row, image_id, x, y``.
    """
    parameters = {"seed": seed, "steps": [[stage.first_step, stage.last_step] for stage in stages]}

    def fit() -> list[pd.DataFrame]:
        own = [ledger.image_id.to_numpy()[stage.rows] for stage in stages]
        maps = fit_stage_maps([features[stage.rows] for stage in stages], own, seed, start)
        tables = [
            pd.DataFrame({"stage": stage.number, "row": stage.rows, "image_id": names, "x": x, "y": y})
            for stage, names, (x, y) in zip(stages, own, [one.T for one in maps], strict=True)
        ]
        return [pd.concat(tables, ignore_index=True)]

    return run.keep_tables([name], parameters, fit, inputs, seed)[0]


def join_stage_maps(ledger: pd.DataFrame, maps: pd.DataFrame) -> pd.DataFrame:
    """What the ledger says of each pair on each map: its columns, and ``stage``, ``x`` and ``y``."""
    pairs = ledger.iloc[maps.row].reset_index(drop=True)
    return pairs.assign(stage=maps.stage.to_numpy(), x=maps.x.to_numpy(), y=maps.y.to_numpy())


def trace_over_stages(
    snapshots: np.ndarray, steps: pd.DataFrame, stages: Sequence[Stage], features: np.ndarray, maps: pd.DataFrame
) -> pd.DataFrame:
    """The paths of prototypes as `trace_prototypes` gives them, each on the map of its own ``stage``.

    ``features`` are those of the ledger's rows ``(n, dim)``, ``maps`` those of `read_or_fit_stage_maps`.
    """
    check_snapshots(snapshots, steps)
    # A snapshot carries the number of steps done before it, so it belongs to the stage of the step just done.
    ends = np.array([stage.last_step for stage in stages])
    stage_of = np.minimum(np.searchsorted(ends, steps.step.to_numpy() - 1), len(stages) - 1)
    traces = []
    for number in np.unique(stage_of):
        here, shown = stage_of == number, maps[maps.stage == number]
        places = shown[["x", "y"]].to_numpy()
        traces.append(trace_prototypes(snapshots[here], steps[here], features[shown.row], places).assign(stage=number))
    return pd.concat(traces, ignore_index=True)


def measure_stage_maps(maps: pd.DataFrame, features: np.ndarray) -> pd.DataFrame:
    """How good the maps of stages are, and how smooth their chain; arguments as in `trace_over_stages`.

    ``stage, pairs, trustworthiness, shared, moved``: pairs on the map, how far its neighbours can be trusted, how many
    were on the map before, and their median movement as a share of its radius; NaN where that cannot be had.
    """
    rows, before = [], None
    for number, shown in maps.groupby("stage"):
        neighbours = min(_NEIGHBOURS_JUDGED, (len(shown) - 1) // 2)
        coordinates = shown[["x", "y"]].to_numpy()
        trust = measure_trustworthiness(features[shown.row], coordinates, neighbours) if neighbours else np.nan
        moved = np.nan
        _, old, new = np.intersect1d([] if before is None else before.image_id, shown.image_id, return_indices=True)
        if len(new):
            moved = measure_movement(before[["x", "y"]].to_numpy(), coordinates, old, new)
        rows.append((number, len(shown), trust, len(new), moved))
        before = shown
    return pd.DataFrame(rows, columns=["stage", "pairs", "trustworthiness", "shared", "moved"])


def measure_movement(before: np.ndarray, after: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    """Median distance that pairs moved between two maps, as a share of the first map's radius (root mean square).

    The maps are ``(n, 2)`` and ``(m, 2)``; the same pairs are in rows ``old`` and ``new`` ``(shared,)`` of them.
    """
    radius = np.sqrt(((before - before.mean(axis=0)) ** 2).sum(axis=1).mean())
    moved = np.median(np.linalg.norm(after[new] - before[old], axis=1))
    return float(moved / radius) if radius > 0 else float(moved)
