"""The organs of a chest laid out on the board: attenuation of tissue, bone and air, and the organs' masks.

Attenuation is in units of one chest's soft tissue (about 20 cm of water). Outlines are templates read at normalised
heights, varied by the numbers in ``Shape``.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from chexstudy.cohort.phantom.canvas import Board
from chexstudy.cohort.phantom.shape import Shape
from chexstudy.inputs.yaml_files import read_data_beside

_FINE = np.linspace(0.0, 1.0, 513)


# Smooth monotone-preserving curves through ``(position, value)`` knots, positions from 0 to 1.
_OUTLINES = {name: PchipInterpolator(*np.array(knots).T)(_FINE) for name, knots in read_data_beside(__file__).items()}


def read_outline(name: str, at: np.ndarray) -> np.ndarray:
    """Read an outline at positions 0..1 (held constant beyond), float32 of the same shape."""
    return np.interp(at, _FINE, _OUTLINES[name]).astype(np.float32)


@dataclass
class Body:
    """The organs on the board, arrays ``(pixels, pixels)`` float32 unless said otherwise."""

    across: np.ndarray  # distance from the midline as a share of the distance to the inner chest wall (1 at the wall)
    # position down the lung as a column for each side: 0 apex, 1 costophrenic angle, ``(pixels, 1)``
    height: list[np.ndarray]
    wall: list[np.ndarray]  # distance of the inner chest wall from the midline, each side ``(pixels, 1)``
    floor: np.ndarray  # y of the hemidiaphragm under each column, ``(1, pixels)``
    lungs: np.ndarray  # coverage by the pleural cavities, behind heart and mediastinum too
    air: np.ndarray  # attenuation the air takes away
    # heart, mediastinum: coverage by their silhouettes
    heart: np.ndarray
    mediastinum: np.ndarray
    tissue: np.ndarray  # attenuation of soft tissue, lungs taken as full of it
    # ribs, spine, clavicles, other_bones: attenuation of bone
    ribs: np.ndarray
    spine: np.ndarray
    clavicles: np.ndarray
    other_bones: np.ndarray
    tubes: np.ndarray  # attenuation taken away by trachea and bronchi
    stomach: np.ndarray  # attenuation taken away by the gastric bubble
    # left_border, right_border: distance of the mediastinal silhouette from x = 0, each ``(pixels, 1)``
    left_border: np.ndarray
    right_border: np.ndarray
    spine_line: np.ndarray  # x of the spine's middle, ``(pixels, 1)``
    hila: list[tuple[float, float]]  # centres ``(x, y)``, right then left
    carina: tuple[float, float]  # ``(x, y)`` where the trachea divides
    knob: tuple[float, float]  # centre ``(x, y)`` of the aortic knob
    organs: dict[str, np.ndarray]  # masks by organ, boolean


def _join(board: Board, right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """A board whose right half of the patient (image left) takes ``right``, the other ``left``; columns broadcast."""
    joined = np.empty((board.pixels, board.pixels), np.float32)
    joined[:, : board.middle] = right
    joined[:, board.middle :] = left
    return joined


def build_body(shape: Shape, board: Board) -> Body:
    """Lay the organs of a shape out on the board."""
    x, y = board.x, board.y
    distance = np.abs(x)
    curve = shape.curve
    # The neck stays over the pelvis, whatever the spine does between them.
    freedom = np.clip((y + 1.0) / 0.35, 0.0, 1.0)
    spine_line = (curve[0] * freedom * np.sin(6.2832 * curve[1] * (y + 1.2) / 2.4 + curve[2])).astype(np.float32)

    height, wall, inner = [], [], []
    for side in (0, 1):
        at = (y - shape.apex[side]) / (shape.angle[side] - shape.apex[side])
        height.append(at)
        wall.append(shape.chest[side] * read_outline("lung_lateral", at))
        inner.append(shape.chest[side] * read_outline("lung_medial", at))
    across = distance * _join(board, 1.0 / wall[0], 1.0 / wall[1])
    floor = np.where(
        x < 0,
        shape.dome[0] + (shape.angle[0] - shape.dome[0]) * read_outline("dome_right", distance / shape.chest[0]),
        shape.dome[1] + (shape.angle[1] - shape.dome[1]) * read_outline("dome_left", distance / shape.chest[1]),
    )

    above_floor = floor - y
    lungs = board.soften((1.0 - across) * _join(board, wall[0], wall[1]), 0.012)
    lungs *= board.soften(distance - _join(board, inner[0], inner[1]), 0.02)
    lungs *= board.soften(y - np.float32(min(shape.apex)), 0.02)
    # Lung behind the dome, in the posterior sulcus: it fades out below the visible edge.
    sulcus = np.clip(1.0 + above_floor * np.float32(1 / 0.20), 0.0, 1.0)
    cavity = lungs * np.maximum(board.soften(above_floor, 0.014), np.float32(0.09) * sulcus * sulcus)
    lungs *= board.soften(above_floor, 0.014)
    bounded = np.minimum(across, 1.0)
    square = bounded * bounded
    profile = np.sqrt(1.0 - square * square * bounded)
    depth = [np.clip(0.70 + 1.1 * at, 0.55, 1.0) - 0.10 * np.clip(at - 0.55, 0, 1) for at in height]
    air = cavity * (0.30 + 0.70 * profile)
    air *= _join(board, depth[0], depth[1]) * np.float32(0.66 * shape.inflation)

    left_border, right_border, heart, knob = _outline_mediastinum(shape, board, spine_line)
    mediastinum = board.soften(left_border - x, 0.018) * board.soften(x + right_border, 0.018)
    carina = (shape.shift + shape.trachea + 0.01, shape.heart_top - 0.12)
    trunk, tissue = _build_tissue(shape, board, above_floor, across)
    ribs = _build_ribs(shape, board, across, above_floor)
    spine = _build_spine(shape, board, spine_line)
    clavicles, other_bones = _build_shoulder_girdle(shape, board)
    for bone in (ribs, clavicles, other_bones):
        bone *= trunk
    tubes, trachea_mask = _build_airways(shape, board, carina)
    stomach = _build_stomach(shape, board)
    hila = [(shape.shift - 0.160, shape.heart_top + 0.06), (shape.shift + 0.175, shape.heart_top + 0.025)]

    visible = (lungs > 0.5) & (np.maximum(heart, mediastinum) < 0.5)
    organs = {
        "right lung": visible & (np.arange(board.pixels) < board.middle),
        "left lung": visible & (np.arange(board.pixels) >= board.middle),
        "heart": heart > 0.5,
        "aorta": (x - knob[0]) ** 2 + (y - knob[1]) ** 2 < shape.knob**2,
        "trachea": trachea_mask,
        "diaphragm": (np.abs(above_floor) < max(0.02, 0.75 * board.pitch)) & (distance < np.where(x < 0, *shape.chest)),
        "spine": np.abs(x - spine_line) < 0.085,
        "clavicles": clavicles > 0.08,
        "ribs": ribs > 0.055,
    }
    return Body(
        across, height, wall, floor, lungs, air, heart, mediastinum, tissue, ribs, spine, clavicles, other_bones,
        tubes, stomach, left_border, right_border, spine_line, hila, carina, knob, organs,
    )  # fmt: skip


def _outline_mediastinum(shape: Shape, board: Board, spine_line: np.ndarray):
    """Borders of mediastinum and heart, and the heart's coverage."""
    x, y = board.x, board.y
    top, bottom = shape.heart_top, shape.heart_bottom
    at = (y - top) / (bottom - top)
    inside = ((at > 0.0) & (at < 1.0)).astype(np.float32)
    width = shape.heart_ratio * (shape.chest[0] + shape.chest[1])
    heart_left = shape.shift + width * shape.heart_axis * read_outline("heart_left", at)
    heart_right = -shape.shift + width * (1.0 - shape.heart_axis) * read_outline("heart_right", at)
    inner = np.minimum(heart_left - x, x + heart_right)
    heart = board.soften(inner, 0.016) * board.soften(y - top, 0.05) * board.soften(bottom - y, 0.02)

    knob_y = top - 0.175
    knob_x = shape.shift + 0.185 - 0.092 + 0.4 * (shape.knob - 0.08)
    middle = shape.shift + 0.35 * spine_line
    bump = np.sqrt(np.clip(shape.knob**2 - (y - knob_y) ** 2, 0.0, None))
    upper = 0.092 + 0.03 * np.clip((-0.6 - y) / 0.2, 0, 1)
    left = middle + upper + 0.075 * np.exp(-0.5 * ((y - top + 0.01) / 0.09) ** 2)
    left = np.maximum(left, np.where(bump > 0, knob_x + bump, -9.0))
    below = (y > knob_y).astype(np.float32)
    # The unfolded aorta runs down left of the spine and bulges to the right where it ascends.
    left = np.maximum(left, below * (shape.shift + 0.085 + 0.05 * shape.unfolding + 0.35 * shape.knob - 0.02))
    ascending = 0.065 * shape.unfolding * np.exp(-0.5 * ((y - top + 0.02) / 0.11) ** 2)
    right = -middle + upper + 0.012 + ascending
    left = np.maximum(left, np.where(inside > 0, heart_left, -9.0)).astype(np.float32)
    right = np.maximum(right, np.where(inside > 0, heart_right, -9.0)).astype(np.float32)
    left, right = (board.blur_column(border, 0.018) for border in (left, right))
    return left, right, heart, (float(knob_x), float(knob_y))


