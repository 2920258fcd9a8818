"""A PNG file without all that is not its picture: W3C Portable Network Graphics, 3rd edition, section 5."""

import zlib

from chexstudy.cohort.unreadable import UnreadableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_FRAME = 12  # length, type, checksum
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_END = b"\0\0\0\0IEND\xaeB`\x82"


def keep_picture(data: bytes) -> bytes:
    """The file with header, palette, transparency, image data and end only.

    Texts that unpack to gigabytes, remarks with a wrong checksum and what stands behind the end thus do no harm, and an
    end that is missing is no loss. Image data have a checksum of their own within, which whoever unpacks them checks.

    Raises:
        UnreadableImage: the checksum of the header, the palette or the transparency is wrong.
    """
    parts, start = [SIGNATURE], len(SIGNATURE)
    while start < len(data):
        kind, end = data[start + 4 : start + 8], start + CHUNK_FRAME + int.from_bytes(data[start : start + 4])
        if kind == b"IEND":
            break
        if kind in _PICTURE:
            checksum = data[end - 4 : end]
            if kind != b"IDAT" and zlib.crc32(data[start + 4 : end - 4]).to_bytes(4) != checksum:
                raise UnreadableImage("damaged", f"the checksum of {kind.decode()}")
            parts.append(data[start:end])
        start = end
    # Behind a chunk that is cut, an end would be taken for its content.
    return b"".join([*parts, _END] if start <= len(data) else parts)
