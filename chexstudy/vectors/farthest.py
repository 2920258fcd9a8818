"""Farthest-point selection: cover a set of points with few of them, in a batch or in a whole cohort.

`farthest_points` is the plain form for a few thousand points. `cover_points` makes the same picks in a cohort: it is
exact, reads embeddings larger than memory, and spends most of its time in matrix products.
"""

import time
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from chexstudy.errors import StudyError
from chexstudy.progress import progress

# Rows of a first pass over all.
_BLOCK_ROWS = 8192
# The pool stays in the last-level cache at 1,024 dimensions.
_POOL_ROWS = 2048
# Rows of one product are compared with the centres that the stalest of them missed, so groups are small.
_GROUP_ROWS = 512
# Centres in one product, so that its result stays small however many were missed.
_CENTRE_BLOCK = 4096
# Scores of one row tested at a time: their maximum first, which is vectorised, one by one only where it matters.
_TILE = 64
# Where more than this share of so many pairs needs a direct distance, rounded products decide too little. The first
# dozens of picks always need many, so they must not decide alone.
_DIRECT_SHARE, _PAIRS_JUDGED = 0.1, 2**24
_ROUNDING = 2.0**-24


def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Pick points ``(n, dim)`` one by one, each the farthest from those picked before (Gonzalez 1985, greedy k-centre).

    Returns row numbers in the order of picking; of equally far points the first row is taken.
    """
    rows = len(points)
    if rows == 0 or count < 1 or not 0 <= start < rows:
        raise ValueError(f"cannot pick {count} of {rows} points from row {start}")
    count = min(count, rows)
    picked = torch.empty(count, dtype=torch.int64, device=points.device)
    distance_to_picked = torch.full((rows,), torch.inf, dtype=points.dtype, device=points.device)
    current = torch.tensor(start, device=points.device)
    for position in range(count):
        picked[position] = current
        distance = torch.linalg.vector_norm(points - points[current], dim=1)
        distance_to_picked = torch.minimum(distance_to_picked, distance)
        # Duplicates of a picked point are at distance zero; the picked ones must still never come again.
        distance_to_picked[current] = -1.0
        current = distance_to_picked.argmax()
    return picked


def cover_points(features: np.ndarray, count: int, start: int = 0, label: str = "covering") -> np.ndarray:
    """Make the picks of `farthest_points` in a large set (Gonzalez 1985, greedy k-centre).

    A row's distance to the nearest pick only falls, so a stale one is an upper bound. Only a pool of the rows with the
    largest bounds is kept exact. Picks are made inside it until its maximum falls below the best bound outside; then
    it is filled anew, and rows that missed picks are compared with those in one matrix product. A product is rounded
    (bfloat16 where that is fast) and only rules pairs out, by a bound on its error; every distance that decides is
    computed from the differences of the coordinates, in float64. So the picks do not depend on threads, blocks or the
    library that multiplies, and a duplicate is at distance zero exactly.

    Beside the features ``(n, dim)``, float32 or float16, it holds the picked rows (6 bytes a value) and blocks of rows.
    """
    check_features(features, count)
    if not 0 <= start < len(features):
        raise StudyError(f"the first pick must be a row from 0 to {len(features) - 1:,}, not {start:,}.")
    cover = _PooledCover(features, count, start)
    for _ in progress(cover.pick(), count, label):
        pass
    return cover.rows


def check_features(features: np.ndarray, count: int) -> None:
    """Refuse what is no matrix of which ``count`` rows could be picked."""
    if features.ndim != 2 or 0 in features.shape:
        raise StudyError(f"features must be a matrix (rows, dimensions) with rows in it, not {features.shape}.")
    if features.dtype not in (np.float32, np.float16):
        raise StudyError(f"features must be float32 or float16, not {features.dtype}: convert them first.")
    if not 1 <= count <= len(features):
        raise StudyError(f"cannot pick {count:,} of {len(features):,} rows: ask for 1 to {len(features):,}.")


class _PooledCover:
    """The pooled lazy method. Distances are squared inside; for the arguments see `cover_points`."""

    def __init__(self, features: np.ndarray, count: int, start: int):
        rows, dim = features.shape
        self.features, self.count = features, count
        # Only where bfloat16 is multiplied faster than float32; it decides about time alone, not about picks.
        self.rounded = measure_rate(dim, True) > 1.2 * measure_rate(dim, False)
        self.mean = np.zeros(dim, dtype=np.float32)
        # Squared distance of each row to the nearest of the first ``seen`` picks; -1 for the picks themselves.
        self.bounds = np.empty(rows)
        self.seen = np.ones(rows, dtype=np.int64)
        self.taken = 0
        self.pairs = self.direct = 0
        self.rows = np.empty(count, dtype=np.int64)
        self.centres = np.empty((count, dim), dtype=np.float32)
        self._prepared_centres = _allocate_operand(count, dim, self.rounded)
        self._measure_start(start)

    def _read(self, rows: np.ndarray | slice) -> np.ndarray:
        return np.ascontiguousarray(self.features[rows], dtype=np.float32)

    def _measure_start(self, start: int) -> None:
        """Check the features, find their mean and measure every row from the first pick."""
        rows, total = len(self.features), np.zeros(self.features.shape[1])
        first_pick = self._read(slice(start, start + 1))
        for first in range(0, rows, _BLOCK_ROWS):
            block = slice(first, min(first + _BLOCK_ROWS, rows))
            points = self._read(block)
            total += points.sum(axis=0, dtype=np.float64)
            _measure_distances(points, first_pick[0], self.bounds[block])
        if not np.isfinite(total).all():
            raise StudyError("the features hold values that are not finite: remove those rows or embed them again.")
        # Distances do not change when the mean is taken off, but rounding errors shrink with the norms.
        self.mean = (total / rows).astype(np.float32)
        self._take(np.array([start]), first_pick)

    def _take(self, rows: np.ndarray, points: np.ndarray) -> None:
        """Note picks and make them centres."""
        places = slice(self.taken, self.taken + len(rows))
        self.rows[places], self.centres[places] = rows, points
        _prepare_operand(points, self.mean, *(part[places] for part in self._prepared_centres))
        self.bounds[rows] = -1.0
        self.taken = places.stop

    def pick(self) -> Iterator[None]:
        """Pick all rows; yields once a pick."""
        yield
        while self.taken < self.count:
            before = self.taken
            self._pick_from_pool()
            for _ in range(before, self.taken):
                yield

    def _pick_from_pool(self) -> None:
        """Fill the pool, refresh what is stale in it, and pick until a row outside might be farther."""
        pool, floor, rival = fill_pool(self.bounds, min(_POOL_ROWS, len(self.bounds) - self.taken))
        points = self.refresh(pool)
        live = np.flatnonzero(self.bounds[pool] >= floor)
        rows, points = pool[live], points[live]
        bounds, seen = self.bounds[rows], self.seen[rows]
        limit = min(len(rows), self.count - self.taken)
        picked = np.empty(limit, dtype=np.int64)
        picked = picked[: _pick_in_pool(points, rows, bounds, seen, floor, rival, self.taken, picked)]
        self.bounds[rows], self.seen[rows] = bounds, seen
        self._take(rows[picked], points[picked])

    def refresh(self, rows: np.ndarray) -> np.ndarray:
        """Compare rows with the centres they missed; returns their coordinates ``(len(rows), dim)`` float32."""
        points = self._read(rows)
        stale = np.flatnonzero((self.seen[rows] < self.taken) & (self.bounds[rows] > 0.0))
        stale = stale[np.argsort(self.seen[rows[stale]], kind="stable")]
        for begin in range(0, len(stale), _GROUP_ROWS):
            group = stale[begin : begin + _GROUP_ROWS]
            bounds = self.bounds[rows[group]]
            self._compare(points[group], int(self.seen[rows[group[0]]]), bounds)
            self.bounds[rows[group]] = bounds
        self.seen[rows] = self.taken
        return points

    def _compare(self, points: np.ndarray, first: int, bounds: np.ndarray) -> None:
        """Lower the bounds of points by the centres from place ``first`` on."""
        prepared = _allocate_operand(*points.shape, self.rounded)
        _prepare_operand(points, self.mean, *prepared)
        for begin in range(first, self.taken, _CENTRE_BLOCK):
            block = slice(begin, min(begin + _CENTRE_BLOCK, self.taken))
            matrix, squares, errors = (part[block] for part in self._prepared_centres)
            products = (prepared[0] @ matrix.T).float().numpy()
            rounding = np.float32(2.0**-8 if self.rounded else 0.0)
            self.direct += _lower_bounds(
                points, *prepared[1:], self.centres[block], squares, errors, products, rounding, bounds
            )
            self.pairs += products.size
        if self.pairs >= _PAIRS_JUDGED:
            if self.rounded and self.direct > _DIRECT_SHARE * self.pairs:
                self._leave_rounding()
            self.pairs = self.direct = 0

    def _leave_rounding(self) -> None:
        """The points lie too close together for rounded products: multiply in float32 from now on."""
        self.rounded = False
        self._prepared_centres = _allocate_operand(*self.centres.shape, False)
        made = slice(0, self.taken)
        _prepare_operand(self.centres[made], self.mean, *(part[made] for part in self._prepared_centres))


def fill_pool(bounds: np.ndarray, size: int) -> tuple[np.ndarray, float, int]:
    """The rows ``(size,)`` of the largest bounds, in row order; of equal ones the first.

    Beside them the smallest bound among them, and the first row outside that has this same bound (the number of rows if
    none has).
    """
    floor = np.partition(bounds, len(bounds) - size)[len(bounds) - size]
    above, level = np.flatnonzero(bounds > floor), np.flatnonzero(bounds == floor)
    missing = size - len(above)
    rival = level[missing] if missing < len(level) else len(bounds)
    return np.sort(np.concatenate([above, level[:missing]])), float(floor), int(rival)


def _allocate_operand(rows: int, dim: int, rounded: bool) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Room for what `_prepare_operand` writes."""
    matrix = torch.empty((rows, dim), dtype=torch.bfloat16 if rounded else torch.float32)
    return matrix, np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)


