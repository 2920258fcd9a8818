"""The benchmark of pretraining compares like with like, counts what it says, and runs on a device as on a CPU."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

_BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
_SMALL_RUN = ["--scale", "least", "--pairs", "48", "--rounds", "1", "--threads", "1", "--no-compile"]
_CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def benchmarks_at_hand(monkeypatch):
    monkeypatch.syspath_prepend(_BENCHMARKS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _run(monkeypatch, *options):
    import pretraining

    monkeypatch.setattr(sys, "argv", ["pretraining.py", *_SMALL_RUN, *map(str, options)])
    pretraining.main()


def _step(scheme, super_batch=48, micro_batch=7, seed=0):
    from pretraining_steps import GeneratedPairs, Step, build_model, least_scale, make_optimizer

    scale = least_scale()
    model = build_model(scale, _CPU, seed=3)
    pairs = GeneratedPairs(super_batch, scale, seed=5)
    step = Step(scheme, model, make_optimizer(model), pairs, super_batch, micro_batch, scale.scoring_size, seed=seed)
    step.warm_up()
    return step


def _gradient(step):
    return torch.cat([parameter.grad.flatten() for parameter in step.model.parameters()])


@pytest.mark.parametrize("layout", ["buckets", "packed"])
def test_the_published_step_and_ours_keep_the_same_pairs_and_have_the_same_gradient(layout):
    from pretraining_steps import PUBLISHED, Scheme

    published, ours = _step(PUBLISHED), _step(Scheme("ours", layout=layout))
    published()
    ours()
    assert ours.kept == published.kept
    torch.testing.assert_close(ours.prototypes, published.prototypes)
    expected = _gradient(published)
    assert float((_gradient(ours) - expected).norm() / expected.norm()) <= 1e-5
    assert ours.flops < published.flops


def test_each_saving_saves_operations():
    from pretraining_steps import SCHEMES

    flops = []
    for scheme in SCHEMES:
        step = _step(scheme, micro_batch=48)
        step()
        flops.append(step.flops)
    assert all(later < earlier for earlier, later in pairwise(flops)), flops


def test_a_batch_of_480_is_curated_with_the_published_constants():
    from pretraining_steps import curator_constants

    from chexstudy.curation.online.configuration import CuratorConfig

    assert curator_constants(480) == CuratorConfig()
    assert curator_constants(128).central_cap == 3


class _Costs:
    """Made-up operations of a pair: images 10 forward and 30 with the backward pass, 1 at a third of the side."""

    class scale:
        scoring_size = 126

    def image(self, backward, size=None):
        return (1 if size == 126 else 10) * (3 if backward else 1)

    def text(self, batches, backward, layout):
        return {"longest": 2, "packed": 1}[layout] * (3 if backward else 1)


@pytest.mark.parametrize(
    ("plan", "spent", "again"),
    [
        # An epoch over all pairs at 36, 19 over the kept ones; in pieces, these cost 12 more.
        ({"published": True}, 36 + 19 * 0.227 * 36, 19 * 0.227 * 12),
        # The first epoch's kept pairs need no further pass: scoring has embedded them.
        ({}, 12 + 20 * 0.227 * 36, 19 * 0.227 * 12),
        ({"layout": "packed"}, 11 + 20 * 0.227 * 33, 19 * 0.227 * 11),
        ({"layout": "packed", "low_resolution": True}, 2 + 20 * 0.227 * 33, 20 * 0.227 * 11),
        ({"layout": "packed", "low_resolution": True, "curated_epochs": 20}, 20 * 2 + 20 * 0.227 * 33, 20 * 0.227 * 11),
    ],
)
def test_twenty_epochs_add_up(plan, spent, again):
    from pretraining_costs import Plan, cost_plan

    row = cost_plan(Plan("plan", **plan), _Costs(), np.array([[57]]))
    assert row["relative"] == pytest.approx(spent / (20 * 36))
    assert row["in_pieces"] == pytest.approx((spent + again) / (20 * 36))
    assert row["exaflop"] == pytest.approx(spent * 1_234_995 / 1e18)


def test_low_resolution_is_charged_for_its_checks():
    from pretraining_costs import OVERLAP_EVERY, Plan, cost_plan

    row = cost_plan(Plan("plan", 20, low_resolution=True), _Costs(), np.array([[57]]))
    assert row["overlap_checks"] == pytest.approx(20 * 12 / OVERLAP_EVERY / (20 * 36))


def test_texts_cost_what_they_cost_one_by_one():
    from pretraining_costs import PairCosts
    from pretraining_steps import least_scale

    costs = PairCosts(least_scale())
    batches = np.array([[5, 9, 30], [7, 7, 64]])
    for backward in (False, True):
        each = [[costs.count_text(int(length), backward) for length in batch] for batch in batches]
        assert costs.text(batches, backward, "packed") == pytest.approx(np.mean(each))
        longest = [costs.count_text(length, backward) for length in (30, 64)]
        assert costs.text(batches, backward, "longest") == pytest.approx(np.mean(longest))
        # One group of each batch is cheapest: as long as its longest text, rounded up to a multiple of 8.
        groups = [costs.count_text(length, backward) for length in (32, 64)]
        assert costs.text(batches, backward, "buckets") == pytest.approx(np.mean(groups))


def test_costs_agree_with_those_the_engine_counts():
    from pretraining_costs import PairCosts
    from pretraining_steps import TWO_PASS, least_scale

    costs, encoder = PairCosts(least_scale()), _step(TWO_PASS).encoder
    pixels = encoder.pairs.pixels(np.arange(3))
    for backward in (False, True):
        assert 3 * costs.image(backward) == pytest.approx(encoder.meter.images(pixels, backward))
        assert 3 * costs.image(backward, 8) == pytest.approx(encoder.meter.images(pixels, backward, 8))


@pytest.mark.parametrize("mean", [57, 100])
def test_lengths_have_the_mean_that_is_asked_for(mean):
    from pretraining_steps import draw_lengths

    lengths = draw_lengths(20_000, mean, 256, np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(mean, abs=0.5)
    assert lengths.min() >= 5
    assert lengths.max() <= 256


def test_pairs_are_drawn_from_their_seed_and_told_apart():
    from pretraining_steps import GeneratedPairs, least_scale

    one, same, other = (GeneratedPairs(20, least_scale(), seed, images=6) for seed in (1, 1, 2))
    rows = np.arange(20)
    assert torch.equal(one.pixels(rows), same.pixels(rows))
    assert not torch.equal(one.pixels(rows), other.pixels(rows))
    assert torch.equal(one.pixels(rows[:6]), one.pixels(rows[6:12]))
    assert (one.texts.lengths == same.texts.lengths).all()


@pytest.mark.parametrize(("room", "largest", "expected"), [(500, 4096, 496), (4096, 256, 256), (100, 80, 80)])
def test_the_largest_batch_is_found(room, largest, expected):
    from pretraining import find_largest

    tried = []

    def make(size):
        def step():
            tried.append(size)
            if size > room:
                raise torch.OutOfMemoryError("no memory left")

        return step

    assert find_largest(make, largest) == expected
    assert max(tried) <= largest


def test_a_failure_that_is_no_lack_of_memory_is_not_hidden():
    from pretraining import find_largest

    def make(size):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        find_largest(make, 64)


def test_a_small_run_is_recorded(monkeypatch, tmp_path, capsys):
    _run(monkeypatch, "--no-memory", "--training-steps", 2, "--out", tmp_path)
    record = json.loads((tmp_path / "pretraining.json").read_text())
    sections = {row["section"] for row in record["rows"]}
    assert {"step", "gradient in pieces", "selection overlap", "training step", "counted at paper scale"} <= sections
    goals = {goal["name"]: goal for goal in record["goals"]}
    shown = capsys.readouterr().out
    assert all(name in shown for name in goals)
    gradient = next(goal for name, goal in goals.items() if name.startswith("gradient"))
    assert gradient["met"]
    assert gradient["measured"] > 0
    on_gpu = [goal for name, goal in goals.items() if name.startswith("GPU")]
    assert len(on_gpu) == 4
    assert all(goal["measured"] is None and goal["met"] is None and goal["note"] for goal in on_gpu)


def test_the_run_for_a_gpu_runs_on_a_cpu(monkeypatch, tmp_path):
    path = tmp_path / "here.json"
    _run(monkeypatch, "--gpu", "--device", "cpu", "--largest", 96, "--micro-batch", 16, "--out", path)
    record = json.loads(path.read_text())
    steps = [row for row in record["rows"] if row["section"] == "step"]
    assert len(steps) == 4
    assert all(row["pairs_a_second"] > 0 and row["of_ceiling"] > 0 for row in steps)
    assert all(0 < row["curator_share"] < 1 for row in steps[1:])
    large = [row["pairs"] for row in record["rows"] if row["section"] == "largest super-batch"]
    assert large == [96, 96]
    assert all(goal["measured"] is not None for goal in record["goals"])


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process():
    import pretraining
    from pretraining_steps import least_scale

    rows = pretraining.measure_memory(least_scale(), 48, threads=1, seed=0)
    assert len(rows) == 4
    assert all(0 < row["mebibytes"] < 2000 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_run_for_one_says_so(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        _run(monkeypatch, "--gpu")
    assert "needs a CUDA device" in capsys.readouterr().err
