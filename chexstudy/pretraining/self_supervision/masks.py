"""Which patches of a global crop the student does not see: rectangles, as BEiT draws them (Bao et al. 2022)."""

import math
import random
from itertools import pairwise

import numpy as np

_LEAST_AREA = 4  # patches
_NARROWEST = 0.3  # side by side
_TRIES = 10
_SHARE_OF_CROPS = 0.5
_RATIOS = (0.1, 0.5)  # least and largest share of a crop's patches
# Share of all patches that are masked.
MEAN_MASKED = _SHARE_OF_CROPS * sum(_RATIOS) / 2


def draw_masks(crops: int, side: int, generator: random.Random, exact: bool = True) -> np.ndarray:
    """Masks of all global crops of a step ``(crops, side, side)``: half of them are empty, in no order.

    The shares of those that are masked are spread evenly over 0.1 to 0.5, one in each of equally many bins. If
    ``exact``, single patches are masked where no rectangle fits any more, so that a mask has the size it was drawn for;
    as published, 6 to 16 % of masks fall short of it (S11).
    """
    masked = int(crops * _SHARE_OF_CROPS)
    bins = np.linspace(*_RATIOS, masked + 1)
    shares = [generator.uniform(low, high) for low, high in pairwise(bins)]
    wanted = [int(side * side * share) for share in shares] + [0] * (crops - masked)
    masks = [draw_mask(count, side, generator, exact) for count in wanted]
    generator.shuffle(masks)
    return np.stack(masks)


def draw_mask(wanted: int, side: int, generator: random.Random, exact: bool = True) -> np.ndarray:
    """One mask ``(side, side)`` of ``wanted`` patches; arguments as of `draw_masks`."""
    mask = np.zeros((side, side), dtype=bool)
    # Left to right, as published: 210 of 441 patches and not 220.
    largest = 0.5 * side * side if exact else _published_largest(side)
    while (missing := wanted - int(mask.sum())) > 0:
        if not _add_rectangle(mask, missing, min(missing, largest), generator):
            break
    if exact and missing > 0:
        places = generator.sample(np.flatnonzero(~mask).tolist(), missing)
        mask.flat[places] = True
    return mask


def _published_largest(side: int) -> float:
    size = 16 * side
    return 0.5 * size // 16 * size // 16


def _add_rectangle(mask: np.ndarray, missing: int, largest: float, generator: random.Random) -> bool:
    """Mask one more rectangle if one that fits is drawn in ten tries."""
    side = len(mask)
    for _ in range(_TRIES):
        area = generator.uniform(_LEAST_AREA, largest)
        aspect = math.exp(generator.uniform(math.log(_NARROWEST), math.log(1 / _NARROWEST)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (height < side and width < side):
            continue
        top, left = generator.randint(0, side - height), generator.randint(0, side - width)
        place = mask[top : top + height, left : left + width]
        if 0 < place.size - int(place.sum()) <= missing:
            place[...] = True
            return True
    return False