def _build_tissue(shape: Shape, board: Board, above_floor: np.ndarray, across: np.ndarray):
    """Coverage by the trunk and attenuation of its soft tissue, breasts and liver included."""
    x, y = board.x, board.y
    distance = np.abs(x)
    wall = max(shape.chest) * read_outline("lung_lateral", (y + 0.74) / 1.3)
    flank = wall + shape.trunk + 0.06 * shape.trunk * np.clip(y, 0.0, 1.0)
    flare = read_outline("neck_and_shoulder", (y - shape.shoulder + 1.2) / 2.4)
    outline = np.where(y < -0.55 + shape.shoulder, flare, flank + flare * (1.0 + 0.3 * shape.trunk)).astype(np.float32)
    inside = board.soften(outline - distance, 0.02)
    share = np.minimum(distance / outline, 1.0)
    square = share * share
    roundness = np.sqrt(1.0 - square * square)
    belly = np.clip((y - min(shape.dome)) * 2.0, 0.0, 1.0)
    neck = np.clip((y + 0.62) * 1.5, -0.35, 0.0)
    tissue = (0.25 + 0.75 * roundness) * (1.0 + 0.22 * belly + neck) * np.float32(shape.thickness)
    tissue *= inside
    if shape.arms_down:
        edge = (max(shape.chest) + shape.trunk + 0.015 + 0.07 * np.clip(y + 0.3, 0.0, 1.0)).astype(np.float32)
        arm = np.clip((distance - edge) / 0.12, 0.0, 1.0) * board.soften(y + 0.35, 0.3)
        tissue = np.maximum(tissue, arm * np.float32(0.62 * shape.thickness))
        inside = np.maximum(inside, arm)
    liver = board.soften(-above_floor, 0.014) * board.soften(0.05 - x, 0.35) * board.soften(1.0 - across, 0.05)
    tissue += np.float32(0.06) * liver
    if shape.breast > 0.0:
        tissue += _build_breasts(shape, board) * inside
    else:
        chest = ((distance - 0.42) / 0.26) ** 2 + ((y + 0.12) / 0.28) ** 2
        tissue += np.float32(0.045) * np.clip(1.0 - chest, 0.0, 1.0)
    return inside, tissue


