"""What does not belong in a set of frontal chest radiographs but is found in every real one.

Some kinds spoil the radiograph that should be there, the others stand in its place.
"""

from types import MappingProxyType

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

SPOILED = ("inverted", "cropped")


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns from -1 to 1, shapes ``(size, 1)`` and ``(1, size)``."""
    axis = np.linspace(-1.0, 1.0, size)
    return axis[:, None], axis[None, :]


def _expose(density: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A density from 0 (air) to 1 (bone) as a noisy film, uint8."""
    size = density.shape[0]
    film = gaussian_filter(density, size / 150) + generator.normal(0.0, 0.02, density.shape)
    return np.clip(film * 235 + 8, 0, 255).astype(np.uint8)


def _draw_lateral(size: int, generator: np.random.Generator) -> np.ndarray:
    y, x = _axes(size)
    facing = generator.choice([-1.0, 1.0])
    x = x * facing + generator.normal(0.0, 0.04)
    trunk = (np.abs(x) < 0.62 + 0.08 * y) * 0.55
    lung = (((x + 0.02) / (0.50 + 0.05 * y)) ** 2 + ((y + 0.08) / 0.80) ** 2) < 1
    heart = (((x - 0.22) / 0.26) ** 2 + ((y - 0.28) / 0.30) ** 2) < 1
    below = y > 0.42 - 0.35 * x
    spine = np.abs(x + 0.42 + 0.08 * np.cos(2.2 * y)) < 0.09
    vertebrae = spine * (0.75 + 0.25 * np.sign(np.sin(22 * y)))
    ribs = 0.08 * (np.sin(16 * (y + 0.45 * x)) > 0.6) * lung
    film = np.where(lung, 0.16 + ribs, trunk)
    film = np.where(heart | (below & (trunk > 0)), 0.62, film)
    return _expose(np.maximum(film, 0.8 * vertebrae * (np.abs(y) < 1)), generator)


def _draw_hand(size: int, generator: np.random.Generator) -> np.ndarray:
    y, x = _axes(size)
    tilt = generator.normal(0.0, 0.12)
    x, y = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    x = x * generator.choice([-1.0, 1.0])
    film = np.where((x / 0.40) ** 4 + ((y - 0.36) / 0.40) ** 4 < 1, 0.38, 0.02)
    for angle, length in ((-0.75, 0.62), (-0.26, 0.98), (-0.06, 1.08), (0.13, 1.0), (0.33, 0.82)):
        along = -(y - 0.55) * np.cos(angle) + x * np.sin(angle)
        across = x * np.cos(angle) + (y - 0.55) * np.sin(angle)
        inside = (along > 0) & (along < 1.25 * length)
        film = np.where(inside & (np.abs(across) < 0.105), np.maximum(film, 0.34), film)
        joint = np.abs(np.mod(along / length, 0.36) - 0.18) < 0.155
        film = np.where(inside & joint & (np.abs(across) < 0.045), 0.80, film)
    film = np.where((np.abs(x) < 0.24) & (y > 0.62), np.maximum(film, 0.66), film)
    return _expose(film, generator)


def _draw_page(size: int, generator: np.random.Generator) -> np.ndarray:
    page = np.full((size, size), 245.0)
    line = max(size // 24, 3)
    for top in range(2 * line, size - 2 * line, 2 * line):
        column = 2 * line
        while column < size - 3 * line and generator.random() > 0.03:
            width = int(generator.integers(line, 5 * line))
            word = page[top : top + max(line * 2 // 3, 1), column : min(column + width, size - 2 * line)]
            word[:] = 60 + 80 * (generator.random(word.shape) < 0.35)
            column += width + line
    return np.clip(page + generator.normal(0.0, 3.0, page.shape), 0, 255).astype(np.uint8)


# Images that are no frontal chest radiograph, uint8 ``(size, size)``, by a size and a generator.
DRAWERS = MappingProxyType(
    {
        # A plate that was never exposed, or fully; a reader fault.
        "blank": lambda size, generator: np.full((size, size), generator.choice([0, 3, 252, 255]), dtype=np.uint8),
        "noise": lambda size, generator: np.clip(generator.normal(120, 45, (size, size)), 0, 255).astype(np.uint8),
        "lateral": _draw_lateral,
        "hand": _draw_hand,
        "page": _draw_page,
    }
)
JUNK_KINDS = (*DRAWERS, *SPOILED)


def spoil_radiograph(
    kind: str, pixels: np.ndarray, masks: dict[str, np.ndarray], generator: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Invert a radiograph, or crop it to a corner less than half as wide; the masks go with it."""
    if kind == "inverted":
        return 255 - pixels, masks
    size = pixels.shape[0]
    width = size * generator.uniform(0.28, 0.42)
    top, left = generator.uniform(0, size - width, 2)
    rows = top + (np.arange(size) + 0.5) * width / size - 0.5
    columns = left + (np.arange(size) + 0.5) * width / size - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    cropped = map_coordinates(pixels.astype(np.float32), grid, order=1, mode="nearest")
    nearest = np.ix_(np.rint(rows).astype(int).clip(0, size - 1), np.rint(columns).astype(int).clip(0, size - 1))
    return np.rint(cropped).astype(np.uint8), {name: mask[nearest] for name, mask in masks.items()}
