"""Image files to one-channel pixels: PNG of 8 or 16 bit and any mode, JPEG, TIFF, BMP and DICOM, told by their content.

A radiograph is ``(height, width)`` grey levels, 0 black to 255 white: ``uint8`` exactly as stored where the file holds
8-bit grey, ``float32`` where a deeper range was mapped onto 0 to 255 (nothing is truncated before the resize).
"""

import io
import logging
import warnings
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageOps

# isort: split
# After Pillow: gdcm opens its own, older zlib to all that is loaded later, and writing a PNG through that one crashes.
import gdcm
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array

from chexstudy.errors import StudyError

# Why an image cannot be used: the whole vocabulary of the quarantine list, but for the reports.
REASONS = MappingProxyType(
    {
        "missing": "there is no such file, or it may not be read",
        "empty": "the file has no bytes",
        "truncated": "the file ends before the image does",
        "damaged": "the bytes cannot be decoded",
        "not an image": "a page, a text or something else under the name of an image",
        "unsupported DICOM": "a DICOM object that is not one radiograph",
        "blank": "every pixel has the same grey level, or nearly",
        "too small": "fewer than 32 pixels on a side",
        "too large": "more pixels than any radiograph has",
    }
)
FITS = ("crop", "pad")

SMALLEST_SIDE = 32  # pixels
_BLANK_DEVIATION = 1.0  # grey levels of 255
_PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
# From so many pixels on compiled code is used; it gives the same and takes half a second to load.
_WORTH_COMPILED = 512 * 512
_DEEP_MODES = ("I", "F")  # and all I;16 variants

# Remarks on odd headers quote tags, and those can name a patient; what matters comes back as an error.
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()
logging.getLogger("pydicom").setLevel(logging.ERROR)


class UnreadableImage(StudyError):
    """A file that cannot be used as a radiograph.

    Attributes:
        reason: one of ``REASONS``.
        detail: what exactly was found; may be empty.
    """

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(f"the image cannot be used: {reason}{f' ({detail})' if detail else ''}; {REASONS[reason]}.")


def read_radiograph(path: str | Path) -> np.ndarray:
    """The grey levels of an image file, ``(height, width)``, ``uint8`` or ``float32``, 0 black to 255 white.

    Raises:
        UnreadableImage: the file is missing, or :func:`decode_radiograph` cannot use it.
    """
    return decode_radiograph(read_bytes(path))


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImage: it is not there, may not be read or is empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage("missing", (error.strerror or "").lower()) from None
    if not data:
        raise UnreadableImage("empty")
    return data


