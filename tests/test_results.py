import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.results import COLUMNS, add_results, read_results, validate_results
from chexstudy.runs import Run


def row(**changes):
    values = {
        "arm": "curated",
        "seed": 0,
        "task": "zero_shot",
        "data_set": "phantom/test",
        "finding": "Mass",
        "metric": "auroc",
        "value": 0.8,
        "ci_low": 0.7,
        "ci_high": 0.9,
        "n": 100,
        "positives": 12,
        "exposure": "held_out",
    }
    return pd.DataFrame([values | changes])


def test_rows_are_completed_and_read_back(home):
    run = Run("test")
    add_results(run, row())
    table = read_results(run)
    assert list(table.columns) == COLUMNS
    assert table.study[0] == "test"
    assert table.setting[0] == ""
    assert np.isnan(table.flops[0])


def test_a_task_measured_again_replaces_all_its_rows_and_leaves_other_tasks(home):
    run = Run("test")
    add_results(run, pd.concat([row(), row(seed=1), row(seed=2), row(task="retrieval")]))
    table = add_results(run, pd.concat([row(value=0.5), row(seed=1, value=0.6)]))
    assert table[table.task == "zero_shot"].value.tolist() == [0.5, 0.6], "no seed of the older study is left"
    assert len(table[table.task == "retrieval"]) == 1


def test_the_table_does_not_depend_on_the_order_of_writing(home):
    one, other = Run("one"), Run("other")
    add_results(one, row())
    first = add_results(one, row(task="retrieval")).drop(columns="study")
    add_results(other, row(task="retrieval"))
    second = add_results(other, row()).drop(columns="study")
    pd.testing.assert_frame_equal(first, second)


def test_what_could_not_be_evaluated_is_kept_as_nan(home):
    table = add_results(Run("test"), row(value=np.nan, ci_low=np.nan, ci_high=np.nan, positives=0))
    assert np.isnan(table.value[0])
    assert table.n[0] == 100


@pytest.mark.parametrize(
    "wrong",
    [row(exposure="perhaps"), row().drop(columns="n"), row(colour="red"), pd.concat([row(), row(value=0.1)])],
    ids=["unknown exposure", "no n", "unknown column", "measured twice"],
)
def test_a_table_that_breaks_the_contract_is_refused(wrong):
    with pytest.raises(StudyError, match="breaks its contract"):
        validate_results(wrong.assign(study="test"))


def test_a_study_without_results_says_what_to_run(home):
    with pytest.raises(StudyError, match="05_compare_arms first"):
        read_results(Run("test"))


def test_an_unknown_or_missing_column_is_named():
    with pytest.raises(StudyError, match="unknown column 'colour'"):
        validate_results(row(colour="red", study="test"))
    with pytest.raises(StudyError, match="lacks 'n'"):
        validate_results(row(study="test").drop(columns="n"))


def test_a_damaged_table_is_told_and_begun_anew(home, capsys):
    run = Run("test")
    add_results(run, pd.concat([row(), row(task="retrieval")]))
    content = bytearray(run.path("results.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    run.path("results.parquet").write_bytes(content)
    with pytest.raises(
        StudyError, match="it was damaged or changed: run `chexstudy run all` again, which makes it ane"
    ):
        read_results(run)
    assert list(add_results(run, row()).task) == ["zero_shot"]
    assert "results.parquet of study 'test' is not what was written there" in capsys.readouterr().out
    assert list(read_results(run).task) == ["zero_shot"]
