"""The expensive steps of the selection rule as compiled loops: the form for CPUs.

The nearest prototype is found with one matrix product, whose rounding is bounded: wherever it could have misled, the
distances themselves decide. Farthest-point sampling makes distance, running minimum and argmax in one pass over the
members of a prototype, and passes over a member without looking at its features as long as an older, larger value of
its minimum shows that it cannot be the farthest.

Loops release the interpreter's lock; a large batch is dealt to as many threads as torch may use. numba's own threads
are left alone: they bear neither forks nor several callers.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from chexstudy import paths
from chexstudy.curation.online import static
from chexstudy.vectors.products import multiply_rows, product_rounding

# numba reads it when it is first imported; the installed package need not be writable.
os.environ.setdefault("NUMBA_CACHE_DIR", str(paths.cache() / "numba"))

from numba import njit

# A batch of fewer numbers is not worth a second thread.
_NUMBERS_WORTH_A_THREAD = 2**20
# Sums may be reordered, which lets them be vectorised; NaN and infinity keep their meaning.
_compile = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


@_compile
def _distance(points, row, centres, centre):
    total = 0.0
    for column in range(points.shape[1]):
        difference = np.float64(points[row, column]) - centres[centre, column]
        total += difference * difference
    return np.sqrt(total)


@_compile
def _decide_nearest(points, centres, norms, scores, best, unit, begin, end, prototype, distance):
    """Nearest centre of rows ``begin`` to ``end``, by distance to those whose score may be the best.

    A score is ``x.p - |p|^2 / 2``, the larger the nearer, off by at most ``unit`` relative to lengths; ``best`` is the
    largest of each row.
    """
    largest = norms.max()
    count = centres.shape[0]
    for row in range(begin, end):
        score, top = scores[row], best[row]
        nearest = 0
        while nearest + 1 < count and score[nearest] != top:
            nearest += 1
        shortest = _distance(points, row, centres, nearest)
        length = shortest + norms[nearest]
        floor = top - 2.0 * unit * largest * (length + largest)
        rivals = 0
        for column in range(count):
            rivals += score[column] >= floor
        if rivals > 1:
            shortest = np.inf
            for column in range(count):
                if score[column] >= floor:
                    candidate = _distance(points, row, centres, column)
                    if candidate < shortest:
                        nearest, shortest = column, candidate
        prototype[row] = nearest
        distance[row] = shortest


@_compile
def _scan_farthest(points, rows, starts, sizes, first, cap, groups, order):
    """Farthest points of each of the ``groups``; writes their places into ``order``."""
    picked = np.empty((cap, points.shape[1]), np.float64)
    for group in groups:
        size = sizes[group]
        members = rows[starts[group] : starts[group] + size]
        # An upper bound of the distance to the nearest pick, and how many picks it has seen; -1 for a pick itself.
        bound = np.full(size, np.inf)
        seen = np.zeros(size, np.int64)
        current, promising = 0, -1
        while members[current] != first[group]:
            current += 1
        for place in range(cap):
            order[members[current]] = place
            bound[current] = -1.0
            picked[place] = points[members[current]]
            if place + 1 == cap:
                break
            # A good first candidate, visited out of turn, spares the others their distances.
            farthest, current, runner_up = -1.0, -1, -1.0
            start = promising
            promising = -1
            for visit in range(-1, size):
                member = start if visit < 0 else visit
                if member < 0:
                    continue
                while seen[member] <= place and (
                    bound[member] > farthest or (bound[member] == farthest and member < current)
                ):
                    gap = _distance(points, members[member], picked, seen[member])
                    bound[member] = min(bound[member], gap)
                    seen[member] += 1
                if bound[member] > farthest or (bound[member] == farthest and member < current):
                    if farthest > runner_up:
                        runner_up, promising = farthest, current
                    farthest, current = bound[member], member
                elif member != current and bound[member] > runner_up:
                    runner_up, promising = bound[member], member


def assign_nearest(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """As `chexstudy.curation.online.static.assign_nearest`, for tensors in the memory of the CPU."""
    points, centres = _as_matrix(features), np.ascontiguousarray(prototypes.detach().double().numpy())
    prototype, distance = np.empty(len(points), np.int64), np.empty(len(points))
    norms = np.linalg.norm(centres, axis=1)
    narrow = torch.from_numpy(points).dtype
    columns, offsets = (torch.from_numpy(part).to(narrow) for part in (centres, -0.5 * norms**2))
    scores = multiply_rows(torch.from_numpy(points), columns, offsets)
    best, unit = scores.amax(dim=1).numpy(), product_rounding(narrow, points.shape[1])
    shared = (points, centres, norms, scores.numpy(), best, unit)
    edges = np.linspace(0, len(points), _count_workers(points) + 1).astype(int).tolist()
    _run(_decide_nearest, [(*shared, *own, prototype, distance) for own in itertools.pairwise(edges)])
    return torch.from_numpy(prototype), torch.from_numpy(distance)


def order_farthest(
    features: Tensor, group: Tensor, rows: Tensor, starts: Tensor, sizes: Tensor, first: Tensor, cap: int
) -> Tensor:
    """As `chexstudy.curation.online.static.order_farthest`, for tensors in the memory of the CPU."""
    points = _as_matrix(features)
    order = np.full(len(points), -1)
    counts = sizes.numpy()
    thinned = np.flatnonzero(counts > cap)
    # Largest first and dealt in turns, so that threads end at about the same time.
    thinned = thinned[np.argsort(-counts[thinned], kind="stable")]
    shared, workers = (points, rows.numpy(), starts.numpy(), counts, first.numpy(), cap), _count_workers(points)
    _run(_scan_farthest, [(*shared, thinned[turn::workers], order) for turn in range(workers)])
    return torch.from_numpy(order)


def mean_gaps(
    features: Tensor, group: Tensor, rows: Tensor, starts: Tensor, sizes: Tensor, cap: int, neighbours: int
) -> Tensor:
    """As `chexstudy.curation.online.static.mean_gaps`, group by group, and only for groups larger than the cap."""
    means = torch.zeros(len(features), dtype=torch.float64)
    for number in (sizes > cap).nonzero().squeeze(1).tolist():
        members = rows[starts[number] : starts[number] + sizes[number]]
        alone = torch.zeros(len(members), dtype=torch.int64)
        means[members] = static.mean_gaps(
            features[members], alone, members, alone[:1], alone[:1] + len(members), cap, neighbours
        )
    return means


def _count_workers(points: np.ndarray) -> int:
    """Threads for one step: as many as torch may use, or the caller's alone where there is little to do."""
    return max(1, min(torch.get_num_threads(), points.size // _NUMBERS_WORTH_A_THREAD))


def _run(kernel: Callable, calls: list[tuple]) -> None:
    """Call the kernel with each tuple of arguments, in threads that end with it: none is left for a fork to break."""
    if len(calls) == 1:
        kernel(*calls[0])
        return
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(kernel, *arguments) for arguments in calls]:
            call.result()


def _as_matrix(features: Tensor) -> np.ndarray:
    """The features as a contiguous float32 or float64 matrix, copied only if they are anything else."""
    features = features.detach()
    return (features if features.dtype in (torch.float32, torch.float64) else features.float()).contiguous().numpy()
