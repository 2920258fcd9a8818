"""README and docs say what is so: commands parse, files are there, tables are those that the study gave."""

import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_tiny_study
from PIL import Image

from chexstudy import paths
from chexstudy.cli.main import build_parser, main
from chexstudy.cohort.adapters import build_source
from chexstudy.cohort.phantom.lesions import LESIONS
from chexstudy.cohort.table import RESERVED_COLUMNS

_DOCS = paths.REPOSITORY / "docs"
_README = (paths.REPOSITORY / "README.md").read_text(encoding="utf-8")
_GUIDE = (_DOCS / "using.md").read_text(encoding="utf-8")
# What stands in a block of code, without the blocks of YAML and CSV.
_COMMANDS = [
    " ".join(shlex.split(line, comments=True))
    for line in re.findall(r"^ {4}(\S.*)$", f"{_README}\n{_GUIDE}", re.MULTILINE)
    if re.match(r"(chexstudy|make|python|torchrun|srun|git|source|\[) ", line)
]
_ENGINE = "python -m chexstudy.pretraining.training.arm_run "
# Commands as typed that run in seconds on the files and small studies of `newcomer`.
_CHEAP = [
    *(command for command in _COMMANDS if re.match("chexstudy (curate|advise) --(embeddings|list)", command)),
    "chexstudy evaluate compare ours.csv theirs.csv --labels labels.csv --metric auprc",
    "chexstudy evaluate reports written.csv references.csv --labels labels.csv",
    "chexstudy plan-labels --curve curve.csv --target 0.85 --cost 2.5",
    "chexstudy run 04 --list",
    "chexstudy cohort convert --study mine --size 378",
    *("chexstudy list", "chexstudy show debug", "chexstudy rm debug"),
]
# Those that need a trained study are typed where there is one, in tests/test_notebooks.py.
TRAINED = [
    *("chexstudy curate --report --study demo", "chexstudy why phantom/000010 --study demo"),
    *(command for command in _COMMANDS if re.match("chexstudy evaluate compare curated", command)),
    *("chexstudy plan-labels --study demo --target 0.85", "chexstudy compare-studies debug demo"),
    *("chexstudy results --study demo --task zero_shot", "chexstudy advise --study demo --keep 0.2 --start upstream"),
]
_ARM = "--study mine --arm curated --config arm.json"
# Minutes or hours, real radiographs, several machines or another place: these are only understood.
_UNDERSTOOD = [
    *(command for command in _COMMANDS if command.startswith(("make ", "torchrun ", "srun ", "git ", "source ", "["))),
    *(command for command in _COMMANDS if re.match("chexstudy cohort (check|build) .*(mimic|cohort.yaml)", command)),
    *("chexstudy run all --profile debug", "chexstudy run 09 10 11 --study demo", "chexstudy run 14 15 --study demo"),
    "chexstudy evaluate reports written.csv references.csv",
    "chexstudy run 04 --study demo -p seeds 7",
    "chexstudy run 13 --study demo -p ssl_arms full,curated,by_k_centre -p ssl_constants koleo_weight=0.1",
    "chexstudy run 02 03 04 --study demo -p super_batch 1024 --change super_batch",
    *(f"chexstudy run all --profile {name} -p data_root ~/data/{name}" for name in ("nlm_tb", "nih")),
]


def test_every_command_is_run_or_understood():
    slow = [_ENGINE + _ARM, "chexstudy release curated --study mine --out my-pair"]
    assert sorted(set(_COMMANDS)) == sorted({*_CHEAP, *TRAINED, *slow, *_UNDERSTOOD})


@pytest.mark.parametrize("command", [command for command in _COMMANDS if command.startswith("chexstudy")])
def test_commands_are_understood(command):
    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [command for command in _COMMANDS if command.startswith("make")])
def test_make_targets_exist(command):
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", (paths.REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in _COMMANDS if _ENGINE.strip() in command])
def test_the_engine_is_started_the_same_way_everywhere(command):
    assert command.endswith(_ARM)


def _find_examples(parser):
    yield from re.findall(r"^  (chexstudy .*?)(?:   .*)?$", (parser.epilog or "").replace("\\\n", " "), re.MULTILINE)
    for action in parser._actions:
        for verb in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from _find_examples(verb)


def test_examples_of_the_help_are_understood_and_name_findings_that_exist():
    examples = set(_find_examples(build_parser()))
    assert len(examples) > 20
    for example in examples:
        options = build_parser().parse_args(shlex.split(example)[1:])
        if getattr(options, "finding", None):
            assert options.finding in LESIONS, example


# --- as a newcomer types them ----------------------------------------------------------------------------------------


