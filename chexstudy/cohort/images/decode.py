"""Image files to one-channel pixels: PNG of 8 or 16 bit and any mode, JPEG, TIFF, BMP and DICOM, told by their content.

A radiograph is ``(height, width)`` grey levels, 0 black to 255 white: ``uint8`` exactly as stored where the file holds
8-bit grey, ``float32`` where a deeper range was mapped onto 0 to 255 (nothing is truncated before the resize).
"""

import io
import math
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from chexstudy.cohort.images import chunks
from chexstudy.cohort.images.dicom import decode_dicom, is_dicom, read_tags
from chexstudy.cohort.images.levels import show_deep_colours, show_range
from chexstudy.cohort.images.unreadable import LARGEST_IMAGE, UnreadableImage
from chexstudy.errors import StudyError

FITS = ("crop", "pad")
_LARGEST_SIZE = 2**16  # pixels a side of what is stored

SMALLEST_SIDE = 32  # pixels
_LONGEST_STRIP = 20  # sides in proportion: more is a line of text, and fitted by its short side it fills the memory
_LARGEST_FILE = 2**29  # bytes
_PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
# How the bytes of a picture begin, and the usual ending of its file.
_SIGNATURES = {chunks.SIGNATURE: "png", b"\xff\xd8\xff": "jpg", b"II*\0": "tif", b"MM\0*": "tif", b"BM": "bmp"}
_JSRT_SIDE = 2048
_JSRT_BYTES = 2 * _JSRT_SIDE**2
# From so many pixels on compiled code is used; it gives the same and takes half a second to load.
_WORTH_COMPILED = 512 * 512
_DEEP_MODES = ("I", "F")  # and all I;16 variants
_ORIENTATION = 0x0112  # a tag of Exif
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 258, 262, 339  # tags of a TIFF


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image file; an UnreadableImage if it is missing, no regular file, empty or over 512 MiB."""
    path = Path(path)
    try:
        status = path.stat()
        # A pipe would be waited for, and a device has no end.
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise UnreadableImage("not an image", "a pipe, a socket or a device")
        if status.st_size > _LARGEST_FILE:
            raise UnreadableImage("too large", f"a file of more than {_LARGEST_FILE >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage("missing", (error.strerror or "").lower()) from None
    if not data:
        raise UnreadableImage("empty")
    return data


def tell_picture_kind(data: bytes) -> str:
    """The usual ending of a picture's file with these bytes, without the dot; empty if it is none, as of DICOM."""
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), "")


def decode_radiograph(data: bytes) -> np.ndarray:
    """Grey levels of an image file's bytes, ``(height, width)``, ``uint8`` or ``float32``, or an UnreadableImage."""
    return decode_remarked(data)[0]


def decode_remarked(data: bytes) -> tuple[np.ndarray, str]:
    """As :func:`decode_radiograph`, with a remark where the file was not read as its header says; else empty."""
    remark = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_dicom(data):
                image, remark = decode_dicom(data)
            else:
                image = _decode_picture(data)
    except UnreadableImage:
        raise
    except Exception as error:
        # Decoders raise nearly anything on damaged bytes; a cohort of a million files must not stop at one.
        is_cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise UnreadableImage("truncated" if is_cut else "damaged", type(error).__name__) from None
    if min(image.shape) < max(SMALLEST_SIDE, max(image.shape) / _LONGEST_STRIP):
        raise UnreadableImage("too small", f"{image.shape[1]} x {image.shape[0]} pixels")
    return image, remark


def fit_square(image: np.ndarray, size: int, fit: str = "crop") -> np.ndarray:
    """Resize a radiograph to a square ``uint8 (size, size)``, its aspect kept, by an antialiased bicubic filter.

    ``fit`` is ``crop`` (the published way: the short side becomes ``size``, the centre is cut out) or ``pad`` (the long
    side becomes ``size``, black is added around; nothing is lost).
    """
    check_fit(size, fit)
    (height, width), (top, left) = place_square(image.shape, size, fit)
    pixels = _resize(np.ascontiguousarray(image), width, height)
    if fit == "crop":
        return np.ascontiguousarray(pixels[top : top + size, left : left + size])
    square = np.zeros((size, size), np.uint8)
    square[-top : height - top, -left : width - left] = pixels
    return square


