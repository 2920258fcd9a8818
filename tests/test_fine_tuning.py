"""Fine-tuning trains what its method says, from the pretrained encoder, and chooses on validation."""

import numpy as np
import pytest
import torch

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.fine_tuning import FineTuning, fine_tune
from chexstudy.statistics.ranking import auroc

FINDINGS = ["Mass", "Hernia"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def study(tiny_study):
    return read_cohort(tiny_study.path("cohort.parquet")), open_pixel_store(tiny_study)


def build(name="tiny-vit"):
    return build_image_encoder(EncoderSpec(name, image_size=36, pretrained=False), seed=0)


def tune(encoder, study, **settings):
    cohort, store = study
    settings = FineTuning(**{"learning_rates": (1e-3,), "epochs": 2, "batch_size": 16} | settings)
    train, validation = (cohort[cohort.split == split] for split in ("train", "validate"))
    return fine_tune(encoder, store, train, validation, FINDINGS, settings, seed=3)


@pytest.mark.parametrize("method", ["bias_only", "low_rank", "full"])
def test_each_method_trains_what_its_name_says(study, method):
    encoder = build()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    tuned = tune(encoder, study, method=method)
    after = tuned.encoder.state_dict()
    assert after.keys() == before.keys(), "low-rank updates are merged"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if method == "bias_only":
        assert changed
        assert all(name.endswith("bias") for name in changed)
    elif method == "low_rank":
        assert changed
        assert all(name.endswith("weight") and before[name].ndim == 2 for name in changed)
        assert max(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) for name in changed) <= 16
    else:
        assert {name.rpartition(".")[2] for name in changed} >= {"weight", "bias"}
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in before.items()), "a copy is trained"


def test_biases_alone_of_a_convolutional_encoder_can_be_trained(study):
    encoder = build("tiny-resnet")
    tuned = tune(encoder, study, method="bias_only").encoder.state_dict()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, tuned[name])}
    assert changed
    assert all(name.endswith("bias") for name in changed)


def test_the_learning_rate_is_the_best_on_validation(study):
    tuned = tune(build(), study, learning_rates=(1e-6, 1e-3, 3e-3), epochs=4)
    table = tuned.validation.set_index("learning_rate").auroc
    assert tuned.learning_rate == table.idxmax()
    cohort, store = study
    rows = cohort[cohort.split == "validate"]
    labels = rows[FINDINGS].to_numpy(float)
    scores = tuned.score(rows.image_id, store)
    assert np.nanmean(auroc(labels, scores)) == pytest.approx(table.max())
    # Each rate starts anew: alone the best gives the same bits.
    alone = tune(build(), study, learning_rates=(tuned.learning_rate,), epochs=4)
    np.testing.assert_array_equal(alone.score(rows.image_id, store), scores)


def test_it_learns_what_is_to_be_seen(study):
    cohort, store = study
    tuned = tune(build("tiny-resnet"), study, epochs=12, learning_rates=(3e-3,))
    rows = cohort[cohort.split == "test"]
    assert auroc(rows[FINDINGS].to_numpy(float), tuned.score(rows.image_id, store))[0] > 0.9


def test_a_convolutional_encoder_has_no_low_rank_updates(study):
    with pytest.raises(StudyError, match="no attention or MLP layers"):
        tune(build("tiny-resnet"), study, method="low_rank")


def test_settings_and_labels_that_are_all_uncertain_or_one_sided_are_one_sentence(study):
    for settings, sentence in (({"learning_rates": ()}, "one learning rate or more"), ({"epochs": 0}, "one epoch")):
        with pytest.raises(StudyError, match=sentence):
            FineTuning(**settings)
    cohort, store = study
    uncertain = cohort.assign(Mass=-1, Hernia=-1)
    with pytest.raises(StudyError, match="no label of the training split is known"):
        tune(build(), (uncertain, store))
    one_sided = cohort.assign(**{name: cohort[name].where(cohort.split == "train", 0) for name in FINDINGS})
    with pytest.raises(StudyError, match="cannot be chosen"):
        tune(build(), (one_sided, store))
