"""DICOM files to grey levels: stored bits, padding, modality and VOI transform, polarity (PS3.3 C.7.6.3 and C.11).

pydicom reads the file and unpacks the pixel data. What the tags say of the values is applied here and held against the
values themselves: tags of real files are wrong in ways that show.
"""

import io
import logging
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# isort: split
# After Pillow: gdcm opens its own, older zlib to all that is loaded later, and writing a PNG through that one crashes.
import gdcm
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.pixels.common import PhotometricInterpretation

from chexstudy.cohort.images.levels import loses_levels, show_deep_colours, show_range, stretch_range
from chexstudy.cohort.images.unreadable import LARGEST_IMAGE, UnreadableImage

OWN_RANGE = "shown by their own range, which their window or look-up table misses"

_LONGEST_HEADER = 2**24  # bytes
_LARGEST_INFLATED = 2**29  # bytes
_PIXEL_DATA_TAGS = (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10")  # in both byte orders
_FRAME_STARTS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # markers; the last is that of JPEG-LS
_NOT_WHOLE = "values that are no whole numbers"
_UNREAD_COLOURS = ("HSV", "ARGB", "CMYK")
_WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_PHOTOMETRIC = (*(str(name) for name in PhotometricInterpretation), "PALETTE COLOR")

# Remarks on odd headers quote tags, and those can name a patient; what matters comes back as an error.
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()
logging.getLogger("pydicom").setLevel(logging.ERROR)

# Group and element, little endian: file meta length and version; length, character set, image type, creation date and
# SOP class of the identifying group.
_OPENING_ELEMENTS = (
    *(b"\x02\0\0\0", b"\x02\0\x01\0"),
    *(b"\x08\0" + element for element in (b"\0\0", b"\x05\0", b"\x08\0", b"\x12\0", b"\x16\0")),
)


def is_dicom(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does; old ones have no preamble and begin with their first element."""
    return data[128:132] == b"DICM" or data[:4] in _OPENING_ELEMENTS


def read_tags(path: str | Path, names: Sequence[str]) -> list[str]:
    """What the header of a DICOM file says under these keywords; empty where it says nothing, or cannot be read."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(names), force=True)
        return [str(header.get(name) or "") for name in names]
    except Exception:
        # pydicom raises nearly anything on damaged bytes; what is wrong is told when the pixels are read.
        return [""] * len(names)


def decode_dicom(data: bytes) -> tuple[np.ndarray, str]:
    """The grey levels of a DICOM file ``(height, width)``, 0 black to 255 white, and a remark: `OWN_RANGE` or nothing.

    An UnreadableImage if it is no radiograph, its tags contradict its values or it is too large.
    """
    dataset = _read_dataset(data)
    try:
        # Bits beyond those stored are looked at below; pydicom would take them away unseen.
        stored = pixel_array(dataset, correct_unused_bits=False)
    except (NotImplementedError, AttributeError) as error:
        raise UnreadableImage("unsupported DICOM", str(error).split("\n")[0][:120]) from None
    if stored.ndim == 3:
        return _show_colours(stored, dataset.PhotometricInterpretation), ""
    stored, valid = _read_stored(stored.astype(stored.dtype.newbyteorder("="), copy=False), dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _show_colours(_apply_palette(stored, dataset), "RGB"), ""
    grey, remark = _show_values(stored, dataset, valid)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = grey.dtype.type(255) - grey
    return (grey if valid.all() else np.where(valid, grey, grey.dtype.type(0))), remark


def _read_dataset(data: bytes) -> pydicom.Dataset:
    """The header of one radiograph, put in order, and nothing unpacked that could be larger than one."""
    _refuse_long_header(data)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not dataset:
        # The reader gives up all elements of a file that ends within one.
        raise UnreadableImage("truncated", "the header is cut")
    rows, columns, frames = (dataset.get(tag) or 0 for tag in ("Rows", "Columns", "NumberOfFrames"))
    photometric = _tidy_word(dataset.get("PhotometricInterpretation"), _PHOTOMETRIC)
    for is_wrong, reason, detail in (
        (not rows or not columns, "unsupported DICOM", "no image"),
        ("FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset, "unsupported DICOM", _NOT_WHOLE),
        ("PixelData" not in dataset, "truncated", "no pixels after the header"),
        (int(frames or 1) != 1, "unsupported DICOM", f"{frames} frames"),
        (rows * columns > LARGEST_IMAGE, "too large", f"{columns} x {rows} pixels"),
        (photometric not in _PHOTOMETRIC, "unsupported DICOM", "neither grey nor a colour model"),
    ):
        if is_wrong:
            raise UnreadableImage(reason, detail)
    dataset.PhotometricInterpretation = photometric
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _follow_frame(dataset)
    else:
        bits = rows * columns * dataset.get("SamplesPerPixel", 1) * dataset.BitsAllocated
        bits = bits * 2 // 3 if photometric == "YBR_FULL_422" else bits
        if len(dataset.PixelData) < bits // 8:
            raise UnreadableImage("truncated", "fewer pixels than announced")
    return dataset


def _follow_frame(dataset: pydicom.Dataset) -> None:
    """Take the number of stored bits from the compressed frame, and refuse a frame of another size than announced."""
    said = dataset.BitsStored, dataset.Rows, dataset.Columns
    bits, rows, columns = _read_frame_header(next(generate_frames(dataset.PixelData, number_of_frames=1))) or said
    if (rows, columns) != said[1:]:
        raise UnreadableImage("damaged", f"{columns} x {rows} pixels where {dataset.Columns} x {dataset.Rows} are said")
    if bits > dataset.BitsStored:
        dataset.BitsStored, dataset.HighBit = bits, bits - 1


def _read_frame_header(frame: bytes) -> tuple[int, int, int] | None:
    """Bits a sample, rows and columns as a frame of the JPEG family says them; None of other frames.

    Sources: ISO 10918-1 B.2 and ISO 14495-1 C.2 (start of frame), ISO 15444-1 A.5 (image and tile size).
    """
    if frame[:4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = struct.unpack(">4I", frame[8:24])
        return (frame[42] & 127) + 1, bottom - top, right - left
    start = 2
    while frame[:2] == b"\xff\xd8" and frame[start : start + 1] == b"\xff":
        if frame[start + 1] in _FRAME_STARTS:
            return struct.unpack(">BHH", frame[start + 4 : start + 9])
        start += 2 + int.from_bytes(frame[start + 2 : start + 4])
    return None


def _refuse_long_header(data: bytes) -> None:
    """Raise an UnreadableImage if a header would take minutes to read, or a deflated file more memory than there is."""
    meta_end = 144 + int.from_bytes(data[140:144], "little")
    if pydicom.uid.DeflatedExplicitVRLittleEndian.encode() in data[132:meta_end]:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        data = stream.decompress(data[meta_end:], _LARGEST_INFLATED)
        if stream.unconsumed_tail:
            raise UnreadableImage("too large", "a deflated file")
    if len(data) > _LONGEST_HEADER and all(data.find(tag, 0, _LONGEST_HEADER) < 0 for tag in _PIXEL_DATA_TAGS):
        raise UnreadableImage("too large", f"a header of more than {_LONGEST_HEADER >> 20} MiB")


def _tidy_word(value: object, known: Sequence[str]) -> str:
    """A defined term as it should be written, whatever its case, blanks and underscores; others unchanged."""
    plain = "".join(character for character in str(value).upper() if character.isalnum())
    return next((word for word in known if "".join(filter(str.isalnum, word)) == plain), str(value))


def _read_stored(cells: np.ndarray, dataset: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The stored values among the bits allocated for them, and where the detector was hit.

    Bits may be set above those that are said to be stored: by an overlay, as files held them until 2004, without which
    the values are whole; or by values that need more bits than said, which would wrap. The picture tells which.
    """
    valid = _find_valid(cells, dataset)
    allocated, stored = 8 * cells.dtype.itemsize, int(dataset.BitsStored)
    if stored >= allocated:
        return cells, valid
    lowest = max(0, int(dataset.get("HighBit", stored - 1)) + 1 - stored)
    if lowest and np.array_equal(_cut_bits(cells, 0, stored), cells):
        lowest = 0  # the values are where they usually are, whatever the tag says
    values = _cut_bits(cells, lowest, stored)
    lost = (cells >> lowest) - values
    # Above the highest bit a sign may stand or, before a negative value, nothing.
    has_more = (lost != 0) & (cells.view(f"u{cells.dtype.itemsize}") >> lowest >> stored != 0)
    if has_more[valid].any() and _is_wrapped(values, lost, valid, stored):
        if _find_steps(cells).mean() > cells.std() / 2:
            raise UnreadableImage("damaged", f"values beyond the {stored} bits stored")
        values = cells
    return values, valid & _find_valid(values, dataset)


def _is_wrapped(values: np.ndarray, lost: np.ndarray, valid: np.ndarray, stored: int) -> bool:
    """Whether values leap to the next pixel wherever the bits lost above them change, as values cut short do."""
    leaps = [
        _find_steps(level)[(np.diff(bits, axis=1) != 0) & hit[:, 1:] & hit[:, :-1]]
        for level, bits, hit in ((values, lost, valid), (values.T, lost.T, valid.T))
    ]
    leaps = np.concatenate(leaps)
    return leaps.size > 0 and float(leaps.mean()) > 2**stored / 8


def _cut_bits(cells: np.ndarray, lowest: int, stored: int) -> np.ndarray:
    """The values in ``stored`` bits from the ``lowest`` on, with their sign if the cells have one."""
    above = 8 * cells.dtype.itemsize - stored
    return (cells >> lowest << above) >> above


def _find_steps(values: np.ndarray) -> np.ndarray:
    """The step from each pixel to its right neighbour, ``float32 (height, width - 1)``."""
    return np.abs(np.diff(values.astype(np.float32), axis=1))


def _find_valid(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Where the detector was hit: not the padding (PS3.3 C.7.5.1.1.2)."""
    padding = _read_sample(dataset, "PixelPaddingValue", stored)
    if padding is None:
        return np.ones(stored.shape, bool)
    limit = _read_sample(dataset, "PixelPaddingRangeLimit", stored)
    low, high = sorted((padding, padding if limit is None else limit))
    valid = (stored < low) | (stored > high)
    # A padding value that covers the whole image is a wrong tag, not a blank image.
    return valid if valid.any() else np.ones(stored.shape, bool)


def _read_sample(dataset: pydicom.Dataset, keyword: str, stored: np.ndarray) -> int | None:
    """A tag that holds a stored value, with the sign that the stored values have."""
    value = dataset.get(keyword)
    value = value[0] if isinstance(value, pydicom.multival.MultiValue) else value
    if value is None or not str(value):
        return None
    return _restore_sign(int.from_bytes(value, "little") if isinstance(value, bytes) else int(value), stored)


def _restore_sign(value: int, values: np.ndarray) -> int:
    """A word of 16 bits read as the values are, with a sign or without: files write -2000 as 63536, and the reverse."""
    has_sign = values.dtype.kind == "i" or (values.dtype.kind == "f" and values.min() < 0)
    if has_sign and values.dtype.itemsize != 4 and 2**15 <= value < 2**16:
        return value - 2**16
    return value + 2**16 if value < 0 and values.dtype.kind == "u" else value


def _show_values(stored: np.ndarray, dataset: pydicom.Dataset, valid: np.ndarray) -> tuple[np.ndarray, str]:
    """Stored values through the modality and the VOI transform, as grey levels before any inversion; and a remark."""
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        values = _look_up(stored, item.LUTDescriptor, _unpack_table(item.LUTDescriptor, item.LUTData, dataset))
    else:
        # As they are where slope and intercept cannot be meant.
        slope, intercept = (_read_numbers(dataset, tag)[:1] for tag in ("RescaleSlope", "RescaleIntercept"))
        is_meant = slope and intercept and slope[0] and math.isfinite(slope[0]) and math.isfinite(intercept[0])
        values = stored.astype(np.float64) * slope[0] + intercept[0] if is_meant else stored
    grey, remark = None, ""
    if dataset.get("VOILUTSequence"):
        grey = _apply_voi_table(values, dataset, valid)
    elif (window := _read_window(dataset)) is not None:
        grey = apply_window(values, *window)
    if grey is not None:
        if not loses_levels(grey, values, valid):
            return grey, ""
        remark = OWN_RANGE
    if dataset.BitsStored == 8 and stored.dtype == np.uint8 and np.array_equal(values, stored):
        return stored, remark
    return show_range(values, valid), remark


def _apply_voi_table(values: np.ndarray, dataset: pydicom.Dataset, valid: np.ndarray) -> np.ndarray:
    item = dataset.VOILUTSequence[0]
    table = _unpack_table(item.LUTDescriptor, item.LUTData, dataset)
    entries, depth = _look_up(values, item.LUTDescriptor, table), int(item.LUTDescriptor[2])
    if int(table.max()).bit_length() == depth:
        return entries.astype(np.float32) * np.float32(255 / (2**depth - 1))
    # The entries are of fewer or of more bits than the table says.
    return stretch_range(entries, valid)


def _unpack_table(descriptor: Sequence[int], data: bytes | Sequence[int], dataset: pydicom.Dataset) -> np.ndarray:
    """The entries of a look-up table, of 8 or 16 bit by the length of its data (PS3.3 C.11.1.1.1)."""
    entries = int(descriptor[0]) or 2**16
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype("<u2")
    else:
        table = np.atleast_1d(data).astype("<u2")
    if len(table) == (entries + 1) // 2:
        table = table.view(np.uint8)
    if len(table) < entries:
        raise UnreadableImage("damaged", f"a look-up table of {len(table)} entries in place of {entries}")
    return table[:entries]


def _look_up(values: np.ndarray, descriptor: Sequence[int], table: np.ndarray) -> np.ndarray:
    """The entries that stand for values; those before the first value mapped or after the last take the table's end."""
    whole = values if values.dtype.kind in "iu" else np.floor(values)
    places = whole.astype(np.int64) - _restore_sign(int(descriptor[1]), values)
    return table[places.clip(0, len(table) - 1)]


def _apply_palette(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Colours ``(height, width, 3)`` of a palette image, ``uint8`` where its entries need no more."""
    if "RedPaletteColorLookupTableData" not in dataset:
        return apply_color_lut(stored, dataset)  # in segments
    lanes = []
    for colour in ("Red", "Green", "Blue"):
        descriptor = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value
        table = _unpack_table(descriptor, dataset[f"{colour}PaletteColorLookupTableData"].value, dataset)
        lanes.append(_look_up(stored, descriptor, table))
    colours = np.stack(lanes, axis=-1)
    return colours if colours.max() > 255 else colours.astype(np.uint8)


def _show_colours(colours: np.ndarray, photometric: str) -> np.ndarray:
    if photometric in _UNREAD_COLOURS:
        raise UnreadableImage("unsupported DICOM", f"colours as {photometric}")
    if colours.dtype == np.uint8:
        return np.array(Image.fromarray(colours).convert("L"))
    return show_deep_colours(colours[..., :3])


def _read_window(dataset: pydicom.Dataset) -> tuple[float, float, str] | None:
    """Centre, width and function of the first usable window, or None if there is none."""
    function = _tidy_word(dataset.get("VOILUTFunction") or "LINEAR", _WINDOW_FUNCTIONS)
    narrowest = 1.0 if function == "LINEAR" else 0.0
    windows = zip(*(_read_numbers(dataset, keyword) for keyword in ("WindowCenter", "WindowWidth")), strict=False)
    for centre, width in windows:
        if math.isfinite(centre) and narrowest < width < math.inf:
            return centre, width, function
    return None


def _read_numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """The numbers of a tag, NaN where there is none; an empty list if it holds what is no number."""
    try:
        value = dataset.get(keyword)
        numbers = value if isinstance(value, pydicom.multival.MultiValue) else [value]
        return [math.nan if number is None or number == "" else float(number) for number in numbers]
    except (ValueError, TypeError):
        return []


def apply_window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Window values to grey levels 0 to 255, ``float32`` (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    The width is above 1 for ``LINEAR``, above 0 for ``LINEAR_EXACT`` and ``SIGMOID``; there is no other function.
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
