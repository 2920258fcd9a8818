from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.comparison.two_models import COLUMNS, ModelScores, compare_score_tables
from chexstudy.evaluation.scores import measure_findings
from chexstudy.statistics.bootstrap import bootstrap_patients
from chexstudy.statistics.delong import contrast_p_value, correlate_areas
from chexstudy.statistics.multiple_testing import correct_by_holm

FINDINGS = ["Edema", "Mass", "Hernia"]
TIERS = {"Edema": "head", "Mass": "tail"}


@pytest.fixture
def cases():
    """Labels of 160 images of 80 patients, and three seeds of a better and a worse model."""
    generator = np.random.default_rng(0)
    present = (generator.random((160, 3)) < [0.4, 0.2, 0.3]).astype(float)
    labels = pd.DataFrame(present, columns=FINDINGS)
    labels.loc[:7, "Edema"] = [-1, np.nan] * 4
    labels.insert(0, "image_id", [f"s/{number}" for number in range(160)])
    labels.insert(1, "patient_id", [f"s/p{number // 2}" for number in range(160)])
    shared = generator.normal(size=present.shape)

    def score(strength):
        tables = []
        for _ in range(3):
            scores = strength * present + shared + 0.5 * generator.normal(size=present.shape)
            tables.append(pd.DataFrame(scores, columns=FINDINGS).assign(image_id=labels.image_id))
        return tuple(tables)

    return labels, ModelScores("good", score(2.5), (0, 1, 2)), ModelScores("bad", score(1.0), (0, 1, 2))


def one_seed(side, **changes):
    return ModelScores(side.name, (side.tables[0].assign(**changes),))


def row(comparison, finding):
    return comparison.table.set_index("finding").loc[finding]


def test_values_and_intervals_are_those_of_the_results_table(cases):
    labels, first, second = cases
    comparison = compare_score_tables(first, second, labels, tiers=TIERS, resamples=300, seed=4)
    generator = np.random.default_rng(4)
    weights = bootstrap_patients(labels.patient_id, 300, generator)
    arrays = [[table[FINDINGS].to_numpy() for table in side.tables] for side in (first, second)]
    shared = (labels[FINDINGS].to_numpy(), FINDINGS, weights)
    sides = [measure_findings(side, *shared, TIERS) for side in arrays]
    expected = sides[0].minus(sides[1], generator)
    expected = expected[expected.metric == "auroc_difference"]
    assert list(comparison.table.columns) == list(COLUMNS)
    assert list(comparison.table.finding) == [*FINDINGS, "macro", "head", "tail"]
    for ours, theirs in (("difference", "value"), ("ci_low", "ci_low"), ("ci_high", "ci_high")):
        np.testing.assert_array_equal(comparison.table[ours], expected[theirs])
    generator = np.random.default_rng(4)
    bootstrap_patients(labels.patient_id, 300, generator)
    alone = sides[0].over_seeds(generator)
    alone = alone[alone.metric == "auroc"]
    for ours, theirs in (("first", "value"), ("first_low", "ci_low"), ("first_high", "ci_high")):
        np.testing.assert_array_equal(comparison.table[ours], alone[theirs])
    assert (comparison.seeds, comparison.images, comparison.patients, comparison.left_out) == (3, 160, 80, 0)
    assert row(comparison, "Edema")[["n", "positives", "patients"]].tolist() == [152, (labels.Edema == 1).sum(), 76]
    assert row(comparison, "macro")[["n", "positives", "patients"]].tolist() == [160, -1, 80]


def test_one_seed_is_tested_by_delong_for_patients_and_corrected_over_findings(cases):
    labels, first, second = cases
    comparison = compare_score_tables(one_seed(first), one_seed(second), labels, resamples=200)
    assert comparison.test == "delong"
    for finding in FINDINGS:
        scores = np.column_stack([side.tables[0][finding] for side in (first, second)])
        areas, covariance = correlate_areas(labels[finding].to_numpy(), scores, labels.patient_id)
        difference, reach = areas[0] - areas[1], 1.96 * np.sqrt([1, -1] @ covariance @ [1, -1])
        measured = row(comparison, finding)
        assert measured.p == measured.p_delong == pytest.approx(contrast_p_value(areas, covariance))
        assert measured.difference == pytest.approx(difference)
        assert (measured.ci_low, measured.ci_high) == pytest.approx((difference - reach, difference + reach), abs=0.03)
    findings = comparison.of_findings
    np.testing.assert_array_equal(findings.p_holm, correct_by_holm(findings.p.to_numpy()))
    macro = row(comparison, "macro")
    assert macro.p == macro.p_bootstrap
    assert np.isnan([macro.p_holm, macro.p_delong, macro.p_permutation]).all()


