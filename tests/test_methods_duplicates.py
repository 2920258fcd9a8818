"""SemDeDup and D4 on arcs of a circle, and against a plain restatement."""

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS, duplicates
from chexstudy.curation.methods.clusters import Clusters, cluster_rows


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_circle(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_of_two_near_copies_the_one_farther_from_the_centroid_stays():
    # The centroid lies at 33.6 degrees; from the least like it: 90, 0, 1, 42, 40.
    points = on_circle([0, 1, 40, 42, 90])
    scores = METHODS["semdedup"].choose(points, 5, draw(), clusters=1).scores
    expected = [np.cos(np.deg2rad(90)), np.cos(np.deg2rad(1)), np.cos(np.deg2rad(2)), np.cos(np.deg2rad(41)), -1]
    np.testing.assert_allclose(-scores, expected, atol=1e-6)
    kept = {
        budget: METHODS["semdedup"].choose(points, budget, draw(), clusters=1).rows.tolist() for budget in range(1, 5)
    }
    assert kept == {1: [4], 2: [0, 4], 3: [0, 3, 4], 4: [0, 2, 3, 4]}


def test_rows_of_different_clusters_are_not_compared():
    points = on_circle([0, 0.1, 179.9, 180])
    apart = Clusters(torch.eye(2), np.array([0, 1, 0, 1]), np.float32([0.9, 0.8, 0.7, 0.6]))
    np.testing.assert_allclose(duplicates.duplication(points, apart), [-1, -1, -1, -1], atol=1e-4)


@pytest.mark.parametrize("block", [5, 1024])
def test_scores_are_those_of_a_plain_restatement_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK_ROWS", block)
    rows = torch.nn.functional.normalize(torch.randn(120, 6, generator=draw()), dim=1).numpy()
    clustered = cluster_rows(rows, 4, 10, draw(1))
    expected = np.full(120, -1.0)
    for row in range(120):
        for other in np.flatnonzero(clustered.nearest == clustered.nearest[row]):
            if clustered.similarity[other] < clustered.similarity[row]:
                expected[row] = max(expected[row], float(rows[row] @ rows[other]))
    np.testing.assert_allclose(duplicates.duplication(rows, clustered), expected, atol=1e-6)


def test_copies_go_first_and_one_of_each_is_left():
    points = on_circle([*[0] * 5, *[50] * 4, *[100] * 3, 150, 200])
    choice = METHODS["semdedup"].choose(points, 5, draw(), clusters=1)
    assert np.unique(points[choice.rows].round(3), axis=0).shape == (5, 2)


def test_d4_measures_the_unusual_without_the_copies():
    # Eight copies draw the centroid of all rows to 0 degrees; without seven of them it lies at 40.
    points = on_circle([*[0] * 8, 10, 20, 30, 40, 50, 60, 70, 80])
    hard = METHODS["prototypicality_hard"].choose(points, 2, draw(), clusters=1)
    assert hard.rows.tolist() == [14, 15]
    choice = METHODS["d4"].choose(points, 2, draw(), clusters=1, deduplicated_share=9 / 16)
    assert choice.rows[0] < 8
    assert choice.rows[1] == 15


def test_d4_beyond_its_first_share_is_semdedup_alone():
    points = torch.nn.functional.normalize(torch.randn(80, 6, generator=draw()), dim=1).numpy()
    for budget in (60, 70):
        d4, semdedup = (METHODS[name].choose(points, budget, draw(2)).rows for name in ("d4", "semdedup"))
        assert d4.tolist() == semdedup.tolist()
    assert (
        METHODS["d4"].choose(points, 59, draw(2)).rows.tolist()
        != METHODS["semdedup"].choose(points, 59, draw(2)).rows.tolist()
    )
