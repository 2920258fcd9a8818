"""The README says what is so: its commands parse, its files are there, its table is the one the study gave."""

import re
import shlex

import pandas as pd
import pytest

from chexstudy import paths
from chexstudy.cli import build_parser

_README = (paths.REPOSITORY / "README.md").read_text(encoding="utf-8")
_COMMANDS = [line.strip() for line in _README.splitlines() if re.match(r"\s{4}(chexstudy|make) ", line)]


def _table_after(heading: str) -> pd.DataFrame:
    lines = _README[_README.index(heading) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return pd.DataFrame(rows[2:], columns=rows[0])


@pytest.mark.parametrize("command", [command for command in _COMMANDS if command.startswith("chexstudy")])
def test_commands_are_understood(command):
    build_parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("command", [command for command in _COMMANDS if command.startswith("make")])
def test_make_targets_exist(command):
    target = shlex.split(command, comments=True)[1]
    assert re.search(rf"^{target}:", (paths.REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_linked_files_are_there():
    for link in re.findall(r"\]\(([^)#]+)\)", _README):
        if not link.startswith("http"):
            assert (paths.REPOSITORY / link).exists(), link


def test_named_places_are_there():
    layout = _README[_README.index("## How the house is laid out") :]
    for place in re.findall(r"^\| `([^`]+)`", layout, re.MULTILINE):
        assert (paths.REPOSITORY / place).exists(), place


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("## What came out", "results_demo.csv"),
        ("## At several budgets", "budgets_demo.csv"),
        ("## Which curator", "curators_demo.csv"),
        ("## What the encoders are worth", "heads_demo.csv"),
    ],
)
def test_tables_are_those_the_study_gave(heading, table):
    recorded = pd.read_csv(paths.DATA / table, dtype=str)
    printed = _table_after(heading)
    assert list(printed.columns.str.strip()) == list(recorded.columns)
    assert printed.to_numpy().tolist() == recorded.to_numpy().tolist()
