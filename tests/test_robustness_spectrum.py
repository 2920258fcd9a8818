"""Negatives are who they should be, differences are paired, and precision at a prevalence is Bayes' rule."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from chexstudy.errors import StudyError
from chexstudy.evaluation.robustness.spectrum import (
    average_precision_at,
    choose_negatives,
    find_healthy,
    measure_precision,
    measure_spectrum,
)
from chexstudy.statistics.bootstrap import bootstrap_patients
from chexstudy.statistics.ranking import average_precision

FINDINGS = ["No Finding", "Mass", "Hernia", "Support Devices"]
NAN = np.nan
LABELS = np.array(
    [[1, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, -1], [0, 0, NAN, 1], [-1, 0, 0, 0]], dtype=float
)


def test_healthy_and_sick_negatives_are_apart_and_positives_stay():
    np.testing.assert_array_equal(find_healthy(LABELS, FINDINGS), [1, 1, 0, 0, 0, 0, 0])
    healthy, sick = (choose_negatives(LABELS, FINDINGS, name)[:, 1] for name in ("healthy", "sick"))
    np.testing.assert_array_equal(healthy, [0, 0, 1, NAN, 1, NAN, NAN])
    # The second has a device and no finding; the last has nothing that is known to be there.
    np.testing.assert_array_equal(sick, [NAN, NAN, 1, 0, 1, 0, NAN])
    assert np.isnan(choose_negatives(LABELS, FINDINGS, "sick")[:, 0]).all()
    np.testing.assert_array_equal(choose_negatives(LABELS, FINDINGS, "all"), LABELS)
    # Without a column of normals the healthy have no finding and no doubt.
    np.testing.assert_array_equal(find_healthy(LABELS[:, 1:], FINDINGS[1:]), [1, 0, 0, 0, 0, 0, 1])


@pytest.fixture(scope="module")
def cohort():
    """600 images of 300 patients; the score of every finding rises with any finding, as that of a poor model."""
    generator = np.random.default_rng(0)
    diseases = (generator.random((600, 3)) < [0.2, 0.15, 0.25]).astype(float)
    labels = np.column_stack([~diseases.any(axis=1), diseases])
    any_disease = diseases.any(axis=1)[:, None]
    scores = [1.5 * any_disease + 1.0 * labels + generator.normal(size=labels.shape) for _ in range(2)]
    generator = np.random.default_rng(0)
    return labels, scores, bootstrap_patients(np.arange(600) // 2, 200, generator), generator


def pick(rows, finding, group, metric="auroc"):
    return rows[(rows.finding == finding) & (rows.group == group) & (rows.metric == metric)].iloc[0]


def test_the_spectrum_is_the_auroc_of_the_chosen_cases(cohort):
    labels, scores, *drawn = cohort
    rows = measure_spectrum(scores, labels, FINDINGS, *drawn)
    present, healthy = labels[:, 1] == 1, labels[:, 0] == 1
    for name, negatives in (("all", ~present), ("healthy", healthy), ("sick", ~present & ~healthy)):
        own = present | negatives
        row = pick(rows, "Mass", name)
        wanted = np.mean([roc_auc_score(present[own], one[own, 1]) for one in scores])
        assert row.value == pytest.approx(wanted, abs=1e-12)
        assert (row.n, row.positives) == (own.sum(), present.sum())
        assert row.ci_low < row.value < row.ci_high
    gap = pick(rows, "Mass", "healthy", "auroc_difference")
    assert gap.value == pytest.approx(pick(rows, "Mass", "healthy").value - pick(rows, "Mass", "sick").value)
    assert 0.1 < gap.ci_low < gap.value < gap.ci_high
    # Paired: both share the positives, so the difference varies less than two separate estimates would.
    apart = [pick(rows, "Mass", name) for name in ("healthy", "sick")]
    assert gap.ci_high - gap.ci_low < np.sqrt(sum((one.ci_high - one.ci_low) ** 2 for one in apart))
    assert np.isnan(pick(rows, "No Finding", "sick").value)
    singles = [pick(rows, finding, "sick").value for finding in FINDINGS[1:]]
    assert pick(rows, "macro", "sick").value == pytest.approx(np.mean(singles))
    # No Finding has no sick negatives; left out everywhere, the means differ by the negatives alone.
    singles = [pick(rows, finding, "all").value for finding in FINDINGS[1:]]
    assert pick(rows, "macro", "all").value == pytest.approx(np.mean(singles))


def test_precision_at_a_prevalence_by_hand():
    labels, scores = np.array([[1], [0], [1], [0]], dtype=float), np.array([[4], [3], [2], [1]], dtype=float)
    # At 4: all precise. At 2: both positives, half the negatives.
    p = 0.2
    wanted = (1 + p / (p + 0.8 * 0.5)) / 2
    assert average_precision_at(labels, scores, np.array([[p]]), None).item() == pytest.approx(wanted)


def test_at_its_own_prevalence_it_is_the_plain_one_and_elsewhere_that_of_weighted_cases(cohort):
    labels, (scores, _), *_ = cohort
    scores = np.round(scores, 1)
    own = labels.mean(axis=0)
    np.testing.assert_allclose(average_precision_at(labels, scores, own[None])[0, 0], average_precision(labels, scores))
    weights = bootstrap_patients(np.arange(600) // 2, 20, np.random.default_rng(0))
    drawn = average_precision_at(labels, scores, np.full((1, 4), 0.01), weights)[0]
    for resample in (0, 7):
        for finding in range(4):
            present, times = labels[:, finding] == 1, weights[resample].astype(float)
            share = np.where(present, 0.01 / times[present].sum(), 0.99 / times[~present].sum())
            wanted = average_precision_score(present, scores[:, finding], sample_weight=times * share)
            assert drawn[resample, finding] == pytest.approx(wanted, abs=1e-12)


def test_rows_of_precision_say_the_prevalence(cohort):
    labels, scores, *drawn = cohort
    labels = labels.copy()
    labels[:, 2] = 0
    rows = measure_precision(scores, labels, FINDINGS, *drawn, [0.01, 0.1])
    assert list(dict.fromkeys(rows.group)) == ["0.01", "0.1"]
    low, high = (pick(rows, "Mass", p, "auprc_at_prevalence") for p in ("0.01", "0.1"))
    assert low.value < high.value
    hernia = pick(rows, "Hernia", "0.1", "auprc_at_prevalence")
    assert np.isnan(hernia.value)
    assert (hernia.n, hernia.positives) == (600, 0)


def test_uncertain_labels_have_no_value_and_wrong_prevalences_are_refused(cohort):
    labels, scores, *drawn = cohort
    uncertain = np.full_like(labels, -1)
    rows = measure_spectrum(scores, uncertain, FINDINGS, *drawn)
    assert rows.value.isna().all()
    for prevalence in (0.0, 1.0, np.nan):
        with pytest.raises(StudyError, match="between 0 and 1"):
            measure_precision(scores, labels, FINDINGS, *drawn, [prevalence])
