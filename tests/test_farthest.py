"""Farthest-point selection on geometry one can work out by hand, and in large sets against the plain loop."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


def _cover_plainly(features: np.ndarray, count: int, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loop of Gonzalez in float64: picks, their distances when picked, and what remains."""
    points = features.astype(np.float64)
    nearest = np.full(len(points), np.inf)
    picked, distances = [start], [np.inf]
    while True:
        nearest = np.minimum(nearest, np.sqrt(((points - points[picked[-1]]) ** 2).sum(axis=1)))
        if len(picked) == count:
            nearest[picked] = 0.0
            return np.array(picked), np.array(distances), nearest
        open_rows = nearest.copy()
        open_rows[picked] = -1.0
        picked.append(int(open_rows.argmax()))
        distances.append(nearest[picked[-1]])


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
    cover = cover_points(points, 4)
    assert cover.rows.tolist() == [0, 4, 5, 2]
    assert cover.distances == pytest.approx([np.inf, 10.0, 4.6, 2.0], abs=1e-6)
    assert cover.remaining == pytest.approx([0.0, 1.0, 0.0, 1.0, 0.0, 0.0], abs=1e-6)
    assert cover.radius == pytest.approx(1.0)
    # Picks first, in their order; of the others the farther one is above, and equal ones are equal.
    assert np.argsort(-cover.scores(), kind="stable").tolist() == [0, 4, 5, 2, 1, 3]
    assert cover.scores()[2] > cover.scores()[1] == cover.scores()[3]


@pytest.mark.parametrize("make", [_random, _clustered])
@pytest.mark.parametrize("count", [1, 341, 1500])
@pytest.mark.parametrize("row_block", [8192, 70])
@pytest.mark.parametrize("rounded", [True, False])
def test_the_pooled_method_makes_the_picks_of_the_plain_loop(make, count, row_block, rounded, monkeypatch):
    monkeypatch.setattr(farthest, "_rounded_products_pay", lambda dim: rounded)
    features = make(1500)
    rows, distances, remaining = _cover_plainly(features, count, start=17)
    cover = cover_points(features, count, 17, row_block=row_block)
    assert cover.rows.tolist() == rows.tolist()
    assert cover.distances == pytest.approx(distances, abs=1e-12)
    assert cover.remaining == pytest.approx(remaining, abs=1e-12)
    assert (np.diff(cover.distances) <= 0).all()


def test_points_closer_together_than_rounding_are_still_told_apart(monkeypatch):
    monkeypatch.setattr(farthest, "_rounded_products_pay", lambda dim: True)
    monkeypatch.setattr(farthest, "_PAIRS_JUDGED", 1000)
    features = _clustered(1500, spread=2e-5)
    rows, _, remaining = _cover_plainly(features, 300, start=0)
    cover = cover_points(features, 300)
    assert cover.rows.tolist() == rows.tolist()
    assert cover.remaining == pytest.approx(remaining, abs=1e-12)


def test_duplicates_come_last_in_row_order_and_no_row_comes_twice():
    distinct = _random(40)
    features = np.concatenate([distinct, distinct, distinct])
    cover = cover_points(features, 120, row_block=16)
    assert len(set((cover.rows[:40] % 40).tolist())) == 40
    assert sorted(cover.rows.tolist()) == list(range(120))
    assert (cover.distances[40:] == 0.0).all()
    assert (np.diff(cover.rows[40:]) > 0).all()
    constant = np.repeat(distinct[:1], 30, axis=0)
    assert cover_points(constant, 30, start=4, row_block=7).rows.tolist() == [4, *range(4), *range(5, 30)]


def test_a_memory_map_a_half_precision_array_and_a_tensor_give_what_the_array_gives(tmp_path):
    features = _clustered(900).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    expected = cover_points(features.astype(np.float32), 200, 5)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    for same in (features, mapped, torch.from_numpy(features)):
        cover = cover_points(same, 200, 5, row_block=128)
        assert cover.rows.tolist() == expected.rows.tolist()
        assert cover.remaining.tobytes() == expected.remaining.tobytes()


def test_without_last_distances_what_remains_is_an_upper_bound():
    features = _random(1500)
    exact, lazy = cover_points(features, 300), cover_points(features, 300, exact_remaining=False)
    assert lazy.rows.tolist() == exact.rows.tolist()
    assert (lazy.remaining >= exact.remaining).all()
    assert (lazy.remaining[lazy.rows] == 0.0).all()


@pytest.mark.parametrize("make", [_random, _clustered])
def test_the_form_for_devices_makes_the_same_picks(make):
    features = make(2000)
    rows, _, remaining = _cover_plainly(features, 454, start=3)
    cover = farthest._cover_on_device(torch.from_numpy(features), 454, 3, True, "")
    assert cover.rows.tolist() == rows.tolist()
    assert cover.remaining == pytest.approx(remaining, abs=1e-5)
    lots = farthest._cover_on_device(torch.from_numpy(np.tile(features[:50], (4, 1))), 200, 0, True, "")
    assert sorted(lots.rows.tolist()) == list(range(200))
    assert (lots.distances[1:50] > 0.0).all()
    assert (lots.distances[50:] == 0.0).all()


def test_picks_on_a_device_wait_for_nothing():
    with FakeTensorMode():
        # Under this mode any read of a value on the host raises.
        pool, bounds = torch.arange(64), torch.rand(64)
        running, floor, rival = torch.ones((), dtype=torch.bool), torch.tensor(0.1), torch.tensor(64)
        picked, *_ = farthest._step_on_device(torch.randn(64, 8), pool, bounds, running, floor, rival, 16)
    assert picked.shape == (16,)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_tensor_gives_the_cover_of_the_processor():
    features = _clustered(5000, dim=64)
    expected = cover_points(features, 1000)
    cover = cover_points(torch.from_numpy(features).cuda(), 1000)
    assert cover.radius == pytest.approx(expected.radius, abs=1e-5)


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


def test_long_work_says_beforehand_how_long_it_may_take(monkeypatch, capsys):
    monkeypatch.setattr(farthest, "_SECONDS_WORTH_SAYING", 0.0)
    cover_points(_random(50), 10, label="covering the phantom")
    assert "covering the phantom: 10 of 50 rows, about" in capsys.readouterr().out
