import io

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless, generate_uid
from test_images_decode import encode, gradient, reason_of

from chexstudy.cohort.images import dicom
from chexstudy.cohort.images.decode import decode_radiograph, decode_remarked, read_bytes
from chexstudy.cohort.images.dicom import OWN_RANGE, apply_window
from chexstudy.cohort.images.unreadable import UnreadableImage

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


def make_picture(bits, dtype=np.uint16):
    """A smooth picture that takes the whole range of its bits, ``(64, 96)``, and its shares of that range."""
    y, x = np.mgrid[:64, :96]
    share = np.sin(x / 19) * np.cos(y / 13) + x / 150
    share = (share - share.min()) / np.ptp(share)
    return np.rint(share * (2**bits - 1)).astype(dtype), share


def make_table(data, entries, first=0, bits=16, kind="OW"):
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [entries, first, bits], data, "US"
    table["LUTDescriptor"].VR, table["LUTData"].VR = "SS" if first < 0 else "US", kind
    return table


def words(values):
    return np.rint(values).astype("<u2").tobytes()


def assert_shows(data, share, tolerance=0.6):
    """The file shows these shares of the full range, to within some grey levels of 255."""
    np.testing.assert_allclose(decode_radiograph(data), share * 255, atol=tolerance)


def test_the_content_decides_not_the_name(tmp_path):
    for name, data in (("a.png", to_bytes(make_dicom(gradient()))), ("a.dcm", encode(Image.fromarray(gradient())))):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(decode_radiograph(read_bytes(tmp_path / name)), gradient())


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
    assert (read.min(), read.max()) == (0, 255)


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


def test_voi_and_modality_tables_are_applied():
    stored = (np.arange(48 * 64) % 4).reshape(48, 64).astype(np.uint8)
    table = make_table(words([0, 10, 100, 255]), 4, bits=8)
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        read = decode_radiograph(to_bytes(make_dicom(stored, **{name: [table]})))
        np.testing.assert_allclose(read, np.array([0, 10, 100, 255])[stored], atol=1e-3)


