import errno
import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_dicom import make_dicom, to_bytes

from chexstudy import runs
from chexstudy.cohort.images.decode import decode_radiograph, fit_square, read_bytes
from chexstudy.cohort.images.dicom import OWN_RANGE
from chexstudy.cohort.pixels import store as pixels
from chexstudy.cohort.pixels.store import (
    build_pixel_store,
    count_remarks,
    open_pixel_store,
    plan_pixel_store,
    verify_pixel_store,
    write_pixel_store,
)
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run


@pytest.fixture
def run(home):
    return Run("tiny")


def image(number, side=40):
    return np.random.default_rng(number).integers(0, 255, (side, side), np.uint8)


def make_cohort(folder, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(image(number)).save(folder / f"{number}.png")
    ids, who = ([f"a/{number}{end}" for number in range(count)] for end in (".png", ""))
    files = [str(folder / f"{number}.png") for number in range(count)]
    table = pd.DataFrame({"image_id": ids, "patient_id": who, "study_id": who, "image_path": files})
    table = table.assign(source="a", split="train", view="PA", sex="F", age_years=40.0, report="Clear lungs.")
    return table.assign(report_origin="written", Mass=pd.array([0] * count, dtype="Int8"))


def build_sharded(run, cohort, images_a_shard, size=32, workers=2):
    return write_pixel_store(run, plan_pixel_store(run, cohort, size, images_a_shard=images_a_shard), workers)


def written_files(run):
    files = sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file())
    return [name for name in files if not name.startswith("provenance/")]


