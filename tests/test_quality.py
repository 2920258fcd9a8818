import hashlib
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort import quality
from chexstudy.cohort.images import fit_square
from chexstudy.cohort.quality import check_image, check_images, count_quarantine, read_checked
from chexstudy.errors import StudyError


def noise(seed, side=40):
    return np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def table(names, reports="Clear lungs."):
    return pd.DataFrame({"image_id": [f"a/{n}" for n in names], "image_path": names, "report": reports})


def test_an_image_is_hashed_decoded_and_resized(tmp_path):
    path = save(tmp_path / "a.png", noise(0))
    checked = check_image(path, 32, "crop")
    assert checked.reason == ""
    assert checked.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(checked.pixels, fit_square(noise(0), 32))


def test_every_bad_pair_is_set_aside_with_its_reason_and_the_rest_goes_on(tmp_path):
    names = [f"{i}.png" for i in range(8)]
    for i, name in enumerate(names):
        save(tmp_path / name, noise(i))
    save(tmp_path / "1.png", np.full((40, 40), 90, np.uint8))
    (tmp_path / "3.png").write_text("<html>not found</html>")
    (tmp_path / "4.png").unlink()
    (tmp_path / "6.png").write_bytes((tmp_path / "6.png").read_bytes()[:300])
    cohort = table(names, ["Clear."] * 5 + ["IMPRESSION:\n \n"] + ["Clear."] * 2)
    cohort = cohort.set_axis(range(100, 108))
    kept, quarantine = check_images(cohort, tmp_path, workers=1)
    assert list(kept["image_path"]) == ["0.png", "2.png", "7.png"]
    assert list(kept.columns) == list(cohort.columns)
    assert quarantine.to_dict("list") == {
        "image_id": ["a/1.png", "a/3.png", "a/4.png", "a/5.png", "a/6.png"],
        "image_path": ["1.png", "3.png", "4.png", "5.png", "6.png"],
        "reason": ["blank", "not an image", "missing", "empty report", "truncated"],
        "detail": ["", "a web page", "no such file or directory", "", "OSError"],
    }


def test_quarantine_is_counted_by_source_and_reason():
    ids = ["nih/1", "nih/2", "nlm_tb/1", "nih/3"]
    quarantine = pd.DataFrame({"image_id": ids, "reason": ["blank", "missing", "missing", "missing"]})
    assert count_quarantine(quarantine).to_dict("records") == [
        {"source": "nih", "reason": "missing", "images": 2},
        {"source": "nih", "reason": "blank", "images": 1},
        {"source": "nlm_tb", "reason": "missing", "images": 1},
    ]
    assert count_quarantine(quarantine[:0]).empty


def test_nothing_bad_leaves_an_empty_quarantine_of_the_same_columns(tmp_path):
    save(tmp_path / "0.png", noise(0))
    kept, quarantine = check_images(table(["0.png"]), tmp_path)
    assert len(kept) == 1
    assert list(quarantine.columns) == ["image_id", "image_path", "reason", "detail"]
    assert quarantine.empty


def test_workers_give_what_one_process_gives_in_the_same_order(tmp_path):
    paths = [save(tmp_path / f"{i}.png", noise(i)) for i in range(250)]
    paths[17] = tmp_path / "absent.png"
    alone, together = (list(read_checked(paths, 32, "crop", workers)) for workers in (1, 2))
    assert [image.sha256 for image in alone] == [image.sha256 for image in together]
    assert [image.reason for image in together].index("missing") == 17
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.pixels, two.pixels)


def test_a_wrong_size_stops_before_any_file_is_read():
    with pytest.raises(StudyError, match="image size"):
        next(read_checked(["absent.png"], 0, "crop"))


def die(*_):
    os._exit(1)


def test_a_worker_that_dies_is_one_sentence(monkeypatch):
    monkeypatch.setattr(quality, "_TOO_FEW_FOR_WORKERS", 0)
    monkeypatch.setattr(quality, "_check_batch", die)
    with pytest.raises(StudyError, match=r"^a process that reads images died, most likely for want of memory: ask for"):
        list(read_checked([f"{number}.png" for number in range(40)], 32, "crop", workers=2))
