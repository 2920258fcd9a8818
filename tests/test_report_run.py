"""Reports beside their controls: what generators are shown, what is kept, and what is said of who reads no image."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from test_adaptation_run import make_arm

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.encoders import NO_ENCODER
from chexstudy.evaluation.report_generation import run as report_run
from chexstudy.evaluation.report_generation.cases import choose_cases, describe_cases, read_indication
from chexstudy.evaluation.report_generation.generators import Generator, GeneratorSettings
from chexstudy.evaluation.report_generation.image_controls import CONTROLS, show_images, shuffle_patients
from chexstudy.evaluation.report_generation.label_agreement import measure_agreement
from chexstudy.evaluation.report_generation.run import Writing, judge_reading, measure_written, write_reports
from chexstudy.evaluation.scores import scores_artifact
from chexstudy.plots.report_generation import collect_reports

DATA_SET = "tiny/test"
SHOWN = ["", *CONTROLS]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def evaluation(tiny_study):
    make_arm(tiny_study, "full", 0)
    cohort = read_cohort(tiny_study.path("cohort.parquet"))
    # A radiologist's sentences in place of noise; every other report says why the image was taken.
    asked = np.where(np.arange(len(cohort)) % 2, "INDICATION: cough.\n\n", "")
    told = np.select([cohort.Mass == 1, cohort.Hernia == 1], ["There is a mass.", "There is a hernia."], "Clear lungs.")
    cohort["report"] = [
        f"{why}FINDINGS: {text} Number {n}." for n, (why, text) in enumerate(zip(asked, told, strict=True))
    ]
    return Evaluation(tiny_study, cohort, open_pixel_store(tiny_study), resamples=200, seed=0)


class Blind(Generator):
    """Writes the same of every image."""

    def _write(self, image_ids, prompts, pixels):
        return ["There is a mass."] * len(image_ids)


class Bright(Generator):
    """Sees what the images of the tiny study show: a mass brightens their upper third."""

    def _write(self, image_ids, prompts, pixels):
        return ["There is a mass." if one[:12].mean() > one[12:24].mean() + 50 else "Clear lungs." for one in pixels]


class Witness(Generator):
    """Notes what it is given."""

    given: ClassVar[list] = []

    def _write(self, image_ids, prompts, pixels):
        self.given.append((image_ids, list(prompts), np.array(pixels)))
        return ["Clear lungs."] * len(image_ids)


@pytest.fixture
def write_with(monkeypatch):
    """Let a generator of the test stand in for one of the package."""

    def use(kind):
        monkeypatch.setattr(report_run, "fit_generator", lambda name, arm, *rest: kind(arm))
        report_run._fit.cache_clear()
        Witness.given = []

    yield use
    report_run._fit.cache_clear()


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_controls_change_what_a_generator_is_given(evaluation, write_with):
    write_with(Witness)
    write_reports(evaluation, Writing(("full",), (0,), ("nearest_image",)))
    rows = evaluation.test_sets()[DATA_SET]
    own, mean, zeros, shuffled, alike, unasked = Witness.given
    assert all(one[0] == rows.image_id.tolist() for one in Witness.given)
    store, training = evaluation.store, evaluation.training
    np.testing.assert_array_equal(own[2], store.read(rows.image_id))
    exact = store.read(training.image_id).mean(axis=0)
    assert (np.abs(mean[2] - exact) <= 0.5).all()
    assert not zeros[2].any()
    patient_of = {
        store.read([i])[0].tobytes(): (p, s) for i, p, s in rows[["image_id", "patient_id", "sex"]].to_numpy()
    }
    for pixels, needs_sex in ((shuffled[2], False), (alike[2], True)):
        seen = [patient_of[one.tobytes()] for one in pixels]
        assert sorted(seen) == sorted(patient_of.values())
        assert all(patient != own_patient for (patient, _), own_patient in zip(seen, rows.patient_id, strict=True))
        assert not needs_sex or [sex for _, sex in seen] == rows.sex.tolist()
    assert [prompt == "cough" for prompt in own[1]] == rows.report.str.contains("cough").tolist()
    assert set(unasked[1]) == {""}
    np.testing.assert_array_equal(unasked[2], own[2])


@pytest.mark.parametrize("sizes", [[1] * 40, [3] * 12, [9, 1, 1, 1], [1, 1], [30, 5, 5, 5, 5]])
def test_shuffles_are_among_patients_and_within_strata_where_these_have_several(sizes):
    patients = np.repeat([f"p{n}" for n in range(len(sizes))], sizes)
    strata = np.random.default_rng(1).integers(3, size=len(patients))
    for of_cases in (np.zeros(len(patients)), strata):
        for seed in range(20):
            taken = shuffle_patients(patients, of_cases, np.random.default_rng(seed))
            assert (patients[taken] != patients).all()
            several = [len(set(patients[of_cases == one])) > 1 for one in of_cases]
            assert (of_cases[taken] == of_cases)[several].all()
            if 2 * max(sizes) <= len(patients) and not of_cases.any():
                assert sorted(taken) == list(range(len(patients)))
    drawn = {tuple(shuffle_patients(patients, strata, np.random.default_rng(seed))) for seed in range(20)}
    assert len(drawn) == 20 or len(sizes) < 10


@pytest.mark.parametrize(
    ("control", "patients", "said"),
    [("upside_down", ["a", "b"], "there is no control 'upside_down'"), ("shuffled", ["a", "a"], "one patient alone")],
)
def test_what_cannot_be_shown_is_refused_in_a_sentence(control, patients, said):
    rows = pd.DataFrame({"image_id": ["1", "2"], "patient_id": patients, "view": "PA", "sex": "F"})
    with pytest.raises(StudyError, match=said):
        show_images(control, rows, rows, None, np.random.default_rng(0))


# --- what is said -----------------------------------------------------------------------------------------------------


def test_who_ignores_the_image_is_told_so_and_who_reads_it_is_not(evaluation, write_with):
    writing = Writing(("full",), (0,), ("nearest_image",), ("mean_image", "zeros", "shuffled"))
    said = []
    for kind in (Blind, Bright):
        write_with(kind)
        for control in SHOWN:
            name = f"report_generation.nearest_image.{control}." if control else "report_generation.nearest_image."
            evaluation.run.path(scores_artifact("full", 0, f"{name}findings", DATA_SET)).unlink(missing_ok=True)
        write_reports(evaluation, writing)
        rows = measure_written(evaluation, writing)
        said += judge_reading(rows)
    assert rows.signature[rows.metric.str.startswith("bleu_4")].str.startswith("sacrebleu|nrefs:1|").all()
    assert "reads no image" in said[0]
    assert "falls by 0.000 [0.000, 0.000]" in said[0]
    assert "reads the image" in said[1]
    bright = rows[(rows.variant == "") & (rows.finding == "Mass") & (rows.group == "report") & (rows.seed == 0)]
    assert bright[bright.metric == "f1"].set_index("head").value["nearest_image"] == 1
    # Against the floors and the ceiling, in the same table.
    pooled = rows[(rows.metric == "macro_f1") & (rows.finding == "all") & (rows.group == "report") & (rows.seed == 0)]
    pooled = pooled.set_index(["arm", "head", "variant"]).value
    assert pooled[NO_ENCODER, "itself", ""] == 1
    assert pooled[NO_ENCODER, "turned", ""] < 0.5
    assert pooled["full", "nearest_image", ""] > pooled[NO_ENCODER, "random", ""]
    lost = rows[(rows.task == "report_generation_difference") & (rows.finding == "all") & (rows.group == "report")]
    lost = lost.set_index(["reference", "metric"]).value
    assert lost["zeros", "macro_f1_difference"] == pytest.approx(
        pooled["full", "nearest_image", ""] - pooled["full", "nearest_image", "zeros"]
    )
    family = lost.xs("macro_f1_difference_p", level="metric")
    assert set(family.index) == {"commonest", "mean_image", "zeros", "shuffled"}
    smallest = family.idxmin()
    assert lost[smallest, "macro_f1_difference_p_holm"] == pytest.approx(min(1, 4 * family[smallest]))


def test_a_cohort_without_labels_is_measured_by_what_its_reports_say(evaluation, write_with):
    write_with(Bright)
    unlabelled = replace(evaluation, cohort=evaluation.cohort.drop(columns=evaluation.findings))
    writing = Writing(("full",), (0,), ("nearest_image", "composition"), ("zeros",))
    write_reports(unlabelled, writing)
    rows = measure_written(unlabelled, writing)
    assert set(rows["head"]) == {"nearest_image", "commonest", "random", "itself", "turned"}
    assert set(rows.group) >= {"", "report"}
    assert "image" not in set(rows.group)
    assert len(judge_reading(rows)) == 1
    assert measure_agreement(unlabelled).empty


@pytest.mark.parametrize(
    ("arms", "generators"), [((), ("nearest_image",)), (("full",), ()), (("untrained",), ("nearest_text",))]
)
def test_where_no_generator_can_write_that_is_said(evaluation, arms, generators):
    with pytest.raises(StudyError, match="no generator writes on any encoder: name one of each"):
        write_reports(evaluation, Writing(arms, (0,), generators))


def test_a_killed_run_goes_on_with_what_is_missing_and_a_changed_text_is_written_anew(evaluation, write_with):
    class Killed(Witness):
        def _write(self, image_ids, prompts, pixels):
            if len(self.given) == 2:
                raise KeyboardInterrupt
            return super()._write(image_ids, prompts, pixels)

    writing = Writing(("full",), (0,), ("nearest_image",))
    write_with(Killed)
    with pytest.raises(KeyboardInterrupt):
        write_reports(evaluation, writing)
    write_with(Witness)
    write_reports(evaluation, writing)
    assert len(Witness.given) == len(SHOWN) - 2
    Witness.given = []
    write_reports(evaluation, writing)
    assert Witness.given == []
    write_reports(
        evaluation, Writing(("full",), (0,), ("nearest_image",), settings=GeneratorSettings("findings+impression"))
    )
    assert len(Witness.given) == len(SHOWN)


# --- cases ------------------------------------------------------------------------------------------------------------


def test_what_is_no_case_is_counted_by_its_reason(evaluation, capsys):
    cohort = evaluation.cohort.copy()
    places = np.flatnonzero(cohort.split == "test")
    changes = [
        ("report", ""),
        ("report", "FINDINGS: Sin derrame pleural ni condensación en los campos pulmonares."),
        ("view", "lateral"),
        ("report", "IMPRESSION: Normal."),
    ]
    for place, (column, value) in zip(places, changes, strict=False):
        cohort.iloc[place, cohort.columns.get_loc(column)] = value
    given = Evaluation(evaluation.run, cohort, evaluation.store)
    chosen, left_out = choose_cases(given)
    assert dict(zip(left_out.reason, left_out.images, strict=True)) == {
        "no report": 1,
        "not in English": 1,
        "lateral view": 1,
        "no such section": 1,
    }
    assert set(left_out.data_set) == {DATA_SET}
    assert set(left_out.of) == {len(places)}
    assert len(chosen.cohort) == len(cohort) - 4
    # A report in English may compare; stripped of it there may be nothing left.
    cohort["report"] = "FINDINGS: Unchanged from the prior study."
    assert len(choose_cases(Evaluation(evaluation.run, cohort, evaluation.store))[0].cohort) == len(cohort) - 1
    chosen, left_out = choose_cases(Evaluation(evaluation.run, cohort, evaluation.store), strip_comparisons=True)
    said = capsys.readouterr().out
    assert said.startswith("No reports are written: no training image has a text to write (")
    assert "nothing but comparisons: 119" in said
    # And nothing after it stumbles.
    writing = Writing(("full",), (0,), ("nearest_image", "language_model"))
    write_reports(chosen, writing)
    assert measure_written(chosen, writing).empty
    assert measure_agreement(chosen).empty
    assert judge_reading(measure_written(chosen, writing)) == []
    assert collect_reports(chosen, writing, 4) == []


def test_fewer_cases_are_whole_patients_and_part_of_more(evaluation):
    few, more = (choose_cases(evaluation, train_images=n, test_images=n // 2)[0].cohort for n in (11, 20))
    assert set(few.image_id) < set(more.image_id)
    for part, n in ((few, 11), (more, 20)):
        assert (part.split == "train").sum() in (n, n - 1)
        assert (part.split == "test").sum() <= n // 2
    whole = evaluation.cohort.groupby("patient_id").size()
    assert (few.groupby("patient_id").size() == whole.reindex(few.patient_id.unique()).sort_index()).all()


def test_what_there_is_to_learn_is_described(evaluation):
    cohort = evaluation.cohort.copy()
    places = np.flatnonzero(cohort.split == "test")[:4]
    cohort.iloc[places, cohort.columns.get_loc("report")] = "FINDINGS: Stable heart. Clear lungs."
    cohort.iloc[places[:3], cohort.columns.get_loc("report_origin")] = "template"
    told = describe_cases(replace(evaluation, cohort=cohort)).set_index("data_set").loc[DATA_SET]
    n = told.images
    assert (told.by_template, told.repeated) == pytest.approx((3 / n, 4 / n))
    # Each report has two sentences: what is seen, and its number or the lungs.
    assert told.compares == pytest.approx(4 / (2 * n))
    assert told.patients == n / 2


@pytest.mark.parametrize(
    ("report", "indication"),
    [
        (
            "EXAM: Chest.\nINDICATION: 54-year-old with cough,\n fever\nFINDINGS: Clear.",
            "54-year-old with cough, fever",
        ),
        ("Clinical history: dyspnea. Findings: no effusion.", "dyspnea"),
        ("REASON FOR EXAM: line placement\n\nThe line ends in the atrium.", "line placement"),
        ("FINDINGS: no history of surgery. Clear.", ""),
        ("", ""),
    ],
)
def test_an_indication_is_what_stands_under_its_heading(report, indication):
    assert read_indication(report) == indication


def test_agreement_of_the_labeler_by_hand(evaluation):
    rows = evaluation.test_sets()[DATA_SET]

    def misses_the_first_mass(texts, findings):
        said = evaluation.labels(rows).copy()
        said[np.flatnonzero(said[:, 0] == 1)[0], 0] = np.nan
        return said

    table = measure_agreement(evaluation, misses_the_first_mass).set_index(["finding", "metric"]).value
    masses, n = int(rows.Mass.sum()), len(rows)
    assert table["Mass", "sensitivity"] == pytest.approx((masses - 1) / masses)
    assert table["Mass", "specificity"] == 1
    observed, share = 1 - 1 / n, masses / n
    chance = share * (masses - 1) / n + (1 - share) * (n - masses + 1) / n
    assert table["Mass", "kappa"] == pytest.approx((observed - chance) / (1 - chance))


def test_agreement_counts_doubt_both_ways_and_no_report_that_is_not_understood(evaluation):
    rows = evaluation.test_sets()[DATA_SET]
    sick = np.flatnonzero(rows.Mass == 1)

    def doubts_a_mass(texts, findings):
        said = evaluation.labels(rows).copy()
        said[sick[0]], said[sick[1], 0] = np.nan, -1
        return said

    table = measure_agreement(evaluation, doubts_a_mass).set_index(["finding", "metric"])
    assert table.n["Mass", "kappa"] == len(rows) - 1
    assert table.value["Mass", "sensitivity"] == pytest.approx((len(sick) - 2) / (len(sick) - 1))
    assert table.value["Mass", "sensitivity_uncertain_present"] == 1
