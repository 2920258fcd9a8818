"""The drawing board: a grid in the patient's own frame, soft edges, smooth random fields and traced lines.

``x`` grows to the image's right (the patient's left), ``y`` downwards; the film spans -1 to 1, the board a little more,
for tilted patients. A unit is about 20 cm, and widths are in units: a case looks alike at any number of pixels.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.sparse import csr_array

HALF_WIDTH = 1.1


@dataclass(frozen=True)
class Window:
    """A rectangle of the board: its slices, and the coordinates in it as a column and a row."""

    where: tuple[slice, slice]
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class Board:
    """The drawing grid for one film size; everything in it depends on the size only and is shared by all cases."""

    film_size: int  # pixels along one side of the film
    pixels: int  # pixels along one side of the board
    pitch: float  # width of a pixel

    @cached_property
    def axis(self) -> np.ndarray:
        """Pixel centres, float32 ``(pixels,)``."""
        return ((np.arange(self.pixels) + 0.5) * self.pitch - 0.5 * self.pixels * self.pitch).astype(np.float32)

    @cached_property
    def x(self) -> np.ndarray:
        """Pixel centres as a row ``(1, pixels)``."""
        return self.axis[None, :]

    @cached_property
    def y(self) -> np.ndarray:
        """Pixel centres as a column ``(pixels, 1)``."""
        return self.axis[:, None]

    @cached_property
    def middle(self) -> int:
        """First column of the patient's left half."""
        return self.pixels // 2

    def empty_mask(self) -> np.ndarray:
        """An all-false mask ``(pixels, pixels)``."""
        return np.zeros((self.pixels, self.pixels), bool)

    def soften(self, distance: np.ndarray, width: float = 0.0) -> np.ndarray:
        """Turn a signed distance into coverage 0..1: a ramp of ``width``, never narrower than a pixel."""
        ramp = distance * np.float32(1.0 / max(width, self.pitch))
        ramp += np.float32(0.5)
        return np.clip(ramp, 0.0, 1.0, out=ramp)

    def index(self, at: float) -> int:
        """Number of the row or column at a coordinate, clipped to the board."""
        return int(np.clip(at / self.pitch + 0.5 * self.pixels, 0, self.pixels - 1))

    def window(self, x: float, y: float, half_width: float, half_height: float) -> Window:
        """The part of the board around a point; clipped at the border, never empty."""
        columns, rows = self._span(x, half_width), self._span(y, half_height)
        return Window((rows, columns), self.axis[None, columns], self.axis[rows, None])

    def _span(self, centre: float, half: float) -> slice:
        offset = 0.5 * self.pixels
        first = int(np.clip(np.floor((centre - half) / self.pitch + offset), 0, self.pixels - 1))
        last = int(np.clip(np.ceil((centre + half) / self.pitch + offset), first + 1, self.pixels))
        return slice(first, last)

    def random_field(self, generator: np.random.Generator, cells: int) -> np.ndarray:
        """A smooth random field of unit variance with ``cells`` cells along a side, ``(pixels, pixels)``."""
        rise = _interpolation(self.pixels, cells)
        knots = generator.standard_normal((cells + 3, cells + 3), np.float32)
        return rise @ (rise @ knots).T

    def blur(self, image: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur, ``sigma`` in board units; no change where it is far below a pixel."""
        if sigma < 0.3 * self.pitch:
            return image
        return gaussian_filter(image, sigma / self.pitch, mode="nearest", truncate=3.0)

    def blur_column(self, column: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur of a profile over y, ``(pixels, 1)``."""
        return gaussian_filter1d(column, max(sigma / self.pitch, 0.3), axis=0, mode="nearest")

    def scatter(self, x: np.ndarray, y: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """Lay point masses on the grid (bilinear) and return them as thickness, ``(pixels, pixels)`` float32."""
        side = self.pixels
        column = np.clip(x / self.pitch + (0.5 * side - 0.5), 0.0, side - 1.001)
        row = np.clip(y / self.pitch + (0.5 * side - 0.5), 0.0, side - 1.001)
        left, top = column.astype(np.int32), row.astype(np.int32)
        column -= left
        row -= top
        upper, lower = mass * (1.0 - row), mass * row
        first = top * side + left
        index = np.concatenate((first, first + 1, first + side, first + side + 1))
        upper_right, lower_right = upper * column, lower * column
        weight = np.concatenate((upper - upper_right, upper_right, lower - lower_right, lower_right))
        grid = np.bincount(index, weight, side * side)
        grid *= 1.0 / self.pitch**2
        return grid.astype(np.float32).reshape(side, side)

    def trace(self, points: np.ndarray, width: float) -> np.ndarray:
        """Draw a polyline ``(points, 2)`` as a round cord of ``width``: coverage, about 1 along its middle."""
        steps = np.diff(points, axis=0)
        length = np.hypot(steps[:, 0], steps[:, 1])
        travelled = np.concatenate(([0.0], np.cumsum(length)))
        count = max(int(travelled[-1] / (0.7 * self.pitch)), 2)
        at = (np.arange(count) + 0.5) * (travelled[-1] / count)
        x = np.interp(at, travelled, points[:, 0])
        y = np.interp(at, travelled, points[:, 1])
        mass = np.full(count, width * travelled[-1] / count)
        return self.blur(self.scatter(x, y, mass), 0.4 * width)


@lru_cache(maxsize=8)
def make_board(film_size: int) -> Board:
    """The board for a film of ``film_size`` pixels a side."""
    pitch = 2.0 / film_size
    return Board(film_size, 2 * int(np.ceil(HALF_WIDTH / pitch)), pitch)


@lru_cache(maxsize=64)
def _interpolation(pixels: int, cells: int) -> csr_array:
    """Cubic B-spline weights from ``cells + 3`` knots to ``pixels``, scaled to keep unit variance."""
    at = (np.arange(pixels) + 0.5) * cells / pixels
    distance = np.abs(at[:, None] - (np.arange(cells + 3)[None, :] - 1.0))
    near = 2.0 / 3.0 - distance**2 + 0.5 * distance**3
    far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
    weight = np.where(distance < 1.0, near, far)
    weight /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
    return csr_array(weight.astype(np.float32))
