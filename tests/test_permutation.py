import itertools

import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.statistics.permutation import exchange_models
from chexstudy.statistics.ranking import auroc, average_precision, macro_mean


def make_cases(seed, gap=0.0, patients=30, findings=2):
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    labels = (generator.random((len(patient), findings)) < 0.4).astype(float)
    shared = generator.normal(size=labels.shape)
    first, second = (labels * strength + shared + generator.normal(size=labels.shape) for strength in (1 + gap, 1))
    return labels, first, second, patient


def test_p_values_approach_those_of_all_exchanges():
    labels, first, second, patient = make_cases(3, gap=1.5, patients=7, findings=1)
    # Ranks are what is exchanged; all 2^7 ways are gone through one by one.
    ranks = [one.argsort(axis=0).argsort(axis=0) for one in (first, second)]
    differences = []
    for tossed in itertools.product([True, False], repeat=7):
        kept = np.array(tossed)[patient][:, None]
        mixed = np.where(kept, *ranks), np.where(kept, *ranks[::-1])
        differences.append(np.subtract(*(auroc(labels, one)[0] for one in mixed)))
    observed = np.subtract(*(auroc(labels, one)[0] for one in (first, second)))
    expected = np.mean(np.abs(differences) >= abs(observed) - 1e-12)
    p = exchange_models(labels, [first], [second], patient, np.random.default_rng(0), permutations=20_000)
    assert p[0] == pytest.approx(expected, abs=0.015)


def test_a_better_model_is_seen_and_scales_do_not_matter():
    labels, first, second, patient = make_cases(0, gap=3.0, patients=100)
    p = exchange_models(labels, [first], [second], patient, np.random.default_rng(0), permutations=500)
    assert (p < 0.02).all()
    assert p.min() >= 1 / 501
    stretched = exchange_models(
        labels, [np.exp(first) + 50], [second], patient, np.random.default_rng(0), permutations=500
    )
    np.testing.assert_array_equal(p, stretched)
    itself = exchange_models(labels, [first], [first], patient, np.random.default_rng(0), permutations=50)
    assert (itself == 1).all()


def test_equal_models_are_called_different_as_often_as_stated():
    ps = []
    for seed in range(150):
        labels, first, second, patient = make_cases(seed)
        ps.append(exchange_models(labels, [first], [second], patient, np.random.default_rng(seed), permutations=99))
    # 300 tests, two findings of each pair: 5 % of them, give or take 2.5.
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_other_metrics_and_means_over_findings_and_seeds():
    labels, first, second, patient = make_cases(2, gap=2.0, patients=60)
    p = exchange_models(
        labels,
        [first, first + 0.1],
        [second, second],
        patient,
        np.random.default_rng(0),
        permutations=200,
        measure=average_precision,
        summarise=lambda values: macro_mean(values)[..., None],
    )
    assert p.shape == (1,)
    assert p[0] < 0.05


def test_what_is_unknown_changes_nothing_and_one_class_is_nan():
    labels, first, second, patient = make_cases(4, gap=1.0)
    labels[:, 1] = 0
    labels[:6, 0] = np.nan
    p = exchange_models(labels, [first], [second], patient, np.random.default_rng(0), permutations=99)
    assert np.isnan(p[1])
    first[:6] = 1e9
    assert exchange_models(labels, [first], [second], patient, np.random.default_rng(0), permutations=99)[0] == p[0]


def test_what_does_not_fit_is_one_sentence():
    labels, first, second, patient = make_cases(5)
    generator = np.random.default_rng(0)
    with pytest.raises(StudyError, match="the same seeds, not 2 and 1"):
        exchange_models(labels, [first, first], [second], patient, generator)
    with pytest.raises(StudyError, match="of the same cases"):
        exchange_models(labels, [first], [second[:-1]], patient, generator)
    with pytest.raises(StudyError, match="at least one permutation, not 0"):
        exchange_models(labels, [first], [second], patient, generator, permutations=0)
