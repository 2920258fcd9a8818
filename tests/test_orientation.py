from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_turning import lay

from chexstudy.cohort import orientation as module
from chexstudy.cohort.annotations import make_outline, read_masks, write_annotations
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.images.decode import decode_radiograph, fit_square
from chexstudy.cohort.orientation import ASKED, find_orientation, settle_orientation
from chexstudy.cohort.phantom.junk import DRAWERS
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels import store as pixel_store
from chexstudy.cohort.pixels.store import build_pixel_store, open_pixel_store
from chexstudy.cohort.quality import NEAR_DUPLICATE
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run

_SIZE, _OF_EACH = 48, 4


@dataclass
class Drawn:
    """A drawn cohort without junk, its images as drawn and as they lie once some are turned."""

    cohort: pd.DataFrame
    upright: np.ndarray
    lying: np.ndarray
    kinds: np.ndarray
    masks: dict

    @property
    def patients(self):
        return self.cohort["patient_id"].to_numpy()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(tmp_path_factory.mktemp("drawn")))
        run = Run("drawn")
        phantom = PhantomConfig(320, _SIZE, seed=3, junk_share=0, broken_files=0)
        store, _ = build_cohort(run, "phantom", "", _SIZE, "pad", 3, phantom, orientation="skip")
        cohort, upright = read_cohort(run.path("cohort.parquet")), store.images[:]
        kinds = np.full(len(cohort), "upright", dtype=object)
        rows = np.random.default_rng(0).permutation(len(cohort))[: _OF_EACH * len(ASKED)]
        kinds[rows] = np.repeat(ASKED, _OF_EACH)
        lying = np.stack([lay(image, kind) for image, kind in zip(upright, kinds, strict=True)])
        return Drawn(cohort, upright, lying, kinds, read_masks(run, cohort.image_id[rows]))


@pytest.fixture
def filed(drawn, home):
    """A study of the drawn cohort whose files and outlines lie as they do."""
    run = Run("filed")
    run.path("source").mkdir(parents=True)
    cohort = drawn.cohort.assign(image_path=[f"source/{row}.png" for row in range(len(drawn.cohort))])
    for path, pixels in zip(cohort.image_path, drawn.lying, strict=True):
        Image.fromarray(np.ascontiguousarray(pixels)).save(run.path(path))
    kinds = dict(zip(cohort.image_id, drawn.kinds, strict=True))
    write_annotations(
        (
            make_outline(image_id, name, lay(mask, kinds[image_id].replace("negative", "upright")))
            for image_id, masks in drawn.masks.items()
            for name, mask in masks.items()
        ),
        run.path("annotations.parquet"),
    )
    build_pixel_store(run, cohort, _SIZE, "pad", workers=1)
    return run


def judge(images, patients, lateral=None):
    lateral = np.zeros(len(images), bool) if lateral is None else lateral
    return find_orientation(images, patients, lateral)[0]["found"].to_numpy()


def read_bytes(run):
    return [run.path(f"pixels/{name}").read_bytes() for name in ("index.parquet", "manifest.json")]


def test_planted_images_of_each_kind_are_found_in_a_drawn_cohort(drawn):
    found = judge(drawn.lying, drawn.patients)
    hits = pd.Series(found == drawn.kinds).groupby(drawn.kinds).sum()
    assert hits[list(ASKED)].to_dict() == {kind: _OF_EACH for kind in ASKED} | {"mirrored": hits["mirrored"]}
    assert hits["mirrored"] >= _OF_EACH / 2
    assert (found[drawn.kinds == "upright"] != "upright").sum() <= 1


def test_in_a_sound_cohort_none_is_found_and_what_would_be_is_what_is(drawn):
    found, power = find_orientation(drawn.upright, drawn.patients, np.zeros(len(drawn.upright), bool))
    assert (found["found"] != "upright").sum() <= 1
    assert found["probability"].between(0.5, 1).all()
    power = power.set_index("kind")
    assert list(power.index) == list(ASKED)
    assert (power["share"].drop("mirrored") > 0.95).all()


