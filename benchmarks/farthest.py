"""Offline farthest-point selection and facility location against their peers, in the same run.

Peers: the plain loop (one product of differences and one ``.item()`` a pick), a fused scan (numba: distance, running
minimum and argmax in one pass, all threads), fpsample and apricot where they are installed. A scan costs the same for
every pick, so peers that would take an hour are timed on their first picks and extrapolated linearly; the table says
from how many. Two sets of embeddings, unit norm: `clustered` (heavy-tailed clusters in 64 dimensions, spread in 24 of
them, noise in all) as encoders give them, and `isotropic`, without any structure, the hardest for pruning.
"""

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np
import torch
from record import Goal, benchmark_parser, measure_in_turns, reach, write_record
from threadpoolctl import threadpool_limits

from chexstudy.vectors.facility_location import facility_location
from chexstudy.vectors.farthest import cover_points
from chexstudy.vectors.neighbours import nearest_rows

KEEP = 0.227
PREFIXES = {"plain loop": 20, "fused scan": 150, "fpsample": 30}


def draw_isotropic(rows: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors of no preferred direction ``(rows, dim)`` float32."""
    points = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def draw_clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors in 200 clusters of very unequal size, of low intrinsic dimension ``(rows, dim)`` float32."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(200, 0.5))
    clusters = generator.choice(200, rows, p=shares)
    spread = generator.standard_normal((24, 64), dtype=np.float32) / np.float32(2 * np.sqrt(24))
    latent = generator.standard_normal((200, 64), dtype=np.float32)[clusters]
    latent += generator.standard_normal((rows, 24), dtype=np.float32) @ spread
    points = latent @ (generator.standard_normal((64, dim), dtype=np.float32) / 8)
    points += np.float32(0.05) * generator.standard_normal((rows, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


DRAWS = {"clustered": draw_clustered, "isotropic": draw_isotropic}


def pick_plainly(points: torch.Tensor, count: int, start: int = 0) -> tuple[list[int], float]:
    """The plain loop; returns the picks and the covering radius."""
    nearest = torch.full((len(points),), torch.inf)
    picked = [start]
    while True:
        distance = ((points - points[picked[-1]]) ** 2).sum(dim=1).sqrt()
        nearest = torch.minimum(nearest, distance)
        nearest[picked[-1]] = -1.0
        if len(picked) == count:
            return picked, float(nearest.max())
        picked.append(nearest.argmax().item())


@numba.njit(parallel=True, fastmath=True)
def scan_fused(points, centre, nearest, tops, places):
    """Lower the squared distances to the nearest pick and find the largest of each part, in one pass."""
    parts, dim = len(tops), points.shape[1]
    for part in numba.prange(parts):
        top, place = np.float32(-2.0), 0
        for row in range(part * len(points) // parts, (part + 1) * len(points) // parts):
            total = np.float32(0.0)
            for column in range(dim):
                difference = points[row, column] - points[centre, column]
                total += difference * difference
            if row == centre:
                nearest[row] = np.float32(-1.0)
            elif total < nearest[row]:
                nearest[row] = total
            if nearest[row] > top:
                top, place = nearest[row], row
        tops[part], places[part] = top, place


def pick_by_fused_scan(points: np.ndarray, count: int, start: int = 0) -> tuple[list[int], float]:
    """The loop over `scan_fused`; returns the picks and the covering radius."""
    parts = numba.get_num_threads()
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    tops, places = np.empty(parts, dtype=np.float32), np.empty(parts, dtype=np.int64)
    picked = [start]
    while True:
        scan_fused(points, picked[-1], nearest, tops, places)
        if len(picked) == count:
            return picked, float(np.sqrt(max(nearest.max(), 0.0)))
        picked.append(int(places[tops.argmax()]))


def pick_by_fpsample(points: np.ndarray, count: int) -> np.ndarray:
    import fpsample

    return fpsample.fps_sampling(points, count, start_idx=0)


def compare_farthest(rows: int, dim: int, data: str, seed: int, rounds: int) -> list[dict]:
    """Time the full selection and prefixes of the peers on one set."""
    points = DRAWS[data](rows, dim, seed)
    count = round(KEEP * rows)
    peers: dict[str, Callable] = {
        "plain loop": partial(pick_plainly, torch.from_numpy(points)),
        "fused scan": partial(pick_by_fused_scan, points),
        "fpsample": partial(pick_by_fpsample, points),
    }
    if find_spec("fpsample") is None:
        del peers["fpsample"]
    calls: dict[str, Callable] = {"pooled": partial(cover_points, points, count)}
    calls |= {name: partial(pick, PREFIXES[name]) for name, pick in peers.items()}
    timings = measure_in_turns(calls, rounds, seconds=10.0, warm_up=False)
    ours = timings["pooled"].best
    table = []
    for name, timing in timings.items():
        timed = PREFIXES.get(name, count)
        seconds = timing.best * count / timed
        table.append(
            {
                "task": "farthest points",
                "method": name,
                "data": data,
                "rows": rows,
                "dim": dim,
                "picked": count,
                "seconds": seconds,
                "picks_timed": timed,
                "extrapolated": timed < count,
                "times_ours": seconds / ours,
            }
        )
    return table


def measure_radius(points: np.ndarray, picks: np.ndarray) -> float:
    """The covering radius: the largest distance of a row to its nearest pick."""
    others = np.setdiff1d(np.arange(len(points)), picks)
    return float(nearest_rows(points[others], points[picks], 1)[1].max())


def compare_radii(seed: int) -> list[dict]:
    """Covering radius of the whole selection beside the plain loop's and the fused scan's, where those are quick."""
    table = []
    for data, draw in DRAWS.items():
        for name, rows in (("plain loop", 5000), ("fused scan", 20000)):
            points = draw(rows, 1024, seed)
            count = round(KEEP * rows)
            rows_picked = cover_points(points, count)
            ours = measure_radius(points, rows_picked)
            picked, radius = (
                pick_plainly(torch.from_numpy(points), count)
                if name == "plain loop"
                else pick_by_fused_scan(points, count)
            )
            table.append(
                {
                    "task": "covering radius",
                    "method": name,
                    "data": data,
                    "rows": rows,
                    "dim": 1024,
                    "picked": count,
                    "radius": ours,
                    "radius_difference": abs(ours - radius),
                    "same_picks": float(np.mean(np.array(picked) == rows_picked)),
                }
            )
    return table


def _cover_file(path: str, count: int, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        start = time.perf_counter()
        cover_points(np.load(path, mmap_mode="r"), count)
        return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_memory(rows: int, seed: int, threads: int) -> dict:
    """Cover a memory-mapped file in a process of its own and note its peak memory, mapped pages included."""
    count = round(KEEP * rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        np.save(path, draw_clustered(rows, 1024, seed))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak = pool.apply(_cover_file, (str(path), count, threads))
    return {
        "task": "farthest points from a file",
        "method": "pooled",
        "data": "clustered",
        "rows": rows,
        "dim": 1024,
        "picked": count,
        "seconds": seconds,
        "peak_gib": peak,
    }


def pick_by_apricot(points: np.ndarray, count: int) -> np.ndarray:
    import apricot

    similarity = np.maximum(points @ points.T, 0.0)
    selector = apricot.FacilityLocationSelection(count, metric="precomputed", optimizer="lazy")
    return selector.fit(similarity).ranking


def measure_objective(points: np.ndarray, picks: np.ndarray) -> float:
    """The facility-location value of picks: the sum over rows of the cosine to the most similar pick, 0 at least."""
    chosen = points[picks].T
    nearest = [(points[first : first + 2000] @ chosen).max(axis=1) for first in range(0, len(points), 2000)]
    return float(np.maximum(np.concatenate(nearest), 0.0).sum(dtype=np.float64))


def compare_facility(rows: int, count: int, dim: int, data: str, seed: int, rounds: int) -> list[dict]:
    """Time facility location, similarities included, and measure the objective of each."""
    points = DRAWS[data](rows, dim, seed)
    picks: dict[str, np.ndarray] = {}
    calls = {"block-lazy greedy": lambda: picks.update(ours=facility_location(points, count)[0])}
    if find_spec("apricot"):
        calls["apricot"] = lambda: picks.update(apricot=pick_by_apricot(points, count))
    timings = measure_in_turns(calls, rounds)
    ours = timings["block-lazy greedy"].best
    return [
        {
            "task": "facility location",
            "method": name,
            "data": data,
            "rows": rows,
            "dim": dim,
            "picked": count,
            "seconds": timing.best,
            "objective": measure_objective(points, chosen),
            "times_ours": timing.best / ours,
        }
        for (name, timing), chosen in zip(timings.items(), picks.values(), strict=True)
    ]


def judge(table: list[dict]) -> list[Goal]:
    """The goals, each against the worst of its rows."""

    def ratios(task: str, method: str) -> list[float]:
        return [row["times_ours"] for row in table if row["task"] == task and row["method"] == method]

    goals = []
    for method, target in (("plain loop", 100), ("fpsample", 90), ("fused scan", 10)):
        measured = min(ratios("farthest points", method), default=None)
        note = "not installed" if measured is None else ""
        goals.append(reach(f"farthest points, speed-up over {method}, worst row", target, measured, note=note))
    differences = [row["radius_difference"] for row in table if row["task"] == "covering radius"]
    goals.append(reach("covering radius, largest difference", 1e-5, max(differences), at_least=False))
    file = next(row for row in table if row["task"] == "farthest points from a file")
    goals.append(reach("farthest points from a file, seconds", 60, file["seconds"], at_least=False))
    goals.append(reach("farthest points from a file, peak GiB", 3, file["peak_gib"], at_least=False))
    apricot = min(ratios("facility location", "apricot"), default=None)
    note = "not installed" if apricot is None else ""
    goals.append(reach("facility location, speed-up over apricot, worst row", 6, apricot, note=note))
    objectives = [(row["data"], row["objective"]) for row in table if row["task"] == "facility location"]
    losses = [max(v for d, v in objectives if d == data) / value - 1 for data, value in objectives]
    if apricot is not None:
        goals.append(reach("facility location, relative difference of objectives", 1e-4, max(losses), at_least=False))
    return goals


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=2)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the sets to cover")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    numba.set_num_threads(min(options.threads, numba.config.NUMBA_NUM_THREADS))
    os.environ["CHEXSTUDY_HEADLESS"] = "1"
    with threadpool_limits(options.threads):
        for draw in DRAWS.values():
            cover_points(draw(3000, 64, 0), 300)
            pick_by_fused_scan(draw(3000, 64, 0), 3)
        table = [
            row
            for dim in (512, 1024)
            for data in DRAWS
            for row in compare_farthest(options.rows, dim, data, options.seed, options.rounds)
        ]
        table += compare_radii(options.seed)
        table.append(measure_memory(options.rows, options.seed, options.threads))
        for data in DRAWS:
            table += compare_facility(10_000, 1000, 512, data, options.seed, options.rounds)
    write_record("farthest", table, judge(table), options.out, packages=("fpsample", "apricot-select"))


if __name__ == "__main__":
    main()
