"""Running quantiles and recently kept pairs, against plain lists."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from chexstudy.curation.online.running_quantiles import RecentPairs, RunningQuantiles


def test_quantiles_and_ranks_are_those_of_the_latest_values_of_each_group():
    generator = np.random.default_rng(0)
    running, latest = RunningQuantiles(3, 20, 10**6, torch.zeros(1)), {k: [] for k in range(3)}
    for _ in range(30):
        groups, values = generator.integers(0, 2, 7), generator.random(7).astype(np.float32)
        belongs = generator.random(7) < 0.8
        running.add(torch.from_numpy(groups), torch.from_numpy(values), torch.from_numpy(belongs), 0)
        for group, value, belong in zip(groups, values, belongs, strict=True):
            latest[group] = [*latest[group], value][-20:] if belong else latest[group]
    running.settle(0)
    for share in (0.0, 0.3, 0.85, 1.0):
        quantile = running.quantile(share, unknown=-1.0)
        for k in range(2):
            assert quantile[k].item() == pytest.approx(np.quantile(latest[k], share), abs=1e-6)
        assert quantile[2] == -1.0, "nothing was seen of the last group"
    rank = running.rank(torch.tensor([0, 1, 2]), torch.tensor([0.5, 0.2, 0.1]))
    assert rank.tolist() == pytest.approx([np.mean(np.array(latest[0]) < 0.5), np.mean(np.array(latest[1]) < 0.2), 1.0])


def test_a_quantile_for_each_group_and_infinite_values():
    running = RunningQuantiles(2, 4, 10, torch.zeros(1))
    running.add(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1.0, 2.0, 3.0, torch.inf, 5.0]), torch.ones(5) > 0, 0)
    running.settle(0)
    assert running.quantile(torch.tensor([0.5, 1.0]), unknown=0.0).tolist() == [2.0, torch.inf]


def test_distance_is_to_the_nearest_other_pair_of_the_same_group():
    bank = RecentPairs(2, 3, torch.zeros(1, 2))
    points = normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    bank.add(torch.tensor([0, 0, 1]), points, torch.tensor([10, 11, 12]), torch.tensor([True, True, True]))
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    distance = bank.distance(torch.tensor([0, 0, 1]), queries, torch.tensor([99, 10, 99]))
    assert distance[0].item() == pytest.approx(0.0, abs=1e-3)
    assert distance[1].item() == pytest.approx(2**0.5), "a pair is not compared with itself"
    assert distance[2].item() == pytest.approx((2 - 2**0.5) ** 0.5, abs=1e-6)


def test_the_bank_forgets_the_oldest_and_knows_when_it_is_empty():
    bank = RecentPairs(1, 2, torch.zeros(1, 2))
    group, row = torch.zeros(1, dtype=torch.int64), torch.tensor([5])
    query = torch.tensor([[1.0, 0.0]])
    assert torch.isinf(bank.distance(group, query, row)).all()
    for number, point in enumerate(([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0])):
        bank.add(group, torch.tensor([point]), torch.tensor([number]), torch.tensor([True]))
    assert bank.distance(group, query, row).item() == pytest.approx(2**0.5), "the equal one was the oldest of three"


def test_what_was_seen_too_long_ago_is_forgotten():
    running = RunningQuantiles(1, 8, 100, torch.zeros(1))
    group, all_of_them = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)
    running.add(group, torch.tensor([1.0, 3.0]), all_of_them, 0)
    running.add(group, torch.tensor([10.0, 30.0]), all_of_them, 60)
    expected = {60: 6.5, 99: 6.5, 100: 20.0, 160: -1.0}
    for now, median in expected.items():
        running.settle(now)
        assert running.quantile(0.5, unknown=-1.0).item() == median
