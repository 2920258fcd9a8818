"""Support devices: tubes, lines, pacemakers and electrodes, as many as the severity asks for."""

from types import MappingProxyType

import numpy as np

from chexstudy.cohort.phantom.case import Lesion
from chexstudy.cohort.phantom.scene import Scene

_SHARES = MappingProxyType(
    {
        "endotracheal tube": 0.20,
        "central venous catheter": 0.26,
        "feeding tube": 0.18,
        "pacemaker": 0.16,
        "electrodes": 0.12,
        "sternal wires": 0.08,
    }
)
DEVICES = tuple(_SHARES)


def choose_devices(lesion: Lesion, generator: np.random.Generator) -> tuple[str, ...]:
    """Which devices a lesion stands for: one to three, more the higher its severity.

    The picture and the report both ask with a fresh generator of ``lesion.seed``, and so agree.
    """
    count = 1 + round(2.4 * lesion.severity)
    return tuple(generator.choice(DEVICES, size=count, replace=False, p=list(_SHARES.values())).tolist())


def paint_devices(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """One to three kinds of devices, chosen by the lesion's seed."""
    metal = np.zeros_like(scene.body.air)
    for device in choose_devices(lesion, generator):
        _PAINTERS[device](scene, metal, generator)
    scene.add(metal)
    return scene.board.blur(metal, 0.010) > 0.03


def _smooth_path(*corners: tuple[float, float]) -> np.ndarray:
    """A soft curve through a few corners (Chaikin's corner cutting), ``(points, 2)``."""
    path = np.array(corners)
    for _ in range(3):
        near, far = 0.75 * path[:-1] + 0.25 * path[1:], 0.25 * path[:-1] + 0.75 * path[1:]
        cut = np.empty((2 * len(near), 2))
        cut[0::2], cut[1::2] = near, far
        path = np.concatenate((path[:1], cut, path[-1:]))
    return path


def _paint_endotracheal(scene: Scene, metal: np.ndarray, generator: np.random.Generator) -> None:
    """A tube down the trachea to a few centimetres above the carina."""
    x, y = scene.body.carina
    tip = y - generator.uniform(0.10, 0.26)
    path = _smooth_path((x - 0.02, -1.15), (x - 0.012, -0.8), (x + 0.004, tip))
    stripe = path + np.array((0.009, 0.0))
    metal += 0.26 * scene.board.trace(path, 0.026) + 0.34 * scene.board.trace(stripe, 0.011)


def _paint_central_line(scene: Scene, metal: np.ndarray, generator: np.random.Generator) -> None:
    """A catheter from the neck or under a clavicle to the superior vena cava."""
    shift, top = scene.shape.shift, scene.shape.heart_top
    end = (shift - 0.115, top + generator.uniform(-0.05, 0.14))
    side = -1.0 if generator.random() < 0.75 else 1.0
    if generator.random() < 0.5:
        path = _smooth_path((side * 0.22, -1.15), (side * 0.19, -0.8), (side * 0.13, -0.55), (shift - 0.11, -0.4), end)
    else:
        path = _smooth_path(
            (side * 0.82, -0.45), (side * 0.55, -0.62), (side * 0.25, -0.60), (shift - 0.09, -0.48), end
        )
    metal += 0.46 * scene.board.trace(path, 0.019)


def _paint_gastric(scene: Scene, metal: np.ndarray, generator: np.random.Generator) -> None:
    """A feeding tube down the oesophagus into the stomach, its side port a gap in the line."""
    floor = scene.shape.dome[1]
    sag = generator.uniform(0.10, 0.2)
    path = _smooth_path(
        (0.02, -1.15), (0.01, -0.6), (0.03, 0.0), (0.05, floor), (0.14, floor + sag), (0.36, floor + sag + 0.05)
    )
    metal += 0.46 * scene.board.trace(path, 0.020)


def _paint_pacemaker(scene: Scene, metal: np.ndarray, generator: np.random.Generator) -> None:
    """A generator under the clavicle with one or two leads to the right heart."""
    board, shape = scene.board, scene.shape
    side = 1.0 if generator.random() < 0.8 else -1.0
    x, y = side * generator.uniform(0.52, 0.62), generator.uniform(-0.46, -0.38)
    part = board.window(x, y, 0.14, 0.14)
    dx, dy = np.abs(part.x - x), np.abs(part.y - y)
    box = np.minimum(0.105 - dx, 0.085 - dy)
    box = np.minimum(box, (0.15 - dx - dy) * 0.7071)
    metal[part.where] += (0.62 + 0.2 * (dy > 0.05)) * board.soften(box.astype(np.float32), 0.012)
    width = shape.heart_ratio * sum(shape.chest)
    tips = [(shape.shift + 0.40 * shape.heart_axis * width, shape.heart_bottom - 0.10)]
    if generator.random() < 0.6:
        tips.append((shape.shift - 0.7 * (1 - shape.heart_axis) * width, shape.heart_top + 0.18))
    for tip in tips:
        entry = (shape.shift - 0.10, -0.42)
        turn = (shape.shift - 0.13, 0.5 * (shape.heart_top + shape.heart_bottom))
        path = _smooth_path((x, y - 0.08), (0.6 * x, y - 0.16), (side * 0.12, -0.58), entry, turn, tip)
        metal += 0.45 * board.trace(path, 0.018)
        metal += 0.4 * board.trace(path[-3:], 0.022)


def _paint_electrodes(scene: Scene, metal: np.ndarray, generator: np.random.Generator) -> None:
    """Monitor electrodes on the skin with their wires hanging off the film."""
    board = scene.board
    spots = [(-0.62, -0.42), (0.60, -0.40), (0.66, 0.36)]
    for x, y in spots[: 2 + int(generator.random() < 0.7)]:
        x, y = x + 0.05 * generator.standard_normal(), y + 0.05 * generator.standard_normal()
        part = board.window(x, y, 0.05, 0.05)
        metal[part.where] += 0.45 * board.soften((0.030 - np.hypot(part.x - x, part.y - y)).astype(np.float32), 0.01)
        away = generator.uniform(-0.25, 0.25)
        path = _smooth_path((x, y), (x + 0.3 * away, y + 0.35), (x + away, y + 0.55), (0.4 * x + away, 1.2))
        metal += 0.36 * board.trace(path, 0.015)


def _paint_wires(scene: Scene, metal: np.ndarray, generator: np.random.Generator) -> None:
    """Sternal wires: a column of small loops in the midline."""
    for y in np.linspace(-0.42, 0.22, 6):
        angle = np.linspace(0.0, 6.2832, 14) + generator.random()
        x = 0.008 * generator.standard_normal() + scene.shape.shift
        loop = np.column_stack((x + 0.038 * np.cos(angle), y + 0.022 * np.sin(angle)))
        metal += 0.42 * scene.board.trace(loop, 0.014)


_PAINTERS = MappingProxyType(
    {
        "endotracheal tube": _paint_endotracheal,
        "central venous catheter": _paint_central_line,
        "feeding tube": _paint_gastric,
        "pacemaker": _paint_pacemaker,
        "electrodes": _paint_electrodes,
        "sternal wires": _paint_wires,
    }
)
