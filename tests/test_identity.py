import json

import jupytext
import nbformat
import papermill
import pytest

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import find_arm
from chexstudy.pretraining.arms.study_config import read_config, settle_config
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.runs import Run, write_record
from chexstudy.workflow import runner
from chexstudy.workflow.identity import FREE, RECORD, read_identity, settle_store
from chexstudy.workflow.notebook import start_notebook
from chexstudy.workflow.parameters import read_parameters
from chexstudy.workflow.runner import rerun_notebooks, run_notebooks
from chexstudy.workflow.studies import OTHER_CODE, find_stale_artifacts

DECLARED = {path.stem: read_parameters(path) for path in sorted(paths.NOTEBOOKS.glob("*.py"))}
FIRST, SECOND, FOURTH, NINTH = "01_build_cohort", "02_embed_pairs", "04_pretrain_curated", "09_adapt_encoder"


pytestmark = pytest.mark.usefixtures("opened_notebooks")


@pytest.fixture
def given(monkeypatch):
    """What each notebook was executed with. They leave a file and take no time; ``fails`` names one that stops."""
    given = {}
    # The sources do not change meanwhile.
    monkeypatch.setattr(runner, "read_parameters", lambda source: DECLARED[source.stem])

    def execute(source, run, values, *_, **__):
        if given.get("fails") == source.stem:
            raise StudyError("the data is not there: put it there.")
        given[source.stem] = {name: one.default for name, one in DECLARED[source.stem].items()} | values
        run.write_json(f"{source.stem}.json", values)

    monkeypatch.setattr(runner, "_execute", execute)
    return given


def open_in_jupyterlab(name, study, **edits):
    namespace = {parameter.name: parameter.default for parameter in DECLARED[name].values()}
    namespace |= {"study": study} | edits
    run = start_notebook(name, namespace)
    run.write_json(f"{name}.json", {})
    return namespace


def test_a_notebook_run_with_another_profile_than_its_study_is_stopped(given, home):
    assert {name for parameters in DECLARED.values() for name in parameters} >= FREE
    run_notebooks(None, "debug")
    before = Run("debug").path(RECORD).read_text()
    given.clear()
    with pytest.raises(StudyError) as caught:
        run_notebooks(["02"], "demo", study="debug")
    sentence = str(caught.value)
    assert sentence.startswith("study 'debug' has other values than this run asks for: profile 'debug' -> 'demo', ")
    assert "warm_up_epochs 1 -> 0, subset_epochs 2 -> 9" in sentence
    assert "--change profile,image_encoder,text_encoder,image_size," in sentence
    assert "seeds" not in sentence
    assert "pairs" not in sentence
    assert given == {}
    assert Run("debug").path(RECORD).read_text() == before


def test_a_study_of_the_version_before_is_recognised_and_told_what_to_do(given, capsys):
    run, sentence = (
        Run("debug"),
        "Study 'debug' was made by a version of chexstudy before this one: run all its notebooks",
    )
    run.write_json("pixels/manifest.json", {})
    # As it was recorded then.
    write_record(run.path("provenance/pixels/manifest.json.json"), {"key": "k", "source_hash": "h", "inputs": {}})
    run_notebooks(["02"], study="debug")
    assert f"{sentence} again (`chexstudy run all --study debug`)" in capsys.readouterr().out
    assert find_stale_artifacts(run) == {"pixels/manifest.json": OTHER_CODE}
    run.write_json("pixels/manifest.json", {})
    run.record("pixels/manifest.json", {})
    run_notebooks(["02"], study="debug")
    assert sentence not in capsys.readouterr().out


def test_without_a_profile_it_is_the_studys_own_or_that_of_its_name(given):
    run_notebooks(None, "debug", study="mine")
    given.clear()
    run_notebooks(["02", "07"], study="mine")
    assert (given[SECOND]["warm_up_epochs"], given[SECOND]["prototypes"]) == (1, 4)
    assert given["07_ablate_curator"]["variants"] == ["published"]
    for study, pairs in (("debug", 320), ("new", 8000)):
        run_notebooks(["01"], study=study)
        assert given[FIRST]["pairs"] == pairs


