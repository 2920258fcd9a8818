import hashlib
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort import quality
from chexstudy.cohort.images.decode import fit_square
from chexstudy.cohort.quality import check_image, count_quarantine, read_checked
from chexstudy.errors import StudyError


def noise(seed, side=40):
    return np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_an_image_is_hashed_decoded_and_resized(tmp_path):
    path = save(tmp_path / "a.png", noise(0))
    checked = check_image(path, 32, "crop")
    assert checked.reason == ""
    assert checked.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(checked.pixels, fit_square(noise(0), 32))


def test_a_file_that_cannot_be_used_has_its_reason_and_a_hash_if_it_has_bytes(tmp_path):
    save(tmp_path / "blank.png", np.full((40, 40), 90, np.uint8))
    (tmp_path / "page.png").write_text("<html>not found</html>")
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "whole.png", noise(6)).read_bytes()[:300])
    found = {name: check_image(tmp_path / f"{name}.png", 32, "crop") for name in ("blank", "page", "cut", "absent")}
    assert {name: (image.reason, image.detail) for name, image in found.items()} == {
        "blank": ("blank", ""),
        "page": ("not an image", "a web page"),
        "cut": ("truncated", "OSError"),
        "absent": ("missing", "no such file or directory"),
    }
    assert [len(image.sha256) for image in found.values()] == [64, 64, 64, 0]


def test_quarantine_is_counted_by_source_and_reason():
    ids = ["nih/1", "nih/2", "nlm_tb/1", "nih/3"]
    quarantine = pd.DataFrame({"image_id": ids, "reason": ["blank", "missing", "missing", "missing"]})
    assert count_quarantine(quarantine).to_dict("records") == [
        {"source": "nih", "reason": "missing", "images": 2},
        {"source": "nih", "reason": "blank", "images": 1},
        {"source": "nlm_tb", "reason": "missing", "images": 1},
    ]
    assert count_quarantine(quarantine[:0]).empty


def test_workers_give_what_one_process_gives_in_the_same_order(tmp_path):
    paths = [save(tmp_path / f"{i}.png", noise(i)) for i in range(250)]
    paths[17] = tmp_path / "absent.png"
    alone, together = (list(read_checked(paths, 32, "crop", workers)) for workers in (1, 2))
    assert [image.sha256 for image in alone] == [image.sha256 for image in together]
    assert [image.reason for image in together].index("missing") == 17
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.pixels, two.pixels)


def die(*_, **__):
    os._exit(1)


def test_a_worker_that_dies_is_one_sentence(monkeypatch):
    monkeypatch.setattr(quality, "_TOO_FEW_FOR_WORKERS", 0)
    monkeypatch.setattr(quality, "check_image", die)
    with pytest.raises(
        StudyError, match=r"^a process that reads or draws images died, most likely for want of memory: ask for"
    ):
        list(read_checked([f"{number}.png" for number in range(40)], 32, "crop", workers=2))
