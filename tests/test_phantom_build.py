"""The phantom on disk: splits, labels, what is planted and where, truth beside it, and the same bytes each time."""

import hashlib
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort.annotations import read_masks
from chexstudy.cohort.phantom.build import build_phantom
from chexstudy.cohort.phantom.junk import DRAWERS, JUNK_KINDS, spoil_radiograph
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.phantom.population import PREVALENCE
from chexstudy.cohort.pixels.convert import StoreFolder
from chexstudy.cohort.table import NO_FINDING, finding_columns, outcome_columns, read_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run

CONFIG = PhantomConfig(pairs=300, size=48, seed=7, junk_share=0.04, workers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    build_phantom(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def cohort(folder):
    return read_cohort(folder / "phantom" / "cohort.parquet")


@pytest.fixture(scope="module")
def truth(folder):
    return pd.read_parquet(folder / "truth.parquet")


def hash_folder(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_cohort_has_what_was_planned_and_splits_share_no_patient(folder, cohort):
    assert cohort.image_id.tolist() == [f"phantom/{number:06d}" for number in range(300)]
    assert finding_columns(cohort) == [NO_FINDING, *PREVALENCE]
    diseased = (cohort[list(PREVALENCE)] == 1).any(axis=1)
    hedged = (cohort[list(PREVALENCE)] == -1).any(axis=1)
    assert cohort[NO_FINDING].tolist() == np.select([diseased, hedged], [0, -1], 1).tolist()
    assert all((folder / "phantom" / path).is_file() for path in cohort.image_path)
    assert cohort[list(PREVALENCE)].notna().all(axis=None)
    assert PhantomConfig(6000).split_sizes() == {"train": 3900, "validate": 500, "test": 1000, "test_enriched": 600}
    assert cohort.split.value_counts().to_dict() == CONFIG.split_sizes()
    assert cohort.groupby("patient_id").split.nunique().max() == 1
    enriched = cohort[cohort.split == "test_enriched"]
    assert ((enriched[list(PREVALENCE)] == 1).sum() >= len(enriched) // 20).all()
    assert (cohort.report_origin == "template").sum() == round(0.15 * len(cohort))
    assert cohort.report[cohort.report_origin == "written"].str.startswith("FINDINGS: ").all()
    assert (cohort.report.str.len() > 0).all()


def test_planted_pairs_are_counted_exactly_disjoint_and_in_training_alone(cohort, truth):
    train = CONFIG.split_sizes()["train"]
    kinds = [truth.duplicate_of != "", truth.mismatched, truth.junk, truth.broken_kind != ""]
    planted = pd.concat(kinds, axis=1)
    assert planted.sum().tolist() == [round(0.04 * train), round(0.03 * train), round(0.04 * train), 6]
    assert planted.sum(axis=1).max() == 1
    assert set(cohort.split[planted.any(axis=1)]) == {"train"}
    assert set(truth.junk_kind) == {*JUNK_KINDS, ""}


def test_a_duplicate_is_a_second_look_at_the_same_case(folder, cohort, truth):
    rows = cohort.set_index("image_id")
    findings = list(PREVALENCE)

    def load(image_id):
        return np.asarray(Image.open(folder / "phantom" / rows.image_path[image_id]), dtype=float).ravel()

    alike = []
    for copy, original in truth.loc[truth.duplicate_of != "", ["image_id", "duplicate_of"]].itertuples(index=False):
        assert rows.study_id[copy] == rows.study_id[original]
        assert rows.loc[copy, findings].equals(rows.loc[original, findings])
        assert not np.array_equal(load(copy), load(original))
        alike.append(np.corrcoef(load(copy), load(original))[0, 1])
    clean = truth.image_id[~truth.junk & (truth.broken_kind == "")].to_numpy()
    strangers = [np.corrcoef(load(a), load(b))[0, 1] for a, b in zip(clean[:-1:9], clean[100::9], strict=False)]
    assert np.median(alike) > np.quantile(strangers, 0.9)


def test_a_mismatched_report_tells_another_patient_with_other_findings(cohort, truth):
    rows = cohort.set_index("image_id")
    findings = list(PREVALENCE)
    swapped = truth[truth.mismatched]
    assert (truth.report_of[~truth.mismatched] == "").all()
    for image_id, donor in swapped[["image_id", "report_of"]].itertuples(index=False):
        assert rows.patient_id[image_id] != rows.patient_id[donor]
        assert not (rows.loc[image_id, findings] == rows.loc[donor, findings]).all()


def test_labels_and_lesions_agree(folder, cohort):
    lesions = pd.read_parquet(folder / "truth_lesions.parquet")
    stated = lesions.assign(label=np.where(lesions.certain, 1, -1)).pivot(
        index="image_id", columns="finding", values="label"
    )
    stated = stated.reindex(index=cohort.image_id, columns=list(PREVALENCE)).fillna(0).to_numpy()
    assert np.array_equal(stated, cohort[list(PREVALENCE)].to_numpy(dtype=float))


def test_images_are_grey_and_broken_ones_cannot_be_opened(folder, cohort, truth):
    for path, broken in zip(cohort.image_path, truth.broken_kind, strict=True):
        if broken:
            with pytest.raises(OSError, match=r"identify|truncated|incomplete"):
                Image.open(folder / "phantom" / path).load()
        else:
            image = Image.open(folder / "phantom" / path)
            assert (image.mode, image.size) == ("L", (48, 48))
    assert set(truth.broken_kind) == {"truncated", "page", "empty", ""}


def test_masks_hold_organs_and_each_finding(folder, cohort, truth):
    lesions = pd.read_parquet(folder / "truth_lesions.parquet").groupby("image_id").finding.agg(set)
    outlines = read_masks(StoreFolder(folder), cohort.image_id[truth.junk_kind == ""][:40])
    for image_id, masks in outlines.items():
        if truth.set_index("image_id").broken_kind[image_id]:
            assert masks == {}
            continue
        assert {"left lung", "right lung", "heart"} <= set(masks)
        assert lesions.get(image_id, set()) <= set(masks)
        assert all(mask.shape == (48, 48) and mask.dtype == bool for mask in masks.values())
        # The patient's right is the image's left.
        columns = {side: np.nonzero(masks[f"{side} lung"])[1].mean() for side in ("left", "right")}
        assert columns["right"] < columns["left"]


def test_the_same_seed_gives_the_same_bytes_in_one_process_and_in_two(tmp_path):
    config = PhantomConfig(pairs=64, size=32, seed=3, broken_files=3, junk_share=0.1, workers=1)
    build_phantom(tmp_path / "one", config)
    build_phantom(tmp_path / "two", replace(config, workers=2))
    one = hash_folder(tmp_path / "one")
    assert one == hash_folder(tmp_path / "two")
    assert len(one) == 64 + 5
    check_all_but_outcomes(tmp_path / "one")
    build_phantom(tmp_path / "other", replace(config, seed=4))
    other = hash_folder(tmp_path / "other")
    assert other["phantom/cohort.parquet"] != one["phantom/cohort.parquet"]
    assert other["phantom/images/000000.png"] != one["phantom/images/000000.png"]


# What this configuration must give whatever outcomes are simulated: the mean grey of each image that can be read, and
# the SHA-256 of all columns but outcomes as CSV.
GREYS = (
    *(192.5, 193.4, 148.0, 166.4, 141.0, 172.9, 158.3, 170.4, 139.6, 73.8, 150.0, 154.5, 139.6, 191.0, 154.2, 170.3),
    *(173.7, 120.6, 180.4, 168.0, 171.1, 189.7, None, 182.9, 193.2, 165.9, None, 152.5, 170.4, 47.7, 172.9, None),
    *(186.2, 141.8, 153.9, 175.0, 168.2, 158.4, 187.4, 198.4, 252.0, 166.9, 144.8, 166.3, 192.4, 164.0, 161.1, 172.8),
    *(160.8, 144.3, 173.9, 143.0, 159.7, 189.9, 162.4, 158.9, 133.0, 142.5, 145.4, 169.0, 180.7, 144.6, 177.5, 174.3),
)
TABLE_HASH = "24afc481faf8489f2a83b64b625f50c6c15d7c68b17ded4ef6f9dee1588fc2b6"


def check_all_but_outcomes(folder):
    """Outcomes have a random stream of their own: images, reports and labels are what they were."""
    cohort = read_cohort(folder / "phantom/cohort.parquet")
    table = cohort.drop(columns=outcome_columns(cohort)).to_csv(index=False)
    assert hashlib.sha256(table.encode()).hexdigest() == TABLE_HASH
    for path, grey in zip(cohort.image_path, GREYS, strict=True):
        if grey is not None:
            assert np.asarray(Image.open(folder / "phantom" / path), dtype=float).mean() == pytest.approx(grey, abs=0.1)


def test_a_smaller_phantom_leaves_nothing_of_a_larger_one(home):
    run = Run("demo")
    build_phantom(run, PhantomConfig(pairs=75, size=32, broken_files=0, workers=1))
    cohort = build_phantom(run, PhantomConfig(pairs=60, size=32, broken_files=0, workers=1))
    images = {f"images/{path.name}" for path in run.path("phantom/images").iterdir()}
    assert images == set(cohort.image_path)
    assert len(images) == 60


def test_permuted_prevalence_changes_which_finding_is_rare():
    natural, permuted = PhantomConfig().prevalence(), PhantomConfig(permutation_seed=5).prevalence()
    assert natural == dict(PREVALENCE)
    assert permuted != natural
    assert list(permuted) == list(natural)
    assert sorted(permuted.values()) == sorted(natural.values())
    assert PhantomConfig(seed=9, permutation_seed=5).prevalence() == permuted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 10}, "at least 60 pairs"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"template_share": 1.5}, "between 0 and 1"),
        ({"duplicate_share": 0.5}, "at most 40 %"),
        ({"pairs": 100, "broken_files": 60}, "at most 40 %"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, message):
    with pytest.raises(StudyError, match=message):
        PhantomConfig(**settings)


def test_a_disk_that_fills_up_while_drawing_leaves_no_image(tmp_path, full_disk):
    config = PhantomConfig(pairs=60, size=32, workers=1)
    with full_disk(600), pytest.raises(StudyError, match=r"could not write .*\.png: File too large; free some space"):
        build_phantom(tmp_path, config)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "phantom").write_text("a file in the way")
    with pytest.raises(StudyError, match="choose another folder"):
        build_phantom(tmp_path, CONFIG)


