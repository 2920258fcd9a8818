"""The ways into a notebook lead to the same numbers: the runner, plain papermill, and JupyterLab's "Run all Cells"."""

import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from chexstudy import paths
from chexstudy.results import read_results
from chexstudy.runs import Run
from chexstudy.workflow.parameters import read_parameters
from chexstudy.workflow.profiles import read_profile, resolve_parameters
from chexstudy.workflow.runner import list_notebooks, run_notebooks

# The debug profile with less of everything: each notebook passes through all of its cells.
TINY = {"pairs": 160, "resamples": 20}


def edit_by_hand(notebook, values):
    """Type other values into the parameters cell; the comments stay."""
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in values.items():
        line = rf"^({name}\b[^=]*= ).*?(?=  #)"
        cell.source, times = re.subn(line, lambda found, v=value: found[1] + repr(v), cell.source, flags=re.MULTILINE)
        assert times == 1, name


def run_in_jupyterlab(name, values):
    """What "Run all Cells" does: the cells of the paired notebook, in a kernel that starts in the notebook's folder."""
    notebook = nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    declared = read_parameters(paths.NOTEBOOKS / f"{name}.py")
    edit_by_hand(notebook, {name: value for name, value in values.items() if name in declared})
    NotebookClient(notebook, resources={"metadata": {"path": str(paths.NOTEBOOKS)}}).execute()


@pytest.fixture
def fresh(home, monkeypatch):
    """A home of its own, and nothing of the runner's environment in the kernels."""
    for name in ("CHEXSTUDY_HEADLESS", "CHEXSTUDY_CWD"):
        monkeypatch.delenv(name, raising=False)
    return home


def assert_same_files(one, other, *names):
    for name in names:
        assert Run(one).path(name).read_bytes() == Run(other).path(name).read_bytes(), name


@pytest.mark.slow
def test_papermill_from_the_checkout_builds_the_runners_cohort(fresh, tmp_path):
    run_notebooks(["01"], "debug", {"pairs": 60}, study="runner", quiet=True)
    command = [sys.executable, "-m", "papermill", "notebooks/01_build_cohort.ipynb", str(tmp_path / "out.ipynb")]
    command += ["-p", "study", "papermill", "-p", "pairs", "60", "-p", "image_size", "48"]
    subprocess.run(command, cwd=paths.REPOSITORY, check=True, capture_output=True)
    assert_same_files("runner", "papermill", "cohort.parquet", "quarantine.parquet", "truth.parquet")
    assert_same_files("runner", "papermill", "pixels/shard-00000.npy", "figures/composition.png")


@pytest.mark.slow
def test_jupyterlab_measures_what_the_runner_measures(fresh):
    run_notebooks(None, "debug", TINY, study="runner", quiet=True)
    before = {path.name: path.read_bytes() for path in paths.NOTEBOOKS.iterdir() if path.is_file()}
    declared = {name: read_parameters(paths.NOTEBOOKS / f"{name}.py") for name in list_notebooks()}
    for name, values in resolve_parameters(declared, read_profile("debug"), list(declared), TINY, "lab").items():
        run_in_jupyterlab(name, values)
    assert {path.name: path.read_bytes() for path in paths.NOTEBOOKS.iterdir() if path.is_file()} == before
    one, other = (read_results(Run(study)).drop(columns=["study", "seconds"]) for study in ("runner", "lab"))
    assert len(one) > 1000
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert_same_files(
        "runner", "lab", "pixels/shard-00000.npy", "embeddings/scoring/image.npy", "embeddings/scoring/text.npy"
    )
    assert_same_files("runner", "lab", "pretraining/curated/seed0/ledger.parquet")
    drawn = [sorted(os.listdir(Run(study).path("figures"))) for study in ("runner", "lab")]
    assert drawn[0] == drawn[1]
