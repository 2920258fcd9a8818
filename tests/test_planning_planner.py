"""Forecasts against the truth, plans with their four states, and their rows in the results table."""

import numpy as np
import pytest
from learning_curves import LABELS, TRUTHS, measure_table

from chexstudy.errors import StudyError
from chexstudy.label_planning.families import labels_for
from chexstudy.label_planning.observations import LearningCurve, list_curves
from chexstudy.label_planning.planner import (
    NEEDED,
    NOT_YET,
    REACHED,
    TOO_FEW,
    UNREACHABLE,
    describe_plans,
    deviate_by_test_set,
    forecast_plateau,
    measure_slope,
    plan_curve,
    plan_labels,
    plan_table,
)
from chexstudy.label_planning.posterior import Posterior
from chexstudy.statistics.ranking import auroc


@pytest.fixture(scope="module")
def table():
    return measure_table()


@pytest.fixture(scope="module")
def curves(table):
    return list_curves(table)


@pytest.fixture(scope="module")
def forecasts(curves):
    return forecast_plateau(curves, [20, 50, 200, 2000])


def test_forecasts_are_compared_with_the_mean_at_the_largest_n(forecasts, curves):
    assert len(forecasts) == 4 * len(curves)
    rows = forecasts[(forecasts.at_most_n == 200) & (forecasts.finding == "Effusion")].iloc[0]
    curve = next(one for one in curves if one.finding == "Effusion")
    assert rows.truth == curve.means[-1]
    assert rows.error == pytest.approx(rows.forecast - rows.truth)
    assert rows.covered == (rows.forecast_low <= rows.truth <= rows.forecast_high)
    assert rows["last"] == curve.means[4]
    assert rows.points == 5


def test_two_numbers_of_labels_are_not_evaluable_and_all_have_no_error(forecasts):
    few = forecasts[forecasts.at_most_n == 20]
    assert (few.state == TOO_FEW).all()
    assert few.forecast.isna().all()
    assert forecasts[forecasts.at_most_n == 2000].error.isna().all()


def test_more_labels_forecast_better_and_narrower(forecasts):
    told = forecasts.dropna(subset=["error"])
    by_labels = told.groupby("at_most_n")
    assert by_labels.size().to_dict() == {50: 6, 200: 6}
    missed = by_labels.error.agg(lambda one: one.abs().mean())
    assert missed[200] < missed[50]
    assert (missed < (told["last"] - told.truth).abs().groupby(told.at_most_n).mean()).all()
    assert by_labels.covered.mean()[200] >= 5 / 6
    widths = (forecasts.plateau_high - forecasts.plateau_low).groupby(forecasts.at_most_n).mean()
    assert widths[2000] < widths[200] < widths[50]


def test_the_deviation_over_test_sets_is_that_of_drawn_ones():
    """Exponential scores, for which Hanley and McNeil's formula is exact."""
    generator = np.random.default_rng(0)
    labels = np.repeat([1, 0], [30, 60])
    scores = generator.exponential(np.where(labels == 1, 4.0, 1.0), (2000, 90))
    areas = auroc(np.repeat(labels[:, None], 2000, axis=1), scores.T)
    assert deviate_by_test_set(0.8, 30, 60) == pytest.approx(np.std(areas), rel=0.06)
    with pytest.raises(StudyError, match="with and without the finding"):
        deviate_by_test_set(0.8, 0, 60)


def test_the_early_slope_is_auroc_a_tenfold():
    values = 0.5 + 0.1 * np.log10(LABELS)
    curve = LearningCurve("e", "f", LABELS, values[:, None])
    assert measure_slope(curve, 50) == pytest.approx(0.1)
    assert np.isnan(measure_slope(curve, 10))


def posterior_of(parameters, unit="cases"):
    """A posterior of given draws and a curve with 100 labels."""
    curve = LearningCurve("e", "f", np.array([10, 50, 100.0]), np.full((3, 1), 0.7), unit=unit, prevalence=0.1)
    parameters = np.asarray(parameters, dtype=float)
    return Posterior(curve, parameters, np.full(len(parameters), 0.05), np.zeros(len(parameters)), 1.0)


def power(needed, target=0.8, plateau=0.9, gamma=0.5):
    """Curves that reach the target at given numbers of labels."""
    needed = np.asarray(needed, dtype=float)
    beta, same = (plateau - target) * needed**gamma, np.ones_like(needed)
    return np.stack([plateau * same, beta, gamma * same, 0 * same], axis=1)


