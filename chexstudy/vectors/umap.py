"""Two-dimensional maps of pairs: UMAP coordinates fitted once, and where prototypes lie on them.

A map is fitted on exact nearest neighbours and never transforms new points through UMAP: whatever is not a fitted pair
(a prototype, a snapshot of one, a pair beyond the sample) is placed at the weighted barycentre of its nearest fitted
pairs. That gives the same point for the same input, moves smoothly when a prototype does, and keeps the neighbours of
held-out pairs as well as UMAP's own transform (which starts from the same barycentre and then lets random forces act on
it).

A map may start from another one (`fit_map` with ``start``): it then keeps place, scale and orientation, and pairs move
only as far as their neighbours ask for. `chexstudy.curation.records.stage_maps` chains maps of a training that way.

The features are not reduced by PCA first: at the sizes fitted here it saves no time and loses neighbours.
UMAP repeats itself on one machine but not across machines, so callers save the coordinates as an artifact.
"""

import os
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.linalg import orthogonal_procrustes
from sklearn.manifold import trustworthiness

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.vectors.neighbours import nearest_rows

LARGEST_FIT = 50_000
_SMALLEST_FIT = 16
_MOST_JUDGED = 2_000
# How many neighbours count as near: few show islands, many the overall shape. And how many place a point between them.
_NEIGHBOURS, _PLACING_NEIGHBOURS = 30, 15
# How close points may lie on the map, UMAP's ``min_dist``.
_MINIMUM_DISTANCE = 0.15
# From a start near the goal, few and short steps keep as many neighbours as a fit from nothing does, and move the
# points a quarter to a half as far (benchmarks/maps.py).
_WARM_EPOCHS, _WARM_LEARNING_RATE = 100, 0.05


