import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cli.main import main
from chexstudy.cohort import near_duplicates
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.near_duplicates import (
    choose_withheld,
    count_near_duplicates,
    find_pairs,
    group_pairs,
    settle_near_duplicates,
    tabulate_near_duplicates,
)
from chexstudy.cohort.phantom.drawing import draw_radiograph
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.phantom.population import PREVALENCE, simulate_cases
from chexstudy.cohort.pixels.store import INDEX, build_pixel_store, open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.devices import use_threads
from chexstudy.errors import StudyError
from chexstudy.runs import Run

SIDE = 96


@pytest.fixture(scope="module")
def cases():
    drawn = simulate_cases(120, PREVALENCE, np.random.default_rng(5))
    return list({case.patient.patient_id: case for case in drawn}.values())[:40]


@pytest.fixture(scope="module")
def films(cases):
    return [draw_radiograph(case, SIDE).pixels for case in cases]


def squared(picture):
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def compress(film):
    file = io.BytesIO()
    Image.fromarray(film).save(file, "JPEG", quality=30)
    return np.asarray(Image.open(file))


COPIES = {
    "itself": lambda film: film,
    "inverted": lambda film: 255 - film,
    "smaller": lambda film: squared(Image.fromarray(film).resize((60, 60), Image.Resampling.BILINEAR)),
    "cropped": lambda film: squared(Image.fromarray(film).crop((6, 2, 92, 88))),
    "with margins": lambda film: squared(Image.fromarray(np.pad(film, ((4, 4), (6, 2))))),
    "compressed": compress,
    "turned left": lambda film: np.asarray(Image.fromarray(film).rotate(7, Image.Resampling.BILINEAR)),
    "turned right": lambda film: np.asarray(Image.fromarray(film).rotate(-4, Image.Resampling.BILINEAR)),
    "shifted": lambda film: np.pad(film, ((3, 0), (0, 2)), mode="edge")[:SIDE, 2:],
    "noisy": lambda film: np.clip(film + np.random.default_rng(1).normal(0, 5, film.shape), 0, 255).astype(np.uint8),
    "darker": lambda film: (230 * (film / 255) ** 1.4).astype(np.uint8),
}


def tabulate(count, **columns):
    names = [f"a/{number:03d}" for number in range(count)]
    table = pd.DataFrame({"image_id": names, "patient_id": names, "study_id": names, "image_path": names})
    return table.assign(split="train", **columns)


def list_pairs(pairs):
    return list(zip(pairs["first"], pairs["second"], strict=True))


def test_a_copy_is_found_whatever_was_done_to_it_and_nothing_else_is(films):
    images = np.stack([*films, *(change(film) for change, film in zip(COPIES.values(), films, strict=False))])
    pairs = find_pairs(images, tabulate(len(images)))
    assert list_pairs(pairs) == [(number, len(films) + number) for number in range(len(COPIES))]
    assert set(pairs["evidence"]) == {"copy, other patient"}
    assert pairs["similarity"].iloc[:2].tolist() == [1, 1]
    with use_threads(2):
        pd.testing.assert_frame_equal(pairs, find_pairs(images, tabulate(len(images)), workers=1))


def test_who_images_are_of_decides_how_alike_they_must_be(cases, films):
    again = [replace(case, seed=case.seed + 1, exposure=case.exposure + 0.1) for case in cases[:12]]
    later = [replace(one, seed=one.seed + 1, inspiration=one.inspiration - 0.15) for one in again]
    second, other_day = ([draw_radiograph(case, SIDE).pixels for case in kind] for kind in (again, later))
    images = np.stack([*films, *second, *other_day, films[0]])
    patient = [*range(40), *range(12), *range(12), 0]
    study = [*range(40), *range(12), *range(100, 113)]
    pairs = find_pairs(images, tabulate(len(images)).assign(patient_id=patient, study_id=study))
    assert list_pairs(pairs[pairs["evidence"] == "second exposure"]) == [(n, 40 + n) for n in range(12)]
    assert list_pairs(pairs[pairs["evidence"] == "copy, same patient"]) == [(0, 64)]
    assert len(pairs) == 13


def test_what_only_looks_like_a_copy_is_none(films):
    grey, slope = np.full((SIDE, SIDE), 90), np.arange(SIDE) // 48
    shades = np.random.default_rng(0).integers(0, 2, (2, SIDE, SIDE))
    blank = [grey, grey + 1, grey + slope, 200 + slope + 0 * grey, *(grey + shades)]
    images = np.stack([*films, *(film[:, ::-1] for film in films[:9]), *np.array(blank, np.uint8)])
    assert find_pairs(images, tabulate(len(images))).empty


@pytest.mark.parametrize("count", [1, 2, 3, 9, 200])
def test_images_that_are_all_equal_are_one_group_and_one_image_is_none(films, count):
    images = np.stack([films[1]] * count)
    groups = group_pairs(find_pairs(images, tabulate(count)), tabulate(count)["image_id"])
    assert len(groups) == (count if count > 1 else 0)
    assert set(groups["group"]) <= {0}


def test_symmetric_images_are_told_apart_and_their_copies_found(films):
    even = [np.hstack([film[:, :48], film[:, 47::-1]]) for film in films[:8]]
    images = np.stack([*even, even[3][:, ::-1], 255 - even[5]])
    assert list_pairs(find_pairs(images, tabulate(len(images)))) == [(3, 8), (5, 9)]


