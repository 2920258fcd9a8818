import io
import struct

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageFile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from chexstudy.cohort.images import (
    UnreadableImage,
    apply_window,
    decode_radiograph,
    fit_square,
    is_blank,
    read_radiograph,
    stretch_range,
)
from chexstudy.errors import StudyError

REAL_DICOM = "dicom/1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"


def gradient(height=48, width=64, top=255, dtype=np.uint8):
    return np.linspace(0, top, height * width).reshape(height, width).astype(dtype)


def encode(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def make_dicom(pixels, bits=None, **tags):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def to_bytes(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def reason_of(data):
    with pytest.raises(UnreadableImage) as caught:
        decode_radiograph(data)
    return caught.value.reason


# --- pictures -------------------------------------------------------------------------------------------------------


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


def test_the_content_decides_not_the_name(tmp_path):
    dicom_as_png = tmp_path / "a.png"
    dicom_as_png.write_bytes(to_bytes(make_dicom(gradient())))
    png_as_dicom = tmp_path / "a.dcm"
    png_as_dicom.write_bytes(encode(Image.fromarray(gradient())))
    np.testing.assert_array_equal(read_radiograph(dicom_as_png), gradient())
    np.testing.assert_array_equal(read_radiograph(png_as_dicom), gradient())


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


# --- DICOM ----------------------------------------------------------------------------------------------------------


def test_plain_dicom_of_eight_bits_comes_back_bit_for_bit():
    np.testing.assert_array_equal(decode_radiograph(to_bytes(make_dicom(gradient()))), gradient())


def test_dicom_without_preamble_and_meta_is_read():
    dataset = make_dicom(gradient())
    body = io.BytesIO()
    plain = Dataset({element.tag: element for element in dataset if element.tag.group > 2})
    plain.save_as(body, implicit_vr=True, little_endian=True)
    assert body.getvalue()[128:132] != b"DICM"
    np.testing.assert_array_equal(decode_radiograph(body.getvalue()), gradient())


def test_monochrome1_is_inverted():
    inverted = make_dicom(gradient(), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode_radiograph(to_bytes(inverted)), 255 - gradient())
    deep = gradient(top=4095, dtype=np.uint16)
    inverted = make_dicom(deep, bits=12, PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_allclose(decode_radiograph(to_bytes(inverted)), 255 - deep / 4095 * 255, atol=0.05)


def test_rescale_then_window_is_applied():
    # Stored 0..4095 becomes -1000..3095; the window 100 +- 50 cuts that to a ramp.
    stored = gradient(top=4095, dtype=np.uint16)
    dataset = make_dicom(stored, bits=12, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=100, WindowWidth=101)
    read = decode_radiograph(to_bytes(dataset))
    values = stored.astype(float) - 1000
    np.testing.assert_allclose(read, ((values - 99.5) / 100 + 0.5).clip(0, 1) * 255, atol=1e-2)
    assert read.min() == 0
    assert read.max() == 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function):
    stored = gradient(top=4095, dtype=np.uint16)
    dataset = make_dicom(stored, bits=12, WindowCenter=[1500, 7], WindowWidth=[900, 8], VOILUTFunction=function)
    reference = apply_windowing(stored, dataset) / 4095 * 255
    np.testing.assert_allclose(decode_radiograph(to_bytes(dataset)), reference, atol=1e-2)


def test_window_functions_by_hand():
    values = np.array([0.0, 50.0, 100.0])
    np.testing.assert_allclose(apply_window(values, 50, 100, "LINEAR_EXACT"), [0, 127.5, 255])
    np.testing.assert_allclose(apply_window(values, 50.5, 101, "LINEAR"), [0, 127.5, 255])
    sigmoid = [255 / (1 + np.e**2), 127.5, 255 / (1 + np.e**-2)]
    np.testing.assert_allclose(apply_window(values, 50, 100, "SIGMOID"), sigmoid, rtol=1e-6)
    with pytest.raises(UnreadableImage, match="VOI LUT function CUBIC"):
        apply_window(values, 50, 100, "CUBIC")


def test_a_window_without_width_is_ignored():
    stored = gradient(top=4095, dtype=np.uint16)
    dataset = make_dicom(stored, bits=12, WindowCenter=50, WindowWidth=1)
    np.testing.assert_allclose(decode_radiograph(to_bytes(dataset)), stored / 4095 * 255, atol=1e-3)


def test_voi_and_modality_tables_are_applied():
    stored = (np.arange(48 * 64) % 4).reshape(48, 64).astype(np.uint8)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], np.array([0, 10, 100, 255], np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    dataset = make_dicom(stored, VOILUTSequence=[table])
    np.testing.assert_allclose(decode_radiograph(to_bytes(dataset)), np.array([0, 10, 100, 255])[stored], atol=1e-3)
    table.ModalityLUTType = "US"
    dataset = make_dicom(stored, ModalityLUTSequence=[table])
    np.testing.assert_allclose(decode_radiograph(to_bytes(dataset)), np.array([0, 10, 100, 255])[stored], atol=1e-3)


def test_padding_is_black_and_does_not_stretch_the_range():
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        stored = gradient(top=1000, dtype=np.int16) + np.int16(100)
        stored[:, :10] = -2000
        dataset = make_dicom(stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        read = decode_radiograph(to_bytes(dataset))
        assert (read[:, :10] == 0).all()
        assert read[:, 10:].min() == 0
        assert read[:, 10:].max() == 255


def test_colour_dicom_becomes_grey():
    pixels = gradient()
    read = decode_radiograph(to_bytes(make_dicom(np.repeat(pixels[..., None], 3, axis=2))))
    np.testing.assert_array_equal(read, pixels)


COMPRESSED = {
    "JPEG baseline": (gdcm.TransferSyntax.JPEGBaselineProcess1, np.uint8, 4),
    "JPEG lossless": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, np.uint16, 0),
    "JPEG-LS": (gdcm.TransferSyntax.JPEGLSLossless, np.uint16, 0),
    "JPEG 2000": (gdcm.TransferSyntax.JPEG2000Lossless, np.uint16, 0),
    "RLE": (gdcm.TransferSyntax.RLELossless, np.uint16, 0),
}


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_transfer_syntaxes(syntax, tmp_path):
    code, dtype, tolerance = COMPRESSED[syntax]
    bits = 8 if dtype == np.uint8 else 12
    dataset = make_dicom(gradient(64, 64, 2**bits - 1, dtype), bits=bits)
    (tmp_path / "plain.dcm").write_bytes(to_bytes(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(code))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    packed = pydicom.dcmread(tmp_path / "packed.dcm")
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    plain, read = (read_radiograph(tmp_path / name).astype(float) for name in ("plain.dcm", "packed.dcm"))
    assert np.abs(plain - read).max() <= tolerance
    data = (tmp_path / "packed.dcm").read_bytes()
    assert reason_of(data[: len(data) - len(packed.PixelData) // 2]) in ("truncated", "damaged")


def test_dicom_that_is_not_one_radiograph_says_what_it_is():
    cine = make_dicom(np.concatenate([gradient(), gradient()]))
    cine.Rows, cine.NumberOfFrames = 48, 2
    with pytest.raises(UnreadableImage, match=r"^the image cannot be used: unsupported DICOM \(2 frames\)") as caught:
        decode_radiograph(to_bytes(cine))
    assert caught.value.reason == "unsupported DICOM"
    text = make_dicom(gradient())
    del text.PixelData, text.Rows, text.Columns
    assert reason_of(to_bytes(text)) == "unsupported DICOM"
    video = make_dicom(gradient())
    video.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    video.PixelData = encapsulate([b"\0" * 100])
    assert reason_of(to_bytes(video)) == "unsupported DICOM"


def test_a_dicom_cut_short_is_truncated():
    data = to_bytes(make_dicom(gradient(256, 256)))
    assert reason_of(data[: len(data) // 2]) == "truncated"
    damaged = make_dicom(gradient())
    damaged.file_meta.TransferSyntaxUID = RLELossless
    damaged.PixelData = encapsulate([b"\x01\0\0\0" * 40])
    assert reason_of(to_bytes(damaged)) in ("truncated", "damaged")


def test_no_warning_quotes_a_tag(recwarn):
    dataset = make_dicom(gradient())
    dataset.PatientBirthDate = "19700101"
    data = to_bytes(dataset).replace(b"19700101", b"Doe,Jane")
    decode_radiograph(data)
    assert not [warning for warning in recwarn if "Doe" in str(warning.message)]


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


def test_stretch_and_blank():
    np.testing.assert_allclose(stretch_range(np.array([[10, 20], [30, 20]])), [[0, 127.5], [255, 127.5]])
    assert (stretch_range(np.full((2, 2), 7)) == 0).all()
    assert is_blank(np.full((9, 9), 200, np.uint8))
    assert is_blank(np.full((9, 9), 200, np.uint8) + (np.arange(81) % 2).reshape(9, 9).astype(np.uint8))
    assert not is_blank(gradient())


# --- real files -----------------------------------------------------------------------------------------------------


def test_real_dicom_and_its_monochrome1_copy(real_data):
    normal = read_radiograph(real_data / REAL_DICOM)
    assert normal.shape == (1024, 1024)
    assert normal.dtype == np.uint8
    # The copy is tagged MONOCHROME1 without its pixels having been inverted, so it must read as the negative.
    np.testing.assert_array_equal(read_radiograph(real_data / "dicom/Fake_MONOHR1.dcm"), 255 - normal)
    packed = pydicom.dcmread(real_data / REAL_DICOM)
    jpeg = Image.open(io.BytesIO(next(pydicom.encaps.generate_frames(packed.PixelData, number_of_frames=1))))
    assert np.abs(np.asarray(jpeg.convert("L")).astype(int) - normal).max() <= 2


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
