"""Calibration agrees with scikit-learn, with sums by hand, and with what was put into the simulation."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from chexstudy.errors import StudyError
from chexstudy.evaluation.robustness.calibration import (
    assign_bins,
    fit_platt,
    fit_temperature,
    measure_calibration,
    reliability_curve,
    shift_prevalence,
    to_log_odds,
)
from chexstudy.statistics.bootstrap import bootstrap_patients


@pytest.fixture(scope="module")
def drawn():
    """2,000 cases whose probabilities are right."""
    generator = np.random.default_rng(0)
    odds = generator.normal(-1, 1.5, size=2000)
    return odds, (generator.random(2000) < expit(odds)).astype(float)


def measure(odds, labels):
    """Rows of one finding by metric."""
    weights = bootstrap_patients(np.arange(len(labels)), 20, np.random.default_rng(0))
    rows = measure_calibration(odds[:, None], labels[:, None], ["Mass"], weights, macro=np.array([True]))
    return rows[rows.finding == "Mass"].set_index("metric").T


def test_curve_and_errors_are_those_of_scikit_learn(drawn):
    odds, labels = drawn
    rows, curve = measure(odds, labels), reliability_curve(expit(odds), labels, np.arange(2000))
    for binning, strategy in (("width", "uniform"), ("mass", "quantile")):
        share, mean = calibration_curve(labels, expit(odds), n_bins=10, strategy=strategy)
        n = np.bincount(assign_bins(expit(odds), labels, binning))
        assert rows[f"ece_{binning}"].value == pytest.approx(np.sum(n * np.abs(share - mean)) / 2000, abs=1e-12)
    np.testing.assert_allclose(curve[["observed", "predicted"]].T, [share, mean], atol=1e-12)
    assert (curve.n.sum(), curve.positives.sum()) == (2000, labels.sum())
    assert ((curve.ci_low < curve.observed) & (curve.observed < curve.ci_high)).all()
    assert rows["brier"].value == pytest.approx(brier_score_loss(labels, expit(odds)), abs=1e-12)


def test_equal_probabilities_are_not_parted_and_adaptive_bins_rise():
    # Half the cases are off by 0.4, half by 0.1.
    rows = measure(logit(np.array([0.1, 0.1, 0.9, 0.9])), np.array([0, 1, 1, 1.0]))
    assert rows["ece_mass"].value == rows["ece_width"].value == pytest.approx(0.25)
    assert len(np.unique(assign_bins(np.repeat([0.2, 0.4, 0.4, 0.9], 5), np.zeros(20)))) == 3
    generator = np.random.default_rng(2)
    probabilities = generator.random(300)
    labels = (generator.random(300) < probabilities).astype(float)
    members = assign_bins(probabilities, labels, "adaptive")
    share = np.bincount(members, weights=labels) / np.bincount(members)
    assert (np.diff(share) >= 0).all()
    assert len(share) > 3


def test_a_temperature_is_the_most_likely_one(drawn):
    odds, labels = drawn
    found = fit_temperature(4 * odds[:, None], labels[:, None])

    def loss(inverse):
        return np.sum(np.logaddexp(0, inverse * 4 * odds) - labels * inverse * 4 * odds)

    best = minimize_scalar(loss, bounds=(0.01, 1), method="bounded", options={"xatol": 1e-10}).x
    assert found.slopes[0] == pytest.approx(best, abs=1e-5)
    assert found.slopes[0] == pytest.approx(0.25, abs=0.03)


def test_platt_has_the_smoothed_targets_and_leaves_the_order(drawn):
    odds, labels = drawn
    scores = 0.1 * odds + 5
    platt = fit_platt(scores[:, None], labels[:, None])
    recalibrated = platt.apply(scores[:, None])[:, 0]
    assert (np.argsort(recalibrated) == np.argsort(scores)).all()
    p, n = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (p + 1) / (p + 2), 1 / (n + 2))
    # At the maximum the residuals say nothing more about intercept or slope.
    residual = target - expit(recalibrated)
    np.testing.assert_allclose([residual.sum(), (residual * odds).sum()], 0, atol=1e-6)
    assert measure(recalibrated, labels)["ece_mass"].value < 0.03
    separable = fit_platt(np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[0.0], [0.0], [1.0], [1.0]]))
    assert np.isfinite(separable.slopes).all()


def test_a_shift_of_prevalence_is_bayes_rule():
    generator = np.random.default_rng(4)
    labels = generator.random(20_000) < 0.3
    image = generator.normal(np.where(labels, 1.0, -1.0))
    # With unit normals at 1 and -1 the log-odds are 2 x + logit(prevalence): right for 5 %, and drawn at 30 %.
    odds = 2 * image + logit(0.05)
    np.testing.assert_allclose(shift_prevalence(odds, 0.05, 0.3), 2 * image + logit(0.3))


def test_rows_have_intervals_and_reasons(drawn):
    odds, labels = (one[:400, None] for one in drawn)
    table = np.concatenate([odds, odds + 3, odds * np.nan], axis=1)
    known = np.concatenate([labels, labels, labels], axis=1)
    known[:10, 0] = -1
    rows = measure_calibration(
        table, known, ["Mass", "Edema", "Hernia"],
        bootstrap_patients(np.arange(400) // 2, 200, np.random.default_rng(0)),
        macro=np.ones(3, dtype=bool), reasons=["", "", "no positive in validation"],
    )  # fmt: skip
    error = rows[rows.metric == "ece_mass"].set_index("finding")
    assert error.ci_low["Mass"] <= error.value["Mass"] <= error.ci_high["Mass"]
    assert error.ci_high["Mass"] < error.ci_low["Edema"]
    assert (error.n["Mass"], error.n["Edema"]) == (390, 400)
    assert np.isnan(error.value["Hernia"])
    assert error.reason["Hernia"] == "no positive in validation"
    assert error.value["macro"] == pytest.approx((error.value["Mass"] + error.value["Edema"]) / 2)


def test_what_cannot_be_fitted_says_why():
    odds, labels = np.array([[-1.0], [-0.5], [0.5], [1.0]]), np.array([[0.0], [0.0], [1.0], [1.0]])
    assert fit_temperature(odds, labels).reasons == ("the sign of the scores tells the classes fully apart",)
    inverted = fit_temperature(-odds, labels)
    assert np.isnan(inverted.apply(odds)).all()
    assert inverted.reasons == ("the scores are inverted or say nothing",)
    assert fit_platt(odds, labels * 0).reasons == ("no positive in validation",)
    assert fit_platt(odds, labels * 0 - 1).reasons == ("no known label in validation",)
    assert fit_platt(odds * 0, labels).reasons == ("all scores are equal",)
    assert fit_platt(odds * np.nan, labels).reasons == ("not predicted",)


def test_log_odds_stay_finite_and_others_are_refused():
    assert np.isfinite(to_log_odds(np.array([0.0, 1.0]))).all()
    with pytest.raises(StudyError, match="not finite for image number 1"):
        fit_platt(np.array([[1.0], [np.nan]]), np.array([[1.0], [0.0]]))
