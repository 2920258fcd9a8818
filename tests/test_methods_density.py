"""Sampling against density: chances, exact counts and what happens at the edges."""

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS
from chexstudy.curation.methods.coverage import inclusion_chances


@pytest.mark.parametrize(
    ("sizes", "budget", "chances"),
    [
        ([1, 1, 2, 4], 2, [0.25, 0.25, 0.5, 1]),
        ([1, 1, 2, 4], 3, [0.5, 0.5, 1, 1]),
        ([1, 1, 2, 4], 4, [1, 1, 1, 1]),
        ([0, 0, 3, 1], 1, [0, 0, 0.75, 0.25]),
        ([0, 0, 3, 1], 3, [0.5, 0.5, 1, 1]),
        ([0, 0, 0, 0], 1, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_chances_are_proportional_to_size_and_sum_to_the_budget(sizes, budget, chances):
    np.testing.assert_allclose(inclusion_chances(np.array(sizes, dtype=float), budget), chances)


def test_over_many_seeds_rows_are_drawn_as_often_as_their_neighbours_are_far():
    # Pairs of points, pairs far apart: the first neighbour of each point is its partner, at a gap of its own.
    rng = np.random.default_rng(0)
    gaps = np.repeat([0.02, 0.04, 0.06, 0.08], 10)
    centres = np.eye(40)
    aside = np.roll(np.eye(40), 20, axis=1)
    points = np.concatenate([centres, centres + gaps[:, None] * aside]).astype(np.float32)
    points = points[rng.permutation(80)]
    distance = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)[:, 1]
    drawn = np.zeros(80)
    for seed in range(1500):
        drawn[METHODS["density"].choose(points, 24, torch.Generator().manual_seed(seed), neighbours=1).rows] += 1
    for gap in (0.02, 0.04, 0.06, 0.08):
        group = np.abs(distance - gap) < 0.005
        assert group.sum() == 20
        assert drawn[group].mean() / 1500 == pytest.approx(24 * gap / (20 * 0.2), rel=0.03)


def test_a_lone_point_is_certain_and_copies_come_last():
    angles = np.deg2rad([0, 0, 0, 0, 10, 11, 12, 13, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for seed in range(30):
        assert 8 in METHODS["density"].choose(points, 2, torch.Generator().manual_seed(seed), neighbours=2).rows
        five = METHODS["density"].choose(points, 5, torch.Generator().manual_seed(seed), neighbours=2).rows
        assert five.tolist() == [4, 5, 6, 7, 8]