def place_square(shape: tuple[int, int], size: int, fit: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image resized for `fit_square`, and which lines are the square's first (padded: < 0)."""
    side = min(shape) if fit == "crop" else max(shape)
    # Truncation, not rounding, of the other side: as in torchvision's Resize, which the published transform uses.
    height, width = (max(1, size * length // side) for length in shape)
    return (height, width), (round((height - size) / 2), round((width - size) / 2))


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """``uint8 (height, width)`` by the antialiased bicubic filter, the width first whatever the version of Pillow."""
    if image.shape == (height, width):
        pixels = image
    elif image.dtype == np.uint8 and image.size >= _WORTH_COMPILED:
        from chexstudy.cohort.images.resampling import resize_bicubic

        return resize_bicubic(image, width, height)
    else:
        narrowed = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BICUBIC)
        pixels = np.asarray(narrowed.resize((width, height), Image.Resampling.BICUBIC))
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels).clip(0, 255).astype(np.uint8)


def read_dimensions(path: str | Path) -> tuple[int, int, float]:
    """Of an image file the height and width in pixels and the side of a pixel in mm, by its header alone.

    NaN where no DICOM header tells the last; an UnreadableImage where there is no image.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(132)
        if is_dicom(head):
            height, width, *sides = read_tags(path, ("Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing"))
            sides = [float(side.strip("[]").split(",")[0]) for side in sides if side]
            return int(height), int(width), next((side for side in sides if side > 0), math.nan)
        if os.path.getsize(path) == _JSRT_BYTES and not tell_picture_kind(head):
            return _JSRT_SIDE, _JSRT_SIDE, math.nan
        with Image.open(path, formats=_PICTURE_FORMATS) as picture:
            is_turned = picture.format in ("JPEG", "MPO") and picture.getexif().get(_ORIENTATION, 1) > 4
            return *(picture.size if is_turned else picture.size[::-1]), math.nan
    except (OSError, ValueError, Image.DecompressionBombError):
        raise UnreadableImage("damaged", "the header") from None


def check_fit(size: int, fit: str) -> None:
    """Raise a StudyError unless ``size`` is a positive whole number and ``fit`` is one of ``FITS``."""
    if not isinstance(size, int) or not 1 <= size <= _LARGEST_SIZE:
        raise StudyError(f"the image size must be a whole number of pixels from 1 to {_LARGEST_SIZE}, not {size!r}.")
    if fit not in FITS:
        raise StudyError(f"fit must be one of {', '.join(FITS)}, not {fit!r}.")


def _decode_jsrt(data: bytes) -> np.ndarray | None:
    """A raw file of the JSRT: 2,048 x 2,048 values of 12 bit, the higher byte first, air the highest; or None."""
    if len(data) != _JSRT_BYTES:
        return None
    values = np.frombuffer(data, ">u2").reshape(_JSRT_SIDE, _JSRT_SIDE)
    return np.float32(255) - show_range(values.astype(np.uint16)) if values.max() < 4096 else None


def _decode_picture(data: bytes) -> np.ndarray:
    if (raw := _decode_jsrt(data)) is not None:
        return raw
    if data.startswith(chunks.SIGNATURE):
        data = chunks.keep_picture(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=_PICTURE_FORMATS)
    except Image.UnidentifiedImageError:
        kind = tell_picture_kind(data)
        if kind:
            raise UnreadableImage("damaged", f"a {kind} whose header is damaged or rare") from None
        raise UnreadableImage("not an image", _describe_content(data)) from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too large") from None
    with picture:
        if picture.width * picture.height > LARGEST_IMAGE:
            raise UnreadableImage("too large", f"{picture.width} x {picture.height} pixels")
        is_deep = False
        if picture.format == "PNG":
            bits, colour_type = data[24:26]
            is_deep = bits == 16 and colour_type != 0
            if is_deep or (picture.mode == "L" and bits == 8 and picture.width * picture.height >= _WORTH_COMPILED):
                from chexstudy.cohort.images import png

                if (channels := png.decode_png(data)) is not None:
                    return show_deep_colours(channels) if is_deep else channels[..., 0]
        if picture.format == "TIFF":
            _refuse_pages(data, picture.size)
        picture.load()
        if is_deep:
            raise UnreadableImage("damaged", "the image data")
        if picture.format in ("JPEG", "MPO"):
            picture = ImageOps.exif_transpose(picture)
        if picture.mode in _DEEP_MODES or picture.mode.startswith("I;16"):
            values = np.asarray(picture)
            if picture.format == "TIFF" and picture.mode == "I" and picture.tag_v2.get(_SAMPLE_FORMAT) == (1,):
                # Pillow has no unsigned 32 bit; of 16 bit and fewer the sign is never set.
                values = values.view(np.uint32)
            if not np.isfinite(values).all():
                raise UnreadableImage("damaged", "values that are not finite")
            grey = show_range(values)
            # Pillow turns the polarity of 8 bit and fewer only.
            is_negative = picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == 0
            return np.float32(255) - grey if is_negative else grey
        grey = np.array(_flatten_alpha(picture).convert("L"))
        if picture.format != "TIFF" or max(picture.tag_v2.get(_BITS, (1,))) <= 8:
            return grey
        # Of colours of 16 bit Pillow keeps the upper byte.
        if np.ptp(grey) < 128:
            raise UnreadableImage("unsupported", "a TIFF with dark colours of 16 bit")
        return show_range(grey)


def _refuse_pages(data: bytes, size: tuple[int, int]) -> None:
    """Raise an UnreadableImage if a TIFF holds a second image, and not only a smaller copy or a mask of the first."""
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as page:
            page.seek(1)
            is_extra = page.tag_v2.get(_SUBFILE, 0) & 5 or 2 * page.width < size[0]
    except Exception:
        return  # what cannot be read as a page is none
    if not is_extra:
        raise UnreadableImage("unsupported", "several pages")


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
