"""The compiled form of the selection: exact where the product is not, alike in threads and processes."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.nn.functional import normalize

from chexstudy.curation.online import fused
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.selection import select_samples
from chexstudy.vectors.products import multiply_rows


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
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        scores = multiply_rows(features, prototypes.float(), -0.5 * prototypes.square().sum(dim=1).float())
        prototype, distance = fused.assign_nearest(features, prototypes)
    finally:
        torch.set_float32_matmul_precision(before)
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
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(_order_of_a_batch(), one)
        orders = [None] * 6
        callers = [
            threading.Thread(target=lambda place=place: orders.__setitem__(place, _order_of_a_batch()))
            for place in range(6)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(order, one) for order in orders)


def test_works_in_a_forked_process(monkeypatch):
    monkeypatch.setattr(fused, "_NUMBERS_WORTH_A_THREAD", 1)
    expected = _order_of_a_batch().tolist()
    before = torch.get_num_threads()
    # torch's own threads do not outlive a fork.
    torch.set_num_threads(1)
    try:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            orders = [call.get(timeout=60) for call in [pool.apply_async(_order_list) for _ in range(3)]]
    finally:
        torch.set_num_threads(before)
    assert orders == [expected] * 3


def _order_list():
    return _order_of_a_batch().tolist()


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
