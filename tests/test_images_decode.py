import io
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from test_png import make_png

from chexstudy.cohort.images import decode as images
from chexstudy.cohort.images.decode import decode_radiograph, fit_square, read_bytes
from chexstudy.cohort.images.unreadable import UnreadableImage
from chexstudy.errors import StudyError


def gradient(height=48, width=64, top=255, dtype=np.uint8):
    return np.linspace(0, top, height * width).reshape(height, width).astype(dtype)


def encode(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def reason_of(data):
    with pytest.raises(UnreadableImage) as caught:
        decode_radiograph(data)
    return caught.value.reason


def test_eight_bit_grey_comes_back_bit_for_bit():
    pixels = gradient()
    read = decode_radiograph(encode(Image.fromarray(pixels)))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_stored_in_another_mode_comes_back_as_grey(mode):
    pixels = gradient()
    np.testing.assert_array_equal(decode_radiograph(encode(Image.fromarray(pixels).convert(mode))), pixels)


def test_one_bit_pictures_are_black_and_white():
    pixels = np.zeros((40, 40), bool)
    pixels[:, 20:] = True
    np.testing.assert_array_equal(decode_radiograph(encode(Image.fromarray(pixels))), np.where(pixels, 255, 0))


def test_transparent_pixels_are_black():
    picture = Image.new("RGBA", (40, 40), (200, 200, 200, 255))
    picture.paste((200, 200, 200, 0), (0, 0, 20, 40))
    read = decode_radiograph(encode(picture))
    assert (read[:, :20] == 0).all()
    assert (read[:, 20:] == 200).all()


@pytest.mark.parametrize("top", [4095, 65535, 300])
def test_sixteen_bit_png_is_scaled_by_its_real_range_and_not_truncated(top):
    pixels = gradient(top=top, dtype=np.uint16)
    data = encode(Image.fromarray(pixels))
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    read = decode_radiograph(data)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, pixels / top * 255, atol=1e-3)
    assert (np.diff(read.ravel()) >= 0).all()


def test_jpeg_is_read_and_turned_as_its_camera_says():
    pixels = gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene lies on the right of the stored picture
    plain, turned = (
        decode_radiograph(encode(Image.fromarray(pixels), "JPEG", quality=95, **more)) for more in ({}, {"exif": exif})
    )
    assert np.abs(plain.astype(int) - pixels).max() <= 3
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


