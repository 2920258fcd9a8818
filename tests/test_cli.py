import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from chexstudy import paths
from chexstudy.cli import doctor
from chexstudy.cli.main import main
from chexstudy.cohort.table import write_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run

NOTEBOOK = """\
# %% tags=["parameters"]
study = "x"  # name of the study
seed = 0  # seed of everything
fate = "end well"  # what happens

# %%
import json, os
from pathlib import Path

from chexstudy.errors import StudyError

if fate == "user":
    raise StudyError("the data is not there: put it there.")
if fate == "bug":
    {}["key"]
figures = Path(os.environ["CHEXSTUDY_HOME"]) / "runs" / study / "figures"
figures.mkdir(exist_ok=True)
(figures / "NAME.json").write_text(json.dumps({"caption": f"Drawn with seed {seed}."}))
(figures / "NAME.png").write_text("a picture")
(figures / "NAME.pdf").write_text("a picture")
(figures / "NAME.txt").write_text("no figure")
"""
VERBS = ["run", "cohort", "embed", "curate", "why", "pretrain", "evaluate", "figures", "release"]
VERBS += [
    "check-golden",
    "doctor",
    "plan-labels",
    "list",
    "show",
    "rm",
    "compare-studies",
    "results",
    "regimes",
    "advise",
]
ACTIONS = [["cohort", action] for action in ("build", "check", "convert", "export", "show")]
ACTIONS += [["evaluate", "compare"], ["evaluate", "reports"]]


