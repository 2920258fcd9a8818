"""Outcomes from frozen features: the true hazard above the image above chance, and nothing left out in silence."""

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.table import validate_cohort
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation import context
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.outcomes import prediction
from chexstudy.evaluation.outcomes.prediction import (
    AGE_SEX,
    BOTH,
    IMAGE,
    ORACLE,
    curves_artifact,
    describe_patients,
    evaluate_outcomes,
    explain_no_outcomes,
)
from chexstudy.evaluation.scores import read_scores
from chexstudy.results import OVER_SEEDS, add_results
from chexstudy.runs import Run

SIZES = {"train": 700, "validate": 300, "test": 400}


def make_cohort(seed=0):
    """Patients of known hazard: age, sex and a disease that the image shows through noise; some have two images."""
    draw = np.random.default_rng(seed)
    n = sum(SIZES.values())
    age, male, disease = draw.uniform(30, 90, n).round(), draw.random(n) < 0.5, draw.standard_normal(n)
    log_hazard = np.log(0.03) + 0.3 * (age - 60) / 10 + 0.3 * male + 0.8 * disease
    happens = draw.exponential(size=n) / np.exp(log_hazard)
    observed = draw.uniform(5, 12, n)
    wrong = draw.random(n) < 1 / (1 + np.exp(1 - 1.5 * disease))
    names = [f"a/{k}" for k in range(n)]
    # Every fifth image is the second one of the patient before.
    patient = np.where(np.arange(n) % 5 == 4, np.arange(n) - 1, np.arange(n))
    age, male, disease = age[patient], male[patient], disease[patient]
    years, died = np.minimum(happens, observed)[patient], (happens <= observed)[patient].astype(int)
    known = draw.random(n) < 0.8
    table = {
        "image_id": names, "patient_id": [f"a/p{k}" for k in patient], "study_id": names, "source": "a",
        "split": np.repeat(list(SIZES), list(SIZES.values())), "view": "PA", "sex": np.where(male, "M", "F"),
        "age_years": age, "image_path": names, "report": "", "report_origin": "none", "outcome_death": died,
        "outcome_death_years": years * np.where(np.arange(n) % 5 == 4, 0.9, 1.0),
        "outcome_tube": pd.array(np.where(known, wrong.astype(float), np.nan), dtype="Float64"),
    }  # fmt: skip
    shown = disease[:, None] * draw.uniform(0.5, 1, 6) + draw.standard_normal((n, 6))
    truth = pd.DataFrame(
        {"image_id": names, "outcome": "death", "log_hazard": log_hazard[patient], "risk_5_years": 0.0}
    )
    return validate_cohort(pd.DataFrame(table)), shown, truth


def make_features(cohort, shown):
    pooled = shown.astype("float32")
    return FrozenFeatures(list(cohort.image_id), pooled, pooled, pooled, None, (6,), 1, {"name": "six numbers"})


def evaluate(cohort, features, run="x", resamples=20, **options):
    run = Run(run) if isinstance(run, str) else run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "tell_exposure", lambda *arm: "held_out")
        return evaluate_outcomes(Evaluation(run, cohort, None, resamples), "own", features, **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two seeds of one arm: the second sees more noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(tmp_path_factory.mktemp("home")))
        run = Run("study")
        cohort, shown, truth = make_cohort()
        run.write_table("truth_outcomes.parquet", truth)
        noise = np.random.default_rng(9).standard_normal(shown.shape)
        features = {0: make_features(cohort, shown), 1: make_features(cohort, shown + 0.5 * noise)}
        yield run, cohort, features, evaluate(cohort, features, run=run, resamples=200)


def value(rows, finding, metric, setting, seed=OVER_SEEDS, reference=None):
    own = rows[(rows.finding == finding) & (rows.metric == metric) & (rows.setting == setting) & (rows.seed == seed)]
    own = own if reference is None else own[own.reference == reference]
    assert len(own) == 1
    return own.iloc[0]


def test_the_rows_keep_the_contract_of_the_results_table(study):
    run, cohort, _, rows = study
    assert len(add_results(run, rows)) == len(rows)
    assert set(rows.finding) == {"death", "tube"}
    assert set(rows.data_set) == {"a/test"}
    assert set(rows.seed) == {0, 1, OVER_SEEDS}
    row = value(rows, "death", "c_index", IMAGE)
    assert (row.n, row.positives) == (400, cohort[cohort.split == "test"].outcome_death.sum())
    assert row.ci_low < row.value < row.ci_high


@pytest.mark.parametrize("metric", ["c_index", "auroc_1y", "auroc_5y"])
def test_the_true_hazard_is_above_both_above_the_image_above_chance(study, metric):
    rows = study[3]
    oracle, both, image, age_sex = (value(rows, "death", metric, one) for one in (ORACLE, BOTH, IMAGE, AGE_SEX))
    assert oracle.value > both.value > max(image.value, age_sex.value)
    assert image.ci_low > 0.5


