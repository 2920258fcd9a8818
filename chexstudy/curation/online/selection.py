"""The published selection rule: distance bands around the nearest prototype, the central band thinned.

Source: CheXficient (arXiv 2602.22843), as its public code computes it. Departures: distances and thresholds are
float64 whatever the type of the features, so that a decision does not hang on how a machine rounds; and chance is
drawn once for the whole batch, on the CPU, so that the same generator gives the same picks on every device.

The two expensive steps, the nearest prototype and the sampler, come in two forms with the same results:
`chexstudy.curation.online.fused` for tensors in the memory of the CPU, `chexstudy.curation.online.static` for all
others.
"""

from types import ModuleType

import torch
from torch import Tensor

from chexstudy.curation.online import static
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import CENTRAL, OUTLIER, OUTLIER_REASONS, SUPPORT, Reason, Selection

_DENSITY_NEIGHBOURS = 5


def select_samples(
    features: Tensor, prototypes: Tensor, config: CuratorConfig, generator: torch.Generator | None
) -> Selection:
    """Decide which pairs of a batch are trained on, from their unit-norm joint features ``(batch, dim)``.

    For each prototype, over the batch's members nearest to it: beyond the outlier quantile of their distances they are
    treated by ``config.outlier_policy`` (published: dropped), between the two quantiles kept, below thinned to
    ``central_cap`` by the sampler. Should nothing be kept, the whole batch is. Of equal rows the first is picked first.

    The generator, of the CPU, draws the first farthest point of each prototype, or the random sample. None pins the
    start to the first central member, and a random sample to the first ones, which makes the result a function of the
    features alone.
    """
    chance = draw_chance(config, len(features), len(prototypes), generator)
    # A blocking copy would wait for everything queued on the device.
    return apply_rule(features, prototypes, config, chance.to(features.device, non_blocking=True), form_for(features))


def form_for(features: Tensor) -> ModuleType:
    """The module with the faster form of the expensive steps for these features."""
    # A subclass, such as the fake tensors of torch's tracing, has no memory that compiled code could read.
    if features.device.type != "cpu" or type(features) not in (Tensor, torch.nn.Parameter):
        return static
    # numba takes half a second to import.
    from chexstudy.curation.online import fused

    return fused


def draw_chance(config: CuratorConfig, rows: int, prototypes: int, generator: torch.Generator | None) -> Tensor:
    """All the chance a batch needs, drawn on the CPU before anything is known about it; zeros without a generator.

    Uniform float64 numbers: one a prototype for farthest points (where in the central members to start), one a row for
    the random sampler (smallest first), none for the density sampler.
    """
    numbers = {"farthest": prototypes, "random": rows, "density": 0}[config.sampler]
    if generator is None:
        return torch.zeros(numbers, dtype=torch.float64)
    return torch.rand(numbers, dtype=torch.float64, generator=generator)


@torch.no_grad()
def apply_rule(
    features: Tensor, prototypes: Tensor, config: CuratorConfig, chance: Tensor, form: ModuleType
) -> Selection:
    """The rule of `select_samples`, given its chance, on the device of the features, and the form of expensive steps.

    With `chexstudy.curation.online.static` nothing is read back to the host, so this is what a CUDA graph captures.
    """
    rows, count, device = len(features), len(prototypes), features.device
    # Mixed precision would round the very differences that decide.
    with torch.autocast(device.type, enabled=False):
        prototype, distance = form.assign_nearest(features, prototypes)
        edges = _band_edges(distance, prototype, count, (config.support_quantile, config.outlier_quantile))
        threshold_support, threshold_outlier = edges[0][prototype], edges[1][prototype]
        is_outlier = distance > threshold_outlier
        is_support = (distance > threshold_support) & ~is_outlier
        is_central = ~is_outlier & ~is_support
        group = prototype.masked_fill(~is_central, count)
        members, starts, sizes = _sort_into_groups(group, count)
        if config.sampler == "farthest":
            place = (chance * sizes).long().minimum(sizes - 1).clamp(min=0)
            first = members[(starts + place).clamp(max=rows - 1)]
            order = form.order_farthest(features, group, members, starts, sizes, first, config.central_cap)
        else:
            key = chance
            if config.sampler == "density":
                key = -form.mean_gaps(features, group, members, starts, sizes, config.central_cap, _DENSITY_NEIGHBOURS)
            order = _order_by_key(key, group, starts, sizes, config.central_cap)
    is_small = is_central & (sizes <= config.central_cap)[prototype]
    kept = is_support | is_small | (order >= 0)
    if config.outlier_policy == "keep":
        kept |= is_outlier
    band = torch.full((rows,), CENTRAL, dtype=torch.int8, device=device)
    band.masked_fill_(is_support, SUPPORT).masked_fill_(is_outlier, OUTLIER)
    reason = torch.full((rows,), Reason.PASSED_OVER, dtype=torch.int8, device=device)
    reason.masked_fill_(order >= 0, Reason.PICKED).masked_fill_(is_small, Reason.UNDER_CAP)
    reason.masked_fill_(is_support, Reason.IN_SUPPORT)
    reason.masked_fill_(is_outlier, OUTLIER_REASONS[config.outlier_policy])
    none_kept = ~kept.any()
    reason.masked_fill_(none_kept, Reason.BATCH_EMPTY)
    decided = (band, order, torch.full_like(distance, torch.nan), kept | none_kept, reason)
    return Selection(prototype, distance, threshold_support, threshold_outlier, *decided)


def _sort_into_groups(group: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by group, then by row ``(batch,)``; where each group starts and how many it has ``(count,)``."""
    sorted_group, rows = torch.sort(group, stable=True)
    edges = torch.searchsorted(sorted_group, torch.arange(count + 1, device=group.device))
    return rows, edges[:-1], edges.diff()


def _band_edges(distance: Tensor, prototype: Tensor, count: int, quantiles: tuple[float, float]) -> list[Tensor]:
    """Quantiles of the distances of each prototype's members ``(count,)`` each, zero where it has none.

    The arithmetic is that of `torch.quantile`, bit for bit: a distance that equals its threshold is common (whenever
    the quantile falls on a member, as with 21 members), and then one rounding more moves the pair to another band.
    """
    by_distance, rows = torch.sort(distance, stable=True)
    members, starts, sizes = _sort_into_groups(prototype[rows], count)
    values, last = by_distance[members], (sizes - 1).clamp(min=0)
    edges = []
    for quantile in quantiles:
        rank = last.to(distance.dtype) * quantile
        below = rank.long()
        low, high = (values[(starts + step).clamp(max=len(values) - 1)] for step in (below, rank.ceil().long()))
        edges.append(torch.lerp(low, high, rank - below).masked_fill(sizes == 0, 0.0))
    return edges


def _order_by_key(key: Tensor, group: Tensor, starts: Tensor, sizes: Tensor, cap: int) -> Tensor:
    """Place of each row among its group by ascending key; -1 beyond the cap and in groups no larger than it."""
    by_key = torch.sort(key, stable=True).indices
    rows = by_key[torch.sort(group[by_key], stable=True).indices]
    owner = group[rows].clamp(max=len(sizes) - 1)
    place = torch.arange(len(rows), device=rows.device) - starts[owner]
    is_picked = (group[rows] < len(sizes)) & (sizes > cap)[owner] & (place < cap)
    return torch.empty_like(rows).scatter_(0, rows, place.masked_fill(~is_picked, -1))
