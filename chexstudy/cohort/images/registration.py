"""Lay radiographs over one another: their exposed field, their local contrast, and affine registration.

Registration is the inverse compositional form of Lucas and Kanade's (Baker and Matthews, IJCV 2004). A map ``(3, 3)``
takes a point of the fixed image to the point of the moving one that shows the same; both lie in -1 to 1.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad

_BLUR = 2.0  # standard deviation in pixels of the neighbourhood that contrast is local to
_LEVELS = 6.0  # grey levels: local contrast well below counts as none, so that a blank region stays blank
_FLAT = 0.2  # a row or column whose contrast is below this share of the image's belongs to a border
_DAMPING = 1e-3
_LONGEST_STEP = 0.15  # of one parameter, in half images
_WINDOW = 0.9  # half side of the window that is compared while registering
# Generators of affine maps: shift right, shift down, scale, turn; then stretch and shear.
_GENERATORS = torch.tensor(
    [
        *([[0, 0, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]], [[0, -1, 0], [1, 0, 0]]),
        *([[1, 0, 0], [0, -1, 0]], [[0, 1, 0], [1, 0, 0]]),
    ],
    dtype=torch.float32,
)
SIMILARITY, AFFINE = 4, 6  # how many of the generators a registration takes


class Relief(NamedTuple):
    """Local contrast of images, about 0 with a spread of about 1 whatever the exposure; negative if inverted."""

    values: Tensor  # float32 ``(n, side, side)``, 0 outside the exposed field
    inside: Tensor  # float32 ``(n, side, side)``, 0 to 1: whether a pixel belongs to the exposed field


def find_field(pixels: Tensor) -> Tensor:
    """Where the flat borders of images ``(n, size, size)`` end: left, top, right, bottom ``(n, 4)`` in -1 to 1."""
    size = pixels.shape[1]
    calm = avg_pool2d(pad(pixels[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    flat = _FLAT * calm.std((1, 2)).clamp(min=1.0)[:, None]
    edges = 2 * torch.arange(size + 1) / size - 1
    shows = torch.stack([calm.std(1) > flat, calm.std(2) > flat], 1)
    low = torch.where(shows, edges[:-1], torch.inf).amin(2)
    high = torch.where(shows, edges[1:], -torch.inf).amax(2)
    whole = ~shows.any(2)
    return torch.cat([low.masked_fill(whole, -1.0), high.masked_fill(whole, 1.0)], 1)


def frame_field(field: Tensor) -> Tensor:
    """Maps ``(n, 3, 3)`` from the whole square to the square about each field ``(n, 4)``."""
    maps = torch.eye(3).repeat(len(field), 1, 1)
    maps[:, :2, :2] *= ((field[:, 2:] - field[:, :2]) / 2).amax(1)[:, None, None]
    maps[:, :2, 2] = (field[:, 2:] + field[:, :2]) / 2
    return maps


def carve_relief(pixels: Tensor, field: Tensor, side: int) -> Relief:
    """Local contrast of images ``(n, size, size)``, grey levels in float32, in their fields ``(n, 4)`` at a side."""
    inside, within = (_cover(field, one) for one in (side, pixels.shape[1]))
    smooth, shrink = _blur_rows(side), _shrink_rows(pixels.shape[1], side)
    weight = (smooth @ inside @ smooth.T).clamp(min=1e-3)
    images = shrink @ (pixels * within) @ shrink.T / inside.clamp(min=1e-3)
    detail = images - smooth @ (images * inside) @ smooth.T / weight
    spread = torch.sqrt(smooth @ (detail * detail * inside) @ smooth.T / weight + _LEVELS**2)
    return Relief(detail / spread * inside, inside)


def warp(relief: Relief, maps: Tensor) -> Relief:
    """Reliefs as their maps ``(n, 3, 3)`` lay them over a fixed image."""
    side = relief.values.shape[-1]
    grid = (_points(side) @ maps[:, :2].mT).unflatten(1, (side, side))
    return Relief(*grid_sample(torch.stack(relief, 1), grid, align_corners=False).unbind(1))


def register(moving: Relief, fixed: Relief, maps: Tensor, steps: int, freedom: int = SIMILARITY) -> Tensor:
    """Maps ``(n, 3, 3)`` that lay moving images over fixed ones, from maps that nearly do; the fixed may be one."""
    side, generators = moving.values.shape[-1], _GENERATORS[:freedom]
    points = _points(side)
    x_slope, y_slope = (slope.flatten(1) * side / 2 for slope in torch.gradient(fixed.values, dim=(2, 1)))
    motion = generators @ points.T  # (freedom, 2, pixels)
    window = (points[:, :2].abs().amax(1) < _WINDOW) * fixed.inside.flatten(1)
    steepest = ((x_slope * window)[:, None] * motion[:, 0]).addcmul_((y_slope * window)[:, None], motion[:, 1])
    curvature = steepest @ steepest.mT
    curvature = curvature + _DAMPING * torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) + _DAMPING)
    inverse = torch.linalg.inv(curvature)
    for _ in range(steps):
        laid = warp(moving, maps)
        difference = ((laid.values - fixed.values) * laid.inside).flatten(1)
        step = (inverse @ (steepest @ difference[..., None]))[..., 0].clamp(-_LONGEST_STEP, _LONGEST_STEP)
        change = torch.eye(3).repeat(len(step), 1, 1)
        change[:, :2] += torch.einsum("ng,gij->nij", step, generators)
        maps = maps @ torch.linalg.inv(change)
    return maps


def correlate(first: Relief, second: Relief) -> tuple[Tensor, Tensor, Tensor]:
    """Of reliefs laid over each other: correlation ``(n,)`` where both are inside, the share of pixels that are, and
    the lesser root mean square of the two there, near 0 for images that show nothing."""
    both = (first.inside * second.inside > 0.9).float()
    count = both.sum((1, 2)).clamp(min=1)
    one, two = (
        (relief.values - ((relief.values * both).sum((1, 2)) / count)[:, None, None]) * both
        for relief in (first, second)
    )
    power = torch.stack([(one * one).sum((1, 2)), (two * two).sum((1, 2))])
    alike = (one * two).sum((1, 2)) / torch.sqrt(power[0] * power[1]).clamp(min=1e-9)
    return alike, count / both[0].numel(), torch.sqrt(power.amin(0) / count)


@cache
def _points(side: int) -> Tensor:
    """The pixels' ``(x, y, 1)``, ``(side * side, 3)``, row by row."""
    axis = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)


