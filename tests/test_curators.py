"""Curators other than the published one, and the random streams they draw from."""

import numpy as np
import pytest
import torch

from chexstudy.curation.online.curators import RandomCurator, SubsetCurator, select_label_balanced
from chexstudy.pretraining.engine.random_streams import RandomStreams


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_keeps_the_number_asked_for_in_each_step():
    curator = RandomCurator([3, 0])
    first, grounds = curator.choose(0, torch.arange(10), None, _generator())
    assert int(first.sum()) == 3
    assert grounds is None
    assert int(curator.choose(1, torch.arange(10), None, _generator())[0].sum()) == 0
    again, _ = curator.choose(0, torch.arange(10), None, _generator())
    assert torch.equal(first, again)


def test_subset_keeps_its_members():
    kept, _ = SubsetCurator(np.array([4, 7])).choose(0, torch.tensor([7, 1, 4, 9]), None, _generator())
    assert kept.tolist() == [True, False, True, False]


def test_balanced_subset_holds_every_rare_case_before_the_common_ones():
    labels = np.zeros((100, 3))
    labels[:60, 0] = 1
    labels[60:64, 1] = 1
    labels[64:66, 2] = 1
    labels[70, 1] = -1
    chosen = select_label_balanced(labels, 20, _generator())
    assert len(set(chosen)) == 20
    counts = [int((labels[chosen, c] == 1).sum()) for c in range(3)]
    assert counts[1:] == [4, 2]
    assert counts[0] == (20 - 6) // 2
    with pytest.raises(ValueError, match="cannot choose 101 of 100"):
        select_label_balanced(labels, 101, _generator())


def test_streams_differ_by_purpose_and_place_and_can_be_fixed():
    streams = RandomStreams(0)
    assert len({streams.draw_seed(*place) for place in (("order", 1), ("order", 2), ("selection", 1))}) == 3
    assert RandomStreams(1, fixed=("order",)).draw_seed("order") == streams.draw_seed("order")
    one, other = (RandomStreams(3).generator("order", 5) for _ in range(2))
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))
