"""Executed notebooks hold no absolute path, host or user, and no official name of an image or a patient."""

import getpass
import json
import os
import platform
import site
import sys
from pathlib import Path

import pandas as pd
import pytest

from chexstudy import paths
from chexstudy.pseudonyms import show_image_ids
from chexstudy.runs import Run
from chexstudy.workflow.executed import clean_notebook, hide_names
from chexstudy.workflow.runner import NotebookFailure, run_notebooks

NAMES = [f"mercy/p10/p1000003{number}/s50414267/x{number}.png" for number in range(3)]


@pytest.fixture
def run(home):
    run = Run("s")
    patients = [f"mercy/p1000003{number}" for number in range(3)]
    run.write_table(
        "cohort.parquet",
        pd.DataFrame({"image_id": NAMES, "patient_id": patients, "study_id": [f"mercy/s{n}" for n in "123"]}),
    )
    return run


def write_notebook(run, *outputs, parameters=None):
    typed = "".join(f"{name} = {value!r}\n" for name, value in (parameters or {}).items())
    cells = [
        {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": [typed], "outputs": []},
        {"cell_type": "code", "metadata": {}, "source": ['open(f"{folder}/a/b")'], "outputs": list(outputs)},
    ]
    papermill = {"input_path": "/home/x/in.ipynb", "output_path": "/home/x/out.ipynb", "parameters": parameters or {}}
    path = run.path("notebooks/x.ipynb")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {"papermill": papermill}, "nbformat": 4}))
    return path


def clean(run, text, parameters=None):
    path = write_notebook(run, {"output_type": "stream", "text": [text]}, parameters=parameters)
    clean_notebook(path, run)
    return json.loads(path.read_text())["cells"][1]["outputs"][0]["text"][0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{home}/runs/s/cohort.parquet is damaged", "runs/s/cohort.parquet is damaged"),
        ("File \x1b[32m{repository}/chexstudy/cli.py:12\x1b[39m", "File \x1b[32mchexstudy/cli.py:12\x1b[39m"),
        ("{site}/pandas/io.py:3: UserWarning", "site-packages/pandas/io.py:3: UserWarning"),
        ("PosixPath('{user}/data/x.csv')", "PosixPath('~/data/x.csv')"),
        ("/tmp/ipykernel_12/345.py:1: x", "…/345.py:1: x"),
        ("{home}/runs/s/images/webdataset/a.tar/p1/x.png", "images/…"),
        ("and/or 3/4 of text/html, <td>1</td>, 5 / 6, https://a.org/b/c, {{x}}/a/b, ./a/b", None),
    ],
)
def test_places_are_written_from_where_the_reader_stands(run, home, text, shown):
    places = {"home": home, "repository": paths.REPOSITORY, "site": site.getsitepackages()[0], "user": Path.home()}
    text = text.format(**places)
    assert clean(run, text) == (text if shown is None else shown)


def test_what_lies_below_data_root_and_where_it_lies_is_hidden(run):
    typed = {"data_root": "/srv/hospital/mercy"}
    assert clean(run, "no /srv/hospital/mercy/p1000003/x.png, in /srv/hospital/mercy", typed) == (
        "no data_root/…, in …/mercy"
    )
    notebook = json.loads(run.path("notebooks/x.ipynb").read_text())
    assert notebook["metadata"] == {"papermill": {"parameters": {"data_root": "…/mercy"}}}
    assert notebook["cells"][0]["source"] == ["data_root = '…/mercy'\n"]
    assert notebook["cells"][1]["source"] == ['open(f"{folder}/a/b")'], "the code stays"


def test_names_of_the_study_become_pseudonyms_or_nothing(run):
    shown = show_image_ids(run, NAMES)
    assert clean(run, f"KeyError: {NAMES[1]!r}") == f"KeyError: {shown[1]!r}"
    assert clean(run, f"<td>{NAMES[0]}</td><td>mercy/p10000030</td>") == f"<td>{shown[0]}</td><td>mercy/…</td>"
    cut_off = pd.DataFrame({"image_id": NAMES}).to_string(max_colwidth=22)
    assert "p10" in cut_off
    assert "p10" not in clean(run, cut_off)
    kept = "AUROC on mercy/test and mercy/test_enriched, mercy/p100 and the mercy/... of all"
    assert clean(run, kept).startswith("AUROC on mercy/test and mercy/test_enriched, mercy/p100 and")
    assert hide_names(run, f"no {NAMES[2]}.") == f"no {shown[2]}."


def test_drawn_names_stay_and_what_is_damaged_is_left(home):
    run = Run("drawn")
    table = pd.DataFrame({"image_id": ["phantom/1"], "patient_id": "phantom/p1", "study_id": "phantom/s1"})
    run.write_table("cohort.parquet", table)
    run.write_table("truth.parquet", table[["image_id"]])
    assert clean(run, "phantom/1 of phantom/p1") == "phantom/1 of phantom/p1"
    run.path("cohort.parquet").write_bytes(b"PAR1")
    assert clean(run, "StudyError: the cohort is damaged") == "StudyError: the cohort is damaged"
    path = write_notebook(run)
    path.write_text('{"cells": [')
    clean_notebook(path, run)
    assert path.read_text() == '{"cells": ['


def test_a_notebook_run_from_here_names_no_place_user_or_machine(run, tmp_path, capfd):
    folder = tmp_path / "hospital" / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles" / "demo.yaml").write_text("title: T\n")
    (folder / "01_leak.py").write_text(
        '# %% tags=["parameters"]\n'
        'study = "demo"  # the study\nseed = 0  # of it\ndata_root = ""  # where\n\n'
        "# %%\nimport warnings, pandas as pd\nfrom chexstudy import paths\n"
        "warnings.warn(f'look at {paths.home()}')\nprint(data_root, paths.REPOSITORY, pd.__file__)\n"
        "table = pd.read_parquet(paths.runs() / study / 'cohort.parquet')\ntable\n\n"
        "# %%\npd.Series(dtype=float)[table.image_id[0]]\n"
    )
    with pytest.raises(NotebookFailure) as failure:
        run_notebooks(
            ["01"], parameters={"data_root": str(tmp_path / "hospital")}, study="s", folder=folder, quiet=True
        )
    text = failure.value.executed.read_text()
    assert NAMES[0] not in str(failure.value)
    assert show_image_ids(run, NAMES)[0] in text
    for place in (tmp_path, paths.REPOSITORY, Path.home(), sys.prefix, os.path.dirname(os.__file__), "p1000003"):
        assert str(place) not in text, place
    for name in (f".{platform.node()}.", f"/{getpass.getuser()}/"):
        assert name not in text, name
