"""k-means and nearest neighbours: faiss where it can be imported, torch and scikit-learn otherwise.

The only module that imports faiss.
"""

import importlib
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from chexstudy.progress import progress
from chexstudy.vectors.products import multiply_rows, sum_by_centre

_FAISS_ROWS_PER_CLUSTER = 256
_ROWS = 8192
_QUERY_ROWS = 4096


@cache
def faiss_is_available() -> bool:
    """Whether faiss can be imported; a build for another CUDA than torch's is there but cannot."""
    try:
        importlib.import_module("faiss")
    except (ImportError, OSError):
        return False
    return True


def count_faiss_gpus() -> int:
    """GPUs that faiss can use; none for a CPU build or without faiss."""
    if not faiss_is_available():
        return 0
    faiss = importlib.import_module("faiss")
    return faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0


def cluster_features(
    features: Tensor, clusters: int, iterations: int, seed: int, rows_per_cluster: int = _FAISS_ROWS_PER_CLUSTER
) -> Tensor:
    """Euclidean k-means centroids.

    faiss is called as the published warm-up calls it (CheXficient: 20 iterations, seed 42), with its default of at most
    256 training points a centroid; a GPU build of faiss runs on the GPU.

    Args:
        features: ``(n, dim)``.
        clusters: number of centroids, at most ``n``.
        iterations: Lloyd iterations.
        seed: seed of the initial centroids and of the sampling of training points.
        rows_per_cluster: faiss fits on a sample of so many rows a centroid where there are more.

    Returns:
        Centroids ``(clusters, dim)``, not normalised, on the device and of the type of ``features``.

    Raises:
        ValueError: there are fewer rows than clusters, or a feature is not finite.
    """
    if len(features) < clusters:
        raise ValueError(f"{clusters} clusters need at least as many rows, not {len(features)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinite values")
    if faiss_is_available():
        centroids = torch.from_numpy(_faiss_kmeans(features, clusters, iterations, seed, rows_per_cluster))
    else:
        centroids = _lloyd(features.float(), clusters, iterations, seed)
    return centroids.to(features)


def neighbour_distances(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Euclidean distance of each row to its ``neighbours``-th nearest other row. Exact, in blocks of queries.

    Args:
        features: ``(n, dim)``, perhaps memory-mapped; one float32 copy of it is held in memory.
        neighbours: which neighbour, at least 1; the farthest other row where there are fewer.

    Returns:
        Distances ``(n,)``, float64; exactly zero for a row with that many copies; zero for a row that is alone.
    """
    rows = len(features)
    neighbours = min(neighbours, rows - 1)
    if neighbours < 1:
        return np.zeros(rows)
    distances = np.empty(rows)
    search = _neighbour_search(np.array(features, dtype=np.float32), neighbours + 1)
    for start in progress(range(0, rows, _QUERY_ROWS), label="finding neighbours"):
        block = np.array(features[start : start + _QUERY_ROWS], dtype=np.float32)
        # The row itself is among those found. Fast search loses the digits of short distances: measure again.
        found = np.asarray(features[search(block)[:, neighbours]], dtype=np.float32)
        distances[start : start + _QUERY_ROWS] = np.linalg.norm(block - found, axis=1)
    return distances


def find_most_similar(rows: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest inner product with each query, largest first. Exact, in blocks of queries.

    Args:
        rows: ``(n, dim)``.
        queries: ``(q, dim)``.
        count: how many, at most ``n``.

    Returns:
        Row numbers ``(q, count)`` int64 and inner products ``(q, count)`` float32; equal ones by row number.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if faiss_is_available():
        faiss = importlib.import_module("faiss")
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        search = index.search
    else:
        transposed = torch.from_numpy(rows).T

        def search(block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            similar, found = (torch.from_numpy(block) @ transposed).topk(count, dim=1)
            return similar.numpy(), found.numpy()

    similarities, found = (np.empty((len(queries), count), dtype=dtype) for dtype in (np.float32, np.int64))
    for start in range(0, len(queries), _QUERY_ROWS):
        block = np.ascontiguousarray(queries[start : start + _QUERY_ROWS], dtype=np.float32)
        similar, numbers = search(block, count)
        order = np.lexsort((numbers, -similar), axis=1)
        similarities[start : start + len(block)] = np.take_along_axis(similar, order, axis=1)
        found[start : start + len(block)] = np.take_along_axis(numbers, order, axis=1)
    return found, similarities


def _neighbour_search(rows: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from queries ``(q, dim)`` to the row numbers of their nearest rows ``(q, count)``, nearest first."""
    if faiss_is_available():
        faiss = importlib.import_module("faiss")
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(rows)
        return lambda queries: index.search(queries, count)[1]
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(rows)
    return lambda queries: search.kneighbors(queries, return_distance=False)


def _faiss_kmeans(features: Tensor, clusters: int, iterations: int, seed: int, rows_per_cluster: int) -> np.ndarray:
    import faiss

    rows = np.ascontiguousarray(features.detach().cpu().numpy(), dtype=np.float32)
    # min_points_per_centroid only silences a warning about small samples; it changes no result.
    kmeans = faiss.Kmeans(
        rows.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        gpu=count_faiss_gpus() > 0,
        min_points_per_centroid=1,
        max_points_per_centroid=rows_per_cluster,
    )
    kmeans.train(rows)
    return kmeans.centroids


def _lloyd(features: Tensor, clusters: int, iterations: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randperm(len(features), generator=generator)[:clusters]
    centroids = features[start.to(features.device)].clone()
    for _ in range(iterations):
        # The nearest centre has the largest inner product, less half its own square.
        offsets = centroids.square().sum(dim=1) / -2
        nearest = torch.cat([multiply_rows(block, centroids, offsets).argmax(dim=1) for block in features.split(_ROWS)])
        sums, counts = sum_by_centre(features, nearest, clusters)
        counts = counts.unsqueeze(1)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids
