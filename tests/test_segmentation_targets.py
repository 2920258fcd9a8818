"""What is known of where structures are, masks on the store's images and on the original ones, and the way between."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import test_adapters_masks as fixtures
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from chexstudy.cohort.adapters import build_source, list_annotations
from chexstudy.cohort.annotations import ANNOTATIONS, fit_mask, make_outline, restore, write_annotations
from chexstudy.cohort.images.decode import fit_square, read_dimensions
from chexstudy.cohort.images.unreadable import UnreadableImage
from chexstudy.cohort.source_annotations import Box, build_annotations
from chexstudy.evaluation.segmentation.targets import choose_structures, read_targets
from chexstudy.runs import Run

SIZE = 32


def square(top, left, side=8, size=(SIZE, SIZE)):
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def run(home):
    return Run("outlined")


def open_evaluation(run, rows, findings=("Nodule",), size=SIZE, fit="pad"):
    return SimpleNamespace(
        run=run, training=rows, findings=list(findings), store=SimpleNamespace(size=size, fit=fit), cohort=rows
    )


def make_rows(count=4, **labels):
    table = {"image_id": [f"x/{number}" for number in range(count)], "source": "x", "image_path": "gone.png"}
    table["patient_id"] = [f"x/p{number // 2}" for number in range(count)]
    return pd.DataFrame(table | {name: pd.array(values, dtype="Int8") for name, values in labels.items()})


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (97, 64), (512, 512), (20, 31)])
def test_a_mask_comes_back_to_where_it_was(shape, fit):
    """A disc's logits on the store's square, brought back, outline the disc on the original film."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    centre, radius = (shape[0] * 0.45, shape[1] * 0.55), min(shape) * 0.3
    inside = radius - np.hypot(rows + 0.5 - centre[0], columns + 0.5 - centre[1])
    disc = inside > 0
    shown = fit_square(np.clip(127.5 + 4 * inside, 0, 255).astype(np.float32), 64, fit)
    back = restore(np.stack([shown - 127.5] * 2)[None], shape, fit)
    assert (back.shape, back.dtype) == ((1, 2, *shape), np.float32)
    found = back[0, 1] > 0
    assert 2 * (found & disc).sum() / (found.sum() + disc.sum()) > 0.98
    np.testing.assert_allclose(np.argwhere(found).mean(axis=0), np.argwhere(disc).mean(axis=0), atol=0.01 * max(shape))
    # What a crop has cut off says no.
    seen = np.isfinite(back[0, 0])
    assert (back[0, 0][~seen] == -np.inf).all()
    expected = shape if fit == "pad" else (min(shape), min(shape))
    assert (seen.sum(axis=0).max(), seen.sum(axis=1).max()) == pytest.approx(expected, abs=1 + min(shape) / 64)


def test_nothing_is_resized_where_the_store_has_the_original_size():
    mask = np.random.default_rng(0).random((SIZE, SIZE)) > 0.5
    for fit in ("crop", "pad"):
        np.testing.assert_array_equal(restore(fit_mask(mask, SIZE, fit), mask.shape, fit) > 0.5, mask)


# --- what is known ----------------------------------------------------------------------------------------------------


