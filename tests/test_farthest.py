"""Farthest-point selection on geometry one can work out by hand, and in large sets against the plain loop."""

import numpy as np
import pytest
import torch

from chexstudy.errors import StudyError
from chexstudy.vectors import farthest
from chexstudy.vectors.farthest import cover_points, farthest_points


def _unit(features: np.ndarray) -> np.ndarray:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _random(rows: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    return _unit(np.random.default_rng(seed).standard_normal((rows, dim)))


def _clustered(rows: int, dim: int = 32, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = _unit(generator.standard_normal((15, dim)) + 1.0)
    return _unit(centres[generator.integers(0, 15, rows)] + spread * generator.standard_normal((rows, dim)))


def _pick_plainly(features: np.ndarray, count: int, start: int) -> list[int]:
    """The loop of Gonzalez in float64."""
    points = features.astype(np.float64)
    nearest, picked = np.full(len(points), np.inf), [start]
    while len(picked) < count:
        nearest = np.minimum(nearest, np.sqrt(((points - points[picked[-1]]) ** 2).sum(axis=1)))
        nearest[picked] = -1.0
        picked.append(int(nearest.argmax()))
    return picked


def test_points_on_a_line_are_taken_end_first_then_the_gap():
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0], [5.4]])
    assert farthest_points(points, 4, start=0).tolist() == [0, 4, 5, 2]


def test_duplicates_are_never_taken_twice_and_all_rows_are_returned_if_asked():
    points = torch.zeros(4, 3)
    assert sorted(farthest_points(points, 9, start=2).tolist()) == [0, 1, 2, 3]
    assert farthest_points(points, 9, start=2)[0] == 2


def test_each_pick_is_the_farthest_by_an_exhaustive_reference():
    points = torch.randn(60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    picked = farthest_points(points, 12, start=7).tolist()
    distances = torch.cdist(points, points)
    for position in range(1, 12):
        to_picked = distances[:, picked[:position]].min(dim=1).values
        assert to_picked[picked[position]] == pytest.approx(float(to_picked.max()))


@pytest.mark.parametrize(("rows", "count", "start"), [(0, 1, 0), (3, 0, 0), (3, 1, 3)])
def test_impossible_requests_are_refused(rows, count, start):
    with pytest.raises(ValueError, match="cannot pick"):
        farthest_points(torch.zeros(rows, 2), count, start)


def test_cover_of_points_on_a_line_by_hand():
    points = np.array([[0.0], [1.0], [2.0], [9.0], [10.0], [5.4]], dtype=np.float32)
    assert cover_points(points, 4).tolist() == [0, 4, 5, 2]


@pytest.mark.parametrize("make", [_random, _clustered])
@pytest.mark.parametrize("count", [1, 341, 1500])
@pytest.mark.parametrize("blocks", [2048, 70])
@pytest.mark.parametrize("rounded", [True, False])
def test_the_pooled_method_makes_the_picks_of_the_plain_loop(make, count, blocks, rounded, monkeypatch):
    monkeypatch.setattr(farthest, "measure_rate", lambda dim, is_rounded: 2.0 if is_rounded == rounded else 1.0)
    for name in ("_POOL_ROWS", "_BLOCK_ROWS"):
        monkeypatch.setattr(farthest, name, blocks)
    features = make(1500)
    assert cover_points(features, count, 17).tolist() == _pick_plainly(features, count, start=17)


def test_points_closer_together_than_rounding_are_still_told_apart(monkeypatch):
    monkeypatch.setattr(farthest, "measure_rate", lambda dim, is_rounded: 1.0 + is_rounded)
    monkeypatch.setattr(farthest, "_PAIRS_JUDGED", 1000)
    features = _clustered(1500, spread=2e-5)
    assert cover_points(features, 300).tolist() == _pick_plainly(features, 300, start=0)


def test_duplicates_come_last_in_row_order_and_no_row_comes_twice(monkeypatch):
    monkeypatch.setattr(farthest, "_POOL_ROWS", 16)
    distinct = _random(40)
    picks = cover_points(np.concatenate([distinct, distinct, distinct]), 120)
    assert len(set((picks[:40] % 40).tolist())) == 40
    assert sorted(picks.tolist()) == list(range(120))
    assert (np.diff(picks[40:]) > 0).all()
    constant = np.repeat(distinct[:1], 30, axis=0)
    assert cover_points(constant, 30, start=4).tolist() == [4, *range(4), *range(5, 30)]


def test_a_memory_map_and_a_half_precision_array_give_what_the_array_gives(tmp_path, monkeypatch):
    features = _clustered(900).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    expected = cover_points(features.astype(np.float32), 200, 5)
    monkeypatch.setattr(farthest, "_BLOCK_ROWS", 128)
    for same in (features, np.load(tmp_path / "features.npy", mmap_mode="r")):
        assert cover_points(same, 200, 5).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("features", "count", "start", "sentence"),
    [
        (np.zeros((3, 2), np.float32), 4, 0, "cannot pick 4 of 3"),
        (np.zeros((3, 2), np.float32), 0, 0, "cannot pick 0 of 3"),
        (np.zeros((3, 2), np.float32), 1, 3, "must be a row"),
        (np.zeros((0, 2), np.float32), 1, 0, "rows in it"),
        (np.zeros(3, np.float32), 1, 0, "must be a matrix"),
        (np.zeros((3, 2), np.int64), 1, 0, "float32 or float16"),
        (np.array([[0.0], [np.nan]], np.float32), 1, 0, "not finite"),
        (np.array([[0.0], [np.inf]], np.float16), 1, 0, "not finite"),
    ],
)
def test_features_that_cannot_be_covered_are_refused_in_a_sentence(features, count, start, sentence):
    with pytest.raises(StudyError, match=sentence):
        cover_points(features, count, start)