def _cover(field: Tensor, side: int) -> Tensor:
    """The share of each pixel ``(n, side, side)`` that lies in a field."""
    edges = 2 * torch.arange(side + 1) / side - 1
    ends = torch.minimum(edges[1:], field[:, 2:, None]) - torch.maximum(edges[:-1], field[:, :2, None])
    share = (ends * side / 2).clamp(min=0.0)
    return share[:, 1, :, None] * share[:, 0, None, :]


@cache
def _shrink_rows(before: int, after: int) -> Tensor:
    """Weights ``(after, before)`` of rows averaged into fewer, or repeated."""
    edges = [torch.arange(side + 1, dtype=torch.float64) / side for side in (after, before)]
    shared = torch.minimum(edges[0][1:, None], edges[1][1:]) - torch.maximum(edges[0][:-1, None], edges[1][:-1])
    return (shared.clamp(min=0.0) * after).float()


@cache
def _blur_rows(side: int) -> Tensor:
    """Weights ``(side, side)`` of rows blurred, those beyond the edge left out."""
    apart = torch.arange(side)[:, None] - torch.arange(side)
    weights = torch.exp(-0.5 * (apart / _BLUR) ** 2) * (apart.abs() <= 3 * _BLUR)
    return weights / weights.sum(1, keepdim=True)
