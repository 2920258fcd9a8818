"""A chest in the making: what findings fill, thin out or add before the film is exposed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import numpy as np

from chexstudy.cohort.phantom.anatomy import Body
from chexstudy.cohort.phantom.canvas import Board
from chexstudy.cohort.phantom.case import Lesion
from chexstudy.cohort.phantom.shape import Shape

SIGNS = (-1.0, 1.0)  # of x, by side: 0 the patient's right (image left), 1 the left
_BLOOD = 3.7  # contrast of vessels: thin cords lose more to blur than they would on a real film
_ZONES = {"upper": (0.12, 0.34), "middle": (0.38, 0.60), "lower": (0.64, 0.84)}


@dataclass
class Scene:
    """The organs on their board, and the layers the findings work on."""

    board: Board
    shape: Shape
    body: Body
    vessels: np.ndarray  # thickness of blood in the lungs' vessels
    # share of the lung's air that is gone, 0..1 ``(pixels, pixels)``; None while no finding takes any
    airless: np.ndarray | None = None
    added: np.ndarray | None = None  # attenuation added (or taken, if negative) by findings; None while there is none

    def fill_lung(self, share: np.ndarray, where: tuple[slice, slice] | None = None) -> None:
        """Replace a share (0..1) of the remaining air by fluid or cells, on the board or a window of it."""
        if self.airless is None:
            self.airless = np.zeros_like(self.body.air)
        part = self.airless if where is None else self.airless[where]
        part += (1.0 - part) * share

    def add(self, attenuation: np.ndarray, where: tuple[slice, slice] | None = None) -> None:
        """Add attenuation on the board or on a window of it."""
        if self.added is None:
            self.added = np.zeros_like(self.body.air)
        part = self.added if where is None else self.added[where]
        part += attenuation

    def attenuation(self, generator: np.random.Generator) -> np.ndarray:
        """Everything along the beam, ``(pixels, pixels)`` float32."""
        body = self.body
        # Heart and great vessels take the place of lung; some lung remains before and behind them.
        replaced = 0.82 - 0.09 * np.clip((self.board.y - self.shape.heart_top) / 0.15, 0.0, 1.0)
        air = body.air * (1.0 - replaced * body.mediastinum)
        mottle = 1.0 + 0.028 * self.board.random_field(generator, 40) + 0.025 * self.board.random_field(generator, 7)
        air *= mottle
        if self.airless is not None:
            air *= 1.0 - self.airless
        total = body.tissue * (1.0 + np.float32(0.018) * self.board.random_field(generator, 10))
        total -= air
        blood = self.vessels * np.clip(air * 2.5, 0.0, 1.0)
        blood *= np.float32(_BLOOD)
        total += blood
        total += self._hilar_haze()
        for bone in (body.ribs, body.spine, body.clavicles, body.other_bones):
            total += bone
        total -= body.tubes
        total -= body.stomach
        if self.added is not None:
            total += self.added
        return np.maximum(self.board.blur(total, 0.006), 0.0)

    def _hilar_haze(self) -> np.ndarray:
        """The roots of the lungs: vessels, bronchi and nodes too close to tell apart."""
        board = self.board
        haze = np.zeros_like(self.body.air)
        for side in (0, 1):
            x, y = self.body.hila[side]
            size = self.shape.hilum[side]
            part = board.window(x, y, 2.2 * size, 2.8 * size)
            dx, dy = (part.x - x) / size, (part.y - y) / (1.55 * size)
            haze[part.where] += np.exp(-1.1 * dx * dx) * (np.float32(0.15) * np.exp(-1.1 * dy * dy))
        return haze

    def half(self, side: int) -> tuple[slice, slice]:
        """The half of the board on a side."""
        return (slice(None), slice(0, self.board.middle) if side == 0 else slice(self.board.middle, None))

    def level(self, side: int, height: float) -> float:
        """y at a height in the lung: 0 apex, 1 costophrenic angle."""
        return self.shape.apex[side] + height * (self.shape.angle[side] - self.shape.apex[side])

    def point(self, side: int, across: float, height: float) -> tuple[float, float]:
        """A point in the visible lung: ``across`` 0 at the mediastinum or heart, 1 at the chest wall."""
        body, y = self.body, self.level(side, height)
        row = self.board.index(y)
        inner = float((body.right_border if side == 0 else body.left_border)[row, 0])
        outer = float(body.wall[side][row, 0])
        x = SIGNS[side] * (inner + across * (outer - inner))
        return x, min(y, float(body.floor[0, self.board.index(x)]) - 0.03)


def pick_sides(side: str) -> tuple[int, ...]:
    """The sides a lesion lies on: 0 right, 1 left."""
    return {"right": (0,), "left": (1,)}.get(side, (0, 1))


def paint_each_side(
    paint: Callable[[Scene, Lesion, np.random.Generator, int, np.ndarray], None],
) -> Callable[[Scene, Lesion, np.random.Generator], np.ndarray]:
    """A painter of one side, which marks the lesion in a mask, as one of every side that the lesion lies on."""

    @wraps(paint)
    def paint_sides(scene: Scene, lesion: Lesion, generator: np.random.Generator) -> np.ndarray:
        mask = scene.board.empty_mask()
        for side in pick_sides(lesion.side):
            paint(scene, lesion, generator, side, mask)
        return mask

    return paint_sides


def pick_height(zone: str, generator: np.random.Generator) -> float:
    """A height in the lung within a zone; anywhere if the zone is diffuse or empty."""
    return float(generator.uniform(*_ZONES.get(zone, (0.2, 0.8))))
