"""From kept scores to rows: every task is there, nothing is skipped silently, and what is current is not made again."""

from itertools import product

import numpy as np
import pytest
from conftest import make_tiny_study

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.image_text.evaluate import evaluate_arms
from chexstudy.evaluation.image_text.prompts import FAMILIES
from chexstudy.evaluation.robustness.report import RECALIBRATIONS, TASKS, measure_robustness, summarise_robustness
from chexstudy.evaluation.robustness.thresholds import RULES
from chexstudy.evaluation.scores import read_scores
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.training.arm_run import pretrain
from chexstudy.results import validate_results

_CONSTANTS = {"image_size": 36, "dim": 16, "max_tokens": 32, "batch_size": 16, "micro_batch": 16}
_CONSTANTS |= {"warm_up_epochs": 0, "subset_epochs": 0, "precision": "fp32"}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(tmp_path_factory.mktemp("home")))
        run = make_tiny_study()
        pretrain(run, "full", 0, PretrainingConfig.from_dict(_CONSTANTS), "cpu")
        evaluation = Evaluation(run, run.read_table("cohort.parquet"), open_pixel_store(run), resamples=20)
        assert set(evaluate_arms(evaluation, ["full"], [0], ["full"]).reference) == {""}
        yield evaluation


def test_every_task_has_its_rows_and_they_fit_the_results_table(evaluated):
    rows, curves = measure_robustness(evaluated, ["full"], [0], [0.1])
    rows = validate_results(rows)
    assert set(rows.task) == set(TASKS)
    families = rows[(rows.task == "prompt_family") & (rows.finding == "macro") & (rows.metric == "auroc")]
    assert set(families.setting) == set(FAMILIES)
    macro = rows[rows.finding == "macro"]
    for task, settings in (("operating_point", [rule.name for rule in RULES]), ("calibration", RECALIBRATIONS)):
        of_task = macro.loc[macro.task == task, ["head", "setting"]].itertuples(index=False, name=None)
        assert set(of_task) == set(product(("zero_shot", "linear_probe"), settings))
    assert set(rows.exposure) == {"held_out"}
    assert set(curves.columns) >= {"predicted", "observed", "ci_low", "n", "positives", "exposure"}
    table = summarise_robustness(rows)
    inverted = table.loc[("tiny/test", "held_out", "prompt_family", "inverted_findings", "published", ""), "full"]
    assert inverted.endswith("of 2")
    # What the scores did not change is read, not made again.
    path = evaluated.run.path("evaluation/full/robustness.parquet")
    before = path.stat().st_mtime_ns
    measure_robustness(evaluated, ["full"], [0], [0.1])
    assert path.stat().st_mtime_ns == before
    measure_robustness(evaluated, ["full"], [0], [0.2])
    assert path.stat().st_mtime_ns != before


def test_a_test_set_without_reports_is_classified_and_not_retrieved_from(evaluated):
    cohort = evaluated.cohort.copy()
    silent = cohort.index[cohort.split == "train"][:20]
    cohort.loc[silent, ["source", "split", "report"]] = ["silent", "test", ""]
    evaluation = Evaluation(evaluated.run, cohort, evaluated.store, resamples=20, probe=False)
    rows = evaluate_arms(evaluation, ["full"], [0], ["full"])
    judged_on = rows.groupby("task").data_set.agg(set)
    assert judged_on["zero_shot"] == {"tiny/test", "silent/test"}
    assert judged_on["retrieval"] == {"tiny/test"}


def test_scores_of_all_families_are_kept_on_validation_and_test(evaluated):
    place = {"arm": "full", "seed": 0}
    chosen = evaluated.run.read_json("evaluation/full/seed0/prompts.json")["chosen_on_validation"]
    for rows in (*evaluated.test_sets().values(), evaluated.validation):
        read = {
            task: read_scores(evaluated.run, rows, evaluated.findings, **place, task=task)
            for task in ("zero_shot", "linear_probe", *(f"zero_shot_{family}" for family in FAMILIES))
        }
        np.testing.assert_array_equal(read["zero_shot"], read[f"zero_shot_{chosen}"])
        assert np.isfinite(read["linear_probe"]).all()


def test_without_validation_each_missing_choice_is_a_row_with_its_reason(evaluated):
    cohort = evaluated.cohort[evaluated.cohort.split != "validate"]
    evaluation = Evaluation(evaluated.run, cohort, evaluated.store, resamples=20, probe=False)
    rows, curves = measure_robustness(evaluation, ["full"], [0], [])
    held = rows[(rows.task == "operating_point") & (rows.finding == "Mass") & (rows.metric == "sensitivity")]
    assert held.value.isna().all()
    assert held.reason.isin(["no positive in validation", "no negative in validation"]).all()
    recalibrated = rows[(rows.task == "calibration") & rows.setting.str.contains("platt") & (rows.finding != "macro")]
    assert recalibrated.value.isna().all()
    assert (recalibrated.reason == "no known label in validation").all()
    assert curves.empty


def test_wrong_input_is_one_sentence(evaluated):
    with pytest.raises(StudyError, match="no seeds to measure"):
        measure_robustness(evaluated, ["full"], [], [0.1])
    with pytest.raises(StudyError, match="run 05_compare_arms first"):
        measure_robustness(evaluated, ["curated"], [0], [0.1])
    with pytest.raises(StudyError, match="between 0 and 1"):
        measure_robustness(evaluated, ["full"], [0], [1.5])
    bare = Evaluation(evaluated.run, evaluated.cohort.drop(columns=["Mass", "Hernia"]), evaluated.store)
    assert all(table.empty for table in measure_robustness(bare, ["full"], [0], [0.1]))
