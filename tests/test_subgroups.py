"""Subgroups: who is compared on what, gaps worked by hand, planted and absent gaps, arms that widen them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.scores import write_scores
from chexstudy.evaluation.subgroups.case_mix import balance_case_mix
from chexstudy.evaluation.subgroups.gaps import (
    measure_study_subgroups,
    measure_subgroups,
    plan_grouping,
)
from chexstudy.results import add_results
from chexstudy.runs import Run
from chexstudy.statistics.multiple_testing import correct_by_holm

FINDINGS = ["Mass", "Edema"]


def make_cohort(labels, **columns):
    """Rows of a cohort table as far as subgroups read it, two images a patient unless said otherwise."""
    count = len(labels)
    table = {
        "image_id": [f"t/{number}" for number in range(count)],
        "patient_id": [f"t/{number // 2}" for number in range(count)],
        "source": "t", "split": "test", "view": "PA", "sex": "unknown",
        "age_years": np.full(count, np.nan, dtype="float32"), "report_origin": "none",
    }  # fmt: skip
    labels = {name: pd.array(labels[:, place], dtype="Int8") for place, name in enumerate(FINDINGS)}
    return pd.DataFrame(table | columns | labels)


def simulate(generator, count=240, gap=0.0, seeds=1, groups=("F", "M")):
    """Labels, sexes and scores of two arms; in the first the women's findings are harder to see by ``gap``."""
    sex = np.repeat(generator.choice(list(groups), count // 2), 2)
    labels = (generator.random((count, 2)) < 0.35).astype(int)
    patient = np.repeat(generator.normal(size=(count // 2, 2)), 2, axis=0)
    arms = {"curated": gap, "full": 0.0}
    scores = {arm: [] for arm in arms}
    for _ in range(seeds):
        for arm, loss in arms.items():
            shift = labels * (1.6 - loss * (sex == "F")[:, None])
            scores[arm].append(shift + 0.7 * patient + 0.7 * generator.normal(size=labels.shape))
    return make_cohort(labels, sex=sex), labels, scores


def measure(scores, labels, plans, cohort, resamples=60, generator=0, **options):
    seeds = range(len(next(iter(scores.values()))))
    generator = np.random.default_rng(generator)
    options |= {"seeds": seeds, "resamples": resamples}
    return measure_subgroups(scores, labels, FINDINGS, plans, cohort.patient_id, generator, **options)


def pick(rows, arm, metric, setting, group="", finding="macro", seed=-1, reference=""):
    rows = rows.fillna({"reference": ""})
    chosen = rows[(rows.arm == arm) & (rows.metric == metric) & (rows.setting == setting) & (rows.group == group)]
    return chosen[(chosen.finding == finding) & (chosen.seed == seed) & (chosen.reference == reference)].iloc[0]


def test_groups_share_the_findings_that_five_patients_have_and_lack_in_each():
    labels = np.zeros((200, 2), dtype=int)
    labels[::4] = 1
    sex = np.repeat(["F", "M"], 100)
    # Of the men four patients alone have an edema.
    labels[100:, 1] = 0
    labels[100:108:2, 1] = 1
    plan = plan_grouping(make_cohort(labels, sex=sex), "sex", FINDINGS)
    assert plan.groups == ("F", "M")
    assert list(plan.shared) == [0]
    edema = plan.cells[(plan.cells.group == "M") & (plan.cells.finding == "Edema")].iloc[0]
    assert (edema.n, edema.positives, edema.patients_with, edema.evaluable) == (100, 4, 4, False)
    mass = plan.cells[(plan.cells.group == "F") & (plan.cells.finding == "Mass")].iloc[0]
    assert (mass.positives, mass.patients_with, mass.patients_without, mass.compared) == (25, 25, 50, True)
    assert not plan.cells[plan.cells.finding == "Edema"].compared.any()


def test_small_and_unknown_groups_are_left_out_and_listed():
    labels = (np.random.default_rng(0).random((200, 2)) < 0.4).astype(int)
    age = np.repeat([10.0, 30.0, 50.0, np.nan], [20, 80, 80, 20]).astype("float32")
    plan = plan_grouping(make_cohort(labels, age_years=age), "age", FINDINGS)
    assert plan.groups == ("18-39", "40-59")
    assert plan.cells.drop_duplicates("group").set_index("group").left_out["0-17"] == "10 patients"
    assert plan.members.sum() == 160
    everyone = plan_grouping(make_cohort(labels), "sex", FINDINGS)
    assert not everyone.comparable
    assert everyone.cells.empty


def test_groupings_by_a_column_of_ones_own_but_not_by_an_identifier():
    labels = (np.random.default_rng(0).random((200, 2)) < 0.4).astype(int)
    cohort = make_cohort(labels, scanner=np.repeat(["old", "new"], 100), shade=np.arange(200) % 40)
    assert plan_grouping(cohort, "scanner", FINDINGS).groups == ("new", "old")
    for name, sentence in (("patient_id", "no grouping by"), ("colour", "no grouping by"), ("shade", "has 40 values")):
        with pytest.raises(StudyError, match=sentence):
            plan_grouping(cohort, name, FINDINGS)


def test_metrics_of_groups_are_those_of_their_images_alone():
    cohort, labels, scores = simulate(np.random.default_rng(1), seeds=2)
    plan = plan_grouping(cohort, "sex", FINDINGS)
    rows = measure(scores, labels, [plan], cohort, 60)
    women = (cohort.sex == "F").to_numpy()
    wanted = {}
    for metric, reference in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        each = [[reference(labels[women, place], one[women, place]) for one in scores["curated"]] for place in range(2)]
        wanted[metric] = np.mean(each, axis=1)
        for place, finding in enumerate(FINDINGS):
            row = pick(rows, "curated", metric, "sex", "F", finding)
            assert row.value == pytest.approx(wanted[metric][place], abs=1e-12)
            assert row.positives == labels[women, place].sum()
            assert 0 <= row.ci_low < row.value < row.ci_high <= 1
        assert pick(rows, "curated", metric, "sex", "F").value == pytest.approx(wanted[metric].mean())
    # With two groups the gap is their difference, and each against the rest is it with either sign.
    values = [pick(rows, "curated", "auroc", "sex", sex).value for sex in "FM"]
    assert pick(rows, "curated", "auroc_gap", "sex").value == pytest.approx(-abs(values[0] - values[1]))
    assert pick(rows, "curated", "auroc_against_rest", "sex", "F").value == pytest.approx(values[0] - values[1])
    assert pick(rows, "curated", "auroc_against_rest", "sex", "M").value == pytest.approx(values[1] - values[0])
    of_seeds = [pick(rows, "curated", "auroc_gap", "sex", seed=seed).value for seed in (0, 1)]
    assert np.isfinite(of_seeds).all()
    again = measure(scores, labels, [plan], cohort, 60)
    pd.testing.assert_frame_equal(rows, again)


def test_the_rest_is_the_mean_of_the_other_groups_weighted_by_patients():
    cohort, labels, scores = simulate(np.random.default_rng(3), count=400)
    ward = np.repeat(["a", "b", "c"], [200, 120, 80])
    plan = plan_grouping(cohort.assign(ward=ward), "ward", FINDINGS)
    rows = measure(scores, labels, [plan], cohort, 40)
    values = {one: pick(rows, "full", "auroc", "ward", one).value for one in "abc"}
    rest = (60 * values["b"] + 40 * values["c"]) / 100
    assert pick(rows, "full", "auroc_against_rest", "ward", "a").value == pytest.approx(values["a"] - rest)
    gap = pick(rows, "full", "auroc_gap", "ward")
    assert gap.value == pytest.approx(min(values.values()) - max(values.values()))
    assert gap.ci_low < gap.value < gap.ci_high <= 0
    p_value = pick(rows, "full", "auroc_gap_p", "ward").value
    # The interval reaches zero where the p value is above 0.05, and only there.
    assert (p_value > 0.05) == (gap.ci_high == 0)


def test_a_planted_gap_is_found_and_so_is_the_arm_that_widens_it():
    cohort, labels, scores = simulate(np.random.default_rng(5), count=500, gap=1.2, seeds=2)
    plan = plan_grouping(cohort, "sex", FINDINGS)
    rows = measure(scores, labels, [plan], cohort, 200)
    gap = pick(rows, "curated", "auroc_gap", "sex")
    assert gap.ci_high < 0
    assert pick(rows, "curated", "auroc_gap_p_holm", "sex").value < 0.01
    women = pick(rows, "curated", "auroc_against_rest", "sex", "F")
    assert women.value == pytest.approx(gap.value)
    assert women.ci_high < 0
    assert pick(rows, "full", "auroc_gap_p", "sex").value > 0.05
    wider = pick(rows, "curated", "auroc_gap_widening", "sex", reference="full")
    assert wider.ci_low > 0
    assert wider.value == pytest.approx(abs(gap.value) - abs(pick(rows, "full", "auroc_gap", "sex").value))


def test_without_a_gap_there_are_no_more_alarms_than_said():
    generator = np.random.default_rng(11)
    gaps, covered, simulations = 0, 0, 60
    for _ in range(simulations):
        cohort, labels, scores = simulate(generator, count=200, groups=("F", "M"))
        ward = np.repeat(generator.permutation(np.resize(list("abc"), 100)), 2)
        plan = plan_grouping(cohort.assign(ward=ward), "ward", FINDINGS)
        rows = measure({"full": scores["full"]}, labels, [plan], cohort, 120, generator)
        gaps += pick(rows, "full", "auroc_gap_p", "ward").value < 0.05
        one = pick(rows, "full", "auroc_against_rest", "ward", "a")
        covered += one.ci_low <= 0 <= one.ci_high
    # At a rate of 5 %, more than nine of sixty come about once in a thousand.
    assert gaps <= 9
    assert covered >= simulations - 9


def test_decisions_at_carried_thresholds_worked_by_hand():
    labels = np.zeros((80, 2), dtype=int)
    labels[::2] = 1
    sex = np.repeat(["F", "M"], 40)
    patients = [f"t/{number}" for number in range(80)]
    cohort = make_cohort(labels, sex=sex).assign(patient_id=patients)
    score = labels.astype(float)
    # A fifth of the women's findings score low; of the men's healthy a tenth score high.
    score[np.flatnonzero((labels[:, 0] == 1) & (sex == "F"))[:4]] = -1
    score[np.flatnonzero((labels[:, 0] == 0) & (sex == "M"))[:2]] = 2
    plan = plan_grouping(cohort, "sex", FINDINGS)
    thresholds = {"full": [np.array([0.5, 1.0])]}
    rows = measure({"full": [score]}, labels, [plan], cohort, 80, thresholds=thresholds)
    assert pick(rows, "full", "tpr", "sex", "F").value == pytest.approx(0.8)
    assert pick(rows, "full", "tpr", "sex", "M", "Mass").value == 1
    assert pick(rows, "full", "fpr", "sex", "M").value == pytest.approx(0.1)
    assert pick(rows, "full", "tpr_gap", "sex").value == pytest.approx(-0.2)
    assert pick(rows, "full", "fpr_gap", "sex").value == pytest.approx(0.1)
    assert pick(rows, "full", "equalised_odds_gap", "sex").value == pytest.approx(0.2)
    nowhere = {"full": [np.array([0.5, np.nan])]}
    rows = measure({"full": [score]}, labels, [plan], cohort, 20, thresholds=nowhere)
    assert np.isnan(pick(rows, "full", "tpr", "sex", "F", "Edema").value)
    assert pick(rows, "full", "tpr", "sex", "F").value == pytest.approx(0.8)


def test_a_gap_that_comes_from_the_mix_of_findings_vanishes_when_standardised():
    generator = np.random.default_rng(7)
    count = 4000
    view = np.repeat(["PA", "AP"], count // 2)
    # On bedside films edema is common, and with an edema a mass is hard to tell.
    edema = generator.random(count) < np.where(view == "AP", 0.7, 0.15)
    mass = generator.random(count) < 0.3
    labels = np.stack([mass, edema], axis=1).astype(int)
    scores = np.stack([mass * 1.5 + edema * 1.5 * ~mass, edema * 2.0], axis=1) + generator.normal(size=labels.shape)
    cohort = make_cohort(labels, view=view)
    plan = plan_grouping(cohort, "view", FINDINGS)
    rows = measure({"full": [scores]}, labels, [plan], cohort)
    raw, standardised = (pick(rows, "full", f"auroc{kind}_gap", "view") for kind in ("", "_standardised"))
    assert raw.ci_high < 0
    assert standardised.ci_high == 0
    assert abs(standardised.value) < abs(raw.value) / 3


def test_weights_make_the_findings_alike_and_cut_the_heaviest():
    labels = np.array([[1, 0]] * 30 + [[0, 0]] * 70 + [[1, 0]] * 60 + [[0, 0]] * 40, dtype=float)
    members = np.repeat([[True, False], [False, True]], 100, axis=1).reshape(2, 200)
    weights = balance_case_mix(members, labels)
    for group in members:
        # The penalty holds the weights back a little.
        assert np.average(labels[group, 0], weights=weights[group]) == pytest.approx(0.45, abs=0.02)
        assert weights[group].mean() == pytest.approx(1)
    assert set(balance_case_mix(members[:1], labels)) == {0.0, 1.0}


def test_p_values_of_gaps_are_corrected_over_groupings():
    cohort, labels, scores = simulate(np.random.default_rng(9), count=300)
    cohort = cohort.assign(ward=np.repeat(["a", "b", "c"], 100))
    plans = [plan_grouping(cohort, name, FINDINGS) for name in ("sex", "ward")]
    rows = measure(scores, labels, plans, cohort)
    for arm in scores:
        p_values, holm = (
            [pick(rows, arm, f"auroc_gap_{p}", one).value for one in ("sex", "ward")] for p in ("p", "p_holm")
        )
        assert holm == pytest.approx(correct_by_holm(np.array(p_values)))


@pytest.fixture
def study(home):
    """Two arms evaluated on tests of two sources, validation scores of both kept."""
    cohort, _, scores = simulate(np.random.default_rng(4), count=300, seeds=2)
    cohort = cohort.assign(source=np.where(np.arange(300) % 4 < 2, "a", "b"))
    cohort["split"] = np.where(np.arange(300) < 200, "test", "validate")
    run, rows = Run("test"), []
    for arm, of_arm in scores.items():
        for seed, one in enumerate(of_arm):
            for (source, split), part in cohort.groupby(["source", "split"]):
                place = {"arm": arm, "seed": seed, "task": "zero_shot", "data_set": f"{source}/{split}"}
                write_scores(run, one[part.index], part.image_id, FINDINGS, **place)
                row = {"finding": "macro", "metric": "auroc", "setting": "chosen", "value": 0.7, "ci_low": 0.6}
                row |= {"ci_high": 0.8, "n": 9, "positives": -1, "exposure": "held_out"}
                rows += [row | place] if split == "test" else []
    return Evaluation(run, cohort, None, 40), add_results(run, pd.DataFrame(rows))


def test_a_study_puts_sources_together_and_carries_thresholds(study):
    evaluation, results = study
    rows, cells = measure_study_subgroups(evaluation, results)
    assert set(rows.data_set) == {"all/test"}
    assert set(cells.grouping) == {"sex", "source", "view"}
    written = add_results(evaluation.run, rows)
    assert set(written.task) == {"subgroup", "subgroup_gap"}
    assert {"tpr_gap", "fpr_gap", "equalised_odds_gap"} <= set(written.metric)
    assert {("sex", "F"), ("source", "a")} <= set(zip(written.setting, written.group, strict=True))
    # One view alone is nothing to compare.
    assert "view" not in set(written.setting)
    assert set(written.seed) == {-1, 0, 1}
    called = pick(rows, "full", "fpr", "sex", "F")
    assert 0.0 < called.value < 0.3
    evaluation.run.path("evaluation/full/seed1/zero_shot/a/validate.parquet").unlink()
    rows, _ = measure_study_subgroups(evaluation, results)
    assert not rows.metric.str.contains("tpr").any()


def test_what_a_study_lacks_is_one_sentence_or_no_rows(study):
    evaluation, results = study
    with pytest.raises(StudyError, match="arm 'oracle_balanced' has no zero_shot scores"):
        measure_study_subgroups(evaluation, results, ["oracle_balanced"])
    unlabelled = replace(evaluation, cohort=evaluation.cohort.drop(columns=FINDINGS))
    assert all(table.empty for table in measure_study_subgroups(unlabelled, results))
    lonely, cells = measure_study_subgroups(evaluation, results, names=["view"])
    assert lonely.empty
    assert set(cells.group) == {"PA"}
