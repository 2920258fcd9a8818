import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import bootstrap_patients
from chexstudy.statistics.ranking import auroc, average_precision, macro_mean, rank_metrics


def column(*values):
    return np.array(values, dtype=float)[:, None]


def test_auroc_and_average_precision_of_a_case_worked_by_hand():
    # Sorted by score: positive 0.9, negative 0.8, positive 0.7, negative 0.1.
    labels, scores = column(1, 0, 1, 0), column(0.9, 0.8, 0.7, 0.1)
    assert auroc(labels, scores)[0] == pytest.approx(3 / 4)
    assert average_precision(labels, scores)[0] == pytest.approx((1 / 1 + 2 / 3) / 2)
    # A tie counts half.
    assert auroc(column(1, 0), column(0.5, 0.5))[0] == pytest.approx(0.5)
    assert average_precision(column(1, 0, 0), column(0.5, 0.5, 0.5))[0] == pytest.approx(1 / 3)


def test_many_findings_with_ties_and_masked_labels_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.choice([0.0, 1.0, -1.0, np.nan], size=(300, 7), p=[0.6, 0.2, 0.1, 0.1])
    scores = np.round(generator.normal(size=labels.shape) + (labels == 1), 1)
    area, precision = rank_metrics(labels, scores)
    for finding in range(labels.shape[1]):
        known = np.isin(labels[:, finding], (0, 1))
        assert area[finding] == pytest.approx(roc_auc_score(labels[known, finding], scores[known, finding]), abs=1e-12)
        assert precision[finding] == pytest.approx(
            average_precision_score(labels[known, finding], scores[known, finding]), abs=1e-12
        )


@pytest.mark.parametrize("whole", [True, False])
def test_weights_agree_with_scikit_learn_sample_weights(whole):
    generator = np.random.default_rng(1)
    labels = (generator.random((120, 3)) < 0.3).astype(float)
    scores = np.round(generator.normal(size=labels.shape) + labels, 1)
    weights = generator.integers(0, 4, size=(50, 120)) if whole else generator.random((50, 120))
    area, precision = rank_metrics(labels, scores, weights)
    assert area.shape == precision.shape == (50, 3)
    for resample in range(50):
        for finding in range(3):
            arguments = labels[:, finding], scores[:, finding]
            weight = weights[resample]
            assert area[resample, finding] == pytest.approx(roc_auc_score(*arguments, sample_weight=weight), abs=1e-12)
            assert precision[resample, finding] == pytest.approx(
                average_precision_score(*arguments, sample_weight=weight), abs=1e-12
            )


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "float32"])
def test_weights_of_any_type_give_the_same_numbers(kind):
    generator = np.random.default_rng(9)
    labels = (generator.random((900, 2)) < [0.5, 0.02]).astype(float)
    scores = np.round(generator.normal(size=labels.shape) + labels, 1)
    weights = bootstrap_patients(np.arange(900), 5, generator)
    expected, measured = rank_metrics(labels, scores, weights), rank_metrics(labels, scores, weights.astype(kind))
    np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-12)


def test_weights_of_zero_leave_cases_out():
    labels, scores = column(1, 0, 1, 0), column(0.9, 0.8, 0.7, 0.1)
    weights = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    area, precision = rank_metrics(labels, scores, weights)
    np.testing.assert_array_equal(area[:, 0], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(precision[:, 0], [1, 0.5, np.nan, np.nan])


def test_each_metric_alone_is_what_both_together_give():
    generator = np.random.default_rng(10)
    labels = generator.choice([0.0, 1.0, -1.0], size=(60, 3))
    scores = np.round(generator.normal(size=labels.shape), 1)
    weights = bootstrap_patients(np.arange(60), 20, generator)
    for arguments in ((labels, scores), (labels, scores, weights)):
        area, precision = rank_metrics(*arguments)
        np.testing.assert_array_equal(auroc(*arguments), area)
        np.testing.assert_array_equal(average_precision(*arguments), precision)


def test_a_large_number_of_resamples_is_worked_in_blocks_without_a_seam(monkeypatch):
    generator = np.random.default_rng(2)
    labels = (generator.random((40, 2)) < 0.4).astype(float)
    scores = generator.normal(size=labels.shape)
    weights = bootstrap_patients(np.arange(40), 37, generator)
    whole = rank_metrics(labels, scores, weights)
    monkeypatch.setattr("chexstudy.statistics.ranking._BLOCK", 40 * 5)
    for expected, measured in zip(whole, rank_metrics(labels, scores, weights), strict=True):
        np.testing.assert_array_equal(measured, expected)


def test_a_finding_of_one_class_is_nan_and_leaves_the_others_alone():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=float)
    scores = np.array([[0.1, 0.9, 0.3], [0.2, 0.5, 0.2], [0.3, 0.7, 0.1]])
    area = auroc(labels, scores)
    assert np.isnan(area[[0, 2]]).all()
    assert area[1] == 1
    assert macro_mean(area) == 1
    assert np.isnan(macro_mean(np.array([np.nan, np.nan])))


def test_a_finding_that_was_not_predicted_is_nan_but_half_a_prediction_is_an_error():
    labels = np.array([[1, 1], [0, 0]], dtype=float)
    assert np.isnan(auroc(labels, np.array([[np.nan, 1.0], [np.nan, 0.0]]))[0])
    with pytest.raises(StudyError, match="number 0 are NaN for some cases"):
        auroc(labels, np.array([[np.nan, 1.0], [0.5, 0.0]]))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(StudyError, match="one shape"):
        auroc(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(StudyError, match="weights hold 4 cases"):
        auroc(np.zeros((3, 2)), np.zeros((3, 2)), np.ones((5, 4)))
