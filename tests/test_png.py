import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.images import png
from chexstudy.cohort.images.decode import decode_radiograph
from chexstudy.cohort.images.png import decode_png
from chexstudy.cohort.images.unreadable import UnreadableImage

SIDE = 40


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def make_png(filtered, height, width, header=b"\x08\0\0\0\0", cut=7, before=b""):
    """A file of filtered rows, its compressed stream cut into pieces."""
    stream = zlib.compress(filtered)
    pieces = [stream[start : start + max(1, len(stream) // cut)] for start in range(0, len(stream), len(stream) // cut)]
    parts = [chunk(b"IHDR", struct.pack(">II", width, height) + header), before]
    parts += [*(chunk(b"IDAT", piece) for piece in pieces), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def make_rows(rng, height, width, kinds):
    rows = rng.integers(0, 256, (height, width + 1), dtype=np.uint8)
    rows[:, 0] = rng.choice(kinds, height)
    return rows


def read_with_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("kinds", [[0], [1], [2], [3], [4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (37, 61)])
def test_every_filter_gives_the_pixels_pillow_gives(kinds, shape):
    data = make_png(make_rows(np.random.default_rng(sum(kinds)), *shape, kinds).tobytes(), *shape)
    np.testing.assert_array_equal(decode_png(data)[..., 0], read_with_pillow(data))


def test_smooth_images_as_pillow_writes_them():
    y, x = np.mgrid[:300, :220]
    noise = np.random.default_rng(0).normal(0, 2, y.shape)
    picture = np.clip(120 + 90 * np.sin(x / 40) * np.cos(y / 60) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    np.testing.assert_array_equal(decode_png(file.getvalue())[..., 0], picture)


def whole_file():
    return make_png(make_rows(np.random.default_rng(1), SIDE, SIDE, [1, 2, 4]).tobytes(), SIDE, SIDE)


FILTERED = make_rows(np.random.default_rng(2), SIDE, SIDE, [2]).tobytes()
LEFT_TO_PILLOW = {
    "another format": b"BM" + whole_file()[2:],
    "interlaced": make_png(FILTERED, SIDE, SIDE, header=b"\x08\0\0\0\x01"),
    "cut": whole_file()[:-300],
    "without an end": whole_file()[:-12],
    "bytes behind the end": whole_file() + b"\0",
    "too few rows": make_png(FILTERED[: -SIDE - 1], SIDE, SIDE),
    "too many rows": make_png(FILTERED + FILTERED, SIDE, SIDE),
    "an unknown filter": make_png(b"\x05" + FILTERED[1:], SIDE, SIDE),
    "a flipped bit": (lambda data: data[:200] + bytes([data[200] ^ 4]) + data[201:])(whole_file()),
    "no image": whole_file()[:33] + chunk(b"IEND", b""),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_all_else_is_left_to_pillow(kind):
    assert decode_png(LEFT_TO_PILLOW[kind]) is None


def test_text_before_the_image_does_no_harm():
    data = make_png(FILTERED, SIDE, SIDE, before=chunk(b"tEXt", b"a\0b") + chunk(b"gAMA", b"\0\0\xb1\x8f"))
    np.testing.assert_array_equal(decode_png(data)[..., 0], read_with_pillow(data))


def test_large_files_are_read_the_short_way_and_damaged_ones_keep_their_reason(monkeypatch):
    rows = make_rows(np.random.default_rng(3), 600, 600, [0, 1, 2, 3, 4])
    data = make_png(rows.tobytes(), 600, 600)
    calls = []
    monkeypatch.setattr(png, "decode_png", lambda data: calls.append(1) or decode_png(data))
    np.testing.assert_array_equal(decode_radiograph(data), read_with_pillow(data))
    assert len(calls) == 1
    with pytest.raises(UnreadableImage) as caught:
        decode_radiograph(data[: len(data) // 2])
    assert (caught.value.reason, len(calls)) == ("truncated", 2)


PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("shape", [(37, 61), (3, 2), (1, 9)])
def test_sixteen_bit_of_each_channel_come_back(kind, channels, shape):
    values = np.random.default_rng(kind).integers(0, 65536, (*shape, channels)).astype(">u2")
    for interlace, passes in ((0, ((0, 0, 1, 1),)), (1, PASSES)):
        parts = [values[y::down, x::right] for y, x, down, right in passes]
        rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
        data = make_png(rows, *shape, header=bytes([16, kind, 0, 0, interlace]))
        np.testing.assert_array_equal(decode_png(data), values)


def test_filters_of_deep_colours_look_back_by_a_whole_pixel():
    values = np.random.default_rng(0).integers(0, 65536, (4, 9, 3)).astype(">u2")
    stored = values.view(np.uint8).reshape(4, 54)
    left, above = np.zeros((2, 4, 54), np.uint8)
    left[:, 6:], above[1:] = stored[:, :-6], stored[:-1]
    for kind, predicted in ((1, left), (2, above), (3, ((left.astype(int) + above) // 2).astype(np.uint8))):
        rows = np.concatenate([np.full((4, 1), kind, np.uint8), stored - predicted], axis=1)
        np.testing.assert_array_equal(decode_png(make_png(rows.tobytes(), 4, 9, b"\x10\x02\0\0\0")), values)


def test_deep_colours_that_are_cut_or_altered_are_refused():
    rows = np.zeros((40, 40 * 6 + 1), np.uint8)
    rows[:, 1:] = np.random.default_rng(0).integers(0, 256, (40, 240))
    data = make_png(rows.tobytes(), 40, 40, b"\x10\x02\0\0\0")
    changed = bytearray(data)
    changed[len(data) // 2] ^= 16
    rows[:, 0] = 9
    wrong = make_png(rows.tobytes(), 40, 40, b"\x10\x02\0\0\0")
    for bad, reason in ((data[: len(data) // 2], "truncated"), (bytes(changed), "damaged"), (wrong, "damaged")):
        with pytest.raises(UnreadableImage) as caught:
            decode_radiograph(bad)
        assert caught.value.reason == reason
