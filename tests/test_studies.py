import json
import os
import shutil
import subprocess
import sys
from functools import cache

import pandas as pd
import pytest

from chexstudy import paths
from chexstudy.cli.main import main
from chexstudy.errors import StudyError
from chexstudy.results import add_results
from chexstudy.runs import Run
from chexstudy.workflow import locks, runner
from chexstudy.workflow.locks import hold_study
from chexstudy.workflow.runner import run_notebooks
from chexstudy.workflow.studies import OTHER_CODE, OTHER_INPUTS, find_stale_artifacts, list_studies

READ = cache(runner.read_parameters)


@pytest.fixture(autouse=True)
def executed(home, monkeypatch):
    """Notebooks are not executed but leave a file, and are read once."""
    monkeypatch.setattr(runner, "read_parameters", READ)
    monkeypatch.setattr(runner, "_execute", lambda source, run, *_, **__: run.write_json(f"{source.stem}.json", {}))


def make_study(name, pairs=4, auroc=0.75, **parameters):
    run_notebooks(["01", "02", "04"], "debug", parameters, study=name)
    run = Run(name)
    cohort = pd.DataFrame({"image_id": [f"drawn/{number}" for number in range(pairs)], "source": "drawn"})
    run.write_table("cohort.parquet", cohort)
    run.write_json("pretraining/full/seed1/compute.json", {"flops": 1})
    run.record("pretraining/full/seed1/compute.json", {"arm": "full"}, ("cohort.parquet",), 1)
    place = {"arm": "full", "task": "zero_shot", "data_set": "drawn/test", "setting": "chosen", "exposure": "held_out"}
    values = [("macro", -1, auroc, auroc - 0.1, 0.9), ("Mass", -1, 0.5, 0.4, 0.6), ("macro", 1, 0.1, 0.0, 0.2)]
    rows = pd.DataFrame(values, columns=["finding", "seed", "value", "ci_low", "ci_high"]).assign(metric="auroc")
    add_results(run, rows.assign(**place, n=3, positives=-1))
    return run


