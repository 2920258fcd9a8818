"""Farthest-point selection: cover a set of points with few of them, in a batch or in a whole cohort.

`farthest_points` is the plain form for a few thousand points. `cover_points` makes the same picks in a cohort: it is
exact, reads embeddings larger than memory, and spends most of its time in matrix products.
"""

import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from chexstudy.errors import StudyError
from chexstudy.progress import progress

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
# Picks on a device between two looks at how far they got.
_DEVICE_STEPS = 64
# Below this squared distance a product in float32 has too few correct digits.
_CANCELLATION = 1e-2
_SECONDS_WORTH_SAYING = 10.0
_ROUNDING = 2.0**-24


class Cover(NamedTuple):
    """Rows that cover a set of points, and how well."""

    rows: np.ndarray  # the picks in order of picking ``(count,)``, int64
    # distance of each pick to the picks before it, ``(count,)`` float64, falling; infinite for the first
    distances: np.ndarray
    # Distance of every row to its nearest pick ``(n,)`` float64, zero for the picks. If they were not asked for
    # exactly, upper bounds.
    remaining: np.ndarray

    @property
    def radius(self) -> float:
        """The covering radius: the largest distance of a row to its nearest pick."""
        return float(self.remaining.max())

    def scores(self) -> np.ndarray:
        """``(n,)`` float64, the higher the sooner kept: picks in their order, below them the others, farthest first."""
        scores = self.remaining.copy()
        scores[self.rows] = self.radius + np.arange(len(self.rows), 0, -1)
        return scores


def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Pick points one by one, each the farthest from those already picked (Gonzalez 1985, greedy k-centre).

    Distances are Euclidean. Of equally far points the first in row order is taken, so the result is a function of
    ``points`` and ``start`` alone.

    Args:
        points: ``(n, dim)``.
        count: how many to pick; all rows are returned, in order of picking, where it is at least ``n``.
        start: row of the first pick.

    Returns:
        Row numbers ``(min(count, n),)``, int64, in the order of picking.

    Raises:
        ValueError: ``points`` is empty, ``count`` is below one or ``start`` is no row.
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