def test_one_changed_value_is_refused_accepted_and_remembered(given, capsys):
    run_notebooks(None, "debug")
    asked = {"warm_up_epochs": 3}
    with pytest.raises(StudyError, match=r"asks for: warm_up_epochs 1 -> 3; leave .* with --change warm_up_epochs\.$"):
        run_notebooks(["02"], parameters=asked, study="debug")
    with pytest.raises(StudyError, match=r"the study has no parameter 'warm_up_epoch'.*did you mean 'warm_up_epochs'"):
        run_notebooks(["02"], parameters=asked, study="debug", change=["warm_up_epoch"])
    with pytest.raises(
        StudyError, match=r"^warm_up_epochs is a parameter of 02_embed_pairs: .* `chexstudy run 02 04`\.$"
    ):
        run_notebooks(["04"], parameters=asked, study="debug", change=["warm_up_epochs"])
    capsys.readouterr()
    run_notebooks(["02"], parameters=asked, study="debug", change=["warm_up_epochs"])
    told = capsys.readouterr().out.splitlines()[0]
    assert told == (
        "Study 'debug' changes: warm_up_epochs. What may build on them: 03_watch_prototypes, 04_pretrain_curated, "
        "05_compare_arms, 06_long_tail, 07_ablate_curator, 08_compare_curators, 09_adapt_encoder, 10_see_with_glori, "
        "11_plan_labels, 12_sweep_budgets, 13_pretrain_ssl, 14_segment_anatomy, 15_write_reports, "
        "16_when_curation_pays."
    )
    identity = read_identity(Run("debug"))
    assert identity.notebooks[SECOND]["stale"] == []
    assert identity.notebooks[FOURTH]["stale"] == ["warm_up_epochs"]
    run_notebooks(["04"], study="debug")
    assert read_identity(Run("debug")).notebooks[FOURTH]["stale"] == []


def test_all_that_trains_reads_one_configuration_and_is_held_to_it(given, monkeypatch):
    run_notebooks(["01"], "debug")
    # Before the notebook that declares the constants has run.
    open_in_jupyterlab(FOURTH, "debug")
    config = read_config(Run("debug"))
    assert (config.warm_up_epochs, config.curator.prototypes, config.learning_rate) == (1, 4, 1e-3)
    kept = json.loads(Run("debug").path("pretraining/config.json").read_text())
    assert PretrainingConfig.from_dict({name: kept[name] for name in config.to_dict()}) == config
    with pytest.raises(StudyError, match="prototypes 4 -> 5"):
        run_notebooks(["02"], parameters={"prototypes": 5}, study="debug")
    run_notebooks(["02"], parameters={"prototypes": 5}, study="debug", change=["prototypes"])
    assert read_identity(Run("debug")).notebooks[FOURTH]["stale"] == ["prototypes"]
    assert read_config(Run("debug")).curator.prototypes == 5


def test_a_conversion_of_the_pixels_is_a_change_that_is_told(given, capsys):
    run_notebooks(["01", "02"], "debug")
    capsys.readouterr()
    settle_store(Run("debug"), 64, "pad")
    assert capsys.readouterr().out == (
        "Study 'debug' changes: image_size. Made with the old values and stale until they are run again: "
        "02_embed_pairs.\n"
    )
    run_notebooks(["02"], study="debug")
    assert given["02_embed_pairs"]["image_size"] == 64


def test_the_word_change_accepts_everything(given):
    run_notebooks(["01", "02"], "debug")
    run_notebooks(["02"], "demo", {"change": "true"}, study="debug", from_text=True)
    assert given["02_embed_pairs"]["warm_up_epochs"] == 0
    assert read_identity(Run("debug")).profile.name == "demo"
    run_notebooks(["01"], study="debug")
    assert given["01_build_cohort"]["pairs"] == 320


@pytest.mark.parametrize(
    ("notebook", "asked"),
    [
        ("04", {"seeds": 5, "arms": ["full"]}),
        ("12", {"budgets": [0.1]}),
        ("04", {"seed": 3}),
        ("05", {"resamples": 500, "device": "cpu"}),
        ("08", {"methods": ["random"]}),
        ("07", {"short_epochs": 7}),
        ("09", {"head_epochs": 3}),
    ],
)
def test_what_only_adds_is_no_conflict(given, notebook, asked):
    run_notebooks(["01", "02", "03", "04", "05", "06"], "debug")
    (name,) = [one for one in DECLARED if one.startswith(notebook)]
    run_notebooks([notebook], parameters=asked, study="debug")
    assert {one: given[name][one] for one in asked} == asked


def test_the_targets_of_make_run_on_a_finished_study_as_before(given):
    run_notebooks(["01", "02", "03", "04", "05", "06"], "demo")
    run_notebooks(["12"], "demo", {"budgets": [0.1, 0.227]})
    run_notebooks(["07", "08"], "demo")
    run_notebooks(["09", "10", "11"], "demo")
    run_notebooks(["12"], study="demo")
    run_notebooks(None, "demo")
    assert given["12_sweep_budgets"]["budgets"] == [0.1, 0.227, 0.5]
    # A notebook's own setting is held against its own record.
    with pytest.raises(StudyError, match=r"head_epochs .* -> 3"):
        run_notebooks(["09"], parameters={"head_epochs": 3}, study="demo")


