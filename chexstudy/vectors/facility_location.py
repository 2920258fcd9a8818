"""Facility location: rows that represent all others as well as possible."""

import heapq
from collections.abc import Iterator

import numpy as np
import torch
from numba import njit

from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.vectors.farthest import check_features, fill_pool

# Candidates whose similarities to all rows are held at a time while the picks are few.
_POOL_ROWS = 256
# Candidates in one product of a pass over all pairs, and rows they are compared with at a time.
_BLOCK_ROWS, _BLOCK_COLUMNS = 512, 8192
# All cosines are held where there are no more than these: 4 bytes each, half a gibibyte.
_HELD_PAIRS = 2**27
# Pairs that still matter are listed once there are so few: 8 bytes each, half a gibibyte.
_LISTED_PAIRS = 2**26
_PICKS_BETWEEN_LOOKS = 512
# Most pairs no longer matter when they are listed, so rows are looked through this many at a time.
_TILE = 32


def facility_location(
    features: np.ndarray,
    count: int,
    generator: torch.Generator | None = None,
    *,
    part_rows: int | None = None,
    label: str = "facility location",
) -> tuple[np.ndarray, np.ndarray]:
    """Pick rows greedily for the largest sum, over all rows, of the similarity to the most similar pick.

    The objective is that of Nemhauser, Wolsey and Fisher (1978); similarity is the cosine, and 0 where the cosine is
    negative. Each pick is the row of the largest gain, to the rounding of float32 products: where two rows gain the
    same, as two that are each other's nearest often do, rounding decides, and the value stays that of exact greedy.

    Up to about 11,000 rows all cosines are held, and the gains of all rows are kept exact. Above, a gain is renewed
    only when it is the largest bound, for gains only fall (Minoux 1978), and bounds are renewed in blocks by matrix
    products. Once the rows are represented so well that few pairs could still improve anything, those pairs are listed
    and the rest is done without products.

    Every pair of rows is multiplied once or a few times, so time grows with ``n**2``. For very large sets
    ``part_rows`` splits them at random and picks in each part its share: the first round of GreeDi (Mirzasoleiman et
    al. 2013), no longer exact greedy.

    Rows ``(n, dim)``, float32 or float16, are scaled to unit norm. Returns the picks in order ``(count,)`` and the gain
    of each: their sum is the objective. With ``part_rows``, which the generator draws, picks are ordered by gain, and
    gains are those within the part.
    """
    check_features(features, count)
    parts = _split_rows(len(features), part_rows, generator)
    picks, gains = [], []
    for part, share in zip(parts, _share_budget(count, parts), strict=True):
        if share:
            greedy = _Greedy(features, part, share, label)
            greedy.pick()
            picks.append(part[greedy.picks])
            gains.append(greedy.gains)
    picks, gains = np.concatenate(picks), np.concatenate(gains)
    order = np.argsort(-gains, kind="stable") if len(parts) > 1 else np.arange(count)
    return picks[order], gains[order]


