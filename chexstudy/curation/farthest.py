"""Farthest-point selection: cover a set of points with few of them."""

import torch
from torch import Tensor


def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Pick points one by one, each the farthest from those already picked (Gonzalez 1985, greedy k-centre).

    Distances are Euclidean. Of equally far points the first in row order is taken, so the result is a function of
    ``points`` and ``start`` alone.

    Args:
        points: ``(n, dim)``.
        count: how many to pick; all rows are returned, in order of picking, where it is at least ``n``.
        start: row of the first pick.

    Returns:
        Row numbers ``(min(count, n),)``, int64, in the order of picking.

    Raises:
        ValueError: ``points`` is empty, ``count`` is below one or ``start`` is no row.
    """
    rows = len(points)
    if rows == 0 or count < 1 or not 0 <= start < rows:
        raise ValueError(f"cannot pick {count} of {rows} points from row {start}")
    count = min(count, rows)
    picked = torch.empty(count, dtype=torch.int64, device=points.device)
    distance_to_picked = torch.full((rows,), torch.inf, dtype=points.dtype, device=points.device)
    current = torch.tensor(start, device=points.device)
    for position in range(count):
        picked[position] = current
        distance = torch.linalg.vector_norm(points - points[current], dim=1)
        distance_to_picked = torch.minimum(distance_to_picked, distance)
        # Duplicates of a picked point are at distance zero; the picked ones must still never come again.
        distance_to_picked[current] = -1.0
        current = distance_to_picked.argmax()
    return picked
