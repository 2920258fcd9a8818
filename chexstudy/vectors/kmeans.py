"""k-means: by faiss where it can be imported, by torch otherwise."""

import numpy as np
import torch
from torch import Tensor

from chexstudy.vectors.neighbours import count_faiss_gpus, load_faiss
from chexstudy.vectors.products import multiply_rows, sum_by_centre

_FAISS_ROWS_PER_CLUSTER = 256
_ROWS = 8192


def cluster_features(
    features: Tensor, clusters: int, iterations: int, seed: int, rows_per_cluster: int = _FAISS_ROWS_PER_CLUSTER
) -> Tensor:
    """Euclidean k-means centroids ``(clusters, dim)``, not normalised, on the device and of the type of the features.

    faiss is called as the published warm-up calls it (CheXficient: 20 iterations, seed 42), with its default of at most
    256 training points, ``rows_per_cluster``, a centroid; a GPU build of faiss runs on the GPU. The seed is that of the
    initial centroids and of the sampling of training points.
    """
    if len(features) < clusters:
        raise ValueError(f"{clusters} clusters need at least as many rows, not {len(features)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinite values")
    if load_faiss():
        centroids = torch.from_numpy(_faiss_kmeans(features, clusters, iterations, seed, rows_per_cluster))
    else:
        centroids = _lloyd(features.float(), clusters, iterations, seed)
    return centroids.to(features)


def _faiss_kmeans(features: Tensor, clusters: int, iterations: int, seed: int, rows_per_cluster: int) -> np.ndarray:
    rows = np.ascontiguousarray(features.detach().cpu().numpy(), dtype=np.float32)
    # min_points_per_centroid only silences a warning about small samples; it changes no result.
    points = {"min_points_per_centroid": 1, "max_points_per_centroid": rows_per_cluster}
    gpu = count_faiss_gpus() > 0
    kmeans = load_faiss().Kmeans(rows.shape[1], clusters, niter=iterations, seed=seed, gpu=gpu, **points)
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