def test_the_store_holds_every_image_and_says_where(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    store = build_pixel_store(run, cohort, 32)
    assert (len(store), store.size, store.fit) == (6, 32, "crop")
    assert store.images.dtype == np.uint8
    np.testing.assert_array_equal(
        store.read(["a/4.png", "a/0.png"]), [fit_square(image(4), 32), fit_square(image(0), 32)]
    )
    np.testing.assert_array_equal(store.rows(["a/5.png", "a/1.png", "a/5.png"]), [5, 1, 5])
    np.testing.assert_array_equal(store.take(np.array([4, 4])), [fit_square(image(4), 32)] * 2)
    with pytest.raises(IndexError, match="rows 0 to 6 asked of 6 images"):
        store.take(np.array([0, 6]))
    # The array is a plain file of numpy, whose header leaves room for the number of rows.
    loaded = np.load(run.path("pixels/shard-00000.npy"))
    np.testing.assert_array_equal(loaded[5], fit_square(image(5), 32))
    assert run.path("pixels/shard-00000.npy").stat().st_size == loaded.nbytes + 128
    quarantine = pd.read_parquet(run.path("quarantine.parquet"))
    assert list(quarantine.columns) == ["image_id", "image_path", "reason", "detail"]
    assert quarantine.empty
    assert count_remarks(run) == {}


def test_what_cannot_be_used_leaves_the_cohort_and_is_listed(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    (tmp_path / "source/2.png").write_bytes(b"")
    cohort.loc[3, "report"] = " "
    store = build_pixel_store(run, cohort, 32)
    kept = read_cohort(run.path("cohort.parquet"))
    assert list(kept["image_id"]) == list(store.image_ids) == ["a/0.png", "a/1.png", "a/4.png", "a/5.png"]
    np.testing.assert_array_equal(store.read(["a/4.png"])[0], fit_square(image(4), 32))
    quarantine = pd.read_parquet(run.path("quarantine.parquet"))
    assert list(quarantine["image_id"]) == ["a/2.png", "a/3.png"]
    assert list(quarantine["reason"]) == ["empty", "empty report"]
    manifest = json.loads(run.path("pixels/manifest.json").read_text())
    assert manifest["images"] == 4
    assert manifest["quarantined"] == [
        {"source": "a", "reason": "empty", "images": 1},
        {"source": "a", "reason": "empty report", "images": 1},
    ]
    with pytest.raises(StudyError, match=r"^1 of 2 images are not in the pixel store \(the first is number 1 of those"):
        store.rows(["a/0.png", "a/2.png"])


def test_copies_of_a_file_in_another_split_are_set_aside_on_the_training_side(run, tmp_path):
    cohort = make_cohort(tmp_path / "source", 9)
    cohort["split"] = ["train", "test", "validate", "train", "validate", "train", "train", "train", "test"]
    for original, copy in ((1, 0), (1, 2), (4, 3), (5, 6)):
        shutil.copy(tmp_path / f"source/{original}.png", tmp_path / f"source/{copy}.png")
    # A copy of what cannot be used shares its reason.
    for name in ("7.png", "8.png"):
        (tmp_path / "source" / name).write_text("<html>")
    store = build_pixel_store(run, cohort, 32)
    assert list(store.image_ids) == ["a/1.png", "a/4.png", "a/5.png", "a/6.png"]
    np.testing.assert_array_equal(store.images[:], [fit_square(image(number), 32) for number in (1, 4, 5, 5)])
    quarantine = pd.read_parquet(run.path("quarantine.parquet"))
    assert list(quarantine[["image_id", "reason", "detail"]].itertuples(index=False, name=None)) == [
        ("a/0.png", "copy in another split", "also in test"),
        ("a/2.png", "copy in another split", "also in test"),
        ("a/3.png", "copy in another split", "also in validate"),
        ("a/7.png", "not an image", "a web page"),
        ("a/8.png", "not an image", "a web page"),
    ]
    assert count_remarks(run) == {"copies set aside for another split": 3, "copies kept within a split": 1}
    # A pair without a text takes no part, so it keeps no image from training either.
    cohort.loc[1, "report"] = ""
    assert "a/2.png" in build_pixel_store(run, cohort, 32).image_ids


def test_images_that_were_not_read_as_their_header_says_are_counted(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    for number in (1, 4):
        deep = image(number).astype(np.uint16) * 16
        dataset = make_dicom(deep, bits=12, WindowCenter=-600, WindowWidth=1500)
        (tmp_path / f"source/{number}.png").write_bytes(to_bytes(dataset))
    assert len(build_pixel_store(run, cohort, 32)) == 6
    assert count_remarks(run) == {OWN_RANGE: 2}
    assert list(pd.read_parquet(run.path("pixels/index.parquet"))["remark"].ne("")) == [0, 1, 0, 0, 1, 0]


def test_a_cohort_that_names_one_file_twice_is_refused(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    cohort.loc[4, "image_path"] = str(tmp_path / "source/../source/2.png")
    with pytest.raises(StudyError, match=r"^the cohort table: rows 2 and 4 name one image file, and 2 rows share"):
        build_pixel_store(run, cohort, 32)
    assert written_files(run) == []


def test_a_current_store_is_reused_and_a_stale_one_built_again(run, tmp_path, monkeypatch):
    cohort = make_cohort(tmp_path / "source")
    build_pixel_store(run, cohort, 32)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "read_checked", lambda *_: pytest.fail("the store was current"))
        assert len(build_pixel_store(run, cohort, 32)) == 6
    assert build_pixel_store(run, cohort, 40).size == 40
    assert build_pixel_store(run, cohort, 40, fit="pad").fit == "pad"
    assert len(build_pixel_store(run, cohort[:5], 40)) == 5
    Image.fromarray(image(99)).save(tmp_path / "source/0.png")
    os.utime(tmp_path / "source/0.png", (1, 1))
    np.testing.assert_array_equal(build_pixel_store(run, cohort[:5], 40).images[0], image(99))
    assert list(pd.read_parquet(run.path("pixels/index.parquet"))["row"]) == [0, 1, 2, 3, 4]


def test_images_inside_the_study_keep_relative_paths_so_that_it_can_be_moved(run, tmp_path):
    cohort = make_cohort(run.folder / "images")
    cohort["image_path"] = [f"images/{number}.png" for number in range(6)]
    build_pixel_store(run, cohort, 32)
    assert list(read_cohort(run.path("cohort.parquet"))["image_path"]) == list(cohort["image_path"])
    outside = make_cohort(tmp_path / "source")
    outside["image_path"] = [f"{number}.png" for number in range(6)]
    build_pixel_store(run, outside, 32, root=tmp_path / "source")
    assert read_cohort(run.path("cohort.parquet"))["image_path"][0] == str(tmp_path / "source/0.png")


def test_a_cohort_without_a_usable_image_is_one_sentence(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    cohort["image_path"] = cohort["image_path"] + ".absent"
    with pytest.raises(StudyError, match=r"^none of the 6 images can be used \(the most frequent reason: missing\): "):
        build_pixel_store(run, cohort, 32)
    assert written_files(run) == ["quarantine.parquet"]


def test_a_full_disk_leaves_the_old_files_and_no_current_store(run, tmp_path, full_disk):
    cohort = make_cohort(tmp_path / "source")
    build_pixel_store(run, cohort, 32)
    old = {name: run.path(name).read_bytes() for name in ("pixels/shard-00000.npy", "cohort.parquet")}
    refusal = r"^could not write .*shard-00000\.npy: File too large; free some space"
    with full_disk(50_000), pytest.raises(StudyError, match=refusal):
        build_pixel_store(run, cohort, 128)
    assert {name: run.path(name).read_bytes() for name in old} == old
    assert not any("partial" in name for name in written_files(run))
    with pytest.raises(StudyError, match=r"has no pixels/manifest\.json yet"):
        open_pixel_store(run)


def test_a_parquet_that_cannot_be_written_is_one_sentence_too(run, tmp_path, monkeypatch):
    def fill_up(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fill_up)
    with pytest.raises(StudyError, match=r"^could not write .*shard-00000\.parquet: No space left on device"):
        build_pixel_store(run, make_cohort(tmp_path / "source"), 32)
    assert written_files(run) == ["pixels/shard-00000.npy"]


# --- shards -----------------------------------------------------------------------------------------------------------

SHARDS = [f"pixels/shard-{number:05d}.npy" for number in range(5)]
STORE_FILES = [*SHARDS[:4], "pixels/index.parquet", "pixels/manifest.json", "cohort.parquet", "quarantine.parquet"]


def build_and_die(cohort, files):
    """Build the store and kill the process, as a power cut would, when the n-th file is about to be put in place."""
    replace, left = os.replace, [files]

    def replace_or_die(*paths):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    os.replace = replace_or_die
    build_sharded(Run("tiny"), cohort, 3)


def make_broken_cohort(folder):
    """Eleven images in shards of three: one is empty, all of the second shard are, one has no report."""
    cohort = make_cohort(folder, 11)
    for number in (1, 3, 4, 5):
        (folder / f"{number}.png").write_bytes(b"")
    cohort.loc[8, "report"] = ""
    return cohort


def read_files(run, names=STORE_FILES):
    return {name: run.path(name).read_bytes() for name in names}


def test_shards_are_cut_by_position_and_read_as_one(run, tmp_path):
    store = build_sharded(run, make_broken_cohort(tmp_path / "source"), 3)
    # Ten have a report; of the shards' 3, 3, 3 and 1 images these can be used.
    assert [len(np.load(run.path(name))) for name in SHARDS[:4]] == [2, 0, 3, 1]
    index = pd.read_parquet(run.path("pixels/index.parquet"))
    kept = [0, 2, 6, 7, 9, 10]
    assert list(index["image_id"]) == [f"a/{number}.png" for number in kept]
    assert list(zip(index["shard"], index["row"], strict=True)) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (3, 0)]
    expected = np.stack([fit_square(image(number), 32) for number in kept])
    rng = np.random.default_rng(0)
    for rows in (np.arange(6), np.array([5, 0, 3, 3, 2]), rng.integers(0, 6, 40), np.array([], int)):
        np.testing.assert_array_equal(store.take(rows), expected[rows])
        np.testing.assert_array_equal(store.images[rows], expected[rows])
    np.testing.assert_array_equal(store.images[-1], expected[-1])
    np.testing.assert_array_equal(store.images[1:4], expected[1:4])
    np.testing.assert_array_equal(store.images[np.arange(6) % 2 == 0], expected[::2])
    assert store.images.shape == expected.shape
    out = np.zeros((2, 32, 32), np.uint8)
    assert store.take(np.array([4, 1]), out=out) is out
    np.testing.assert_array_equal(out, expected[[4, 1]])


def test_the_kept_images_do_not_depend_on_the_shards_nor_on_the_workers(run, home, tmp_path):
    cohort = make_broken_cohort(tmp_path / "source")
    whole = build_pixel_store(run, cohort, 32)
    cut = build_sharded(Run("cut"), cohort, 2, workers=1)
    np.testing.assert_array_equal(whole.images[:], cut.images[:])
    for name in ("cohort.parquet", "quarantine.parquet"):
        assert run.path(name).read_bytes() == Run("cut").path(name).read_bytes()


def test_a_build_killed_at_any_file_goes_on_and_ends_with_the_same_bytes(run, home, tmp_path):
    cohort = make_broken_cohort(tmp_path / "source")
    build_sharded(Run("undisturbed"), cohort, 3)
    finished = []
    # Deaths: at a shard, between a shard and its record (twice later on), at a table, and at the manifest.
    for files in (1, 2, 4, 6, 5, 5):
        killed = multiprocessing.get_context("fork").Process(target=build_and_die, args=(cohort, files))
        killed.start()
        killed.join(60)
        assert killed.exitcode == -signal.SIGKILL
        with pytest.raises(StudyError, match=r"^study 'tiny' has no pixels/manifest\.json yet: run 01_build"):
            open_pixel_store(run)
        finished.append(sorted(plan_pixel_store(run, cohort, 32, images_a_shard=3).finished))
    assert finished == [[], [], [0], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    build_sharded(run, cohort, 3)
    assert read_files(run) == read_files(Run("undisturbed"))


def test_only_shards_that_are_missing_or_cut_short_are_made_anew(run, tmp_path, monkeypatch):
    cohort = make_broken_cohort(tmp_path / "source")
    build_sharded(run, cohort, 3)
    before = read_files(run)
    np.save(run.path(SHARDS[0]), np.zeros((5, 32, 32), np.uint8))
    said = r"shard-00000\.npy is damaged, it holds uint8 \(5, 32, 32\) and not uint8 \(2, 32, 32\): make the store "
    with pytest.raises(StudyError, match=said):
        open_pixel_store(run)
    run.path(SHARDS[0]).unlink()
    with pytest.raises(StudyError, match=f"^the pixel store lacks {run.path(SHARDS[0])}: make the store again"):
        open_pixel_store(run)
    build_sharded(run, cohort, 3)
    os.truncate(run.path(SHARDS[2]), 2000)
    with pytest.raises(StudyError, match=r"shard-00002\.npy is damaged, it holds 2000 bytes that are no whole array"):
        open_pixel_store(run)
    asked = []
    read = pixels.read_checked
    monkeypatch.setattr(pixels, "read_checked", lambda files, *rest: read(asked.extend(files) or files, *rest))
    build_sharded(run, cohort, 3)
    assert [path.name for path in asked] == ["6.png", "7.png", "9.png"]
    assert read_files(run) == before


def test_a_shard_whose_bytes_changed_is_found_by_its_hash(run, tmp_path):
    cohort = make_broken_cohort(tmp_path / "source")
    build_sharded(run, cohort, 3)
    before = read_files(run)
    assert verify_pixel_store(run) == 4
    changed = np.load(run.path(SHARDS[2]))
    changed[1, 5, 5] ^= 1
    np.save(run.path(SHARDS[2]), changed)
    for read in (open_pixel_store, verify_pixel_store):
        with pytest.raises(StudyError, match=f"^{run.path(SHARDS[2])} is damaged, its SHA-256 is not the one that was"):
            read(run)
    build_sharded(run, cohort, 3)
    assert verify_pixel_store(run) == 4
    assert read_files(run) == before


def test_a_smaller_store_leaves_no_shard_of_the_larger_one(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    build_sharded(run, cohort, 1)
    build_sharded(run, cohort, 4)
    assert sorted(path.name for path in run.path("pixels").glob("shard-*")) == [
        *("shard-00000.npy", "shard-00000.parquet", "shard-00001.npy", "shard-00001.parquet")
    ]


def test_a_full_disk_keeps_the_finished_shards(run, tmp_path, full_disk):
    cohort = make_cohort(tmp_path / "source", 9)
    # Noise grows into a file of more than the limit; the first shard, of flat images, is blank and empty.
    for number in range(4):
        Image.fromarray(np.full((40, 40), 9, np.uint8)).save(tmp_path / f"source/{number}.png")
    with full_disk(30_000), pytest.raises(StudyError, match=r"could not write .*shard-00001\.npy: File too large"):
        build_sharded(run, cohort, 4, size=100)
    assert list(plan_pixel_store(run, cohort, 100, images_a_shard=4).finished) == [0]
    assert len(build_sharded(run, cohort, 4, size=100)) == 5


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"size": 0}, "the image size must be a whole number of pixels from 1 to 65536, not 0."),
        ({"size": 10**10}, "the image size must be a whole number of pixels from 1 to 65536, not 10000000000."),
        ({"workers": 0}, "the number of processes that read images must be 1 or more, not 0."),
        ({"fit": "squash"}, "fit must be one of crop, pad, not 'squash'."),
    ],
)
def test_impossible_options_are_one_sentence(run, tmp_path, wrong, sentence):
    with pytest.raises(StudyError) as caught:
        build_pixel_store(run, make_cohort(tmp_path / "source"), **{"size": 32, **wrong})
    assert str(caught.value) == sentence
    assert written_files(run) == []


def test_an_index_of_another_store_is_one_sentence(run, tmp_path):
    build_pixel_store(run, make_cohort(tmp_path / "source"), 32)
    index = pd.read_parquet(run.path("pixels/index.parquet"))
    run.write_table("pixels/index.parquet", index.iloc[:4])
    with pytest.raises(StudyError, match=r"^pixels/manifest\.json of study 'tiny' was written with another pixels/"):
        open_pixel_store(run)


def test_real_radiographs_are_stored_within_seconds(run, real_data):
    names = sorted(path.name for path in (real_data / "nih/images").glob("*.png"))
    cohort = make_cohort(run.folder / "unused", 1)
    cohort = cohort.loc[[0] * len(names)].reset_index(drop=True)
    cohort["image_id"] = [f"nih/{name}" for name in names]
    cohort["image_path"] = names
    start = time.monotonic()
    store = build_pixel_store(run, cohort, 96, root=real_data / "nih/images")
    assert time.monotonic() - start < 30
    assert len(store) == len(names) >= 600
    for row in (0, 300, 599):
        expected = fit_square(decode_radiograph(read_bytes(real_data / "nih/images" / names[row])), 96)
        np.testing.assert_array_equal(store.images[row], expected)


def test_damaged_tables_of_a_store_are_not_read_and_made_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_SECONDS_OF_A_REPLACEMENT", 0)
    cohort = make_broken_cohort(tmp_path / "source")
    build_sharded(run, cohort, 3)
    before = read_files(run)
    for name in ("cohort.parquet", "quarantine.parquet", pixels.INDEX, pixels.MANIFEST, pixels.REQUESTED):
        whole = run.path(name).read_bytes()
        for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:9], b""):
            run.path(name).write_bytes(damaged)
            with pytest.raises(StudyError, match=r"it was damaged or changed: run .*01_build_cohort.* again"):
                run.require(name)
            build_sharded(run, cohort, 3)
            assert run.path(name).read_bytes() == whole
    assert read_files(run) == before


def test_a_damaged_record_of_a_shard_is_not_taken_for_how_it_went(run, tmp_path):
    cohort = make_broken_cohort(tmp_path / "source")
    build_sharded(run, cohort, 3)
    before = read_files(run)
    path = run.path(SHARDS[0]).with_suffix(".parquet")
    record = pd.read_parquet(path)
    record.loc[record.reason.ne("").idxmax() if record.reason.ne("").any() else 0, "detail"] = "another"
    record.to_parquet(path, index=False)
    run.path(pixels.INDEX).unlink()
    build_sharded(run, cohort, 3)
    assert read_files(run) == before