def _build_breasts(shape: Shape, board: Board) -> np.ndarray:
    """Breast shadows: full and sharp below, thin towards the armpit."""
    breast = np.zeros((board.pixels, board.pixels), np.float32)
    radius = 0.20 + 0.11 * shape.breast
    for sign, lift in ((-1.0, 0.01), (1.0, -0.01)):
        centre_x = sign * (0.43 + 0.04 * shape.breast)
        centre_y = shape.breast_fall + lift * shape.jitter[0]
        part = board.window(centre_x, centre_y, 1.3 * radius, 1.5 * radius)
        dx = (part.x - centre_x) / (1.12 * radius)
        dy = (part.y - centre_y) / radius
        dy = np.where(dy < 0, dy / 1.45, dy)
        rest = np.clip(1.0 - dx**2 - dy**2, 0.0, 1.0)
        fullness = np.where(dy < 0, rest, np.sqrt(rest)) * np.float32(0.10 + 0.12 * shape.breast)
        breast[part.where] += fullness
    return breast


def _build_ribs(shape: Shape, board: Board, across: np.ndarray, above_floor: np.ndarray) -> np.ndarray:
    """Posterior ribs sloping down to the side and the fainter anterior ribs returning to the middle.

    A rib's drop goes with 1 - cos of the angle around the chest: one field of numbers, divided by the distance of ribs,
    gives all ribs of a course.
    """
    x, y = board.x, board.y
    bounded = np.minimum(across, 0.992)
    cosine = np.sqrt(1.0 - bounded * bounded)
    pitch, drop = shape.rib_pitch, shape.rib_drop
    uneven = 0.012 * np.sin(5.0 * y + shape.jitter[1]) + 0.008 * np.sin(11.0 * y + shape.jitter[2])
    level = (y + uneven - shape.rib_top).astype(np.float32) * np.float32(1 / pitch)
    level = level + np.where(x < 0, 0.0, np.float32(0.06 * shape.jitter[3]))
    steepness = np.float32(0.5 * drop / 0.70) * bounded / cosine
    reach = np.clip((1.03 - across) * np.float32(1 / 0.04), 0.0, 1.0)
    tangent = bounded * bounded
    tangent = 1.0 + 0.7 * tangent * tangent * tangent

    ribs = np.zeros_like(across)
    # Behind, a rib runs out level before it turns; in front it falls steadily towards the breast bone.
    behind = 0.62 * (1.0 - cosine) + 0.38 * bounded
    before = 2.0 - 0.45 * (1.0 - cosine) - 0.55 * bounded
    courses = (
        (behind, 0.62, 0.38, 0.185 * pitch, 0.135, 11.4, 0.06),
        (before, 0.45, 0.55, 0.215 * pitch, 0.048, 9.4, 0.45),
    )
    for course, round_share, straight_share, half_width, density, last, starts in courses:
        slope = np.minimum(round_share * steepness + np.float32(straight_share * 0.5 * drop / 0.70), 2.4)
        stretch = np.sqrt(1.0 + slope * slope)
        order = level - np.float32(0.5 * drop / pitch) * course
        nearest = np.rint(order)
        order -= nearest
        offset = np.abs(order, out=order)
        offset *= np.float32(pitch)
        offset /= stretch
        cover = board.soften(np.float32(half_width) - offset, 0.012)
        cortex = offset * np.float32(1 / half_width)
        cover *= 0.72 + 0.55 * cortex * cortex
        cover *= (nearest > -0.5) & (nearest < last)
        cover *= np.clip((across - np.float32(starts)) * 6.0, 0.0, 1.0)
        cover *= np.float32(density * shape.bone)
        ribs += cover
    ribs *= tangent
    ribs *= np.clip(1.0 + 5.0 * above_floor, 0.35, 1.0)
    ribs *= reach
    return ribs


