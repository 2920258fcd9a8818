"""Values of any range and unit as grey levels, 0 black to 255 white, and whether those still tell the values apart."""

import numpy as np

from chexstudy.cohort.images.unreadable import UnreadableImage

_BLANK_DEVIATION = 1.0  # grey levels of 255
_FEW_LEVELS = 32
_SPECK = 100_000  # a level counts if more than one pixel in so many has it
_FEWEST_BETWEEN = 0.01  # of the pixels
_SAMPLE = 2**18  # values that are looked at for how they are spread
_RARE = 16  # a value is rare that so many times fewer pixels have than others
_FENCE = 3.0  # Tukey's outer fence, in distances between the quartiles
_SQUEEZED = 4.0  # so many times the range of the rest, and it keeps fewer than 64 levels
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow


def is_blank(pixels: np.ndarray) -> bool:
    """Whether the grey levels hardly differ (standard deviation below 1 of 255)."""
    return float(pixels.std()) < _BLANK_DEVIATION


def stretch_range(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Values, by the real range of the ``valid`` ones (`find_range`), on 0 to 255, ``float32``; a constant is black."""
    values = values.astype(np.float32)
    measured = values if valid is None else values[valid]
    low, high = find_range(measured) if measured.size else (0.0, 0.0)
    if not high > low:
        return np.zeros_like(values)
    return (values.clip(low, high) - np.float32(low)) / np.float32(high - low) * np.float32(255)


def find_range(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; of those far from all others only if they leave the others levels enough.

    A marker burnt in at 65,535 would squeeze an anatomy of 12 bits into a few levels. Far is beyond Tukey's outer
    fences of the distinct values: a marker has few of them, and its blurred edge many that hardly a pixel shares.
    """
    low, high = float(values.min()), float(values.max())
    levels, pixels = np.unique(values.ravel()[:: values.size // _SAMPLE + 1], return_counts=True)
    levels = levels[pixels >= pixels.mean() / _RARE]
    first, third = np.quantile(levels, (0.25, 0.75))
    reach = _FENCE * (third - first)
    if first - reach <= low and high <= third + reach:
        return low, high
    near = values[(values >= first - reach) & (values <= third + reach)]
    near_low, near_high = float(near.min()), float(near.max())
    # Fewer levels than that are no anatomy that a marker could squeeze.
    has_anatomy = np.count_nonzero((levels >= near_low) & (levels <= near_high)) >= 2 * _FEW_LEVELS
    is_squeezed = high - low > _SQUEEZED * (near_high - near_low)
    return (near_low, near_high) if has_anatomy and is_squeezed else (low, high)


def show_range(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """As `stretch_range`, but an UnreadableImage where the levels no longer tell the values apart (`loses_levels`)."""
    grey = stretch_range(values, valid)
    if loses_levels(grey, values, valid):
        raise UnreadableImage("few levels")
    return grey


def loses_levels(grey: np.ndarray, values: np.ndarray, valid: np.ndarray | None = None) -> bool:
    """Whether grey levels from 0 to 255 no longer tell apart what the values they were made of do.

    Where fewer than 32, or less than a hundredth of the pixels between black and white, stand for twice as many values.
    """
    shown, meant = (one.ravel() if valid is None else one[valid] for one in (grey, values))
    shown, meant = (one[:: one.size // _SAMPLE + 1] for one in (shown, meant))
    pixels = np.bincount(np.rint(shown).astype(np.uint8), minlength=256)
    levels = np.count_nonzero(pixels > shown.size // _SPECK)
    is_poor = levels < _FEW_LEVELS or pixels[1:-1].sum() < _FEWEST_BETWEEN * shown.size
    return is_poor and np.unique(meant).size >= 2 * levels


def show_deep_colours(colours: np.ndarray) -> np.ndarray:
    """Colours of more than 8 bit as grey levels by their real range, ``float32 (height, width)``.

    ``uint16 (height, width, channels)``: grey or colours, and alpha or not; what is transparent is black.
    """
    values = colours.astype(np.float32)
    channels = colours.shape[2]
    opaque = values[..., -1] / np.float32(np.iinfo(colours.dtype).max) if channels in (2, 4) else 1
    grey = values[..., 0] if channels < 3 else values[..., :3] @ _LUMINANCE
    return show_range(grey * opaque)
