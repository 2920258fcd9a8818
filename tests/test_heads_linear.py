"""Linear probes: what they read, how they start, and the logistic regression behind the same interface."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.linear import LinearHead, fit_logistic, linear_head, read_vectors
from chexstudy.evaluation.adaptation.logistic_path import fit_linear_probe
from chexstudy.evaluation.adaptation.training import Recipe, fit_head, read_batch

FINDINGS = ("Mass", "Hernia")
WIDTHS = (2, 3, 4)
ENCODER = {"name": "made up", "weights": "0123"}


@pytest.fixture(scope="module")
def study():
    """Features of three blocks with 2, 3 and 4 channels, and a cohort of 120 train, 40 validate, 40 test."""
    rng = np.random.default_rng(3)
    labels = (rng.random((200, 2)) < (0.4, 0.3)).astype(float)
    cls, mean, pooled = (rng.normal(size=(200, width)).astype(np.float32) for width in (9, 9, 5))
    for array in (cls, mean, pooled):
        array[:, -2:] += labels
    ids = [f"made/{row:03d}" for row in range(200)]
    features = FrozenFeatures(ids, pooled, cls, mean, None, WIDTHS, 2, ENCODER)
    cohort = pd.DataFrame({"image_id": ids, "split": ["train"] * 120 + ["validate"] * 40 + ["test"] * 40})
    for column, finding in enumerate(FINDINGS):
        cohort[finding] = pd.array(labels[:, column].astype(int), dtype="Int8")
    return features, cohort


def split(cohort):
    return cohort[cohort.split == "train"], cohort[cohort.split == "validate"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_start_as_published():
    head = LinearHead(40, cls=4096, generator=seeded())
    weights = head.weight.detach().numpy()
    assert weights.shape == (40, 4096)
    # The standard error of a spread over 163,840 weights is 0.17 % of it.
    assert weights.std() == pytest.approx(0.01, rel=0.01)
    assert abs(weights.mean()) < 1e-4
    # A normal distribution and no uniform one: 4.6 % lie beyond two spreads.
    assert (np.abs(weights) > 0.02).mean() == pytest.approx(0.0455, abs=0.003)
    assert not head.bias.any()
    assert torch.equal(head.weight, LinearHead(40, cls=4096, generator=seeded()).weight)
    assert not torch.equal(head.weight, LinearHead(40, cls=4096, generator=seeded(1)).weight)


@pytest.mark.parametrize(
    ("parts", "blocks", "expected"),
    [
        ("cls", 3, lambda f: f.cls),
        ("cls", 2, lambda f: f.cls[:, 2:]),
        ("cls", 1, lambda f: f.cls[:, 5:]),
        ("mean", 3, lambda f: f.mean[:, 5:]),
        ("cls+mean", 2, lambda f: np.concatenate([f.cls[:, 2:], f.mean[:, 5:]], axis=1)),
        ("cls", None, lambda f: f.cls),
        ("pooled", 1, lambda f: f.pooled),
    ],
)
def test_a_head_reads_the_last_blocks_and_the_mean_patch_of_the_very_last(study, parts, blocks, expected):
    features, _ = study
    rows = np.array([4, 9, 150])
    values = expected(features)[rows]
    np.testing.assert_array_equal(read_vectors(features, [features.image_ids[r] for r in rows], parts, blocks), values)
    head = linear_head(features, 2, parts=parts, blocks=blocks, generator=seeded())
    assert not head.needs_patches
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, -2.0]))
        logits = head(read_batch(features, rows, needs_patches=False)).numpy()
    np.testing.assert_allclose(logits, values @ head.weight.detach().numpy().T + [1.0, -2.0], atol=1e-6)


def test_the_published_sweep_learns_what_the_features_tell(study):
    features, cohort = study
    train, validation = split(cohort)
    fitted = fit_head(
        lambda generator: linear_head(features, 2, parts="cls", blocks=3, generator=generator),
        features, train, validation, FINDINGS, Recipe(batch_size=32), 0,
    )  # fmt: skip
    assert fitted.validation.set_index("learning_rate").auroc[fitted.learning_rate] > 0.7
    assert fitted.head.settings == {"findings": 2, "cls": 9, "mean": 0, "pooled": 0}


def test_the_logistic_regression_is_scikit_learns_on_standardised_features(study):
    features, cohort = study
    train, validation = split(cohort)
    fitted = fit_logistic(features, train, validation, FINDINGS, parts="cls+mean", blocks=2, inverse_penalties=(0.1,))
    test = cohort.image_id[cohort.split == "test"]
    scores = fitted.score(features, test)
    assert (scores.shape, scores.dtype) == ((40, 2), np.float64)
    scaler = StandardScaler().fit(read_vectors(features, train.image_id, "cls+mean", 2).astype(float))
    values, held_out = (
        scaler.transform(read_vectors(features, ids, "cls+mean", 2).astype(float)) for ids in (train.image_id, test)
    )
    for column, finding in enumerate(FINDINGS):
        reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(values, train[finding].astype(int))
        np.testing.assert_allclose(scores[:, column], reference.decision_function(held_out), atol=2e-3)


def test_the_logistic_regression_is_that_of_the_probe_and_masks_labels(study):
    features, cohort = study
    train, validation = (rows.copy() for rows in split(cohort))
    train.loc[train.index[:9], "Mass"] = -1
    train.loc[train.index[20:30], "Hernia"] = pd.NA
    fitted = fit_logistic(features, train, validation, FINDINGS, parts="pooled")
    labels = [rows[list(FINDINGS)].to_numpy(float, na_value=np.nan) for rows in (train, validation)]
    probe = fit_linear_probe(features.pooled[:120], labels[0], features.pooled[120:160], labels[1])
    np.testing.assert_array_equal(fitted.probe.coefficients, probe.coefficients)
    np.testing.assert_array_equal(fitted.probe.inverse_penalties, probe.inverse_penalties)


def test_a_finding_with_one_class_in_training_gets_no_score(study):
    features, cohort = study
    train, validation = split(cohort)
    fitted = fit_logistic(features, train.assign(Hernia=0), validation, FINDINGS)
    scores = fitted.score(features, cohort.image_id)
    assert np.isfinite(scores[:, 0]).all()
    assert np.isnan(scores[:, 1]).all()


def test_neither_another_encoder_nor_bad_splits_pass(study):
    features, cohort = study
    train, validation = split(cohort)
    fitted = fit_logistic(features, train, validation, FINDINGS)
    with pytest.raises(StudyError, match="features of another encoder"):
        fitted.score(replace(features, encoder={"weights": "4567"}), cohort.image_id)
    with pytest.raises(StudyError, match="the training split has no images"):
        fit_logistic(features, train.iloc[:0], validation, FINDINGS)
    with pytest.raises(StudyError, match="Hernia has no known label"):
        fit_logistic(features, train.assign(Hernia=-1), validation, FINDINGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "patches"}, "a linear head reads cls, mean, cls.mean, pooled, not 'patches'"),
        ({"blocks": 4}, "the features hold 3 blocks, not 4"),
        ({"blocks": 0}, "the features hold 3 blocks, not 0"),
    ],
)
def test_what_cannot_be_read_is_refused(study, options, message):
    features, cohort = study
    with pytest.raises(StudyError, match=message):
        linear_head(features, 2, generator=seeded(), **options)
    with pytest.raises(StudyError, match=message):
        fit_logistic(features, *split(cohort), FINDINGS, **options)


@pytest.mark.parametrize("options", [{}, {"cls": -1, "mean": 4}, {"findings": 0, "cls": 3}])
def test_a_head_that_reads_nothing_is_refused(options):
    with pytest.raises(StudyError, match="one finding or more, and features to read"):
        LinearHead(**({"findings": 2} | options), generator=seeded())
