"""The published selection rule: counts of the bands, an independent restatement, and what the generator decides."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from chexstudy.curation.configuration import CuratorConfig
from chexstudy.curation.decisions import CENTRAL, OUTLIER, SUPPORT
from chexstudy.curation.ledger import LEDGER_COLUMNS, ledger_rows, summarise_bands
from chexstudy.curation.selection import select_samples


def _features(rows, dim, seed):
    return normalize(torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(
    ("members", "outliers", "support", "central"),
    [(1, 0, 0, 1), (2, 1, 0, 1), (7, 1, 0, 6), (10, 1, 1, 8), (20, 1, 2, 10), (21, 1, 2, 10)],
)
def test_band_sizes_of_one_cluster(members, outliers, support, central):
    selection = select_samples(_features(members, 6, members), _features(1, 6, 99), CuratorConfig(prototypes=1), None)
    assert int((selection.band == OUTLIER).sum()) == outliers
    assert int((selection.kept & (selection.band == SUPPORT)).sum()) == support
    assert int((selection.kept & (selection.band == CENTRAL)).sum()) == central


def test_agrees_with_a_plain_numpy_restatement():
    features, prototypes = _features(300, 12, 1), _features(6, 12, 2)
    config = CuratorConfig()
    x, p = features.numpy(), prototypes.numpy()
    distances = np.sqrt(((x[:, None] - p[None]) ** 2).sum(-1))
    nearest, distance = distances.argmin(1), distances.min(1)
    expected = np.zeros(300, bool)
    for k in range(6):
        members = np.flatnonzero(nearest == k)
        upper, lower = np.quantile(distance[members], 0.95), np.quantile(distance[members], 0.85)
        expected[members[(distance[members] > lower) & (distance[members] <= upper)]] = True
        central = members[distance[members] <= lower]
        if len(central) > 10:
            picks = [0]
            while len(picks) < 10:
                gaps = np.sqrt(((x[central][:, None] - x[central[picks]][None]) ** 2).sum(-1)).min(1)
                gaps[picks] = -1
                picks.append(int(gaps.argmax()))
            central = central[picks]
        expected[central] = True
    assert np.array_equal(select_samples(features, prototypes, config, None).kept.numpy(), expected)


def test_keep_ratio_follows_the_batch_not_the_data():
    prototypes = _features(6, 64, 5)
    ratios = {
        rows: float(select_samples(_features(rows, 64, rows), prototypes, CuratorConfig(), None).kept.double().mean())
        for rows in (240, 480, 1920)
    }
    for rows, ratio in ratios.items():
        assert ratio == pytest.approx(0.10 + 10 * 6 / rows, abs=0.03)


def test_generator_moves_only_the_central_picks():
    features, prototypes = _features(480, 16, 8), _features(6, 16, 9)
    one, same, other = (
        select_samples(features, prototypes, CuratorConfig(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.kept, same.kept)
    assert not torch.equal(one.kept, other.kept)
    assert torch.equal(one.band, other.band)
    not_central = one.band != CENTRAL
    assert torch.equal(one.kept[not_central], other.kept[not_central])


def test_one_prototype_for_all_rows_keeps_no_outlier():
    selection = select_samples(_features(100, 4, 3), _features(1, 4, 4), CuratorConfig(prototypes=1), None)
    farthest = selection.distance.topk(5).indices
    assert not selection.kept[farthest].any()


def test_ledger_states_each_decision_with_its_reason():
    features, prototypes = _features(200, 8, 4), _features(3, 8, 5)
    selection = select_samples(features, prototypes, CuratorConfig(prototypes=3), None)
    ledger = ledger_rows(np.array([f"s/{i}" for i in range(200)]), 4, 17, selection)
    assert tuple(ledger.columns) == LEDGER_COLUMNS
    assert (ledger.reason.str.startswith("kept") == ledger.kept).all()
    assert (ledger[ledger.band == "outlier"].distance > ledger[ledger.band == "outlier"].threshold_outlier).all()
    central = ledger[(ledger.band == "central") & ledger.kept & (ledger.order >= 0)]
    for _, picks in central.groupby("prototype"):
        assert sorted(picks.order) == list(range(10))
    bands = summarise_bands(ledger).set_index("band")
    assert bands.pairs.sum() == 200
    assert bands.kept["outlier"] == 0
    assert bands.kept["support"] == bands.pairs["support"]