def cover_points(
    features: np.ndarray | Tensor,
    count: int,
    start: int = 0,
    *,
    exact_remaining: bool = True,
    row_block: int = 8192,
    label: str = "covering",
) -> Cover:
    """Make the picks of `farthest_points` in a large set (Gonzalez 1985, greedy k-centre).

    A row's distance to the nearest pick only falls, so a stale one is an upper bound. Only a pool of the rows with the
    largest bounds is kept exact. Picks are made inside it until its maximum falls below the best bound outside; then
    it is filled anew, and rows that missed picks are compared with those in one matrix product. A product is rounded
    (bfloat16 where that is fast) and only rules pairs out, by a bound on its error; every distance that decides is
    computed from the differences of the coordinates, in float64 on a CPU and in float32 on a GPU. So the picks do not
    depend on threads, blocks or the library that multiplies, and a duplicate is at distance zero exactly.

    Beside the features it holds the picked rows (6 bytes a value on a CPU) and blocks of rows. A tensor on a GPU is
    worked on there, with float32 products; picks whose distances agree to about 1e-6 may then change places.

    Args:
        features: ``(n, dim)`` float32 or float16, finite; an array, a memory map larger than memory, or a tensor.
        count: how many rows to pick, from 1 to ``n``.
        start: row of the first pick.
        exact_remaining: compare every row with every pick at the end. Without it, selection takes about half the time
            and `Cover.remaining` holds upper bounds.
        row_block: rows in memory at a time.
        label: what progress is shown under.

    Returns:
        The picks in order, their distances at picking and what remains to the nearest pick.
    """
    _check_request(features, count, start)
    if isinstance(features, Tensor) and features.device.type != "cpu":
        return _cover_on_device(features, count, start, exact_remaining, label)
    if isinstance(features, Tensor):
        features = features.detach().numpy()
    cover = _PooledCover(features, count, start, max(1, row_block))
    seconds = cover.estimate_seconds(exact_remaining)
    if seconds > _SECONDS_WORTH_SAYING:
        print(f"{label}: {count:,} of {len(features):,} rows, about {seconds:,.0f} s if nothing else runs", flush=True)
    for _ in progress(cover.pick(), count, label):
        pass
    if exact_remaining:
        for _ in progress(cover.refresh_all(), -(-len(features) // cover.row_block), f"{label}: last distances"):
            pass
    return cover.result()


def _check_request(features: np.ndarray | Tensor, count: int, start: int) -> None:
    if features.ndim != 2 or 0 in features.shape:
        raise StudyError(f"features must be a matrix (rows, dimensions) with rows in it, not {tuple(features.shape)}.")
    if str(features.dtype).removeprefix("torch.") not in ("float32", "float16"):
        raise StudyError(f"features must be float32 or float16, not {features.dtype}: convert them first.")
    if not 1 <= count <= len(features):
        raise StudyError(f"cannot pick {count:,} of {len(features):,} rows: ask for 1 to {len(features):,}.")
    if not 0 <= start < len(features):
        raise StudyError(f"the first pick must be a row from 0 to {len(features) - 1:,}, not {start:,}.")


class _PooledCover:
    """The pooled lazy method on a CPU. Distances are squared inside.

    Args:
        features: ``(n, dim)`` float32 or float16.
        count: how many rows to pick.
        start: row of the first pick.
        row_block: rows in memory at a time.
    """

    def __init__(self, features: np.ndarray, count: int, start: int, row_block: int):
        rows, dim = features.shape
        self.features, self.count, self.row_block = features, count, row_block
        self.rounded = _rounded_products_pay(dim)
        self.mean = np.zeros(dim, dtype=np.float32)
        # Squared distance of each row to the nearest of the first ``seen`` picks; -1 for the picks themselves.
        self.bounds = np.empty(rows)
        self.seen = np.ones(rows, dtype=np.int64)
        self.taken = 0
        self.pairs = self.direct = 0
        self.rows = np.empty(count, dtype=np.int64)
        self.distances = np.empty(count)
        self.centres = np.empty((count, dim), dtype=np.float32)
        self._prepared_centres = _allocate_operand(count, dim, self.rounded)
        self._measure_start(start)

    def _read(self, rows: np.ndarray | slice) -> np.ndarray:
        return np.ascontiguousarray(self.features[rows], dtype=np.float32)

    def _measure_start(self, start: int) -> None:
        """Check the features, find their mean and measure every row from the first pick."""
        rows, total = len(self.features), np.zeros(self.features.shape[1])
        first_pick = self._read(slice(start, start + 1))
        for first in range(0, rows, self.row_block):
            block = slice(first, min(first + self.row_block, rows))
            points = self._read(block)
            total += points.sum(axis=0, dtype=np.float64)
            _measure_distances(points, first_pick[0], self.bounds[block])
        if not np.isfinite(total).all():
            raise StudyError("the features hold values that are not finite: remove those rows or embed them again.")
        # Distances do not change when the mean is taken off, but rounding errors shrink with the norms.
        self.mean = (total / rows).astype(np.float32)
        self._take(np.array([start]), first_pick, np.array([np.inf]))

    def _take(self, rows: np.ndarray, points: np.ndarray, distances: np.ndarray) -> None:
        """Note picks and make them centres."""
        places = slice(self.taken, self.taken + len(rows))
        self.rows[places], self.distances[places], self.centres[places] = rows, distances, points
        _prepare_operand(points, self.mean, *(part[places] for part in self._prepared_centres))
        self.bounds[rows] = -1.0
        self.taken = places.stop

    def estimate_seconds(self, exact_remaining: bool) -> float:
        """About how long it will take, from the measured rate of the products."""
        rows, dim = self.features.shape
        operations = 2.0 * rows * self.count * dim
        return operations / measure_rate(dim, self.rounded) * (2.0 if exact_remaining else 1.5)

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
        pool, floor, rival = fill_pool(self.bounds, min(_POOL_ROWS, self.row_block, len(self.bounds) - self.taken))
        points = self.refresh(pool)
        live = np.flatnonzero(self.bounds[pool] >= floor)
        rows, points = pool[live], points[live]
        bounds, seen = self.bounds[rows], self.seen[rows]
        limit = min(len(rows), self.count - self.taken)
        picked, distances = np.empty(limit, dtype=np.int64), np.empty(limit)
        made = _pick_in_pool(points, rows, bounds, seen, floor, rival, self.taken, picked, distances)
        self.bounds[rows], self.seen[rows] = bounds, seen
        picked = picked[:made]
        self._take(rows[picked], points[picked], distances[:made])

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
            products = _multiply(prepared[0], matrix)
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

    def refresh_all(self) -> Iterator[None]:
        """Compare every row with all centres; yields once a block of rows."""
        for first in range(0, len(self.features), self.row_block):
            block = np.arange(first, min(first + self.row_block, len(self.features)))
            self.refresh(block[(self.bounds[block] > 0.0) & (self.seen[block] < self.taken)])
            yield

    def result(self) -> Cover:
        return Cover(self.rows, np.sqrt(self.distances), np.sqrt(np.maximum(self.bounds, 0.0)))


def fill_pool(bounds: np.ndarray, size: int) -> tuple[np.ndarray, float, int]:
    """The rows of the largest bounds, in row order; of equal ones the first.

    Returns:
        The rows ``(size,)``, the smallest bound among them, and the first row outside that has this same bound (the
        number of rows if none has).
    """
    floor = np.partition(bounds, len(bounds) - size)[len(bounds) - size]
    above, level = np.flatnonzero(bounds > floor), np.flatnonzero(bounds == floor)
    missing = size - len(above)
    rival = level[missing] if missing < len(level) else len(bounds)
    return np.sort(np.concatenate([above, level[:missing]])), float(floor), int(rival)


def _allocate_operand(rows: int, dim: int, rounded: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Room for what `_prepare_operand` writes. bfloat16 numbers are kept as their bits, for numpy has no such type."""
    matrix = np.empty((rows, dim), dtype=np.uint16 if rounded else np.float32)
    return matrix, np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)


def _prepare_operand(
    points: np.ndarray, mean: np.ndarray, matrix: np.ndarray, squares: np.ndarray, errors: np.ndarray
) -> None:
    """Write points less their mean, as they are multiplied, their squared norms, and how far rounding moved them."""
    if matrix.dtype == np.uint16:
        _round_rows(points, mean, matrix, squares, errors)
    else:
        np.subtract(points, mean, out=matrix)
        squares[:] = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
        errors[:] = 2 * _ROUNDING * np.sqrt(squares)


def _multiply(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Scalar products ``(points, centres)`` float32 of two prepared operands."""
    if points.dtype == np.float32:
        return points @ centres.T
    left, right = (torch.from_numpy(matrix).view(torch.bfloat16) for matrix in (points, centres))
    return (left @ right.T).float().numpy()


@cache
def measure_rate(dim: int, rounded: bool) -> float:
    """Operations a second of a product of this machine, one multiplication and one addition counted as two."""
    operand = _allocate_operand(_GROUP_ROWS, dim, rounded)[0]
    operand.fill(0)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        _multiply(operand, operand)
        seconds.append(time.perf_counter() - start)
    return 2.0 * _GROUP_ROWS**2 * dim / min(seconds)


def _rounded_products_pay(dim: int) -> bool:
    """Whether this processor multiplies bfloat16 faster than float32; it decides about time alone, not about picks."""
    return measure_rate(dim, True) > 1.2 * measure_rate(dim, False)


@njit(cache=True, nogil=True)
def _round_rows(points, mean, matrix, squares, errors):
    """Take off the mean and round to bfloat16, to nearest even."""
    rows, dim = points.shape
    exact = np.empty(dim, dtype=np.float32)
    kept = np.empty(dim, dtype=np.uint32)
    exact_bits, near = exact.view(np.uint32), kept.view(np.float32)
    for row in range(rows):
        for column in range(dim):
            exact[column] = points[row, column] - mean[column]
        for column in range(dim):
            bits = exact_bits[column]
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            bits = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
            kept[column] = bits
            matrix[row, column] = np.uint16(bits >> np.uint32(16))
        norm = _squared_norm(near)
        squares[row] = norm
        # Taking off the mean rounds as well.
        errors[row] = np.sqrt(_squared_distance(exact, near)) + 2 * _ROUNDING * np.sqrt(norm)


@njit(cache=True, nogil=True, fastmath=True)
def _squared_norm(point):
    total = 0.0
    for column in range(len(point)):
        total += np.float64(point[column]) * np.float64(point[column])
    return total


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
def _pick_in_pool(points, rows, bounds, seen, floor, rival, taken, picked, distances):
    """Farthest-point steps among rows whose bounds are exact, as long as no row outside can be farther.

    Args:
        points: ``(pool, dim)``; rows: their row numbers, ascending.
        bounds, seen: of these rows; updated.
        floor: no row outside has a larger bound; ``rival`` is the first of those that have this one.
        taken: picks made before.
        picked, distances: places in the pool and squared distances of the picks, written here.

    Returns:
        The number of picks made.
    """
    made = 0
    while made < len(picked):
        best = np.argmax(bounds)
        if bounds[best] < floor or (bounds[best] == floor and rows[best] > rival):
            break
        picked[made], distances[made] = best, bounds[best]
        made += 1
        bounds[best] = -1.0
        for row in range(len(rows)):
            # A row below the floor cannot be picked from this pool; it is refreshed when its turn comes.
            if bounds[row] >= floor and bounds[row] > 0.0:
                bounds[row] = min(bounds[row], _squared_distance(points[row], points[best]))
                seen[row] = taken + made
    return made


def _cover_on_device(features: Tensor, count: int, start: int, exact_remaining: bool, label: str) -> Cover:
    """The pooled lazy method where the features are, without a host sync inside a run of picks.

    It differs from the method on a CPU in this: products are float32, the nearest centre by product is measured
    directly (all of them where products cancel), and every row of the pool takes part in every step.

    Args:
        features: ``(n, dim)`` on any device.
        count, start, exact_remaining, label: see `cover_points`.
    """
    cover = _DeviceCover(features, count, start)
    for _ in progress(cover.pick(), count, label):
        pass
    if exact_remaining:
        for block in torch.arange(len(features), device=features.device).split(_POOL_ROWS):
            cover.refresh(block)
    return cover.result()


class _DeviceCover:
    """State of `_cover_on_device`; tensors on the device of the features, distances squared."""

    def __init__(self, features: Tensor, count: int, start: int):
        device = features.device
        self.features, self.count, self.taken = features, count, 1
        self.rows = torch.full((count,), start, dtype=torch.int64, device=device)
        self.distances = torch.full((count,), torch.inf, device=device)
        self.seen = torch.ones(len(features), dtype=torch.int64, device=device)
        first_pick = features[start].float()
        self.bounds = torch.cat([(block.float() - first_pick).square().sum(dim=1) for block in features.split(65536)])
        if not bool(torch.isfinite(self.bounds).all()):
            raise StudyError("the features hold values that are not finite: remove those rows or embed them again.")
        self.bounds[start] = -1.0

    def pick(self) -> Iterator[None]:
        """Pick all rows; yields once a pick."""
        yield
        while self.taken < self.count:
            before = self.taken
            self._pick_from_pool()
            for _ in range(before, self.taken):
                yield

    def _pick_from_pool(self) -> None:
        size = min(_POOL_ROWS, len(self.bounds) - self.taken)
        floor = torch.topk(self.bounds, size).values[-1]
        above, level = (self.bounds > floor).nonzero()[:, 0], (self.bounds == floor).nonzero()[:, 0]
        missing = size - len(above)
        rival = level[missing] if missing < len(level) else torch.tensor(len(self.bounds), device=floor.device)
        pool = torch.cat([above, level[:missing]]).sort().values
        points = self.refresh(pool)
        bounds = self.bounds[pool]
        running = torch.ones((), dtype=torch.bool, device=floor.device)
        while self.taken < self.count:
            steps = min(_DEVICE_STEPS, self.count - self.taken)
            picked, distances, bounds, running = _step_on_device(points, pool, bounds, running, floor, rival, steps)
            made = int((picked >= 0).sum())
            places = slice(self.taken, self.taken + made)
            self.rows[places], self.distances[places] = picked[:made], distances[:made]
            self.taken += made
            if made < steps:
                break
        self.bounds[pool], self.seen[pool] = bounds, self.taken

    def refresh(self, rows: Tensor) -> Tensor:
        """Compare rows with the centres they missed; returns their coordinates ``(len(rows), dim)`` float32."""
        rows_by_age = rows[self.seen[rows].argsort()]
        ages = self.seen[rows_by_age[::_GROUP_ROWS]].tolist()
        for group, age in zip(rows_by_age.split(_GROUP_ROWS), ages, strict=True):
            points, bounds = self.features[group].float(), self.bounds[group]
            for begin in range(age, self.taken, _CENTRE_BLOCK):
                picks = self.rows[begin : min(begin + _CENTRE_BLOCK, self.taken)]
                bounds = torch.minimum(bounds, _nearest_squares(points, self.features[picks].float()))
            self.bounds[group] = torch.where(self.bounds[group] < 0.0, self.bounds[group], bounds)
        self.seen[rows] = self.taken
        return self.features[rows].float()

    def result(self) -> Cover:
        rows = self.rows.cpu().numpy()
        distances, remaining = (
            values.double().clamp(min=0.0).sqrt().cpu().numpy() for values in (self.distances, self.bounds)
        )
        return Cover(rows, distances, remaining)


def _nearest_squares(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distance of each point to its nearest centre ``(points,)``, free of cancellation."""
    products = points @ centres.T
    squares = centres.square().sum(dim=1)
    nearest = (products - 0.5 * squares).argmax(dim=1)
    distances = (points - centres[nearest]).square().sum(dim=1)
    close = (distances < _CANCELLATION * points.square().sum(dim=1)).nonzero()[:, 0]
    if len(close):
        direct = torch.cdist(points[close], centres, compute_mode="donot_use_mm_for_euclid_dist")
        distances[close] = direct.amin(dim=1).square()
    return distances


def _step_on_device(
    points: Tensor, pool: Tensor, bounds: Tensor, running: Tensor, floor: Tensor, rival: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make up to ``steps`` picks in the pool without asking the device how far they got.

    Steps after the last possible pick change nothing and note -1.

    Args:
        points: ``(pool, dim)`` float32; pool: their rows, ascending; bounds: their exact squared distances.
        running: whether picks are possible still, a scalar.
        floor: no row outside has a larger bound; rival: the first of those that have this one.

    Returns:
        Rows and squared distances of the picks ``(steps,)``, the new bounds and ``running``.
    """
    picked, distances = [], []
    for _ in range(steps):
        best = bounds.argmax().view(1)
        bound, row = bounds.index_select(0, best), pool.index_select(0, best)
        running = running & ((bound > floor) | ((bound == floor) & (row < rival))) & (bound >= 0.0)
        picked.append(torch.where(running, row, -1))
        distances.append(bound)
        lower = torch.minimum(bounds, (points - points.index_select(0, best)).square().sum(dim=1))
        bounds = torch.where(running, lower.index_fill(0, best, -1.0), bounds)
    return torch.cat(picked), torch.cat(distances), bounds, running