@pytest.mark.parametrize("kind", ASKED)
def test_many_images_of_one_kind_do_not_hide_each_other(drawn, kind):
    rows = np.random.default_rng(1).permutation(len(drawn.upright))[:16]
    lying = drawn.upright.copy()
    lying[rows] = np.stack([lay(image, kind) for image in lying[rows]])
    found = judge(lying, drawn.patients)
    assert (found[rows] == kind).mean() >= (0.5 if kind == "mirrored" else 1)
    assert (np.delete(found, rows) != "upright").sum() <= 1


def test_no_image_judges_itself(drawn):
    # One patient with half of all images, all upside down, would teach that this is upright.
    lying, patients = drawn.upright.copy(), drawn.patients.copy()
    rows = np.arange(60)
    lying[rows], patients[rows] = np.stack([lay(image, "rotated 180") for image in lying[rows]]), "one"
    assert (judge(lying, patients)[rows] == "rotated 180").all()


def test_mending_restores_pixels_and_outlines_exactly_and_check_undoes_it(filed, drawn):
    settle_orientation(filed, "check")
    as_filed = read_bytes(filed)
    np.testing.assert_array_equal(open_pixel_store(filed).images[:], drawn.lying)
    store, notes = settle_orientation(filed, "mend")
    turned = pixel_store.read_turned(filed)
    rows = store.rows(turned)
    right = [row for row, kind in zip(rows, turned.values(), strict=True) if kind == drawn.kinds[row]]
    assert len(right) >= 4 * _OF_EACH
    np.testing.assert_array_equal(store.take(np.array(right)), drawn.upright[right])
    np.testing.assert_array_equal(open_pixel_store(filed, as_filed=True).images[:], drawn.lying)
    ids = [drawn.cohort.image_id[row] for row in right]
    for image_id, masks in read_masks(filed, ids).items():
        assert masks.keys() == drawn.masks.get(image_id, {}).keys()
        for name, mask in masks.items():
            np.testing.assert_array_equal(mask, drawn.masks[image_id][name])
    mirrored = sum("mirrored" in kind for kind in turned.values())
    assert notes["turned back, found rotated 90"] == _OF_EACH
    assert [number for note, number in notes.items() if note.startswith("left and right")] == [mirrored]
    assert read_bytes(filed) != as_filed
    assert settle_orientation(filed, "check")[1] == {}
    assert read_bytes(filed) == as_filed


def test_images_left_out_as_near_duplicates_change_nothing_for_the_others(filed, drawn):
    settle_orientation(filed, "mend")
    table, before = filed.read_table("orientation.parquet"), open_pixel_store(filed)
    left_out = drawn.cohort.iloc[[0, 7]][["image_id", "image_path"]].assign(reason=NEAR_DUPLICATE, detail="")
    pixel_store.withhold_images(filed, left_out)
    store, _ = settle_orientation(filed, "mend")
    pd.testing.assert_frame_equal(filed.read_table("orientation.parquet"), table)
    np.testing.assert_array_equal(store.images[:], before.read(store.image_ids))
    assert len(store) == len(before) - 2


