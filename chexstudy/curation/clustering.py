"""k-means on features: faiss where it can be imported, a torch Lloyd otherwise. The only module that imports faiss."""

import importlib
from functools import cache

import numpy as np
import torch
from torch import Tensor


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


def cluster_features(features: Tensor, clusters: int, iterations: int, seed: int) -> Tensor:
    """Euclidean k-means centroids.

    faiss is called as the published warm-up calls it (CheXficient: 20 iterations, seed 42), with its default of at most
    256 training points a centroid; a GPU build of faiss runs on the GPU.

    Args:
        features: ``(n, dim)``.
        clusters: number of centroids, at most ``n``.
        iterations: Lloyd iterations.
        seed: seed of the initial centroids and of the sampling of training points.

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
        centroids = torch.from_numpy(_faiss_kmeans(features, clusters, iterations, seed))
    else:
        centroids = _lloyd(features.float(), clusters, iterations, seed)
    return centroids.to(features)


def _faiss_kmeans(features: Tensor, clusters: int, iterations: int, seed: int) -> np.ndarray:
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
    )
    kmeans.train(rows)
    return kmeans.centroids


def _lloyd(features: Tensor, clusters: int, iterations: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randperm(len(features), generator=generator)[:clusters]
    centroids = features[start.to(features.device)].clone()
    for _ in range(iterations):
        nearest = torch.cdist(features, centroids).argmin(dim=1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, features)
        counts = torch.bincount(nearest, minlength=clusters).unsqueeze(1).to(features)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids
