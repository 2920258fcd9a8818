"""The two forms of the selection's expensive steps: the compiled one is exact, the static one waits for no value."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from chexstudy.curation.online import fused, static
from chexstudy.curation.online.configuration import OUTLIER_POLICIES, SAMPLERS, CuratorConfig
from chexstudy.curation.online.prototypes import update_prototypes
from chexstudy.curation.online.selection import apply_rule, draw_chance, select_samples
from chexstudy.vectors.products import multiply_rows

pytestmark = pytest.mark.usefixtures("torch_settings")


def _unit(rows, dim, seed, dtype=torch.float64):
    values = torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return normalize(values, dim=1).to(dtype)


def _pick_plainly(points, count, start):
    """Farthest points of a matrix, one after the other, every distance anew."""
    picked = [start]
    while len(picked) < count:
        gap = (points[:, None] - points[picked][None]).square().sum(dim=2).sqrt().min(dim=1).values
        gap[picked] = -1
        picked.append(int(gap.argmax()))
    return picked


def _order(points, group, starts_at, cap, groups):
    """`order_farthest` of unsorted rows, each group starting at its given place; the picks of each group in order."""
    rows = torch.sort(group, stable=True).indices
    sizes = torch.bincount(group, minlength=groups + 1)[:groups]
    starts = sizes.cumsum(0) - sizes
    first = rows[(starts + torch.tensor(starts_at)).clamp(max=len(rows) - 1)]
    order = fused.order_farthest(points, group, rows, starts, sizes, first, cap)
    return order, [
        [int(row) for row in sorted((group == number).nonzero()[:, 0], key=lambda row: order[row]) if order[row] >= 0]
        for number in range(groups)
    ]


@pytest.mark.parametrize("kind", ["spread", "clustered", "equal rows", "line"])
def test_picks_are_those_of_a_plain_loop(kind):
    points = _unit(240, 12, 1)
    if kind == "clustered":
        points = normalize(_unit(5, 12, 2)[torch.arange(240) % 5] + 1e-3 * points, dim=1)
    elif kind == "equal rows":
        points = points[torch.arange(240) % 17]
    elif kind == "line":
        points = torch.arange(240, dtype=torch.float64)[:, None] % 80
    group = torch.randint(4, (240,), generator=torch.Generator().manual_seed(3))
    for cap, starts_at in ((1, [0, 0, 0]), (2, [3, 1, 0]), (10, [0, 5, 20]), (25, [7, 7, 7])):
        order, picks = _order(points, group, starts_at, cap, 3)
        for number in range(3):
            members = (group == number).nonzero()[:, 0]
            expected = _pick_plainly(points[members], cap, starts_at[number])
            assert picks[number] == members[expected].tolist()
        assert (order[group == 3] == -1).all()


def test_a_group_within_the_cap_is_not_ordered():
    order, _ = _order(_unit(12, 3, 1), torch.tensor([0] * 10 + [1] * 2), [0, 0], 10, 2)
    assert (order == -1).all()


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_distances_decide_where_the_product_cannot(precision):
    count, dim = 40, 64
    features = _unit(3000, dim, 1, torch.float32)
    # Pairs of prototypes closer to each other than the rounding of a float32 product.
    prototypes = _unit(count // 2, dim, 2).repeat(2, 1) + 1e-8 * _unit(count, dim, 3)
    distances = torch.cdist(features.double(), prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    expected = distances.min(dim=1)
    torch.set_float32_matmul_precision(precision)
    scores = multiply_rows(features, prototypes.float(), -0.5 * prototypes.square().sum(dim=1).float())
    prototype, distance = fused.assign_nearest(features, prototypes)
    assert (scores.argmax(dim=1) != expected.indices).sum() > 100
    assert torch.equal(prototype, expected.indices)
    assert torch.allclose(distance, expected.values, rtol=0, atol=1e-13)


@pytest.mark.parametrize("count", [2, 30])
def test_of_equal_prototypes_the_first_is_nearest(count):
    prototypes = _unit(1, 8, 1).expand(count, 8)
    prototype, distance = fused.assign_nearest(prototypes[:1].repeat(50, 1), prototypes)
    assert (prototype == 0).all()
    assert (distance == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_decided_as_their_values_in_float64(dtype):
    features, prototypes = _unit(300, 16, 1, dtype), _unit(6, 16, 2, dtype)
    narrow = select_samples(features, prototypes, CuratorConfig(), None)
    wide = select_samples(features.double(), prototypes.double(), CuratorConfig(), None)
    assert torch.equal(narrow.order, wide.order)
    assert torch.equal(narrow.distance, wide.distance)


def test_values_that_are_not_finite_end_no_process():
    features, prototypes = _unit(300, 16, 1, torch.float32), _unit(20, 16, 2, torch.float32)
    features[::7] = torch.nan
    features[::11] = torch.inf
    for count in (3, 20):
        config = CuratorConfig(prototypes=count, central_cap=5)
        assert len(select_samples(features, prototypes[:count], config, None).kept) == 300


def _order_of_a_batch(_=None):
    config = CuratorConfig(prototypes=20)
    generator = torch.Generator().manual_seed(7)
    return select_samples(_unit(900, 32, 1, torch.float32), _unit(20, 32, 2, torch.float32), config, generator).order


def test_number_of_threads_changes_nothing(monkeypatch):
    one = _order_of_a_batch()
    monkeypatch.setattr(fused, "_NUMBERS_WORTH_A_THREAD", 1)
    torch.set_num_threads(3)
    assert torch.equal(_order_of_a_batch(), one)
    with ThreadPoolExecutor(6) as pool:
        assert all(torch.equal(order, one) for order in pool.map(_order_of_a_batch, range(6)))


_FORKED = """
import multiprocessing, torch
from torch.nn.functional import normalize
from chexstudy.curation.online import fused
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.selection import select_samples
fused._NUMBERS_WORTH_A_THREAD = 1
def choose():
    drawn = [torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows)) for rows in (900, 20)]
    sides = [normalize(one, dim=1) for one in drawn]
    return select_samples(*sides, CuratorConfig(prototypes=20), torch.Generator().manual_seed(7)).order.tolist()
expected = choose()
torch.set_num_threads(1)  # torch's own threads do not outlive a fork
with multiprocessing.get_context("fork").Pool(2) as pool:
    orders = [call.get(timeout=60) for call in [pool.apply_async(choose) for _ in range(3)]]
assert orders == [expected] * 3 and len(expected) > 50
"""


def test_works_in_a_forked_process():
    # In a process of its own: what other tests have left running here could hold a lock when it is forked.
    subprocess.run([sys.executable, "-c", _FORKED], check=True, timeout=150)


_FIRST_USE = """
import sys, torch
from chexstudy.curation.online import selection
assert "numba" not in sys.modules, "numba is imported before it is needed"
form = selection.form_for(torch.eye(4))
assert form.assign_nearest(torch.eye(4), torch.eye(4))[0].tolist() == [0, 1, 2, 3]
"""


def test_machine_code_is_kept_in_the_cache_of_the_study(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment["CHEXSTUDY_HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", _FIRST_USE], env=environment, check=True, timeout=120)
    assert list((tmp_path / "runs" / ".cache" / "numba").rglob("fused.*.nbc"))


# --- the static form --------------------------------------------------------------------------------------------------


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
