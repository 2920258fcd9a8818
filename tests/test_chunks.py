import io
import zlib

import numpy as np
import pytest
from PIL import Image
from test_images_decode import encode, gradient
from test_png import chunk

from chexstudy.cohort.images.chunks import keep_picture
from chexstudy.cohort.images.decode import decode_radiograph
from chexstudy.cohort.images.unreadable import UnreadableImage

PICTURE = encode(Image.fromarray(gradient()))
AFTER_HEADER = 33


def insert(extra):
    return PICTURE[:AFTER_HEADER] + extra + PICTURE[AFTER_HEADER:]


def test_nothing_but_the_picture_is_kept():
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(10_000_000), 9))
    damaged = chunk(b"tEXt", b"note\0words")[:-1] + b"\0"
    for extra in (bomb, damaged, chunk(b"eXIf", bytes(50)), chunk(b"acTL", bytes(8))):
        assert keep_picture(insert(extra)) == PICTURE
    assert keep_picture(PICTURE + b"behind") == PICTURE
    assert keep_picture(PICTURE[:-12]) == PICTURE


def test_palette_and_transparency_belong_to_the_picture():
    palette = Image.fromarray(gradient()).convert("P")
    data = encode(palette, transparency=3)
    assert keep_picture(data) == data
    changed = bytearray(data)
    changed[data.index(b"PLTE") + 9] ^= 1
    with pytest.raises(UnreadableImage, match=r"damaged \(the checksum of PLTE\)"):
        keep_picture(bytes(changed))


def test_a_file_that_is_cut_stays_cut():
    for length in range(AFTER_HEADER, len(PICTURE) - 16, 40):
        kept = keep_picture(PICTURE[:length])
        with pytest.raises((OSError, SyntaxError)):
            np.asarray(Image.open(io.BytesIO(kept)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_no_flipped_bit_changes_a_picture_unseen(mode):
    rng = np.random.default_rng(len(mode))
    data = encode(Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8)).convert(mode))
    whole = decode_radiograph(data)
    for place in (*rng.integers(8, len(data), 60), *range(len(data) - 40, len(data))):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        try:
            read = decode_radiograph(bytes(changed))
        except UnreadableImage:
            continue
        np.testing.assert_array_equal(read, whole)
