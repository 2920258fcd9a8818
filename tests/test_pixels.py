import errno
import json
import os
import resource
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort import pixels
from chexstudy.cohort.images import fit_square, read_radiograph
from chexstudy.cohort.pixels import build_pixel_store, open_pixel_store
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
    return pd.DataFrame(
        {
            "image_id": [f"a/{number}.png" for number in range(count)],
            "patient_id": [f"a/{number}" for number in range(count)],
            "study_id": [f"a/{number}" for number in range(count)],
            "source": "a",
            "split": "train",
            "view": "PA",
            "sex": "F",
            "age_years": 40.0,
            "image_path": [str(folder / f"{number}.png") for number in range(count)],
            "report": "Clear lungs.",
            "report_origin": "written",
            "Mass": pd.array([0] * count, dtype="Int8"),
        }
    )


def written_files(run):
    return sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file())


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
    with pytest.raises(StudyError, match=r"^1 of 2 images are not in the pixel store \(the first is a/2\.png\)"):
        store.rows(["a/0.png", "a/2.png"])


def test_the_array_is_a_plain_npy_file(run, tmp_path):
    build_pixel_store(run, make_cohort(tmp_path / "source"), 32)
    loaded = np.load(run.path("pixels/shard-00000.npy"))
    assert loaded.shape == (6, 32, 32)
    np.testing.assert_array_equal(loaded[5], fit_square(image(5), 32))
    assert run.path("pixels/shard-00000.npy").stat().st_size == loaded.nbytes + 128


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


def test_the_same_call_writes_the_same_bytes(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    names = ("pixels/shard-00000.npy", "pixels/index.parquet", "cohort.parquet", "quarantine.parquet")
    build_pixel_store(run, cohort, 32)
    first = [run.path(name).read_bytes() for name in names]
    run.path("pixels/manifest.json").unlink()
    build_pixel_store(run, cohort, 32)
    assert first == [run.path(name).read_bytes() for name in names]


def test_images_inside_the_study_keep_relative_paths_so_that_it_can_be_moved(run, tmp_path):
    cohort = make_cohort(run.folder / "images")
    cohort["image_path"] = [f"images/{number}.png" for number in range(6)]
    build_pixel_store(run, cohort, 32)
    assert list(read_cohort(run.path("cohort.parquet"))["image_path"]) == list(cohort["image_path"])
    outside = make_cohort(tmp_path / "source")
    outside["image_path"] = [f"{number}.png" for number in range(6)]
    build_pixel_store(run, outside, 32, root=tmp_path / "source")
    assert read_cohort(run.path("cohort.parquet"))["image_path"][0] == str(tmp_path / "source/0.png")


def test_no_store_and_a_damaged_one_are_one_sentence(run, tmp_path):
    with pytest.raises(StudyError) as caught:
        open_pixel_store(run)
    assert str(caught.value) == (
        "study 'tiny' has no pixels/manifest.json yet: "
        "run notebook 01_build_cohort (or `chexstudy cohort build`) first."
    )
    build_pixel_store(run, make_cohort(tmp_path / "source"), 32)
    np.save(run.path("pixels/shard-00000.npy"), np.zeros((5, 32, 32), np.uint8))
    with pytest.raises(StudyError) as caught:
        open_pixel_store(run)
    assert str(caught.value) == (
        f"{run.path('pixels/shard-00000.npy')} is damaged, it holds uint8 (5, 32, 32) and not uint8 (6, 32, 32): "
        "make the store again with the same options: finished shards are kept and only this one is made anew."
    )


def test_a_cohort_without_a_usable_image_is_one_sentence(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    cohort["image_path"] = cohort["image_path"] + ".absent"
    with pytest.raises(StudyError) as caught:
        build_pixel_store(run, cohort, 32)
    assert str(caught.value) == (
        "none of the 6 images can be used (the most frequent reason: missing): "
        f"see {run.path('quarantine.parquet')} and mend the files or the path to them."
    )
    assert written_files(run) == ["quarantine.parquet"]


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    def fill_up(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cohort = make_cohort(tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        with pytest.raises(StudyError) as caught:
            build_pixel_store(run, cohort, 32)
    assert str(caught.value) == (
        f"could not write {run.path('pixels/shard-00000.npy')}: No space left on device; "
        "free some space or set CHEXSTUDY_HOME to another disk."
    )
    assert written_files(run) == []
    assert len(build_pixel_store(run, cohort, 32)) == 6


def test_a_write_that_really_fails_leaves_the_old_files_and_no_current_store(run, tmp_path):
    cohort = make_cohort(tmp_path / "source")
    build_pixel_store(run, cohort, 32)
    old = {name: run.path(name).read_bytes() for name in ("pixels/shard-00000.npy", "cohort.parquet")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StudyError, match=r"^could not write .*shard-00000\.npy: File too large; free some space"):
            build_pixel_store(run, cohort, 128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
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


def test_a_killed_build_is_no_store(run, tmp_path, monkeypatch):
    cohort = make_cohort(tmp_path / "source")
    build_pixel_store(run, cohort, 32)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pixels, "write_cohort", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_pixel_store(run, cohort, 48)
    with pytest.raises(StudyError, match=r"has no pixels/manifest\.json yet"):
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
        expected = fit_square(read_radiograph(real_data / "nih/images" / names[row]), 96)
        np.testing.assert_array_equal(store.images[row], expected)
