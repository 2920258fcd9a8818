import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import (
    bootstrap_patients,
    count_patients,
    count_scarcer_patients,
    difference_p_values,
    interval,
    paired_difference,
    resample_seeds,
)
from chexstudy.statistics.ranking import auroc


def column(*values):
    return np.array(values, dtype=float)[:, None]


def test_a_resample_draws_whole_patients_as_many_as_there_are():
    patients = np.array(["a", "a", "b", "c", "c", "c"])
    weights = bootstrap_patients(patients, 4000, np.random.default_rng(0))
    assert weights.shape == (4000, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    # Binomial(3, 1/3): mean 1, variance 2/3.
    assert weights[:, 2].mean() == pytest.approx(1, abs=0.05)
    assert weights[:, 2].var() == pytest.approx(2 / 3, abs=0.06)
    np.testing.assert_array_equal(weights, bootstrap_patients(patients, 4000, np.random.default_rng(0)))


def test_the_interval_holds_the_middle_95_percent():
    low, high = interval(np.arange(1001.0))
    assert (low, high) == (pytest.approx(25), pytest.approx(975))
    # A metric that many resamples cannot give has none.
    assert np.isnan(interval(np.where(np.arange(100) < 20, np.nan, 0.5))).all()


def test_with_few_patients_the_interval_goes_further_out():
    replicates = norm.ppf((np.arange(100_000) + 0.5) / 100_000)[:, None] * np.ones(4)
    low, high = interval(replicates, patients=np.array([5, 20, 1000, 4]))
    # sqrt(k / (k - 1)) times Student's quantile with k - 1 degrees of freedom, from its table.
    reach = [np.sqrt(5 / 4) * 2.776, np.sqrt(20 / 19) * 2.093, np.sqrt(1000 / 999) * 1.962]
    np.testing.assert_allclose(high[:3], reach, atol=0.02)
    np.testing.assert_allclose(low[:3], -np.array(reach), atol=0.02)
    assert np.isnan([low[3], high[3]]).all()


def test_patients_are_counted_from_their_draws():
    patients = np.array(["a", "a", "b", "c", "c", "d"])
    weights = bootstrap_patients(patients, 100, np.random.default_rng(0))
    members = np.array([[1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=bool).T
    assert list(count_patients(members, weights)) == [1, 4, 0]
    labels = column(1, 1, 0, 0, -1, np.nan)
    assert list(count_scarcer_patients(labels, weights)) == [1]


def test_eight_sick_patients_are_enough_for_an_honest_interval():
    generator = np.random.default_rng(8)
    truth, covered, covered_plain, simulations = norm.cdf(1 / np.sqrt(2)), 0, 0, 150
    labels = np.zeros((200, 1))
    labels[:8] = 1
    for _ in range(simulations):
        weights = bootstrap_patients(np.arange(200), 300, generator)
        replicates = auroc(labels, labels + generator.normal(size=labels.shape), weights)
        low, high = interval(replicates, patients=count_scarcer_patients(labels, weights))
        covered += bool(low[0] <= truth <= high[0])
        low, high = interval(replicates)
        covered_plain += bool(low[0] <= truth <= high[0])
    assert covered / simulations >= 0.91
    assert covered_plain < covered


def test_the_interval_covers_the_truth_where_a_naive_one_does_not():
    # Six images a patient share the label and most of their score; the AUROC between patients is then known.
    generator = np.random.default_rng(4)
    patients, images, gap, between, within = 60, 6, 1.0, 1.0, 0.5
    truth = norm.cdf(gap / np.sqrt(2 * (between**2 + within**2)))
    patient_ids = np.repeat(np.arange(patients), images)
    covered = {"patients": 0, "images": 0}
    simulations = 150
    for _ in range(simulations):
        sick = np.arange(patients) % 2
        mean = gap * sick + generator.normal(0, between, patients)
        labels = np.repeat(sick, images)[:, None].astype(float)
        scores = (np.repeat(mean, images) + generator.normal(0, within, patients * images))[:, None]
        for unit, ids in (("patients", patient_ids), ("images", np.arange(len(patient_ids)))):
            low, high = interval(auroc(labels, scores, bootstrap_patients(ids, 300, generator)))
            covered[unit] += bool(low[0] <= truth <= high[0])
    assert covered["patients"] / simulations > 0.89
    assert covered["images"] / simulations < 0.75


def test_a_difference_is_paired_so_shared_noise_cancels():
    generator = np.random.default_rng(5)
    labels = (generator.random((200, 1)) < 0.4).astype(float)
    second = labels + generator.normal(size=labels.shape)
    first = second + 0.02 * labels
    weights = bootstrap_patients(np.arange(200), 400, generator)
    points = [auroc(labels, one)[None] for one in (first, second)]
    replicates = [auroc(labels, one, weights)[None] for one in (first, second)]
    difference = paired_difference(*points, *replicates, generator)
    alone = interval(replicates[0][0])
    assert difference.seeds == 1
    assert difference.value[0] == pytest.approx(points[0][0, 0] - points[1][0, 0])
    assert difference.ci_low[0] <= difference.value[0] <= difference.ci_high[0]
    assert difference.ci_high[0] - difference.ci_low[0] < 0.2 * (alone[1][0] - alone[0][0])


def test_an_arm_against_itself_differs_by_nothing():
    values, replicates = np.full((3, 2), 0.7), np.random.default_rng(6).random((3, 100, 2))
    difference = paired_difference(values, values, replicates, replicates, np.random.default_rng(0))
    assert (difference.value == 0).all()
    assert (difference.ci_low == 0).all()
    assert (difference.ci_high == 0).all()


def test_drawing_seeds_adds_the_variance_of_their_mean_without_bias():
    # No variation between patients: what is left is the sampling variance of a mean of S seeds, s^2 / S.
    for seeds in (2, 3, 5):
        values = np.random.default_rng(seeds).normal(size=seeds)
        replicates = np.repeat(values[:, None], 20_000, axis=1)
        drawn = resample_seeds(replicates, np.random.default_rng(0))
        assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)
        assert drawn.var() == pytest.approx(values.var(ddof=1) / seeds, rel=0.05)
    one = np.random.default_rng(7).normal(size=(1, 50))
    np.testing.assert_array_equal(resample_seeds(one, np.random.default_rng(0)), one[0])


def test_what_cannot_be_drawn_or_paired_is_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(StudyError, match="at least one case"):
        bootstrap_patients([], 10, generator)
    with pytest.raises(StudyError, match="same seeds"):
        paired_difference(*(np.zeros(shape) for shape in ((2, 1), (3, 1), (2, 5, 1), (3, 5, 1))), generator)


def test_a_p_value_tells_what_the_interval_tells():
    spread = norm.ppf((np.arange(10_000) + 0.5) / 10_000)[:, None]
    values = np.array([[1.9, 2.1, 0.0]])
    replicates = (values + spread * [1, 1, 0])[None]
    many = np.full(3, 10_000)
    difference = paired_difference(values, 0 * values, replicates, 0 * replicates, np.random.default_rng(0), many)
    p = difference_p_values(difference, many)
    np.testing.assert_allclose(p, [2 * norm.sf(1.9), 2 * norm.sf(2.1), 1], atol=1e-3)
    np.testing.assert_array_equal(p < 0.05, (difference.ci_low > 0) | (difference.ci_high < 0))
    few = paired_difference(
        values, 0 * values, replicates, 0 * replicates, np.random.default_rng(0), np.array([4, 6, 6])
    )
    p = difference_p_values(few, np.array([4, 6, 6]))
    # Six patients: Student's t with 5 degrees of freedom at 2.1 / sqrt(6 / 5).
    assert p == pytest.approx([np.nan, 2 * student.sf(2.1 / np.sqrt(6 / 5), 5), 1], abs=1e-3, nan_ok=True)
