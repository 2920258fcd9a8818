"""The published selection rule: distance bands around the nearest prototype, the central band thinned.

Source: CheXficient (arXiv 2602.22843), as its public code computes it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from chexstudy.curation.farthest import farthest_points

CENTRAL, SUPPORT, OUTLIER = 0, 1, 2
BANDS = ("central", "support", "outlier")


@dataclass(frozen=True)
class CuratorConfig:
    """Every constant of the published curator, with its published value.

    Attributes:
        prototypes: number of prototypes, K.
        support_quantile: members of a prototype farther than this quantile of their distances are all kept ...
        outlier_quantile: ... up to this one; those still farther are dropped (F1).
        central_cap: the remaining, central members are thinned to so many by farthest-point selection. Together with
            the batch this fixes the share kept, about ``0.10 + central_cap * prototypes / batch`` (F2).
        decay: share of the old prototype in an update.
        sinkhorn_epsilon: temperature of the balanced assignment (F5).
        sinkhorn_iterations: its iterations.
        warm_up_pairs: pairs the first prototypes are fitted on.
        warm_up_order: ``first`` rows of the cohort as published (F3), or a ``random`` sample.
        kmeans_iterations: of the first prototypes.
        kmeans_seed: of the first prototypes.
    """

    prototypes: int = 6
    support_quantile: float = 0.85
    outlier_quantile: float = 0.95
    central_cap: int = 10
    decay: float = 0.9
    sinkhorn_epsilon: float = 0.5
    sinkhorn_iterations: int = 3
    warm_up_pairs: int = 800
    warm_up_order: str = "first"
    kmeans_iterations: int = 20
    kmeans_seed: int = 42


@dataclass(frozen=True)
class Selection:
    """What the rule decided for each pair of a batch, and on which grounds. All tensors are ``(batch,)``.

    Attributes:
        prototype: nearest prototype.
        distance: Euclidean distance to it.
        threshold_support: lower edge of the support band at that prototype, in this batch.
        threshold_outlier: its upper edge.
        band: ``CENTRAL``, ``SUPPORT`` or ``OUTLIER``.
        order: place in the farthest-point order of the prototype's central members, -1 if not picked by it.
        kept: the decision.
    """

    prototype: Tensor
    distance: Tensor
    threshold_support: Tensor
    threshold_outlier: Tensor
    band: Tensor
    order: Tensor
    kept: Tensor


def select_samples(
    features: Tensor, prototypes: Tensor, config: CuratorConfig, generator: torch.Generator | None
) -> Selection:
    """Decide which pairs of a batch are trained on.

    For each prototype, over the batch's members nearest to it: beyond the outlier quantile of their distances they are
    dropped, between the two quantiles kept, below thinned to ``central_cap`` by farthest-point selection. Should
    nothing be kept, the whole batch is.

    Args:
        features: unit-norm joint features ``(batch, dim)``.
        prototypes: ``(count, dim)``.
        config: the constants.
        generator: draws the first farthest point of each prototype; None pins it to the first central member, which
            makes the result a function of the features alone.

    Returns:
        The decision for each pair.
    """
    device, rows = features.device, len(features)
    distances = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    distance, prototype = distances.min(dim=1)
    threshold_support, threshold_outlier = torch.zeros_like(distance), torch.zeros_like(distance)
    band = torch.full((rows,), CENTRAL, dtype=torch.int8, device=device)
    order = torch.full((rows,), -1, dtype=torch.int64, device=device)
    kept = torch.zeros(rows, dtype=torch.bool, device=device)
    quantiles = torch.tensor([config.support_quantile, config.outlier_quantile], dtype=distance.dtype, device=device)
    for k in range(len(prototypes)):
        members = (prototype == k).nonzero().squeeze(1)
        if len(members) == 0:
            continue
        support_edge, outlier_edge = torch.quantile(distance[members], quantiles)
        threshold_support[members], threshold_outlier[members] = support_edge, outlier_edge
        is_outlier = distance[members] > outlier_edge
        is_support = (distance[members] > support_edge) & ~is_outlier
        band[members[is_outlier]] = OUTLIER
        band[members[is_support]] = SUPPORT
        kept[members[is_support]] = True
        central = members[~is_outlier & ~is_support]
        if len(central) > config.central_cap:
            start = 0 if generator is None else int(torch.randint(len(central), (), generator=generator))
            picked = central[farthest_points(features[central], config.central_cap, start)]
            order[picked] = torch.arange(len(picked), device=device)
            central = picked
        kept[central] = True
    if not kept.any():
        kept[:] = True
    return Selection(prototype, distance, threshold_support, threshold_outlier, band, order, kept)
