"""Gains by prevalence: worked by hand, against scikit-learn and least squares, and read from a study."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from chexstudy.cohort.prevalence import measure_prevalence
from chexstudy.errors import StudyError
from chexstudy.evaluation.comparison.gains_by_prevalence import (
    GAIN_METRICS,
    gain_against_prevalence,
    least_average_precision,
    list_gains,
    measure_gain_metrics,
    measure_gains,
)
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.scores import write_scores
from chexstudy.results import add_results
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import bootstrap_patients
from chexstudy.statistics.ranking import auroc, average_precision


def make_cohort(labels, names):
    """A test set with these labels."""
    count = len(labels)
    columns = {name: pd.array(labels[:, place].astype(int), dtype="Int8") for place, name in enumerate(names)}
    table = {"image_id": [f"t/{number}" for number in range(count)], "patient_id": [f"t/{n}" for n in range(count)]}
    # Only what is no finding beside the labels: the functions read these columns alone.
    return pd.DataFrame(table | {"source": "phantom", "split": "test"} | columns)


def compare(first, second, labels, prevalence, tiers=None, resamples=100, generator=0):
    generator = np.random.default_rng(generator)
    weights = bootstrap_patients(np.arange(len(labels)), resamples, generator)
    return gain_against_prevalence(first, second, labels, prevalence, weights, generator, tiers)


def pick(table, metric, finding):
    return table[(table.metric == metric) & (table.finding == finding)].iloc[0]


def test_the_least_average_precision_is_that_of_positives_ranked_last():
    # Two positives after three negatives: (1 / 4 + 2 / 5) / 2.
    assert least_average_precision(2, 3) == pytest.approx(0.325)
    for positives, negatives in ((1, 1), (3, 17), (40, 7)):
        labels = np.r_[np.zeros(negatives), np.ones(positives)]
        worst = average_precision_score(labels, -np.arange(len(labels)))
        assert least_average_precision(positives, negatives) == pytest.approx(worst, abs=1e-12)
    assert np.isnan(least_average_precision([0, 5], [5, 0])).all()


def test_measures_relative_to_prevalence_worked_by_hand():
    labels = np.array([[1, 0, 1, 0, -1]], dtype=float).T
    scores = np.array([[0.9, 0.8, 0.7, 0.1, 1.0]]).T
    # Ranks 1 and 3 of 4: AP = (1 + 2 / 3) / 2; the least, after two negatives, is (1 / 3 + 2 / 4) / 2.
    precision, least = 5 / 6, 5 / 12
    measured = dict(zip(GAIN_METRICS, measure_gain_metrics(labels, scores)[:, 0], strict=True))
    assert measured["auroc"] == pytest.approx(0.75)
    assert measured["auprc"] == pytest.approx(precision)
    assert measured["normalised_auprc"] == pytest.approx((precision - least) / (1 - least))
    assert measured["auprc_log2_lift"] == pytest.approx(np.log2(precision / 0.5))


def test_resamples_count_prevalence_anew():
    generator = np.random.default_rng(2)
    labels = (generator.random((40, 2)) < 0.3).astype(float)
    scores = generator.normal(size=(40, 2))
    weights = bootstrap_patients(np.arange(40) // 2, 5, generator)
    drawn = measure_gain_metrics(labels, scores, weights)
    for row, weight in zip(drawn, weights, strict=True):
        repeated = np.repeat(np.arange(40), weight)
        np.testing.assert_allclose(row, measure_gain_metrics(labels[repeated], scores[repeated]))


@pytest.fixture
def rare_gain():
    """Six findings; the first arm is better by more the rarer the finding."""
    generator = np.random.default_rng(1)
    prevalence = pd.Series(np.geomspace(0.3, 0.01, 6), index=[f"F{number}" for number in range(6)])
    labels = (generator.random((400, 6)) < 0.3).astype(float)
    baseline = [0.5 * labels + generator.normal(size=labels.shape) for _ in range(2)]
    first = [scores + labels * np.linspace(0, 1.5, 6) for scores in baseline]
    return first, baseline, labels, prevalence


@pytest.mark.parametrize(("metric", "measure"), [("auroc", auroc), ("auprc", average_precision)])
def test_a_gain_on_the_rare_has_a_falling_trend(rare_gain, metric, measure):
    first, baseline, labels, prevalence = rare_gain
    table = compare(first, baseline, labels, prevalence, {"F0": "head", "F5": "tail"}, 200)
    gain = np.mean(
        [measure(labels, one) - measure(labels, other) for one, other in zip(first, baseline, strict=True)], axis=0
    )
    rows = table[table.metric == metric].reset_index(drop=True)
    np.testing.assert_allclose(rows.value[:6], gain)
    np.testing.assert_allclose(rows["first"][:6] - rows.second[:6], gain)
    np.testing.assert_allclose(rows.test_prevalence[:6], labels.mean(axis=0))
    assert list(rows.finding) == [*prevalence.index, "macro", "head", "tail", "trend"]
    assert pick(table, metric, "tail").value == pytest.approx(gain[5])
    assert pick(table, metric, "macro").value == pytest.approx(gain.mean())
    assert rows.ci_low[5] > 0
    trend = rows.iloc[-1]
    assert trend.value == pytest.approx(np.polyfit(np.log10(prevalence), gain, 1)[0])
    assert trend.ci_low < trend.value < trend.ci_high < 0
    assert trend.n == 6


def test_no_gain_anywhere_gives_no_trend_more_often_than_chance():
    generator = np.random.default_rng(8)
    prevalence = pd.Series(np.geomspace(0.3, 0.02, 5), index=list("ABCDE"))
    alarms = 0
    for _ in range(60):
        labels = (generator.random((160, 5)) < 0.25).astype(float)
        arms = [[labels + 1.5 * generator.normal(size=labels.shape)] for _ in range(2)]
        table = compare(*arms, labels, prevalence, resamples=120, generator=generator)
        trend = pick(table, "auprc", "trend")
        alarms += not trend.ci_low <= 0 <= trend.ci_high
    # A rate of 5 % gives more than nine of sixty about once in a thousand.
    assert alarms <= 9


def test_what_few_patients_have_keeps_its_row_and_leaves_the_trend(rare_gain):
    first, baseline, labels, prevalence = rare_gain
    labels[:, 2] = 0
    labels[:, 4] = 0
    labels[:4, 4] = 1
    table = compare(first, baseline, labels, prevalence)
    for metric in GAIN_METRICS:
        without, few, trend = (pick(table, metric, finding) for finding in ("F2", "F4", "trend"))
        assert np.isnan(without.value)
        assert without.positives == 0
        assert np.isfinite(few.value)
        assert np.isnan(few.ci_low)
        assert trend.n == 4
        assert np.isfinite([trend.value, trend.ci_low]).all()


def test_no_finding_does_not_steer_the_trend(rare_gain):
    first, baseline, labels, prevalence = rare_gain
    without = compare([one[:, 1:] for one in first], [one[:, 1:] for one in baseline], labels[:, 1:], prevalence[1:])
    table = compare(first, baseline, labels, prevalence.rename({"F0": "No Finding"}))
    assert pick(table, "auroc", "No Finding").value == pytest.approx(0)
    for metric in GAIN_METRICS:
        one, other = (pick(rows, metric, "trend") for rows in (table, without))
        assert (one.value, one.n) == (pytest.approx(other.value), other.n)


def test_the_gain_over_an_arm_that_does_not_exist_is_one_sentence(home):
    with pytest.raises(StudyError, match="unknown arm 'random'; there are curated, filtered, random_same_data"):
        measure_gains(Evaluation(Run("test"), pd.DataFrame(), None), pd.DataFrame(), ["random"])


@pytest.fixture
def study(home, rare_gain):
    """A study with the scores of two arms, and results that say they were compared."""
    first, baseline, labels, prevalence = rare_gain
    run, cohort = Run("test"), make_cohort(labels, list(prevalence.index))
    # A hundred training images, of which each finding has its share.
    trained = make_cohort(np.arange(100)[:, None] < np.round(100 * prevalence.to_numpy()), list(prevalence.index))
    cohort = pd.concat([cohort, trained.assign(image_id="r/" + trained.image_id, split="train")], ignore_index=True)
    for arm, scores in (("curated", first), ("full", baseline)):
        for seed, one in enumerate(scores):
            place = {"arm": arm, "seed": seed, "task": "zero_shot", "data_set": "phantom/test"}
            write_scores(run, one, cohort.image_id[:400], list(prevalence.index), **place)
    shared = {"data_set": "phantom/test", "finding": "F0", "setting": "chosen", "value": 0.5, "ci_low": 0.4}
    shared |= {"ci_high": 0.6, "n": 400, "positives": 9, "exposure": "held_out"}
    compared = {"arm": "curated", "reference": "full", "seed": -1, "task": "zero_shot_difference"}
    compared |= {"metric": "auroc_difference"}
    seeds = [{"arm": "curated", "seed": seed, "task": "zero_shot", "metric": "auroc"} for seed in (0, 1, -1)]
    return Evaluation(run, cohort, None, 50), add_results(
        run, pd.DataFrame([shared | one for one in (compared, *seeds)])
    )


def test_gains_become_rows_of_the_results_for_each_data_set_compared(study, rare_gain):
    first, baseline, labels, prevalence = rare_gain
    evaluation, results = study
    run, test = evaluation.run, evaluation.test_sets()["phantom/test"]
    gains = measure_gains(evaluation, results)
    measured = measure_prevalence(evaluation.training)
    place = first, baseline, labels, measured, *evaluation.draw_patients(test)
    expected = gain_against_prevalence(*place)
    written = add_results(run, list_gains(gains))
    trends = written[written.task == "gain_trend"].set_index("metric")
    assert list(trends.index) == sorted(f"{metric}_difference_per_decade" for metric in GAIN_METRICS)
    for metric in GAIN_METRICS:
        row, wanted = trends.loc[f"{metric}_difference_per_decade"], pick(expected, metric, "trend")
        assert row[["value", "ci_low", "ci_high", "n"]].tolist() == wanted[["value", "ci_low", "ci_high", "n"]].tolist()
        assert (row.arm, row.reference, row.seed) == ("curated", "full", -1)
        assert (row.data_set, row.setting) == ("phantom/test", "chosen")
    of_findings = written[written.task == "gain"]
    assert set(of_findings.metric) == {"normalised_auprc_difference", "auprc_log2_lift_difference"}
    assert set(of_findings.finding) == {*prevalence.index, "macro", "head", "medium"}
    assert measure_gains(evaluation, results, ["random_same_data"]).empty
    assert list_gains(pd.DataFrame()).empty
