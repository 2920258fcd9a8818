"""The static form of the selection: never waits for a value, and decides as the compiled form does."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from chexstudy.curation.online import fused, static
from chexstudy.curation.online.configuration import OUTLIER_POLICIES, SAMPLERS, CuratorConfig
from chexstudy.curation.online.prototypes import update_prototypes
from chexstudy.curation.online.selection import apply_rule, draw_chance, select_samples


def _unit(rows, dim, seed, dtype=torch.float64):
    values = torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return normalize(values, dim=1).to(dtype)


def _chance(config, rows, seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return draw_chance(config, rows, config.prototypes, generator)


def _assert_same(one, other):
    for name in ("prototype", "band", "order", "kept", "reason"):
        assert torch.equal(getattr(one, name).cpu(), getattr(other, name).cpu()), name
    for name in ("distance", "threshold_support", "threshold_outlier"):
        assert torch.allclose(getattr(one, name).cpu(), getattr(other, name).cpu(), rtol=0, atol=1e-14), name


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_rows_are_taken_in_order_by_both_forms(sampler):
    config = CuratorConfig(prototypes=3, sampler=sampler, central_cap=6)
    distinct = _unit(30, 16, 1, torch.float32)
    features = distinct[torch.randint(30, (600,), generator=torch.Generator().manual_seed(2))]
    prototypes = torch.cat([_unit(2, 16, 3, torch.float32), _unit(1, 16, 3, torch.float32)])
    for seed in (None, 1, 2):
        chance = _chance(config, 600, seed)
        _assert_same(*(apply_rule(features, prototypes, config, chance, form) for form in (fused, static)))
    assert not (apply_rule(features, prototypes, config, chance, static).prototype == 2).any()


def test_density_is_the_mean_distance_to_the_nearest_of_the_same_group():
    points = torch.tensor([[0.0], [1.0], [3.0], [100.0], [101.0], [50.0]], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    rows, starts, sizes = torch.arange(6), torch.tensor([0, 3]), torch.tensor([3, 2])
    gaps = static.mean_gaps(points, group, rows, starts, sizes, cap=1, neighbours=2)
    assert gaps[:5].tolist() == [2.0, 1.5, 2.5, 1.0, 1.0]
    assert torch.equal(fused.mean_gaps(points, group, rows, starts, sizes, 1, 2)[:5], gaps[:5])


def test_blocks_of_rows_change_no_density(monkeypatch):
    points, group = _unit(90, 6, 1), torch.arange(90) % 4
    arguments = (points, group, torch.arange(90), torch.zeros(4), torch.ones(4), 1, 5)
    whole = static.mean_gaps(*arguments)
    monkeypatch.setattr(static, "_BLOCK", 7 * 90)
    assert torch.allclose(static.mean_gaps(*arguments), whole, rtol=0, atol=1e-14)


def _step(features, prototypes, config, chance):
    """Selection and update as they run on a GPU."""
    selection = apply_rule(features, prototypes, config, chance, static)
    return selection, update_prototypes(prototypes, features, config, selection.kept)


@pytest.mark.parametrize("policy", OUTLIER_POLICIES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_read_back(sampler, policy):
    # A fake tensor has no values: whatever reads one back, or makes a shape of one, raises.
    config = CuratorConfig(prototypes=5, sampler=sampler, outlier_policy=policy)
    with FakeTensorMode():
        features, prototypes = torch.empty(64, 16), torch.empty(5, 16)
        selection, (moved, usage) = _step(features, prototypes, config, torch.empty(len(_chance(config, 64, None))))
    assert selection.kept.shape == (64,)
    assert moved.shape == (5, 16)
    assert usage.shape == (5,)


def test_fake_tensors_find_the_form_that_reads_nothing_back():
    with FakeTensorMode():
        selection = select_samples(
            torch.empty(64, 16), torch.empty(5, 16), CuratorConfig(prototypes=5), torch.Generator().manual_seed(0)
        )
    assert selection.order.dtype == torch.int64


@pytest.mark.cuda
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_on_a_gpu_the_host_never_waits_and_decisions_are_those_of_the_cpu(sampler):
    config = CuratorConfig(prototypes=24, sampler=sampler)
    features, prototypes = _unit(2000, 64, 1, torch.float32), _unit(24, 64, 2, torch.float32)
    expected = select_samples(features, prototypes, config, torch.Generator().manual_seed(3))
    on_gpu = features.cuda(), prototypes.cuda()
    # The first call may load kernels, and that waits.
    select_samples(*on_gpu, config, torch.Generator().manual_seed(3))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            on_gpu[0].sum().item()
        selection = select_samples(*on_gpu, config, torch.Generator().manual_seed(3))
        update_prototypes(on_gpu[1], on_gpu[0], config, selection.kept)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _assert_same(selection, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_cuda_graph_captures_the_step(sampler):
    config = CuratorConfig(prototypes=24, sampler=sampler)
    batches = [_unit(1000, 64, seed, torch.float32) for seed in (1, 2)]
    prototypes = _unit(24, 64, 3, torch.float32)
    chances = [_chance(config, 1000, seed) for seed in (4, 5)]
    features, chance, centres = batches[0].cuda(), chances[0].cuda(), prototypes.cuda()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            _step(features, centres, config, chance)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        selection, (moved, _) = _step(features, centres, config, chance)
    for batch, drawn in zip(batches, chances, strict=True):
        features.copy_(batch)
        chance.copy_(drawn)
        graph.replay()
        torch.cuda.synchronize()
        expected = apply_rule(batch, prototypes, config, drawn, fused)
        _assert_same(selection, expected)
        on_cpu = update_prototypes(prototypes, batch, config, expected.kept)[0]
        assert torch.allclose(moved.cpu(), on_cpu, rtol=0, atol=1e-5)
