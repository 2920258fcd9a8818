"""Arms: what each needs and matches, in which order they are trained, and under which constants."""

import json
import os
from dataclasses import replace

import pytest

from chexstudy.errors import StudyError
from chexstudy.pretraining.arms import worker_pool
from chexstudy.pretraining.arms.budgets import list_budget_arms, plan_budgets
from chexstudy.pretraining.arms.definitions import ARMS, arm_folder, find_arm, name_method_arm, name_variant, read_costs
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.runs import Run

CONFIG = PretrainingConfig(image_encoder="tiny-resnet", text_encoder="tiny-bert", warm_up_epochs=4)
# A worker that trains nothing and says what it was asked for.
_ECHO = """
import sys
for line in sys.stdin:
    arm, seed, path = line.rstrip("\\n").split(" ", maxsplit=2)
    print(f"asked: {arm} {seed} {open(path).read()}")
    print("<arm finished>", flush=True)
"""


def test_an_arm_with_a_variant_is_paired_with_the_curated_arm_of_that_variant():
    for base in ("random_same_data", "random_same_compute"):
        assert find_arm(base).partner == "curated"
        arm = find_arm(f"{base}.keep_10")
        assert (arm.name, arm.variant, arm.partner) == (f"{base}.keep_10", "keep_10", "curated.keep_10")
        assert (arm.data, arm.compute) == (ARMS[base].data, ARMS[base].compute)
    curated = find_arm(name_variant("curated", "keep_10"))
    assert (curated.data, curated.variant, curated.partner) == ("curated", "keep_10", "")
    assert arm_folder(curated.name, 3) == "pretraining/curated.keep_10/seed3"


def test_an_arm_needs_its_partner_and_the_warm_up_it_starts_with():
    without = replace(CONFIG, warm_up_epochs=0)
    alone = replace(CONFIG, objective="self_supervised")
    assert find_arm("by_semdedup.self_supervised").needs(alone) == ["warm_up.self_supervised"]
    assert find_arm("untrained.self_supervised").needs(alone) == []
    for name, needed in (
        ("warm_up", []),
        ("full", []),
        ("curated", ["warm_up"]),
        ("oracle_balanced", ["warm_up", "curated"]),
        ("filtered", ["warm_up", "curated"]),
        ("random_same_data.keep_10", ["warm_up", "curated.keep_10"]),
        ("random_same_compute", ["curated"]),
        ("random_same_compute.keep_10", ["curated.keep_10"]),
        (name_method_arm("loss"), ["warm_up"]),
        (name_method_arm("loss", matched=True), ["warm_up", "curated"]),
    ):
        assert find_arm(name).needs(CONFIG) == needed
        assert find_arm(name).needs(without) == [one for one in needed if one != "warm_up"]


@pytest.mark.parametrize("name", ["untrained", "oracle_balanced.x", "random_same_data.", "curated.a/b", "by_loss.a.b"])
def test_an_arm_that_is_none_is_refused(name):
    with pytest.raises(StudyError, match=f"unknown arm '{name}'"):
        find_arm(name)


@pytest.fixture
def asked(home, monkeypatch, capsys):
    """`train_arms` with workers that only say what they were asked for; gives ``(arm, seed, constants)`` in order."""

    (home / "echo_arms.py").write_text(_ECHO)
    monkeypatch.setenv("PYTHONPATH", f"{home}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    start = worker_pool.start_python
    monkeypatch.setattr(worker_pool, "start_python", lambda _, *rest, **options: start("echo_arms", *rest, **options))

    def call(*arguments, **options):
        train_arms(Run("tiny"), *arguments, "cpu", **options)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("asked: ")]
        parts = [line.removeprefix("asked: ").split(" ", maxsplit=2) for line in lines]
        return [(arm, int(seed), PretrainingConfig.from_dict(json.loads(text))) for arm, seed, text in parts]

    return call


def test_each_arm_is_trained_under_the_constants_of_its_variant(asked):
    few = replace(CONFIG, curator=replace(CONFIG.curator, rule="budgeted", budget=0.1))
    trained = asked(["random_same_data.few", "curated.other", "full"], [0], CONFIG, variants={"few": few, "idle": few})
    constants = {arm: config for arm, _, config in trained}
    assert constants == {
        "warm_up": CONFIG,
        "curated.few": few,
        "curated.other": CONFIG,
        "full": CONFIG,
        "random_same_data.few": few,
    }


def test_what_others_wait_for_comes_first_and_the_long_ones_early(asked):
    wanted = ["random_same_data.few", "oracle_balanced", "random_same_compute.few", "full"]
    order = [(arm, seed) for arm, seed, _ in asked(wanted, [0, 1], CONFIG, workers=1)]
    assert order == [
        (arm, seed)
        for arm in (
            *("warm_up", "curated.few", "curated", "full", "random_same_compute.few", "random_same_data.few"),
            "oracle_balanced",
        )
        for seed in (0, 1)
    ]
    together = [(arm, seed) for arm, seed, _ in asked(wanted, [0, 1], CONFIG, workers=3)]
    assert sorted(together) == sorted(order)
    for needed, arm in (("curated.few", "random_same_data.few"), ("curated", "oracle_balanced")):
        assert all(together.index((needed, seed)) < together.index((arm, seed)) for seed in (0, 1))


def test_there_must_be_a_worker(home):
    with pytest.raises(StudyError, match="at least 1, not 0"):
        train_arms(Run("tiny"), ["full"], [0], CONFIG, workers=0)


def test_random_arms_match_the_curated_arm_of_their_budget(tiny_study):
    config = replace(
        CONFIG, image_size=32, warm_up_epochs=1, subset_epochs=2, batch_size=16, super_batch=40, precision="fp32"
    )
    config = replace(config, curator=replace(config.curator, prototypes=2, central_cap=4))
    variants = plan_budgets(config, [0.5, 0.25], pairs=72)
    wanted = list_budget_arms(variants)
    train_arms(tiny_study, wanted, [0], config, "cpu", variants=variants)
    costs = read_costs(tiny_study, wanted, [0]).set_index("arm")
    for variant, kept in (("keep_50", 36), ("keep_25", 18)):
        for arm in ("curated", "random_same_data"):
            folder = arm_folder(name_variant(arm, variant), 0)
            assert len(tiny_study.read_table(f"{folder}/subset.parquet")) == kept
            assert costs.pairs_trained[name_variant(arm, variant)] == 72 + 3 * kept
        curated, random = (costs.loc[name_variant(arm, variant)] for arm in ("curated", "random_same_compute"))
        # To the nearest step.
        assert abs(random.flops - curated.flops) < 0.6 * random.flops / random.steps
