from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from kept_sets import draw_features, write_features

from chexstudy.errors import StudyError
from chexstudy.experiments import trained_variants as variants
from chexstudy.experiments.curator_ablation import JACCARD, REFERENCE, KeptMeasure, take_reference
from chexstudy.experiments.trained_variants import (
    choose_variants,
    evaluate_variants,
    list_differences,
    list_variants,
    measure_variants,
    summarise_variants,
    train_variants,
)
from chexstudy.pretraining.arms.definitions import find_arm
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.runs import Run

REFERENCE_CONFIG = take_reference(PretrainingConfig())
PAIRS = 40


@pytest.mark.parametrize("schedule", ["published", "hold_then_cosine"])
def test_every_variant_is_an_arm_and_differs_from_the_reference(schedule):
    reference = take_reference(PretrainingConfig(schedule=schedule))
    listed = list_variants(reference)
    assert (listed[0].name, listed[0].changes) == (REFERENCE, {})
    configs = [variant.apply(reference) for variant in listed]
    assert len(set(map(str, configs))) == len(configs)
    assert configs[0] == reference
    assert [find_arm(variant.arm).data for variant in listed] == ["curated"] * len(listed)
    # The published schedule has no rate of its own for curating.
    assert ("low_rate" in {one.name for one in listed}) == (schedule != "published")


def test_the_reference_is_always_chosen_and_first():
    assert [one.name for one in choose_variants(["two_epochs", "budgeted", "two_epochs"], REFERENCE_CONFIG)] == [
        *(REFERENCE, "two_epochs", "budgeted")
    ]
    assert choose_variants([], REFERENCE_CONFIG) == list_variants(REFERENCE_CONFIG)
    with pytest.raises(StudyError, match=r"'two_epoch'; there are published, budgeted"):
        choose_variants(["two_epoch"], REFERENCE_CONFIG)


def test_only_what_is_missing_is_trained(monkeypatch):
    there = {("curated.published", 0), ("curated.published", 1), ("curated.two_epochs", 1)}
    trained = []
    monkeypatch.setattr(variants, "is_trained", lambda run, arm, seed, config: (arm, seed) in there)

    def train(run, arms, seeds, config, device, workers, configs):
        trained.append((arms, seeds, device, workers))
        trained.append({name: (one.curation_epochs, one.curator.rule) for name, one in configs.items()})

    monkeypatch.setattr(variants, "train_arms", train)
    chosen = choose_variants(["two_epochs", "budgeted"], REFERENCE_CONFIG)
    train_variants(None, chosen, [0, 1], REFERENCE_CONFIG, "cpu", 2)
    constants = {REFERENCE: (1, "published"), "two_epochs": (2, "published"), "budgeted": (1, "budgeted")}
    assert trained == [(["curated.two_epochs", "curated.budgeted"], [0, 1], "cpu", 2), constants]
    there |= {("curated.two_epochs", 0), ("curated.budgeted", 0)}
    train_variants(None, chosen, [0, 1], REFERENCE_CONFIG, "cpu", 2)
    assert trained[2] == (["curated.budgeted"], [0, 1], "cpu", 2)
    there.add(("curated.budgeted", 1))
    train_variants(None, chosen, [0, 1], REFERENCE_CONFIG, "cpu", 2)
    assert len(trained) == 4


