"""Prototypes: where they start (k-means on a first sample of pairs) and how they move (balanced assignment, average).

Source: CheXficient (arXiv 2602.22843) and its public code; quirk numbers F3-F6 are those of the project's notes on it.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from chexstudy.curation.clustering import cluster_features
from chexstudy.curation.configuration import CuratorConfig
from chexstudy.errors import StudyError


def join_features(image: Tensor, text: Tensor) -> Tensor:
    """Unit-norm joint features ``(batch, 2 * dim)`` of image and text embeddings, ``(batch, dim)`` each."""
    return normalize(torch.cat([image, text], dim=1), dim=1)


def initial_prototypes(features: Tensor, config: CuratorConfig) -> Tensor:
    """Unit-norm k-means centroids of the warm-up sample.

    As published, k-means sees the two unit-norm embeddings side by side, of norm sqrt 2, while selection and update see
    them normalised (F4). k-means does not depend on the scale, so for unit-norm embeddings the two differ by rounding.

    Args:
        features: unit-norm joint features ``(n, dim)``.
        config: number of prototypes and constants of k-means.

    Returns:
        Prototypes ``(count, dim)``.

    Raises:
        StudyError: there are fewer rows than prototypes.
    """
    if len(features) < config.prototypes:
        raise StudyError(
            f"{config.prototypes} prototypes cannot be fitted on {len(features)} pairs: lower prototypes or add pairs."
        )
    scale = 2**0.5 if config.warm_up_features == "raw" else 1.0
    centroids = cluster_features(scale * features, config.prototypes, config.kmeans_iterations, config.kmeans_seed)
    return normalize(centroids, dim=1)


def balanced_assignment(
    features: Tensor, prototypes: Tensor, epsilon: float, iterations: int, counted: Tensor | None = None
) -> Tensor:
    """Assign features to prototypes by Sinkhorn-Knopp (F5).

    Args:
        features: unit-norm ``(batch, dim)``.
        prototypes: unit-norm ``(count, dim)``.
        epsilon: entropic temperature; at the published 0.5 the assignment is hardly balanced.
        iterations: normalisations of rows and columns.
        counted: which features take part ``(batch,)``, bool; all without it.

    Returns:
        Probability of each prototype for each feature ``(count, batch)``; its columns sum to one. The published update
        takes the largest entry of each column.
    """
    scores = torch.exp(features @ prototypes.T / epsilon).T
    if counted is not None:
        scores = scores * counted
    scores = scores / scores.sum()
    for _ in range(iterations):
        scores = scores / scores.sum(dim=1, keepdim=True) / len(prototypes)
        columns = scores.sum(dim=0, keepdim=True)
        scores = scores / (columns if counted is None else columns.clamp(min=1e-30)) / len(features)
    return scores * len(features)


def update_prototypes(
    prototypes: Tensor,
    features: Tensor,
    decay: float = 0.9,
    epsilon: float = 0.5,
    iterations: int = 3,
    assignment: str = "balanced",
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Move each prototype towards the mean of the features assigned to it, and renormalise.

    As published, ``features`` are the kept pairs' features from before the optimiser's step (F6). A prototype nobody
    is assigned to stays where it is.

    Args:
        prototypes: unit-norm ``(count, dim)``.
        features: unit-norm ``(batch, dim)``.
        decay: share of the old prototype.
        epsilon: see `balanced_assignment`.
        iterations: see `balanced_assignment`.
        assignment: ``balanced`` as published, or ``nearest`` prototype.
        counted: which features take part ``(batch,)``, bool; all without it. A mask keeps shapes fixed.

    Returns:
        The new prototypes ``(count, dim)`` and how many features each was assigned ``(count,)``.
    """
    unit = normalize(prototypes, dim=1)
    if assignment == "balanced":
        assigned_to = balanced_assignment(features, unit, epsilon, iterations, counted).argmax(dim=0)
    else:
        assigned_to = (features @ unit.T).argmax(dim=1)
    assigned = one_hot(assigned_to, len(prototypes)).to(features)
    if counted is not None:
        assigned = assigned * counted.unsqueeze(1)
    usage = assigned.sum(dim=0)
    means = assigned.T @ features / (usage.unsqueeze(1) + 1e-8)
    return normalize(decay * prototypes + (1 - decay) * means, dim=1), usage


def prototype_spread(prototypes: Tensor) -> Tensor:
    """Mean Euclidean distance between two different prototypes; zero where there is only one."""
    if len(prototypes) < 2:
        return prototypes.new_zeros(())
    return torch.pdist(prototypes).mean()
