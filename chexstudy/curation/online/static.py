"""The expensive steps of the selection rule in static shapes: no value is read back to the host.

The form for GPUs. Every shape depends on the number of rows, of prototypes and on the cap alone, never on the data, so
the host queues the whole selection without waiting, and a CUDA graph can capture it. All prototypes take a pick at
once: a segmented maximum over their members, `cap` times. On a CPU `chexstudy.curation.online.fused` is faster.

Distances are accumulated in float64 whatever the type of the features, in this form as in the fused one: rows that
differ by less than the rounding of float32 are otherwise picked in another order on another machine.
"""

import torch
from torch import Tensor

# A block of distances between rows holds at most so many numbers (512 MiB).
_BLOCK = 2**26


def assign_nearest(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest prototype ``(count, dim)`` of each row ``(batch, dim)`` and distance to it; of equally near the first."""
    points, centres = features.double(), prototypes.double()
    square = centres.square().sum(dim=1)
    # The largest score x.p - |p|^2 / 2 is the smallest distance.
    scores = torch.addmm(square.mul(-0.5), points, centres.T)
    # A product rounds differently in different columns; prototypes that differ by no more than that are equally near.
    slack = (
        4 * points.shape[1] * torch.finfo(torch.float64).eps * (points.square().sum(dim=1, keepdim=True) + square.max())
    )
    near = scores >= scores.amax(dim=1, keepdim=True) - slack
    prototype = near.to(torch.int8).argmax(dim=1)
    return prototype, torch.linalg.vector_norm(points - centres[prototype], dim=1)


def order_farthest(
    features: Tensor, group: Tensor, rows: Tensor, starts: Tensor, sizes: Tensor, first: Tensor, cap: int
) -> Tensor:
    """Place ``(batch,)`` of each row in the order in which farthest points of its group are picked, -1 if it is not.

    Args:
        group: group of each row ``(batch,)``, from 0; as many as there are groups for a row that takes no part.
        rows: row numbers sorted by group, then by row ``(batch,)``; the fused form reads its groups from it.
        starts, sizes: where each group starts in ``rows``, and how many it has ``(groups,)``.
        first: first row picked from each group ``(groups,)``; any row where there is none to pick.
        cap: how many rows are picked from a group with more; smaller ones are not ordered.
    """
    batch, groups, device = len(features), len(sizes), features.device
    points = features.double()
    owner = group.clamp(max=groups - 1)
    takes_part = group < groups
    numbers = torch.arange(batch, device=device)
    # One place more than there are rows: groups that need no thinning write there.
    order = torch.full((batch + 1,), -1, dtype=torch.int64, device=device)
    gap = torch.full((batch + 1,), -1.0, dtype=points.dtype, device=device)
    gap[:batch].masked_fill_(takes_part, torch.inf)
    # Floats from zero are ordered as their bits are; GPUs have an atomic maximum of whole numbers, not of floats.
    bits = gap.view(torch.int64)[:batch]
    lowest = torch.iinfo(bits.dtype).min
    thinned = sizes > cap
    pick = first.masked_fill(~thinned, batch)
    for place in range(cap):
        order.scatter_(0, pick, place)
        gap.scatter_(0, pick, -1.0)
        if place + 1 == cap:
            break
        to_pick = torch.linalg.vector_norm(points - points[pick.clamp(max=batch - 1)][owner], dim=1)
        gap[:batch] = torch.minimum(gap[:batch], to_pick)
        peak = torch.full((groups,), lowest, dtype=bits.dtype, device=device).scatter_reduce_(0, owner, bits, "amax")
        at_peak = takes_part & (bits == peak[owner])
        pick = torch.full((groups,), batch, dtype=torch.int64, device=device)
        pick.scatter_reduce_(0, owner, numbers.masked_fill(~at_peak, batch), "amin")
        pick.masked_fill_(~thinned, batch)
    return order[:batch]


def mean_gaps(
    features: Tensor, group: Tensor, rows: Tensor, starts: Tensor, sizes: Tensor, cap: int, neighbours: int
) -> Tensor:
    """Mean distance of each row to its nearest rows of the same group.

    All pairs of rows are compared, in blocks: the cost grows with the square of the batch. Arguments are those of
    `order_farthest`, and how many nearest rows; all others of the group where there are fewer. What is given for rows
    that take no part has no meaning.
    """
    batch, groups = len(features), len(sizes)
    points = features.double()
    square = points.square().sum(dim=1)
    numbers = torch.arange(batch, device=features.device)
    neighbours = min(neighbours, batch - 1)
    means = []
    for begin in range(0, batch, max(1, _BLOCK // batch)):
        block = slice(begin, begin + max(1, _BLOCK // batch))
        apart = square[block, None] + square - 2 * points[block] @ points.T
        stranger = (group[block, None] != group) | (numbers[block, None] == numbers) | (group[block, None] == groups)
        nearest = apart.masked_fill_(stranger, torch.inf).topk(neighbours, largest=False)
        found = nearest.values < torch.inf
        # The product told who is near; how near, the rows themselves tell: equal rows get equal means.
        gaps = torch.zeros_like(nearest.values)
        for place, index in enumerate(nearest.indices.unbind(dim=1)):
            gaps[:, place] = torch.linalg.vector_norm(points[block] - points[index], dim=1)
        means.append(gaps.masked_fill(~found, 0.0).sum(dim=1) / found.sum(dim=1).clamp(min=1))
    return torch.cat(means)
