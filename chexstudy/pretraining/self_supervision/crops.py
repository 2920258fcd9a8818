"""Random views of radiographs: where each crop lies, how its grey values change, and the crops themselves.

What is random is drawn for all images of a step at once and is plain numbers, so that any micro-batch, on any device
and in any process, sees the same views. A crop is made by two matrix products, of one matrix that resizes rows and one
that resizes columns, and blurred by two more.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)
_JITTER_CHANCE, _BRIGHTNESS, _CONTRAST = 0.8, 0.4, 0.4
_SIGMAS, _RADIUS = (0.1, 2.0), 4  # pixels of the crop, at every size as published
_SOLARISE_CHANCE, _SOLARISE_FROM = 0.2, 128


@dataclass(frozen=True)
class Views:
    """One crop of each of some images."""

    top: np.ndarray  # ``(images,)`` in pixels, as all that follow
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    flipped: np.ndarray  # bool
    brightness: np.ndarray  # factors, 1 where they stay
    contrast: np.ndarray
    contrast_first: np.ndarray  # bool
    sigma: np.ndarray  # of the blur, 0 for none
    solarised: np.ndarray  # bool

    def __getitem__(self, rows) -> "Views":
        return Views(*(getattr(self, field.name)[rows] for field in fields(self)))

    def undistorted(self) -> "Views":
        """The same crops, as they are but for their side."""
        one, none = np.ones_like(self.brightness), np.zeros_like(self.sigma)
        return replace(self, brightness=one, contrast=one, sigma=none, solarised=none > 0)


def draw_views(
    images: int,
    side: int,
    areas: tuple[float, float],
    generator: np.random.Generator,
    *,
    blur: float = 0.0,
    flip: bool = False,
    solarise: bool = False,
) -> Views:
    """A crop of each image, drawn as published but for what changes nothing on grey images (hue, saturation).

    Args:
        areas: least and largest share of the image (published: 0.32 to 1, and 0.05 to 0.32 for local crops).
        blur: chance of a blurred crop.
        flip: mirror half of them left to right, which loses which side is which (S3).
        solarise: turn the bright half of a fifth of them dark (S3).
    """
    tries = (images, _TRIES)
    area = side * side * generator.uniform(*areas, tries)
    aspect = np.exp(generator.uniform(*np.log(_ASPECTS), tries))
    widths, heights = (np.round(np.sqrt(value)).astype(int) for value in (area * aspect, area / aspect))
    fits = (widths > 0) & (widths <= side) & (heights > 0) & (heights <= side)
    first = np.arange(images), fits.argmax(axis=1)
    # Where no try fits, the whole image is taken.
    width, height = (np.where(fits.any(axis=1), value[first], side) for value in (widths, heights))
    top, left = (np.floor(generator.random(images) * (side - length + 1)).astype(int) for length in (height, width))
    jittered = generator.random(images) < _JITTER_CHANCE
    factors = [
        np.where(jittered, generator.uniform(1 - spread, 1 + spread, images), 1.0)
        for spread in (_BRIGHTNESS, _CONTRAST)
    ]
    sigma = np.where(generator.random(images) < blur, generator.uniform(*_SIGMAS, images), 0.0)
    chances = generator.random((3, images))
    return Views(
        *(top, left, height, width),
        flipped=flip & (chances[0] < 0.5),
        brightness=factors[0],
        contrast=factors[1],
        contrast_first=chances[1] < 0.5,
        sigma=sigma,
        solarised=solarise & (chances[2] < _SOLARISE_CHANCE),
    )


def make_crops(pixels: Tensor, views: Views, size: int) -> Tensor:
    """The crops of images ``(images, 1, size, size)``, float32 from 0 to 255, on the pixels' device, a view of each.

    Pixels are uint8 ``(images, 1, side, side)``.
    """
    given = {field.name: torch.from_numpy(getattr(views, field.name)).to(pixels.device) for field in fields(Views)}
    side = pixels.shape[-1]
    rows = resizing_matrices(given["top"], given["height"], side, size)
    columns = resizing_matrices(given["left"], given["width"], side, size)
    columns = torch.where(given["flipped"][:, None, None], columns.flip(1), columns)
    crops = (rows @ pixels[:, 0].float() @ columns.transpose(1, 2)).clamp(0, 255)
    crops = _jitter(crops, given)
    if views.sigma.any():
        blur = blurring_matrices(given["sigma"].float(), size)
        crops = blur @ crops @ blur.transpose(1, 2)
    crops = torch.where(given["solarised"][:, None, None] & (crops >= _SOLARISE_FROM), 255 - crops, crops)
    return crops[:, None]


def _jitter(crops: Tensor, given: dict[str, Tensor]) -> Tensor:
    brightness, contrast, first = (
        given[name][:, None, None].to(crops.dtype) for name in ("brightness", "contrast", "contrast_first")
    )

    def stretch(values: Tensor) -> Tensor:
        mean = values.mean(dim=(1, 2), keepdim=True)
        return (mean + contrast * (values - mean)).clamp(0, 255)

    # Either order is computed for all: two passes over small crops cost less than choosing.
    brightened = (brightness * crops).clamp(0, 255)
    return torch.where(first.bool(), (brightness * stretch(crops)).clamp(0, 255), stretch(brightened))


def resizing_matrices(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Matrices that resize a stretch of each line by cubic convolution with antialiasing ``(images, size, side)``.

    The same weights as ``torch.nn.functional.interpolate(mode="bicubic", antialias=True)`` of the stretch.
    """
    scale = (length / size).double()[:, None, None]
    reach = scale.clamp(min=1)
    place = torch.arange(side, device=start.device).double() + 0.5
    centre = start[:, None, None] + (torch.arange(size, device=start.device).double()[:, None] + 0.5) * scale
    distance = ((place - centre) / reach).abs()
    inner = (1.5 * distance - 2.5) * distance**2 + 1
    outer = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, inner, torch.where(distance < 2, outer, 0.0))
    inside = (place > start[:, None]) & (place < (start + length)[:, None])
    weights = weights * inside[:, None]
    return (weights / weights.sum(dim=2, keepdim=True)).float()


def blurring_matrices(sigma: Tensor, size: int) -> Tensor:
    """Matrices that blur lines by a Gaussian of nine pixels, mirrored at the ends ``(images, size, size)``."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    places = torch.arange(size, device=sigma.device)[:, None] + offsets
    last = max(size - 1, 1)
    mirrored = (places.abs() % (2 * last)) if size > 1 else places * 0
    mirrored = torch.where(mirrored > last, 2 * last - mirrored, mirrored).clamp(max=size - 1)
    matrices = kernel.new_zeros(len(sigma), size, size)
    return matrices.scatter_add_(2, mirrored.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, size, -1))
