"""How a picture may lie: its polarity, its turn by quarters and its mirror image, and the way back to upright.

A kind names what was done to an upright picture: ``negative``, ``mirrored`` and then ``rotated 90`` (clockwise; or 180,
or 270), or several of them, joined by commas. Nothing done is ``upright``.
"""

from itertools import product

import numpy as np

UPRIGHT, NEGATIVE, MIRRORED = "upright", "negative", "mirrored"
_ROTATED = ("", "rotated 90", "rotated 180", "rotated 270")
# All 16: the polarity is the slowest, the rotation the fastest.
KINDS = tuple(
    ", ".join(word for word in (negative, mirrored, rotated) if word) or UPRIGHT
    for negative, mirrored, rotated in product(("", NEGATIVE), ("", MIRRORED), _ROTATED)
)


def turn_back(picture: np.ndarray, kind: str) -> np.ndarray:
    """What lies as ``kind`` says, ``(..., height, width)``, made upright; of any values, the polarity apart."""
    place = KINDS.index(kind)
    turned = np.rot90(picture, place % 4, axes=(-2, -1))
    return turned[..., ::-1] if place // 4 % 2 else turned


def mend_pixels(pixels: np.ndarray, kind: str) -> np.ndarray:
    """An image ``uint8 (size, size)`` as it would be upright; edges that are black altogether, as padding, stay so."""
    if NEGATIVE in kind:
        mended = np.zeros_like(pixels)
        rows, columns = find_content(pixels)
        mended[rows, columns] = 255 - pixels[rows, columns]
        pixels = mended
    return turn_back(pixels, kind)


def find_content(pixels: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of an image without the edges that are black altogether."""
    lit = [np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(int(one[0]), int(one[-1]) + 1) if len(one) else slice(0, None) for one in lit)
