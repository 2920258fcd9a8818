"""Maps of the stages of curation: our chain against AlignedUMAP and against maps fitted apart.

    python benchmarks/maps.py --rows 2000 --stages 3

Clusters of uneven size drift and blur over the stages, as features do while a model learns; every stage holds the same
pairs. Each method is judged by its time, by how far neighbours on its maps can be trusted (mean over the stages, 15
neighbours), and by how far pairs move from stage to stage (median, as a share of the map's radius; maps fitted apart
are first laid over each other). Compilation is not timed. UMAP with a seed runs on one thread in all of them.
"""

import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from record import benchmark_parser, measure_in_turns, reach, write_record

from chexstudy.curation.records.stage_maps import fit_stage_maps, measure_movement
from chexstudy.vectors.umap import fit_map, lay_over, measure_trustworthiness

CLUSTERS, NEIGHBOURS = 40, 30


def draw_stages(rows: int, dim: int, stages: int, seed: int) -> list[np.ndarray]:
    """Unit-norm features ``(rows, dim)`` of each stage: clusters of uneven size, drifting."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(CLUSTERS, 0.7))
    cluster = generator.choice(CLUSTERS, rows, p=shares)
    # Clusters lie along a few broad directions, so that the map has a shape beyond its islands.
    broad = generator.normal(size=(8, dim))
    centres = generator.normal(size=(CLUSTERS, 8)) @ broad / np.sqrt(8)
    drift = 0.35 * generator.normal(size=(CLUSTERS, dim))
    own = 0.8 * generator.normal(size=(rows, dim))
    features = []
    for stage in range(stages):
        noise = 0.25 * generator.normal(size=(rows, dim))
        moved = (centres + stage * drift)[cluster] + own + noise
        features.append((moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32))
    return features


def fit_aligned(features: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """AlignedUMAP of all stages at once."""
    import umap

    same = {row: row for row in range(len(features[0]))}
    layout = umap.AlignedUMAP(n_neighbors=NEIGHBOURS, min_dist=0.15, random_state=seed)
    return list(layout.fit(features, relations=[same] * (len(features) - 1)).embeddings_)


def fit_apart(features: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """A map of each stage by itself, each then laid over the one before."""
    maps = [fit_map(rows, seed) for rows in features]
    for number in range(1, len(maps)):
        maps[number] = lay_over(maps[number], maps[number - 1])
    return maps


def judge(features: list[np.ndarray], maps: list[np.ndarray]) -> tuple[float, float]:
    """Mean trustworthiness of the maps and mean movement between them."""
    every = np.arange(len(features[0]))
    trust = [measure_trustworthiness(rows, places) for rows, places in zip(features, maps, strict=True)]
    moved = [measure_movement(before, after, every, every) for before, after in pairwise(maps)]
    return float(np.mean(trust)), float(np.mean(moved))


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=2)
    parser.add_argument("--rows", type=int, default=2_000, help="pairs a stage")
    parser.add_argument("--dim", type=int, default=512, help="width of the features")
    parser.add_argument("--stages", type=int, default=3, help="stages")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="umap")
    features = draw_stages(options.rows, options.dim, options.stages, options.seed)
    names = [np.arange(options.rows)] * options.stages
    methods = {
        "chained maps": lambda rows: fit_stage_maps(rows, names[: len(rows)], options.seed),
        "AlignedUMAP": lambda rows: fit_aligned(rows, options.seed),
        "maps fitted apart": lambda rows: fit_apart(rows, options.seed),
    }
    small = draw_stages(200, options.dim, options.stages, options.seed)
    fit_stage_maps(small, [np.arange(200)] * options.stages, options.seed)
    fit_aligned(small, options.seed)
    results: dict[str, list] = {name: [] for name in methods}
    timings = measure_in_turns(
        {name: lambda name=name, fit=fit: results[name].append(fit(features)) for name, fit in methods.items()},
        options.rounds,
        seconds=60.0,
        warm_up=False,
    )
    rows = []
    for name, timing in timings.items():
        trust, moved = judge(features, results[name][0])
        alike = all(
            np.array_equal(one, other)
            for again in results[name][1:]
            for one, other in zip(results[name][0], again, strict=True)
        )
        rows.append(
            {
                "method": name, "rows": options.rows, "dim": options.dim, "stages": options.stages,
                "seconds": timing.best, "rounds": timing.rounds, "trustworthiness": trust, "moved": moved,
                "repeatable": alike if timing.rounds > 1 else None,
            }
        )  # fmt: skip
    ours, aligned, apart = rows
    goals = [
        reach("chained maps over AlignedUMAP, times as fast", 5, aligned["seconds"] / ours["seconds"]),
        reach(
            "trustworthiness of chained maps minus AlignedUMAP's", -0.005,
            ours["trustworthiness"] - aligned["trustworthiness"],
        ),
        reach(
            "trustworthiness of chained maps minus that of maps fitted apart", -0.005,
            ours["trustworthiness"] - apart["trustworthiness"],
        ),
        reach("chained maps with one seed are the same bytes (1 yes)", 1, int(bool(ours["repeatable"]))),
        reach("movement of chained maps over that of maps fitted apart", 1, ours["moved"] / apart["moved"], False),
    ]  # fmt: skip
    write_record("maps", rows, goals, options.out, packages=("umap-learn", "pynndescent"))


if __name__ == "__main__":
    main()
