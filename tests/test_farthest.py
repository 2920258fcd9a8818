"""Farthest-point selection on geometry one can work out by hand."""

import pytest
import torch

from chexstudy.curation.farthest import farthest_points


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
