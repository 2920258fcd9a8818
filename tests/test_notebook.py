import json
import os

import jupytext
import nbformat
import papermill
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.workflow.notebook import notebook_environment, start_notebook

SOURCE = """\
# %% [markdown]
# # A tiny notebook

# %% tags=["parameters"]
study = "tiny"  # name of the study
seed = 0  # seed
rate = 0.5  # a number

# %%
from chexstudy.workflow.notebook import start_notebook

run = start_notebook("01_tiny", globals(), folder={folder!r})

# %%
run.write_json("seen.json", [run.study, seed, rate])
"""


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "01_tiny.py"
    source.write_text(SOURCE.format(folder=str(tmp_path)))
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    return tmp_path


pytestmark = pytest.mark.usefixtures("opened_notebooks")


def start(folder, injected="", **values):
    namespace = {"study": "tiny", "seed": 0, "rate": 0.5, "In": ["", "seed = 0", injected]} | values
    return start_notebook("01_tiny", namespace, folder), namespace


def test_it_opens_the_run_of_the_study_and_a_whole_number_becomes_the_number_declared(folder, home, monkeypatch):
    monkeypatch.chdir(folder)
    run, namespace = start(folder, study="other", rate=1)
    assert run.folder == home / "runs" / "other"
    assert type(namespace["rate"]) is float
    assert os.environ["CHEXSTUDY_CWD"] == str(paths.REPOSITORY), "relative paths start at the checkout"


@pytest.mark.parametrize("values", [{"seed": "3"}, {"seed": 1.5}, {"rate": None}, {"study": 4}])
def test_a_value_edited_by_hand_is_held_to_its_type(folder, values):
    with pytest.raises(StudyError, match=f"parameter '{next(iter(values))}' of 01_tiny must be"):
        start(folder, **values)


@pytest.mark.parametrize("cell", ['# Parameters\nstudy = "tiny"\nsede = 3\n', 'study = "tiny"\nsede: int = 3\n'])
def test_a_name_that_is_not_declared_stops_however_it_came(folder, cell):
    with pytest.raises(StudyError, match=r"01_tiny has no parameter 'sede'.*did you mean 'seed'"):
        start(folder, injected=cell)
    with pytest.raises(StudyError, match="the parameters cell of 01_tiny does not set 'rate': put its line back"):
        start_notebook("01_tiny", {"study": "tiny", "seed": 0}, folder)
    # Put right and run again, in the same kernel; names of other cells are no parameters.
    right = cell.replace("sede", "seed")
    start(folder, In=[cell, "%matplotlib inline", right, "table = 3\nother = 4"])


def test_models_come_from_the_cache_and_nothing_reports_home_unless_asked(home, monkeypatch):
    environment = notebook_environment()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert environment["NUMBA_CACHE_DIR"].startswith(str(paths.cache()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLCONFIGDIR", "/mine")
    online = notebook_environment(online=True)
    assert online["HF_HUB_OFFLINE"] == online["TRANSFORMERS_OFFLINE"] == "0"
    assert online["MPLCONFIGDIR"] == "/mine"


def run_plainly(folder, **parameters):
    return papermill.execute_notebook(folder / "01_tiny.ipynb", folder / "out.ipynb", parameters, progress_bar=False)


def test_plain_papermill_runs_the_notebook_and_is_as_strict(folder, home):
    run_plainly(folder, study="foo", seed=7, rate=2)
    assert json.loads((home / "runs" / "foo" / "seen.json").read_text()) == ["foo", 7, 2.0]
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        run_plainly(folder, sede=7)
    sentence = "01_tiny has no parameter 'sede'; it takes study, seed, rate: did you mean 'seed'."
    assert caught.value.traceback == [f"StudyError: {sentence}"]
    assert not (home / "runs" / "tiny").exists()


def run_by_hand(folder, **edits):
    """What JupyterLab does with the notebook after somebody edited lines of its parameters cell."""
    notebook = nbformat.read(folder / "01_tiny.ipynb", as_version=4)
    for old, new in edits.values():
        assert old in notebook.cells[1].source
        notebook.cells[1].source = notebook.cells[1].source.replace(old, new)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()


def test_jupyterlab_runs_the_notebook_with_what_was_edited_by_hand_and_is_as_strict(folder, home):
    run_by_hand(folder, study=('"tiny"', '"mine"'), rate=("0.5", "2"))
    assert json.loads((home / "runs" / "mine" / "seen.json").read_text()) == ["mine", 0, 2.0]
    with pytest.raises(CellExecutionError) as caught:
        run_by_hand(folder, seed=("= 0  #", "= 0.5  #"))
    # What nbclient puts before it is the cell's source.
    shown = caught.value.traceback.rpartition("------\n")[2].strip()
    assert shown == ("StudyError: parameter 'seed' of 01_tiny must be a whole number (int) such as 0, not 0.5 (float).")
    assert not (home / "runs" / "tiny").exists()
