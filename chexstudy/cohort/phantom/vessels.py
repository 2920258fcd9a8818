"""The pulmonary vessels: two trees that branch from the hila and taper to the periphery."""

import numpy as np

from chexstudy.cohort.phantom.anatomy import Body
from chexstudy.cohort.phantom.canvas import Board
from chexstudy.cohort.phantom.shape import Shape

_ROOTS = 8  # vessels leaving each hilum
_GENERATIONS = 6
_COARSE_RADIUS = 0.0095  # vessels thicker than this are drawn with a wider brush


# Straight-ish pieces of vessel: start and end ``(n, 2)``, sideways bend ``(n,)``, radius ``(n,)``.
Segments = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def grow_vessels(shape: Shape, body: Body, generator: np.random.Generator) -> list[Segments]:
    """Grow both trees, one ``Segments`` a generation, thicker below unless ``cephalisation`` evens it out."""
    fan = np.linspace(-1.0, 1.0, _ROOTS)
    starts, angles, radii = [], [], []
    for sign, hilum, size in ((-1.0, body.hila[0], shape.hilum[0]), (1.0, body.hila[1], shape.hilum[1])):
        # 0 points sideways, a quarter turn straight down.
        angle = 0.15 + 1.42 * fan + 0.10 * generator.standard_normal(_ROOTS)
        gain = 1.0 + (0.30 - 0.75 * shape.cephalisation) * np.sin(angle)
        radii.append(0.0150 * shape.vessel * gain * (0.9 + 0.2 * generator.random(_ROOTS)))
        starts.append(np.column_stack((hilum[0] + 0.35 * size * sign * np.cos(angle), hilum[1] + 1.15 * size * fan)))
        angles.append(np.where(sign > 0, angle, np.pi - angle))
    start, angle, radius = np.concatenate(starts), np.concatenate(angles), np.concatenate(radii)
    length = 0.095 + 0.055 * generator.random(start.shape[0])
    tree = []
    for _ in range(_GENERATIONS):
        end = start + length[:, None] * np.column_stack((np.cos(angle), np.sin(angle)))
        tree.append((start, end, 0.13 * length * generator.standard_normal(len(length)), radius))
        count = 2 * len(length)
        turn = np.tile((0.30, -0.30), len(length)) + 0.22 * generator.standard_normal(count)
        start, angle = np.repeat(end, 2, axis=0), np.repeat(angle, 2) + turn
        radius = np.repeat(radius, 2) * (0.74 + 0.12 * generator.random(count))
        length = np.repeat(length, 2) * (0.72 + 0.22 * generator.random(count))
    return tree


def draw_vessels(tree: list[Segments], board: Board) -> np.ndarray:
    """Thickness of blood along the beam, ``(pixels, pixels)`` float32; not yet cut to the lungs."""
    brushes: dict[bool, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {True: [], False: []}
    for start, end, bend, radius in tree:
        along = end - start
        length = np.hypot(along[:, 0], along[:, 1])
        count = max(int(np.ceil(1.1 * float(length.max()) / board.pitch)), 2)
        at = (np.arange(count) + 0.5) / count
        bow = 4.0 * at * (1.0 - at) * (bend / length)[:, None]
        x = start[:, :1] + along[:, :1] * at - along[:, 1:] * bow
        y = start[:, 1:] + along[:, 1:] * at + along[:, :1] * bow
        mass = np.repeat(3.1416 * radius**2 * length / count, count)
        brushes[bool(radius.mean() > _COARSE_RADIUS)].append((x.ravel(), y.ravel(), mass))
    vessels = np.zeros((board.pixels, board.pixels), np.float32)
    for coarse, parts in brushes.items():
        if parts:
            x, y, mass = (np.concatenate(column) for column in zip(*parts, strict=True))
            vessels += board.blur(board.scatter(x, y, mass), 0.0075 if coarse else 0.0035)
    return vessels
