"""Risk models and their measures against the library, against pairs counted by hand, and against planted hazards."""

import numpy as np
import pytest
from scipy.stats import chi2 as distribution
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored, cumulative_dynamic_auc
from sksurv.nonparametric import kaplan_meier_estimator

from chexstudy.errors import StudyError
from chexstudy.evaluation.outcomes import survival as survival_module
from chexstudy.evaluation.outcomes.survival import (
    compare_groups,
    concordance,
    dynamic_auroc,
    estimate_survival,
    first_images,
    fit_risk_model,
    group_risk,
    survival_at,
    weigh_events,
)
from chexstudy.statistics.bootstrap import bootstrap_patients


def simulate(n, betas, seed, rate=0.05, horizon=(4.0, 10.0), step=0.0):
    """Features, times and events of an exponential hazard with independent censoring; ``step`` makes ties."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((n, len(betas)))
    happens = draw.exponential(size=n) / (rate * np.exp(features @ betas))
    censored = np.minimum(draw.uniform(*horizon, n), draw.exponential(30, n))
    years, events = np.minimum(happens, censored), happens <= censored
    return features, np.ceil(years / step) * step if step else years, events


def pair(years, events):
    return np.array(list(zip(events, years, strict=True)), dtype=[("event", bool), ("years", float)])


@pytest.fixture(scope="module")
def tied():
    """Cases with ties in time and in score, and a training split for the weights of censoring."""
    betas = np.array([0.8, -0.5, 0.0])
    _, train_years, train_events = simulate(500, betas, 1, step=0.25)
    features, years, events = simulate(300, betas, 2, step=0.25)
    scores = np.column_stack([features @ betas, np.round(features[:, 0]), np.zeros(300)])
    return train_years, train_events, years, events, scores


# --- measures -----------------------------------------------------------------------------------------------------


def test_concordance_of_five_cases_by_hand():
    years, events = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([1, 1, 0, 1, 0], bool)
    scores = np.array([[5.0, 1.0, 1.0, 3.0, 2.0]]).T
    # Pairs: case 0 with 1, 2, 3, 4 (all won); case 1 with 2 (censored at the same time, tied), 3, 4 (lost); 3 with 4.
    assert concordance(years, events, scores)[0] == (4 + 0.5 + 0 + 0 + 1) / 8
    # Case 0 counts twice, case 3 not at all: pairs of case 0 with 1, 2, 4 twice; of case 1 with 2 and 4.
    assert concordance(years, events, scores, np.array([[2, 1, 1, 0, 1]]))[0, 0] == (2 * 3 + 0.5 + 0) / (2 * 3 + 2)


def test_concordance_and_time_dependent_auroc_are_the_librarys(tied):
    train_years, train_events, years, events, scores = tied
    expected = [concordance_index_censored(events, years, score)[0] for score in scores.T]
    np.testing.assert_allclose(concordance(years, events, scores), expected, atol=1e-12)
    assert expected[2] == 0.5
    of_events = weigh_events(train_years, train_events, years, events)
    observed = pair(train_years, train_events), pair(years, events)
    for horizon in (1.1, 3.9, 6.1):
        expected = [cumulative_dynamic_auc(*observed, score, [horizon])[0][0] for score in scores.T]
        np.testing.assert_allclose(dynamic_auroc(years, events, scores, horizon, of_events), expected, atol=1e-12)


def test_a_case_drawn_twice_counts_as_two_cases(tied):
    *training, years, events, scores = tied
    of_events = weigh_events(*training, years, events)
    weights = bootstrap_patients(np.arange(len(years)) // 2, 3, np.random.default_rng(0))
    harrell = concordance(years, events, scores, weights)
    area = dynamic_auroc(years, events, scores, 4.0, of_events, weights)
    for resample, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(years)), counts)
        again = years[rows], events[rows], scores[rows]
        np.testing.assert_allclose(harrell[resample], concordance(*again), atol=1e-12)
        np.testing.assert_allclose(area[resample], dynamic_auroc(*again, 4.0, of_events[rows]), atol=1e-12)


def test_survival_at_a_horizon_is_kaplan_meier(tied):
    _, _, years, events, _ = tied
    times, survival = kaplan_meier_estimator(events, years)
    weights = bootstrap_patients(np.arange(len(years)) // 2, 2, np.random.default_rng(0))
    for horizon in (0.1, 0.25, 3.3, 5.0, 20.0):
        before = survival[times <= horizon]
        assert survival_at(years, events, horizon) == pytest.approx(before[-1] if len(before) else 1.0, abs=1e-12)
        for counts, drawn in zip(weights, survival_at(years, events, horizon, weights), strict=True):
            rows = np.repeat(np.arange(len(years)), counts)
            assert drawn == pytest.approx(survival_at(years[rows], events[rows], horizon), abs=1e-12)


def test_without_a_comparable_pair_there_is_no_value():
    years, events = np.array([1.0, 2.0]), np.array([False, False])
    assert np.isnan(concordance(years, events, np.zeros((2, 1)))).all()
    assert np.isnan(concordance(years, ~events, np.zeros((2, 1)), np.array([[1, 0]]))).all()


# --- the model ----------------------------------------------------------------------------------------------------


def test_planted_hazards_are_recovered():
    betas = np.array([0.7, -0.4, 0.2, 0.0])
    features, years, events = simulate(12_000, betas, 3)
    model = fit_risk_model(features, years, events, *simulate(500, betas, 4), unpenalised=4)
    found = model.coefficients / model.spread
    # The information of a standardised covariate is about the number of events; four standard errors.
    assert np.abs(found - betas).max() < 4 / np.sqrt(events.sum())
    assert model.penalty == 0


def test_predicted_risks_are_those_of_the_planted_hazard():
    betas = np.array([0.8, -0.5])
    model = fit_risk_model(*simulate(8000, betas, 5), *simulate(500, betas, 6), unpenalised=2)
    features = simulate(4000, betas, 7)[0]
    risks = -np.expm1(-model.hazard_at([3.0]) * np.exp(model.score(features)))
    assert np.abs(risks - (1 - np.exp(-3 * 0.05 * np.exp(features @ betas)))).mean() < 0.01


def test_the_penalty_is_the_librarys_ridge(monkeypatch):
    monkeypatch.setattr(survival_module, "PENALTIES", (50.0,))
    betas = np.r_[0.6, -0.6, np.zeros(6)]
    features, years, events = simulate(600, betas, 8)
    features[:, 1] = 3 * features[:, 1] + 1
    for unpenalised in (0, 2):
        model = fit_risk_model(features, years, events, *simulate(200, betas, 9), unpenalised)
        alpha = np.where(np.arange(8) < unpenalised, 0.0, 50.0)
        standard = (features - features.mean(axis=0)) / features.std(axis=0)
        ridge = CoxPHSurvivalAnalysis(alpha=alpha).fit(standard, pair(years, events))
        np.testing.assert_allclose(model.coefficients, ridge.coef_, atol=0.005)


def test_the_penalty_is_the_best_on_validation():
    betas = np.full(60, 0.15)
    model = fit_risk_model(*simulate(200, betas, 10), *simulate(1000, betas, 11))
    table = model.validation
    assert table.penalty.is_monotonic_decreasing
    assert model.penalty == table.penalty[table.c_index.idxmax()]
    features, years, events = simulate(1000, betas, 11)
    assert concordance(years, events, model.score(features)[:, None])[0] == pytest.approx(table.c_index.max())
    # Sixty features of two hundred cases need a strong penalty.
    assert model.penalty > 10


def test_penalties_too_weak_for_a_solution_are_left_out(monkeypatch):
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    features, years, events = simulate(80, [1.0, 0.5], 4)
    split = (features[:40], years[:40], events[:40], features[40:], years[40:], events[40:])
    monkeypatch.setattr(survival_module, "PENALTIES", (1e3, 1e2, 1.0))
    whole = fit_risk_model(*split).validation
    fit = CoxnetSurvivalAnalysis.fit

    def diverge(self, *data):
        # As the library does where weights grow without bound; strengths are penalties over cases.
        if min(self.alphas) < 5 / 40:
            raise ArithmeticError("numerical error")
        return fit(self, *data)

    monkeypatch.setattr(CoxnetSurvivalAnalysis, "fit", diverge)
    left = fit_risk_model(*split).validation
    assert left.penalty.tolist() == [1e3, 1e2]
    np.testing.assert_allclose(left.c_index, whole.c_index[:2])
    monkeypatch.setattr(survival_module, "PENALTIES", (1.0,))
    with pytest.raises(StudyError, match="has no solution"):
        fit_risk_model(*split)


# --- groups -------------------------------------------------------------------------------------------------------


def test_groups_take_first_images_and_are_cut_at_the_tertiles_of_training():
    assert first_images(["b", "a", "b", "c", "c"], np.array([1.0, 2.0, 3.0, 4.0, 4.0])).tolist() == [1, 2, 3]
    assert group_risk(np.arange(9.0), np.array([-5.0, 2.0, 3.0, 5.0, 6.0, 50.0])).tolist() == [0, 0, 1, 1, 2, 2]


def test_survival_curves_begin_at_one_and_count_who_is_watched():
    curve = estimate_survival(np.array([1.0, 2, 2, 3]), np.array([1, 0, 1, 0], bool))
    assert curve.years.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(curve.survival, [1, 3 / 4, 3 / 4 * 2 / 3, 1 / 2])
    assert curve.at_risk.tolist() == [4, 4, 3, 1]
    assert (curve.ci_low <= curve.survival).all()
    assert (curve.survival <= curve.ci_high).all()
    nobody = estimate_survival(np.array([1.0, 2]), np.array([False, False]))
    assert nobody.survival.tolist() == [1, 1, 1]


def test_the_log_rank_test_tells_groups_apart():
    draw = np.random.default_rng(0)
    groups = np.repeat([0, 1], 150)
    years = draw.exponential(size=300) / np.where(groups == 1, 0.4, 0.2)
    events = years < 8
    assert compare_groups(np.minimum(years, 8), events, groups) < 1e-4
    assert compare_groups(np.minimum(years, 8), events, draw.permutation(groups)) > 1e-3
    # By hand, for two deaths: observed 1, expected 1/2 + 1/3 in the first group, variance 1/4 + 2/9.
    p = compare_groups(np.array([1.0, 2, 3, 3]), np.array([1, 1, 0, 0], bool), np.array([0, 1, 0, 1]))
    chi2 = (1 - (1 / 2 + 1 / 3)) ** 2 / (1 / 4 + 2 / 9)
    assert p == pytest.approx(distribution.sf(chi2, 1))
    assert np.isnan(compare_groups(years, events, np.zeros(300)))