def decode_radiograph(data: bytes) -> np.ndarray:
    """The grey levels in the bytes of an image file; see :func:`read_radiograph`. The file's name plays no part.

    Raises:
        UnreadableImage: with the reason, never another error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _decode_dicom(data) if _is_dicom(data) else _decode_picture(data)
    except UnreadableImage:
        raise
    except Exception as error:
        # Decoders raise nearly anything on damaged bytes; a cohort of a million files must not stop at one.
        is_cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise UnreadableImage("truncated" if is_cut else "damaged", type(error).__name__) from None
    if min(image.shape) < SMALLEST_SIDE:
        raise UnreadableImage("too small", f"{image.shape[1]} x {image.shape[0]} pixels")
    return image


def fit_square(image: np.ndarray, size: int, fit: str = "crop") -> np.ndarray:
    """Resize a radiograph to a square, its aspect kept, by an antialiased bicubic filter.

    Args:
        image: ``(height, width)``, ``uint8`` or ``float32`` grey levels 0 to 255.
        size: side of the square in pixels.
        fit: ``crop`` (the published way: the short side becomes ``size``, the centre is cut out) or ``pad`` (the long
            side becomes ``size``, black is added around; nothing is lost).

    Returns:
        ``uint8`` of shape ``(size, size)``.

    Raises:
        StudyError: ``fit`` is neither, or ``size`` is not a positive whole number.
    """
    check_fit(size, fit)
    height, width = image.shape
    side = min(height, width) if fit == "crop" else max(height, width)
    # Truncation, not rounding, of the other side: as in torchvision's Resize, which the published transform uses.
    new_width, new_height = (max(1, size * length // side) for length in (width, height))
    pixels = _resize(np.ascontiguousarray(image), new_width, new_height)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    if fit == "crop":
        return np.ascontiguousarray(pixels[top : top + size, left : left + size])
    square = np.zeros((size, size), np.uint8)
    square[-top : new_height - top, -left : new_width - left] = pixels
    return square


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """``uint8 (height, width)`` by the antialiased bicubic filter, the width first whatever the version of Pillow."""
    if image.shape == (height, width):
        pixels = image
    elif image.dtype == np.uint8 and image.size >= _WORTH_COMPILED:
        from chexstudy.cohort.resampling import resize_bicubic

        return resize_bicubic(image, width, height)
    else:
        narrowed = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BICUBIC)
        pixels = np.asarray(narrowed.resize((width, height), Image.Resampling.BICUBIC))
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels).clip(0, 255).astype(np.uint8)


def check_fit(size: int, fit: str) -> None:
    """Raise a StudyError unless ``size`` is a positive whole number and ``fit`` is one of ``FITS``."""
    if not isinstance(size, int) or size < 1:
        raise StudyError(f"the image size must be a positive whole number of pixels, not {size!r}.")
    if fit not in FITS:
        raise StudyError(f"fit must be one of {', '.join(FITS)}, not {fit!r}.")


def is_blank(pixels: np.ndarray) -> bool:
    """Whether the grey levels hardly differ (standard deviation below 1 of 255)."""
    return float(pixels.std()) < _BLANK_DEVIATION


def stretch_range(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Map the real range of the values onto grey levels 0 to 255, ``float32``; a constant image becomes black.

    Args:
        values: numbers of any type and unit.
        valid: where the range is taken from (everywhere, if not given); the others are clipped to it.
    """
    values = values.astype(np.float32)
    measured = values if valid is None else values[valid]
    low, high = (float(measured.min()), float(measured.max())) if measured.size else (0.0, 0.0)
    if not high > low:
        return np.zeros_like(values)
    return (values.clip(low, high) - np.float32(low)) / np.float32(high - low) * np.float32(255)


# --- pictures -------------------------------------------------------------------------------------------------------


def _decode_picture(data: bytes) -> np.ndarray:
    try:
        picture = Image.open(io.BytesIO(data), formats=_PICTURE_FORMATS)
    except Image.UnidentifiedImageError:
        raise UnreadableImage("not an image", _describe_content(data)) from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too large") from None
    with picture:
        if picture.format == "PNG" and picture.mode == "L" and picture.width * picture.height >= _WORTH_COMPILED:
            from chexstudy.cohort.png import decode_grey_png

            grey = decode_grey_png(data)
            if grey is not None:
                return grey
        picture.load()
        if picture.format == "JPEG":
            picture = ImageOps.exif_transpose(picture)
        if picture.mode in _DEEP_MODES or picture.mode.startswith("I;16"):
            values = np.asarray(picture)
            if not np.isfinite(values).all():
                raise UnreadableImage("damaged", "values that are not finite")
            return stretch_range(values)
        return np.array(_flatten_alpha(picture).convert("L"))


def _flatten_alpha(picture: Image.Image) -> Image.Image:
    """The picture on black where it has an alpha channel."""
    if not picture.has_transparency_data or picture.mode in ("L", "RGB"):
        return picture
    picture = picture.convert("RGBA")
    if picture.getextrema()[3][0] == 255:
        return picture.convert("RGB")
    black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, picture).convert("RGB")


