import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort import near_duplicates
from chexstudy.cohort.near_duplicates import (
    choose_set_aside,
    find_pairs,
    group_pairs,
    tabulate_near_duplicates,
)
from chexstudy.cohort.phantom.drawing import draw_radiograph
from chexstudy.cohort.phantom.population import PREVALENCE, simulate_cases
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
    [
        ("one_per_group", [("a/000", "also in test"), ("a/001", "also in test"), ("a/004", "also in train")]),
        (
            "drop",
            [(f"a/00{n}", f"also in {split}") for n, split in enumerate(["test"] * 3 + ["train"] * 2)],
        ),
    ],
)
def test_of_a_group_the_split_nearest_to_the_test_keeps_its_image(policy, leaves):
    cohort = tabulate(6).assign(split=["train", "validate", "test", "train", "train", "test"])
    groups = pd.DataFrame({"image_id": cohort["image_id"][:5], "group": [0, 0, 0, 1, 1]})
    aside = choose_set_aside(groups, cohort, policy)
    assert list(zip(aside["image_id"], aside["detail"], strict=True)) == leaves
    assert set(aside["reason"]) == {"near-duplicate"}
    assert list(cohort.loc[aside.index, "image_id"]) == list(aside["image_id"])


def test_an_unknown_policy_is_one_sentence():
    with pytest.raises(StudyError, match=r"^duplicates is 'some': choose keep, drop or one_per_group\.$"):
        near_duplicates.check_policy("some")


def test_the_table_is_made_once_after_a_kill_and_anew_for_other_images(home, monkeypatch, films):
    run, cohort = Run("tiny"), tabulate(12)
    images = np.stack([*films[:11], 255 - films[4]])
    run.write_table("pixels/index.parquet", cohort)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "_compare", die)
        with pytest.raises(KeyboardInterrupt):
            tabulate_near_duplicates(run, images, cohort)
    assert not run.has("duplicates.parquet")
    found = tabulate_near_duplicates(run, images, cohort)
    assert list(found["image_id"]) == ["a/004", "a/011"]
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "find_pairs", die)
        pd.testing.assert_frame_equal(tabulate_near_duplicates(run, images, cohort), found)
    run.write_table("pixels/index.parquet", cohort[:11])
    assert tabulate_near_duplicates(run, images[:11], cohort[:11]).empty