def test_a_mending_that_was_stopped_goes_on(filed, drawn, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    requested = read_cohort(filed.path("pixels/requested.parquet"))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            settle_orientation(filed, "mend")
    build_pixel_store(filed, requested, _SIZE, "pad", workers=1)
    settle_orientation(filed, "mend")
    stopped = read_bytes(filed)
    monkeypatch.setattr(module, "find_orientation", stop)
    build_pixel_store(filed, requested, _SIZE, "pad", workers=1)
    settle_orientation(filed, "check")
    settle_orientation(filed, "mend")
    assert read_bytes(filed) == stopped


def test_a_store_of_another_size_is_mended_as_the_first_was(filed, drawn):
    settle_orientation(filed, "mend")
    turned = pixel_store.read_turned(filed)
    store = build_pixel_store(filed, read_cohort(filed.path("pixels/requested.parquet")), 36, "pad", workers=1)
    assert pixel_store.read_turned(filed) == turned
    row = next(row for row in store.rows(turned) if drawn.kinds[row] == "rotated 180")
    small = np.asarray(Image.fromarray(drawn.upright[row]).resize((36, 36), Image.Resampling.BICUBIC))
    assert np.abs(store.images[row].astype(int) - small).max() <= 1


def test_whatever_is_lateral_is_found_by_what_the_source_calls_so(drawn):
    generator = np.random.default_rng(2)
    laterals = np.stack([DRAWERS["lateral"](_SIZE, generator) for _ in range(34)])
    images = np.concatenate([drawn.upright, laterals])
    patients = np.concatenate([drawn.patients, [f"lateral {row}" for row in range(34)]])
    is_lateral = np.arange(len(images)) >= len(drawn.upright) + 4
    is_lateral[0] = True  # a frontal image that the source calls lateral
    found = judge(images, patients, is_lateral)
    assert (found[-34:] == "lateral").all()
    assert (found[:-34] != "lateral").all()
    assert found[0] == "upright"
    # Where no lateral is known, a few of them only look unlike the others.
    few = judge(images[:-30], patients[:-30])
    assert (few[-4:] == "unlike the others").all()


@pytest.mark.parametrize(("images", "patients"), [(49, 49), (120, 4)])
def test_too_few_images_or_patients_say_nothing(images, patients):
    pixels = np.random.default_rng(0).integers(0, 255, (images, 40, 40), dtype=np.uint8)
    found, power = find_orientation(pixels, np.arange(images) % patients, np.zeros(images, bool))
    assert set(found["found"]) == {"unknown"}
    assert found["probability"].isna().all()
    assert power.empty


@pytest.mark.parametrize("pixels", ["equal", "noise", "flat"])
def test_images_that_tell_nothing_are_called_upright(pixels):
    generator = np.random.default_rng(0)
    images = {
        "equal": np.tile(generator.integers(0, 255, (40, 40), dtype=np.uint8), (80, 1, 1)),
        "noise": generator.integers(0, 255, (80, 40, 40), dtype=np.uint8),
        "flat": np.full((80, 40, 40), 9, dtype=np.uint8),
    }[pixels]
    assert set(judge(images, np.arange(80))) == {"upright"}


def test_another_word_is_refused_before_an_image_is_read(home):
    with pytest.raises(StudyError, match=r"orientation must be check .*, mend .* or skip, not 'fix'\."):
        build_cohort(Run("x"), "phantom", "", 36, "pad", 0, PhantomConfig(60, 36), orientation="fix")
    assert not Run("x").path("phantom").exists()


@pytest.mark.parametrize(("source", "finds_mirrors"), [("nih", False), ("nlm_tb", True)])
def test_real_radiographs_turned_by_us_are_found(real_data, source, finds_mirrors):
    files = sorted((real_data / source / "images").glob("*.png"))[:450]
    images = np.stack([fit_square(decode_radiograph(file.read_bytes()), 96, "pad") for file in files])
    patients = np.array([file.name.split("_")[0] if source == "nih" else file.name for file in files])
    rows = np.random.default_rng(0).permutation(len(images))[: 5 * len(ASKED)]
    kinds = np.full(len(images), "upright", dtype=object)
    kinds[rows] = np.repeat(ASKED, 5)
    lying = np.stack([lay(image, kind) for image, kind in zip(images, kinds, strict=True)])
    found = judge(lying, patients)
    hits = pd.Series(found == kinds).groupby(kinds).mean()
    assert (hits[list(ASKED)].drop("mirrored") >= 0.8).all()
    assert (hits["mirrored"] >= 0.4) if finds_mirrors else not (found == "mirrored").any()
    # In this sample of NIH one image lies upside down by itself.
    assert (found[kinds == "upright"] != "upright").sum() <= 2