def _split_rows(rows: int, part_rows: int | None, generator: torch.Generator | None) -> list[np.ndarray]:
    if part_rows is None or part_rows >= rows:
        return [np.arange(rows)]
    if part_rows < 1:
        raise StudyError(f"a part must have at least one row, not {part_rows}.")
    if generator is None:
        raise StudyError("a random split into parts needs a generator: pass one, or leave out part_rows.")
    order = torch.randperm(rows, generator=generator).numpy()
    return [np.sort(part) for part in np.array_split(order, -(-rows // part_rows))]


def _share_budget(count: int, parts: list[np.ndarray]) -> np.ndarray:
    """The budget in proportion to the parts' sizes, whole numbers that add up to it."""
    ends = np.cumsum([len(part) for part in parts])
    return np.diff(np.round(ends * (count / ends[-1])).astype(np.int64), prepend=0)


class _Greedy:
    """Exact lazy greedy on some ``rows`` of the features, ascending; row numbers are places among them."""

    def __init__(self, features: np.ndarray, rows: np.ndarray, count: int, label: str):
        self.features, self.rows, self.label = features, rows, label
        self.blocks = [slice(first, first + _BLOCK_COLUMNS) for first in range(0, len(rows), _BLOCK_COLUMNS)]
        self.scales = np.concatenate([self._measure_scales(block) for block in self.blocks])
        self.covered = np.zeros(len(rows), dtype=np.float32)
        self.bounds = np.zeros(len(rows))
        self.picks = np.empty(count, dtype=np.int64)
        self.gains = np.empty(count)
        self.taken = 0
        self.pairs = None

    def _raw(self, places: np.ndarray | slice) -> np.ndarray:
        whole = len(self.rows) == len(self.features)
        return np.asarray(self.features[places if whole else self.rows[places]], dtype=np.float32)

    def _measure_scales(self, block: slice) -> np.ndarray:
        points = self._raw(block)
        norms = np.sqrt(np.einsum("ij,ij->i", points, points, dtype=np.float64))
        if not (np.isfinite(norms).all() and norms.all()):
            raise StudyError("the features hold rows that are zero or not finite: remove them or embed them again.")
        return (1.0 / norms).astype(np.float32)

    def _read(self, places: np.ndarray | slice) -> np.ndarray:
        return self._raw(places) * self.scales[places, None]

    def pick(self) -> None:
        """Pick all rows."""
        if len(self.rows) ** 2 <= _HELD_PAIRS:
            steps = self._pick_with_all(self._hold_cosines())
        else:
            self._measure_gains()
            # The first picks cost far more than the later ones, so their rate says nothing about the time left.
            for _ in progress(self._pick_from_pools(), label=f"{self.label}: first picks"):
                pass
            steps = () if self.pairs is None else self._pick_from_pairs(*self.pairs)
        for _ in progress(steps, len(self.picks) - self.taken, self.label):
            pass

    def _pick_from_pools(self) -> Iterator[None]:
        """Pick until the pairs that still matter can be listed."""
        look = 1
        while self.taken < len(self.picks):
            if self.taken >= look:
                look = max(look + 1, look * 3 // 2)
                self.pairs = self._list_pairs() if self._estimate_pairs() <= 0.8 * _LISTED_PAIRS else None
                if self.pairs is not None:
                    return
            before = self.taken
            self._pick_from_pool()
            for _ in range(before, self.taken):
                yield

    def _hold_cosines(self) -> np.ndarray:
        """The cosines of all pairs, each multiplied once ``(rows, rows)``; gains of the first pick along the way."""
        points, rows = self._read(slice(None)), len(self.rows)
        cosines = np.empty((rows, rows), dtype=np.float32)
        for first in range(0, rows, _BLOCK_ROWS):
            block, later = slice(first, first + _BLOCK_ROWS), slice(first + _BLOCK_ROWS, None)
            np.matmul(points[block], points[first:].T, out=cosines[block, first:])
            cosines[later, block] = cosines[block, later].T
        _measure_gains(cosines, self.covered, self.bounds)
        return cosines

    def _pick_with_all(self, cosines: np.ndarray) -> Iterator[None]:
        while self.taken < len(self.picks):
            places = slice(self.taken, min(self.taken + _PICKS_BETWEEN_LOOKS, len(self.picks)))
            _pick_with_all_gains(cosines, self.bounds, self.covered, self.picks[places], self.gains[places])
            for _ in range(self.taken, places.stop):
                yield
            self.taken = places.stop

    def _measure_gains(self) -> None:
        """The gain of every row as the first pick; similarity is symmetric, so each pair is multiplied once."""
        firsts = range(0, len(self.rows), _BLOCK_ROWS)
        for first in progress(firsts, len(firsts), f"{self.label}: first gains"):
            block = slice(first, min(first + _BLOCK_ROWS, len(self.rows)))
            points = self._read(block)
            _add_both_gains(points @ points.T, self.bounds[block], np.zeros(len(points)))
            for others in self.blocks:
                later = slice(max(others.start, block.stop), min(others.stop, len(self.rows)))
                if later.start < later.stop:
                    _add_both_gains(points @ self._read(later).T, self.bounds[block], self.bounds[later])

    def _compare(self, places: np.ndarray | slice) -> np.ndarray:
        """Cosines of some rows with all rows, ``(places, rows)``."""
        points = self._read(places)
        cosines = np.empty((len(points), len(self.rows)), dtype=np.float32)
        for block in self.blocks:
            np.matmul(points, self._read(block).T, out=cosines[:, block])
        return cosines

    def _pick_from_pool(self) -> None:
        """Pick among the candidates of the largest bounds until one outside might gain more."""
        pool, floor, rival = fill_pool(self.bounds, min(_POOL_ROWS, len(self.rows) - self.taken))
        bounds = self.bounds[pool]
        places = slice(self.taken, None)
        made = _pick_in_pool(
            self._compare(pool), pool, bounds, floor, rival, self.covered, self.picks[places], self.gains[places]
        )
        self.bounds[pool] = bounds
        self.taken += made

    def _estimate_pairs(self) -> float:
        """How many pairs could still gain something, from candidates evenly spread over the rows."""
        sample = np.unique(np.linspace(0, len(self.rows) - 1, _POOL_ROWS).astype(np.int64))
        return float(np.mean(np.count_nonzero(self._compare(sample) > self.covered, axis=1))) * len(self.rows)

    def _list_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Each candidate's rows whose similarity it would raise, one candidate after the other.

        Gives where the pairs of each candidate start ``(rows + 1,)``, the rows and the similarities; None if there are
        too many.
        """
        starts = np.zeros(len(self.rows) + 1, dtype=np.int64)
        others = np.empty(_LISTED_PAIRS, dtype=np.int32)
        cosines = np.empty(_LISTED_PAIRS, dtype=np.float32)
        firsts = range(0, len(self.rows), _POOL_ROWS)
        for first in progress(firsts, len(firsts), f"{self.label}: pairs that matter"):
            block = slice(first, min(first + _POOL_ROWS, len(self.rows)))
            if not _append_pairs(self._compare(block), first, self.covered, self.bounds, starts, others, cosines):
                return None
        return starts, others, cosines

    def _pick_from_pairs(self, starts: np.ndarray, others: np.ndarray, cosines: np.ndarray) -> Iterator[None]:
        for first in range(self.taken, len(self.picks), _PICKS_BETWEEN_LOOKS):
            places = slice(first, min(first + _PICKS_BETWEEN_LOOKS, len(self.picks)))
            _pick_by_heap(starts, others, cosines, self.bounds, self.covered, self.picks[places], self.gains[places])
            self.taken = places.stop
            for _ in range(first, self.taken):
                yield


@njit(cache=True, nogil=True, fastmath=True)
def _add_both_gains(cosines, left, right):
    """Add the positive cosines of each row to ``left`` and of each column to ``right``."""
    rows, columns = cosines.shape
    for row in range(rows):
        total = 0.0
        for column in range(columns):
            similarity = max(cosines[row, column], np.float32(0.0))
            total += similarity
            right[column] += similarity
        left[row] += total


@njit(cache=True, nogil=True, fastmath=True)
def _sum_gain(cosines, covered):
    total = 0.0
    for row in range(len(covered)):
        total += max(cosines[row] - covered[row], np.float32(0.0))
    return total


@njit(cache=True, nogil=True)
def _measure_gains(cosines, covered, gains):
    for row in range(len(cosines)):
        gains[row] = _sum_gain(cosines[row], covered)


@njit(cache=True, nogil=True, fastmath=True)
def _largest(values):
    largest = values[0]
    for value in values:
        largest = max(largest, value)
    return largest


@njit(cache=True, nogil=True)
def _first_of_largest(values):
    """``argmax`` in two passes, of which the first is vectorised."""
    largest = _largest(values)
    place = 0
    while values[place] != largest:
        place += 1
    return place


@njit(cache=True, nogil=True, fastmath=True)
def _lower_gains(cosines, before, after, gains):
    """Take from the gains of all candidates what one row no longer offers, now that it is better represented."""
    for candidate in range(len(gains)):
        similarity = cosines[candidate]
        gains[candidate] -= max(similarity - before, np.float32(0.0)) - max(similarity - after, np.float32(0.0))


@njit(cache=True, nogil=True)
def _pick_with_all_gains(cosines, bounds, covered, picks, gains):
    """Greedy with the gains of all candidates kept exact: a pick changes them through the rows it represents better.

    Those rows get fewer with every pick, and similarity is symmetric, so a row of cosines is read for each.
    """
    for made in range(len(picks)):
        best = _first_of_largest(bounds)
        gain = 0.0
        for row in range(len(covered)):
            similarity = cosines[best, row]
            if similarity > covered[row]:
                gain += similarity - covered[row]
                _lower_gains(cosines[row], covered[row], similarity, bounds)
                covered[row] = similarity
        picks[made], gains[made] = best, gain
        bounds[best] = -1.0


@njit(cache=True, nogil=True)
def _pick_in_pool(cosines, pool, bounds, floor, rival, covered, picks, gains):
    """Pick in a pool while no candidate outside can gain more; returns the number of picks made.

    ``cosines`` are those of the candidates, ``pool``, ascending, with all rows; ``bounds`` the upper bounds of their
    gains, renewed here and -1 once picked. No candidate outside has a bound above ``floor``; ``rival`` is the first of
    those that have this one. ``covered``, the similarity of each row to its most similar pick, is raised here.
    """
    fresh = np.full(len(pool), -1)
    made = 0
    while made < len(picks):
        best = _first_of_largest(bounds)
        if bounds[best] < floor or (bounds[best] == floor and pool[best] > rival):
            break
        if fresh[best] < made:
            bounds[best] = min(bounds[best], _sum_gain(cosines[best], covered))
            fresh[best] = made
            continue
        if bounds[best] < 0.0:
            break
        picks[made], gains[made] = pool[best], bounds[best]
        made += 1
        for row in range(len(covered)):
            covered[row] = max(covered[row], cosines[best, row])
        bounds[best] = -1.0
        fresh[best] = len(picks)
    return made


@njit(cache=True, nogil=True, fastmath=True)
def _largest_gain(cosines, covered):
    largest = np.float32(0.0)
    for row in range(len(covered)):
        largest = max(largest, cosines[row] - covered[row])
    return largest


@njit(cache=True, nogil=True)
def _append_pairs(cosines, first, covered, bounds, starts, others, kept):
    """List the pairs of a block of candidates and renew their bounds; False when there is no room."""
    for place in range(len(cosines)):
        candidate = first + place
        end = starts[candidate]
        if bounds[candidate] >= 0.0:
            if end + len(covered) > len(others) and end + (cosines[place] > covered).sum() > len(others):
                return False
            gain = 0.0
            for begin in range(0, len(covered), _TILE):
                tile = slice(begin, min(begin + _TILE, len(covered)))
                if _largest_gain(cosines[place, tile], covered[tile]) <= 0.0:
                    continue
                for row in range(tile.start, tile.stop):
                    similarity = cosines[place, row]
                    if similarity > covered[row]:
                        others[end] = row
                        kept[end] = similarity
                        gain += similarity - covered[row]
                        end += 1
            bounds[candidate] = gain
        starts[candidate + 1] = end
    return True


@njit(cache=True, nogil=True)
def _pick_by_heap(starts, others, cosines, bounds, covered, picks, gains):
    """Lazy greedy on the listed pairs; of equal bounds the first row is looked at first."""
    heap = [(-bounds[row], row) for row in range(len(bounds)) if bounds[row] >= 0.0]
    heapq.heapify(heap)
    fresh = np.full(len(bounds), -1)
    made = 0
    while made < len(picks):
        best = heap[0][1]
        pairs = range(starts[best], starts[best + 1])
        if fresh[best] == made:
            picks[made], gains[made] = best, bounds[best]
            made += 1
            for pair in pairs:
                covered[others[pair]] = max(covered[others[pair]], cosines[pair])
            bounds[best] = -1.0
            heapq.heappop(heap)
        else:
            gain = 0.0
            for pair in pairs:
                gain += max(cosines[pair] - covered[others[pair]], np.float32(0.0))
            bounds[best], fresh[best] = gain, made
            heapq.heapreplace(heap, (-gain, best))
