"""Maps of pairs: neighbours stay together, equal rows share a point, prototypes land among their pairs."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.vectors import umap
from chexstudy.vectors.umap import (
    fit_map,
    lay_over,
    measure_trustworthiness,
    place_on_map,
    read_or_fit_map,
    trace_prototypes,
)


@pytest.fixture(scope="module", autouse=True)
def few_neighbours():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(umap, "_NEIGHBOURS", 10)
        yield


@pytest.fixture(scope="module")
def islands():
    """Three well separated groups of 60 features each, 30 of the first equal."""
    generator = np.random.default_rng(0)
    centres = 4 * np.eye(3, 12)
    features = np.repeat(centres, 60, axis=0) + 0.3 * generator.normal(size=(180, 12))
    features[:30] = features[0]
    return features.astype(np.float32), np.repeat(np.arange(3), 60)


@pytest.fixture(scope="module")
def fitted(islands):
    # In the checkout's own cache: UMAP compiles for half a minute the first time, seconds later on.
    return fit_map(islands[0], seed=3)


def test_groups_stay_together_and_equal_rows_share_a_point(islands, fitted):
    _, group = islands
    assert np.array_equal(fit_map(islands[0], seed=3), fitted)
    assert not np.array_equal(fit_map(islands[0], seed=4), fitted)
    assert fitted.shape == (180, 2)
    assert fitted.dtype == np.float32
    assert (fitted[:30] == fitted[0]).all()
    centres = np.stack([fitted[group == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(fitted[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == group).mean() == 1.0


def test_the_map_is_centred_and_its_widest_direction_is_horizontal(fitted):
    # Equal rows count once in the fit, so the centre is that of distinct points.
    distinct = np.unique(fitted, axis=0).astype(float)
    assert np.abs(distinct.mean(axis=0)).max() < 1e-3 * np.ptp(distinct)
    assert np.var(distinct[:, 0]) >= np.var(distinct[:, 1])


def test_few_rows_are_projected_without_umap():
    features = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 0, 0]], dtype=float)
    coordinates = fit_map(features, seed=0)
    assert np.allclose(np.abs(np.diff(coordinates[:3, 0])), 1)
    assert np.allclose(coordinates[:, 1], 0, atol=1e-6)
    assert fit_map(np.ones((1, 4)), seed=0).tolist() == [[0.0, 0.0]]
    start = np.array([[0, 1], [5, 5], [2, 3]], dtype=np.float32)
    assert np.array_equal(fit_map(np.eye(3), seed=0, start=start), start)


def test_more_rows_than_are_fitted_are_placed_between_their_neighbours(islands, monkeypatch):
    features, group = islands
    monkeypatch.setattr("chexstudy.vectors.umap.LARGEST_FIT", 90)
    coordinates = fit_map(features, seed=0)
    centres = np.stack([coordinates[group == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(coordinates[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == group).all()


def test_a_map_is_read_until_what_it_shows_changes(home, monkeypatch):
    run = Run("maps")
    fitted = []
    monkeypatch.setattr(
        "chexstudy.vectors.umap.fit_map",
        lambda features, seed: fitted.append(seed) or features[:, :2].astype(np.float32),
    )
    features = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    ids = [f"t/{number}" for number in range(20)]

    def draw(seed=0):
        run.write_array("features.npy", features)
        return read_or_fit_map(run, "map.parquet", ids, features, seed, ("features.npy",))

    first = draw()
    assert draw().equals(first)
    assert fitted == [0]
    assert first.image_id.tolist() == ids
    assert np.array_equal(first[["x", "y"]].to_numpy(), features[:, :2])
    draw(seed=1)
    features += 1
    assert draw(seed=1).x.min() >= 1
    assert fitted == [0, 1, 1]


def test_a_point_lands_at_the_weighted_mean_of_its_neighbours(monkeypatch):
    monkeypatch.setattr(umap, "_PLACING_NEIGHBOURS", 2)
    features = np.array([[0.0, 0], [3, 0], [100, 0], [200, 0]])
    coordinates = np.array([[0.0, 0], [10, 0], [0, 50], [0, 90]], dtype=np.float32)
    placed = place_on_map(np.array([[1.0, 0]]), features, coordinates)
    # Distances 1 and 2, so 0 and 1 beyond the nearest, their mean 0.5: weights 1 and exp(-2).
    expected = 10 * np.exp(-2) / (1 + np.exp(-2))
    assert np.allclose(placed, [[expected, 0]], atol=1e-5)
    # Halfway between two features it lies halfway between their places.
    assert np.allclose(place_on_map(np.array([[1.5, 0]]), features, coordinates), [[5, 0]])


def test_a_path_has_a_row_for_each_snapshot_and_prototype():
    features = np.array([[0.0, 0], [1, 0], [0, 1]])
    coordinates = np.array([[0, 0], [5, 0], [0, 7]], dtype=np.float32)
    snapshots = np.array([[[0.0, 0], [1, 0]], [[0.0, 1], [1, 0]]])
    steps = pd.DataFrame({"snapshot": [0, 1], "step": [10, 12], "phase": "curate"})
    path = trace_prototypes(snapshots, steps, features, coordinates)
    rows = path[["snapshot", "step", "prototype"]].to_numpy().tolist()
    assert rows == [[0, 10, 0], [0, 10, 1], [1, 12, 0], [1, 12, 1]]
    assert len(path[path.prototype == 1][["x", "y"]].drop_duplicates()) == 1, "it never moves"
    with pytest.raises(StudyError, match="1 rows describe"):
        trace_prototypes(snapshots, steps[:1], features, coordinates)


def test_what_cannot_be_mapped_is_refused():
    for features in (np.empty((0, 3)), np.zeros(4), np.zeros((2, 2, 2))):
        with pytest.raises(StudyError, match="shape"):
            fit_map(features, seed=0)
    with pytest.raises(StudyError, match="row 3"):
        fit_map(np.where(np.arange(10).reshape(5, 2) == 7, np.nan, 0), seed=0)
    with pytest.raises(StudyError, match="do not belong"):
        place_on_map(np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((5, 2)))
    with pytest.raises(StudyError, match="cannot start from"):
        fit_map(np.zeros((5, 2)), seed=0, start=np.zeros((4, 2)))


def test_importing_the_module_does_not_import_umap():
    # umap costs seconds to import, and numba must first be told where to put what it compiles.
    code = "import sys, chexstudy.vectors.umap; sys.exit('umap' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- maps that start from another ------------------------------------------------------------------------------------


def test_a_map_with_a_start_keeps_its_place_and_its_neighbours(islands, fitted):
    features, group = islands
    # Turned and shifted, and no longer square: nothing but the start can bring the map back there.
    turned = (fitted @ np.array([[0.6, -0.8], [0.8, 0.6]]) * 3 + [50, -20]).astype(np.float32)
    again = fit_map(features, seed=9, start=turned)
    radius = np.linalg.norm(turned - turned.mean(axis=0), axis=1).mean()
    assert np.median(np.linalg.norm(again - turned, axis=1)) < 0.1 * radius
    assert (again[:30] == again[0]).all()
    assert np.array_equal(fit_map(features, seed=9, start=turned), again)
    assert measure_trustworthiness(features[30:], again[30:], 10) > 0.85
    centres = np.stack([again[group == k].mean(axis=0) for k in range(3)])
    assert (np.linalg.norm(again[:, None] - centres, axis=2).argmin(axis=1) == group).all()


def test_a_start_without_extent_is_no_start(islands):
    features, _ = islands
    assert np.ptp(fit_map(features, seed=3, start=np.ones((180, 2))), axis=0).min() > 1


def test_a_map_is_laid_over_another_by_the_points_told():
    generator = np.random.default_rng(0)
    fixed = generator.normal(size=(40, 2))
    angle = 2.0
    mirror = np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), -np.cos(angle)]])
    moved = 5 * fixed @ mirror + [30, -7]
    assert np.allclose(lay_over(moved, fixed), fixed, atol=1e-4)
    spoilt = moved.copy()
    spoilt[20:] += 100
    over = lay_over(spoilt, fixed, np.arange(20))
    assert np.allclose(over[:20], fixed[:20], atol=1e-4)
    assert np.linalg.norm(over[20:] - fixed[20:], axis=1).min() > 10


def test_a_map_laid_over_a_different_one_keeps_its_size():
    generator = np.random.default_rng(1)
    fixed, other = generator.normal(size=(2, 200, 2))
    over = lay_over(10 * other, fixed)
    # The least-squares scale of unrelated maps would be near zero.
    assert np.linalg.norm(over - over.mean(axis=0)) == pytest.approx(np.linalg.norm(fixed - fixed.mean(axis=0)))


def test_trustworthiness_of_many_points_is_that_of_a_sample(monkeypatch):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(90, 6)).astype(np.float32)
    coordinates = features[:, :2] + 0.3 * generator.normal(size=(90, 2)).astype(np.float32)
    whole = measure_trustworthiness(features, coordinates, 8)
    monkeypatch.setattr(umap, "_MOST_JUDGED", 60)
    judged = measure_trustworthiness(features, coordinates, 8)
    assert measure_trustworthiness(features[:, :2], features[:, :2], 8) == 1
    assert judged == pytest.approx(whole, abs=0.1)
    assert judged != whole
