"""Radiographs to the pixels that the model was trained on. This file is shipped with the weights.

from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pixel_values = processor(Image.open("radiograph.png"))["pixel_values"]
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional
from transformers import BaseImageProcessor, BatchFeature


class ChexstudyImageProcessor(BaseImageProcessor):
    """Grey levels, made square, resized, normalised.

    A picture becomes 8-bit grey; one of a deeper mode is mapped by its own range onto 0 to 255 first, and transparent
    parts become black. It is resized by an antialiased bicubic filter with its aspect kept, cut or padded with black to
    a square of ``stored_size`` pixels, and rounded to 8 bits: so training pixels were stored. Where the encoder looks
    at another ``size`` they are resized once more, without rounding.

    The short side is fitted and the centre cut out for ``crop``, the long side is fitted for ``pad``. Mean and standard
    deviation a channel are in units of full scale; the grey level is repeated in every channel.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 224,
        stored_size: int | None = None,
        fit: str = "pad",
        image_mean: Sequence[float] = (0.5,),
        image_std: Sequence[float] = (0.5,),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if fit not in ("crop", "pad"):
            raise ValueError(f"fit must be crop or pad, not {fit!r}")
        self.size, self.stored_size, self.fit = size, stored_size or size, fit
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Pixels for the model, float32 ``(images, channels, size, size)``.

        A picture or several: of PIL in any mode, or arrays ``(height, width)`` or ``(height, width, 3)`` of 8 bits, or
        of grey levels 0 (black) to 255 (white) in floating point.
        """
        if not isinstance(images, (list, tuple)):
            images = [images]
        pixels = np.stack([self.fit_square(image) for image in images])
        values = self.normalise(torch.from_numpy(pixels).unsqueeze(1))
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def fit_square(self, image: "Image.Image | np.ndarray | Tensor") -> np.ndarray:
        """One picture as square 8-bit grey levels, ``uint8 (stored_size, stored_size)``."""
        grey, size = Image.fromarray(_grey_levels(image)), self.stored_size
        side = min(grey.size) if self.fit == "crop" else max(grey.size)
        width, height = (max(1, size * length // side) for length in grey.size)
        if (width, height) != grey.size:
            grey = grey.resize((width, height), Image.Resampling.BICUBIC)
        if grey.mode != "L":
            grey = Image.fromarray(np.rint(np.asarray(grey)).clip(0, 255).astype(np.uint8))
        left, top = round((width - size) / 2), round((height - size) / 2)
        # Beyond the picture, PIL crops black.
        return np.asarray(grey.crop((left, top, left + size, top + size)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Square grey levels ``uint8 (batch, 1, side, side)`` to ``float32 (batch, channels, size, size)``."""
        values = pixels.float()
        if values.shape[-1] != self.size:
            values = functional.interpolate(values, (self.size, self.size), mode="bicubic", antialias=True)
            values = values.clamp(0, 255)
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        return values * (1 / (255 * std)).view(1, -1, 1, 1) + (-mean / std).view(1, -1, 1, 1)


def _grey_levels(image: "Image.Image | np.ndarray | Tensor") -> np.ndarray:
    """Grey levels 0 to 255, ``uint8`` or ``float32 (height, width)``."""
    if isinstance(image, Image.Image):
        if image.format == "JPEG":
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            grey = _stretch_range(np.asarray(image))
            # Pillow turns a TIFF in which zero is white for 8 bit and fewer only.
            is_negative = image.format == "TIFF" and image.tag_v2.get(262) == 0
            return np.float32(255) - grey if is_negative else grey
        return np.array(_flatten_alpha(image).convert("L"))
    values = np.asarray(image)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.dtype == np.uint8 and values.ndim == 3 and values.shape[-1] == 3:
        return np.array(Image.fromarray(values).convert("L"))
    if values.ndim != 2:
        raise ValueError(
            "an array must be (height, width) or, of 8 bits, (height, width, 3), not "
            f"{values.dtype} {values.shape}: give one image an array"
        )
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    return values if values.dtype == np.uint8 else _stretch_range(values)


def _stretch_range(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    low, high = _find_range(values)
    return (values.clip(low, high) - low) / (high - low) * np.float32(255) if high > low else np.zeros_like(values)


def _find_range(values: np.ndarray) -> tuple[np.float32, np.float32]:
    """The range, without a marker so far away that all else would have fewer than 64 of 256 levels."""
    low, high = values.min(), values.max()
    levels, pixels = np.unique(values.ravel()[:: values.size // 2**18 + 1], return_counts=True)
    levels = levels[pixels >= pixels.mean() / 16]
    first, third = np.quantile(levels, (0.25, 0.75))
    reach = 3 * (third - first)
    near = values[(values >= first - reach) & (values <= third + reach)]
    near_low, near_high = near.min(), near.max()
    has_anatomy = np.count_nonzero((levels >= near_low) & (levels <= near_high)) >= 64
    return (near_low, near_high) if has_anatomy and high - low > 4 * (near_high - near_low) else (low, high)


def _flatten_alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data or image.mode in ("L", "RGB"):
        return image
    image = image.convert("RGBA")
    if image.getextrema()[3][0] == 255:
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


# So that save_pretrained ships this file with the constants.
ChexstudyImageProcessor.register_for_auto_class()
