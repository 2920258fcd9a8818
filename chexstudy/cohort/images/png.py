"""PNG files where Pillow is slow or shallow, decoded in compiled code: 8-bit grey, and colours of 16 bit.

8-bit grey comes out as Pillow gives it, in a third of the time; of colours of 16 bit Pillow keeps the upper byte. What
is damaged is left to Pillow. Source: W3C Portable Network Graphics, 3rd edition, sections 5, 8, 9 and 10.
"""

import struct

import numpy as np
from isal import isal_zlib  # inflates 2.5 times as fast as the standard library
from numba import njit

from chexstudy.cohort.images.chunks import END, SIGNATURE, split_chunks

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type: grey, colours, grey and alpha, colours and alpha
# First row and column, and the distance to the next, of the passes of an interlaced file.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def decode_png(data: bytes) -> np.ndarray | None:
    """The channels of a PNG of 8 or 16 bit as stored, ``(height, width, channels)``, or None if it is not in order."""
    if not data.startswith(SIGNATURE) or not data.endswith(END):
        return None
    compressed = b"".join(chunk[8:-4] for kind, chunk in split_chunks(data) if kind == b"IDAT")
    width, height, bits, kind, _, _, is_interlaced = struct.unpack(">IIBBBBB", data[16:29])
    depth = _CHANNELS[kind] * bits // 8
    pixels = np.empty((height, width, depth), np.uint8)
    passes = _PASSES if is_interlaced else ((0, 0, 1, 1),)
    parts = [part for y, x, down, right in passes if (part := pixels[y::down, x::right]).size]
    sizes = [len(part) * (1 + part[0].size) for part in parts]
    filtered = _inflate(compressed, sum(sizes))
    if filtered is None:
        return None
    if depth == 1 and not is_interlaced:
        return pixels if _undo_filters(filtered.reshape(height, -1), pixels[..., 0]) else None
    for part, rows in zip(parts, np.split(filtered, np.cumsum(sizes)[:-1]), strict=True):
        rows = rows.reshape(len(part), -1)
        for byte in range(depth):
            # Filters see one byte of a pixel beside the same byte of another: each is a grey image of its own.
            lane = np.concatenate([rows[:, :1], rows[:, 1 + byte :: depth]], axis=1)
            plane = np.empty(part.shape[:2], np.uint8)
            if not _undo_filters(lane, plane):
                return None
            part[..., byte] = plane
    return pixels if bits == 8 else pixels.view(">u2")


def _inflate(compressed: bytes, size: int) -> np.ndarray | None:
    """The ``uint8 (size,)`` of a compressed stream, or None if it is cut, altered or holds another number of bytes."""
    stream = isal_zlib.decompressobj()
    try:
        # One byte more than there should be: a longer stream is noticed, and not unpacked.
        filtered = stream.decompress(compressed, size + 1)
    except isal_zlib.error:
        return None
    return np.frombuffer(filtered, np.uint8) if len(filtered) == size and stream.eof else None


@njit(cache=True, nogil=True)
def _undo_filters(rows, pixels):
    """Undo the filter of each row (PNG section 9.2); False at a filter that does not exist.

    The ``rows (height, width + 1)`` are led by the number of their filter; ``pixels (height, width)`` get the levels.
    """
    height, width = pixels.shape
    above = np.zeros(width, np.uint8)
    for y in range(height):
        kind, source, row = rows[y, 0], rows[y, 1:], pixels[y]
        if kind == 0:
            row[:] = source
        elif kind == 1:
            left = np.uint8(0)
            for x in range(width):
                left = np.uint8(left + source[x])
                row[x] = left
        elif kind == 2:
            for x in range(width):
                row[x] = source[x] + above[x]
        elif kind == 3:
            before = np.int32(0)
            for x in range(width):
                before = (np.int32(source[x]) + ((before + np.int32(above[x])) >> 1)) & 255
                row[x] = before
        elif kind == 4:
            _undo_paeth(source, above, row)
        else:
            return False
        above = row
    return True


@njit(cache=True, nogil=True)
def _undo_paeth(source, above, row):
    """Undo the filter that predicts by the nearest of left, above and upper left (PNG section 9.4)."""
    left = corner = np.int32(0)
    for x in range(len(row)):
        top = np.int32(above[x])
        to_left, to_top = abs(top - corner), abs(left - corner)
        to_corner = abs(left + top - 2 * corner)
        # Ties go to the left, then to the one above. Choices, not branches: what comes next cannot be guessed.
        other, to_other = (top, to_top) if to_top <= to_corner else (corner, to_corner)
        predicted = left if to_left <= to_other else other
        left = (np.int32(source[x]) + predicted) & 255
        row[x] = left
        corner = top
