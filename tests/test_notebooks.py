"""The notebooks keep the rules of the house, are in step with their pairs, and run."""

import ast
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from official_layouts import write_layouts
from PIL import Image
from test_readme import TRAINED

from chexstudy import paths
from chexstudy.cli.main import main
from chexstudy.cohort.reports import split_sentences, training_text
from chexstudy.results import read_results
from chexstudy.runs import Run
from chexstudy.workflow.parameters import read_parameters
from chexstudy.workflow.profiles import list_profiles, read_profile, resolve_parameters
from chexstudy.workflow.runner import run_notebooks

SOURCES = sorted(paths.NOTEBOOKS.glob("*.py"))
PROFILES = {"debug", "demo", "nlm_tb", "nih", "paper", "paper_ssl", "warmed"}
LONGEST_FUNCTION = 10

each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
needs_notebooks = pytest.mark.skipif(not SOURCES, reason="no notebooks")


def read_cells(source):
    return jupytext.read(source, fmt="py:percent").cells


def code_cells(source):
    return [cell for cell in read_cells(source) if cell.cell_type == "code"]


def test_every_notebook_has_its_pair_and_nothing_is_left_over():
    assert [path.stem for path in SOURCES] == sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb"))
    assert [path.stem for path in SOURCES if not re.fullmatch(r"\d\d_[a-z]+(_[a-z]+)+", path.stem)] == []


