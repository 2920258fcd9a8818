"""Facility location by hand and against a greedy loop over the whole similarity matrix."""

import numpy as np
import pytest
import torch

from chexstudy.errors import StudyError
from chexstudy.vectors import facility_location as facility
from chexstudy.vectors.facility_location import facility_location


def _unit(features: np.ndarray) -> np.ndarray:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _random(rows: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    return _unit(np.random.default_rng(seed).standard_normal((rows, dim)))


def _clustered(rows: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = _unit(generator.standard_normal((12, dim)))
    return _unit(centres[generator.integers(0, 12, rows)] + 0.1 * generator.standard_normal((rows, dim)))


def _value(features: np.ndarray, picks: np.ndarray) -> float:
    points = features.astype(np.float64)
    return float(np.maximum(points @ points[picks].T, 0.0).max(axis=1).sum())


def _pick_plainly(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    points = features.astype(np.float64)
    similarity = np.maximum(points @ points.T, 0.0)
    covered, picks, gains = np.zeros(len(points)), [], []
    for _ in range(count):
        offers = np.maximum(similarity - covered, 0.0).sum(axis=1)
        offers[picks] = -1.0
        picks.append(int(offers.argmax()))
        gains.append(offers[picks[-1]])
        covered = np.maximum(covered, similarity[picks[-1]])
    return np.array(picks), np.array(gains)


@pytest.fixture(params=["held", "listed", "pooled"])
def way(request, monkeypatch):
    """The three ways of work: all cosines held, pairs listed when they are few, pools of candidates throughout."""
    monkeypatch.setattr(facility, "_BLOCK_COLUMNS", 100)
    if request.param != "held":
        monkeypatch.setattr(facility, "_HELD_PAIRS", 0)
        monkeypatch.setattr(facility, "_POOL_ROWS", 32)
        monkeypatch.setattr(facility, "_LISTED_PAIRS", 50_000 if request.param == "listed" else 0)
    return request.param


def test_two_axes_by_hand(way):
    half = np.sqrt(0.5)
    features = np.array([[1, 0], [1, 0], [half, half], [0, 1], [-1, 0]], dtype=np.float32)
    picks, gains = facility_location(features, 4)
    # Row 2 offers 3 * 0.707 + 1; then row 0 betters itself and row 1; row 4 is like nothing else; row 3 comes last.
    assert picks.tolist() == [2, 4, 0, 3]
    assert gains == pytest.approx([3 * half + 1, 1.0, 2 * (1 - half), 1 - half], abs=1e-5)


@pytest.mark.parametrize("make", [_random, _clustered])
def test_the_value_is_that_of_exact_greedy(make, way):
    features = make(700)
    picks, gains = facility_location(features, 150)
    expected, expected_gains = _pick_plainly(features, 150)
    # Later on two rows that are each other's nearest gain the same, and either may come first.
    assert picks[:20].tolist() == expected[:20].tolist()
    assert len(set(picks.tolist())) == 150
    assert gains == pytest.approx(expected_gains, abs=1e-4)
    assert gains.sum() == pytest.approx(_value(features, picks), rel=1e-6)


def test_every_row_once_if_all_are_asked_for_and_duplicates_last(way):
    distinct = _random(30)
    features = np.concatenate([distinct, distinct])
    picks, gains = facility_location(features, 60)
    assert sorted(picks.tolist()) == list(range(60))
    assert len(set((picks[:30] % 30).tolist())) == 30
    assert gains[30:] == pytest.approx(0.0, abs=1e-4)


def test_length_of_the_rows_does_not_matter(way):
    features = _clustered(300)
    longer = features * np.random.default_rng(1).uniform(0.5, 2.0, (300, 1)).astype(np.float32)
    assert facility_location(longer, 30)[0].tolist() == facility_location(features, 30)[0].tolist()


def test_a_memory_map_in_half_precision_gives_what_the_array_gives(tmp_path, way):
    features = _clustered(400).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    expected = facility_location(features.astype(np.float32), 50)[0]
    assert facility_location(mapped, 50)[0].tolist() == expected.tolist()


def test_parts_keep_the_budget_lose_little_and_follow_the_generator():
    features = _clustered(900)
    first, gains = facility_location(features, 101, torch.Generator().manual_seed(5), part_rows=200)
    again, _ = facility_location(features, 101, torch.Generator().manual_seed(5), part_rows=200)
    other, _ = facility_location(features, 101, torch.Generator().manual_seed(6), part_rows=200)
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first.tolist())) == 101
    assert (np.diff(gains) <= 0).all()
    exact, _ = facility_location(features, 101)
    assert 0.97 * _value(features, exact) < _value(features, first) < _value(features, exact)


@pytest.mark.parametrize(
    ("features", "count", "options", "sentence"),
    [
        (np.ones((3, 2), np.float32), 4, {}, "cannot pick 4 of 3"),
        (np.ones((3, 2), np.float32), 0, {}, "cannot pick 0 of 3"),
        (np.ones(3, np.float32), 1, {}, "must be a matrix"),
        (np.ones((3, 2), np.float64), 1, {}, "float32 or float16"),
        (np.array([[1, 0], [0, 0]], np.float32), 1, {}, "zero or not finite"),
        (np.array([[1, 0], [np.nan, 0]], np.float32), 1, {}, "zero or not finite"),
        (np.ones((3, 2), np.float32), 1, {"part_rows": 2}, "needs a generator"),
        (np.ones((3, 2), np.float32), 1, {"part_rows": 0}, "at least one row"),
    ],
)
def test_features_that_cannot_be_represented_are_refused_in_a_sentence(features, count, options, sentence):
    with pytest.raises(StudyError, match=sentence):
        facility_location(features, count, **options)
