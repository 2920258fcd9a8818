import io

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from test_images import encode, gradient, reason_of

from chexstudy.cohort.dicom import apply_window
from chexstudy.cohort.images import decode_radiograph, read_radiograph
from chexstudy.cohort.unreadable import UnreadableImage

REAL_DICOM = "dicom/1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"


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


def test_the_content_decides_not_the_name(tmp_path):
    dicom_as_png = tmp_path / "a.png"
    dicom_as_png.write_bytes(to_bytes(make_dicom(gradient())))
    png_as_dicom = tmp_path / "a.dcm"
    png_as_dicom.write_bytes(encode(Image.fromarray(gradient())))
    np.testing.assert_array_equal(read_radiograph(dicom_as_png), gradient())
    np.testing.assert_array_equal(read_radiograph(png_as_dicom), gradient())


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


def test_real_dicom_and_its_monochrome1_copy(real_data):
    normal = read_radiograph(real_data / REAL_DICOM)
    assert normal.shape == (1024, 1024)
    assert normal.dtype == np.uint8
    # The copy is tagged MONOCHROME1 without its pixels having been inverted, so it must read as the negative.
    np.testing.assert_array_equal(read_radiograph(real_data / "dicom/Fake_MONOHR1.dcm"), 255 - normal)
    packed = pydicom.dcmread(real_data / REAL_DICOM)
    jpeg = Image.open(io.BytesIO(next(pydicom.encaps.generate_frames(packed.PixelData, number_of_frames=1))))
    assert np.abs(np.asarray(jpeg.convert("L")).astype(int) - normal).max() <= 2
