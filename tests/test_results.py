from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

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


def test_rows_are_completed_and_read_back_as_one_table(home):
    run = Run("test")
    add_results(run, row(value=np.nan, ci_low=np.nan, ci_high=np.nan, positives=0))
    add_results(run, pd.concat([row(task="retrieval"), row(task="retrieval", seed=1, reason="no text")]))
    table = read_results(run)
    assert list(table.columns) == COLUMNS
    assert table.study.tolist() == ["test"] * 3
    assert table.task.tolist() == ["retrieval", "zero_shot", "retrieval"], "by seed first"
    assert table.reason.tolist() == ["", "", "no text"]
    assert (table[["variant", "reference", "head", "setting", "group"]] == "").all(axis=None)
    assert table[["flops", "seconds"]].isna().all(axis=None)
    assert np.isnan(table.value[1]), "what could not be evaluated keeps its row"
    assert table.n[1] == 100
    pd.testing.assert_frame_equal(
        read_results(run, ["retrieval"]), table[table.task == "retrieval"].reset_index(drop=True)
    )
    as_one = pd.read_parquet(run.path("results"))
    pd.testing.assert_frame_equal(validate_results(as_one.sort_values(["seed", "task"])), table)


def test_a_task_measured_again_replaces_all_its_rows_and_leaves_other_tasks(home):
    run = Run("test")
    add_results(run, pd.concat([row(), row(seed=1), row(seed=2), row(task="retrieval")]))
    written = add_results(run, pd.concat([row(value=0.5), row(seed=1, value=0.6)]))
    assert written.value.tolist() == [0.5, 0.6]
    assert read_results(run, ["zero_shot"]).value.tolist() == [0.5, 0.6], "no seed of the older study is left"
    assert read_results(run).task.tolist() == ["retrieval", "zero_shot", "zero_shot"]


def _write_often(study, task):
    for number in range(50):
        add_results(Run(study), row(task=task, value=number))
        assert read_results(Run(study), [task]).value.tolist() == [number]


def test_two_processes_that_write_different_tasks_at_once_lose_nothing(home):
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_write_often, ["test"] * 2, ["zero_shot", "retrieval"])) == [None, None]
    assert read_results(Run("test")).value.tolist() == [49, 49]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (row(exposure="perhaps"), "exposure"),
        (row().drop(columns="n"), "lacks 'n'"),
        (row(colour="red"), "unknown column 'colour'"),
        (pd.concat([row(), row(value=0.1)]), "unique"),
    ],
)
def test_a_table_that_breaks_the_contract_is_refused(wrong, why):
    with pytest.raises(StudyError, match=f"breaks its contract: .*{why}"):
        validate_results(wrong.assign(study="test"))


def test_a_study_without_results_says_what_to_run(home):
    with pytest.raises(StudyError, match="05_compare_arms first"):
        read_results(Run("test"))


def test_a_damaged_table_is_refused_and_made_anew_by_its_step(home):
    run = Run("test")
    add_results(run, pd.concat([row(), row(task="retrieval")]))
    path = run.path("results/zero_shot.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StudyError, match="it was damaged or changed: run 05_compare_arms again, which makes it anew"):
        read_results(run)
    assert list(read_results(run, ["retrieval"]).task) == ["retrieval"]
    add_results(run, row())
    assert list(read_results(run).task) == ["retrieval", "zero_shot"]
