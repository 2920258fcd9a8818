"""Findings of the lung itself. What painters and reshapers are is told in ``lesions.py``.

Sizes follow the usual definitions, a board unit being about 20 cm: a nodule is under 3 cm (0.15) across, a mass above.
"""

import numpy as np

from chexstudy.cohort.phantom.case import Lesion
from chexstudy.cohort.phantom.scene import SIGNS, Scene, paint_each_side, pick_height, pick_sides
from chexstudy.cohort.phantom.shape import Shape


def add_ball(
    scene: Scene,
    mask: np.ndarray,
    at: tuple[float, float],
    radius: float,
    strength: float,
    generator: np.random.Generator,
    lobulation: float = 0.03,
    hollow: float = 0.0,
) -> None:
    """Add a round, lobulated shadow at a point and mark it in ``mask``.

    ``strength`` is the attenuation through the middle; ``lobulation`` (unevenness) and ``hollow`` are shares of the
    radius.
    """
    board = scene.board
    part = board.window(*at, 1.5 * radius + board.pitch, 1.5 * radius + board.pitch)
    dx, dy = part.x - np.float32(at[0]), part.y - np.float32(at[1])
    phase = 6.2832 * generator.random(3)
    angle = np.arctan2(dy, dx)
    outline = 1.0 + lobulation * sum(np.sin(k * angle + phase[k % 3]) * (2.0 / k) for k in (2, 3, 5))
    share = np.hypot(dx, dy) / (np.float32(radius) * outline)
    cover = board.soften((1.0 - share) * np.float32(radius), 0.25 * radius)
    ball = cover * (0.45 + 0.55 * np.sqrt(np.clip(1.0 - share * share, 0.0, 1.0)))
    if hollow > 0.0:
        core = board.soften((np.float32(hollow) - share) * np.float32(radius), 0.012)
        ball = cover * (1.0 - 0.92 * core)
        scene.add((np.float32(-0.05) * core).astype(np.float32), part.where)
    scene.add((np.float32(strength) * ball).astype(np.float32), part.where)
    mask[part.where] |= share < 1.05


def _spread_patch(
    scene: Scene, side: int, at: tuple[float, float], radii: tuple[float, float], roughness: np.ndarray, softness: float
) -> np.ndarray:
    """Coverage 0..1 of the lung on a side by an ill-defined patch whose border a random field frays."""
    (x, y), (radius_x, radius_y), board = at, radii, scene.board
    away = np.sqrt(((board.x - x) / np.float32(radius_x)) ** 2 + ((board.y - y) / np.float32(radius_y)) ** 2)
    cover = np.clip((1.0 - away + roughness) * np.float32(1.0 / softness) + 0.5, 0.0, 1.0)
    patch = cover * cover * (3.0 - 2.0 * cover)
    patch *= scene.body.lungs
    patch[scene.half(1 - side)] = 0.0
    return patch


def _aim_outward(scene: Scene, side: int, at: tuple[float, float]) -> np.ndarray:
    """The direction from the hilum to a point, of length 1."""
    aim = np.array(at) - np.array(scene.body.hila[side])
    return aim / max(np.hypot(*aim), 1e-3)


