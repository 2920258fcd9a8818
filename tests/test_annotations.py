import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, list_annotations
from chexstudy.cohort.annotations import (
    ANNOTATIONS,
    Box,
    MaskFile,
    build_annotations,
    decode_mask,
    encode_mask,
    fit_mask,
    make_outline,
    measure_lesion_sizes,
    read_masks,
    read_regions,
    write_annotations,
)
from chexstudy.cohort.images.decode import fit_square
from chexstudy.errors import StudyError
from chexstudy.runs import Run

FINDINGS = ["No Finding", "Nodule", "Mass"]
SIZE = 32


def make_rows():
    labels = {"No Finding": [0, 0, 0, 1], "Nodule": [1, 1, -1, 0], "Mass": [0, 1, 0, None]}
    labels = {name: pd.array(values, dtype="Int8") for name, values in labels.items()}
    return pd.DataFrame({"image_id": [f"x/{number}" for number in range(4)], "source": "x", **labels})


def square(top, left, side=8):
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def run(home):
    return Run("annotated")


# --- masks as runs ----------------------------------------------------------------------------------------------------


def test_one_mask_written_by_hand():
    mask = np.array([[0, 1, 1], [1, 0, 0]], dtype=bool)
    assert encode_mask(mask).tolist() == [1, 3, 2]
    assert encode_mask(~mask).tolist() == [0, 1, 3, 2]
    assert encode_mask(np.zeros((2, 2), bool)).tolist() == [4]
    assert encode_mask(np.ones((2, 2), bool)).tolist() == [0, 4]
    with pytest.raises(StudyError, match="add up to 5 pixels, not to 2 x 3"):
        decode_mask(np.array([2, 3]), 2, 3)


def test_masks_come_back_as_they_went(run):
    generator = np.random.default_rng(0)
    masks = {f"structure {k}": generator.random((11, 17)) < share for k, share in enumerate((0.0, 0.1, 0.5, 1.0))}
    write_annotations(
        (make_outline(image, name, mask) for image in ("a", "b") for name, mask in masks.items()), run.path(ANNOTATIONS)
    )
    back = read_masks(run, ["b", "c"])
    assert all(np.array_equal(back["b"][name], mask) for name, mask in masks.items())
    assert back["c"] == {}


@pytest.mark.parametrize(("shape", "fit"), [((60, 100), "crop"), ((60, 100), "pad"), ((100, 70), "crop")])
def test_a_mask_lies_where_its_image_lies(shape, fit):
    generator = np.random.default_rng(0)
    top, left = generator.integers(20, 30, 2)
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + 20, left : left + 25] = True
    image = np.where(mask, 255, 0).astype(np.uint8)
    shown = fit_square(image, 32, fit) > 127
    np.testing.assert_array_equal(fit_mask(mask, 32, fit), shown)


def test_a_tiny_region_is_kept_and_one_outside_the_crop_is_not():
    tiny = np.zeros((400, 400), dtype=bool)
    tiny[203, 101] = True
    fitted = fit_mask(tiny, 40, "crop")
    assert np.argwhere(fitted).tolist() == [[20, 10]]
    outside = np.zeros((100, 300), dtype=bool)
    outside[40:60, :30] = True
    assert not fit_mask(outside, 40, "crop").any()
    assert fit_mask(outside, 40, "pad").any()


# --- regions of findings ----------------------------------------------------------------------------------------------