def lines_of(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_list_tells_profile_cohort_notebooks_state_and_size(capsys):
    assert main(["list"]) == 0
    assert "There is no study at" in capsys.readouterr().out
    make_study("one", pairs=1234)
    Run("two").write_json("made_by_hand.json", {})
    paths.cache().mkdir()
    capsys.readouterr()
    assert main(["list"]) == 0
    head, one, two = lines_of(capsys)
    assert head == ["study", "profile", "cohort", "notebooks", "state", "size", "last", "change"]
    assert one[:7] == ["one", "debug", "1,234", "images,", "drawn", "1-2", "4"]
    assert two[0] == "two"
    with hold_study(Run("one"), "a run"):
        assert main(["list"]) == 0
    assert "running" in lines_of(capsys)[1]
    run_notebooks(["02"], parameters={"warm_up_epochs": 3}, study="one", change=["warm_up_epochs"])
    capsys.readouterr()
    assert main(["list"]) == 0
    assert "stale" in lines_of(capsys)[1]


def test_the_list_tells_what_failed_and_what_was_done_before(capsys, monkeypatch):
    make_study("one")

    def fail(*_, **__):
        raise StudyError("the data is not there: put it there.")

    monkeypatch.setattr(runner, "_execute", fail)
    for number in ("04", "05"):
        with pytest.raises(StudyError):
            run_notebooks([number], study="one")
    capsys.readouterr()
    assert main(["list"]) == 0
    assert lines_of(capsys)[1][5:11] == ["1-2", "4", "04", "failed,", "05", "failed"]


def test_artifacts_of_other_code_or_inputs_are_stale(monkeypatch):
    run = make_study("one")
    record = json.loads(run.path("study.json").read_text())
    assert record["profile"]["name"] == "debug"
    assert record["notebooks"]["02_embed_pairs"]["values"]["warm_up_epochs"] == 1
    assert find_stale_artifacts(run) == {}
    run.write_table("cohort.parquet", pd.DataFrame({"image_id": ["x"], "source": "drawn"}))
    assert find_stale_artifacts(run) == {"pretraining/full/seed1/compute.json": OTHER_INPUTS}
    monkeypatch.setattr("chexstudy.workflow.studies.hash_closure", lambda module: "another")
    assert find_stale_artifacts(run) == {"pretraining/full/seed1/compute.json": OTHER_CODE}


def test_show_tells_what_a_study_is_and_what_is_stale(capsys):
    run = make_study("one", seeds=2)
    run_notebooks(["02"], parameters={"warm_up_epochs": 3}, study="one", change=["warm_up_epochs"])
    run.write_table("cohort.parquet", pd.DataFrame({"image_id": ["x"], "source": "drawn"}))
    capsys.readouterr()
    assert main(["show", "one"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert shown.startswith(f"Study 'one' in {run.folder}, ")
    assert "Profile: debug\n  seeds = 2\n  warm_up_epochs = 3\nCohort: 1 images, drawn\n" in shown
    assert ["02_embed_pairs", "done"] in lines
    assert ["04_pretrain_curated", "done", "stale:", "warm_up_epochs", "changed"] in lines
    assert ["full", "1"] in lines
    assert f"Stale, {OTHER_INPUTS}: pretraining/full/seed1/compute.json\n" in shown


@pytest.mark.parametrize("verb", ["list", "show one"])
def test_a_damaged_study_can_still_be_looked_at(capsys, verb):
    run = make_study("one")
    for name in ("cohort.parquet", "study.json", "timings/02_embed_pairs.json"):
        run.path(name).write_bytes(b"{")
    shutil.rmtree(run.path("provenance"))
    capsys.readouterr()
    status = main(verb.split())
    shown = capsys.readouterr()
    assert (status == 0 and "damaged" in shown.out) or (status == 2 and shown.err.count("\n") == 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("show no", "there is no study 'no'; there are one."),
        ("rm no --yes", "there is no study 'no'; there are one."),
        ("rm .. --yes", "study must be a plain folder name such as 'demo', not '..'."),
        ("rm ../one --yes", "study must be a plain folder name such as 'demo', not '../one'."),
        ("rm .cache --yes", "study must be a plain folder name such as 'demo', not '.cache'."),
        ("rm linked --yes", "is a link to a folder elsewhere: remove the link and that folder yourself."),
        ("rm one", "is only removed when asked for: add --yes."),
        ("compare-studies one no", "there is no study 'no'"),
        ("compare-studies one one --task x", "there are no results of 'x' here, but of zero_shot."),
        ("compare-studies one one --out x.txt", "x.txt is neither CSV nor parquet"),
    ],
)
def test_a_mistake_is_one_sentence_and_removes_nothing(home, capsys, monkeypatch, arguments, sentence):
    run = make_study("one")
    if "linked" in arguments:
        (home / "elsewhere").mkdir()
        (home / "runs" / "linked").symlink_to(home / "elsewhere")
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    capsys.readouterr()
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert run.has("cohort.parquet")


def test_rm_asks_and_removes_only_what_was_agreed_to(home, capsys, monkeypatch):
    make_study("one")
    make_study("two")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, left in (("", ["one", "two"]), ("y", ["two"])):
        asked = []
        monkeypatch.setattr(
            "builtins.input", lambda question, answer=answer, asked=asked: asked.append(question) or answer
        )
        assert main(["rm", "one"]) == 0
        assert asked[0].startswith("Remove study 'one' (4 images, drawn, 3 notebooks, ")
        assert list_studies() == left
    assert [one.name for one in (home / "runs").iterdir()] == ["two"]


def test_rm_refuses_a_study_at_work(capsys, monkeypatch):
    make_study("one")
    monkeypatch.setattr(locks, "_SECONDS_OF_PATIENCE", 0.2)
    program = "import time; from chexstudy.workflow.locks import *\n"
    program += "with hold_study(Run('one'), 'a run'): print(1, flush=True); "
    with subprocess.Popen([sys.executable, "-c", program + "time.sleep(60)"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        capsys.readouterr()
        assert main(["rm", "one", "--yes"]) == 2
        assert capsys.readouterr().err.startswith(f"study 'one' is in use by a run (process {process.pid}, since ")
        process.kill()
    assert Run("one").has("cohort.parquet")


def test_compare_studies_tells_what_differs_and_lays_results_side_by_side(home, capsys, monkeypatch):
    make_study("one")
    make_study("two", pairs=6, auroc=0.8, super_batch=60)
    monkeypatch.setenv("CHEXSTUDY_CWD", str(home))
    capsys.readouterr()
    assert main(["compare-studies", "one", "two", "--out", "both.csv"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["what", "one", "two"]
    assert ["super_batch", "120", "60"] in lines
    assert any(line[:3] == ["cohort", "4", "images,"] for line in lines)
    assert not any(line[:1] in (["profile"], ["code"], ["warm_up_epochs"]) for line in lines)
    values = ["0.750", "[0.650,", "0.900]", "0.800", "[0.700,", "0.900]", "+0.050"]
    assert lines[-2] == ["full", "drawn/test", "auroc", *values]
    table = pd.read_csv(home / "both.csv")
    assert len(table) == 3
    assert table[table.finding == "Mass"].difference.tolist() == [0.0]
    assert main(["compare-studies", "one", "one"]) == 0
    assert "the same profile, parameters, cohort and code" in capsys.readouterr().out


def test_results_are_shown_by_task_and_exported_whole(home, capsys, monkeypatch):
    make_study("one")
    monkeypatch.setenv("CHEXSTUDY_CWD", str(home))
    capsys.readouterr()
    assert main(["results", "--study", "one", "--csv", "all.csv"]) == 0
    assert ["zero_shot", "1", "1", "2", "3"] in lines_of(capsys)
    assert pd.read_csv(home / "all.csv").value.tolist() == [0.5, 0.75, 0.1]
    for more, value in (([], ["0.750", "[0.650,", "0.900]"]), (["--finding", "Mass"], ["0.500", "[0.400,", "0.600]"])):
        assert main(["results", "--study", "one", "--task", "zero_shot", *more]) == 0
        assert lines_of(capsys) == [["arm", "value"], ["full", *value]]
    assert main(["results", "--study", "one", "--finding", "Edema"]) == 2
    assert capsys.readouterr().err == "there are no results of 'Edema' here, but of Mass, macro.\n"
