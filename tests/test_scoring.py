"""Scoring: embeddings and losses of all training pairs under the shared warm-up, and under a reference."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_arms import tiny_config

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.models.dual_encoder import load_model
from chexstudy.pretraining.training import scoring
from chexstudy.pretraining.training.arm_run import pretrain
from chexstudy.pretraining.training.scoring import score_training_pairs, score_with_reference

pytestmark = pytest.mark.usefixtures("one_thread")
_config = partial(tiny_config, batch_size=20)


def _training(run):
    cohort = pd.read_parquet(run.path("cohort.parquet"))
    return cohort[cohort.split == "train"].reset_index(drop=True)


def _forbid_measuring(monkeypatch):
    def measure(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(scoring, "measure_pairs", measure)


def test_embeddings_are_those_of_the_warm_up_pair_by_pair(tiny_study):
    scores = score_training_pairs(tiny_study, 0, _config(), "cpu")
    training = _training(tiny_study)
    assert list(scores.image_ids) == list(training.image_id)
    model = load_model(tiny_study.path(f"{arm_folder('warm_up', 0)}/model"))
    row = 7
    pixels = open_pixel_store(tiny_study).read([training.image_id[row]])
    tokens = model.text_tower.tokenize([training.report[row].strip()])
    with torch.no_grad():
        image = model.image_tower(torch.from_numpy(np.array(pixels)).unsqueeze(1))[0]
        text = model.text_tower(tokens["input_ids"], tokens["attention_mask"])[0]
    np.testing.assert_allclose(scores.image[row], image, atol=1e-5)
    np.testing.assert_allclose(scores.text[row], text, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(scores.features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(scores.features[row, :16] * np.sqrt(2), scores.image[row], atol=1e-5)


def test_losses_follow_from_the_embeddings_of_a_batch(tiny_study):
    # One batch of all pairs, so that the batches are known without asking the code.
    scores = score_training_pairs(tiny_study, 0, _config(batch_size=500), "cpu")
    logits = scores.image.astype(float) @ scores.text.astype(float).T / scores.temperature
    losses = []
    for side in (logits, logits.T):
        probability = np.exp(side) / np.exp(side).sum(axis=1, keepdims=True)
        losses.append(-np.log(np.diag(probability)))
    np.testing.assert_allclose(scores.loss, np.mean(losses, axis=0), rtol=1e-4)


def test_losses_are_measured_among_few_pairs_in_small_batches(tiny_study):
    small = score_training_pairs(tiny_study, 0, _config(batch_size=5), "cpu")
    # No loss of a batch of 5 can come near the mean over 70 candidates.
    whole = score_training_pairs(tiny_study, 0, _config(batch_size=500), "cpu")
    assert small.loss.mean() < whole.loss.mean() - 1


def test_a_second_call_reads_and_another_model_is_scored_anew(tiny_study, monkeypatch):
    first = score_training_pairs(tiny_study, 0, _config(), "cpu")
    with monkeypatch.context() as patch:
        _forbid_measuring(patch)
        again = score_training_pairs(tiny_study, 0, _config(), "cpu")
        # What comes after the warm-up does not concern its scores.
        score_training_pairs(tiny_study, 0, _config(subset_epochs=5, central_cap=9), "cpu")
    np.testing.assert_array_equal(first.loss, again.loss)
    assert first.cost == again.cost
    longer = score_training_pairs(tiny_study, 0, _config(warm_up_epochs=2), "cpu")
    assert not np.allclose(first.image, longer.image)


def test_a_lost_file_is_made_again_with_the_same_bytes(tiny_study):
    score_training_pairs(tiny_study, 0, _config(), "cpu")
    path = tiny_study.path("curation/scoring/seed0/image.npy")
    before = path.read_bytes()
    path.unlink()
    score_training_pairs(tiny_study, 0, _config(), "cpu")
    assert path.read_bytes() == before


def test_without_a_warm_up_the_model_is_the_one_training_starts_from(tiny_study):
    config = _config(warm_up_epochs=0)
    scores = score_training_pairs(tiny_study, 0, config, "cpu")
    assert not tiny_study.has(f"{arm_folder('warm_up', 0)}/compute.json")
    # Fitted on the model that the curated arm starts from as well: its first features are these.
    pretrain(tiny_study, "curated", 0, config, "cpu")
    ledger = pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/ledger.parquet"))
    features = np.load(tiny_study.path(f"{arm_folder('curated', 0)}/features.npy"))[:40].astype(float)
    rows = pd.Index(scores.image_ids).get_indexer(ledger.image_id[:40])
    np.testing.assert_allclose(scores.features[rows], features, atol=2e-3)


def test_scoring_costs_a_forward_pass(tiny_study):
    scores = score_training_pairs(tiny_study, 0, _config(), "cpu")
    warm_up = tiny_study.read_json(f"{arm_folder('warm_up', 0)}/compute.json")
    assert scores.cost["pairs_scored"] == len(scores.image_ids)
    assert scores.cost["seconds"] > 0
    # The warm-up is one epoch, forward and backward: between two and four times as much.
    assert 2 < warm_up["flops"] / scores.cost["flops"] < 4.5


def test_the_reference_scores_the_same_pairs_in_the_same_batches(tiny_study, monkeypatch):
    config = _config()
    pretrain(tiny_study, "full", 0, config, "cpu")
    scores = score_with_reference(tiny_study, "full", 0, config, "cpu")
    assert scores.reference_loss.shape == scores.loss.shape
    assert not np.allclose(scores.reference_loss, scores.loss)
    assert scores.reference_cost["flops"] == pytest.approx(scores.cost["flops"])
    # The warm-up as its own reference gives its own losses: the batches are the same.
    own = score_with_reference(tiny_study, "warm_up", 0, config, "cpu")
    np.testing.assert_allclose(own.reference_loss, own.loss, rtol=1e-6)
    with monkeypatch.context() as patch:
        _forbid_measuring(patch)
        score_with_reference(tiny_study, "warm_up", 0, config, "cpu")


def test_a_reference_that_was_not_trained_is_named(tiny_study):
    with pytest.raises(StudyError, match="'full'"):
        score_with_reference(tiny_study, "full", 0, _config(), "cpu")
