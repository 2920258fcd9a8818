"""The published selection rule: distance bands around the nearest prototype, the central band thinned.

Source: CheXficient (arXiv 2602.22843), as its public code computes it.
"""

import torch
from torch import Tensor

from chexstudy.curation.configuration import CuratorConfig
from chexstudy.curation.decisions import (
    BATCH_EMPTY,
    CENTRAL,
    IN_SUPPORT,
    OUTLIER,
    OUTLIER_REASONS,
    PASSED_OVER,
    PICKED,
    SUPPORT,
    UNDER_CAP,
    Selection,
)
from chexstudy.curation.farthest import farthest_points

_DENSITY_NEIGHBOURS = 5


def select_samples(
    features: Tensor, prototypes: Tensor, config: CuratorConfig, generator: torch.Generator | None
) -> Selection:
    """Decide which pairs of a batch are trained on.

    For each prototype, over the batch's members nearest to it: beyond the outlier quantile of their distances they are
    treated by ``config.outlier_policy`` (published: dropped), between the two quantiles kept, below thinned to
    ``central_cap`` by the sampler. Should nothing be kept, the whole batch is.

    Args:
        features: unit-norm joint features ``(batch, dim)``.
        prototypes: ``(count, dim)``.
        config: the constants.
        generator: a CPU generator; draws the first farthest point of each prototype, or the random sample. None pins
            the start to the first central member, which makes the result a function of the features alone.

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
    reason = torch.full((rows,), PASSED_OVER, dtype=torch.int8, device=device)
    quantiles = torch.tensor([config.support_quantile, config.outlier_quantile], dtype=distance.dtype, device=device)
    for k in range(len(prototypes)):
        members = (prototype == k).nonzero().squeeze(1)
        if len(members) == 0:
            continue
        support_edge, outlier_edge = torch.quantile(distance[members], quantiles)
        threshold_support[members], threshold_outlier[members] = support_edge, outlier_edge
        is_outlier = distance[members] > outlier_edge
        is_support = (distance[members] > support_edge) & ~is_outlier
        outliers, support, central = members[is_outlier], members[is_support], members[~is_outlier & ~is_support]
        band[outliers], reason[outliers] = OUTLIER, OUTLIER_REASONS[config.outlier_policy]
        kept[outliers] = config.outlier_policy == "keep"
        band[support], reason[support] = SUPPORT, IN_SUPPORT
        kept[support] = True
        why = UNDER_CAP
        if len(central) > config.central_cap:
            central, why = central[_sample(features[central], config, generator)], PICKED
            order[central] = torch.arange(len(central), device=device)
        kept[central], reason[central] = True, why
    if not kept.any():
        kept[:] = True
        reason[:] = BATCH_EMPTY
    priority = torch.full_like(distance, torch.nan)
    return Selection(prototype, distance, threshold_support, threshold_outlier, band, order, kept, reason, priority)


def _sample(central: Tensor, config: CuratorConfig, generator: torch.Generator | None) -> Tensor:
    """Rows of ``central`` in the order in which the sampler picks them ``(central_cap,)``."""
    if config.sampler == "random":
        return torch.randperm(len(central), generator=generator)[: config.central_cap].to(central.device)
    if config.sampler == "density":
        neighbours = min(_DENSITY_NEIGHBOURS, len(central) - 1)
        gaps = torch.cdist(central, central).topk(neighbours + 1, largest=False).values[:, 1:].mean(dim=1)
        return torch.sort(gaps, descending=True, stable=True).indices[: config.central_cap]
    start = 0 if generator is None else int(torch.randint(len(central), (), generator=generator))
    return farthest_points(central, config.central_cap, start)
