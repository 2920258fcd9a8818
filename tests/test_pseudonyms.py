"""Official names of images stay in the run folder; what is shown cannot be traced back without its key."""

import hashlib
import hmac
import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.plots.saving import save_figure
from chexstudy.plots.style import new_figure
from chexstudy.pseudonyms import KEY, find_image_id, show_image_ids
from chexstudy.runs import Run

MIMIC = [f"mimic/p10/p100000{number}/s50414267/{number}.jpg" for number in range(32, 36)]


@pytest.fixture
def run(home):
    return Run("s")


def test_a_pseudonym_is_a_keyed_hash_of_the_official_name(run):
    shown = show_image_ids(run, MIMIC)
    key = run.path(KEY).read_bytes()
    assert shown == [f"image-{hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:10]}" for name in MIMIC]
    assert show_image_ids(run, MIMIC[::-1]) == shown[::-1]
    assert show_image_ids(Run("other"), MIMIC) != shown, "each study has a key of its own"
    assert len(key) == 32
    assert stat.S_IMODE(run.path(KEY).stat().st_mode) == 0o600


def test_drawn_images_keep_their_names(run):
    run.write_table("truth.parquet", pd.DataFrame({"image_id": ["phantom/000001"]}))
    shown = show_image_ids(run, ["phantom/000001", MIMIC[0], "phantom/p10000032"])
    assert shown[0] == "phantom/000001"
    assert all(name.startswith("image-") for name in shown[1:]), "a source that only calls itself so is not drawn"


def test_an_image_is_found_by_either_name(run):
    shown = show_image_ids(run, MIMIC)
    for name in (MIMIC[2], shown[2], shown[2].removeprefix("image-"), shown[2].upper()):
        assert find_image_id(run, name, MIMIC) == MIMIC[2]
    assert find_image_id(run, shown[2], MIMIC[:2]) == shown[2], "of another cohort"
    assert find_image_id(Run("other"), shown[2], MIMIC) == shown[2], "of another study"
    # An official name that looks like a pseudonym is taken at its word.
    assert find_image_id(run, shown[2], [*MIMIC, shown[2]]) == shown[2]


def test_two_images_of_one_pseudonym_are_not_mixed_up(run, monkeypatch):
    monkeypatch.setattr("chexstudy.pseudonyms._digest", lambda key, image_id: "0" * 10)
    show_image_ids(run, MIMIC)
    with pytest.raises(StudyError, match="4 images of study 's' are called 'image-0000000000'"):
        find_image_id(run, "image-0000000000", MIMIC)


def test_processes_that_start_together_agree_on_one_key(run):
    with ThreadPoolExecutor(8) as threads:
        shown = list(threads.map(lambda _: show_image_ids(run, MIMIC)[0], range(32)))
    assert len(set(shown)) == 1
    assert [path.name for path in run.folder.iterdir()] == [KEY]


def test_a_damaged_key_is_one_sentence(run):
    run.folder.mkdir(parents=True)
    run.path(KEY).write_bytes(b"short")
    with pytest.raises(StudyError, match=r"pseudonyms\.key is damaged: delete it"):
        show_image_ids(run, MIMIC)


def test_numbers_of_figures_hold_pseudonyms_alone(run):
    data = pd.DataFrame({"image_id": MIMIC, "distance": 0.5})
    save_figure(run, new_figure(40), "cards", "n = 4.", data)
    text = run.path("figures/cards.json").read_text()
    assert "p10000032" not in text
    assert [row["image_id"] for row in json.loads(text)["data"]] == show_image_ids(run, MIMIC)
    with pytest.raises(StudyError, match="hold the column image_path"):
        save_figure(run, new_figure(40), "paths", "", pd.DataFrame({"image_path": MIMIC}))