def fit_map(features: np.ndarray, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    """Coordinates ``(n, 2)`` of features ``(n, dim)`` on a map that keeps neighbours together.

    Equal rows get one point. Above ``LARGEST_FIT`` distinct rows a seeded sample is fitted and the others are placed
    between their nearest sampled rows; under 16 distinct rows the map is a plain principal component projection.
    The map is centred and turned so that its widest direction is horizontal. One that begins with coordinates ``start``
    ``(n, 2)`` instead of principal components is laid over them, and under 16 distinct rows they are the map.
    """
    features = _checked(features, "features")
    distinct, first, place = np.unique(features, axis=0, return_index=True, return_inverse=True)
    place = place.reshape(-1)
    if start is not None:
        start = _checked(start, "starting coordinates")
        if start.shape != (len(features), 2):
            raise StudyError(f"{len(features)} features cannot start from coordinates of shape {start.shape}.")
        start = start[first]
    if len(distinct) < _SMALLEST_FIT:
        return (_oriented(_principal_plane(distinct)) if start is None else start)[place]
    if len(distinct) <= LARGEST_FIT:
        return _fit_umap(distinct, seed, start)[place]
    sample = np.sort(np.random.default_rng(seed).choice(len(distinct), LARGEST_FIT, replace=False))
    fitted = _fit_umap(distinct[sample], seed, None if start is None else start[sample])
    coordinates = place_on_map(distinct, distinct[sample], fitted)
    coordinates[sample] = fitted
    return coordinates[place]


def read_or_fit_map(
    run: Run, name: str, image_ids: Sequence[str], features: np.ndarray, seed: int, inputs: tuple[str, ...]
) -> pd.DataFrame:
    """The map of a study's pairs: read if it was fitted on these features with this seed, else fitted and written.

    ``inputs`` are the artifacts that the ids ``(n,)`` and features ``(n, dim)`` come from. Returns ``image_id, x, y``,
    one row a pair, in the order given.
    """

    def fit() -> list[pd.DataFrame]:
        x, y = fit_map(features, seed).T
        return [pd.DataFrame({"image_id": list(image_ids), "x": x, "y": y})]

    return run.keep_tables([name], {"seed": seed}, fit, inputs, seed)[0]


def place_on_map(points: np.ndarray, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Where points ``(m, dim)``, for example prototypes, lie on a map that shows features ``(n, dim)`` at their places.

    Each point goes to the mean of its nearest features' coordinates, weighted by a Gaussian of the distance whose
    width is the mean distance to those neighbours.
    """
    points, features = _checked(points, "points"), _checked(features, "features")
    if points.shape[1] != features.shape[1] or coordinates.shape != (len(features), 2):
        raise StudyError(
            f"points {points.shape}, features {features.shape} and coordinates {coordinates.shape} do not belong to "
            "one map: read them from the same study and arm."
        )
    index, distance = nearest_rows(points, features, min(_PLACING_NEIGHBOURS, len(features)))
    # Distances beyond the nearest one tell the neighbours apart; a prototype, a mean of many, is far from all of them.
    beyond = distance - distance[:, :1]
    width = np.maximum(beyond.mean(axis=1, keepdims=True), 1e-12)
    weight = np.exp(-0.5 * (beyond / width) ** 2)
    weight /= weight.sum(axis=1, keepdims=True)
    return (weight[:, :, None] * coordinates[index]).sum(axis=1).astype(np.float32)


def lay_over(coordinates: np.ndarray, fixed: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Shift, turn or mirror, and scale a map so that it covers another of the same points as well as it can.

    The rotation is that of least squares (orthogonal Procrustes); the scale is the one that makes both equally wide.
    The least-squares scale would be smaller the worse they agree, and a chain of maps would shrink. Only the points in
    ``rows`` are compared, all if not given; the others move along.
    """
    rows = np.arange(len(coordinates)) if rows is None else rows
    moving, still = coordinates[rows].astype(np.float64), fixed[rows].astype(np.float64)
    centre, target = moving.mean(axis=0), still.mean(axis=0)
    moving, still = moving - centre, still - target
    rotation, _ = orthogonal_procrustes(moving, still)
    extent = np.linalg.norm(moving)
    scale = np.linalg.norm(still) / extent if extent > 0 else 1.0
    return ((coordinates - centre) @ rotation * scale + target).astype(np.float32)


def measure_trustworthiness(features: np.ndarray, coordinates: np.ndarray, neighbours: int = 15) -> float:
    """How far neighbours on a map are neighbours in feature space, from 0 to 1 (Venna and Kaski 2001).

    Of more than 2,000 points, those drawn by a fixed seed are judged among themselves. There must be more than
    twice as many as neighbours.
    """
    if len(features) > _MOST_JUDGED:
        drawn = np.sort(np.random.default_rng(0).choice(len(features), _MOST_JUDGED, replace=False))
        features, coordinates = features[drawn], coordinates[drawn]
    return trustworthiness(features, coordinates, n_neighbors=neighbours)


def check_snapshots(snapshots: np.ndarray, steps: pd.DataFrame) -> None:
    """Raise a StudyError unless there is a row of ``steps`` for each snapshot ``(snapshots, count, dim)``."""
    if snapshots.ndim != 3 or len(steps) != len(snapshots):
        raise StudyError(
            f"{len(steps)} rows describe prototype snapshots of shape {snapshots.shape}: pretrain the arm again."
        )


def trace_prototypes(
    snapshots: np.ndarray, steps: pd.DataFrame, features: np.ndarray, coordinates: np.ndarray
) -> pd.DataFrame:
    """The paths of prototypes ``(snapshots, count, dim)`` over a fitted map; features and coordinates as there.

    ``steps`` has a row for each snapshot, with ``snapshot``, ``step`` and ``phase``. One row a snapshot and prototype
    comes back, with ``prototype``, ``x`` and ``y`` as well.
    """
    check_snapshots(snapshots, steps)
    count = snapshots.shape[1]
    placed = place_on_map(snapshots.reshape(-1, snapshots.shape[2]), features, coordinates)
    rows = steps[["snapshot", "step", "phase"]]
    rows = rows.loc[rows.index.repeat(count)].reset_index(drop=True)
    prototype = np.tile(np.arange(count), len(snapshots))
    return rows.assign(prototype=prototype, x=placed[:, 0], y=placed[:, 1])


def _checked(features: np.ndarray, name: str) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or features.size == 0:
        raise StudyError(f"a map needs {name} of shape (rows, dim) with at least one row, not {features.shape}.")
    features = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise StudyError(f"row {row} of the {name} is not finite: embed or pretrain again before drawing a map.")
    return features


def _fit_umap(features: np.ndarray, seed: int, start: np.ndarray | None) -> np.ndarray:
    # numba reads the variable when umap is first imported and fails where the installed package cannot be written to.
    compiled = paths.cache() / "numba"
    compiled.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(compiled))
    import umap

    # They take seconds to compile, and umap does not keep them.
    for function in (umap.umap_.smooth_knn_dist, umap.umap_.compute_membership_strengths):
        function.enable_caching()
    neighbours = min(_NEIGHBOURS, len(features) - 1)
    index, distance = nearest_rows(features, features, neighbours)
    # A start without extent says nothing of where to begin.
    warm = start is not None and np.ptp(start, axis=0).max() > 0
    begin = {"init": "pca"}
    if warm:
        begin = {"init": _turned_square(start), "n_epochs": _WARM_EPOCHS, "learning_rate": _WARM_LEARNING_RATE}
    shape = {"n_neighbors": neighbours, "min_dist": _MINIMUM_DISTANCE, "force_approximation_algorithm": True}
    nearest = (index, distance, None)
    layout = umap.UMAP(random_state=seed, n_jobs=1, precomputed_knn=nearest, **shape, **begin)
    with warnings.catch_warnings():
        # Without a search index UMAP could not transform new points; `place_on_map` does that here.
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")
        warnings.filterwarnings("ignore", message="n_jobs value")
        coordinates = layout.fit_transform(features)
    return lay_over(coordinates, start) if warm else _oriented(coordinates)


def _turned_square(coordinates: np.ndarray) -> np.ndarray:
    """Turn a map so that it is as wide as high: UMAP stretches its start to a square, which then distorts nothing.

    A quarter turn swaps width and height, so somewhere on the way they are equal; bisection finds the angle.
    """
    low, high = 0.0, np.pi / 2
    is_wide = _is_wide(coordinates @ _rotation(low))
    for _ in range(40):
        middle = (low + high) / 2
        if _is_wide(coordinates @ _rotation(middle)) == is_wide:
            low = middle
        else:
            high = middle
    return (coordinates @ _rotation(low)).astype(np.float32)


def _is_wide(coordinates: np.ndarray) -> bool:
    width, height = np.ptp(coordinates, axis=0)
    return width - height > 0


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _principal_plane(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ axes[:2].T
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def _oriented(coordinates: np.ndarray) -> np.ndarray:
    """Centre a map and turn it so that its widest direction is horizontal and its longer tails point right and up."""
    centred = coordinates.astype(np.float64) - coordinates.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    turned = centred @ axes[:, ::-1]
    turned *= np.where((turned**3).sum(axis=0) < 0, -1.0, 1.0)
    return turned.astype(np.float32)