@pytest.fixture
def notebooks(tmp_path, monkeypatch, home):
    """A checkout whose notebooks have the names of the real ones and take no time."""
    folder = tmp_path / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles" / "demo.yaml").write_text("title: Demo\ncost: nothing\ndefaults: {seed: 3}\n")
    (folder / "profiles" / "nih.yaml").write_text("title: NIH\ndefaults: {seed: 4}\n")
    for name in (path.stem for path in paths.NOTEBOOKS.glob("0[1-6]_*.py")):
        (folder / f"{name}.py").write_text(NOTEBOOK.replace("NAME", name))
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    monkeypatch.setattr(paths, "PROFILES", folder / "profiles")
    return folder


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS), *ACTIONS], ids=" ".join)
def test_every_help_says_what_it_does_gives_an_example_and_names_what_it_writes(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*verb, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert max(map(len, shown.splitlines())) <= 120
    if verb in [["cohort"], []]:
        assert all(name in shown for name in (VERBS if not verb else ("build", "check", "convert", "export", "show")))
    else:
        assert f"chexstudy {' '.join(verb)}" in shown.partition("example")[2]
        assert "writes: " in shown


def test_help_is_there_at_once(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: chexstudy ")
    start = time.monotonic()
    program = (
        "import sys; from chexstudy.cli.main import build_parser; build_parser().format_help(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5
    assert not {"numpy", "pandas", "torch", "papermill", "jupytext"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("rum all", "doctor: did you mean 'run'; see `chexstudy --help`."),
        ("run", "chexstudy run: say which notebook, by name or number, or all; see `chexstudy run --help`."),
        ("run all 02", "chexstudy run: all stands for every notebook: name no other beside it; see"),
        ("curate --ids i.parquet", "chexstudy curate: --ids has no use without --embeddings; see"),
        ("curate --embeddings E.npy --out s.parquet", "chexstudy curate: --embeddings needs --ids; see"),
        ("curate --embeddings E.npy --ids i.parquet", "chexstudy curate: --embeddings needs --out; see"),
        (
            "curate --embeddings E.npy --ids i --out s --study demo",
            "chexstudy curate: --study has no use with --embeddings; see",
        ),
        (
            "curate --embeddings E.npy --ids i --out s --floor sex=F:1x",
            "--floor needs --table, which says who is in which group; see",
        ),
        ("curate --embeddings E.npy --ids i --out s --report", "--report needs --table, which says who"),
        ("curate --report --study demo --keep 0.5", "--keep has no use with --report of a study: it takes --study"),
        ("curate --keep half", "argument --keep: invalid float value: 'half'; see"),
        ("why", "chexstudy why: the following arguments are required: IMAGE_ID; see"),
        (
            "run 01 --profil demo",
            "unrecognised argument '--profil': did you mean '--profile'; see `chexstudy run --help`.",
        ),
        (
            "run all --data-root x",
            "unrecognised argument '--data-root': what notebooks take is given as `-p name value`; see",
        ),
        ("run 01 -p seed=3", "chexstudy run: -p takes a name and a value, for example `-p seed 3`; see"),
        ("cohort", "chexstudy cohort: the following arguments are required: ACTION; see"),
        ("evaluate compare full", "chexstudy evaluate compare: the following arguments are required: B; see"),
        (
            "evaluate compere a b",
            "evaluate: ACTION cannot be 'compere'; it is one of compare, reports: did you mean 'compare'; see",
        ),
        ("evaluate compare a b --metric f1", "--metric cannot be 'f1'; it is one of auroc, auprc; see"),
        ("evaluate compare a b --resample 5", "unrecognised argument '--resample': did you mean '--resamples'; see"),
        ("advise", "chexstudy advise: give either --study, or --embeddings with --text; see"),
        ("advise --study demo --text T.npy", "chexstudy advise: --text has no use with --study; see"),
        ("check-golden", "chexstudy check-golden: the following arguments are required: FILE.npz; see"),
        ("doctor now", "chexstudy doctor: unrecognised argument 'now'; see `chexstudy doctor --help`."),
    ],
)
def test_a_mistyped_command_is_one_sentence_and_status_2(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "all", "--profile", "dmo"], "there is no profile 'dmo'; the profiles are demo, nih: did you"),
        (["run", "1", "--study", ""], "study must be a plain folder name such as 'demo', not ''."),
        (["run", "all", "-p", "seeed", "1"], "the study has no parameter 'seeed'; it takes"),
        (
            ["run", "1", "-p", "seed", "one"],
            "parameter 'seed' of 01_build_cohort must be a whole number (int) such as 0",
        ),
        (["run", "9"], "there is no notebook '9'"),
        (["cohort", "check", "no.parquet"], "there is no cohort table at"),
        (["cohort", "show", "no"], "study 'no' has no cohort.parquet yet: run 01_build_cohort first."),
        (["figures", "--study", "no"], "no notebook of study 'no' was run yet"),
        (["run", "01", "9"], "there is no notebook '9'"),
        (["curate", "--report", "--study", "no"], "study 'no' has no cohort.parquet yet: run 01_build_cohort first."),
        (["curate", "--report", "no/audit.parquet"], "there is no folder "),
        (["why", "x/1", "--study", "no"], "study 'no' has no cohort.parquet yet: run 01_build_cohort first."),
        (
            ["evaluate", "compare", "full", "curated", "--study", "no"],
            "study 'no' has no cohort.parquet yet: run 01_build_cohort first.",
        ),
        (["evaluate", "compare", "no.csv", "full", "--labels", "no.csv"], "there is no table "),
        (["evaluate", "compare", "full", "curated", "--out", "x.txt"], "x.txt is neither CSV nor parquet: give"),
        (["check-golden", "no.npz"], "there is no file of golden numbers at"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_status_2(notebooks, capsys, arguments, sentence):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(sentence)
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_debug_shows_where_a_mistake_was_noticed(notebooks):
    for arguments in (["--debug", "run", "9"], ["run", "9", "--debug"]):
        with pytest.raises(StudyError):
            main(arguments)


@pytest.mark.parametrize(("fate", "status", "words"), [("user", 2, "the data is not there"), ("bug", 1, "KeyError")])
def test_a_notebook_that_stops_is_one_sentence_and_a_path(notebooks, capsys, fate, status, words):
    assert main(["run", "01", "-p", "fate", fate]) == status
    first, second = capsys.readouterr().err.splitlines()
    assert words in first
    assert second.endswith("01_build_cohort.failed.ipynb")


_SEVEN = {"seed": "7", "data_root": "5"}
_FOLDER = {"source": "folder", "data_root": "d", "image_size": "64"}
_BUILD = ["01_build_cohort"]


@pytest.mark.parametrize(
    ("command", "notebooks", "profile", "study", "parameters"),
    [
        ("run all --profile p.yaml", None, "p.yaml", None, {}),
        ("run 05 03_watch_prototypes -p seed 7 -p data_root 5", ["05", "03_watch_prototypes"], None, None, _SEVEN),
        ("embed --study s", ["02_embed_pairs"], None, "s", {}),
        ("curate -p seed 5", ["03_watch_prototypes"], None, None, {"seed": "5"}),
        ("pretrain --profile nih", ["04_pretrain_curated"], "nih", None, {}),
        ("evaluate", ["05_compare_arms", "06_long_tail"], None, None, {}),
        ("cohort build", _BUILD, None, None, {}),
        ("cohort build --source folder --data-root d --size 64 --study own", _BUILD, None, "own", _FOLDER),
        # Real images do not land in the default study, and are built with the profile of their name if there is one.
        ("cohort build --source folder --data-root d --size 64", _BUILD, None, "folder", _FOLDER),
        ("cohort build --source nih", _BUILD, "nih", "nih", {"source": "nih"}),
    ],
)
def test_a_verb_runs_its_notebooks(home, monkeypatch, command, notebooks, profile, study, parameters):
    asked = []
    monkeypatch.setattr("chexstudy.workflow.runner.run_notebooks", lambda *given, **more: asked.append((given, more)))
    assert main([*command.split(), "--online", "--quiet", "--change", "a,b", "--change", "c"]) == 0
    more = {"study": study, "change": ["a", "b", "c"], "from_text": True, "online": True, "quiet": True}
    assert asked == [((notebooks, profile, parameters), more)]


def test_list_shows_the_parameters_and_runs_nothing(notebooks, home, capsys):
    assert main(["run", "04", "--list"]) == 0
    assert "  seed = 0\n      a whole number (int); seed of everything\n" in capsys.readouterr().out
    assert main(["run", "all", "--list"]) == 0
    everything = capsys.readouterr().out
    assert main(["run", "--list"]) == 0
    assert capsys.readouterr().out == everything
    names, _, profiles = everything.partition("\nprofiles (--profile)\n")
    assert [line for line in names.splitlines() if line[0] != " "] == sorted(
        path.stem for path in notebooks.glob("*.py")
    )
    assert profiles == "  demo  Demo; nothing\n  nih   NIH\n"
    assert not (home / "runs").exists()


def test_sources_are_listed_and_another_is_refused(home, capsys):
    assert main(["cohort", "build", "--source", "nhi"]) == 2
    assert "no source named 'nhi': did you mean 'nih'; `chexstudy cohort sources` lists" in capsys.readouterr().err
    assert main(["cohort", "sources"]) == 0
    listed = capsys.readouterr().out
    assert "NIH ChestX-ray14" in listed
    assert max(map(len, listed.splitlines())) < 120
    assert main(["cohort", "sources", "mimic_cxr"]) == 0
    told = capsys.readouterr().out
    assert "options: labels: chexpert | negbio | gold" in told
    assert "cxr_lt_2023" in told
    assert main(["cohort", "sources", "folder"]) == 0


def test_evaluate_runs_its_two_notebooks_and_figures_draws_them_again(notebooks, home, capsys):
    assert main(["evaluate", "--study", "s", "-p", "seed", "4"]) == 0
    executed = sorted(path.stem for path in Run("s").path("notebooks").iterdir())
    assert executed == ["05_compare_arms", "06_long_tail"]
    Run("s").path("figures/06_long_tail.json").unlink()
    assert main(["figures", "--study", "s", "--copy-to", str(home / "gallery")]) == 0
    assert Run("s").has("figures/06_long_tail.json")
    files = [f"{name}{kind}" for name in executed for kind in (".json", ".pdf", ".png")]
    assert sorted(path.name for path in (home / "gallery").iterdir()) == [*files, "README.md"]
    assert (home / "gallery" / "README.md").read_text().count("Drawn with seed 4.") == 2
    assert "2 figures in" in capsys.readouterr().out


# --- evaluate compare -------------------------------------------------------------------------------------------------


@pytest.fixture
def scored_files(home, monkeypatch):
    """Labels of 80 images of 40 patients, and the scores of a better and a worse model, in files."""
    monkeypatch.setenv("CHEXSTUDY_CWD", str(home))
    generator = np.random.default_rng(0)
    labels = pd.DataFrame({"image_id": np.arange(100, 180), "patient_id": np.arange(80) // 2})
    labels["Mass"], labels["Edema"] = (generator.random(80) < 0.4).astype(int), 0
    for name, strength in (("good", 4.0), ("bad", 0.2)):
        scores = strength * labels.Mass + generator.normal(size=80)
        labels[["image_id"]].assign(Mass=scores, Edema=scores).to_csv(home / f"{name}.csv", index=False)
    labels.to_csv(home / "labels.csv", index=False)
    return home


def test_evaluate_compare_prints_a_table_and_what_it_means(scored_files, capsys):
    command = ["evaluate", "compare", "good.csv", "bad.csv", "--labels", "labels.csv", "--resamples", "200"]
    assert main([*command, "--out", "table.csv"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["finding", "n", "positives", "patients", "good", "bad", "difference", "p", "p", "(Holm)"]
    assert lines[1][:3] == ["Mass", "80", str(pd.read_csv(scored_files / "labels.csv").Mass.sum())]
    assert lines[1][-4:] == ["<", "0.001", "<", "0.001"]
    assert "not evaluable (no positives): Edema" in shown
    assert "AUROC of good minus bad, mean of 1 findings: +0." in shown
    assert "80 images of 40 patients, 1 seed a side" in shown
    assert "p DeLong's for patients with several images" in shown
    table = pd.read_csv(scored_files / "table.csv")
    assert f"{table.difference[0]:+.3f} (" in shown
    assert main(command) == 0
    assert capsys.readouterr().out == shown.replace(f"written to {scored_files / 'table.csv'}\n", "")


def test_evaluate_compare_refuses_what_does_not_pair_in_one_sentence(scored_files, capsys):
    part = pd.read_csv(scored_files / "bad.csv").iloc[:60]
    part.to_csv(scored_files / "part.csv", index=False)
    command = ["evaluate", "compare", "good.csv", "part.csv", "--labels", "labels.csv", "--resamples", "100"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "were not scored on the same images (80 and 60, 60 of them shared by all)" in error
    assert error.count("\n") == 1
    assert main([*command, "--shared-only"]) == 0
    assert "20 images that only one of them scored were left out." in capsys.readouterr().out


def make_cohort():
    names = {"image_id": ["s/1", "s/2", "s/3"], "patient_id": ["s/a", "s/a", "s/b"], "image_path": ["1.png"] * 3}
    reports = {"report": ["Clear.", " ", "Effusion."], "report_origin": ["written", "none", "written"]}
    labels = {"Edema": [0, None, -1], "Pleural Effusion": [0, 1, 1]}
    cohort = pd.DataFrame(names | {"split": ["train", "train", "test"], "study_id": ["s/a1", "s/a2", "s/b1"]})
    return cohort.assign(source="s", view="PA", sex="F", age_years=50.0, **reports, **labels)


def make_whole_cohort():
    """A cohort with both classes in every split."""
    numbers = range(6)
    columns = {"patient_id": [f"s/p{number}" for number in numbers], "image_id": [f"s/{number}" for number in numbers]}
    splits = ["train", "train", "validate", "validate", "test", "test"]
    cohort = pd.concat([make_cohort()] * 2, ignore_index=True)
    return cohort.assign(**columns, split=splits, Edema=[0, 1] * 3, report="Clear.")


def test_cohort_check_refuses_what_a_run_would_stop_at(tmp_path, capsys):
    write_cohort(make_cohort(), tmp_path / "short.parquet")
    assert main(["cohort", "check", str(tmp_path / "short.parquet")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("no image is in the split validate, which training or evaluation needs: give")
    assert second.startswith("no finding is both present and absent in the split test, so nothing can be measured")


def test_a_cohort_is_named_by_its_study_its_folder_or_its_table(home, capsys):
    table = write_cohort(make_whole_cohort(), Run("mine").path("cohort.parquet"))
    shown = set()
    for named in ("mine", str(table.parent), str(table)):
        assert main(["cohort", "check", named]) == 0
        assert f"{named} keeps the contract: 6 images of 6 patients, 2 findings" in capsys.readouterr().out
        assert main(["cohort", "show", named]) == 0
        shown.add(capsys.readouterr().out)
    assert len(shown) == 1
    assert main(["cohort", "check", "other"]) == 2
    assert capsys.readouterr().err == "study 'other' has no cohort.parquet yet: run 01_build_cohort first.\n"


def test_cohort_check_names_row_and_column_of_a_bad_label(tmp_path, capsys):
    make_cohort().assign(Edema=[0, 2, 1]).to_parquet(tmp_path / "bad.parquet")
    assert main(["cohort", "check", str(tmp_path / "bad.parquet")]) == 2
    assert "row 1, column 'Edema' holds 2; a label is 1 (present)" in capsys.readouterr().err
    (tmp_path / "none.parquet").write_text("<html>")
    assert main(["cohort", "check", str(tmp_path / "none.parquet")]) == 2
    assert "is not a parquet table that can be read: build it again" in capsys.readouterr().err


def test_cohort_check_lists_everything_wrong_with_a_folder(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("File,Patient,Mass\na.png,1,7\nb.png,2,0\n")
    mapping = "columns: {image_path: File, patient_id: Patient, findings: [Mass]}\n"
    (tmp_path / "cohort.yaml").write_text(mapping)
    assert main(["cohort", "check", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "Mass" in shown.err
    assert "rows whose image file is not there, which go to quarantine: line 3." in shown.out
    rows = ["File,Patient,Mass", "a.png,7,0"]
    for number in range(18):
        (tmp_path / f"x{number}.png").write_bytes(bytes([number]))
        rows += [f"x{number}.png,{number // 2},{number % 2}", *([f"gone{number}.png,7,0"] if number < 11 else [])]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    assert main(["cohort", "check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "remarks:",
        "  rows whose image file is not there, which go to quarantine: line 4, line 6, line 8, line 10, line 12, "
        "line 14, line 16, line 18, line 20, line 22 and 1 more.",
        "  rows whose image file is empty, which go to quarantine: line 2.",
        f"{tmp_path} keeps the contract: 30 images of 9 patients, 1 findings.",
    ]


def test_cohort_show_counts_labels_and_outcomes(home, capsys):
    cohort = make_cohort()
    write_cohort(cohort, Run("mine").path("cohort.parquet"))
    assert main(["cohort", "show", "mine"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["s", "train", "2", "1", "2", "1"] in lines
    assert ["s", "test", "1", "1", "1", "1"] in lines
    assert ["Pleural", "Effusion", "2", "0", "1", "0"] in lines
    assert ["Edema", "0", "1", "1", "1"] in lines
    assert "Clear" not in shown
    assert "outcome" not in shown
    unknown = [None] * (len(cohort) - 2)
    outcomes = {"outcome_death": [1, 0, *unknown], "outcome_death_years": [2, 5, *unknown], "outcome_tube": 1}
    write_cohort(cohort.assign(**outcomes), Run("mine").path("cohort.parquet"))
    assert main(["cohort", "show", "mine"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["death", "1", "1", str(len(unknown)), "3.5"] in lines
    assert ["tube", str(len(cohort)), "0", "0"] in lines


def test_check_golden_prints_every_case_and_fails_when_a_number_differs(golden_curator, tmp_path, capsys):
    assert main(["check-golden", str(golden_curator)]) == 0
    assert "3 of 3 cases agree" in capsys.readouterr().out
    with np.load(golden_curator) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(tmp_path / "wrong.npz", **arrays | {"case1/loss": arrays["case1/loss"] + 1e-3})
    assert main(["check-golden", str(tmp_path / "wrong.npz")]) == 1
    shown = capsys.readouterr().out
    assert "DIFFERS" in shown
    assert "2 of 3 cases agree" in shown


def test_doctor_says_what_is_installed_and_where_things_live(home, capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for words in ("torch", "faiss", "GPU", str(home / "runs"), "HF_HUB_OFFLINE", "No problem found."):
        assert words in shown


def test_doctor_complains_about_two_builds_of_faiss_and_an_unwritable_home(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHEXSTUDY_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(doctor, "_installed_faiss", lambda: ["faiss-cpu", "faiss-gpu-cu12"])
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "Problem: faiss-cpu and faiss-gpu-cu12 overwrite each other" in shown
    assert "set CHEXSTUDY_HOME to a folder of yours" in shown
