"""Nearest to and farthest from cluster centres, and the clusters themselves."""

import numpy as np
import torch

from chexstudy.curation.methods import METHODS, clusters


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_circle(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


TWO_ARCS = on_circle([-20, -5, 0, 5, 20, 160, 175, 180, 185, 200])


def test_easy_takes_the_middle_and_hard_the_ends_of_each_arc():
    easy = METHODS["prototypicality_easy"].choose(TWO_ARCS, 2, draw(), clusters=2)
    hard = METHODS["prototypicality_hard"].choose(TWO_ARCS, 4, draw(), clusters=2)
    assert easy.rows.tolist() == [2, 7]
    assert hard.rows.tolist() == [0, 4, 5, 9]
    np.testing.assert_allclose(easy.scores, np.cos(np.deg2rad([20, 5, 0, 5, 20] * 2)), atol=1e-6)
    np.testing.assert_allclose(hard.scores, -easy.scores, atol=1e-6)


def test_centroids_have_unit_norm_and_rows_go_to_the_most_similar():
    rows = torch.nn.functional.normalize(torch.randn(500, 8, generator=draw()), dim=1).numpy()
    found = clusters.cluster_rows(rows, 9, 10, draw(1))
    np.testing.assert_allclose(found.centroids.norm(dim=1), 1, atol=1e-6)
    cosines = rows @ found.centroids.numpy().T
    assert (cosines.argmax(axis=1) == found.nearest).all()
    np.testing.assert_allclose(cosines.max(axis=1), found.similarity, atol=1e-6)


def test_large_sets_are_fitted_on_a_sample_and_assigned_in_blocks(monkeypatch):
    monkeypatch.setattr(clusters, "_FITTED_ROWS", 6)
    found = clusters.cluster_rows(np.tile(TWO_ARCS, (900, 1)), 2, 10, draw(3))
    assert len(found.nearest) == 9000
    assert (found.nearest.reshape(-1, 10) == found.nearest[:10]).all()
