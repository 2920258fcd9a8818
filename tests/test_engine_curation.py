"""Curating while training: the rules, several epochs, subsets chosen beforehand, and what is left behind."""

from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from tiny_arms import assert_same_weights, break_off, read_weights, tiny_config, train_arm, train_ids, within

from chexstudy import runs
from chexstudy.curation.records.ledger import read_ledger
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder, find_arm, subset_artifact
from chexstudy.pretraining.models.dual_encoder import load_model
from chexstudy.pretraining.training import arm_run as engine
from chexstudy.pretraining.training.arm_run import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("super_batch", "budget"), [(20, 2.0), (40, 0.3), (1000, 0.3)])
def test_the_budgeted_rule_keeps_its_budget_while_the_model_learns(tiny_study, super_batch, budget):
    config = tiny_config(rule="budgeted", budget=budget, super_batch=super_batch)
    folder = train_arm(tiny_study, "curated", config)
    subset = pd.read_parquet(tiny_study.path(f"{folder}/subset.parquet"))
    assert len(subset) == (budget if budget > 1 else round(budget * len(train_ids(tiny_study))))
    assert np.isfinite(read_ledger(tiny_study).priority).all()


def test_every_epoch_considers_all_pairs_anew_and_the_last_decides(tiny_study):
    config = tiny_config(curation_epochs=3)
    folder = train_arm(tiny_study, "curated", config)
    ledger, ids = read_ledger(tiny_study), train_ids(tiny_study)
    assert list(ledger.epoch.unique()) == [1, 2, 3]
    for _, considered in ledger.groupby("epoch"):
        assert sorted(considered.image_id) == sorted(ids)
    last = ledger[ledger.epoch == 3]
    subset = pd.read_parquet(tiny_study.path(f"{folder}/subset.parquet"))
    assert set(subset.image_id) == set(last[last.kept].image_id)
    kept = ledger.pivot(index="image_id", columns="epoch", values="kept")
    assert (~kept[1] & kept[2]).any(), "no pair was taken back"
    features = np.load(tiny_study.path(f"{folder}/features.npy"), mmap_mode="r")
    assert features.shape == (len(ledger), 32)
    history = pd.read_parquet(tiny_study.path(f"{folder}/history.parquet"))
    curate = history[history.phase == "curate"]
    assert len(np.load(tiny_study.path(f"{folder}/prototypes.npy"))) == 1 + len(curate)
    assert curate.assignment_min.between(0, 1).all()
    assert (curate.assignment_min <= curate.assignment_max).all()
    assert history[history.phase != "curate"].assignment_min.isna().all()
    train_arm(tiny_study, "random_same_data", config)
    random = pd.read_parquet(tiny_study.path(f"{arm_folder('random_same_data', 0)}/history.parquet"))
    kept_by_step = ledger.groupby("step").kept.sum().tolist()
    assert random[random.phase == "curate"].pairs_trained.tolist() == kept_by_step


@pytest.mark.parametrize("rule", ["published", "budgeted"])
def test_broken_off_between_and_within_curation_epochs_it_decides_alike(tiny_study, monkeypatch, rule):
    config = tiny_config(curation_epochs=2, rule=rule, super_batch=20)
    folder = train_arm(tiny_study, "curated", config)
    whole, ledger = read_weights(tiny_study, "curated"), read_ledger(tiny_study)
    tiny_study.path(f"{folder}/compute.json").unlink()
    break_off(monkeypatch, tiny_study, "curated", config, within(2))
    assert 0 < len(read_ledger(tiny_study)) < len(ledger), "what was decided so far can be read"
    pretrain(tiny_study, "curated", 0, config, "cpu")
    pd.testing.assert_frame_equal(read_ledger(tiny_study), ledger)
    assert_same_weights(whole, read_weights(tiny_study, "curated"))


