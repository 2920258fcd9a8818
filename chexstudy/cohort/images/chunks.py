"""A PNG file without all that is not its picture: W3C Portable Network Graphics, 3rd edition, section 5."""

import zlib

from chexstudy.cohort.images.unreadable import LARGEST_IMAGE, UnreadableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_FRAME = 12  # length, type, checksum
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_PIECE = 2**20  # bytes unpacked at a time
_MOST_PIECES = 8 * LARGEST_IMAGE // _PIECE
_END = b"\0\0\0\0IEND\xaeB`\x82"


def keep_picture(data: bytes) -> bytes:
    """The file with header, palette, transparency, image data and end only.

    Texts that unpack to gigabytes, remarks with a wrong checksum and what stands behind the end thus do no harm, and an
    end that is missing is no loss. The checksum of the image data may be wrong where that of the pixels within them
    says that they are right all the same.
    """
    parts, start, doubted = [SIGNATURE], len(SIGNATURE), []
    while start < len(data):
        kind, end = data[start + 4 : start + 8], start + CHUNK_FRAME + int.from_bytes(data[start : start + 4])
        if kind == b"IEND":
            break
        if kind in _PICTURE:
            parts.append(data[start:end])
            if end <= len(data) and zlib.crc32(data[start + 4 : end - 4]).to_bytes(4) != data[end - 4 : end]:
                doubted.append(kind)
        start = end
    if doubted and (set(doubted) != {b"IDAT"} or not _is_whole(parts)):
        raise UnreadableImage("damaged", f"the checksum of {doubted[0].decode()}")
    # Behind a chunk that is cut, an end would be taken for its content.
    return b"".join([*parts, _END] if start <= len(data) else parts)


def _is_whole(parts: list[bytes]) -> bool:
    """Whether the image data of these chunks can be unpacked and have the checksum that stands behind them."""
    packed = b"".join(part[8:-4] for part in parts if part[4:8] == b"IDAT")
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
