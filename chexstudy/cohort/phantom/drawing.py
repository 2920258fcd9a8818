"""Draw a case: lay out the organs, let the findings act on them, expose the film.

Attenuation is added up along the beam, the transmitted beam and its scatter blacken the film by a characteristic curve.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from chexstudy.cohort.phantom.anatomy import build_body
from chexstudy.cohort.phantom.canvas import Board, make_board
from chexstudy.cohort.phantom.case import Case
from chexstudy.cohort.phantom.lesions import LESIONS
from chexstudy.cohort.phantom.scene import Scene
from chexstudy.cohort.phantom.shape import make_shape
from chexstudy.cohort.phantom.vessels import draw_vessels, grow_vessels
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

SMALLEST_FILM = 32

_ABSORPTION = 2.6  # linear attenuation for one chest's thickness of soft tissue
_SCATTER = 0.055  # scattered share of the unattenuated beam that reaches the film at a medium body
_CONTRAST = 1.42  # slope of the film's characteristic curve
_MARKER_STROKES = read_data_beside(__file__)
_MARKER_HEIGHT = 0.105
_COLLIMATED = 0.18  # share of films with a black border


@dataclass(frozen=True)
class Drawing:
    """A radiograph and its truth."""

    pixels: np.ndarray  # uint8 ``(size, size)``; the patient's right is the image's left
    masks: dict[str, np.ndarray]  # boolean ``(size, size)`` by name: the organs, and each finding of the case


def draw_radiograph(case: Case, size: int) -> Drawing:
    """The frontal radiograph of a case with its masks, composed alike at any size, in pixels a side."""
    if size < SMALLEST_FILM:
        raise StudyError(f"A film of {size} pixels is too small to draw on: ask for at least {SMALLEST_FILM}.")
    for lesion in case.lesions:
        if lesion.finding not in LESIONS:
            names = ", ".join(LESIONS)
            raise StudyError(f'There is no drawing for the finding "{lesion.finding}": choose one of {names}.')
    board = make_board(size)
    shape = make_shape(case)
    for lesion in case.lesions:
        if (reshape := LESIONS[lesion.finding][1]) is not None:
            reshape(shape, lesion)
    body = build_body(shape, board)
    anatomy = np.random.default_rng((case.patient.anatomy_seed, 1))
    vessels = draw_vessels(grow_vessels(shape, body, anatomy), board)
    scene = Scene(board, shape, body, vessels)
    found: dict[str, np.ndarray] = {}
    for lesion in case.lesions:
        mask = LESIONS[lesion.finding][0](scene, lesion, np.random.default_rng(lesion.seed))
        found[lesion.finding] = found[lesion.finding] | mask if lesion.finding in found else mask

    draw = np.random.default_rng(case.seed)
    film = _Placement(case, shape.zoom, board, draw)
    # Its own stream: how many numbers it takes depends on the size, what else is drawn must not.
    film_noise = np.random.default_rng((case.seed, 1)).standard_normal((size, size), np.float32)
    pixels = _expose_film(film.take_smooth(scene.attenuation(anatomy)), case, draw, film_noise)
    return Drawing(pixels, {name: mask.ravel()[film.nearest] for name, mask in {**body.organs, **found}.items()})


class _Placement:
    """Where each film pixel lies on the board: the patient's tilt, shift and magnification."""

    def __init__(self, case: Case, zoom: float, board: Board, draw: np.random.Generator):
        shift_x, shift_y = 0.02 * draw.standard_normal(2).clip(-1.5, 1.5)
        angle = np.deg2rad(case.rotation_degrees)
        cosine, sine = np.float32(np.cos(angle) / zoom), np.float32(np.sin(angle) / zoom)
        axis = (np.arange(board.film_size, dtype=np.float32) + 0.5) * np.float32(board.pitch) - 1.0
        x, y = axis[None, :] - np.float32(shift_x), axis[:, None] - np.float32(shift_y)
        offset = np.float32(0.5 * board.pixels - 0.5)
        limit = np.float32(board.pixels - 1.001)
        column = np.clip((x * cosine + y * sine) * np.float32(1 / board.pitch) + offset, 0.0, limit)
        row = np.clip((y * cosine - x * sine) * np.float32(1 / board.pitch) + offset, 0.0, limit)
        left, top = column.astype(np.int32), row.astype(np.int32)
        self._column_share, self._row_share = column - left, row - top
        self._first = top * board.pixels + left
        # Of a board's mask, flat.
        self.nearest = self._first + (self._column_share > 0.5) + board.pixels * (self._row_share > 0.5)
        self._stride = board.pixels

    def take_smooth(self, image: np.ndarray) -> np.ndarray:
        """Read a board image at the film's pixels, bilinear."""
        flat, first = image.ravel(), self._first
        upper = flat[first]
        upper += (flat[first + 1] - upper) * self._column_share
        first = first + self._stride
        lower = flat[first]
        lower += (flat[first + 1] - lower) * self._column_share
        lower -= upper
        lower *= self._row_share
        return np.add(upper, lower, out=upper)