def _prepare_operand(
    points: np.ndarray, mean: np.ndarray, matrix: Tensor, squares: np.ndarray, errors: np.ndarray
) -> None:
    """Write points less their mean, as they are multiplied, their squared norms, and how far rounding moved them."""
    exact = points - mean
    matrix.copy_(torch.from_numpy(exact))
    near = matrix.float().numpy()
    moved = exact - near
    squares[:] = np.einsum("ij,ij->i", near, near, dtype=np.float64)
    # Taking off the mean rounds as well.
    errors[:] = np.sqrt(np.einsum("ij,ij->i", moved, moved, dtype=np.float64)) + 2 * _ROUNDING * np.sqrt(squares)


@cache
def measure_rate(dim: int, rounded: bool) -> float:
    """Operations a second of a product of this machine, one multiplication and one addition counted as two."""
    operand = _allocate_operand(_GROUP_ROWS, dim, rounded)[0]
    operand.zero_()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        (operand @ operand.T).float()
        seconds.append(time.perf_counter() - start)
    return 2.0 * _GROUP_ROWS**2 * dim / min(seconds)


@njit(cache=True, nogil=True, fastmath=True)
def _squared_distance(left, right):
    total = 0.0
    for column in range(len(left)):
        difference = np.float64(left[column]) - np.float64(right[column])
        total += difference * difference
    return total


