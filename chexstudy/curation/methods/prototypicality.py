"""Prototypicality: keep the pairs nearest to their cluster's centre, or those farthest from it."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, choose_highest
from chexstudy.curation.methods.clusters import cluster_rows, count_clusters


def choose_easy_prototypes(
    features: np.ndarray, budget: int, generator: torch.Generator, *, clusters: int | None = None, iterations: int = 20
) -> Choice:
    """Keep the pairs nearest to their k-means centroid: the typical ones.

    Source: the self-supervised prototype metric of Sorscher et al. 2022 (arXiv 2206.14486), easy end, which the paper
    finds better where data are scarce. Departures: features are image and text jointly; the number of clusters, to
    which the paper finds the metric insensitive, is the square root of the pairs unless given; no balance between
    clusters is enforced. Subsets of one seed are nested.
    """
    return choose_highest(_typicality(features, generator, clusters, iterations), budget)


def choose_hard_prototypes(
    features: np.ndarray, budget: int, generator: torch.Generator, *, clusters: int | None = None, iterations: int = 20
) -> Choice:
    """Keep the pairs farthest from their k-means centroid: the unusual ones.

    Source: Sorscher et al. 2022 (arXiv 2206.14486), hard end, which the paper finds better where data abound.
    Departures are those of `choose_easy_prototypes`.
    """
    return choose_highest(-_typicality(features, generator, clusters, iterations), budget)


def _typicality(features: np.ndarray, generator: torch.Generator, clusters: int | None, iterations: int) -> np.ndarray:
    return cluster_rows(features, count_clusters(clusters, len(features)), iterations, generator).similarity