def test_a_data_folder_is_remembered_wherever_the_next_run_starts(given, home, monkeypatch):
    (home / "data").mkdir()
    monkeypatch.chdir(home)
    run_notebooks(["01"], "demo", {"source": "folder", "data_root": "data"}, study="mine")
    assert given["01_build_cohort"]["data_root"] == "data"
    run_notebooks(["01"], "demo", {"source": "folder", "data_root": str(home / "data")}, study="mine")
    monkeypatch.chdir("/")
    run_notebooks(["01"], "demo", study="mine")
    assert given["01_build_cohort"]["data_root"] == str(home / "data")
    with pytest.raises(StudyError, match="asks for: data_root to another place; leave"):
        run_notebooks(["01"], "demo", {"data_root": "data"}, study="mine")


def test_a_try_that_left_nothing_binds_nobody(given, home):
    given["fails"] = "01_build_cohort"
    with pytest.raises(StudyError, match="the data is not there"):
        run_notebooks(["01"], "demo", {"source": "folder", "data_root": "wrong"}, study="mine")
    del given["fails"]
    run_notebooks(["01"], "demo", {"source": "folder", "data_root": "right"}, study="mine")
    given["fails"] = "01_build_cohort"
    with pytest.raises(StudyError, match="the data is not there"):
        run_notebooks(["01"], study="mine")
    # What the run before has left still binds.
    with pytest.raises(StudyError, match="other values"):
        run_notebooks(["01"], "demo", {"data_root": "third"}, study="mine")


def test_values_of_a_run_that_was_killed_reach_the_notebooks_it_did_not(given):
    given["fails"] = SECOND
    with pytest.raises(StudyError, match="the data is not there"):
        run_notebooks(["02"], "demo", study="mine")
    del given["fails"]
    # What another notebook leaves binds nobody to that try.
    run_notebooks(["01"], study="mine")
    run_notebooks(["02"], parameters={"warm_up_epochs": 1}, study="mine")
    assert given[SECOND]["warm_up_epochs"] == 1
    given["fails"] = FIRST
    with pytest.raises(StudyError, match="the data is not there"):
        run_notebooks(None, "debug", {"prototypes": 5})
    del given["fails"]
    run_notebooks(["02"], study="debug")
    assert given[SECOND]["prototypes"] == 5


def test_a_value_that_a_profile_gives_one_notebook_is_no_conflict_with_the_others(given, tmp_path):
    (tmp_path / "own.yaml").write_text(f"defaults: {{image_size: 32}}\nnotebooks: {{{FIRST}: {{image_size: 64}}}}\n")
    run_notebooks(["01", "02"], str(tmp_path / "own.yaml"))
    assert [given[name]["image_size"] for name in (FIRST, SECOND)] == [64, 32]
    (tmp_path / "own.yaml").write_text(f"defaults: {{image_size: 48}}\nnotebooks: {{{FIRST}: {{image_size: 64}}}}\n")
    with pytest.raises(StudyError, match="asks for: image_size 32 -> 48; leave"):
        run_notebooks(["02"], str(tmp_path / "own.yaml"))


def test_figures_are_drawn_again_with_the_values_the_study_has_now(given):
    run_notebooks(["02", "04"], "debug", {"seeds": 2})
    run_notebooks(["02"], parameters={"prototypes": 5}, study="debug", change=["prototypes"])
    given.clear()
    rerun_notebooks("debug")
    assert (given[SECOND]["prototypes"], given[FOURTH]["seeds"]) == (5, 2)


def test_a_damaged_record_is_one_sentence(given):
    run_notebooks(["01"], "debug")
    record = Run("debug").path(RECORD)
    whole = record.read_text()
    for damaged in ("", "{", whole.replace("320", "321")):
        record.write_text(damaged)
        with pytest.raises(
            StudyError, match=r"study\.json, which says what study 'debug' is, is damaged or was edited"
        ):
            run_notebooks(["02"], study="debug")


# --- notebooks on their own -------------------------------------------------------------------------------------------


def test_jupyterlab_takes_the_values_of_the_study_it_names_or_the_profile_of_that_name(given, capsys):
    assert open_in_jupyterlab(FIRST, "debug")["pairs"] == 320
    assert open_in_jupyterlab(FIRST, "new")["pairs"] == 8000
    run_notebooks(None, "debug", {"seeds": 2}, study="mine")
    capsys.readouterr()
    values = open_in_jupyterlab(FOURTH, "mine")
    told = capsys.readouterr().out
    assert told.startswith(
        "Taken from study 'mine': seeds = 2, arms = ['curated', 'filtered', 'random_same_data', 'full']"
    )
    assert [values[name] for name in ("study", "seeds", "arms")] == [
        "mine",
        2,
        ["curated", "filtered", "random_same_data", "full"],
    ]
    values = open_in_jupyterlab(SECOND, "mine")
    told = capsys.readouterr().out
    assert "warm_up_epochs = 1" in told
    assert "micro_batch" not in told
    assert (values["warm_up_epochs"], values["batch_size"]) == (1, 64)


