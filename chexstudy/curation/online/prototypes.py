"""Prototypes: where they start (k-means on a first sample of pairs) and how they move (balanced assignment, average).

Source: CheXficient (arXiv 2602.22843) and its public code; deviations of that code are numbered in docs/published.md.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.errors import StudyError
from chexstudy.vectors.kmeans import cluster_features
from chexstudy.vectors.products import multiply_rows, sum_by_centre

# A sum that vanishes in float32 is divided by this instead.
_TINY = 1e-30


def join_features(image: Tensor, text: Tensor) -> Tensor:
    """Unit-norm joint features ``(batch, 2 * dim)`` of image and text embeddings, ``(batch, dim)`` each."""
    return normalize(torch.cat([image, text], dim=1), dim=1)


def initial_prototypes(features: Tensor, config: CuratorConfig) -> Tensor:
    """Unit-norm k-means centroids of the warm-up sample.

    As published, k-means sees the two unit-norm embeddings side by side, of norm sqrt 2, while selection and update see
    them normalised (F4). k-means does not depend on the scale, so for unit-norm embeddings the two differ by rounding.
    """
    if len(features) < config.prototypes:
        raise StudyError(
            f"{config.prototypes} prototypes cannot be fitted on {len(features)} pairs: lower prototypes or add pairs."
        )
    scale = 2**0.5 if config.warm_up_features == "raw" else 1.0
    centroids = cluster_features(scale * features, config.prototypes, config.kmeans_iterations, config.kmeans_seed)
    return normalize(centroids, dim=1)


@torch.no_grad()
def balanced_assignment(features: Tensor, prototypes: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign unit-norm features ``(batch, dim)`` to unit-norm prototypes ``(count, dim)`` by Sinkhorn-Knopp (F5).

    Probabilities ``(count, batch)``, whose columns sum to one; the published update takes the largest of each column.
    """
    kernel = _affinity(features, prototypes, epsilon)
    kernel *= _balance(kernel, iterations, None)
    return (kernel / kernel.sum(dim=1, keepdim=True).clamp(min=_TINY)).T


def _affinity(features: Tensor, prototypes: Tensor, epsilon: float) -> Tensor:
    """``exp(similarity / epsilon)`` up to a factor ``(batch, count)``: balancing takes any factor out again."""
    similarity = multiply_rows(features, prototypes)
    return similarity.sub_(similarity.amax()).div_(epsilon).exp_()


def _balance(kernel: Tensor, iterations: int, counted: Tensor | None) -> Tensor:
    """Sinkhorn-Knopp's factor of each prototype ``(count,)``.

    Normalising rows and columns in turns only ever scales them, so the matrix stays as it is and two vectors of
    factors are passed to and fro. A feature's own factor is the same for all prototypes and moves no maximum.
    """
    of_feature = kernel.new_ones(len(kernel)) if counted is None else counted.to(kernel)
    taking_part = of_feature
    for iteration in range(iterations):
        of_prototype = 1 / (of_feature @ kernel).clamp(min=_TINY)
        if iteration + 1 < iterations:
            of_feature = taking_part / (kernel @ of_prototype).clamp(min=_TINY)
    return of_prototype


@torch.no_grad()
def update_prototypes(
    prototypes: Tensor, features: Tensor, config: CuratorConfig, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move unit-norm prototypes ``(count, dim)`` towards the mean of the features assigned to each, and renormalise.

    As published, ``features`` ``(batch, dim)`` are the kept pairs' from before the optimiser's step (F6). Those not
    ``counted`` ``(batch,)`` take no part: a mask keeps shapes fixed. A prototype nobody is assigned to stays where it
    is. Returns the new ones and how many features each was assigned ``(count,)``.
    """
    unit = normalize(prototypes, dim=1)
    if config.assignment == "balanced":
        kernel = _affinity(features, unit, config.sinkhorn_epsilon)
        kernel *= _balance(kernel, config.sinkhorn_iterations, counted)
        assigned_to = kernel.argmax(dim=1)
    else:
        assigned_to = multiply_rows(features, unit).argmax(dim=1)
    sums, usage = sum_by_centre(features, assigned_to, len(prototypes), counted)
    means = sums / (usage.unsqueeze(1) + 1e-8)
    return normalize(config.decay * prototypes + (1 - config.decay) * means, dim=1), usage


def prototype_spread(prototypes: Tensor) -> Tensor:
    """Mean Euclidean distance between two different prototypes; zero where there is only one."""
    if len(prototypes) < 2:
        return prototypes.new_zeros(())
    return torch.pdist(prototypes).mean()
