"""k-means of the package beside its peers: faiss as the package calls it, the package's torch Lloyd, scikit-learn.

All fit on every row, from random rows, for the same number of iterations. `sampled` is faiss with its default of 256
rows a centroid, as the published warm-up uses it. The mean squared distance to the nearest centroid says whether the
faster ones are as good.
"""

import warnings
from collections.abc import Callable

import torch
from record import Goal, benchmark_parser, measure_in_turns, reach, write_record
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from chexstudy.vectors import kmeans as clustering
from chexstudy.vectors.neighbours import load_faiss
from chexstudy.vectors.products import multiply_rows

_BLOCK_ROWS = 8192


def synthetic_features(rows: int, dim: int, seed: int) -> Tensor:
    """Unit-norm features ``(rows, dim)`` around 200 directions, some far more frequent than others."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(200, dim, generator=generator), dim=1)
    owner = (200 * torch.rand(rows, generator=generator).square()).long()
    scatter = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    return torch.nn.functional.normalize(directions[owner] + scatter, dim=1)


def mean_squared_distance(features: Tensor, centroids: Tensor) -> float:
    """Mean squared distance of a row to its nearest centroid."""
    offsets = -0.5 * centroids.square().sum(dim=1)
    total = 0.0
    for rows in features.split(_BLOCK_ROWS):
        best = multiply_rows(rows, centroids, offsets).amax(dim=1)
        total += float((rows.square().sum(dim=1) - 2 * best).double().sum())
    return total / len(features)


def fit_by_scikit_learn(features: Tensor, clusters: int, iterations: int, seed: int) -> Tensor:
    """Centroids of scikit-learn's Lloyd, stopped by nothing but the number of iterations."""
    model = KMeans(
        clusters, init="random", n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd", random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(model.fit(features.numpy()).cluster_centers_)


def list_candidates(features: Tensor, clusters: int, iterations: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    """The candidates by name; without faiss it is left out."""
    candidates = {}
    if load_faiss():
        candidates["faiss"] = lambda: clustering.cluster_features(features, clusters, iterations, seed, len(features))
        candidates["sampled"] = lambda: clustering.cluster_features(features, clusters, iterations, seed)
    candidates["torch"] = lambda: clustering._lloyd(features, clusters, iterations, seed)
    candidates["scikit-learn"] = lambda: fit_by_scikit_learn(features, clusters, iterations, seed)
    return candidates


def state_goals(rows: list[dict]) -> list[Goal]:
    """The package's choice is to be no slower than its peers, and its torch form no worse than half as fast."""
    seconds = {(row["clusters"], row["candidate"]): row["seconds"] for row in rows}
    goals = []
    for clusters in sorted({row["clusters"] for row in rows}):
        if (clusters, "faiss") in seconds:
            peers = min(seconds[clusters, "torch"], seconds[clusters, "scikit-learn"])
            goals.append(
                reach(f"faiss against the faster of its peers, K={clusters}", 1.0, peers / seconds[clusters, "faiss"])
            )
        best = min(time for (size, name), time in seconds.items() if size == clusters and name != "sampled")
        goals.append(reach(f"torch against the fastest, K={clusters}", 0.5, best / seconds[clusters, "torch"]))
    return goals


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--rows", type=int, default=100_000, help="rows")
    parser.add_argument("--dim", type=int, default=512, help="dimensions")
    parser.add_argument("--clusters", type=int, nargs="+", default=[64, 1024], help="numbers of centroids, K")
    parser.add_argument("--iterations", type=int, default=10, help="Lloyd iterations")
    parser.add_argument("--seconds", type=float, default=30.0, help="time a candidate may take")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    features = synthetic_features(options.rows, options.dim, options.seed)
    measured = []
    for clusters in options.clusters:
        candidates = list_candidates(features, clusters, options.iterations, options.seed)
        timings = measure_in_turns(candidates, options.rounds, options.seconds, warm_up=False)
        for name, timing in timings.items():
            measured.append(
                {
                    "candidate": name,
                    "rows": options.rows,
                    "dim": options.dim,
                    "clusters": clusters,
                    "iterations": options.iterations,
                    "seconds": timing.best,
                    "median_seconds": timing.median,
                    "rounds": timing.rounds,
                    "mean_squared_distance": mean_squared_distance(features, candidates[name]().float()),
                }
            )
        print(f"measured K={clusters}", flush=True)
    write_record("kmeans", measured, state_goals(measured), options.out)


if __name__ == "__main__":
    main()
