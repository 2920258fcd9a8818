"""k-means on all rows, and distances to neighbours, with faiss and without."""

import numpy as np
import pytest
import torch

from chexstudy.vectors import kmeans as clustering


@pytest.fixture(params=[True, False], ids=["faiss", "without"])
def either_library(request, monkeypatch):
    if request.param and not clustering.faiss_is_available():
        pytest.skip("faiss is not installed")
    monkeypatch.setattr(clustering, "faiss_is_available", lambda: request.param)


def test_more_rows_a_centroid_can_be_asked_for_than_faiss_takes_by_default():
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    exact = clustering.cluster_features(rows, 1, 5, 0, rows_per_cluster=3000)
    torch.testing.assert_close(exact, rows.mean(dim=0, keepdim=True), atol=1e-5, rtol=0)


def test_the_distance_to_a_neighbour_is_that_of_an_exhaustive_search(either_library, monkeypatch):
    monkeypatch.setattr(clustering, "_QUERY_ROWS", 64)
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    between = np.linalg.norm(rows[:, None].astype(np.float64) - rows[None], axis=2)
    for neighbours in (1, 4):
        expected = np.sort(between, axis=1)[:, neighbours]
        np.testing.assert_allclose(clustering.neighbour_distances(rows, neighbours), expected, rtol=1e-5)


def test_copies_are_at_distance_zero_and_few_rows_have_few_neighbours(either_library):
    rows = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)
    rows[5:8] = rows[4]
    distances = clustering.neighbour_distances(rows, 3)
    assert (distances[4:8] == 0).all()
    assert (np.delete(distances, range(4, 8)) > 0).all()
    assert clustering.neighbour_distances(np.float32([[0, 0], [3, 4]]), 9).tolist() == [5, 5]
    assert clustering.neighbour_distances(np.ones((1, 2), np.float32), 5).tolist() == [0]


def test_the_most_similar_rows_come_first_and_equal_ones_by_number(either_library, monkeypatch):
    monkeypatch.setattr(clustering, "_QUERY_ROWS", 3)
    rows = np.random.default_rng(0).normal(size=(40, 5))
    rows[[7, 30]] = rows[12]
    queries = np.concatenate([rows[12:13] * 5, np.random.default_rng(1).normal(size=(6, 5))])
    found, similar = clustering.find_most_similar(rows, queries, 9)
    products = queries @ rows.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :9]
    assert np.array_equal(found, expected)
    assert found[0, :3].tolist() == [7, 12, 30]
    np.testing.assert_allclose(similar, np.take_along_axis(products, expected, axis=1), rtol=1e-5, atol=1e-5)
    assert (found.dtype, similar.dtype) == (np.int64, np.float32)