def _build_spine(shape: Shape, board: Board, spine_line: np.ndarray) -> np.ndarray:
    """The column of vertebrae: bodies with bright end plates, dark discs, pedicles and spinous processes."""
    x, y = board.x, board.y
    pitch = 1.02 * shape.rib_pitch
    phase = (y - shape.rib_top) / pitch
    phase = np.abs(phase - np.rint(phase)) * 2.0
    disc = np.clip((phase - 0.80) / 0.12, 0.0, 1.0)
    plate = np.exp(-(((phase - 0.72) / 0.10) ** 2))
    half = 0.066 + 0.010 * np.clip(y + 0.6, 0.0, 1.2) + 0.006 * plate - 0.008 * disc
    offset = np.abs(x - spine_line)
    column = board.soften(half.astype(np.float32) - offset, 0.032)
    density = (0.165 - 0.065 * disc + 0.045 * plate).astype(np.float32)
    spine = column * (density * np.float32(shape.bone))
    pedicle = np.exp(-(((offset - 0.045) / 0.014) ** 2)) * np.exp(-((phase / 0.35) ** 2))
    process = np.exp(-((offset / 0.010) ** 2)) * np.exp(-(((phase - 0.75) / 0.3) ** 2))
    spine += (0.040 * shape.bone) * (pedicle + process).astype(np.float32)
    return spine


