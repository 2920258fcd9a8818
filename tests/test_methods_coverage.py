"""Methods that cover the set, on geometry one can work out by hand."""

import numpy as np
import torch

from chexstudy.curation.methods import METHODS
from chexstudy.vectors.farthest import farthest_points


def on_circle(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_k_centre_goes_from_a_drawn_start_to_the_farther_end_and_on():
    points = on_circle([0, 20, 40, 41, 60, 83])
    starts = set()
    for seed in range(12):
        choice = METHODS["k_centre"].choose(points, 3, torch.Generator().manual_seed(seed))
        order = np.argsort(-choice.scores)[:3].tolist()
        assert order == farthest_points(torch.from_numpy(points), 3, start=order[0]).tolist()
        assert order[1] == (5 if order[0] <= 3 else 0)
        assert choice.scores[order].tolist() == [3, 2, 1]
        starts.add(order[0])
    assert len(starts) > 2


def test_k_centre_finds_every_distant_group_before_a_second_of_any():
    points = on_circle([*range(30), 90, 91, 180, 181, 270])
    choice = METHODS["k_centre"].choose(points, 4, torch.Generator().manual_seed(0))
    assert sorted(np.searchsorted([30, 32, 34], choice.rows, side="right")) == [0, 1, 2, 3]


def test_facility_location_takes_the_middle_of_the_largest_group_first():
    # Within a group the middle represents the others best; groups this far apart represent nothing of each other.
    points = on_circle([150, 155, 160, 0, 1, 2, 3, 4])
    choice = METHODS["facility_location"].choose(points, 2, torch.Generator().manual_seed(0))
    assert np.argsort(-choice.scores)[:2].tolist() == [5, 1]
    assert choice.rows.tolist() == [1, 5]


def test_facility_location_in_random_parts_differs_by_seed_and_meets_the_budget():
    points = torch.nn.functional.normalize(
        torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), dim=1
    ).numpy()
    subsets = [
        METHODS["facility_location"].choose(points, 33, torch.Generator().manual_seed(seed), part_rows=50).rows.tolist()
        for seed in (0, 0, 1)
    ]
    assert subsets[0] == subsets[1] != subsets[2]
    assert len(subsets[2]) == 33
