"""A PNG file without all that is not its picture: W3C Portable Network Graphics, 3rd edition, section 5."""

import zlib
from collections.abc import Iterator

from chexstudy.cohort.images.unreadable import LARGEST_IMAGE, UnreadableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
_FRAME = 12  # length, type, checksum
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_PIECE = 2**20  # bytes unpacked at a time
_MOST_PIECES = 8 * LARGEST_IMAGE // _PIECE


def split_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The type of each chunk, and its bytes; of the last one some may lack."""
    view, start = memoryview(data), len(SIGNATURE)
    while start < len(data):
        end = start + _FRAME + int.from_bytes(view[start : start + 4])
        yield bytes(view[start + 4 : start + 8]), view[start:end]
        start = end


def keep_picture(data: bytes) -> bytes:
    """The file with header, palette, transparency, image data and end only.

    Texts that unpack to gigabytes and what stands behind the end thus do no harm, and a missing end is no loss. The
    checksum of the image data may be wrong where that of the pixels within is right.
    """
    parts, doubted, is_cut = [SIGNATURE], [], False
    for kind, chunk in split_chunks(data):
        if kind == b"IEND":
            break
        is_cut = len(chunk) < _FRAME + int.from_bytes(chunk[:4])
        if kind in _PICTURE:
            parts.append(chunk)
            if not is_cut and zlib.crc32(chunk[4:-4]).to_bytes(4) != chunk[-4:]:
                doubted.append(kind)
    if doubted and (set(doubted) != {b"IDAT"} or not _is_whole(parts)):
        raise UnreadableImage("damaged", f"the checksum of {doubted[0].decode()}")
    # Behind a chunk that is cut, an end would be taken for its content.
    return b"".join(parts if is_cut else [*parts, END])


def _is_whole(parts: list[bytes]) -> bool:
    """Whether the image data of these chunks can be unpacked and have the checksum that stands behind them."""
    packed = b"".join(part[8:-4] for part in parts[1:] if part[4:8] == b"IDAT")
    stream = zlib.decompressobj()
    try:
        for _ in range(_MOST_PIECES):
            stream.decompress(packed, _PIECE)
            packed = stream.unconsumed_tail
            if stream.eof or not packed:
                break
    except zlib.error:
        return False
    return stream.eof