def test_labels_needed_are_quantiles_less_what_there_is():
    plan = plan_curve(posterior_of(power(np.arange(150, 351) - 0.5)), 0.8, cost=2.5, share=0.1)
    assert plan["state"] == NEEDED
    assert (plan["need"], plan["need_low"], plan["need_high"]) == (250, 155, 345)
    assert (plan["more"], plan["more_low"], plan["more_high"]) == (150, 55, 245)
    assert (plan["cost"], plan["cost_low"], plan["cost_high"]) == (375, 137.5, 612.5)
    assert plan["positives"] == pytest.approx(15)
    assert plan["answer"] == "label 150 more (95 %: 55-245), at a cost of 375 (138-612)"


def test_positives_are_found_by_reading_cases():
    plan = plan_curve(posterior_of(power(np.arange(150, 351) - 0.5), unit="positives"), 0.8, cost=2, share=0.1)
    assert (plan["more"], plan["positives"], plan["cases"], plan["cost"]) == (150, 150, 1500, 3000)
    assert "label 150 more positives (95 %: 55-245), which is reading 1,500 cases (550-2,450)" in plan["answer"]
    unknown = plan_curve(posterior_of(power([150.0] * 9), unit="positives"), 0.8, cost=2)
    assert np.isnan(unknown["cases"])
    assert np.isnan(unknown["cost"])


@pytest.mark.parametrize(
    ("parameters", "state", "words"),
    [
        (power([19.5] * 99 + [89.5]), REACHED, "reached already: 0.8 needs 20 labels at most, and there are 100"),
        (power([49.5] * 60 + [179.5] * 40), NEEDED, "probably reached with 100 labels; up to 80 more may be needed"),
        (power([300.0] * 100, target=0.7, plateau=0.78), UNREACHABLE, "unreachable: the plateau lies at 0.780"),
        (power([1e6] * 100), UNREACHABLE, "needs more than 100 times the 100 labels there are"),
        (np.concatenate([power([300.0] * 90), power([300.0] * 10, 0.7, 0.79)]), NOT_YET, "200 more may do, and no"),
        (power(np.geomspace(200, 1e6, 100)), NOT_YET, "cannot be told yet"),
    ],
)
def test_what_is_no_number_is_a_state(parameters, state, words):
    plan = plan_curve(posterior_of(parameters), 0.8)
    assert plan["state"] == state
    assert words in plan["answer"]


def test_plans_on_measured_curves_hold_the_truth(curves):
    plans = plan_labels(curves, 0.82, cost=1).set_index("finding")
    assert plans.state["Effusion"] == plans.state["Edema"] == REACHED
    assert plans.state["Nodule"] == plans.state["Mass"] == UNREACHABLE
    covered = [
        row.need_low <= np.ceil(labels_for(0.82, [*TRUTHS[finding], 0.0])) <= row.need_high
        for finding, row in plans.iterrows()
    ]
    assert np.mean(covered) >= 5 / 6
    counts = dict.fromkeys(TRUTHS, (20, 200))
    at_large = plan_labels(curves, 0.82, test_counts=counts).set_index("finding")
    wider = at_large.plateau_high - at_large.plateau_low > plans.plateau_high - plans.plateau_low
    assert wider.mean() > 0.8, "the population is less certain than the test set"


def test_a_finding_asked_for_learns_from_the_others(table):
    early = table[table.n <= 100]
    alone = plan_table(early, 0.8, finding="Edema", pool=False)
    pooled = plan_table(early, 0.8, finding="Edema")
    assert len(alone) == len(pooled) == 1
    assert pooled.plateau_high[0] - pooled.plateau_low[0] < alone.plateau_high[0] - alone.plateau_low[0]
    everyone = plan_table(early, 0.8).set_index("finding")
    assert pooled.need[0] == everyone.need["Edema"]


def test_plans_are_told_in_sentences_and_a_table(curves):
    text = describe_plans(plan_labels(curves, 0.8, cost=2))
    assert text.count("Effusion") == 2
    assert (
        "Nodule: unreachable: the plateau lies at 0.6" in text or "Nodule: unreachable: the plateau lies at 0.7" in text
    )
    assert "cost (95 %)" in text
    assert "no end" in text


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda curves: plan_labels(curves, 1.2), "target AUROC of 1.2"),
        (lambda curves: plan_labels(curves, 0.5), "above 0.5, which chance reaches"),
        (lambda curves: plan_labels(curves, float("nan")), "target AUROC of nan"),
        (lambda curves: plan_labels(curves, 0.8, cost=-1), "cannot cost -1"),
        (lambda curves: plan_labels(curves, 0.8, prevalence={"Edema": 1.5}), "prevalence of 'Edema' cannot be 1.5"),
        (lambda curves: plan_labels([curves[0].until(20)], 0.8), "has 2 numbers of labels"),
        (lambda curves: forecast_plateau(curves, []), "1 label or more"),
    ],
)
def test_bad_questions_are_refused(curves, ask, sentence):
    with pytest.raises(StudyError, match=sentence):
        ask(curves[:1])