def test_the_image_adds_to_age_and_sex_and_a_row_over_seeds_is_their_mean(study):
    rows = study[3]
    gain = value(rows, "death", "c_index_difference", BOTH, reference=AGE_SEX)
    separate = value(rows, "death", "c_index", BOTH).value - value(rows, "death", "c_index", AGE_SEX).value
    assert gain.value == pytest.approx(separate, abs=1e-12)
    assert 0 < gain.ci_low < gain.value < gain.ci_high
    assert value(rows, "tube", "auroc_difference", IMAGE, reference=AGE_SEX).ci_low > 0
    of_seeds = [value(rows, "death", "c_index", IMAGE, seed).value for seed in (0, 1)]
    assert of_seeds[0] > of_seeds[1]
    assert value(rows, "death", "c_index", IMAGE).value == pytest.approx(np.mean(of_seeds))
    assert value(rows, "death", "c_index", AGE_SEX, 0).value == value(rows, "death", "c_index", AGE_SEX, 1).value


def test_predicted_risks_are_as_many_as_happen(study):
    for setting in (BOTH, ORACLE):
        ratio = value(study[3], "death", "observed_expected_5y", setting)
        assert ratio.ci_low < 1 < ratio.ci_high


def test_curves_take_one_image_a_patient_and_scores_of_all_are_kept(study):
    run, cohort, _, _ = study
    curves = run.read_table(curves_artifact("own"))
    own = curves[(curves.seed == 0) & (curves.setting == BOTH)]
    first = own.drop_duplicates("group").set_index("group")
    assert first.n.sum() == cohort[cohort.split == "test"].patient_id.nunique() == 320
    assert (first.at_risk == first.n).all()
    at_five = own[own.years <= 5].groupby("group").survival.min()
    assert at_five["low"] > at_five["medium"] > at_five["high"]
    assert own.log_rank_p.max() < 1e-4
    # Scores are kept of every test image.
    test = cohort[cohort.split == "test"]
    both = read_scores(run, test, ["death", "tube"], arm="own", seed=0, task=f"outcome_{BOTH}")
    assert np.isfinite(both).all()
    truth = read_scores(run, test, ["death"], arm="own", seed=0, task=f"outcome_{ORACLE}")
    assert np.corrcoef(truth[:, 0], both[:, 0])[0, 1] > 0.5


def test_unknown_ages_and_sexes_are_no_obstacle():
    training = pd.DataFrame({"age_years": [40.0, 60.0, None], "sex": ["F", "M", "unknown"]})
    found = describe_patients(training, training)
    np.testing.assert_allclose(found, [[4, 0, 0, 0], [6, 1, 0, 0], [5, 0.5, 1, 1]])
    # What does not vary in training says nothing.
    other = pd.DataFrame({"age_years": [None, 50.0], "sex": ["unknown", "unknown"]})
    assert describe_patients(training, other.assign(age_years=np.nan)).shape == (3, 0)
    np.testing.assert_allclose(describe_patients(other, training.iloc[:2]), [[5, 0.5], [5, 0.5]])


def test_without_age_and_sex_the_image_stands_alone(study):
    _, cohort, features, _ = study
    bare = cohort.assign(age_years=np.float32(np.nan), sex="unknown").drop(columns="outcome_tube")
    once, again = (evaluate(bare, {0: features[0]}) for _ in range(2))
    pd.testing.assert_frame_equal(once, again)
    # Of real patients nobody knows the true hazard.
    assert set(once.setting) == {IMAGE}


def test_what_cannot_be_learned_keeps_its_rows_and_says_why(study):
    _, cohort, features, _ = study
    train, test = cohort.split == "train", cohort.split == "test"
    cases = {
        "all 700 in the split train are censored": cohort.assign(outcome_death=cohort.outcome_death.mask(train, 0)),
        "known of no image of the split train": cohort.assign(outcome_death=cohort.outcome_death.mask(train)),
        "everybody in the split train has it": cohort.assign(outcome_death=cohort.outcome_death.mask(train, 1)).drop(
            columns="outcome_death_years"
        ),
    }
    for reason, changed in cases.items():
        rows = evaluate(changed, {0: features[0]})
        death = rows[rows.finding == "death"]
        assert set(death.reason) == {reason}
        assert death.value.isna().all()
        assert (death.n == 400).all()
        assert rows[rows.finding == "tube"].value.notna().any()
    # A test split in which nothing happens, or nothing is known, cannot be judged, but is not left out.
    for nothing in (cohort.outcome_death.mask(test, 0), cohort.outcome_death.mask(test)):
        rows = evaluate(cohort.assign(outcome_death=nothing).drop(columns="outcome_tube"), {0: features[0]})
        index = rows[rows.metric == "c_index"]
        assert len(index)
        assert index.value.isna().all()
        assert (index.positives == 0).all()


def test_why_outcomes_cannot_be_predicted_is_one_sentence(study, monkeypatch):
    _, cohort, features, _ = study
    without = cohort[[name for name in cohort if not name.startswith("outcome_")]]
    assert explain_no_outcomes(cohort) == ""
    assert explain_no_outcomes(without).startswith("the cohort has no outcomes: add columns such as outcome_death and")
    monkeypatch.setattr(prediction, "find_spec", lambda name: None)
    assert "pip install 'chexstudy[survival]'" in explain_no_outcomes(cohort)
    with pytest.raises(StudyError, match=r"a horizon is a number of years above 0, not -1.0\."):
        evaluate(cohort, features, horizons=(5.0, -1.0))
    with pytest.raises(StudyError, match="the cohort has no test split"):
        evaluate(cohort[cohort.split != "test"], features)
    fewer = make_features(cohort.iloc[:900], features[0].pooled[:900])
    with pytest.raises(StudyError, match="images have no frozen features"):
        evaluate(cohort, {0: fewer})