@each_notebook
def test_both_halves_are_the_same_and_hold_no_outputs(source):
    twin = json.loads(source.with_suffix(".ipynb").read_text())
    assert list(twin["metadata"]) == ["kernelspec"]
    halves = [
        [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]
        for cells in (read_cells(source), twin["cells"])
    ]
    assert halves[0] == halves[1], "run `make sync`"
    assert [cell for cell in twin["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
    assert [cell for cell in twin["cells"] if set(cell["metadata"]) - {"tags"}] == []


@needs_notebooks
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_sync_leaves_the_committed_pairs_as_they_are(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for path in paths.NOTEBOOKS.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # In a fresh clone either half may be the newer one; the source has the last word here.
    for source in folder.glob("*.py"):
        os.utime(source)
    command = ["make", "-f", str(paths.REPOSITORY / "Makefile"), "sync", "STAMP=", f"BIN={Path(sys.executable).parent}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_parameter_has_one_default_in_all_notebooks():
    defaults = {}
    for source in SOURCES:
        for name, parameter in read_parameters(source).items():
            assert defaults.setdefault(name, parameter.default) == parameter.default, f"{name} in {source.stem}"


@each_notebook
def test_a_notebook_opens_with_its_title_and_its_parameters(source):
    title, parameters, *rest = read_cells(source)
    assert title.cell_type == "markdown"
    assert re.match(r"# \S", title.source)
    assert re.search(r"second|minute|hour", title.source), "the first cell says what the notebook costs"
    assert parameters.metadata.get("tags") == ["parameters"]
    names = [line.split("=")[0].split(":")[0].strip() for line in parameters.source.splitlines()]
    assert sorted(names) == sorted(set(names)), "a parameter is declared once"
    declared = read_parameters(source)
    # The cohort has a seed of its own: `-p seed 1` must change trainings and not, unseen, the patients too.
    seed = "cohort_seed" if source.stem == "01_build_cohort" else "seed"
    assert {"study": str, seed: int}.items() <= {name: parameter.type for name, parameter in declared.items()}.items()
    assert [name for name, parameter in declared.items() if not parameter.help] == []
    first_code = next(cell.source for cell in rest if cell.cell_type == "code")
    assert f'("{source.stem}", globals())' in first_code


@each_notebook
def test_papermill_lists_every_parameter(source):
    """`papermill NOTEBOOK --help-notebook` passes over a line with two equals signs, in its help too."""
    declared = read_parameters(source)
    listed = papermill.inspect_notebook(str(source.with_suffix(".ipynb")))
    assert {name: (ast.literal_eval(one["default"]), one["help"]) for name, one in listed.items()} == {
        name: (parameter.default, parameter.help) for name, parameter in declared.items()
    }


@each_notebook
def test_code_that_belongs_in_the_package_is_not_in_a_notebook(source):
    for cell in code_cells(source):
        lines = "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))
        tree = ast.parse(lines)
        # In f"{folder}/model" the second part begins with a slash, and the text does not.
        later_parts = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values[1:]
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name} belongs in the package"
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in later_parts:
                assert not node.value.startswith(("./", "../", "/", "runs/", "data/")), (
                    "paths come from chexstudy.paths"
                )


@each_notebook
def test_prose_comes_before_code_and_the_last_cells_assert_what_it_claims(source):
    kinds = [cell.cell_type for cell in read_cells(source)]
    assert kinds.count("markdown") >= 4
    runs_of_code = re.findall("c+", "".join(kind[0] for kind in kinds))
    assert max(map(len, runs_of_code)) <= 4
    last = [ast.walk(ast.parse(cell.source)) for cell in code_cells(source)[-3:]]
    assert any(isinstance(node, ast.Assert) for nodes in last for node in nodes)


@needs_notebooks
@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_says_what_it_costs_and_its_values_are_taken_by_notebooks(name):
    profile = read_profile(name)
    assert all((profile.title, profile.description, profile.cost))
    assert set(list_profiles()) == PROFILES
    declared = {source.stem: read_parameters(source) for source in SOURCES}
    values = resolve_parameters(declared, profile, list(declared), {}, name)
    assert all(given["study"] == name for given in values.values())


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory):
    """The home of a study on which every notebook was run, and the executed notebooks."""
    home = tmp_path_factory.mktemp("debug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(home))
        # Fewer pairs and resamples than the profile's: the same cells in half the time.
        given = {"pairs": 160, "batch_size": 32, "resamples": 20, "budgets": [0.3]}
        yield home, run_notebooks(None, "debug", given, study="debug")


@needs_notebooks
def test_the_debug_profile_runs_every_notebook(debug_run, monkeypatch):
    home, executed = debug_run
    monkeypatch.setenv("CHEXSTUDY_HOME", str(home))
    assert [path.stem for path in executed] == [source.stem for source in SOURCES]
    for path in executed:
        outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
        assert [output for output in outputs if output.output_type == "error"] == []
    run = Run("debug")
    results = read_results(run)
    assert set(results.task) >= {"zero_shot", "retrieval", "budget_zero_shot", "budget_saving", "self_supervision"}
    measured = results[results.metric.str.startswith("auroc") & results.value.notna()]
    assert (measured.ci_low.isna() | (measured.ci_low <= measured.value)).all()
    assert isinstance(run.read_table("cohort.parquet"), pd.DataFrame)
    drawn = {path.stem for path in run.path("figures").iterdir()}
    for name in drawn:
        assert {path.suffix for path in run.path("figures").glob(f"{name}.*")} >= {".png", ".pdf", ".json"}


@needs_notebooks
def test_executed_notebooks_name_no_place_of_this_machine(debug_run):
    home, executed = debug_run
    for path in executed:
        text = path.read_text(encoding="utf-8")
        for place in (f"{home}/", f"{paths.REPOSITORY}/", f"{Path.home()}/", f"{sys.prefix}/", f".{platform.node()}."):
            assert place not in text, (path.name, place)


@needs_notebooks
def test_no_sentence_of_a_report_is_in_what_shows_written_ones(debug_run):
    home, executed = debug_run
    reports = pd.read_parquet(home / "runs" / "debug" / "cohort.parquet").report
    sentences = {one for report in reports for one in split_sentences(training_text(report)) if len(one.split()) > 4}
    notebook = next(path for path in executed if path.stem == "15_write_reports")
    for path in (notebook, *(home / "runs" / "debug" / "figures").glob("report_*.json")):
        text = path.read_text(encoding="utf-8")
        assert [sentence for sentence in sentences if sentence in text] == [], path.name
    assert len(sentences) > 50


@needs_notebooks
def test_commands_of_the_readme_work_on_a_trained_study_as_typed(debug_run, monkeypatch, capsys):
    home, _ = debug_run
    monkeypatch.setenv("CHEXSTUDY_HOME", str(home))
    shutil.copytree(home / "runs" / "debug", home / "runs" / "demo")
    for command in TRAINED:
        status = main(shlex.split(command)[1:])
        said = capsys.readouterr()
        assert status == 0, (command, said.err)
        assert said.out.strip(), command


@needs_notebooks
@pytest.mark.slow
def test_a_cohort_without_labels_runs_every_notebook(home):
    table = pd.DataFrame({"file": [f"{number}.png" for number in range(160)]})
    table["patient"] = [number // 2 for number in range(160)]
    table["report"] = [f"Heart size {number % 7}. Lungs {number % 5}." for number in range(160)]
    (home / "mine").mkdir()
    generator = np.random.default_rng(0)
    for name in table.file:
        Image.fromarray(generator.integers(0, 255, (48, 48), dtype=np.uint8)).save(home / "mine" / name)
    table.to_csv(home / "mine" / "table.csv", index=False)
    columns = "columns: {image_path: file, patient_id: patient, report: report}\n"
    (home / "mine" / "cohort.yaml").write_text("table: table.csv\nsource: mine\n" + columns)
    given = {"source": "folder", "data_root": str(home / "mine"), "super_batch": 60}
    assert len(run_notebooks(None, "debug", given, study="mine")) == len(SOURCES)
    run = Run("mine")
    assert set(read_results(run, ["curation"]).group) == {"all", "report", "density"}
    assert {"composition", "radiographs", "embedding", "density"} <= {
        path.stem for path in run.path("figures").iterdir()
    }


@needs_notebooks
@pytest.mark.slow
def test_public_data_sets_in_their_layouts_are_one_study(home):
    manifest = write_layouts(home / "runs" / "cohorts" / "radiographs")
    given = {"source": "joint", "data_root": str(manifest)}
    names = [path.stem for path in SOURCES[:6]]
    assert len(run_notebooks(names, "debug", given, study="cohorts")) == 6
    judged_on = read_results(Run("cohorts")).groupby("task").data_set.agg(set)
    sets = {f"{name}/test" for name in ("chexpert_5x200", "cxr_lt_2023", "nlm_tb", "rsna_pneumonia", "vindr_cxr")}
    assert judged_on["zero_shot"] == sets
    # No report came with the images of CXR-LT.
    assert judged_on["retrieval"] == sets - {"cxr_lt_2023/test"}
