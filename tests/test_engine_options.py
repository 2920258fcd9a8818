"""What the engine can be told to do differently: each option does what it says, and costs what it says."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_arms import tiny_config

from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.models.dual_encoder import build_model
from chexstudy.pretraining.training.arm_run import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")
_CONSTANTS = {"image_encoder": "tiny-vit", "micro_batch": 8, "warm_up_epochs": 0, "subset_epochs": 2}


def _train(run, arm="curated", **changes):
    return pretrain(run, arm, 0, tiny_config(**_CONSTANTS | changes), "cpu")


def _history(run, arm="curated"):
    return pd.read_parquet(run.path(f"{arm_folder(arm, 0)}/history.parquet"))


def _encoder_weights(run, side, arm="curated"):
    return load_file(run.path(f"{arm_folder(arm, 0)}/model/{side}_encoder/model.safetensors"))


def _fresh_weights(run, side):
    cohort = pd.read_parquet(run.path("cohort.parquet"))
    config = tiny_config(**_CONSTANTS)
    model = build_model(config, cohort[cohort.split == "train"], RandomStreams(0).draw_seed("initialisation"))
    tower = model.image_tower if side == "image" else model.text_tower
    return tower.encoder.model.state_dict()


def test_scoring_at_low_resolution_costs_less_and_reports_its_overlap(tiny_study):
    full = _train(tiny_study)
    assert full["selection_overlap"] is None
    assert full["overlap_flops"] == 0
    low = _train(tiny_study, scoring_size=12, overlap_every=2)
    history = _history(tiny_study)
    overlap = history[history.phase == "curate"].selection_overlap
    assert overlap.notna().tolist() == [number % 2 == 0 for number in range(len(overlap))]
    assert overlap.dropna().between(0, 1).all()
    assert low["selection_overlap"] == pytest.approx(overlap.mean())
    assert low["overlap_flops"] > 0
    # The kept pairs are more than a micro-batch: at full size they have to be encoded without gradient first.
    assert low["pairs_trained"] > 0
    scored = tiny_study.read_json(f"{arm_folder('curated', 0)}/compute.json")["by_phase"]["curate"]["pairs_scored"]
    assert scored == len(pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/ledger.parquet")))


def test_measuring_the_overlap_changes_nothing_else(tiny_study):
    weights, flops = {}, {}
    for every in (1, 100):
        flops[every] = _train(tiny_study, scoring_size=24, overlap_every=every, rule="budgeted", budget=0.4)["flops"]
        weights[every] = _encoder_weights(tiny_study, "image")
    assert flops[1] == flops[100]
    assert all(torch.equal(weights[1][name], weights[100][name]) for name in weights[1])


def test_scoring_at_full_size_by_another_name_selects_the_same(tiny_study):
    _train(tiny_study)
    kept = pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/subset.parquet"))
    cost = _train(tiny_study, scoring_size=36, overlap_every=1)
    pd.testing.assert_frame_equal(kept, pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/subset.parquet")))
    assert cost["selection_overlap"] == 1


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_frozen_encoder_stays_as_it_was_and_is_asked_once(tiny_study, side):
    trained = _train(tiny_study)["flops"]
    frozen = _train(tiny_study, frozen_towers=[side])["flops"]
    assert frozen < trained
    before, after = _fresh_weights(tiny_study, side), _encoder_weights(tiny_study, side)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    other = "text" if side == "image" else "image"
    before, after = _fresh_weights(tiny_study, other), _encoder_weights(tiny_study, other)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    features = list(tiny_study.path("pretraining/frozen").glob(f"{side}-*.npy"))
    assert len(features) == 1
    _train(tiny_study, "full", frozen_towers=[side])
    assert list(tiny_study.path("pretraining/frozen").glob(f"{side}-*.npy")) == features


def test_low_rank_updates_are_merged_into_what_is_saved(tiny_study):
    _train(tiny_study, lora_rank=2)
    before, after = _fresh_weights(tiny_study, "image"), _encoder_weights(tiny_study, "image")
    assert before.keys() == after.keys()
    ranks = {
        name: int(torch.linalg.matrix_rank(value - before[name], atol=1e-5))
        for name, value in after.items()
        if value.ndim == 2 and not torch.equal(value, before[name])
    }
    assert ranks
    assert set(ranks.values()) <= {1, 2}
    with pytest.raises(StudyError, match="no attention or MLP layers"):
        _train(tiny_study, lora_rank=2, image_encoder="tiny-resnet")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_layouts_of_texts_train_alike_and_padding_costs(tiny_study, layout):
    buckets = _train(tiny_study, "full")["flops"]
    losses = _history(tiny_study, "full").loss
    flops = _train(tiny_study, "full", text_layout=layout)["flops"]
    assert np.allclose(losses, _history(tiny_study, "full").loss, rtol=1e-3)
    assert flops < buckets if layout == "packed" else flops >= buckets


def test_a_tracker_gets_the_history(tiny_study):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = _train(tiny_study, "full")
    with_tracker = _train(tiny_study, "full", tracker="tensorboard")
    assert plain["flops"] == with_tracker["flops"]
    tiny_study.path(f"{arm_folder('full', 0)}/compute.json").unlink()
    _train(tiny_study, "full", tracker="tensorboard")
    folder = next(tiny_study.path(f"{arm_folder('full', 0)}/tracker").rglob("events*")).parent
    events = EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert [event.step for event in events] == _history(tiny_study, "full").step.tolist()


def test_how_a_run_is_watched_does_not_make_it_stale(tiny_study, monkeypatch):
    _train(tiny_study, "full")
    monkeypatch.setattr(
        "chexstudy.pretraining.training.arm_run.Trainer.train_epoch", lambda *_: pytest.fail("trained again")
    )
    _train(tiny_study, "full", tracker="tensorboard", checkpoint_minutes=0.5)


def test_what_a_run_used_of_the_machine_is_recorded(tiny_study):
    _train(tiny_study, "full")
    compute = json.loads(tiny_study.path(f"{arm_folder('full', 0)}/compute.json").read_text())
    assert compute["processes"] == 1
    assert compute["micro_batch"] == 8
    assert compute["energy_joules"] is None or compute["energy_joules"] > 0
    assert 0 <= compute["input_stall_seconds"] < compute["seconds"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scoring_size": 48}, r"scoring_size \(48\) must not exceed image_size \(36\)"),
        ({"scoring_size": 20}, "patches of 12 pixels"),
        ({"text_layout": "ragged"}, "text_layout must be one of buckets, packed, padded"),
        ({"frozen_towers": ["vision"]}, "frozen_towers must be one of image, text"),
        ({"frozen_towers": ["image"], "scoring_size": 12}, "no effect on a frozen image tower"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "lora_alpha must be positive"),
        ({"tracker": "clearml"}, "tracker must be one of tensorboard, or empty, not 'clearml'"),
        ({"super_batch": 2}, r"super_batch \(2\) must hold at least one pair a prototype \(3\)"),
        ({"learning_rates": 1.0}, "unknown constant 'learning_rates'"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_training(tiny_study, changes, sentence):
    with pytest.raises(StudyError, match=sentence) as error:
        _train(tiny_study, "full", **changes)
    assert "\n" not in str(error.value)
    assert not tiny_study.path(f"{arm_folder('full', 0)}/checkpoints").exists()
