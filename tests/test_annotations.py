import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, list_annotations
from chexstudy.cohort.annotations import (
    ANNOTATIONS,
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
from chexstudy.cohort.source_annotations import Box, MaskFile, Polygon, RunLengths, build_annotations
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


# --- what cannot be a mask of its image -------------------------------------------------------------------------------


def save_mask(path, values):
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)
    return MaskFile("x/0", "heart", path)


def draw_lung(shape=(120, 90)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return ((rows - 60) / 50) ** 2 + ((columns - 45) / 25) ** 2 < 1


def tell_runs(mask, way):
    """Runs of a mask as SIIM (gaps) or CheXmask (starts) tell them, pixel by pixel."""
    flat = [bool(one) for one in (mask.T if way == "gaps" else mask).reshape(-1)]
    numbers, end = [], 0
    for start, inside in enumerate(flat):
        if inside and not (start and flat[start - 1]):
            length = next((n for n, one in enumerate(flat[start:]) if not one), len(flat) - start)
            numbers += [start - end if way == "gaps" else start + 1, length]
            end = start + length
    return " ".join(map(str, numbers))


def as_runs(way, told=None, exchanged=False):
    shape = (90, 120) if exchanged else (120, 90)
    return lambda folder: [RunLengths("x/0", "heart", tell_runs(draw_lung(), told or way), shape, "t.csv: line 2", way)]


def as_polygon(*corners):
    return lambda folder: [Polygon("x/0", "heart", (corners,), (120, 90))]


def as_mask(values, name="m.png"):
    return lambda folder: [save_mask(folder / name, values)]


THREE = np.where(draw_lung(), 255, 0)
THREE[50:60, 40:50] = 128
LABELS = np.where(draw_lung(), 1, 0) + np.where(np.arange(90) > 45, 1, 0)
RAMP = np.tile(np.linspace(0, 255, 90), (120, 1))


def on_both_sides(*sides):
    """Lungs of six images, that of the first side on the left of the picture."""

    def listed(folder):
        for side, columns in zip(sides, (np.arange(90) < 40, np.arange(90) > 50), strict=True):
            save_mask(folder / f"{side}.png", np.tile(columns, (120, 1)) * 255)
        return [MaskFile(f"x/{n}", f"{side} lung", folder / f"{side}.png") for n in range(6) for side in sides]

    return listed


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (as_mask(THREE), r"m\.png is not black outside and white inside, there are levels between 0 and 255 \(128\)"),
        (as_mask(LABELS), r"levels between 0 and 2 \(1\): give each structure a mask of its own"),
        (as_mask(np.random.default_rng(0).integers(0, 4, (120, 90))), r"levels between 0 and 3 \(1, 2\)"),
        (as_mask(RAMP), r"levels between 0 and 255 \(34, "),
        (as_mask(np.zeros((120, 90))), "^every mask of heart is empty: see whether its files are"),
        (
            as_mask(np.ones((90, 120))),
            r"m\.png is of a picture of 120 x 90 pixels and its image has 90 x 120, in",
        ),
        (as_mask(THREE[:, :80] // 255 * 255), "is of a picture of 80 x 120 pixels and its image has 90 x 120"),
        (as_polygon((5, 5), (80, 5), (160, 110)), "^an outline of heart goes 70 pixels beyond its picture of 90 x 120"),
        (as_polygon((-40, 5), (8, 5), (8, 100)), "goes 40 pixels beyond"),
        # Gaps read as starts and starts as gaps overflow; rows and columns exchanged tear.
        (as_runs("starts", "gaps"), "^t.csv: line 2: the mask is not told by starts and lengths of runs along rows"),
        (as_runs("gaps", "starts"), "^t.csv: line 2: the mask is not told by gaps and lengths of runs down columns"),
        (as_runs("gaps", exchanged=True), "the mask is torn, and would be whole with 90 x 120 pixels read as"),
        (
            as_runs("starts", exchanged=True),
            "the mask is torn, and would be whole with 90 x 120 pixels read as",
        ),
        (
            on_both_sides("left", "right"),
            "^right structures lie left of the left ones in 0 of 6 pictures, as they",
        ),
    ],
)
def test_what_is_no_mask_of_its_image_is_refused_in_one_sentence(run, tmp_path, listed, said):
    Image.fromarray(np.zeros((120, 90), np.uint8)).save(tmp_path / "image.png")
    with pytest.raises(StudyError, match=said) as refused:
        build_annotations(run, listed(tmp_path), {"x/0": tmp_path / "image.png"})
    assert str(refused.value).count(". ") == 0
    assert not run.has(ANNOTATIONS)


LARGE = np.asarray(Image.fromarray(draw_lung()).resize((450, 600)))
SOFT = np.asarray(Image.fromarray(LARGE[::3, ::3]).convert("L").resize((450, 600), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (as_mask(np.where(draw_lung(), 255, 0)), draw_lung()),
        (as_mask(np.where(draw_lung(), 1, 0)), draw_lung()),
        (as_mask(np.where(draw_lung(), 250, 6)), draw_lung()),
        (as_mask(SOFT), SOFT > 127.5),
        (as_mask(np.where(LARGE, 255, 0), "m.jpg"), LARGE),
        (as_mask(np.where(draw_lung(), 255, 0)[::2, ::2]), draw_lung()[::2, ::2]),
        (as_runs("gaps"), draw_lung()),
        (as_runs("starts"), draw_lung()),
    ],
)
def test_what_is_a_mask_is_taken(run, tmp_path, listed, expected):
    Image.fromarray(np.zeros((120, 90), np.uint8)).save(tmp_path / "image.png")
    build_annotations(run, listed(tmp_path), {"x/0": tmp_path / "image.png"})
    np.testing.assert_array_equal(read_masks(run, ["x/0"])["x/0"]["heart"], expected)


def test_right_is_left_in_pictures_and_images_that_cannot_be_read_are_no_measure(run, tmp_path):
    build_annotations(run, on_both_sides("right", "left")(tmp_path), {"x/0": tmp_path / "gone.png"})
    assert len(read_masks(run, ["x/0"])["x/0"]) == 2
