"""Support devices: tubes, lines, pacemakers and electrodes, as many as the severity asks for.

Where a device lies is drawn before anything is painted and does not depend on the picture, so the truth of a tip's
place can be told from the lesion alone.
"""

import numpy as np

from chexstudy.cohort.phantom.case import Lesion
from chexstudy.cohort.phantom.scene import Scene

# Half an inner chest, 0.735 units wide on the board, is about 14.5 cm wide.
_CM = 19.7
# The base of the heart lies this far below the carina (`anatomy.build_body`).
_CARINA_TO_BASE = 0.12
# An endotracheal tube ends 5 cm above the carina, give or take 2 (Goodman et al. 1976, AJR 127:433-434); a central
# catheter above the right atrium, whose upper end lies 4 cm below the carina (Mahlon and Yoon 2007, JVIR 18:1106-1110).
_LEAST_CM_ABOVE_CARINA = 3.0
_MOST_CM_BELOW_CARINA = 4.0


def place_devices(lesion: Lesion) -> dict[str, dict]:
    """One to three devices of a lesion by its seed and severity, and what is chance of their place."""
    generator = np.random.default_rng(lesion.seed)
    count = 1 + round(2.4 * lesion.severity)
    shares = [share for share, _, _ in _DEVICES.values()]
    chosen = generator.choice(list(_DEVICES), size=count, replace=False, p=shares).tolist()
    return {device: _DEVICES[device][1](generator) for device in chosen}


def find_malposition(lesion: Lesion) -> bool | None:
    """Whether a tube is too near the carina, or a central catheter in the right atrium; None without either."""
    places = place_devices(lesion)
    wrong = []
    if "endotracheal tube" in places:
        wrong.append(_CM * places["endotracheal tube"]["above_carina"] < _LEAST_CM_ABOVE_CARINA)
    if "central venous catheter" in places:
        below_carina = _CARINA_TO_BASE + places["central venous catheter"]["below_base"]
        wrong.append(_CM * below_carina > _MOST_CM_BELOW_CARINA)
    return any(wrong) if wrong else None


