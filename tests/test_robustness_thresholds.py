"""Thresholds are chosen on validation as by hand, carried as they are, and say why where there is none."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from chexstudy.evaluation.robustness.thresholds import (
    METRICS,
    RULES,
    Rule,
    Thresholds,
    choose_thresholds,
    measure_thresholds,
    tabulate_transport,
)
from chexstudy.results import validate_results
from chexstudy.statistics.bootstrap import bootstrap_patients
from chexstudy.statistics.proportions import measure_proportion, score_interval

# Ten negatives at 1..10, four positives at 5.5, 8.5, 9.5 and 10.
LABELS = np.array([[0.0]] * 10 + [[1.0]] * 4)
SCORES = np.array([[float(score)] for score in (*range(1, 11), 5.5, 8.5, 9.5, 10)])


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        # 9 of 10 negatives lie under 9.5, 8 under 8.5, 5 under 5.5.
        (Rule("specificity", 0.90), 9.5),
        (Rule("specificity", 0.80), 8.5),
        (Rule("specificity", 1.0), np.nextafter(10.0, np.inf)),
        (Rule("sensitivity", 0.95), 5.5),
        (Rule("sensitivity", 0.75), 8.5),
    ],
)
def test_a_threshold_is_the_one_worked_out_by_hand(rule, wanted):
    assert choose_thresholds(SCORES, LABELS, rule).values[0] == wanted


def test_uncertain_and_missing_labels_are_not_there():
    more = np.concatenate([LABELS, [[-1.0], [np.nan]]]), np.concatenate([SCORES, [[99.0], [0.5]]])
    for rule in RULES:
        assert choose_thresholds(more[1], more[0], rule).values == choose_thresholds(SCORES, LABELS, rule).values


def test_a_rule_needs_only_the_class_it_looks_at():
    nobody, uncertain, rule = np.zeros((14, 1)), np.full((14, 1), -1.0), Rule("sensitivity", 0.95)
    assert choose_thresholds(SCORES, nobody, Rule("specificity", 0.95)).reasons == ("",)
    for scores, labels in ((SCORES, nobody), (SCORES, uncertain), (SCORES[:0], LABELS[:0])):
        chosen = choose_thresholds(scores, labels, rule)
        assert np.isnan(chosen.values[0])
        assert chosen.reasons == ("no positive in validation",)
    assert choose_thresholds(SCORES * np.nan, LABELS, rule).reasons == ("not predicted",)


def carry(values, scores, labels, rule=RULES[0], reasons=None):
    thresholds = [Thresholds(np.atleast_1d(value), reasons or ("",) * labels.shape[1]) for value in values]
    findings = ["Mass", "Hernia"][: labels.shape[1]]
    patients = np.arange(len(labels))
    generator = np.random.default_rng(0)
    weights = bootstrap_patients(patients, 200, generator)
    return measure_thresholds(rule, thresholds, scores, labels, findings, patients, weights, generator)


def pick(rows, metric, finding="Mass"):
    return rows[(rows.metric == metric) & (rows.finding == finding)].iloc[0]


def test_metrics_are_those_of_the_confusion_table():
    generator = np.random.default_rng(0)
    labels = (generator.random((300, 1)) < 0.3).astype(float)
    scores = labels + generator.normal(size=labels.shape)
    rows = carry([0.6], [scores], labels)
    tn, fp, fn, tp = confusion_matrix(labels[:, 0], scores[:, 0] >= 0.6).ravel()
    wanted = [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)]
    for metric, value in zip(METRICS, wanted, strict=True):
        row = pick(rows, metric)
        assert row.value == pytest.approx(value, abs=1e-12)
        assert row.ci_low < row.value < row.ci_high
        assert pick(rows, metric, "macro").value == pytest.approx(value)
    assert (pick(rows, "ppv").n, pick(rows, "ppv").positives) == (300, int(labels.sum()))


def test_over_seeds_each_seed_keeps_its_own_threshold():
    generator = np.random.default_rng(1)
    labels = (generator.random((200, 1)) < 0.4).astype(float)
    scores = [labels + generator.normal(size=labels.shape) for _ in range(2)]
    both = carry([0.2, 0.9], scores, labels)
    each = [carry([cut], [one], labels) for cut, one in zip((0.2, 0.9), scores, strict=True)]
    for metric in ("sensitivity", "specificity"):
        assert pick(both, metric).value == pytest.approx(np.mean([pick(one, metric).value for one in each]))


def test_transport_is_reached_minus_target_and_says_whether_the_interval_holds_it():
    labels = np.array([[1.0]] * 100 + [[0.0]] * 100)
    scores = np.concatenate([np.repeat([1.0, 0.0], [95, 5]), np.repeat([1.0, 0.0], [60, 40])])[:, None]
    held = carry([0.5], [scores], labels, Rule("sensitivity", 0.95))
    assert pick(held, "transport").value == pytest.approx(0)
    assert pick(held, "target_held").value == 1
    missed = carry([0.5], [scores], labels, Rule("specificity", 0.95))
    assert pick(missed, "transport").value == pytest.approx(0.4 - 0.95)
    assert pick(missed, "transport").ci_high < 0
    assert (pick(missed, "target_held").value, pick(missed, "target_held", "macro").n) == (0, 1)
    rows = pd.concat([held, missed]).assign(
        study="s", arm="full", seed=-1, task="operating_point", data_set="a/test", exposure="held_out"
    )
    table = tabulate_transport(validate_results(rows)).set_index("setting")
    assert table.loc["sensitivity_0.95", ["held", "below", "findings"]].tolist() == [1, 0, 1]
    assert table.loc["specificity_0.95", ["held", "below", "findings"]].tolist() == [0, 1, 1]
    assert table.loc["specificity_0.95", "reached"] == pytest.approx(0.4)
    assert set(table.exposure) == {"held_out"}
    # As read from parquet, where texts of a table without rows are texts too.
    assert tabulate_transport(validate_results(rows).astype({"setting": "string[pyarrow]"})[:0]).empty


def test_what_cannot_be_told_keeps_its_row_and_the_reason():
    labels = np.zeros((40, 2))
    labels[:10, 0] = 1
    scores = np.random.default_rng(0).random((40, 2))
    rule = Rule("sensitivity", 0.95)
    rows = carry([np.array([0.5, np.nan])], [scores], labels, rule, reasons=("", "no positive in validation"))
    hernia = rows[rows.finding == "Hernia"]
    assert hernia.value.isna().all()
    assert (hernia.setting == "sensitivity_0.95").all()
    assert (hernia.reason == "no positive in validation").all()
    assert set(hernia.metric) == {*METRICS, "threshold", "transport", "target_held"}
    chosen = carry([np.array([0.5, 0.5])], [scores], labels)
    assert pick(chosen, "sensitivity", "Hernia").reason == "no positive in test"
    assert np.isfinite(pick(chosen, "specificity", "Hernia").value)
    nothing = carry([np.array([9.0, 9.0])], [scores], labels)
    assert pick(nothing, "ppv").reason == "nothing called positive"


def test_an_interval_of_a_full_proportion_is_no_point():
    members = np.ones(30, dtype=bool)
    share, low, high = measure_proportion(members, members, np.arange(30))
    assert (share, high) == (1, 1)
    assert 0.8 < low < 0.95
    few = measure_proportion(members, members, np.arange(30) % 4)
    assert np.isnan(few[1:]).all()
    assert np.isnan(measure_proportion(~members, members, np.arange(30))).all()


def test_many_independent_cases_give_wilsons_interval_and_copies_add_nothing():
    generator = np.random.default_rng(3)
    hits, members = generator.random(4000) < 0.2, np.ones(4000, dtype=bool)
    got = measure_proportion(members, hits, np.arange(4000))
    np.testing.assert_allclose(got[1:], score_interval(hits.mean(), 4000, 1.96), atol=2e-4)
    twice = measure_proportion(np.tile(members, 2), np.tile(hits, 2), np.tile(np.arange(4000), 2))
    np.testing.assert_allclose(twice, got, atol=1e-9)


def test_the_interval_covers_at_about_its_rate_when_patients_have_several_images():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        chance = generator.beta(9, 3, size=60)
        hits = generator.random((60, 3)) < chance[:, None]
        _, low, high = measure_proportion(np.ones(180, dtype=bool), hits.ravel(), np.repeat(np.arange(60), 3))
        covered += low <= 0.75 <= high
    assert 0.925 <= covered / 400 <= 0.98