def _describe_content(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<script")):
        return "a web page"
    if b"\0" not in head and head.isascii():
        return "a text"
    return "unknown content"


# --- DICOM ----------------------------------------------------------------------------------------------------------


# Group and element, little endian: file meta length and version; length, character set, image type, creation date and
# SOP class of the identifying group.
_OPENING_ELEMENTS = tuple(
    group + element
    for group, elements in (
        (b"\x02\0", (b"\0\0", b"\x01\0")),
        (b"\x08\0", (b"\0\0", b"\x05\0", b"\x08\0", b"\x12\0", b"\x16\0")),
    )
    for element in elements
)


def _is_dicom(data: bytes) -> bool:
    # Old files have no preamble and begin with their first element.
    return data[128:132] == b"DICM" or data[:4] in _OPENING_ELEMENTS


def _decode_dicom(data: bytes) -> np.ndarray:
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not dataset:
        # The reader gives up all elements of a file that ends within one.
        raise UnreadableImage("truncated", "the header is cut")
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise UnreadableImage("unsupported DICOM", "no image")
    if "PixelData" not in dataset:
        raise UnreadableImage("truncated", "no pixels after the header")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableImage("unsupported DICOM", f"{frames} frames")
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if not dataset.file_meta.TransferSyntaxUID.is_compressed and len(dataset.PixelData) < _expected_bytes(dataset):
        raise UnreadableImage("truncated", "fewer pixels than announced")
    try:
        stored = pixel_array(dataset)
    except (NotImplementedError, AttributeError) as error:
        raise UnreadableImage("unsupported DICOM", str(error).split("\n")[0][:120]) from None
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
    if stored.ndim == 3:
        colours = stored if stored.dtype == np.uint8 else (stored / np.iinfo(stored.dtype).max * 255).astype(np.uint8)
        return np.array(Image.fromarray(colours).convert("L"))
    valid = _valid_pixels(stored, dataset)
    grey = _display_values(stored, dataset, valid)
    if photometric == "MONOCHROME1":
        grey = grey.dtype.type(255) - grey
    return grey if valid.all() else np.where(valid, grey, grey.dtype.type(0))


def _expected_bytes(dataset: pydicom.Dataset) -> int:
    bits = dataset.Rows * dataset.Columns * dataset.get("SamplesPerPixel", 1) * dataset.BitsAllocated
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        bits = bits * 2 // 3
    return bits // 8


def _valid_pixels(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Where the detector was hit: not the padding (PS3.3 C.7.5.1.1.2)."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return np.ones(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit", padding)
    low, high = sorted((int(padding), int(limit)))
    valid = (stored < low) | (stored > high)
    # A padding value that covers the whole image is a wrong tag, not a blank image.
    return valid if valid.any() else np.ones(stored.shape, bool)


def _display_values(stored: np.ndarray, dataset: pydicom.Dataset, valid: np.ndarray) -> np.ndarray:
    """Stored values through the modality and the VOI transform, as grey levels 0 to 255, before any inversion."""
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(values, dataset).astype(np.float32) * np.float32(255 / (2**depth - 1))
    window = _read_window(dataset)
    if window is not None:
        return apply_window(values, *window)
    if dataset.BitsStored == 8 and stored.dtype == np.uint8 and np.array_equal(values, stored):
        return stored
    return stretch_range(values, valid)


def _read_window(dataset: pydicom.Dataset) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window, or None if there is no usable one."""
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre is None or width is None:
        return None
    centre, width = (
        float(value[0]) if isinstance(value, pydicom.multival.MultiValue) else float(value) for value in (centre, width)
    )
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    narrowest = 1.0 if function == "LINEAR" else 0.0
    return (centre, width, function) if width > narrowest else None


def apply_window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Window values to grey levels 0 to 255, ``float32`` (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: output of the modality transform.
        centre: window centre, in the unit of the values.
        width: window width; above 1 for ``LINEAR``, above 0 for the others.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.

    Raises:
        UnreadableImage: another function.
    """
    values = values.astype(np.float32)
    if function == "LINEAR":
        share = (values - (centre - 0.5)) / (width - 1) + 0.5
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    elif function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    else:
        raise UnreadableImage("unsupported DICOM", f"VOI LUT function {function}")
    return (share.clip(0, 1) * 255).astype(np.float32)
