"""The published selection rule: counts of the bands, an independent restatement, and what the generator decides."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from chexstudy.curation.online import fused, static
from chexstudy.curation.online.configuration import OUTLIER_POLICIES, SAMPLERS, CuratorConfig
from chexstudy.curation.online.decisions import CENTRAL, OUTLIER, REASONS, SUPPORT, Reason, ledger_rows
from chexstudy.curation.online.selection import apply_rule, draw_chance, select_samples
from chexstudy.curation.records.ledger import LEDGER_COLUMNS, summarise_bands


def _features(rows, dim, seed):
    return normalize(torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def _sample_plainly(points, config, uniform):
    """Rows of the central members in the order in which the sampler picks them."""
    if config.sampler == "random":
        return sorted(range(len(points)), key=lambda row: (float(uniform[row]), row))[: config.central_cap]
    distances = (points[:, None] - points[None]).square().sum(dim=2).sqrt()
    if config.sampler == "density":
        near = distances.masked_fill(torch.eye(len(points), dtype=torch.bool), torch.inf).sort(dim=1).values
        gaps = near[:, : min(5, len(points) - 1)].mean(dim=1)
        return torch.sort(gaps, descending=True, stable=True).indices[: config.central_cap].tolist()
    picked = [int(uniform * len(points))]
    while len(picked) < config.central_cap:
        gap = distances[:, picked].min(dim=1).values
        gap[picked] = -1
        picked.append(int(gap.argmax()))
    return picked


def _select_plainly(features, prototypes, config, chance):
    """The rule as it is told: prototype by prototype, pick by pick. Band, order, kept and reason of each row."""
    distance, nearest = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    band = torch.full((len(features),), CENTRAL)
    order = torch.full((len(features),), -1)
    reason = torch.full((len(features),), Reason.PASSED_OVER)
    kept = torch.zeros(len(features), dtype=torch.bool)
    for k in range(len(prototypes)):
        members = (nearest == k).nonzero()[:, 0]
        if len(members) == 0:
            continue
        own = distance[members]
        lower, upper = (torch.quantile(own, q) for q in (config.support_quantile, config.outlier_quantile))
        outliers, support = members[own > upper], members[(own > lower) & (own <= upper)]
        central = members[(own <= lower) & (own <= upper)]
        band[outliers], band[support] = OUTLIER, SUPPORT
        kept[support], reason[support] = True, REASONS.index("kept: in the support band")
        kept[outliers] = config.outlier_policy == "keep"
        words = {"drop": "outlier quantile", "keep": "outliers are kept", "review": "put on the review list"}
        reason[outliers] = next(
            number for number, text in enumerate(REASONS) if text.endswith(words[config.outlier_policy])
        )
        reason[central] = Reason.UNDER_CAP
        if len(central) > config.central_cap:
            reason[central] = Reason.PASSED_OVER
            uniform = chance[central] if config.sampler == "random" else chance[k] if len(chance) else None
            central = central[_sample_plainly(features[central], config, uniform)]
            order[central] = torch.arange(len(central))
            reason[central] = Reason.PICKED
        kept[central] = True
    return {"prototype": nearest, "band": band, "order": order, "kept": kept, "reason": reason}


@pytest.mark.parametrize("form", [fused, static], ids=["fused", "static"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("policy", OUTLIER_POLICIES)
@pytest.mark.parametrize("seed", [None, 3])
def test_agrees_with_a_plain_loop(form, sampler, policy, seed):
    sizes = ((1, 1, 10), (21, 1, 10), (41, 1, 10), (101, 2, 1), (300, 6, 10), (300, 50, 2), (30, 60, 4))
    for rows, count, cap in sizes:
        config = CuratorConfig(prototypes=count, sampler=sampler, outlier_policy=policy, central_cap=cap)
        features, prototypes = _features(rows, 12, rows), _features(count, 12, 1000 + count)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        chance = draw_chance(config, rows, count, generator)
        selection = apply_rule(features, prototypes, config, chance, form)
        for name, expected in _select_plainly(features, prototypes, config, chance).items():
            assert torch.equal(getattr(selection, name).long(), expected.long()), (name, rows, count)


@pytest.mark.parametrize("form", [fused, static], ids=["fused", "static"])
def test_float32_features_are_decided_as_in_float64(form):
    config = CuratorConfig(prototypes=6)
    for seed in range(3):
        features, prototypes = _features(800, 64, seed).float(), _features(6, 64, 100 + seed).float()
        chance = draw_chance(config, 800, 6, torch.Generator().manual_seed(seed))
        selection = apply_rule(features, prototypes, config, chance, form)
        for name, expected in _select_plainly(features.double(), prototypes.double(), config, chance).items():
            assert torch.equal(getattr(selection, name).long(), expected.long()), name
        assert selection.distance.dtype == torch.float64


@pytest.mark.parametrize("quantiles", [(0.85, 0.95), (0.0, 1.0), (0.3, 0.3), (0.5, 0.55)])
def test_thresholds_are_those_of_torch_bit_for_bit(quantiles):
    lower, upper = quantiles
    for members in (*range(1, 64), 101, 201, 1001):
        features = _features(members, 4, members)
        config = CuratorConfig(prototypes=1, support_quantile=lower, outlier_quantile=upper)
        selection = select_samples(features, _features(1, 4, 7), config, None)
        expected = [torch.quantile(selection.distance, quantile) for quantile in quantiles]
        assert (selection.threshold_support == expected[0]).all()
        assert (selection.threshold_outlier == expected[1]).all()


def test_rows_of_one_place_are_all_central_and_the_first_are_kept():
    features = _features(1, 8, 1).repeat(50, 1)
    for form in (fused, static):
        selection = apply_rule(features, _features(2, 8, 2), CuratorConfig(prototypes=2), torch.zeros(2), form)
        assert (selection.band == CENTRAL).all()
        assert selection.kept.nonzero()[:, 0].tolist() == list(range(10))


def test_mixed_precision_around_it_changes_nothing():
    features, prototypes = _features(600, 32, 1).float(), _features(20, 32, 2).float()
    config = CuratorConfig(prototypes=20)
    outside = select_samples(features, prototypes, config, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = select_samples(features, prototypes, config, None)
        static_inside = apply_rule(features, prototypes, config, torch.zeros(20), static)
    assert torch.equal(outside.order, inside.order)
    assert torch.equal(outside.distance, inside.distance)
    assert torch.equal(outside.order, static_inside.order)


def test_the_start_is_uniform_over_central_members():
    features, config = _features(40, 4, 1), CuratorConfig(prototypes=1)
    generator = torch.Generator().manual_seed(0)
    starts = [
        int((select_samples(features, _features(1, 4, 2), config, generator).order == 0).nonzero()) for _ in range(3400)
    ]
    counts = np.unique(starts, return_counts=True)[1]
    assert len(counts) == 34
    assert counts.min() > 50
    assert counts.max() < 160


@pytest.mark.parametrize(
    ("members", "outliers", "support", "central"),
    [(1, 0, 0, 1), (2, 1, 0, 1), (7, 1, 0, 6), (10, 1, 1, 8), (20, 1, 2, 10), (21, 1, 2, 10)],
)
def test_band_sizes_of_one_cluster(members, outliers, support, central):
    selection = select_samples(_features(members, 6, members), _features(1, 6, 99), CuratorConfig(prototypes=1), None)
    assert int((selection.band == OUTLIER).sum()) == outliers
    assert int((selection.kept & (selection.band == SUPPORT)).sum()) == support
    assert int((selection.kept & (selection.band == CENTRAL)).sum()) == central


def test_generator_moves_only_the_central_picks():
    features, prototypes = _features(480, 16, 8), _features(6, 16, 9)
    one, same, other = (
        select_samples(features, prototypes, CuratorConfig(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.kept, same.kept)
    # Chance is drawn alike whatever the data.
    states = [torch.Generator().manual_seed(5) for _ in range(2)]
    for rows, generator in zip((6, 300), states, strict=True):
        select_samples(_features(rows, 8, rows), _features(6, 8, 2), CuratorConfig(), generator)
    assert torch.equal(*(generator.get_state() for generator in states))
    assert not torch.equal(one.kept, other.kept)
    assert torch.equal(one.band, other.band)
    not_central = one.band != CENTRAL
    assert torch.equal(one.kept[not_central], other.kept[not_central])


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