def _build_shoulder_girdle(shape: Shape, board: Board) -> tuple[np.ndarray, np.ndarray]:
    """Clavicles, and scapulae with the heads of the humeri."""
    x, y = board.x, board.y
    distance = np.abs(x)
    level, rise = shape.clavicle
    along = np.clip((distance - 0.07) / 0.72, 0.0, 1.2)
    tilt = np.where(x < 0, 0.012 * shape.jitter[4], -0.012 * shape.jitter[4])
    middle = level + rise * along - 0.045 * np.sin(6.2832 * np.clip(along, 0, 1)) * 0.8 + tilt
    half = 0.026 + 0.016 * np.exp(-((along / 0.10) ** 2)) + 0.006 * np.clip(along - 0.6, 0, 1)
    offset = np.abs(y - middle.astype(np.float32))
    clavicles = board.soften(half.astype(np.float32) - offset, 0.012)
    clavicles *= 0.75 + 0.45 * (offset / half.astype(np.float32)) ** 2
    ends = board.soften(distance - 0.075, 0.03) * board.soften(0.84 - distance, 0.04)
    clavicles *= ends * np.float32(0.23 * shape.bone)

    blade = 0.56 if shape.arms_down else 0.70
    bones = np.zeros((board.pixels, board.pixels), np.float32)
    for sign in (-1.0, 1.0):
        part = board.window(sign * 0.85, -0.42, 0.40, 0.52)
        side_x = np.abs(part.x)
        top = -0.58 + shape.shoulder
        fall = (part.y - top) / 0.56
        medial = side_x - (blade + 0.06 * fall)
        lateral = (0.93 - 0.24 * fall) - side_x
        inner = np.minimum(np.minimum(medial, lateral), np.minimum(part.y - top, top + 0.56 - part.y))
        cover = board.soften(inner.astype(np.float32), 0.02) * (
            0.045 + 0.07 * np.exp(-((inner / 0.025) ** 2)).astype(np.float32)
        )
        ridge = np.abs(part.y - (top + 0.10 - 0.25 * (side_x - blade)))
        cover += 0.08 * np.exp(-((ridge / 0.025) ** 2)) * board.soften(side_x - blade, 0.04)
        radius = np.hypot(side_x - 1.0, part.y - (top + 0.08))
        head = board.soften((0.115 - radius).astype(np.float32), 0.02)
        cover += head * (0.13 + 0.09 * np.clip(radius / 0.115, 0, 1) ** 4)
        shaft = (0.065 - np.abs(side_x - (1.02 + 0.12 * (part.y - top)))).astype(np.float32)
        cover += 0.14 * board.soften(shaft, 0.02) * board.soften((part.y - top - 0.12).astype(np.float32), 0.05)
        bones[part.where] += cover * np.float32(1.25 * shape.bone)
    return clavicles, bones


def _build_airways(shape: Shape, board: Board, carina: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Trachea with the main bronchi: attenuation taken away, and the trachea's mask."""
    x, y = board.x, board.y
    top = -0.98
    along = np.clip((y - top) / (carina[1] - top), 0.0, 1.0)
    middle = carina[0] * along - 0.018 * np.sin(3.1416 * along**2)
    half = 0.042 + 0.004 * along
    across = (x - middle.astype(np.float32)) / half.astype(np.float32)
    span = board.soften(carina[1] - y, 0.05)
    trachea = np.sqrt(np.clip(1.0 - across**2, 0.0, 1.0)) * span
    tubes = 0.24 * trachea
    for run, fall, radius in ((-0.115, 0.130, 0.030), (0.135, 0.100, 0.026)):
        part = board.window(carina[0] + 0.5 * run, carina[1] + 0.5 * fall, 0.16, 0.15)
        dx, dy = part.x - carina[0], part.y - carina[1]
        share = np.clip((dx * run + dy * fall) / (run * run + fall * fall), 0.0, 1.0)
        away = np.hypot(dx - share * run, dy - share * fall) / radius
        tube = (0.17 - 0.12 * share) * np.sqrt(np.clip(1.0 - away**2, 0.0, 1.0))
        tubes[part.where] = np.maximum(tubes[part.where], tube)
    return tubes.astype(np.float32), (np.abs(across) < 1.0) & (y < carina[1])


def _build_stomach(shape: Shape, board: Board) -> np.ndarray:
    """The gastric bubble under the left dome; not every stomach holds air."""
    stomach = np.zeros((board.pixels, board.pixels), np.float32)
    centre_x, radius, chance = shape.bubble
    if chance > 0.75:
        return stomach
    centre_y = shape.dome[1] + 0.05 + 0.62 * radius
    part = board.window(centre_x, centre_y, 1.6 * radius, radius)
    rest = 1.0 - ((part.x - centre_x) / (1.35 * radius)) ** 2 - ((part.y - centre_y) / (0.62 * radius)) ** 2
    stomach[part.where] = (0.10 + 0.15 * chance) * np.sqrt(np.clip(rest, 0.0, 1.0))
    return stomach