def test_what_is_known_and_what_is_not(run):
    rows = make_rows(6, Nodule=[1, 1, 0, 0, -1, None], Mass=[0, 0, 0, 0, 0, 1])
    drawn = [("x/0", "Nodule"), ("x/3", "Nodule"), ("x/4", "Nodule"), ("x/5", "Nodule")]
    drawn += [("x/0", "heart"), *((f"x/{n}", f"{side} lung") for n in (0, 1) for side in ("right", "left"))]
    masks = [make_outline(*one, square(4, 4)) for one in (*drawn, ("x/2", "left lung"))]
    masks += [make_outline("x/1", "heart", square(0, 0, 0)), make_outline("x/3", "lungs", square(2, 2))]
    write_annotations([*masks, Box("x/1", "Nodule", (1, 1, 5, 5), (SIZE, SIZE)).read()], run.path(ANNOTATIONS))
    structures = ["Nodule", "Mass", "heart", "lungs", "left lung"]
    targets = read_targets(open_evaluation(run, rows), rows, structures)
    outlined, empty, unknown = "outlined", "empty", "unknown"
    assert targets.states.T.tolist() == [
        # Outlined; only a box; absent; absent but outlined; uncertain; not stated but outlined.
        [outlined, unknown, empty, unknown, unknown, outlined],
        [*[empty] * 5, unknown],
        [outlined, empty, *[unknown] * 4],
        # Both sides; both; the left one alone; as one.
        [outlined, outlined, unknown, outlined, unknown, unknown],
        [outlined, outlined, outlined, unknown, unknown, unknown],
    ]
    assert targets.count().loc["Nodule"].to_dict() == {"outlined": 2, "empty": 1, "unknown": 3}
    assert targets.known.sum() == (targets.states != "unknown").sum()
    assert set(targets.draw(2)) == {"Nodule", "Mass", "left lung"}
    np.testing.assert_array_equal(targets.draw(3)["lungs"], square(2, 2))
    np.testing.assert_array_equal(targets.masks[0, 3], square(4, 4))
    assert not targets.masks[~(targets.states == outlined)].any()


def test_structures_need_enough_patients_and_lungs_are_two_where_they_can_be(run):
    rows = make_rows(8, Nodule=[1] * 8)
    masks = [make_outline(f"x/{n}", f"{side} lung", square(4, 4)) for n in range(8) for side in ("right", "left")]
    masks += [make_outline(f"x/{n}", "Nodule", square(4, 4)) for n in (0, 1, 2)]
    write_annotations(masks, run.path(ANNOTATIONS))
    evaluation = open_evaluation(run, rows)
    assert choose_structures(evaluation, 4) == {"left lung": "organ", "right lung": "organ"}
    # Three images of two patients.
    assert choose_structures(evaluation, 2) == {"left lung": "organ", "right lung": "organ", "Nodule": "finding"}
    assert choose_structures(evaluation, 3) == {"left lung": "organ", "right lung": "organ"}
    masks = [make_outline(f"x/{n}", "lungs", square(4, 4)) for n in range(8)] + masks[:2]
    write_annotations(masks, run.path(ANNOTATIONS))
    assert choose_structures(evaluation, 4) == {"lungs": "organ"}


# --- sizes ------------------------------------------------------------------------------------------------------------


def save_dicom(path, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in tags.items():
        setattr(image, name, value)
    image.save_as(path, enforce_file_format=False)


def test_dimensions_are_read_off_headers(tmp_path):
    picture = Image.fromarray(np.zeros((30, 50), np.uint8))
    picture.save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "b.jpg", exif=turned)
    save_dicom(tmp_path / "c", Rows=300, Columns=500, ImagerPixelSpacing=["0.143", "0.143"])
    save_dicom(tmp_path / "d", Rows=300, Columns=500)
    (tmp_path / "e.IMG").write_bytes(bytes(2 * 2048**2))
    found = {path.stem: read_dimensions(path) for path in tmp_path.iterdir()}
    assert {name: size for name, (*size, _) in found.items()} == {
        **{"a": [30, 50], "b": [50, 30], "c": [300, 500], "d": [300, 500], "e": [2048, 2048]}
    }
    assert {name: spacing for name, (*_, spacing) in found.items() if spacing > 0} == {"c": 0.143}
    (tmp_path / "f.png").write_bytes(b"nothing")
    save_dicom(tmp_path / "g")
    for name in ("f.png", "g", "h.png"):
        with pytest.raises(UnreadableImage):
            read_dimensions(tmp_path / name)