def test_switches_of_the_update_change_prototypes_and_what_is_scored(tiny_study):
    prototypes, scored = {}, {}
    for name, changes in {
        "published": {},
        "after": {"update_timing": "after_step"},
        "all": {"update_features": "all"},
        "still": {"decay": 1.0},
    }.items():
        folder = train_arm(tiny_study, f"curated.{name}", tiny_config(**changes))
        prototypes[name] = np.load(tiny_study.path(f"{folder}/prototypes.npy"))
        scored[name] = tiny_study.read_json(f"{folder}/compute.json")["pairs_scored"]
    assert np.array_equal(prototypes["published"][0], prototypes["after"][0])
    assert not np.array_equal(prototypes["published"][1], prototypes["after"][1])
    assert not np.array_equal(prototypes["published"][1], prototypes["all"][1])
    assert np.allclose(prototypes["still"], prototypes["still"][0], atol=1e-6)
    assert scored["published"] == scored["all"] < scored["after"]


def test_outliers_for_review_are_listed_by_mismatch_and_not_trained_on(tiny_study):
    folder = train_arm(tiny_study, "curated", tiny_config(outlier_policy="review"))
    ledger = read_ledger(tiny_study)
    review = pd.read_parquet(tiny_study.path(f"{folder}/review.parquet"))
    outliers = ledger[ledger.band == "outlier"]
    assert len(outliers) > 0
    assert set(review.image_id) == set(outliers.image_id)
    assert review.mismatch_score.is_monotonic_decreasing
    assert not outliers.kept.any()
    # No review, no list: one of a run before must not stay.
    train_arm(tiny_study, "curated", tiny_config())
    assert not tiny_study.has(f"{folder}/review.parquet")


def test_a_learning_rate_for_curation_holds_there_only(tiny_study):
    folder = train_arm(tiny_study, "curated", tiny_config(curation_learning_rate=1e-4, ramp_steps=0))
    history = pd.read_parquet(tiny_study.path(f"{folder}/history.parquet"))
    assert set(history[history.phase == "curate"].learning_rate) == {1e-4}
    assert history[history.phase != "curate"].learning_rate.max() == 1e-3


def _leave_subset(run, method, ids, weight=1.0):
    run.write_table(subset_artifact(method, 0), pd.DataFrame({"image_id": ids, "weight": weight}))


def test_a_subset_chosen_beforehand_is_what_is_trained_on(tiny_study):
    ids = train_ids(tiny_study)[::3]
    _leave_subset(tiny_study, "mine", ids)
    folder = train_arm(tiny_study, "by_mine", tiny_config())
    assert set(pd.read_parquet(tiny_study.path(f"{folder}/subset.parquet")).image_id) == set(ids)
    history = pd.read_parquet(tiny_study.path(f"{folder}/history.parquet"))
    assert history[history.phase == "curate"].pairs_trained.sum() == len(ids)
    assert history[history.phase == "subset"].pairs_trained.sum() == len(ids)


def test_at_equal_compute_it_trains_until_the_curated_arm_s_operations(tiny_study):
    _leave_subset(tiny_study, "few", train_ids(tiny_study)[:20])
    config = tiny_config(subset_epochs=3)
    for arm in ("by_few", "by_few@compute"):
        train_arm(tiny_study, arm, config)
    flops = {
        arm: tiny_study.read_json(f"{arm_folder(arm, 0)}/compute.json")["flops"]
        for arm in ("curated", "by_few", "by_few@compute")
    }
    assert flops["by_few"] < 0.9 * flops["curated"]
    assert flops["by_few@compute"] == pytest.approx(flops["curated"], rel=0.05)


def test_weights_of_a_subset_enter_the_loss(tiny_study):
    ids = train_ids(tiny_study)[:40]
    weights = {}
    for name, weight in {"even": 1.0, "uneven": np.where(np.arange(40) < 20, 2.0, 0.5)}.items():
        _leave_subset(tiny_study, name, ids, weight)
        train_arm(tiny_study, f"by_{name}")
        weights[name] = read_weights(tiny_study, f"by_{name}")
    assert any(not weights["even"][name].equal(weights["uneven"][name]) for name in weights["even"])


