"""Training of heads: the published recipe, learning rates that do not know of each other, and nothing of the test."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation import training
from chexstudy.evaluation.adaptation.glori import GloriHead
from chexstudy.evaluation.adaptation.linear import LinearHead
from chexstudy.evaluation.adaptation.training import LEARNING_RATES, Recipe, fit_head

FINDINGS = ("Mass", "Hernia")
SHORT = Recipe(epochs=3, batch_size=16)
ENCODER = {"name": "made up", "weights": "0123", "mean": (0.5,)}


@pytest.fixture(scope="module")
def study():
    """Features of 90 images whose first channels tell the findings, and their cohort: 50, 20 and 20 a split."""
    rng = np.random.default_rng(3)
    labels = (rng.random((90, 2)) < (0.4, 0.3)).astype(float)
    cls = rng.normal(size=(90, 6)).astype(np.float32)
    cls[:, :2] += 1.5 * labels
    patches = rng.normal(size=(90, 4, 6)).astype(np.float16)
    patches[:, 1, :2] += 2 * labels.astype(np.float16)
    ids = [f"made/{row:02d}" for row in range(90)]
    features = FrozenFeatures(
        ids, cls[:, :3].copy(), cls, patches.mean(1, dtype=np.float32), patches, (2, 4), 2, ENCODER
    )
    cohort = pd.DataFrame({"image_id": ids, "patient_id": [f"p{row}" for row in range(90)]})
    for column, finding in enumerate(FINDINGS):
        cohort[finding] = pd.array(labels[:, column].astype(int), dtype="Int8")
    cohort["split"] = ["train"] * 50 + ["validate"] * 20 + ["test"] * 20
    # Rows of the cohort and of the features are not in one order.
    return features, cohort.sample(frac=1, random_state=0)


def make_linear(generator):
    return LinearHead(2, cls=6, generator=generator)


def make_glori(generator):
    return GloriHead(6, 2, width=8, heads=2, feedforward=8, generator=generator)


def fit(study, make_head=make_linear, recipe=SHORT, seed=0, **changes):
    features, cohort = study
    train, validation = (cohort[cohort.split == split] for split in ("train", "validate"))
    arguments = {"train": train, "validation": validation, "findings": FINDINGS, "features": features} | changes
    return fit_head(make_head, recipe=recipe, seed=seed, **arguments)


def weights_of(fitted):
    return torch.cat([value.flatten() for value in fitted.head.state_dict().values()])


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_training_is_adamw_on_the_summed_masked_cross_entropy_with_a_cosine_to_zero(study):
    """The recipe written out in numpy: one whole-set batch a step, so that the order of the images does not matter."""
    features, cohort = study
    train = cohort[cohort.split == "train"].copy()
    train.iloc[:7, train.columns.get_loc("Mass")] = -1
    train.iloc[5:12, train.columns.get_loc("Hernia")] = pd.NA
    rate, epochs, decay = 0.05, 6, 0.1
    recipe = Recipe((rate,), epochs=epochs, batch_size=50, weight_decay=decay)
    fitted = fit(study, recipe=recipe, train=train, seed=4)

    start = make_linear(torch.Generator().manual_seed(4))
    values = features.cls[features.rows(train.image_id)].astype(float)
    labels = train[list(FINDINGS)].to_numpy(float, na_value=np.nan)
    known = np.isin(labels, (0, 1))
    assert (~known).sum() == 14
    theta = np.concatenate([start.weight.detach().numpy().astype(float), np.zeros((2, 1))], axis=1)
    inputs = np.concatenate([values, np.ones((50, 1))], axis=1)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(epochs):
        probability = 1 / (1 + np.exp(-inputs @ theta.T))
        gradient = (np.where(known, probability - np.where(known, labels, 0), 0)).T @ inputs
        now = rate * (1 + np.cos(np.pi * step / epochs)) / 2
        theta = theta * (1 - now * decay)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step_first, step_second = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        theta = theta - now * step_first / (np.sqrt(step_second) + 1e-8)
    np.testing.assert_allclose(fitted.head.weight.numpy(), theta[:, :-1], atol=1e-5)
    np.testing.assert_allclose(fitted.head.bias.numpy(), theta[:, -1], atol=1e-5)


def test_every_image_is_seen_once_an_epoch_and_batches_come_as_they_lie_on_disk(study, monkeypatch):
    seen = []
    read = FrozenFeatures.read_batch
    monkeypatch.setattr(
        FrozenFeatures, "read_batch", lambda self, rows, *rest: seen.append(rows) or read(self, rows, *rest)
    )
    fit(study, recipe=Recipe((0.01, 0.1), epochs=2, batch_size=16))
    of_training, of_validation = seen[:8], seen[8:]
    assert [len(rows) for rows in of_training] == [16, 16, 16, 2] * 2
    for epoch in (of_training[:4], of_training[4:]):
        assert sorted(np.concatenate(epoch)) == list(range(50))
    assert not np.array_equal(of_training[0], of_training[4])
    assert all((np.diff(rows) > 0).all() for rows in of_training)
    assert sorted(np.concatenate(of_validation)) == list(range(50, 70))


# --- learning rates do not know of each other ------------------------------------------------------------------------


@pytest.mark.parametrize("make_head", [make_linear, make_glori])
def test_thirteen_heads_together_are_each_what_they_are_alone(study, make_head):
    recipe = Recipe(epochs=2, batch_size=16)
    together = fit(study, make_head, recipe)
    for row, rate in enumerate(LEARNING_RATES):
        alone = fit(study, make_head, replace(recipe, learning_rates=(rate,)))
        pd.testing.assert_frame_equal(
            alone.validation, together.validation.iloc[[row]].reset_index(drop=True), check_exact=True
        )
        if rate == together.learning_rate:
            assert torch.equal(weights_of(alone), weights_of(together))


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone(study):
    state = torch.get_rng_state()
    first, again, other = (fit(study, make_glori, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(weights_of(first), weights_of(again))
    assert not torch.equal(weights_of(first), weights_of(other))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_diverged_head_is_out_of_the_race_and_harms_no_other(study):
    recipe = Recipe((0.01, 0.05), epochs=3, batch_size=16)
    sound = fit(study, recipe=recipe)
    fitted = fit(study, recipe=replace(recipe, learning_rates=(0.01, 1e38, 0.05)))
    assert fitted.validation.finite.tolist() == [True, False, True]
    assert fitted.validation.auroc.isna().tolist() == [False, True, False]
    assert torch.equal(weights_of(fitted), weights_of(sound))
    with pytest.raises(StudyError, match="no learning rate of the sweep gives finite logits: try smaller"):
        fit(study, recipe=Recipe((1e38,)))


# --- what is chosen, and on what -------------------------------------------------------------------------------------


def test_the_table_is_scikit_learns_and_decides(study):
    features, cohort = study
    validation = cohort[cohort.split == "validate"]
    fitted = fit(study, recipe=Recipe((1e-5, 1e-3, 0.1), epochs=3, batch_size=16))
    table = fitted.validation.set_index("learning_rate")
    assert fitted.learning_rate == table.auroc.idxmax()
    labels, scores = validation[list(FINDINGS)].to_numpy(int), fitted.score(features, validation.image_id)
    row = table.loc[fitted.learning_rate]
    assert row.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert row.auprc == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    tied = pd.DataFrame({"auroc": [0.7, np.nan, 0.9, 0.9]})
    assert training.choose_row(tied, "learning rate") == 2


def test_a_sweep_never_reads_the_test_split(study):
    features, cohort = study
    recipe = Recipe((1e-3, 1e-1), epochs=2, batch_size=16)
    test = features.rows(cohort.image_id[cohort.split == "test"])
    spoilt = {}
    for name in ("pooled", "cls", "mean", "patches"):
        spoilt[name] = getattr(features, name).copy()
        spoilt[name][test] = np.nan
    blinded = replace(features, **spoilt)
    for make_head in (make_linear, make_glori):
        clean, blind = fit(study, make_head, recipe), fit(study, make_head, recipe, features=blinded)
        assert torch.equal(weights_of(clean), weights_of(blind))
        pd.testing.assert_frame_equal(clean.validation, blind.validation)


def test_heads_that_look_at_patches_train_in_reduced_precision(study, monkeypatch):
    recipe = Recipe((0.01,), epochs=2, batch_size=16)
    trained = {}
    for precision in (None, torch.bfloat16):
        monkeypatch.setattr(training, "autocast_dtype", lambda device, precision=precision: precision)
        trained[precision] = [fit(study, make, recipe) for make in (make_linear, make_glori)]
    (linear, exact), (same, rounded) = trained[None], trained[torch.bfloat16]
    assert torch.equal(weights_of(linear), weights_of(same))
    assert 0 < (weights_of(exact) - weights_of(rounded)).abs().max() < 0.05
    assert all(value.dtype == torch.float32 for value in rounded.head.state_dict().values())


# --- masks -----------------------------------------------------------------------------------------------------------


def test_uncertain_and_unstated_labels_teach_nothing(study):
    """A finding whose masked images say the opposite comes out as if these images had been left out of it."""
    _, cohort = study
    train = cohort[cohort.split == "train"].copy()
    hidden = train.index[:15]
    train.loc[hidden, "Mass"] = -1
    unstated = train.copy()
    unstated.loc[hidden, "Mass"] = pd.NA
    uncertain, missing = fit(study, train=train), fit(study, train=unstated)
    assert torch.equal(weights_of(uncertain), weights_of(missing))
    whole = fit(study)
    assert not torch.equal(uncertain.head.weight[0], whole.head.weight[0])
    if uncertain.learning_rate == whole.learning_rate:
        assert torch.equal(uncertain.head.weight[1], whole.head.weight[1])


# --- scoring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_head", [make_linear, make_glori])
def test_scores_are_logits_in_the_order_asked_for(study, make_head, monkeypatch):
    features, cohort = study
    fitted = fit(study, make_head)
    ids = cohort.image_id[cohort.split == "test"].tolist()
    scores = fitted.score(features, ids)
    assert (scores.shape, scores.dtype) == ((20, 2), np.float64)
    with torch.no_grad():
        expected = fitted.head(features.read_batch(features.rows(ids), fitted.head.needs_patches)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    monkeypatch.setattr(training, "_SCORED_AT_ONCE", 3)
    np.testing.assert_allclose(fitted.score(features, ids[::-1]), expected[::-1], atol=1e-5)
    assert not any(weight.requires_grad for weight in fitted.head.parameters())


def test_features_of_another_encoder_or_without_patches_are_refused(study):
    features, cohort = study
    blind = replace(features, patches=None)
    with pytest.raises(StudyError, match="the features hold none: freeze them with patches"):
        fit(study, make_glori, features=blind)
    fitted = fit(study, make_linear, features=blind)
    with pytest.raises(StudyError, match=r"of another encoder .*freeze the features of its encoder"):
        fitted.score(replace(features, encoder=ENCODER | {"weights": "4567"}), cohort.image_id[:2])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train, validate: {"train": train[:0]}, "the training split has no images: give some patients"),
        (lambda train, validate: {"validation": validate[:0]}, "the validation split has no images"),
        (lambda train, validate: {"findings": ()}, "no finding to learn"),
        (lambda train, validate: {"findings": ("Mass", "Edema")}, "the cohort has no finding 'Edema'"),
        (lambda train, validate: {"train": train.assign(Hernia=-1)}, "Hernia has no known label in the training split"),
        (
            lambda train, validate: {"train": train.assign(Mass=-1, Hernia=pd.array([pd.NA] * 50, dtype="Int8"))},
            "no label of the training split is known, all are uncertain or not stated: label some images",
        ),
        (
            lambda train, validate: {"validation": validate.assign(Mass=0, Hernia=-1)},
            "no finding is both present and absent in the validation split, so no learning rate can be chosen",
        ),
        (lambda train, validate: {"validation": pd.concat([validate, train.head(1)])}, "some images are in training"),
        (
            lambda train, validate: {"validation": validate.assign(patient_id=train.patient_id.iloc[0])},
            "some patients are in training and in validation",
        ),
        (
            lambda train, validate: {"train": train.assign(image_id="made/none")},
            r"50 of 50 images have no frozen features \(the first is number 0 of those asked for",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(study, change, message):
    _, cohort = study
    train, validation = (cohort[cohort.split == split] for split in ("train", "validate"))
    with pytest.raises(StudyError, match=message):
        fit(study, **change(train, validation))


def test_one_learning_rate_needs_no_validation_to_choose(study):
    features, cohort = study
    train = cohort[cohort.split == "train"].assign(Hernia=0)
    validation = cohort[cohort.split == "validate"].assign(Mass=0, Hernia=-1)
    fitted = fit(study, recipe=Recipe((0.01,), epochs=1), train=train, validation=validation)
    assert fitted.learning_rate == 0.01
    assert fitted.validation.auroc.isna().all()
    assert np.isfinite(fitted.score(features, cohort.image_id)).all(), "a finding without positives is trained, too"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": ()}, "one learning rate or more"),
        ({"learning_rates": (0.1, 0.1)}, "each once"),
        ({"epochs": 0}, "1 epoch or more"),
        ({"loss": "mse"}, "there is no loss 'mse'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(options, message):
    with pytest.raises(StudyError, match=message):
        Recipe(**options)
