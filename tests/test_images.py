import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from chexstudy.cohort.images import decode_radiograph, fit_square, read_radiograph
from chexstudy.cohort.unreadable import UnreadableImage
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
    assert reason_of(png[: len(png) // 2]) == "truncated"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason_of(png[:200] + b"\xff" * 300 + png[500:]) in ("damaged", "truncated")
    assert reason_of(b"<!DOCTYPE html><html>Login required</html>") == "not an image"
    assert reason_of(b"\xef\xbb\xbf\n<html>") == "not an image"
    assert reason_of(b"version https://git-lfs.github.com/spec/v1\n") == "not an image"
    assert reason_of(bytes(range(256)) * 4) == "not an image"
    assert reason_of(encode(Image.fromarray(gradient(31, 64)))) == "too small"
    for name, reason in (("absent.png", "missing"), (".", "missing")):
        with pytest.raises(UnreadableImage) as caught:
            read_radiograph(tmp_path / name)
        assert caught.value.reason == reason
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadableImage, match=r"^the image cannot be used: empty; the file has no bytes\.$"):
        read_radiograph(tmp_path / "empty.png")


def test_html_named_as_dicom_is_one_sentence(tmp_path):
    path = tmp_path / "1.2.3.dcm"
    path.write_text("<html><body>403 Forbidden</body></html>")
    with pytest.raises(StudyError) as caught:
        read_radiograph(path)
    assert str(caught.value) == (
        "the image cannot be used: not an image (a web page); "
        "a page, a text or something else under the name of an image."
    )


def test_an_absurdly_large_picture_is_refused_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    data = bytearray(encode(Image.fromarray(gradient())))
    data[16:29] = header
    data[29:33] = struct.pack(">I", __import__("zlib").crc32(b"IHDR" + header))
    assert reason_of(bytes(data)) == "too large"


def test_truncated_images_are_never_filled_up():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


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


def test_wrong_size_and_fit_are_one_sentence():
    with pytest.raises(StudyError, match=r"^fit must be one of crop, pad, not 'squash'\.$"):
        fit_square(gradient(), 32, "squash")
    with pytest.raises(StudyError, match=r"^the image size must be a positive whole number of pixels, not 0\.$"):
        fit_square(gradient(), 0)


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
        np.testing.assert_array_equal(read_radiograph(path), stored[..., 0])