def test_several_seeds_and_average_precision_are_tested_by_the_bootstrap(cases):
    labels, first, second = cases
    for comparison in (
        compare_score_tables(first, second, labels, resamples=200),
        compare_score_tables(one_seed(first), one_seed(second), labels, metric="auprc", resamples=200),
    ):
        assert comparison.test == "bootstrap"
        assert (comparison.table.p == comparison.table.p_bootstrap).all()
        assert row(comparison, "macro").p < 0.01
    assert comparison.table.p_delong.isna().all()


def test_the_same_call_gives_the_same_numbers_and_the_other_way_round_the_opposite(cases):
    labels, first, second = cases
    there = compare_score_tables(first, second, labels, resamples=200).table
    pd.testing.assert_frame_equal(there, compare_score_tables(first, second, labels, resamples=200).table)
    # Labels in any order, and seeds that are not known pair by theirs.
    mixed = compare_score_tables(
        first, ModelScores("bad", second.tables), labels.sample(frac=1, random_state=2), resamples=200
    )
    pd.testing.assert_frame_equal(there, mixed.table)
    back = compare_score_tables(second, first, labels, resamples=200).table
    np.testing.assert_allclose(back.difference, -there.difference, atol=1e-15)
    np.testing.assert_allclose(back.ci_low, -there.ci_high, atol=1e-12)


def test_what_cannot_be_evaluated_keeps_its_row_with_the_reason(cases):
    labels, first, second = cases
    labels = labels.assign(Cavity=0, Fibrosis=1.0, Nodule=-1, Mole=1, Rare=0, site="Lyon")
    labels["Rare"] = (np.arange(160) < 8).astype(int)
    extra = {name: np.arange(160) for name in ("Cavity", "Fibrosis", "Nodule", "Rare", "Wart")}
    without = ModelScores("bad", (second.tables[0].assign(**extra).drop(columns="Mass"),))
    comparison = compare_score_tables(one_seed(first, **extra), without, labels, resamples=200)
    reasons = comparison.table.set_index("finding").reason
    assert reasons[reasons != ""].to_dict() == {
        "Mass": "not scored by bad", "Cavity": "no positives", "Fibrosis": "no negatives", "Nodule": "no known label",
        "Mole": "not scored", "Rare": "fewer than 5 patients of a class", "Wart": "no labels",
    }  # fmt: skip
    assert row(comparison, "Cavity")[["n", "positives", "patients"]].tolist() == [160, 0, 80]
    assert row(comparison, "Nodule")[["n", "positives", "patients"]].tolist() == [0, 0, 0]
    for finding in ("Mass", "Cavity", "Fibrosis", "Nodule", "Mole", "Wart"):
        assert row(comparison, finding)[["first", "difference", "ci_low", "p", "p_holm"]].isna().all()
    rare = row(comparison, "Rare")
    assert rare.difference == 0
    assert rare[["ci_low", "p", "p_delong", "p_bootstrap", "p_holm"]].isna().all()
    # What cannot be tested takes nothing from the others.
    tested = comparison.of_findings.p.dropna()
    assert len(tested) == 2
    assert row(comparison, "macro").difference == pytest.approx(
        row(comparison, "Edema").difference / 3 + row(comparison, "Hernia").difference / 3
    )


def test_images_of_one_side_only_are_left_out_if_that_is_asked_for(cases):
    labels, first, second = cases
    part = ModelScores("part", (first.tables[0][:120],))
    other = ModelScores("other", (second.tables[0][20:],))
    with pytest.raises(StudyError, match=r"\(120 and 140, 100 of them shared by all\).*--shared-only"):
        compare_score_tables(part, other, labels)
    comparison = compare_score_tables(part, other, labels, shared_only=True, resamples=100)
    assert (comparison.images, comparison.patients, comparison.left_out) == (100, 50, 60)
    sides = [ModelScores(side.name, (side.tables[0][20:120],)) for side in (first, second)]
    expected = compare_score_tables(*sides, labels, resamples=100)
    np.testing.assert_array_equal(comparison.table.difference, expected.table.difference)