def paint_devices(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """One to three kinds of devices, chosen and placed by the lesion's seed."""
    metal = np.zeros_like(scene.body.air)
    for device, place in place_devices(lesion).items():
        _DEVICES[device][2](scene, metal, **place)
    scene.add(metal)
    return scene.board.blur(metal, 0.010) > 0.03


def _smooth_path(*corners: tuple[float, float]) -> np.ndarray:
    """A soft curve through a few corners (Chaikin's corner cutting), ``(points, 2)``."""
    path = np.array(corners)
    for _ in range(3):
        near, far = 0.75 * path[:-1] + 0.25 * path[1:], 0.25 * path[:-1] + 0.75 * path[1:]
        path = np.concatenate((path[:1], np.stack((near, far), axis=1).reshape(-1, 2), path[-1:]))
    return path


def _paint_endotracheal(scene: Scene, metal: np.ndarray, above_carina: float) -> None:
    """A tube down the trachea to a few centimetres above the carina."""
    x, y = scene.body.carina
    path = _smooth_path((x - 0.02, -1.15), (x - 0.012, -0.8), (x + 0.004, y - above_carina))
    stripe = path + np.array((0.009, 0.0))
    metal += 0.26 * scene.board.trace(path, 0.026) + 0.34 * scene.board.trace(stripe, 0.011)


def _place_central_line(generator: np.random.Generator) -> dict:
    return {
        "below_base": generator.uniform(-0.05, 0.14),
        "side": -1.0 if generator.random() < 0.75 else 1.0,
        "from_neck": generator.random() < 0.5,
    }


def _paint_central_line(scene: Scene, metal: np.ndarray, below_base: float, side: float, from_neck: bool) -> None:
    """A catheter from the neck or under a clavicle to the superior vena cava, or beyond."""
    shift = scene.shape.shift
    end = (shift - 0.115, scene.shape.heart_top + below_base)
    if from_neck:
        route = ((side * 0.22, -1.15), (side * 0.19, -0.8), (side * 0.13, -0.55), (shift - 0.11, -0.4))
    else:
        route = ((side * 0.82, -0.45), (side * 0.55, -0.62), (side * 0.25, -0.60), (shift - 0.09, -0.48))
    metal += 0.46 * scene.board.trace(_smooth_path(*route, end), 0.019)


def _paint_gastric(scene: Scene, metal: np.ndarray, sag: float) -> None:
    """A feeding tube down the oesophagus into the stomach, its side port a gap in the line."""
    floor = scene.shape.dome[1]
    path = _smooth_path(
        (0.02, -1.15), (0.01, -0.6), (0.03, 0.0), (0.05, floor), (0.14, floor + sag), (0.36, floor + sag + 0.05)
    )
    metal += 0.46 * scene.board.trace(path, 0.020)


def _place_pacemaker(generator: np.random.Generator) -> dict:
    side = 1.0 if generator.random() < 0.8 else -1.0
    x, y = side * generator.uniform(0.52, 0.62), generator.uniform(-0.46, -0.38)
    return {"side": side, "x": x, "y": y, "two_leads": generator.random() < 0.6}


def _paint_pacemaker(scene: Scene, metal: np.ndarray, side: float, x: float, y: float, two_leads: bool) -> None:
    """A generator under the clavicle with one or two leads to the right heart."""
    board, shape = scene.board, scene.shape
    part = board.window(x, y, 0.14, 0.14)
    dx, dy = np.abs(part.x - x), np.abs(part.y - y)
    box = np.minimum(0.105 - dx, 0.085 - dy)
    box = np.minimum(box, (0.15 - dx - dy) * 0.7071)
    metal[part.where] += (0.62 + 0.2 * (dy > 0.05)) * board.soften(box.astype(np.float32), 0.012)
    width = shape.heart_ratio * sum(shape.chest)
    tips = [(shape.shift + 0.40 * shape.heart_axis * width, shape.heart_bottom - 0.10)]
    if two_leads:
        tips.append((shape.shift - 0.7 * (1 - shape.heart_axis) * width, shape.heart_top + 0.18))
    for tip in tips:
        entry = (shape.shift - 0.10, -0.42)
        turn = (shape.shift - 0.13, 0.5 * (shape.heart_top + shape.heart_bottom))
        path = _smooth_path((x, y - 0.08), (0.6 * x, y - 0.16), (side * 0.12, -0.58), entry, turn, tip)
        metal += 0.45 * board.trace(path, 0.018)
        metal += 0.4 * board.trace(path[-3:], 0.022)


def _place_electrodes(generator: np.random.Generator) -> dict:
    spots = [(-0.62, -0.42), (0.60, -0.40), (0.66, 0.36)][: 2 + int(generator.random() < 0.7)]
    jitter = generator.standard_normal
    return {"spots": [(x + 0.05 * jitter(), y + 0.05 * jitter(), generator.uniform(-0.25, 0.25)) for x, y in spots]}


def _paint_electrodes(scene: Scene, metal: np.ndarray, spots: list[tuple[float, float, float]]) -> None:
    """Monitor electrodes on the skin with their wires hanging off the film."""
    board = scene.board
    for x, y, away in spots:
        part = board.window(x, y, 0.05, 0.05)
        metal[part.where] += 0.45 * board.soften((0.030 - np.hypot(part.x - x, part.y - y)).astype(np.float32), 0.01)
        path = _smooth_path((x, y), (x + 0.3 * away, y + 0.35), (x + away, y + 0.55), (0.4 * x + away, 1.2))
        metal += 0.36 * board.trace(path, 0.015)


def _paint_wires(scene: Scene, metal: np.ndarray, loops: list[tuple[float, float]]) -> None:
    """Sternal wires: a column of small loops in the midline."""
    for y, (turn, x) in zip(np.linspace(-0.42, 0.22, len(loops)), loops, strict=True):
        angle = np.linspace(0.0, 6.2832, 14) + turn
        x += scene.shape.shift
        loop = np.column_stack((x + 0.038 * np.cos(angle), y + 0.022 * np.sin(angle)))
        metal += 0.42 * scene.board.trace(loop, 0.014)


# Device -> its share among devices, what is drawn by chance of its place, and how it is painted there.
_DEVICES = {
    "endotracheal tube": (0.20, lambda draw: {"above_carina": draw.uniform(0.10, 0.26)}, _paint_endotracheal),
    "central venous catheter": (0.26, _place_central_line, _paint_central_line),
    "feeding tube": (0.18, lambda draw: {"sag": draw.uniform(0.10, 0.2)}, _paint_gastric),
    "pacemaker": (0.16, _place_pacemaker, _paint_pacemaker),
    "electrodes": (0.12, _place_electrodes, _paint_electrodes),
    "sternal wires": (
        0.08,
        lambda draw: {"loops": [(draw.random(), 0.008 * draw.standard_normal()) for _ in range(6)]},
        _paint_wires,
    ),
}