RAMP = np.linspace(0, 1, 4096)
TABLES = {
    "16 bit said, 12 in the data": make_table(words(RAMP * 4095), 4096, bits=16),
    "14 bit said, 12 in the data": make_table(words(RAMP * 4095), 4096, bits=14),
    "10 bit said, 12 in the data": make_table(words(RAMP * 4095), 4096, bits=10),
    "8 bit said, 12 in the data": make_table(words(RAMP * 4095), 4096, bits=8),
    "16 bit said, 8 in the data": make_table(words(RAMP * 255), 4096, bits=16),
    "8 bit in words": make_table(words(RAMP * 255), 4096, bits=8),
    "8 bit in the upper half of words": make_table(words(np.rint(RAMP * 255) * 256), 4096, bits=8),
    "8 bit in bytes": make_table(np.rint(RAMP * 255).astype(np.uint8).tobytes(), 4096, bits=8),
    "no depth said": make_table(words(RAMP * 4095), 4096, bits=0),
    "more entries than said": make_table(words(np.tile(RAMP * 65535, 2)), 4096),
    "numbers in place of words": make_table(np.rint(RAMP * 65535).astype(int).tolist(), 4096, kind="US"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_voi_table_covers_the_full_range_whatever_depth_it_says(kind):
    stored, share = make_picture(12)
    assert_shows(to_bytes(make_dicom(stored, bits=12, VOILUTSequence=[TABLES[kind]])), share)


@pytest.mark.parametrize("kind", TABLES)
def test_a_modality_table_may_have_any_depth(kind):
    stored, share = make_picture(12)
    assert_shows(to_bytes(make_dicom(stored, bits=12, ModalityLUTSequence=[TABLES[kind]])), share)
    both = make_dicom(stored, bits=12, ModalityLUTSequence=[make_table(words(RAMP * 1023), 4096, bits=10)])
    both.VOILUTSequence = [make_table(words(np.arange(1024) ** 2 / 1023), 1024, bits=10)]
    np.testing.assert_allclose(decode_radiograph(to_bytes(both)), share**2 * 255, atol=0.9)


def test_the_first_value_of_a_table_has_the_sign_of_the_values():
    stored, share = make_picture(12)
    signed = stored.astype(np.int16) - np.int16(2048)
    for first in (-2048, 63488):
        table = make_table(words(RAMP * 4095), 4096, first, bits=12)
        assert_shows(to_bytes(make_dicom(signed, bits=12, VOILUTSequence=[table])), share)
        rescaled = make_dicom(stored, bits=12, VOILUTSequence=[table], RescaleSlope=1, RescaleIntercept=-2048)
        assert_shows(to_bytes(rescaled), share)
    high = make_dicom(stored + np.uint16(60000), VOILUTSequence=[make_table(words(RAMP * 4095), 4096, -5536, bits=12)])
    assert_shows(to_bytes(high), share)


def test_a_table_shorter_than_it_says_is_refused():
    dataset = make_dicom(make_picture(12)[0], bits=12, VOILUTSequence=[make_table(words(RAMP[:4000] * 4095), 4096)])
    with pytest.raises(UnreadableImage, match=r"damaged \(a look-up table of 4000 entries in place of 4096\)"):
        decode_radiograph(to_bytes(dataset))


@pytest.mark.parametrize(("bits", "most"), [(10, 12), (12, 16), (8, 16), (15, 16)])
def test_values_that_need_more_bits_than_are_said_are_whole(bits, most):
    stored, share = make_picture(most)
    assert_shows(to_bytes(make_dicom(stored, bits=bits)), share)
    signed = (stored.astype(int) - 2 ** (most - 1)).astype(np.int16)
    assert_shows(to_bytes(make_dicom(signed, bits=bits)), share)
    down = np.repeat(np.linspace(0, 1, 64)[:, None] ** 1.5, 96, axis=1)  # the same along each row
    assert_shows(to_bytes(make_dicom(np.rint(down * (2**most - 1)).astype(np.uint16), bits=bits)), down)
    # A few values beyond, too, must not wrap: a bright spot stays the brightest.
    stored = np.rint(share * (2**bits - 1)).astype(np.uint16)
    stored[20:24, 20:24] = 2**bits + 50
    assert decode_radiograph(to_bytes(make_dicom(stored, bits=bits)))[20:24, 20:24].min() == 255


def test_old_overlays_above_the_stored_bits_are_no_part_of_the_values():
    stored, share = make_picture(12)
    overlay = np.zeros_like(stored)
    overlay[20:40, 10:60] = 1
    for bit in (12, 15):
        assert_shows(to_bytes(make_dicom(stored | overlay << bit, bits=12)), share)
    signed = (stored.astype(np.int16) - np.int16(2048)) & np.int16(0xFFF) | (overlay << 12).astype(np.int16)
    assert_shows(to_bytes(make_dicom(signed, bits=12)), share)


def test_stored_bits_lie_where_the_high_bit_says_unless_the_values_say_otherwise():
    stored, share = make_picture(12)
    junk = np.random.default_rng(0).integers(0, 16, stored.shape, np.uint16)
    assert_shows(to_bytes(make_dicom(stored << 4 | junk, bits=12, HighBit=15)), share)
    assert_shows(to_bytes(make_dicom(stored << 2, bits=12, HighBit=13)), share)
    for wrong in (15, 7):
        assert_shows(to_bytes(make_dicom(stored, bits=12, HighBit=wrong)), share)
    signed = (stored.astype(np.int32) - 2048 << 4).astype(np.int16)
    assert_shows(to_bytes(make_dicom(signed, bits=12, HighBit=15)), share)


def test_bits_that_make_no_picture_are_refused():
    noise = np.random.default_rng(0).integers(0, 65536, (64, 96)).astype(np.uint16)
    with pytest.raises(UnreadableImage, match=r"damaged \(values beyond the 12 bits stored\)"):
        decode_radiograph(to_bytes(make_dicom(noise, bits=12)))


def test_padding_is_black_and_does_not_stretch_the_range():
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        stored = gradient(top=1000, dtype=np.int16) + np.int16(100)
        stored[:, :10] = -2000
        dataset = make_dicom(stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        read = decode_radiograph(to_bytes(dataset))
        assert (read[:, :10] == 0).all()
        assert (read[:, 10:].min(), read[:, 10:].max()) == (0, 255)


def with_padding(stored, kind, value, bits=16, **tags):
    dataset = make_dicom(stored, bits=bits, **tags)
    dataset.add_new("PixelPaddingValue", kind, value)
    return to_bytes(dataset)


def test_padding_is_left_out_however_its_sign_is_written():
    picture, share = make_picture(10)
    hit = share > 0.2
    expected = np.where(hit, (picture - picture[hit].min()) / np.ptp(picture[hit]) * 255, 0)
    signed, unsigned = np.where(hit, picture, -2000).astype(np.int16), np.where(hit, picture, 63536).astype(np.uint16)
    files = [with_padding(signed, kind, value) for kind, value in (("US", 63536), ("SS", -2000), ("OW", b"\x30\xf8"))]
    files += [
        with_padding(unsigned, kind, value, bits) for kind, value in (("US", 63536), ("SS", -2000)) for bits in (16, 12)
    ]
    ranged = np.where(hit, picture, np.where(share > 0.1, -1950, -2000)).astype(np.int16)
    files += [with_padding(ranged, "US", 63536, PixelPaddingRangeLimit=-1900)]
    for data in files:
        np.testing.assert_allclose(decode_radiograph(data), expected, atol=1e-2)


def test_a_marker_leaves_the_anatomy_its_levels():
    stored, share = make_picture(12)
    for marker, dtype in ((65535, np.uint16), (-20000, np.int16)):
        marked = stored.astype(dtype)
        marked[:8, :12] = marker
        read = decode_radiograph(to_bytes(make_dicom(marked)))
        rest = np.ones(stored.shape, bool)
        rest[:8, :12] = False
        expected = (share - share[rest].min()) / np.ptp(share[rest]) * 255
        np.testing.assert_allclose(read[rest], expected[rest], atol=0.1)
        assert (read[:8, :12] == (255 if marker > 0 else 0)).all()


@pytest.mark.parametrize(
    ("bits", "tags"),
    [
        (12, {"WindowCenter": -600, "WindowWidth": 1500}),
        (12, {"WindowCenter": 9000, "WindowWidth": 400}),
        (8, {"WindowCenter": 2048, "WindowWidth": 4096}),
        (12, {"VOILUTSequence": [make_table(words(np.arange(100) * 40), 100, 5000)]}),
    ],
)
def test_what_misses_the_values_gives_way_to_their_own_range_and_is_remarked(bits, tags):
    stored, share = make_picture(bits, np.uint8 if bits == 8 else np.uint16)
    image, remark = decode_remarked(to_bytes(make_dicom(stored, bits=bits, **tags)))
    np.testing.assert_allclose(image, share * 255, atol=0.6)
    assert remark == OWN_RANGE
    assert decode_remarked(to_bytes(make_dicom(stored, bits=bits)))[1] == ""


@pytest.mark.parametrize(
    ("centre", "width"),
    [(50, 1), (2048, 0), (2048, -5), ("", ""), (2048, ""), ([10, 2047.5], [0, 4096]), (["", "2047.5"], ["", "4096"])],
)
def test_the_first_usable_window_counts_and_without_one_the_range(centre, width):
    stored, share = make_picture(12)
    assert_shows(to_bytes(make_dicom(stored, bits=12, WindowCenter=centre, WindowWidth=width)), share)


@pytest.mark.parametrize("number", [b"NaN   ", b"inf   ", b"abc   ", b"      "])
def test_windows_and_slopes_that_are_no_numbers_are_left_out(number):
    stored, share = make_picture(12)
    windowed = to_bytes(make_dicom(stored, bits=12, WindowCenter="2048.0", WindowWidth="4096.0"))
    rescaled = to_bytes(make_dicom(stored, bits=12, RescaleSlope="4.0000", RescaleIntercept="-10.00"))
    for written in (b"2048.0", b"4096.0", b"4.0000", b"-10.00"):
        assert_shows((windowed if written in windowed else rescaled).replace(written, number), share)
    assert_shows(to_bytes(make_dicom(stored, bits=12, RescaleSlope=0, RescaleIntercept=5)), share)


@pytest.mark.parametrize("word", ["monochrome1 ", "Monochrome1", "MONOCHROME 1"])
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_words_of_the_header_may_have_any_case_and_blanks(word):
    stored, share = make_picture(12)
    assert_shows(to_bytes(make_dicom(stored, bits=12, PhotometricInterpretation=word)), 1 - share)
    window = {"WindowCenter": 1500, "WindowWidth": 900}
    for function in ("sigmoid", "Sigmoid ", "SIGMOID"):
        expected = 1 / (1 + np.exp(-4 * (stored.astype(float) - 1500) / 900))
        assert_shows(to_bytes(make_dicom(stored, bits=12, VOILUTFunction=function, **window)), expected)
    exact = ((stored - 1500.0) / 900 + 0.5).clip(0, 1)
    assert_shows(to_bytes(make_dicom(stored, bits=12, VOILUTFunction="Linear exact", **window)), exact)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_colours_become_grey_of_the_full_range(bits):
    stored, share = make_picture(bits)
    assert_shows(to_bytes(make_dicom(np.repeat(stored[..., None], 3, axis=2), bits=bits)), share)
    plain = make_dicom(np.repeat(gradient()[..., None], 3, axis=2))
    np.testing.assert_array_equal(decode_radiograph(to_bytes(plain)), gradient())


def make_palette(stored, entries, bits, data, size=None):
    dataset = make_dicom(stored, bits=size, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [entries, 0, bits])
        dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", data)
    return to_bytes(dataset)


def test_palettes_of_any_depth_and_length():
    stored, share = make_picture(8, np.uint8)
    for bits, data in (
        (8, np.arange(256, dtype=np.uint8).tobytes()),
        (8, words(np.arange(256))),
        (16, words(np.arange(256) * 257)),
        (16, words(np.arange(256) * 16)),
    ):
        assert_shows(make_palette(stored, 256, bits, data), share)
    stored, share = make_picture(12)
    assert_shows(make_palette(stored, 4096, 8, np.rint(RAMP * 255).astype(np.uint8).tobytes(), 12), share, 1.1)


COMPRESSED = {
    "JPEG baseline": (gdcm.TransferSyntax.JPEGBaselineProcess1, np.uint8, 4),
    "JPEG lossless": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, np.uint16, 0),
    "JPEG-LS": (gdcm.TransferSyntax.JPEGLSLossless, np.uint16, 0),
    "JPEG 2000": (gdcm.TransferSyntax.JPEG2000Lossless, np.uint16, 0),
    "RLE": (gdcm.TransferSyntax.RLELossless, np.uint16, 0),
}


def pack(dataset, code, folder):
    """The dataset compressed by gdcm, which leaves ``plain.dcm`` and ``packed.dcm`` in the folder."""
    (folder / "plain.dcm").write_bytes(to_bytes(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(code))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return pydicom.dcmread(folder / "packed.dcm")


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_transfer_syntaxes(syntax, tmp_path):
    code, dtype, tolerance = COMPRESSED[syntax]
    bits = 8 if dtype == np.uint8 else 12
    dataset = make_dicom(gradient(64, 64, 2**bits - 1, dtype), bits=bits)
    packed = pack(dataset, code, tmp_path)
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    plain, read = (decode_radiograph(read_bytes(tmp_path / name)).astype(float) for name in ("plain.dcm", "packed.dcm"))
    assert np.abs(plain - read).max() <= tolerance
    data = (tmp_path / "packed.dcm").read_bytes()
    assert reason_of(data[: len(data) - len(packed.PixelData) // 2]) in ("truncated", "damaged")


@pytest.mark.parametrize("syntax", [name for name in COMPRESSED if name != "JPEG baseline"])
def test_a_compressed_frame_says_its_bits_and_its_size_itself(syntax, tmp_path):
    stored, share = make_picture(12)
    packed = pack(make_dicom(stored, bits=12), COMPRESSED[syntax][0], tmp_path)
    for bits in (8, 10):
        packed.BitsStored, packed.HighBit = bits, bits - 1
        assert_shows(to_bytes(packed), share)
    packed.Rows = 200
    assert reason_of(to_bytes(packed)) == "damaged"


def test_dicom_that_is_not_one_radiograph_says_what_it_is():
    cine = make_dicom(np.concatenate([gradient(), gradient()]))
    cine.Rows, cine.NumberOfFrames = 48, 2
    with pytest.raises(UnreadableImage, match=r"^the image cannot be used: unsupported DICOM \(2 frames\)") as caught:
        decode_radiograph(to_bytes(cine))
    assert caught.value.reason == "unsupported DICOM"
    text = make_dicom(gradient())
    del text.PixelData, text.Rows, text.Columns
    assert reason_of(to_bytes(text)) == "unsupported DICOM"
    measured = make_dicom(gradient())
    measured.FloatPixelData = gradient(dtype=np.float32).tobytes()
    del measured.PixelData
    assert reason_of(to_bytes(measured)) == "unsupported DICOM"
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


@pytest.mark.parametrize("word", ["HSV", "GREY", ""])
def test_what_is_neither_grey_nor_a_known_colour_model_is_refused(word):
    pixels = np.repeat(gradient()[..., None], 3, axis=2)
    assert reason_of(to_bytes(make_dicom(pixels, PhotometricInterpretation=word))) == "unsupported DICOM"


def test_what_would_take_all_memory_is_refused_before_it_is_unpacked():
    wide = make_dicom(gradient(), Rows=65535, Columns=65535)
    wide.file_meta.TransferSyntaxUID = RLELossless
    wide.PixelData = encapsulate([b"\1" * 64])
    long = make_dicom(gradient())
    long.add_new(0x00091010, "OB", bytes(17 * 2**20))
    for dataset, detail in ((wide, "65535 x 65535 pixels"), (long, "a header of more than 16 MiB")):
        with pytest.raises(UnreadableImage) as caught:
            decode_radiograph(to_bytes(dataset))
        assert (caught.value.reason, caught.value.detail) == ("too large", detail)


def test_a_deflated_file_is_unpacked_no_further_than_the_limit(monkeypatch):
    dataset = make_dicom(gradient())
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(decode_radiograph(to_bytes(dataset)), gradient())
    monkeypatch.setattr(dicom, "_LARGEST_INFLATED", 1000)
    assert reason_of(to_bytes(dataset)) == "too large"


def test_no_warning_quotes_a_tag(recwarn):
    dataset = make_dicom(gradient())
    dataset.PatientBirthDate = "19700101"
    data = to_bytes(dataset).replace(b"19700101", b"Doe,Jane")
    decode_radiograph(data)
    assert not [warning for warning in recwarn if "Doe" in str(warning.message)]


def test_real_dicom_and_its_monochrome1_copy(real_data):
    normal = decode_radiograph(read_bytes(real_data / REAL_DICOM))
    assert normal.shape == (1024, 1024)
    assert normal.dtype == np.uint8
    # The copy is tagged MONOCHROME1 without its pixels having been inverted, so it must read as the negative.
    np.testing.assert_array_equal(decode_radiograph(read_bytes(real_data / "dicom/Fake_MONOHR1.dcm")), 255 - normal)
    packed = pydicom.dcmread(real_data / REAL_DICOM)
    jpeg = Image.open(io.BytesIO(next(pydicom.encaps.generate_frames(packed.PixelData, number_of_frames=1))))
    assert np.abs(np.asarray(jpeg.convert("L")).astype(int) - normal).max() <= 2