def test_groups_are_transitive_and_in_the_order_of_their_images():
    pairs = pd.DataFrame(
        [(4, 5, 0.8, "copy"), (1, 6, 0.9, "copy"), (2, 4, 1.0, "exposure")],
        columns=["first", "second", "similarity", "evidence"],
    )
    groups = group_pairs(pairs, pd.Series(list("abcdefg")))
    assert list(groups.itertuples(index=False, name=None)) == [
        ("b", 0, 0.9, "copy"),
        ("g", 0, 0.9, "copy"),
        ("c", 1, 1.0, "exposure"),
        ("e", 1, 1.0, "exposure"),
        ("f", 1, 0.8, "copy"),
    ]
    assert group_pairs(pairs[:0], pd.Series(list("ab"))).empty


@pytest.mark.parametrize(
    ("policy", "leaves"),
    [("one_per_group", {0: "test", 1: "test", 4: "train"}), ("drop", dict(enumerate(["test"] * 3 + ["train"] * 2)))],
)
def test_of_a_group_the_split_nearest_to_the_test_keeps_its_image(policy, leaves):
    groups = tabulate(5).assign(split=["train", "validate", "test", "train", "train"], group=[0, 0, 0, 1, 1])
    withheld = choose_withheld(groups, policy)
    expected = [(f"a/00{row}", "near-duplicate", f"also in {split}") for row, split in leaves.items()]
    assert list(withheld[["image_id", "reason", "detail"]].itertuples(index=False, name=None)) == expected


@pytest.fixture
def filed(home, films):
    """A study of twelve images in three splits: 9 is a copy of 4 in the test, 10 of 5 within training; 11 is broken."""
    run, names = Run("filed"), [f"a/{number:02d}" for number in range(12)]
    images = [*films[:9], 255 - films[4], compress(films[5])]
    run.path("files").mkdir(parents=True)
    for name, image in zip(names, images, strict=False):
        Image.fromarray(image).save(run.path(f"files/{name[2:]}.png"))
    run.path("files/11.png").write_bytes(b"")
    table = pd.DataFrame({"image_id": names, "patient_id": names, "study_id": names, "source": "a", "view": "PA"})
    table = table.assign(image_path=[f"files/{name[2:]}.png" for name in names], sex="F", age_years=40.0)
    table = table.assign(split=["train"] * 8 + ["validate"] + ["test"] + ["train"] * 2, report="Clear lungs.")
    cohort = table.assign(report_origin="written", Mass=pd.array([0] * 12, dtype="Int8"))
    build_pixel_store(run, cohort, SIDE, workers=1)
    return run, cohort, images


def read_bytes(run):
    return {name: run.path(name).read_bytes() for name in ("cohort.parquet", "quarantine.parquet", INDEX)}


def test_what_is_set_aside_is_counted_and_comes_back(filed):
    run, cohort, images = filed
    untouched = read_bytes(run)
    assert settle_near_duplicates(run, "keep") == {}
    assert read_bytes(run) == untouched
    groups = tabulate_near_duplicates(run)
    assert list(zip(groups["image_id"], groups["group"], strict=True)) == [
        *(("a/04", 0), ("a/09", 0)),
        *(("a/05", 1), ("a/10", 1)),
    ]
    counts = [("a", "test + train", 1, 2), ("a", "train", 1, 2)]
    assert list(count_near_duplicates(groups).itertuples(index=False, name=None)) == counts
    for policy, gone in (("one_per_group", [4, 10]), ("drop", [4, 9, 5, 10])):
        assert settle_near_duplicates(run, policy) == {"near-duplicates set aside": len(gone)}
        stays = [row for row in range(11) if row not in gone]
        store = open_pixel_store(run)
        kept = read_cohort(run.path("cohort.parquet"))
        assert list(kept["image_id"]) == list(store.image_ids) == list(cohort["image_id"][stays])
        np.testing.assert_array_equal(store.images[:], np.stack([images[row] for row in stays]))
        quarantine = run.read_table("quarantine.parquet")
        assert list(quarantine["image_id"]) == ["a/11", *cohort["image_id"][gone]]
        # Built again, at another size too, and nothing looked for again.
        aside = read_bytes(run)
        build_pixel_store(run, cohort, SIDE, workers=1)
        assert read_bytes(run) == aside
        assert len(build_pixel_store(run, cohort, 48, workers=1)) == len(stays)
        build_pixel_store(run, cohort, SIDE, workers=1)
        assert read_bytes(run) == aside
    settle_near_duplicates(run, "keep")
    assert read_bytes(run) == untouched


def test_after_a_kill_the_same_is_set_aside(filed, monkeypatch):
    run, cohort, _ = filed

    def die(*_):
        raise KeyboardInterrupt

    for owner, name in ((near_duplicates, "_compare"), (Run, "write_json")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die)
            with pytest.raises(KeyboardInterrupt):
                settle_near_duplicates(run, "one_per_group")
        assert run.has("duplicates.parquet") == (owner is Run)
    build_pixel_store(run, cohort, SIDE, workers=1)
    monkeypatch.setattr(near_duplicates, "find_pairs", die)
    settle_near_duplicates(run, "one_per_group")
    assert len(open_pixel_store(run)) == 9
    build_pixel_store(run, cohort[:10], SIDE, workers=1)
    with pytest.raises(KeyboardInterrupt):
        settle_near_duplicates(run, "one_per_group")


def test_an_unknown_policy_is_one_sentence():
    with pytest.raises(StudyError, match=r"^duplicates must be keep .*, one_per_group .* or drop .*, not 'some'\.$"):
        build_cohort(Run("x"), "phantom", "", 36, "pad", 0, PhantomConfig(60, 36), duplicates="some")


def test_the_command_counts_groups_by_splits(filed, capsys):
    assert main(["cohort", "duplicates", "filed"]) == 0
    assert capsys.readouterr().out.split()[-4:] == ["a", "train", "1", "2"]
