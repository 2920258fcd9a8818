"""Findings of heart, vessels, hila, hiatus and skeleton; see ``lesions.py``."""

import numpy as np

from chexstudy.cohort.phantom.case import Lesion
from chexstudy.cohort.phantom.lung_lesions import add_ball
from chexstudy.cohort.phantom.scene import SIGNS, Scene, paint_each_side, pick_sides
from chexstudy.cohort.phantom.shape import Shape


def reshape_cardiomegaly(shape: Shape, lesion: Lesion) -> None:
    """Cardiothoracic ratio above one half, up to about 0.7."""
    shape.heart_ratio = max(shape.heart_ratio, 0.49) + 0.05 + 0.16 * lesion.severity
    shape.heart_top -= 0.03 * lesion.severity


def reshape_scoliosis(shape: Shape, lesion: Lesion) -> None:
    """A C- or S-shaped lateral curve of the spine, convex to the lesion's side if it has one."""
    draw = np.random.default_rng(lesion.seed)
    toward = {"right": -1.0, "left": 1.0}.get(lesion.side, 1.0 if draw.random() < 0.3 else -1.0)
    cycles = 0.85 if draw.random() < 0.6 else 1.25
    peak = draw.uniform(-0.25, 0.15)
    shape.curve = (
        toward * (0.07 + 0.12 * lesion.severity),
        cycles,
        np.pi / 2 - 2 * np.pi * cycles * (peak + 1.2) / 2.4,
    )


@paint_each_side
def paint_fracture(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """One to four neighbouring ribs broken in a line: a step, a dark cleft and a cuff of callus."""
    shape = scene.shape
    across = generator.uniform(0.58, 0.80)
    height = {"upper": 0.26, "middle": 0.45, "lower": 0.62}.get(lesion.zone, generator.uniform(0.3, 0.62))
    drop = 0.5 * shape.rib_drop * (1.0 - np.sqrt(1.0 - across**2))
    first = max(round((scene.level(side, height) - shape.rib_top - drop) / shape.rib_pitch), 1)
    for rib in range(first, first + 1 + round(2.6 * lesion.severity)):
        y = shape.rib_top + drop + rib * shape.rib_pitch
        x = SIGNS[side] * across * float(scene.body.wall[side][scene.board.index(y), 0])
        _break_rib(scene, x, y, SIGNS[side], lesion.severity, generator, mask)


def _break_rib(
    scene: Scene, x: float, y: float, sign: float, severity: float, generator: np.random.Generator, mask: np.ndarray
) -> None:
    """Displace the outer fragment of a rib at a point, open a cleft and lay callus around it."""
    board, ribs = scene.board, scene.body.ribs
    part = board.window(x, y, 0.13, 0.12)
    local = ribs[part.where]
    step = (0.022 + 0.030 * severity) * (1.0 if generator.random() < 0.7 else -1.0)
    outward = (part.x - x) * sign
    moved = step * np.clip(outward / 0.015 + 0.5, 0.0, 1.0) * np.clip((0.125 - outward) / 0.08, 0.0, 1.0)
    rows = np.arange(local.shape[0])[:, None] - moved / board.pitch
    rows = np.clip(rows, 0.0, local.shape[0] - 1.001)
    top = rows.astype(int)
    share = (rows - top).astype(np.float32)
    columns = np.broadcast_to(np.arange(local.shape[1])[None, :], top.shape)
    shifted = local[top, columns] * (1.0 - share) + local[top + 1, columns] * share
    away = np.hypot((part.x - x) / 1.15, part.y - y)
    cleft = np.exp(-((outward / 0.012) ** 2)) * np.exp(-(((part.y - y) / 0.05) ** 2))
    ribs[part.where] = shifted * (1.0 - 0.85 * cleft)
    radius = 0.042 + 0.022 * severity
    callus = np.exp(-((away / radius) ** 4)) * (1.0 - 0.6 * cleft)
    scene.add((callus * np.float32(0.09 + 0.19 * severity)).astype(np.float32), part.where)
    mask[part.where] |= (away < 1.5 * radius) | ((np.abs(moved) > 0.5 * abs(step)) & (local + shifted > 0.05))


def reshape_hilum(shape: Shape, lesion: Lesion) -> None:
    """Fuller roots of the vessels on the enlarged side."""
    for side in pick_sides(lesion.side):
        shape.hilum[side] *= 1.0 + 0.5 * lesion.severity


@paint_each_side
def paint_hilum(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """Enlarged hilar nodes: a cluster of lobulated, sharply bounded masses beside the mediastinum."""
    (x, y), sign, severity = scene.body.hila[side], SIGNS[side], lesion.severity
    radius = 0.060 + 0.055 * severity
    for turn in (-0.9, 0.0, 0.9):
        reach = radius * generator.uniform(0.75, 1.15)
        at = (x + sign * reach * np.cos(turn) + 0.02 * sign, y + 1.2 * reach * np.sin(turn))
        size = radius * generator.uniform(0.75, 1.05)
        add_ball(scene, mask, at, size, 0.11 + 0.12 * severity, generator, lobulation=0.06)


def reshape_aorta(shape: Shape, lesion: Lesion) -> None:
    """A wide knob, and an ascending and descending aorta that bulge beyond the mediastinum."""
    shape.knob += 0.014 + 0.042 * lesion.severity
    shape.unfolding = min(shape.unfolding + 0.4 + 0.9 * lesion.severity, 1.6)


def paint_aorta(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """Calcium in the wall of the wide arch; the mask is knob and descending aorta."""
    board, shape = scene.board, scene.shape
    x, y = scene.body.knob
    part = board.window(x, y, 1.4 * shape.knob, 1.4 * shape.knob)
    dx, dy = part.x - x, part.y - y
    rim = np.exp(-(((np.hypot(dx, dy) - shape.knob + 0.010) / 0.010) ** 2))
    rim *= np.clip((dx - dy) / shape.knob, 0.0, 1.0)
    scene.add((rim * np.float32(0.10 * lesion.severity)).astype(np.float32), part.where)
    knob = (board.x - x) ** 2 + (board.y - y) ** 2 < (1.08 * shape.knob) ** 2
    border = scene.body.left_border
    descending = (board.x < border + 0.02) & (board.x > border - 0.13)
    descending &= (board.y > y) & (board.y < shape.heart_top + 0.02)
    return knob | descending


def paint_hernia(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """Hiatal hernia: a round pouch behind the heart with a level of fluid under gas."""
    board, shape = scene.board, scene.shape
    radius = 0.105 + 0.085 * lesion.severity
    x = 0.055 + 0.02 * generator.standard_normal() + shape.shift
    y = float(np.mean(shape.dome)) + 0.06 - 0.85 * radius
    part = board.window(x, y, 1.3 * radius, 1.3 * radius)
    away = np.hypot((part.x - x) / 1.12, part.y - y)
    inside = board.soften((radius - away).astype(np.float32), 0.012)
    level = y + radius * generator.uniform(-0.05, 0.2)
    gas = board.soften((level - part.y).astype(np.float32), 0.008)
    gas = gas * board.soften((radius - 0.022 - away).astype(np.float32), 0.012)
    scene.add(np.float32(0.14) * inside - np.float32(0.34 + 0.18 * lesion.severity) * gas, part.where)
    mask = board.empty_mask()
    mask[part.where] = inside > 0.4
    return mask