def _own_table():
    """The table and the mapping that the README shows, of eight patients."""
    mapping = re.search(r"^ {7}images: images .*?(?=\n\n)", _README, re.MULTILINE | re.DOTALL)[0]
    header, row = re.search(r"^ {7}(File,.*)\n {7}(.*)$", _README, re.MULTILINE).groups()
    rows = [
        row.replace("a/1.png", f"a/{number}.png")
        .replace(",P1,", f",P{number},")
        .replace("train", split)
        .replace(",0,", f",{number % 2},", 1)
        for number, split in enumerate(["train"] * 4 + ["validate"] * 2 + ["test"] * 2)
    ]
    return textwrap.dedent(mapping), "\n".join([header, *rows]) + "\n"


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """The folder a newcomer stands in, with all that the commands name; the home that ``~`` means is in it."""
    folder = tmp_path_factory.mktemp("newcomer")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(folder))
        patch.setenv("HOME", str(folder))
        patch.chdir(folder)
        np.save("E.npy", rng.normal(size=(60, 8)).astype(np.float32))
        for name, noise in (("I", 0.0), ("T", 0.5)):
            np.save(f"{name}.npy", np.load("E.npy") + noise * np.random.default_rng(1).normal(size=(60, 8)))
        ids = [f"a/{number:02d}" for number in range(60)]
        table = pd.DataFrame({"image_id": ids, "patient_id": ids, "sex": ["F", "M"] * 30})
        table[["image_id"]].to_parquet("ids.parquet")
        table.to_parquet("cohort.parquet")
        mass = rng.permutation([0, 1] * 30)
        table[["image_id", "patient_id"]].assign(Mass=mass).to_csv("labels.csv", index=False)
        for name in ("ours", "theirs"):
            table[["image_id"]].assign(Mass=mass + rng.normal(size=60)).to_csv(f"{name}.csv", index=False)
        said = np.where(mass == 1, "There is a mass.", "No mass is seen.")
        table[["image_id", "patient_id"]].assign(report=said).to_csv("references.csv", index=False)
        table[["image_id"]].assign(report=said[::-1]).to_csv("written.csv", index=False)
        numbers = np.repeat([20, 50, 100, 200, 500], 3)
        aurocs = 0.9 - 0.8 / numbers**0.5 + rng.normal(0, 0.003, 15)
        pd.DataFrame({"n": numbers, "auroc": aurocs}).to_csv("curve.csv", index=False)
        constants = {"image_size": 36, "warm_up_epochs": 0, "subset_epochs": 1, "super_batch": 24, "batch_size": 12}
        Path("arm.json").write_text(json.dumps(constants | {"curator": {"prototypes": 2, "central_cap": 2}}))
        make_tiny_study("mine", pairs=40)
        make_tiny_study("debug", pairs=10)
        yield folder


@pytest.fixture
def typed(newcomer, monkeypatch, capfd):
    """Type a command in that folder; it must end well and say something."""

    def type_command(command, answer=""):
        asked = io.StringIO(answer)
        asked.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", asked)
        for name in ("CHEXSTUDY_HOME", "HOME"):
            monkeypatch.setenv(name, str(newcomer))
        monkeypatch.chdir(newcomer)
        status = main([os.path.expanduser(word) for word in shlex.split(command)[1:]])
        said = capfd.readouterr()
        assert status == 0, said.err
        assert said.out.strip()
        return said.out

    return type_command


@pytest.mark.parametrize("command", _CHEAP)
def test_a_newcomers_commands_work_as_typed(typed, command):
    typed(command, answer="y\n" if " rm " in command else "")


def test_the_table_and_the_mapping_shown_are_a_cohort(typed, newcomer):
    mapping, table = _own_table()
    for number in range(8):
        place = newcomer / "mine" / "images" / "a" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64), np.uint8)).save(place)
    (newcomer / "mine" / "cohort.yaml").write_text(mapping)
    (newcomer / "mine" / "labels.csv").write_text(table)
    assert "`chexstudy cohort check ~/mine`" in _README
    said = typed("chexstudy cohort check ~/mine")
    assert "8 images of 8 patients" in said
    cohort = build_source("folder", newcomer / "mine", 0)
    named = set(re.findall(r"^ {2}(\w+):", mapping, re.MULTILINE)) - {"labels", "findings", "outcomes"}
    assert named <= set(RESERVED_COLUMNS)
    assert set(RESERVED_COLUMNS) - named == {"image_id", "source", "report_origin"}, "the README shows all columns"
    assert cohort[["Mass", "Nodule", "outcome_death", "outcome_death_years"]].iloc[0].tolist() == [0, -1, 0, 2.5]
    assert cohort.split.tolist() == ["train"] * 4 + ["validate"] * 2 + ["test"] * 2


@pytest.mark.slow
def test_the_engine_and_a_release_as_typed(typed, newcomer):
    command = [sys.executable, *shlex.split(_ENGINE + _ARM)[1:]]
    environment = os.environ | {"CHEXSTUDY_HOME": str(newcomer), "PYTHONPATH": str(paths.REPOSITORY)}
    done = subprocess.run(command, cwd=newcomer, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    typed("chexstudy release curated --study mine --out my-pair")
    assert (newcomer / "my-pair" / "README.md").is_file()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in sorted(_DOCS.glob("*.md")))])
def test_linked_files_are_there(page):
    place = paths.REPOSITORY / page
    for link in re.findall(r"\]\(([^)#]+)", place.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (place.parent / link).exists(), link


def test_named_places_are_there():
    layout = _README[_README.index("## How the house is laid out") :]
    for row in re.findall(r"^\| (`[^|]+) \|", layout, re.MULTILINE):
        for place in re.findall(r"`([^`]+)`", row):
            assert (paths.REPOSITORY / place).exists(), place


def test_the_readme_is_short():
    assert len(_README.splitlines()) <= 180


def test_tables_are_those_the_study_gave():
    fill_tables = runpy.run_path(str(_DOCS / "fill_tables.py"))
    shown = set()
    for page in fill_tables["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert fill_tables["fill_tables"](text) == text
        shown |= set(re.findall(r"<!-- data/(\w+\.csv) -->\n\|", text))
    assert shown == {table.name for table in (paths.REPOSITORY / "data").glob("*.csv")}