def test_in_jupyterlab_a_value_edited_by_hand_is_held_against_the_study(given, capsys):
    run_notebooks(None, "debug")
    sentence = (
        r"asks for: warm_up_epochs 1 -> 3; leave .* or set change = True in the parameters cell \(papermill: .*\)\.$"
    )
    with pytest.raises(StudyError, match=sentence):
        open_in_jupyterlab(SECOND, "debug", warm_up_epochs=3)
    open_in_jupyterlab(SECOND, "debug", warm_up_epochs=3, change=True)
    assert "What may build on them: 03_watch_prototypes, " in capsys.readouterr().out
    assert open_in_jupyterlab(SECOND, "debug")["warm_up_epochs"] == 3


def test_in_jupyterlab_a_first_try_that_left_nothing_may_be_corrected():
    namespace = {one.name: one.default for one in DECLARED["01_build_cohort"].values()} | {"study": "mine"}
    start_notebook("01_build_cohort", namespace | {"pairs": 100})
    run = start_notebook("01_build_cohort", namespace | {"pairs": 200})
    run.write_json("cohort.json", {})
    with pytest.raises(StudyError, match="pairs 200 -> 300"):
        start_notebook("01_build_cohort", namespace | {"pairs": 300})


def test_plain_papermill_is_held_against_the_study_too(given, tmp_path):
    source = (paths.NOTEBOOKS / f"{SECOND}.py").read_text()
    declared = source.partition('["parameters"]\n')[2].partition("\n\n")[0]
    text = f"""\
# %% tags=["parameters"]
{declared}

# %%
from chexstudy.errors import StudyError
from chexstudy.workflow.notebook import start_notebook

try:
    start_notebook("{SECOND}", globals())
except StudyError as error:
    told = str(error)
change = True
start_notebook("{SECOND}", globals()).write_json("told.json", [told, warm_up_epochs, batch_size])
"""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "02.ipynb")
    run_notebooks(None, "debug")
    # The notebook's own default, but asked for.
    asked = {"study": "debug", "warm_up_epochs": 4}
    papermill.execute_notebook(tmp_path / "02.ipynb", None, asked, progress_bar=False, kernel_name="python3")
    told, *values = json.loads(Run("debug").path("told.json").read_text())
    assert "asks for: warm_up_epochs 1 -> 4; " in told
    assert values == [4, 64]


# --- the engine on its own --------------------------------------------------------------------------------------------


def settle(study, arm="curated", change=(), **constants):
    return settle_config(Run(study), find_arm(arm), constants, Processes(), change)


def test_the_engine_takes_from_the_study_what_its_file_leaves_out(given):
    run_notebooks(["01", "02"], "debug", {"constants": ["dim=32"]})
    config = settle("debug", lora_rank=2, change=["constants"])
    assert (config.lora_rank, config.dim, config.warm_up_epochs, config.curator.prototypes) == (2, 32, 1, 4)
    assert read_identity(Run("debug")).changed["constants"] == ["dim=32", "lora_rank=2"]


def test_the_engine_is_held_against_the_study(given):
    run_notebooks(["01", "02"], "debug")
    for constants in ({"prototypes": 5}, {"curator": {"prototypes": 5}}):
        with pytest.raises(StudyError, match=r"asks for: prototypes 4 -> 5; leave .* with --change prototypes\.$"):
            settle("debug", **constants)
    with pytest.raises(StudyError, match=r"constants \[\] -> \['dim=32'\]"):
        settle("debug", dim=32)
    # As recorded, how it is watched, and an arm under constants of its own.
    settle("debug", warm_up_epochs=1, tracker="tensorboard", micro_batch=8)
    assert settle("debug", "curated.small", prototypes=5).curator.prototypes == 5
    assert read_identity(Run("debug")).changed.get("prototypes") is None


def test_notebooks_are_held_against_what_the_engine_trained(given):
    settle("mine", batch_size=32, dim=64)
    Run("mine").write_json("pretraining/curated/seed0/compute.json", {})
    with pytest.raises(StudyError, match="asks for: batch_size 32 -> 64; "):
        settle("mine", "full", batch_size=64)
    values = open_in_jupyterlab(SECOND, "mine")
    assert (values["batch_size"], values["constants"]) == (32, ["dim=64"])
    with pytest.raises(StudyError, match="subset_epochs 9 -> 1"):
        run_notebooks(["02"], parameters={"subset_epochs": 1}, study="mine")