def test_what_variants_kept_is_measured_on_the_same_features(home, monkeypatch):
    run = Run("tiny")
    features = draw_features(PAIRS, dim=4)
    ids = np.array([f"t/{number}" for number in range(PAIRS)])
    training = pd.DataFrame({"image_id": ids, "patient_id": ids, "Edema": pd.array([1, 0] * 20, dtype="Int8")})
    run.write_table("cohort.parquet", training)
    write_features(run, features)
    chosen = choose_variants(["two_epochs"], REFERENCE_CONFIG)
    for variant, kept in zip(chosen, (range(20), range(10, 20)), strict=True):
        # Written in another order than the cohort's.
        subset = pd.DataFrame({"image_id": ids[list(kept)][::-1], "weight": 1.0})
        run.write_table(f"pretraining/{variant.arm}/seed0/subset.parquet", subset)
    monkeypatch.setattr(variants, "require_current_arm", lambda run, arm, seed: f"pretraining/{arm}/seed{seed}")
    scores = SimpleNamespace(features=features, image_ids=ids)
    measure = KeptMeasure(training, {"Edema": "tail"}, None, 20)
    rows = measure_variants(run, 0, chosen, scores, measure)
    values = rows[rows.finding == "all"].set_index(["setting", "metric"]).value
    assert values[REFERENCE, "keep_ratio"] == 0.5
    assert values["two_epochs", "keep_ratio"] == 0.25
    assert values["two_epochs", JACCARD] == 0.5
    recall = rows[rows.metric == "rare_recall"].set_index("setting").value
    assert recall.to_dict() == {REFERENCE: 0.5, "two_epochs": 0.25}
    # Another subset is measured anew.
    run.write_table(
        f"pretraining/{chosen[1].arm}/seed0/subset.parquet", pd.DataFrame({"image_id": ids[:4], "weight": 1.0})
    )
    again = measure_variants(run, 0, chosen, scores, measure)
    assert again[(again.setting == "two_epochs") & (again.metric == "keep_ratio")].value.tolist() == [0.1]


def evaluated():
    """What evaluating the reference and a variant with two seeds gives."""
    rows = []
    for task, metric, base in (("zero_shot", "auroc", 0.7), ("retrieval", "recall_at_1", 0.1)):
        for variant, gain in (("published", 0.0), ("two_epochs", 0.1)):
            for seed in (0, 1, -1):
                for finding, more in (("macro", 0.0), ("tail", 0.05), ("Edema", 0.2)):
                    rows.append((variant, "", seed, task, "p/test", finding, metric, "chosen", base + gain + more))
    rows.append(("published", "", 0, "zero_shot", "p/test", "macro", "auroc", "published", 0.6))
    rows.append(
        ("published", "two_epochs", -1, "zero_shot_difference", "p/test", "macro", "auroc_difference", "chosen", -0.1)
    )
    rows.append(
        ("published", "two_epochs", -1, "zero_shot_difference", "p/test", "Edema", "auroc_difference", "chosen", -0.1)
    )
    names = ["variant", "reference", "seed", "task", "data_set", "finding", "metric", "setting", "value"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(arm="curated", ci_low=table.value - 0.02, ci_high=table.value + 0.03, n=80, positives=-1)


def test_differences_are_the_variants_minus_the_reference(monkeypatch):
    asked = {}

    def evaluate(evaluation, arms, seeds, references, workers):
        asked.update(arms=arms, seeds=seeds, references=references, workers=workers)
        return evaluated()

    monkeypatch.setattr(variants, "evaluate_arms", evaluate)
    chosen = choose_variants(["two_epochs"], REFERENCE_CONFIG)
    rows = evaluate_variants(SimpleNamespace(findings=["Mass"]), chosen, [0, 1], 2)
    arms = ["curated.published", "curated.two_epochs"]
    assert asked == {"arms": arms, "seeds": [0, 1], "references": arms[:1], "workers": 2}
    assert set(rows.task) == {"ablation_zero_shot", "ablation_zero_shot_difference"}
    assert set(rows.finding) == {"macro", "tail"}
    gain = list_differences(rows, "p/test")
    assert gain.variant.tolist() == ["two_epochs"]
    assert gain[["value", "ci_low", "ci_high"]].iloc[0].tolist() == pytest.approx([0.1, 0.07, 0.12])
    summary = summarise_variants(rows, "p/test").set_index(["setting", "metric"])
    assert summary.value["two_epochs", "auroc"] == pytest.approx(0.8)
    assert summary.value["published", "auroc_tail"] == pytest.approx(0.75)
    assert (summary.seeds == 2).all()
    assert len(summary) == 4
    assert len(summarise_variants(rows, "p/other")) == 0
    nothing = evaluate_variants(SimpleNamespace(findings=[]), chosen, [0])
    assert list(summarise_variants(nothing, "p/test").columns)[:3] == ["setting", "metric", "finding"]
    assert len(list_differences(nothing, "p/test")) == 0