@paint_each_side
def paint_opacity(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """Hazy ground-glass opacity: ill-defined, vessels still seen through it."""
    at = scene.point(side, generator.uniform(0.3, 0.65), pick_height(lesion.zone, generator))
    size = (0.21 + 0.12 * lesion.severity) * (1.25 if lesion.zone == "diffuse" else 1.0)
    rough = 0.22 * scene.board.random_field(generator, 16)
    patch = _spread_patch(scene, side, at, (size, 1.15 * size), rough, 1.1)
    scene.fill_lung(np.float32(0.16 + 0.40 * lesion.severity) * patch)
    mask |= patch > 0.35


@paint_each_side
def paint_consolidation(
    scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray
) -> None:
    """Airspace consolidation: dense and ill-defined, branching air bronchograms running through it."""
    board = scene.board
    at = scene.point(side, generator.uniform(0.35, 0.65), pick_height(lesion.zone, generator))
    size = 0.15 + 0.13 * lesion.severity
    rough = 0.30 * board.random_field(generator, 18) + 0.12 * board.random_field(generator, 44)
    patch = _spread_patch(scene, side, at, (1.1 * size, size), rough, 0.75)
    toward = _aim_outward(scene, side, at)
    tubes = np.zeros_like(patch)
    for turn in generator.uniform(-0.9, 0.9, 5):
        cosine, sine = np.cos(turn), np.sin(turn)
        aim = np.array((cosine * toward[0] - sine * toward[1], sine * toward[0] + cosine * toward[1]))
        start = np.array(at) - 0.35 * size * aim
        tubes += board.trace(np.array((start, start + generator.uniform(0.6, 1.1) * size * aim)), 0.014)
    patch_air = patch * (1.0 - 0.60 * np.minimum(tubes, 1.0))
    scene.fill_lung(np.float32(0.36 + 0.54 * lesion.severity) * patch_air)
    mask |= patch > 0.4


@paint_each_side
def paint_nodule(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """One round nodule under 3 cm on each side it lies on."""
    at = scene.point(side, generator.uniform(0.25, 0.75), pick_height(lesion.zone, generator))
    add_ball(scene, mask, at, 0.034 + 0.036 * lesion.severity, 0.13 + 0.20 * lesion.severity, generator)


@paint_each_side
def paint_mass(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """A mass above 3 cm: lobulated, with spicules that radiate into the lung."""
    at = scene.point(side, generator.uniform(0.3, 0.6), pick_height(lesion.zone, generator))
    radius = 0.090 + 0.075 * lesion.severity
    add_ball(scene, mask, at, radius, 0.22 + 0.20 * lesion.severity, generator, lobulation=0.09)
    spicules = np.zeros_like(scene.body.air)
    for angle in np.linspace(0.0, 6.2832, 12, endpoint=False) + 0.2 * generator.standard_normal(12):
        ray = np.array(((0.85 * radius,), (radius * generator.uniform(1.3, 1.7),))) * (np.cos(angle), np.sin(angle))
        spicules += scene.board.trace(ray + np.array(at), 0.010)
    scene.add(np.float32(0.12) * spicules * scene.body.lungs)


@paint_each_side
def paint_granuloma(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """One to three small, very dense round calcifications."""
    for _ in range(1 + int(generator.random() < lesion.severity) + int(generator.random() < 0.5 * lesion.severity)):
        at = scene.point(side, generator.uniform(0.15, 0.85), pick_height(lesion.zone, generator))
        radius = (0.015 + 0.013 * lesion.severity) * generator.uniform(0.85, 1.15)
        add_ball(scene, mask, at, radius, 0.35 + 0.35 * lesion.severity, generator)


def reshape_atelectasis(shape: Shape, lesion: Lesion) -> None:
    """Loss of volume: the hemidiaphragm rises, the mediastinum is drawn to the side."""
    for side in pick_sides(lesion.side):
        shape.dome[side] -= 0.03 + 0.08 * lesion.severity
    shape.pull_mediastinum(lesion.side, 0.04 * lesion.severity)


def paint_atelectasis(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """Plates: one to three dense, near horizontal bands where the lung has folded; if gross, a collapsed base."""
    board, body = scene.board, scene.body
    mask = board.empty_mask()
    bands = np.zeros_like(body.air)
    along = np.linspace(-1.0, 1.0, 9)
    for side in pick_sides(lesion.side):
        for _ in range(1 + round(1.6 * lesion.severity)):
            x, y = scene.point(side, generator.uniform(0.4, 0.6), 0.9 * pick_height(lesion.zone or "lower", generator))
            y -= generator.uniform(0.02, 0.07)
            half = generator.uniform(0.15, 0.20) + 0.07 * lesion.severity
            tilt = generator.uniform(-0.25, 0.35) * SIGNS[side]
            bow = generator.uniform(-0.02, 0.03)
            line = np.column_stack((x + half * along, y + tilt * half * along + bow * along**2))
            width = (0.024 + 0.022 * lesion.severity) * generator.uniform(0.8, 1.2)
            bands += board.trace(line, width) * (0.75 + 0.5 * lesion.severity)
        if lesion.severity > 0.6:
            where = scene.half(side)
            base = body.floor[:, where[1]] - np.float32(0.05 + 0.25 * lesion.severity) * (1.1 - body.across[where])
            collapsed = board.soften(board.y - base, 0.07) * body.lungs[where]
            scene.fill_lung(np.float32(0.75 * lesion.severity) * collapsed, where)
            mask[where] |= collapsed > 0.5
    bands *= body.lungs
    scene.add(np.float32(0.27) * np.minimum(bands, 1.4))
    return mask | (board.blur(bands, 0.012) > 0.18)


def reshape_edema(shape: Shape, lesion: Lesion) -> None:
    """Congestion: upper-zone vessels fill, all vessels widen, the heart is somewhat large."""
    shape.cephalisation = max(shape.cephalisation, 0.3 + 0.5 * lesion.severity)
    shape.vessel *= 1.03 + 0.10 * lesion.severity
    shape.heart_ratio += 0.015 + 0.02 * lesion.severity


def paint_edema(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """Perihilar haze in the shape of bat wings, blurred hila, and Kerley B lines at the lateral bases."""
    board, body = scene.board, scene.body
    rough = np.maximum(1.0 + 0.20 * board.random_field(generator, 22), 0.6)
    wings = np.zeros_like(body.air)
    reach = 0.22 + 0.16 * lesion.severity
    for side in pick_sides(lesion.side):
        where = scene.half(side)
        x, y = body.hila[side]
        dx = (board.x[:, where[1]] - (x + 0.10 * SIGNS[side])) / np.float32(reach)
        dy = (board.y - (y + 0.08)) / np.float32(1.35 * reach)
        wings[where] = np.exp(-0.8 * (dx * dx + dy * dy))
        lines = np.zeros_like(body.air)
        for height in np.linspace(0.66, 0.92, 4 + int(4 * lesion.severity)):
            outer_x, outer_y = scene.point(side, 0.985, height)
            inner = outer_x - SIGNS[side] * generator.uniform(0.05, 0.08)
            lines += board.trace(np.array(((outer_x, outer_y), (inner, outer_y + 0.004))), 0.009)
        scene.add(np.float32(0.05 + 0.07 * lesion.severity) * lines * body.lungs)
    wings *= rough
    np.clip(wings, 0.0, 1.0, out=wings)
    wings *= body.lungs
    # Fluid around the vessels blurs their outline.
    scene.vessels = board.blur(scene.vessels, 0.008 + 0.012 * lesion.severity)
    scene.fill_lung(np.float32(0.24 + 0.54 * lesion.severity) * wings)
    return wings > 0.30


def reshape_emphysema(shape: Shape, lesion: Lesion) -> None:
    """Hyperinflation: low flat diaphragms, a narrow heart, more air along the beam, thin vessels."""
    severity = lesion.severity
    for side in (0, 1):
        shape.angle[side] += 0.02 + 0.06 * severity
        flat = shape.angle[side] - 0.09
        shape.dome[side] += (0.15 + 0.80 * severity) * (flat - shape.dome[side])
        shape.chest[side] *= 1.0 + 0.03 * severity
    shape.heart_ratio *= 0.95 - 0.16 * severity
    shape.heart_bottom = shape.dome[1] + 0.08
    shape.inflation *= 1.03 + 0.15 * severity
    shape.vessel *= 0.90 - 0.45 * severity


def paint_emphysema(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """Bullae: black, thin-walled spaces in the upper zones; the mask is both lungs."""
    body = scene.body
    for side in (0, 1):
        for _ in range(round(2.4 * lesion.severity * generator.random())):
            x, y = scene.point(side, generator.uniform(0.45, 0.75), generator.uniform(0.14, 0.42))
            radius = generator.uniform(0.07, 0.12)
            part = scene.board.window(x, y, 1.2 * radius, 1.2 * radius)
            away = np.hypot(part.x - x, part.y - y)
            inside = scene.board.soften((radius - away).astype(np.float32), 0.012)
            wall = np.exp(-(((away - radius) / 0.008) ** 2)).astype(np.float32)
            scene.vessels[part.where] *= 1.0 - inside
            scene.add((0.035 * wall - 0.05 * inside) * body.lungs[part.where], part.where)
    return body.lungs > 0.5


def reshape_fibrosis(shape: Shape, lesion: Lesion) -> None:
    """Stiff, small lungs: the diaphragm is high."""
    for side in pick_sides(lesion.side):
        shape.dome[side] -= 0.02 + 0.07 * lesion.severity


def paint_fibrosis(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """A reticular net of fine lines over haze, densest at the periphery and, as a rule, the bases."""
    board, body = scene.board, scene.body
    mask = board.empty_mask()
    net = np.clip(1.0 - 2.6 * np.abs(board.random_field(generator, 46)), 0.0, 1.0)
    net += 0.8 * np.clip(1.0 - 2.6 * np.abs(board.random_field(generator, 30)), 0.0, 1.0)
    spread = 0.30 * lesion.severity
    for side in pick_sides(lesion.side):
        where, height = scene.half(side), body.height[side]
        if lesion.zone == "upper":
            rise = (0.45 + spread - height) / 0.25
        elif lesion.zone == "diffuse":
            rise = height / 0.2
        else:
            rise = (height - 0.50 + spread) / 0.25
        affected = np.clip(rise, 0.0, 1.0).astype(np.float32) * (0.35 + 0.65 * np.minimum(body.across[where], 1.0) ** 2)
        affected *= body.lungs[where]
        scene.fill_lung(np.float32(0.14 + 0.20 * lesion.severity) * affected, where)
        scene.add(np.float32(0.09 + 0.16 * lesion.severity) * affected * net[where], where)
        mask[where] = affected > 0.30
    return mask


@paint_each_side
def paint_tuberculosis(
    scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray
) -> None:
    """Patchy infiltrates of the upper zones with small nodules and thick-walled cavities, and strands to the hilum."""
    board, severity = scene.board, lesion.severity
    rough = 0.55 * board.random_field(generator, 26)
    at = scene.point(side, generator.uniform(0.4, 0.6), generator.uniform(0.17, 0.26))
    patch = _spread_patch(scene, side, at, (0.20 + 0.06 * severity, 0.22 + 0.10 * severity), rough, 0.9)
    scene.fill_lung(np.float32(0.28 + 0.38 * severity) * patch)
    mask |= patch > 0.4
    for _ in range(5 + int(7 * severity)):
        spot = scene.point(side, generator.uniform(0.15, 0.85), generator.uniform(0.08, 0.44))
        add_ball(scene, mask, spot, generator.uniform(0.018, 0.030), 0.10 + 0.10 * severity, generator)
    for _ in range(1 + round(1.4 * severity)):
        spot = scene.point(side, generator.uniform(0.3, 0.7), generator.uniform(0.14, 0.30))
        radius = generator.uniform(0.055, 0.07) + 0.02 * severity
        add_ball(scene, mask, spot, radius, 0.11 + 0.08 * severity, generator, lobulation=0.05, hollow=0.68)
    strand = np.array((scene.point(side, 0.5, 0.24), scene.body.hila[side]))
    scene.add(np.float32(0.06) * board.trace(strand, 0.016) * scene.body.lungs)


@paint_each_side
def paint_cavity(scene: Scene, lesion: Lesion, generator: np.random.Generator, side: int, mask: np.ndarray) -> None:
    """A cavity: a thick irregular wall around a black core, often with a level of fluid."""
    board = scene.board
    x, y = scene.point(side, generator.uniform(0.35, 0.65), pick_height(lesion.zone, generator))
    radius = 0.085 + 0.060 * lesion.severity
    hollow = generator.uniform(0.66, 0.78)
    add_ball(scene, mask, (x, y), radius, 0.24 + 0.20 * lesion.severity, generator, lobulation=0.05, hollow=hollow)
    if generator.random() < 0.6:
        part = board.window(x, y, radius, radius)
        away = np.hypot(part.x - x, part.y - y)
        pool = board.soften((hollow * radius - away).astype(np.float32), 0.012)
        pool = pool * board.soften((part.y - y - 0.25 * radius).astype(np.float32), 0.008)
        scene.add(np.float32(0.24 + 0.18 * lesion.severity) * pool, part.where)


def paint_bronchiectasis(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
    """Wide bronchi with thick walls: tram tracks along their course, rings where they are seen end on."""
    board, severity = scene.board, lesion.severity
    mask = board.empty_mask()
    walls, lumen = np.zeros_like(scene.body.air), np.zeros_like(scene.body.air)
    low = {"upper": 0.15, "middle": 0.38}.get(lesion.zone, 0.58)
    for side in pick_sides(lesion.side):
        for _ in range(3 + round(4 * severity)):
            at = scene.point(side, generator.uniform(0.12, 0.7), generator.uniform(low, low + 0.26))
            aim = _aim_outward(scene, side, at)
            length = generator.uniform(0.09, 0.15)
            normal = np.array((-aim[1], aim[0])) * (generator.uniform(0.018, 0.026) + 0.006 * severity)
            middle = np.array((at, at + length * aim))
            walls += board.trace(middle + normal, 0.013) + board.trace(middle - normal, 0.013)
            lumen += board.trace(middle, 0.022)
        for _ in range(2 + round(5 * severity)):
            spot = scene.point(side, generator.uniform(0.1, 0.8), generator.uniform(low, low + 0.28))
            add_ball(scene, mask, spot, generator.uniform(0.030, 0.042), 0.10 + 0.14 * severity, generator, hollow=0.55)
    scene.add((np.float32(0.13 + 0.17 * severity) * walls - np.float32(0.03) * lumen) * scene.body.lungs)
    return mask | (board.blur(walls + lumen, 0.012) > 0.25)
