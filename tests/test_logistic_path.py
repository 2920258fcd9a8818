import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.logistic_path import INVERSE_PENALTIES, fit_linear_probe
from chexstudy.statistics.ranking import auroc


@pytest.fixture
def splits():
    generator = np.random.default_rng(0)
    features = generator.normal(2, 5, size=(900, 12))
    features[:, 11] = 7
    direction = generator.normal(size=(12, 3)) / 5
    logits = (features - 2) @ direction
    labels = (generator.random((900, 3)) < 1 / (1 + np.exp(-logits + 1))).astype(float)
    cut = {"train": slice(0, 500), "validate": slice(500, 700), "test": slice(700, 900)}
    return {name: (features[rows], labels[rows]) for name, rows in cut.items()}


def test_a_finding_equals_scikit_learn_at_the_chosen_penalty(splits):
    (train, train_labels), (validation, validation_labels), (test, test_labels) = splits.values()
    train_labels[:40, 0], train_labels[:20, 1] = -1, np.nan
    probe = fit_linear_probe(train, train_labels, validation, validation_labels)
    again = fit_linear_probe(train, train_labels, validation, validation_labels)
    np.testing.assert_array_equal(probe.coefficients, again.coefficients)
    scaler = StandardScaler().fit(train)
    known = train_labels[:, 0] != -1
    by_penalty = {}
    for inverse_penalty in INVERSE_PENALTIES:
        reference = LogisticRegression(C=inverse_penalty, tol=1e-8, max_iter=5000)
        reference.fit(scaler.transform(train[known]), train_labels[known, 0])
        judged = auroc(validation_labels[:, :1], reference.decision_function(scaler.transform(validation))[:, None])[0]
        by_penalty[inverse_penalty] = judged, reference.decision_function(scaler.transform(test))
    chosen = probe.inverse_penalties[0]
    assert by_penalty[chosen][0] >= max(judged for judged, _ in by_penalty.values()) - 1e-4
    np.testing.assert_allclose(probe.score(test)[:, 0], by_penalty[chosen][1], atol=5e-3)
    assert (auroc(test_labels, probe.score(test)) > 0.8).all()


def test_a_finding_with_one_class_in_training_is_not_predicted(splits):
    train, train_labels = splits["train"]
    train_labels[:, 1] = 0
    scores = fit_linear_probe(train, train_labels, *splits["validate"]).score(splits["test"][0])
    assert np.isnan(scores).all(axis=0).tolist() == [False, True, False]


def test_a_finding_that_validation_cannot_judge_takes_the_penalty_best_for_the_rest(splits):
    validation, validation_labels = splits["validate"]
    validation_labels[:, 1] = 0
    probe = fit_linear_probe(*splits["train"], validation, validation_labels)
    assert np.isfinite(probe.coefficients[1]).all()
    assert probe.inverse_penalties[1] in INVERSE_PENALTIES
    only_mass = fit_linear_probe(splits["train"][0], splits["train"][1][:, :2], validation, validation_labels[:, :2])
    assert only_mass.inverse_penalties[1] == only_mass.inverse_penalties[0]


def test_a_strong_penalty_is_chosen_when_features_are_mostly_noise():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(460, 100))
    labels = (features[:, :1] + 2 * generator.normal(size=(460, 1)) > 0).astype(float)
    probe = fit_linear_probe(features[:60], labels[:60], features[60:], labels[60:])
    assert probe.inverse_penalties[0] <= 1e-2


def test_features_that_cannot_be_used_are_named(splits):
    train, train_labels = splits["train"]
    train[3, 2] = np.inf
    with pytest.raises(StudyError, match="training features hold values that are not finite"):
        fit_linear_probe(train, train_labels, *splits["validate"])
