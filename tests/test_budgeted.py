"""The budgeted curator: an exact count, whatever the batch, and a choice by the bands it promises."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import normalize

from chexstudy.curation.online.budgeted import VIRTUAL_BATCH, BudgetedCurator, _divide_share
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import OUTLIER
from chexstudy.curation.online.streaming import curate_stream
from chexstudy.errors import StudyError


def _clustered(rows, dim=24, seed=0, weights=(0.6, 0.2, 0.1, 0.1)):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(len(weights), dim, generator=generator)
    of = torch.multinomial(torch.tensor(weights), rows, replacement=True, generator=generator)
    points = centres[of] + torch.randn(rows, dim, generator=generator)
    return normalize(points, dim=1).numpy(), of.numpy()


def _config(**changes):
    return CuratorConfig(**({"rule": "budgeted", "warm_up_order": "random", "prototypes": 4} | changes))


def _stream(features, config, super_batch=480, seed=0, order_seed=3, epochs=1):
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(order_seed)).numpy()
    return curate_stream(features, config, torch.Generator().manual_seed(seed), super_batch, order, epochs)


@pytest.mark.parametrize("budget", [0.03, 0.1, 0.227, 0.6, 0.97, 1.0, 500.0])
@pytest.mark.parametrize("super_batch", [100, 480, 5000])
def test_the_budget_is_met_exactly(budget, super_batch):
    features, _ = _clustered(1703)
    stream = _stream(features, _config(budget=budget), super_batch)
    expected = round(budget * 1703) if budget <= 1 else int(budget)
    assert int(stream.kept.sum()) == expected
    assert sorted(stream.row) == list(range(1703))


@pytest.mark.parametrize("prototypes", [1, 4, 40])
def test_the_number_of_prototypes_does_not_change_the_count(prototypes):
    features, _ = _clustered(1200)
    assert _stream(features, _config(prototypes=prototypes, budget=0.2)).kept.sum() == 240


def test_the_kept_set_hardly_depends_on_the_batch_while_the_published_one_does():
    features, _ = _clustered(4000)
    sizes = (128, 480, 2048, 8192)
    overlap = {}
    for rule in ("budgeted", "published"):
        streams = {size: _stream(features, _config(rule=rule), size) for size in sizes}
        kept = {size: set(stream.row[stream.kept]) for size, stream in streams.items()}
        overlap[rule] = {(a, b): len(kept[a] & kept[b]) / len(kept[a] | kept[b]) for a in sizes for b in sizes if a < b}
    assert min(overlap["budgeted"].values()) > 0.88
    assert min(value for pair, value in overlap["budgeted"].items() if min(pair) >= VIRTUAL_BATCH) > 0.95
    assert max(overlap["published"].values()) < 0.88
    assert min(overlap["published"].values()) < 0.3


def test_batches_of_whole_virtual_batches_decide_alike_until_the_budget_binds():
    features, _ = _clustered(6 * VIRTUAL_BATCH)
    sizes = (VIRTUAL_BATCH, 3 * VIRTUAL_BATCH)
    one, other = (_stream(features, _config(), size).set_index("row") for size in sizes)
    same = (one.kept == other.kept.loc[one.index]).to_numpy()
    assert same[: 3 * VIRTUAL_BATCH].all()
    assert np.array_equal(one.distance, other.distance)


def test_a_space_that_drifts_neither_spends_the_budget_early_nor_makes_outliers_of_all():
    features = torch.from_numpy(_clustered(12 * VIRTUAL_BATCH)[0])
    generator = torch.Generator().manual_seed(9)
    drift = torch.randn(features.shape[1], generator=generator)
    curator = BudgetedCurator(_config())
    curator.warm_up(features[:VIRTUAL_BATCH], torch.arange(VIRTUAL_BATCH))
    curator.begin_epoch(len(features))
    kept, outliers = [], []
    for number, start in enumerate(range(0, len(features), VIRTUAL_BATCH)):
        rows = torch.arange(start, start + VIRTUAL_BATCH)
        moved = normalize(features[rows] + 0.04 * number * drift / drift.norm(), dim=1)
        mask, selection = curator.choose(number, rows, moved, None)
        kept.append(mask.double().mean().item())
        outliers.append((selection.band == OUTLIER).double().mean().item())
    assert max(outliers) < 0.12
    assert min(kept) > 0.12
    assert max(kept) < 0.35


def test_central_pairs_are_shared_evenly_over_uneven_prototypes():
    features, _ = _clustered(6000, weights=(0.7, 0.1, 0.1, 0.1))
    decisions = _stream(features, _config(budget=0.227))
    members = decisions.groupby("prototype").size()
    central = decisions[decisions.band == "central"].groupby("prototype").kept.sum()
    assert members.max() > 3 * members.min()
    assert central.max() < 1.25 * central.min()


def test_copies_of_a_pair_are_not_kept_twice():
    features, _ = _clustered(600)
    decisions = _stream(np.concatenate([features, features, features]), _config(budget=0.2))
    assert decisions.kept.sum() == 360
    central = decisions[decisions.kept & (decisions.band == "central")].row % 600
    assert len(central) > 100
    assert central.nunique() > 0.95 * len(central)


@pytest.mark.parametrize(("policy", "kept_share"), [("drop", 0.0), ("review", 0.0), ("keep", 1.0)])
def test_outliers_follow_their_policy(policy, kept_share):
    features, _ = _clustered(3000)
    decisions = _stream(features, _config(outlier_policy=policy))
    outliers = decisions[decisions.band == "outlier"]
    assert 0.02 < len(outliers) / 3000 < 0.09
    assert outliers.kept.mean() == pytest.approx(kept_share, abs=0.02)
    assert outliers.reason.astype(str).str.contains("review").any() == (policy == "review")
    assert len(decisions[decisions.kept]) == round(0.227 * 3000)


def test_a_pair_dropped_in_one_epoch_can_be_taken_back_in_the_next():
    features, _ = _clustered(1500)
    decisions = _stream(features, _config(), epochs=2)
    by_epoch = decisions.groupby("epoch").kept.sum()
    assert by_epoch.tolist() == [340, 340]
    first, second = (decisions[decisions.epoch == epoch].set_index("row").kept.sort_index() for epoch in (0, 1))
    assert (~first & second).any()


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped():
    features = torch.from_numpy(_clustered(1000)[0])
    rows = torch.arange(1000)

    def run(stop):
        curator = BudgetedCurator(_config(budget=0.3))
        curator.warm_up(features[:200], rows[:200])
        curator.begin_epoch(1000)
        kept = []
        for start in range(0, 1000, 150):
            if stop and start == 450:
                state = curator.state_dict()
                curator = BudgetedCurator(_config(budget=0.3))
                curator.load_state_dict(state)
            batch = slice(start, start + 150)
            kept.append(curator.choose(0, rows[batch], features[batch], None)[0])
        return torch.cat(kept), curator.prototypes

    for one, other in zip(run(False), run(True), strict=True):
        assert torch.equal(one, other)


def test_shares_are_divided_by_hand():
    config = _config()
    members = torch.tensor([0.7, 0.2, 0.1])
    # 0.10 of all pairs are support; 0.127 are left for 0.85 of the members of three prototypes: 0.0423 each.
    support, central = _divide_share(torch.tensor(0.227), members, config)
    assert support == 1
    assert torch.allclose(central, (0.127 / 3) / (0.85 * members))
    # At 0.5, a level of 0.4 / 3 = 0.133 exceeds the last prototype's 0.085: it gives all, the others (0.4 - 0.085) / 2.
    support, central = _divide_share(torch.tensor(0.5), members, config)
    assert torch.allclose(central, torch.tensor([0.1575 / 0.595, 0.1575 / 0.17, 1.0]))
    support, central = _divide_share(torch.tensor(0.05), members, config)
    assert support == pytest.approx(0.5)
    assert (central == 0).all()
    support, central = _divide_share(torch.tensor(0.99), members, config)
    assert (central == 1).all()


def test_what_a_small_budget_leaves_of_the_support_band_is_its_farthest_part():
    features, _ = _clustered(4000)
    decisions = _stream(features, _config(budget=0.05, prototypes=1, decay=1.0))
    support = decisions[decisions.band == "support"]
    near, far = (support[support.kept == kept].distance for kept in (False, True))
    assert far.quantile(0.25) > near.quantile(0.75)
    assert (support[~support.kept].reason.astype(str).str.contains("budget was spent")).all()


def test_wrong_budgets_and_lengths_are_one_sentence():
    features, _ = _clustered(300)
    for rows, budget, sentence in (
        (300, 301.0, "budget of 301 pairs is more than the 300"),
        (300, 10.5, "must be whole"),
        (3, 0.227, "4 prototypes cannot be fitted on 3 pairs"),
    ):
        with pytest.raises(StudyError, match=sentence):
            _stream(features[:rows], _config(budget=budget))
    curator = BudgetedCurator(_config())
    curator.warm_up(torch.from_numpy(features), torch.arange(300))
    curator.begin_epoch(10)
    with pytest.raises(StudyError, match="10 more pairs in this epoch but was given 20"):
        curator.choose(0, torch.arange(20), torch.from_numpy(features[:20]), None)


def _on_no_device(value, mode):
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    return {name: _on_no_device(part, mode) for name, part in value.items()} if isinstance(value, dict) else value


def test_no_decision_waits_for_the_device():
    features, rows = torch.from_numpy(_clustered(700)[0]), torch.arange(700)
    curator = BudgetedCurator(_config())
    curator.warm_up(features[:100], rows[:100])
    curator.begin_epoch(700)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # A tensor without values makes every look at a value an error, as a GPU would make it a wait.
        with pytest.raises(DataDependentOutputException):
            _on_no_device(features, mode)[0, 0].item()
        again = BudgetedCurator(_config())
        again.load_state_dict(_on_no_device(curator.state_dict(), mode))
        kept, _ = again.choose(0, _on_no_device(rows, mode), _on_no_device(features, mode), None)
        assert kept.shape == (700,)


@pytest.mark.cuda
def test_a_gpu_decides_as_the_cpu():
    features, rows = torch.from_numpy(_clustered(2000)[0]), torch.arange(2000)
    kept = []
    for device in ("cpu", "cuda"):
        curator = BudgetedCurator(_config())
        curator.warm_up(features[:400].to(device), rows[:400])
        curator.begin_epoch(2000)
        kept.append(curator.choose(0, rows, features.to(device), None)[0].cpu())
    # Distances differ in their last bits, so a pair at an edge may fall on its other side.
    assert int((kept[0] ^ kept[1]).sum()) <= 20
    assert int(kept[0].sum()) == int(kept[1].sum())