@pytest.mark.parametrize("kind", DRAWERS)
def test_junk_is_drawn_at_any_size_and_repeatable(kind):
    for size in (32, 96):
        once, again = (DRAWERS[kind](size, np.random.default_rng(1)) for _ in range(2))
        assert once.shape == (size, size)
        assert once.dtype == np.uint8
        assert np.array_equal(once, again)


def test_spoiled_radiographs_keep_pixels_and_masks_together():
    pixels = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    masks = {"right half": np.tile(np.arange(64) >= 32, (64, 1))}
    inverted, same = spoil_radiograph("inverted", pixels, masks, np.random.default_rng(0))
    assert np.array_equal(inverted, 255 - pixels)
    assert same is masks
    cropped, moved = spoil_radiograph("cropped", pixels, masks, np.random.default_rng(0))
    assert cropped.shape == (64, 64)
    assert np.ptp(cropped) < 0.45 * np.ptp(pixels)
    # A pixel belongs to the right half where its grey level says so, but for rounding at the border.
    assert np.mean(moved["right half"] == (cropped >= 32)) > 0.96


def test_a_small_phantom_takes_seconds(tmp_path):
    started = time.process_time()
    build_phantom(tmp_path, PhantomConfig(pairs=120, size=96, workers=1))
    # 6,000 pairs in 60 s on two cores are 20 ms of one core a pair; the simulation of the patients is extra.
    assert time.process_time() - started < 2.0 + 120 * 0.020
