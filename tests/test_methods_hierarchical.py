"""Balanced sampling from a hierarchy of clusters."""

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS
from chexstudy.curation.methods.hierarchical import balanced_sequence, plan_levels
from chexstudy.errors import StudyError


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_budget_is_divided_evenly_at_every_level():
    # Two clusters at the top: one of six rows; one of two small clusters of two rows each.
    labels = [np.array([0] * 6 + [1] * 2 + [2] * 2), np.array([0, 1, 1])]
    for seed in range(10):
        place = balanced_sequence(labels, 10, draw(seed))
        assert sorted(place) == list(range(10))
        for budget, counts in ((2, {(1, 1, 0), (1, 0, 1)}), (4, {(2, 1, 1)}), (8, {(4, 2, 2)}), (9, {(5, 2, 2)})):
            chosen = labels[0][place < budget]
            assert tuple(np.bincount(chosen, minlength=3)) in counts


def test_no_cluster_lags_behind_a_sibling_unless_it_is_exhausted():
    rng = np.random.default_rng(0)
    labels = [rng.choice(12, 400, p=rng.dirichlet(np.ones(12))), rng.integers(0, 4, 12), rng.integers(0, 2, 4)]
    place = balanced_sequence(labels, 400, draw())
    owner, parents = np.arange(400), [*labels, np.zeros(2, dtype=int)]
    for level in range(3):
        owner = labels[level][owner]
        sizes = np.bincount(owner, minlength=len(parents[level + 1]))
        for budget in (1, 7, 50, 211, 399):
            counts = np.bincount(owner[place < budget], minlength=len(sizes))
            for parent in np.unique(parents[level + 1]):
                siblings = np.flatnonzero(parents[level + 1] == parent)
                unfinished = siblings[counts[siblings] < sizes[siblings]]
                if len(unfinished):
                    assert counts[siblings].max() - counts[unfinished].min() <= 1


def test_small_groups_get_as_much_as_large_ones_until_they_are_whole():
    group = np.repeat([0, 1, 2, 3], [900, 60, 30, 10])
    place = balanced_sequence([group], 1000, draw())
    assert np.bincount(group[place < 100]).tolist() == [30, 30, 30, 10]


def test_rare_groups_are_kept_well_above_their_share():
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1, 2, 3], [900, 60, 30, 10])
    points = np.eye(4, 16)[group] + 0.05 * rng.normal(size=(1000, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    rare = group[METHODS["hierarchical"].choose(points, 100, draw()).rows] > 0
    assert rare.mean() > 2 * (group > 0).mean()


def test_levels_shrink_and_must_exist():
    assert plan_levels(100_000, 3, None) == [2154, 167, 30]
    assert plan_levels(100_000, 2, 1000) == [1000, 100]
    assert plan_levels(1, 3, None) == [1, 1, 1]
    with pytest.raises(StudyError, match="at least one level, not 0"):
        plan_levels(10, 0, None)