def test_masks_have_the_size_of_the_original_as_it_lies_upright(run, tmp_path):
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "a.png")
    rows = make_rows(1).assign(image_path=str(tmp_path / "a.png"))
    small = square(2, 4, 6, (20, 30))
    write_annotations([make_outline("x/0", "heart", small)], run.path(ANNOTATIONS))
    targets = read_targets(open_evaluation(run, rows), rows, ["heart"])
    np.testing.assert_array_equal(targets.draw(0)["heart"], np.kron(small, np.ones((2, 2), bool)))
    run.write_table("pixels/index.parquet", pd.DataFrame({"image_id": ["x/0"], "turned": ["rotated 90"]}))
    targets = read_targets(open_evaluation(run, rows), rows, ["heart"])
    assert targets.sizes.tolist() == [[60, 40]]
    np.testing.assert_array_equal(targets.draw(0)["heart"], np.rot90(np.kron(small, np.ones((2, 2), bool))))


# --- public data sets -------------------------------------------------------------------------------------------------


def read_fixture(run, source, folder, structures, listed=None):
    rows = build_source(source, folder, 0)
    build_annotations(run, [*list_annotations(source, folder, set(rows.image_id)), *(listed or [])])
    return read_targets(open_evaluation(run, rows), rows, structures)


def test_ribs_of_vindr(run, tmp_path):
    targets = read_fixture(run, "vindr_ribcxr", fixtures.make_ribs(tmp_path), ["right rib 2", "left rib 2"])
    # A rib without a polygon is not known to be nowhere.
    assert targets.states.tolist() == [["outlined", "unknown"]] * 2
    assert targets.sizes.tolist() == [[60, 50]] * 2
    assert targets.draw(0)["right rib 2"].sum() == 26 * 16


def test_pneumothoraces_of_siim(run, tmp_path):
    folder = fixtures.make_siim(tmp_path)
    for path in folder.rglob("*.dcm"):
        save_dicom(path, Rows=1024, Columns=1024, PixelSpacing=["0.168", "0.168"])
    targets = read_fixture(run, "siim_acr", folder, ["Pneumothorax"])
    assert targets.states.tolist() == [["empty"], ["outlined"]]
    assert targets.sizes.tolist() == [[1024, 1024]] * 2
    assert targets.spacing.tolist() == [0.168] * 2
    assert targets.draw(1)["Pneumothorax"].sum() == 11
    assert not targets.draw(0)["Pneumothorax"].any()


def test_jsrt_with_the_masks_of_scr_in_millimetres(run, tmp_path):
    folder, masks = fixtures.make_jsrt(tmp_path / "jsrt"), tmp_path / "scr/fold1/masks"
    for structure in ("heart", "left lung", "right lung"):
        (masks / structure).mkdir(parents=True)
        Image.fromarray(square(200, 300, 400, (1024, 1024)).astype(np.uint8) * 255).save(
            masks / structure / "JPCLN001.gif"
        )
    ids = {"jsrt/JPCLN001"}
    structures = ["heart", "lungs", "Nodule"]
    targets = read_fixture(run, "jsrt", folder, structures, list_annotations("scr", tmp_path / "scr", ids))
    # A nodule's circle is a box, and who has none has no outline.
    assert targets.states.tolist() == [["outlined"] * 2 + ["unknown"], ["unknown"] * 3, ["unknown", "unknown", "empty"]]
    assert targets.spacing == pytest.approx([0.175] * 3)
    np.testing.assert_array_equal(targets.draw(0)["lungs"], square(400, 600, 800, (2048, 2048)))


def test_chexmask_on_images_of_nih(run, tmp_path):
    folder = fixtures.make_chexmask(tmp_path)
    rows = make_rows(3).assign(image_id=[f"nih/9000000{n}_000.png" for n in (1, 2, 3)], source="nih")
    build_annotations(run, list_annotations("chexmask", folder, set(rows.image_id)))
    targets = read_targets(open_evaluation(run, rows), rows, ["heart", "left lung", "right lung", "lungs"])
    assert targets.states.tolist() == [["outlined"] * 4, ["unknown"] * 4, ["outlined"] * 2 + ["unknown"] * 2]
    # The image is not there: its size is that of the mask.
    assert targets.sizes[0].tolist() == [5, 6]
    assert np.argwhere(targets.draw(0)["right lung"]).tolist() == [[3, 2]]