def test_bad_files_have_a_reason_each(tmp_path):
    png = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)))
    jpeg = encode(Image.fromarray(gradient(200, 200)), "JPEG")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert reason_of(png[: len(png) // 2]) == "truncated"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason_of(png[:200] + b"\xff" * 300 + png[500:]) in ("damaged", "truncated")
    with pytest.raises(StudyError) as caught:
        decode_radiograph(b"<!DOCTYPE html><html>Login required</html>")
    assert str(caught.value) == (
        "the image cannot be used: not an image (a web page); "
        "a page, a text or something else under the name of an image."
    )
    assert reason_of(b"\xef\xbb\xbf\n<html>") == "not an image"
    assert reason_of(b"version https://git-lfs.github.com/spec/v1\n") == "not an image"
    assert reason_of(bytes(range(256)) * 4) == "not an image"
    assert reason_of(encode(Image.fromarray(gradient(31, 64)))) == "too small"
    assert reason_of(encode(Image.fromarray(gradient(40, 801)))) == "too small"
    for name, reason in (("absent.png", "missing"), (".", "missing")):
        with pytest.raises(UnreadableImage) as caught:
            decode_radiograph(read_bytes(tmp_path / name))
        assert caught.value.reason == reason
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadableImage, match=r"^the image cannot be used: empty; the file has no bytes\.$"):
        decode_radiograph(read_bytes(tmp_path / "empty.png"))


def make_tiff(values, bits, photometric, sample_format=1, order="<"):
    """A TIFF of one strip, uncompressed, ``values`` the bytes of its 40 rows of 50 pixels."""
    short, long = 3, 4
    channels = max(1, len(values) * 8 // (40 * 50 * bits))
    start = 8 + 2 + 12 * 10 + 4
    per_channel = struct.pack(f"{order}{channels}H", *[bits] * channels)
    formats = struct.pack(f"{order}{channels}H", *[sample_format] * channels)
    inline = channels < 3
    tags = [
        (256, long, 1, 50),
        (257, long, 1, 40),
        (258, short, channels, per_channel.ljust(4, b"\0") if inline else start),
        (259, short, 1, 1),
        (262, short, 1, photometric),
        (273, long, 1, start + len(per_channel) + len(formats)),
        (277, short, 1, channels),
        (278, long, 1, 40),
        (279, long, 1, len(values)),
        (339, short, channels, formats.ljust(4, b"\0") if inline else start + len(per_channel)),
    ]
    entries = b""
    for tag, kind, count, value in tags:
        if not isinstance(value, bytes):
            wide = kind == long or count > 1
            value = struct.pack(f"{order}I", value) if wide else struct.pack(f"{order}HH", value, 0)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + per_channel + formats + values


@pytest.mark.parametrize("photometric", [0, 1])  # white is zero, black is zero
@pytest.mark.parametrize("kind", ["<u1", "<u2", "<f4", ">u1", ">f4"])
def test_a_tiff_has_the_polarity_it_says(kind, photometric):
    share = gradient(40, 50, 2**20, np.int64) / 2**20
    top = 1 if kind[1] == "f" else np.iinfo(kind).max
    stored = (share * top if photometric else top - share * top).astype(kind)
    data = make_tiff(stored.tobytes(), 8 * stored.itemsize, photometric, 3 if kind[1] == "f" else 1, kind[0])
    np.testing.assert_allclose(decode_radiograph(data), share * 255, atol=1)


@pytest.mark.parametrize("kind", ["<i2", "<u4", "<i4", ">u2", ">i2"])
def test_a_tiff_has_the_sign_it_says_and_is_refused_where_pillow_does_not_know_it(kind):
    share = gradient(40, 50, 2**20, np.int64) / 2**20
    limits = np.iinfo(kind)
    stored = (limits.min + share * (limits.max - limits.min)).astype(kind)
    values = (stored.tobytes(), 8 * stored.itemsize)
    sample_format = 2 if kind[1] == "i" else 1
    np.testing.assert_allclose(decode_radiograph(make_tiff(*values, 1, sample_format, kind[0])), share * 255, atol=1)
    assert reason_of(make_tiff(*values, 0, sample_format, kind[0])) == "damaged"


def test_a_bilevel_tiff_has_the_polarity_it_says():
    white = np.zeros((40, 56), bool)
    white[:, 20:] = True
    for photometric, stored in ((1, white), (0, ~white)):
        read = decode_radiograph(make_tiff(np.packbits(stored, axis=1).tobytes(), 1, photometric))
        np.testing.assert_array_equal(read, np.where(white[:, :50], 255, 0))


def test_a_tiff_with_colours_of_16_bit_is_read_if_their_upper_bytes_suffice():
    grey = gradient(40, 50, 65535, np.uint16)
    bright, dark = (np.repeat(values[..., None], 3, axis=2).tobytes() for values in (grey, grey // 16))
    np.testing.assert_allclose(decode_radiograph(make_tiff(bright, 16, 2)), grey / 65535 * 255, atol=1)
    assert reason_of(make_tiff(dark, 16, 2)) == "unsupported"


def test_a_tiff_of_several_pages_is_refused_unless_they_are_smaller_copies():
    first, second, small = (Image.fromarray(pixels) for pixels in (gradient(), gradient()[::-1], gradient()[::4, ::4]))
    for compression in (None, "tiff_lzw"):
        options = {"save_all": True, "compression": compression}
        assert reason_of(encode(first, "TIFF", append_images=[second], **options)) == "unsupported"
        kept = decode_radiograph(encode(first, "TIFF", append_images=[small], **options))
        np.testing.assert_array_equal(kept, gradient())


@pytest.mark.parametrize("mode", ["grey and alpha", "colours", "colours and alpha"])
def test_deep_colours_of_a_png_take_their_real_range(mode):
    grey = gradient(top=4095, dtype=np.uint16)
    alpha = np.full_like(grey, 65535)
    kind, channels = {
        "grey and alpha": (4, [grey, alpha]),
        "colours": (2, [grey] * 3),
        "colours and alpha": (6, [grey] * 3 + [alpha]),
    }[mode]
    rows = np.dstack(channels).astype(">u2").reshape(48, -1).view(np.uint8)
    data = make_png(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 48, 64, bytes([16, kind, 0, 0, 0]))
    np.testing.assert_allclose(decode_radiograph(data), grey / 4095 * 255, atol=1e-3)


def test_a_png_is_read_whole_where_only_what_surrounds_the_picture_is_damaged():
    pixels = gradient()
    data = encode(Image.fromarray(pixels), pnginfo=note())
    start = data.index(b"tEXt")
    for harmless in (
        data[: start + 5] + b"?" + data[start + 6 :],  # a note whose checksum is wrong
        data[:-12],  # no end
        data[:-1] + b"?",  # the checksum of the end
        data[:-13] + bytes([data[-13] ^ 1]) + data[-12:],  # the chunk's checksum, beside the one of the pixels within
        data + bytes(99),
    ):
        np.testing.assert_array_equal(decode_radiograph(harmless), pixels)
    image = data.index(b"IDAT")
    assert reason_of(data[:19] + b"?" + data[20:]) == "damaged"  # the width
    assert reason_of(data[: image + 40] + bytes([data[image + 40] ^ 8]) + data[image + 41 :]) == "damaged"
    assert reason_of(data[:-17] + b"?" + data[-16:]) == "damaged"  # the checksum of the pixels


def note():
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "made by nobody")
    return text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(kind):
    data = bytearray(encode(Image.fromarray(gradient()), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", 12000, 12000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "JPEG":
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", 12000, 12000)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 12000, 12000)
    else:
        for tag in (256, 257):
            start = data.index(struct.pack("<H", tag), 8)
            data[start : start + 12] = struct.pack("<HHII", tag, 4, 1, 12000)
    with pytest.raises(
        UnreadableImage, match=r"too large \(12000 x 12000 pixels\); more pixels, or a longer file or h"
    ):
        decode_radiograph(bytes(data))


def test_only_regular_files_of_a_bearable_length_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket.png")
        for name in ("pipe.png", "socket.png", "/dev/zero"):
            with pytest.raises(UnreadableImage, match=r"not an image \(a pipe, a socket or a device\)"):
                decode_radiograph(read_bytes(name))
    with open("long.png", "wb") as file:
        file.truncate(2**40)
    monkeypatch.setattr(images, "_LARGEST_FILE", 2**20)
    with pytest.raises(UnreadableImage, match=r"too large \(a file of more than 1 MiB\)"):
        decode_radiograph(read_bytes("long.png"))


# --- resizing -------------------------------------------------------------------------------------------------------


def test_crop_is_the_published_transform():
    image = np.random.default_rng(0).integers(0, 255, (301, 250), np.uint8)
    reference = Image.fromarray(image).resize((96, int(96 * 301 / 250)), Image.Resampling.BICUBIC)
    top = round((reference.height - 96) / 2)
    np.testing.assert_array_equal(fit_square(image, 96), np.asarray(reference)[top : top + 96])


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (97, 96), (50, 400), (64, 64), (40, 41)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_any_shape_becomes_the_square(shape, fit):
    fitted = fit_square(np.full(shape, 200, np.uint8), 96, fit)
    assert fitted.shape == (96, 96)
    assert fitted.dtype == np.uint8
    if fit == "crop":
        assert (fitted == 200).all()
    else:
        share = min(shape) / max(shape)
        assert abs((fitted == 200).mean() - share) < 0.02
        black = np.flatnonzero((fitted == 0).all(axis=int(shape[0] >= shape[1]) ^ 1))
        assert abs((black < 48).sum() - (black >= 48).sum()) <= 1


def test_aspect_is_kept():
    image = np.zeros((200, 400), np.uint8)
    image[52:148, 152:248] = 255
    for fit, side in (("crop", 48), ("pad", 24)):
        inside = fit_square(image, 100, fit) > 127
        assert inside.any(axis=0).sum() == side
        assert inside.any(axis=1).sum() == side


def test_resizing_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (512, 256))
    fitted = fit_square(stripes, 64)
    assert abs(int(fitted.min()) - 127) < 6
    assert abs(int(fitted.max()) - 127) < 6


def test_deep_images_are_rounded_after_the_resize_and_stay_in_range():
    image = np.zeros((64, 64), np.float32)
    image[:, 32:] = 255
    fitted = fit_square(image, 40)
    assert fitted.dtype == np.uint8
    assert fitted[:, :10].max() == 0
    assert fitted[:, -10:].min() == 255
    assert (fit_square(np.full((40, 40), 100.6, np.float32), 40) == 101).all()


# --- real files -----------------------------------------------------------------------------------------------------


def test_real_colour_radiographs_are_read_as_grey(real_data):
    colour = []
    for path in sorted((real_data / "nih/images").glob("*.png")):
        with Image.open(path) as picture:
            if picture.mode != "L":
                colour.append((path, np.asarray(picture.convert("RGBA"))))
    assert len(colour) >= 3
    for path, stored in colour:
        assert (stored[..., 3] == 255).all()
        np.testing.assert_array_equal(decode_radiograph(read_bytes(path)), stored[..., 0])
