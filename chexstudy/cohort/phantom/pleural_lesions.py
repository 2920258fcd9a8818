"""Fluid, air and scar between lung and chest wall, and free air under the diaphragm; see ``lesions.py``."""

import numpy as np

from chexstudy.cohort.phantom.case import Lesion
from chexstudy.cohort.phantom.scene import SIGNS, Scene, paint_each_side
from chexstudy.cohort.phantom.shape import Shape

_MASK_LEVEL = 0.4


def push_mediastinum(shape: Shape, lesion: Lesion, over: float, by: float) -> None:
    """Move heart and mediastinum away from a one-sided lesion that takes up much room, over some severity."""
    shape.pull_mediastinum(lesion.side, -by * max(lesion.severity - over, 0.0) / (1.0 - over))


@paint_each_side
def paint_effusion(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """Pleural fluid: the angle is blunted first, then a meniscus climbs the chest wall and hides the diaphragm."""
    board, where = scene.board, scene.half(side)
    across, lungs = scene.body.across[where], scene.body.lungs[where]
    severity = float(np.clip(lesion.severity * generator.uniform(0.9, 1.1), 0.05, 1.0))
    lateral = scene.level(side, 1.0) - 0.15 - 0.76 * severity**1.25
    surface = lateral + (0.20 - 0.08 * severity) * (1.0 - np.minimum(across, 1.0) ** 2.4)
    fluid = board.soften(board.y - surface, 0.05)
    fluid *= lungs > 0.02
    scene.fill_lung(np.float32(0.93) * fluid, where)
    scene.add(np.float32(0.05) * fluid * lungs, where)
    mask[where] = (fluid > _MASK_LEVEL) & (lungs > _MASK_LEVEL)


@paint_each_side
def paint_pneumothorax(
    scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray
) -> None:
    """Air in the pleural space: black, no vessels, bounded by a thin white line; the lung inside is a little denser."""
    body, board, severity, where = scene.body, scene.board, lesion.severity, scene.half(side)
    gap = (0.10 + 0.45 * severity) * generator.uniform(0.9, 1.1)
    height = body.height[side]
    edge = 1.0 - gap * np.clip(1.0 - 0.70 * height, 0.15, 1.0)
    lateral = (edge - body.across[where]) * np.float32(scene.shape.chest[side])
    top = (height - (0.06 + 0.26 * severity)) * np.float32(scene.shape.angle[side] - scene.shape.apex[side])
    # The apex of the lung is round: both borders meet smoothly.
    rounding = np.float32(0.32)
    mix = np.clip(0.5 + 0.5 * (top - lateral) / rounding, 0.0, 1.0)
    inside = top + (lateral - top) * mix - rounding * mix * (1.0 - mix)
    lung = board.soften(inside, 0.012)
    cavity = body.lungs[where]
    free = (1.0 - lung) * cavity
    line = board.soften(np.float32(0.010) - np.abs(inside), 0.008) * cavity
    scene.vessels[where] *= 1.0 - free
    scene.fill_lung(np.float32(0.06 + 0.26 * severity) * lung * cavity, where)
    scene.add(np.float32(0.085) * line - np.float32(0.10) * free, where)
    mask[where] = (free > _MASK_LEVEL) | (line > _MASK_LEVEL)


@paint_each_side
def paint_thickening(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """Pleural scar: an apical cap in the upper zone, else an uneven band along the chest wall that rounds the angle."""
    body, where, height = scene.body, scene.half(side), scene.body.height[side]
    ripple = 1.0 + 0.30 * np.sin(17.0 * height + 6.28 * generator.random())
    ripple = ripple + 0.2 * np.sin(41.0 * height + 6.28 * generator.random())
    width = (0.030 + 0.075 * lesion.severity) * ripple
    away = (1.0 - body.across[where]) * body.wall[side]
    if lesion.zone == "upper":
        width = width * 1.25
        below_apex = (height - 0.01) * np.float32(scene.shape.angle[side] - scene.shape.apex[side])
        away = np.minimum(away, 0.75 * below_apex)
        span = np.clip((0.34 - height) / 0.16, 0.0, 1.0)
    else:
        above, below = (0.20, 0.80) if lesion.zone == "middle" else (0.45, 2.0)
        span = np.clip((height - above) / 0.15, 0.0, 1.0) * np.clip((below - height) / 0.15, 0.0, 1.0)
        width = width * (1.0 + 0.9 * np.clip((height - 0.80) / 0.15, 0.0, 1.0))
    band = scene.board.soften((width * span).astype(np.float32) - away, 0.014) * body.lungs[where]
    band *= span > 0.05
    scene.fill_lung(np.float32(0.72) * band, where)
    scene.add(np.float32(0.07) * band, where)
    mask[where] = band > _MASK_LEVEL


def paint_pneumoperitoneum(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """Free air under the diaphragm: a black crescent between the white line of the dome and the liver."""
    body, board = scene.body, scene.board
    mask = board.empty_mask()
    sides = (0, 1) if lesion.side == "bilateral" else (1,) if lesion.side == "left" else (0,)
    for side in sides:
        where = scene.half(side)
        share = 1.0 if side == sides[0] else 0.6
        centre = SIGNS[side] * (0.44 + 0.04 * generator.standard_normal()) * scene.shape.chest[side] / 0.73
        half_width = (0.22 + 0.10 * lesion.severity) * share
        thickness = (0.040 + 0.065 * lesion.severity) * share
        across = (board.x[:, where[1]] - centre) / np.float32(half_width)
        crescent = np.float32(thickness) * np.clip(1.0 - across**4, 0.0, 1.0)
        below = board.y - body.floor[:, where[1]] - np.float32(0.016)
        air = board.soften(below, 0.008) * board.soften(crescent - below, 0.012)
        air *= np.clip((0.94 - body.across[where]) * 12.0, 0.0, 1.0)
        scene.add(np.float32(-0.62) * air, where)
        mask[where] = air > _MASK_LEVEL
    return mask
