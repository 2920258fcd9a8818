"""Nearest neighbours against an exhaustive search in float64, with faiss and without where it is used."""

import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.vectors import neighbours as search
from chexstudy.vectors.neighbours import density, find_most_similar, nearest_rows, neighbour_distances


@pytest.fixture
def small_blocks(monkeypatch):
    for name, size in (("_BLOCK_ROWS", 13), ("_BLOCK_COLUMNS", 17), ("_QUERY_ROWS", 3)):
        monkeypatch.setattr(search, name, size)


def apart(rows, others):
    return np.linalg.norm(rows[:, None].astype(np.float64) - others, axis=2)


def test_nearest_rows_are_those_of_all_distances(small_blocks):
    generator = np.random.default_rng(1)
    features, points = generator.normal(size=(50, 7)), generator.normal(size=(9, 7))
    index, distance = nearest_rows(points, features, 4)
    every = apart(points, features)
    assert np.array_equal(index, np.argsort(every, axis=1)[:, :4])
    assert np.allclose(distance, np.sort(every, axis=1)[:, :4], atol=1e-5)
    for neighbours in (1, 4):
        expected = np.sort(apart(features, features), axis=1)[:, neighbours]
        np.testing.assert_allclose(neighbour_distances(features, neighbours), expected, rtol=1e-5)


def test_no_row_is_its_own_neighbour_when_asked(monkeypatch):
    features = np.array([[0.0], [0.0], [1.0], [5.0]])
    monkeypatch.setattr(search, "_BLOCK_COLUMNS", 3)
    index, distance = nearest_rows(features, features, 2, without_self=True)
    assert index[:2].tolist() == [[1, 2], [0, 2]]
    assert set(index[2]) == {0, 1}
    assert index[3, 0] == 2
    assert distance.tolist() == [[0, 1], [0, 1], [1, 1], [4, 5]]


def test_copies_are_at_distance_zero_and_few_rows_have_few_neighbours():
    rows = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)
    rows[5:8] = rows[4]
    distances = neighbour_distances(rows, 3)
    assert (distances[4:8] == 0).all()
    assert (np.delete(distances, range(4, 8)) > 0).all()
    assert neighbour_distances(np.float32([[0, 0], [3, 4]]), 9).tolist() == [5, 5]
    assert neighbour_distances(np.ones((1, 2), np.float32), 5).tolist() == [0]


@pytest.mark.parametrize("library", ["faiss", "torch"])
def test_the_most_similar_rows_come_first_and_equal_ones_by_number(library, small_blocks, monkeypatch):
    if library == "torch":
        monkeypatch.setattr(search, "load_faiss", lambda: None)
    elif not search.load_faiss():
        pytest.skip("faiss is not installed")
    rows = np.random.default_rng(0).normal(size=(40, 5))
    rows[[7, 30]] = rows[12]
    queries = np.concatenate([rows[12:13] * 5, np.random.default_rng(1).normal(size=(6, 5))])
    found, similar = find_most_similar(rows, queries, 9)
    products = queries @ rows.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :9]
    assert np.array_equal(found, expected)
    assert found[0, :3].tolist() == [7, 12, 30]
    np.testing.assert_allclose(similar, np.take_along_axis(products, expected, axis=1), rtol=1e-5, atol=1e-5)
    assert (found.dtype, similar.dtype) == (np.int64, np.float32)


def test_density_is_one_over_the_mean_distance_to_others():
    line = np.array([[0.0], [1.0], [3.0], [10.0]])
    np.testing.assert_allclose(density(line, neighbours=2), [1 / 2, 1 / 1.5, 1 / 2.5, 1 / 8])
    assert density(np.zeros((4, 2)), neighbours=3)[0] == np.inf
    for features, neighbours, message in (
        (line, 10, "more than 10 images"),
        (np.full((20, 2), np.nan), 10, "not finite"),
        (line, 0, "neighbours must be at least 1, not 0"),
    ):
        with pytest.raises(StudyError, match=message):
            density(features, neighbours)


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_density_from_blocks_is_that_of_all_distances(spread, small_blocks):
    generator = np.random.default_rng(2)
    # Unit vectors close to each other, some of them equal: where an expanded square loses its digits.
    features = np.repeat(np.eye(1, 16), 90, axis=0) + spread * generator.normal(size=(90, 16))
    features[40:44] = features[40]
    features = features.astype(np.float32)
    every = apart(features, features)
    np.fill_diagonal(every, np.inf)
    expected = 1 / np.sort(every, axis=1)[:, :5].mean(axis=1)
    np.testing.assert_allclose(density(features, neighbours=5), expected, rtol=1e-3 if spread < 1 else 1e-5)