def test_wrong_subsets_and_arms_are_one_sentence(tiny_study):
    config = tiny_config()
    pretrain(tiny_study, "warm_up", 0, config, "cpu")
    with pytest.raises(StudyError, match="has no curation/absent/seed0/subset"):
        pretrain(tiny_study, "by_absent", 0, config, "cpu")
    _leave_subset(tiny_study, "strange", ["nowhere/1"])
    with pytest.raises(StudyError, match="names 1 images that are no training pairs"):
        pretrain(tiny_study, "by_strange", 0, config, "cpu")
    for name in ("by_", "curated.", "by_a/b", "nonsense"):
        with pytest.raises(StudyError, match="unknown arm"):
            find_arm(name)


# --- damage ----------------------------------------------------------------------------------------------------------


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_whatever_an_arm_leaves_behind_is_trained_again_if_it_is_damaged(tiny_study, monkeypatch, capsys):
    monkeypatch.setattr(runs, "_SECONDS_OF_A_REPLACEMENT", 0)
    config = tiny_config()
    folder = train_arm(tiny_study, "curated", config)
    before = read_weights(tiny_study, "curated")
    left = [path for path in tiny_study.path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.name for path in left} >= {
        *("compute.json", "history.parquet", "ledger.parquet", "features.npy", "prototypes.npy", "snapshots.parquet"),
        *("subset.parquet", "projections.safetensors", "model.safetensors", "pretraining.json", "tokenizer.json"),
    }
    for path in [*left, tiny_study.path(f"{arm_folder('warm_up', 0)}/warm_up.pt")]:
        arm = "warm_up" if path.name == "warm_up.pt" else "curated"
        whole = path.read_bytes()
        _flip(path)
        if arm == "warm_up":
            # What the arm starts from is damaged: it must not be trained on, and the warm-up makes it again.
            with pytest.raises(StudyError, match=r"warm_up\.pt of study 'tiny' is not what was written there"):
                engine.is_trained(tiny_study, "curated", 0, config)
        assert not engine.is_trained(tiny_study, arm, 0, config), path
        path.write_bytes(whole)
        assert engine.is_trained(tiny_study, arm, 0, config), path
    _flip(tiny_study.path(f"{folder}/model/image_encoder/model.safetensors"))
    with pytest.raises(StudyError, match="it was damaged or changed: run 04_pretrain_curated again"):
        load_model(tiny_study.path(f"{folder}/model"))
    pretrain(tiny_study, "curated", 0, config, "cpu")
    assert f"{folder}/model of study 'tiny' is not what was written there" in capsys.readouterr().out
    assert_same_weights(before, read_weights(tiny_study, "curated"))


@pytest.mark.parametrize("damaged", ["ledger/part-00000.parquet", "features.growing.npy", "prototypes.growing.npy"])
def test_curation_does_not_go_on_from_damaged_records(tiny_study, monkeypatch, capsys, damaged):
    config = tiny_config(super_batch=20)
    pretrain(tiny_study, "warm_up", 0, config, "cpu")
    step = engine.Trainer._train_step
    requests = nullcontext()
    requests.asked = False

    def ask_to_stop(trainer, *arguments, **named):
        step(trainer, *arguments, **named)
        requests.asked = trainer.super_batches == 2

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "_train_step", ask_to_stop)
        with pytest.raises(engine.Stopped):
            pretrain(tiny_study, "curated", 0, config, "cpu", requests=requests)
    folder = tiny_study.path(arm_folder("curated", 0))
    _flip(folder / damaged)
    capsys.readouterr()
    pretrain(tiny_study, "curated", 0, config, "cpu")
    said = capsys.readouterr().out
    assert damaged.split(".")[0] in said
    assert "is not what was written" in said
    assert "curated (seed 0): starts anew" in said
    assert len(read_ledger(tiny_study)) == len(train_ids(tiny_study))