@pytest.mark.parametrize(
    ("what", "spoil", "sentence"),
    [
        ("bad", lambda t: t.assign(image_id="x/" + t.image_id), "share no image"),
        ("labels", lambda t: t.iloc[:150], "10 of the 160 images scored .* written as '…/0' and those of .* '…/150'"),
        ("labels", lambda t: t.drop(columns="patient_id"), "labels have no column patient_id: their columns are"),
        ("labels", lambda t: pd.concat([t, t[:1]]), "the labels hold an image a second time in row 160"),
        ("labels", lambda t: t.assign(patient_id=[None, *t.patient_id[1:]]), "have no patient_id in row 0"),
        ("good", lambda t: t.drop(columns="image_id"), "good have no column image_id"),
        ("good", lambda t: pd.concat([t, t[:1]]), "good hold an image a second time in row 160"),
        ("labels", lambda t: t.assign(**dict.fromkeys(FINDINGS, -1)), "no finding can be compared .Edema: no known"),
        ("labels", lambda t: t.drop(columns=FINDINGS), "no finding can be compared .Edema: no labels"),
        ("labels", lambda t: t.assign(patient_id="one"), "of 1 patient, and an interval needs at least 5"),
        ("labels", lambda t: t.assign(patient_id=np.arange(160) % 4), "of 4 patients, and an interval"),
        ("labels", lambda t: t.assign(Edema=2), "label 2 of 'Edema' is none of 1, 0, -1"),
        ("labels", lambda t: t.assign(Edema="yes"), "label 'yes' of 'Edema'"),
        ("good", lambda t: t.assign(Edema="high"), "good for 'Edema' are no numbers"),
        ("good", lambda t: t.assign(Edema=t.Edema.where(t.index > 2)), "'Edema' for 3 images"),
    ],
)
def test_bad_input_is_one_sentence(cases, what, spoil, sentence):
    labels, *sides = cases
    sides = [replace(one, tables=tuple(map(spoil, one.tables))) if one.name == what else one for one in sides]
    with pytest.raises(StudyError, match=sentence) as caught:
        compare_score_tables(*sides, spoil(labels) if what == "labels" else labels, resamples=100)
    assert "s/p" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "seeds", "sentence"),
    [
        (2, (0, 1), "good has seeds 0, 1, 2 and bad seeds 0, 1"),
        (3, (0, 1, 5), "seeds do not pair"),
        (1, (), "and bad 1 score file;"),
    ],
)
def test_seeds_that_do_not_pair_are_named(cases, count, seeds, sentence):
    labels, first, second = cases
    with pytest.raises(StudyError, match=sentence):
        compare_score_tables(first, ModelScores("bad", second.tables[:count], seeds), labels)


def test_options_that_make_no_sense_are_refused(cases):
    labels, first, second = cases
    with pytest.raises(StudyError, match="DeLong's test is one of AUROCs"):
        compare_score_tables(first, second, labels, test="delong", metric="auprc")
    with pytest.raises(StudyError, match="at least 100 resamples, not 10"):
        compare_score_tables(first, second, labels, resamples=10)


def test_patients_and_images_are_the_same_in_any_spelling():
    numbers = np.arange(60)
    generator = np.random.default_rng(0)
    ids = [f"img{number:02d}.png" for number in numbers]
    labels = pd.DataFrame({"image_id": ids, "patient_id": numbers // 2, "Mass": numbers % 2})
    first, second = (pd.DataFrame({"image_id": ids, "Mass": generator.normal(size=60)}) for _ in range(2))
    plain = compare_score_tables(ModelScores("a", (first,)), ModelScores("b", (second,)), labels, resamples=100)
    assert plain.patients == 30
    spelt = [f"{number // 2}.0" if number % 2 else f"00{number // 2} " for number in numbers]
    other = labels.assign(patient_id=spelt, image_id=[f"{name}\u00a0" for name in ids])
    again = compare_score_tables(ModelScores("a", (first,)), ModelScores("b", (second,)), other, resamples=100)
    assert again.patients == 30
    lost = second.assign(image_id=second.image_id.str.removesuffix(".png"))
    with pytest.raises(StudyError, match=r"share no image .their ids are written as 'img00.png' and 'img00'"):
        compare_score_tables(ModelScores("a", (first,)), ModelScores("b", (lost,)), labels, resamples=100)