@njit(cache=True, nogil=True)
def _measure_distances(points, centre, bounds):
    for row in range(len(points)):
        bounds[row] = _squared_distance(points[row], centre)


@njit(cache=True, nogil=True)
def _least_score(bound, square, error, widest_centre, worst_centre_error, dim):
    """The score that a centre nearer than the bound has at least, whatever the rounding.

    The score of a centre is the product with it less half its squared norm. With ``e`` the distances that rounding
    moved the two points, the triangle inequality keeps the rounded distance below ``sqrt(bound) + e``; summing ``dim``
    products in float32 adds at most ``dim`` roundings of the product of the norms.
    """
    reach = np.sqrt(bound) + error + worst_centre_error
    norm = np.sqrt(square)
    slack = _ROUNDING * (dim * norm * widest_centre + 8.0 * (norm + widest_centre) ** 2)
    return np.float32(0.5 * (square - reach * reach) - slack)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz", "arcp", "nnan"})
def _best_score(products, halves, rounding):
    best = np.float32(-np.inf)
    for place in range(len(products)):
        best = max(best, products[place] + rounding * abs(products[place]) - halves[place])
    return best


@njit(cache=True, nogil=True)
def _lower_bounds(points, squares, errors, centres, centre_squares, centre_errors, products, rounding, bounds):
    """Lower the bounds to the distance to the nearest centre; returns how many distances were computed directly."""
    rows, places = products.shape
    dim = points.shape[1]
    halves = centre_squares * np.float32(0.5)
    widest, worst = np.sqrt(centre_squares.max()), centre_errors.max()
    direct = 0
    for row in range(rows):
        least = _least_score(bounds[row], squares[row], errors[row], widest, worst, dim)
        for begin in range(0, places, _TILE):
            end = min(begin + _TILE, places)
            if _best_score(products[row, begin:end], halves[begin:end], rounding) < least:
                continue
            for place in range(begin, end):
                product = products[row, place]
                if bounds[row] == 0.0 or product + rounding * abs(product) - halves[place] < least:
                    continue
                direct += 1
                distance = _squared_distance(points[row], centres[place])
                if distance < bounds[row]:
                    bounds[row] = distance
                    least = _least_score(distance, squares[row], errors[row], widest, worst, dim)
    return direct


@njit(cache=True, nogil=True)
def _pick_in_pool(points, rows, bounds, seen, floor, rival, taken, picked):
    """Farthest-point steps among rows whose bounds are exact, as long as no row outside can be farther.

    ``points`` are those of ``rows``, ascending; no row outside has a bound above ``floor``, and ``rival`` is the first
    of those that have this one; ``taken`` picks were made before. Writes places in the pool and returns how many.
    """
    made = 0
    while made < len(picked):
        best = np.argmax(bounds)
        if bounds[best] < floor or (bounds[best] == floor and rows[best] > rival):
            break
        picked[made] = best
        made += 1
        bounds[best] = -1.0
        for row in range(len(rows)):
            # A row below the floor cannot be picked from this pool; it is refreshed when its turn comes.
            if bounds[row] >= floor and bounds[row] > 0.0:
                bounds[row] = min(bounds[row], _squared_distance(points[row], points[best]))
                seen[row] = taken + made
    return made
