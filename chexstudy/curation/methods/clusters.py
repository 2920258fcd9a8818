"""k-means clusters of all rows, what five methods stand on, and prototypicality: how like its centroid a row is."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from chexstudy.curation.choice import Choice, check_option, choose_highest
from chexstudy.curation.methods.blocks import iterate_blocks, read_rows
from chexstudy.errors import StudyError
from chexstudy.vectors.kmeans import cluster_features

# k-means on more rows than these gains nothing but time and memory.
_FITTED_ROWS = 131_072


@dataclass(frozen=True)
class Clusters:
    """Which centroid each row is nearest to."""

    centroids: Tensor  # unit-norm ``(clusters, dim)``
    nearest: np.ndarray  # centroid of each row ``(n,)``, int64
    similarity: np.ndarray  # cosine of each row to that centroid ``(n,)``, float32


def count_clusters(clusters: int | None, rows: int) -> int:
    """The number of clusters asked for, or the square root of the rows."""
    if clusters is None:
        return max(1, round(rows**0.5))
    if not 1 <= clusters <= rows:
        raise StudyError(f"{clusters} clusters cannot be found among {rows} rows: choose clusters from 1 to {rows}.")
    return clusters


def cluster_rows(features: np.ndarray, clusters: int | None, iterations: int, generator: torch.Generator) -> Clusters:
    """Fit k-means, of the square root of the rows unless ``clusters`` is given, and find every row's nearest centroid.

    Centroids are fitted on all rows, or on a random sample of 131,072 where there are more, and then brought to unit
    norm, so that the nearest by distance is the nearest by cosine.
    """
    check_option("iterations", iterations, 1)
    rows, clusters = len(features), count_clusters(clusters, len(features))
    # As many rows as a centroid each are needed at the least.
    fitted = min(rows, max(_FITTED_ROWS, clusters))
    sample = slice(None) if fitted == rows else torch.randperm(rows, generator=generator)[:fitted].sort().values.numpy()
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    centroids = cluster_features(read_rows(features, sample), clusters, iterations, seed, rows_per_cluster=fitted)
    centroids = normalize(centroids, dim=1)
    nearest, similarity = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.float32)
    for block, values in iterate_blocks(features):
        highest = (values @ centroids.T).max(dim=1)
        nearest[block], similarity[block] = highest.indices.numpy(), highest.values.numpy()
    return Clusters(centroids, nearest, similarity)


def choose_easy_prototypes(
    features: np.ndarray, budget: int, generator: torch.Generator, *, clusters: int | None = None, iterations: int = 20
) -> Choice:
    """Keep the pairs nearest to their k-means centroid: the typical ones.

    Source: the self-supervised prototype metric of Sorscher et al. 2022 (arXiv 2206.14486), easy end, which the paper
    finds better where data are scarce. Departures: features are image and text jointly; the number of clusters, to
    which the paper finds the metric insensitive, is the square root of the pairs unless given; no balance between
    clusters is enforced. Subsets of one seed are nested.
    """
    return choose_highest(cluster_rows(features, clusters, iterations, generator).similarity, budget)


def choose_hard_prototypes(
    features: np.ndarray, budget: int, generator: torch.Generator, *, clusters: int | None = None, iterations: int = 20
) -> Choice:
    """Keep the pairs farthest from their k-means centroid: the unusual ones.

    Source: Sorscher et al. 2022 (arXiv 2206.14486), hard end, which the paper finds better where data abound.
    Departures are those of `choose_easy_prototypes`.
    """
    return choose_highest(-cluster_rows(features, clusters, iterations, generator).similarity, budget)
