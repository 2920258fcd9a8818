"""Subsets chosen beforehand: what is written, reused and charged, and the arms that are trained on them."""

import numpy as np
import pandas as pd
import pytest
from tiny_arms import tiny_config, train_arm

from chexstudy.curation.methods import METHODS
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder, read_costs, subset_artifact
from chexstudy.pretraining.training import arm_run as engine
from chexstudy.pretraining.training import subsets
from chexstudy.pretraining.training.arm_run import pretrain
from chexstudy.pretraining.training.scoring import score_training_pairs
from chexstudy.pretraining.training.subsets import (
    choose_methods,
    choose_training_subset,
    choose_training_subsets,
    needs_reference,
    train_scoring_arms,
)

pytestmark = pytest.mark.usefixtures("one_thread")
_KEEP = 0.25


@pytest.fixture
def config():
    return tiny_config(batch_size=20)


def _train(run, arm, config):
    return run.read_json(f"{train_arm(run, arm, config)}/compute.json")


def test_every_method_leaves_a_subset_of_the_budget_and_scores_of_all(tiny_study, config):
    pretrain(tiny_study, "full", 0, config, "cpu")
    chosen = choose_training_subsets(tiny_study, list(METHODS), [0], config, _KEEP, "cpu")
    ids = score_training_pairs(tiny_study, 0, config, "cpu").image_ids
    assert set(chosen) == {(method, 0) for method in METHODS}
    for (method, seed), subset in chosen.items():
        assert list(subset.columns) == ["image_id", "weight"]
        assert len(subset) == round(_KEEP * len(ids))
        assert set(subset.image_id) < set(ids)
        name = subset_artifact(method, seed)
        pd.testing.assert_frame_equal(subset, tiny_study.read_table(name))
        scores = tiny_study.read_table(name.replace("subset", "scores"))
        assert list(scores.image_id) == list(ids)
    assert (chosen["infobatch", 0].weight > 1).any()


def test_the_hardest_pairs_are_those_of_the_highest_loss(tiny_study, config):
    scores = score_training_pairs(tiny_study, 0, config, "cpu")
    subset = choose_training_subset(tiny_study, "loss", 0, config, 5, "cpu")
    assert set(subset.image_id) == set(scores.image_ids[np.argsort(scores.loss)[-5:]])


def test_learnability_prefers_what_the_reference_has_learnt_and_is_charged_both_passes(tiny_study, config):
    pretrain(tiny_study, "full", 0, config, "cpu")
    chosen = choose_training_subset(tiny_study, "learnability", 0, config, 5, "cpu")
    losses = tiny_study.read_table("curation/scoring/seed0/losses.parquet")
    reference = tiny_study.read_table("curation/scoring/seed0/reference.parquet")
    gain = (losses.loss - reference.loss).set_axis(losses.image_id)
    assert set(chosen.image_id) == set(gain.nlargest(5).index)
    scoring = score_training_pairs(tiny_study, 0, config, "cpu").cost
    cost = tiny_study.read_json("curation/learnability/seed0/cost.json")
    assert cost["flops"] == pytest.approx(2 * scoring["flops"])
    assert cost["pairs_scored"] == 2 * scoring["pairs_scored"]


def test_a_current_subset_is_read_and_another_budget_chosen_anew(tiny_study, config, monkeypatch):
    first = choose_training_subset(tiny_study, "k_centre", 0, config, _KEEP, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(subsets, "choose_subset", lambda *_, **__: pytest.fail("chosen again"))
        pd.testing.assert_frame_equal(first, choose_training_subset(tiny_study, "k_centre", 0, config, _KEEP, "cpu"))
    assert len(choose_training_subset(tiny_study, "k_centre", 0, config, 7, "cpu")) == 7


def test_what_scores_the_pairs_is_trained_once(tiny_study, config, monkeypatch):
    asked = []
    monkeypatch.setattr(subsets, "train_arms", lambda _, arms, *__: asked.append(arms))
    train_scoring_arms(tiny_study, ["loss", "learnability"], [0], config, "cpu")
    train_scoring_arms(tiny_study, ["loss"], [0], config, "cpu")
    pretrain(tiny_study, "warm_up", 0, config, "cpu")
    train_scoring_arms(tiny_study, ["learnability"], [0], config, "cpu")
    train_scoring_arms(tiny_study, ["loss"], [0], config, "cpu")
    assert asked == [["warm_up", "full"], ["warm_up"], ["full"]]


def test_seeds_choose_apart(tiny_study, config):
    chosen = choose_training_subsets(tiny_study, ["random"], [0, 1], config, _KEEP, "cpu")
    assert set(chosen["random", 0].image_id) != set(chosen["random", 1].image_id)


def test_a_method_is_charged_the_pass_that_scored_the_pairs_and_random_is_not(tiny_study, config):
    for method in ("random", "agreement"):
        choose_training_subset(tiny_study, method, 0, config, _KEEP, "cpu")
        _train(tiny_study, f"by_{method}", config)
    costs = read_costs(tiny_study, ["by_random", "by_agreement"], [0]).set_index("arm")
    scoring = score_training_pairs(tiny_study, 0, config, "cpu").cost
    pairs = len(score_training_pairs(tiny_study, 0, config, "cpu").image_ids)
    assert costs.pairs_scored.to_dict() == {"by_random": 0, "by_agreement": pairs}
    # Texts differ in length, so two trainings on as many pairs differ a little.
    difference = costs.flops["by_agreement"] - costs.flops["by_random"]
    assert difference == pytest.approx(scoring["flops"], rel=0.1)
    assert tiny_study.read_json("curation/agreement/seed0/cost.json")["seconds"] > scoring["seconds"]


def test_matched_compute_counts_the_pass_too(tiny_study):
    # Many epochs on few pairs, so that one step more or less is little.
    config = tiny_config(batch_size=20, subset_epochs=12)
    curated = _train(tiny_study, "curated", config)
    trained = {}
    for method in ("random", "agreement"):
        choose_training_subset(tiny_study, method, 0, config, 20, "cpu")
        cost = _train(tiny_study, f"by_{method}@compute", config)
        assert cost["flops"] == pytest.approx(curated["flops"], rel=0.06)
        trained[method] = cost["pairs_trained"]
    assert trained["random"] > trained["agreement"]


def test_a_resumed_arm_is_charged_once(tiny_study, config, monkeypatch):
    choose_training_subset(tiny_study, "agreement", 0, config, _KEEP, "cpu")
    whole = _train(tiny_study, "by_agreement", config)
    tiny_study.path(f"{arm_folder('by_agreement', 0)}/compute.json").unlink()
    save = engine._ArmRun._save

    def save_and_die(self):
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._ArmRun, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny_study, "by_agreement", 0, config, "cpu")
    resumed = pretrain(tiny_study, "by_agreement", 0, config, "cpu")
    assert resumed["flops"] == whole["flops"]
    assert resumed["pairs_scored"] == whole["pairs_scored"]


def test_the_baseline_is_always_among_the_methods():
    assert choose_methods([]) == list(METHODS)
    assert choose_methods(["loss", "bands"]) == ["bands", "random", "loss"]
    assert needs_reference(["loss", "learnability"])
    assert not needs_reference(["loss", "random"])
    with pytest.raises(StudyError, match="'los'"):
        choose_methods(["los"])