def _expose_film(attenuation: np.ndarray, case: Case, draw: np.random.Generator, film_noise: np.ndarray) -> np.ndarray:
    """Attenuation to grey values: beam, scatter, characteristic curve, quantum noise, marker, collimation."""
    size = attenuation.shape[0]
    beam = np.exp(np.float32(-_ABSORPTION) * attenuation)
    # Scatter: the beam blurred over a third of the film.
    collect, spread = _scatter_matrices(size)
    scatter = spread @ (collect @ np.minimum(beam, 0.6) @ collect.T) @ spread.T
    beam += np.float32(_SCATTER * (0.7 + 0.6 * case.patient.habitus)) * scatter / 0.3
    dose = np.log(beam)
    speed = 1.58 + 0.55 * (case.patient.habitus - 0.4) + 0.45 * case.exposure
    dose += np.float32(speed)
    dose *= np.float32(_CONTRAST * draw.uniform(0.85, 1.15))
    shown = 1.0 / (1.0 + np.exp(dose))
    # Fewer quanta reach the film behind dense tissue.
    film_noise *= np.float32(case.noise) * (0.55 + 0.75 * shown)
    shown += film_noise
    shown = 0.02 + 0.96 * shown
    top, bottom, left, right = _collimate(shown, draw)
    if case.side_marker:
        _lay_marker(shown[top : size - bottom, left : size - right], size, case.side_marker, draw)
    return (np.clip(shown, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _collimate(shown: np.ndarray, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Black borders where the beam was narrowed, on some films: widths at top, bottom, left and right."""
    size = shown.shape[0]
    top, bottom, left, right = np.rint(size * np.clip(draw.normal(0.015, 0.025, 4), 0.0, 0.08)).astype(int).tolist()
    if draw.random() > _COLLIMATED:
        return 0, 0, 0, 0
    for border in (shown[:top], shown[size - bottom :], shown[:, :left], shown[:, size - right :]):
        border[...] = 0.02
    return top, bottom, left, right


@lru_cache(maxsize=8)
def _scatter_matrices(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Average the film into 16 broad cells a side, and lay the cells out again."""
    film = (np.arange(size) + 0.5) / size
    cell = (np.arange(16) + 0.5) / 16
    weight = np.exp(-0.5 * ((film[:, None] - cell[None, :]) / 0.09) ** 2)
    collect = (weight / weight.sum(axis=0)).T.astype(np.float32)
    spread = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return collect, spread


def _lay_marker(shown: np.ndarray, size: int, letter: str, draw: np.random.Generator) -> None:
    """The lead letter in its corner of the exposed field: R at the image's left, L at the image's right."""
    glyph = _make_glyph(size, letter)
    height, width = glyph.shape
    inset_x, inset_y = (size * (0.035 + 0.045 * draw.random(2))).astype(int)
    column = inset_x if letter == "R" else shown.shape[1] - inset_x - width
    part = shown[inset_y : inset_y + height, column : column + width]
    part += (0.99 - part) * glyph


@lru_cache(maxsize=32)
def _make_glyph(size: int, letter: str) -> np.ndarray:
    pitch = 2.0 / size
    pixels = int(np.ceil(1.3 * _MARKER_HEIGHT / pitch))
    axis = (np.arange(pixels) + 0.5) * pitch / _MARKER_HEIGHT - 0.15
    x, y = axis[None, :], axis[:, None]
    coverage = np.zeros((pixels, pixels), np.float32)
    for (x0, y0), (x1, y1) in _MARKER_STROKES[letter]:
        run, fall = x1 - x0, y1 - y0
        share = np.clip(((x - x0) * run + (y - y0) * fall) / (run * run + fall * fall), 0.0, 1.0)
        away = np.hypot(x - x0 - share * run, y - y0 - share * fall) * _MARKER_HEIGHT
        coverage = np.maximum(coverage, np.clip((0.011 - away) / pitch + 0.5, 0.0, 1.0))
    return coverage.astype(np.float32)
