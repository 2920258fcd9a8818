"""The house: imports only go down, no circles, a name says one thing, and one place knows the notebooks by name."""

import ast
import tomllib
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter

import pytest

from chexstudy.code_closure import find_imports
from chexstudy.paths import NOTEBOOKS, PACKAGE

# Rooms from the ground up: a module imports from its own floor and from those below.
_FLOORS = (
    "arrays children code_closure devices errors inputs paths progress pseudonyms results runs steps",
    "statistics",
    "vectors",
    "cohort",
    "workflow",
    "encoders",
    "curation",
    "pretraining",
    "evaluation",
    "experiments golden label_planning release study",
    "cli plots",
)
_FLOOR_OF = {room: number for number, rooms in enumerate(_FLOORS) for room in rooms.split()}
# A figure and a verb are called as what they show and do, and what the phantom draws as what a cohort has.
_MIRRORS = ("plots/", "cli/", "cohort/phantom/")
# Names that say with their room what they are: how a cohort and an encoder are built, the run of a task ...
_WITH_THEIR_ROOM = {
    "build",
    "checkpoint",
    "configuration",
    "curators",
    "export",
    "files",
    "inputs",
    "metrics",
    "run",
    "subsets",
    "table",
    "training",
}
_TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_bytes()) for path in PACKAGE.rglob("*.py")}


def _rooms_of_imports(tree, depth):
    parts = [name.split(".")[1:] for name in find_imports(tree) if name.startswith("chexstudy.")]
    return {"/".join(own[:depth]) for own in parts if own[0] in _FLOOR_OF}


def test_imports_only_go_down():
    floors = {file: _FLOOR_OF.get(file.split("/")[0].removesuffix(".py")) for file in _TREES if file != "__init__.py"}
    assert [file for file, floor in floors.items() if floor is None] == [], "every room has its floor"
    up = [
        f"{file} imports {room}"
        for file, floor in floors.items()
        for room in _rooms_of_imports(_TREES[file], 1)
        if _FLOOR_OF[room] > floor
    ]
    assert up == []


def test_rooms_build_no_circle():
    graph = defaultdict(set)
    for file, tree in _TREES.items():
        room = "/".join(file.removesuffix(".py").split("/")[:2])
        graph[room] |= {one for one in _rooms_of_imports(tree, 2) if one != room}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_a_file_name_says_one_thing():
    own = [file.split("/")[-1].removesuffix(".py") for file in _TREES if not file.startswith(_MIRRORS)]
    several = {name for name, count in Counter(own).items() if count > 1}
    assert several - {"__init__"} <= _WITH_THEIR_ROOM


@pytest.mark.parametrize("room", [file for file in _TREES if file.endswith("__init__.py")])
def test_each_room_says_in_one_sentence_what_it_is(room):
    first = (ast.get_docstring(_TREES[room]) or "").partition("\n\n")[0]
    assert first.endswith(".")
    assert ". " not in first.replace("\n", " ")


def test_only_the_table_of_steps_and_what_starts_notebooks_know_them_by_name():
    names = [path.stem for path in NOTEBOOKS.glob("[0-9]*.py")]
    knowing = [
        f"{file}: {node.value:.60}"
        for file, tree in _TREES.items()
        if not file.startswith(("steps.py", "study.py", "cli/", "workflow/"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and any(name in node.value for name in names)
    ]
    assert len(names) > 5
    assert knowing == []


def test_data_beside_the_code_are_in_the_wheel():
    patterns = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = set()
    for folder in (path.parent for path in PACKAGE.rglob("__init__.py")):
        own = patterns.get(".".join(folder.relative_to(PACKAGE.parent).parts), [])
        packed |= {file for pattern in [*own, *patterns["*"]] for file in folder.glob(pattern)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    assert {path for path in data if path.suffix != ".py"} <= packed