def test_outlines_of_present_findings_are_taken_whatever_their_order(run):
    masks = [("x/1", "Mass", square(8, 8)), ("x/0", "heart", square(0, 0)), ("x/0", "Nodule", square(4, 4))]
    masks += [(image_id, "Nodule", square(0, 0)) for image_id in ("x/2", "x/3", "x/9")]
    write_annotations([make_outline(*one) for one in masks], run.path(ANNOTATIONS))
    regions = read_regions(run, make_rows(), FINDINGS, SIZE, "crop")
    # The nodules of x/2 and x/3 are labelled uncertain and absent, and x/9 is not in the cohort.
    assert regions.table[["image_id", "finding"]].to_numpy().tolist() == [["x/0", "Nodule"], ["x/1", "Mass"]]
    np.testing.assert_array_equal(regions.mask("x/0", "Nodule"), square(4, 4))
    assert regions.mask("x/0", "Mass") is None
    half = read_regions(run, make_rows(), FINDINGS, SIZE // 2, "crop").mask("x/0", "Nodule")
    assert np.argwhere(half).min(axis=0).tolist() == [2, 2]
    assert np.argwhere(half).max(axis=0).tolist() == [5, 5]


def test_boxes_of_one_finding_are_one_region_within_the_picture(run):
    boxes = [(-2.0, 0.0, 6.0, 4.0), (15.6, 20.4, 4.0, 40.0)]
    build_annotations(run, [Box("x/0", "Nodule", box, (SIZE, SIZE)) for box in boxes])
    expected = np.zeros((SIZE, SIZE), dtype=bool)
    expected[0:4, 0:4] = True
    expected[20:32, 16:20] = True
    np.testing.assert_array_equal(read_masks(run, ["x/0"])["x/0"]["Nodule"], expected)
    assert read_regions(run, make_rows(), FINDINGS, SIZE, "crop").kind == "finding"


def test_lungs_stand_in_where_no_finding_has_an_outline(run, tmp_path):
    sides = {"left lung": square(8, 20), "right lung": square(8, 4)}
    for side, mask in sides.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{side}.png")
    listed = [MaskFile("x/1", side, tmp_path / f"{side}.png") for side in sides]
    build_annotations(run, listed)
    regions = read_regions(run, make_rows(), FINDINGS, SIZE, "crop")
    assert (regions.kind, regions.missing) == ("lungs", "")
    assert regions.table[["image_id", "finding"]].to_numpy().tolist() == [["x/1", "Nodule"], ["x/1", "Mass"]]
    np.testing.assert_array_equal(regions.mask("x/1", "Mass"), square(8, 4) | square(8, 20))
    written = run.path(ANNOTATIONS).stat().st_mtime_ns
    build_annotations(run, listed)
    assert run.path(ANNOTATIONS).stat().st_mtime_ns == written
    (tmp_path / "left lung.png").write_bytes(b"no picture")
    with pytest.raises(StudyError, match=r"the mask .*left lung\.png cannot be read"):
        build_annotations(run, listed)


def test_where_nothing_is_known_one_sentence_says_so(run):
    with pytest.raises(StudyError, match=r"has no annotations\.parquet yet"):
        read_regions(run, make_rows(), FINDINGS, SIZE, "crop")
    build_annotations(run, [])
    regions = read_regions(run, make_rows(), FINDINGS, SIZE, "crop")
    assert regions.table.empty
    assert regions.missing.startswith("nothing is known of where findings are on images of x: ")
    assert measure_lesion_sizes(regions).empty


def test_lesion_sizes_are_medians_smallest_first(run):
    masks = [("x/0", "Nodule", square(0, 0)), ("x/1", "Nodule", square(16, 8)), ("x/1", "Mass", square(0, 0, 16))]
    write_annotations([make_outline(*one) for one in masks], run.path(ANNOTATIONS))
    sizes = measure_lesion_sizes(read_regions(run, make_rows(), FINDINGS, SIZE, "pad"))
    assert list(sizes.items()) == [("Nodule", 1 / 16), ("Mass", 1 / 4)]


def test_the_boxes_and_lungs_of_real_radiographs(run, real_data):
    rows = build_source("nih", real_data / "nih", seed=0)
    listed = list_annotations("nih", real_data / "nih", set(rows.image_id))
    assert {box.structure for box in listed} <= set(rows.columns)
    assert all(box.box[0] + box.box[2] <= 1024 for box in listed)
    build_annotations(run, listed)
    regions = read_regions(run, rows, ["Pneumonia", "Cardiomegaly"], 96, "crop")
    # x 337.9, y 509.6, width 417.6 and height 403.5 of 1024 pixels, at 96.
    corners = np.argwhere(regions.mask("nih/00008365_000.png", "Cardiomegaly"))
    np.testing.assert_allclose(corners.min(axis=0), [509.6 * 96 / 1024, 337.9 * 96 / 1024], atol=1)
    np.testing.assert_allclose(corners.max(axis=0), [913.1 * 96 / 1024, 755.5 * 96 / 1024], atol=1)
    positives = rows.set_index("image_id")
    assert all(positives.at[case.image_id, case.finding] == 1 for case in regions.table.itertuples())
    assert len(regions.table) > 10

    rows = build_source("nlm_tb", real_data / "nlm_tb", seed=0)
    listed = list_annotations("nlm_tb", real_data / "nlm_tb", set(rows.image_id))
    assert len(listed) == 401
    build_annotations(run, [mask for mask in listed if mask.image_id in set(rows.image_id[::6])])
    regions = read_regions(run, rows, ["No Finding", "Tuberculosis"], 96, "crop")
    assert set(regions.table.finding) == {"Tuberculosis"}
    assert set(regions.table.image_id) <= set(rows.image_id[rows.Tuberculosis == 1])
    assert regions.table["mask"].map(np.mean).between(0.05, 0.6).all()
