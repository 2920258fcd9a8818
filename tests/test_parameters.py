import pytest

from chexstudy.errors import StudyError
from chexstudy.workflow.parameters import (
    Parameter,
    check_value,
    check_values,
    parse_parameters,
    parse_text,
    read_parameters,
)

CELL = """\
study = "demo"  # name of the study
seed = 0  # seed of everything drawn
rate: float = 1e-3  # peak learning rate
resume = True  # go on where it stopped
findings: list[str] = []  # findings to show
widths = [16, 32]  # channels
# a line of its own is no help
shift = -1.5
"""
DECLARED = parse_parameters(CELL, "04_x")


def test_a_parameters_cell_declares_names_types_defaults_and_help():
    expected = {
        "study": Parameter("study", str, "demo", "name of the study"),
        "seed": Parameter("seed", int, 0, "seed of everything drawn"),
        "rate": Parameter("rate", float, 1e-3, "peak learning rate"),
        "resume": Parameter("resume", bool, True, "go on where it stopped"),
        "findings": Parameter("findings", list, [], "findings to show", str),
        "widths": Parameter("widths", list, [16, 32], "channels", int),
        "shift": Parameter("shift", float, -1.5, ""),
    }
    assert expected == DECLARED


@pytest.mark.parametrize(
    "line",
    [
        *("limit: float | None = 1.0", "limit = None", "limit = 2 * 3", "rate: float = 1", "import os"),
        *("a = b = 1", "a, b = 1, 2", "options = {'a': 1}", "print(1)"),
    ],
)
def test_what_papermill_would_not_see_as_a_plain_parameter_is_refused(line):
    with pytest.raises(StudyError, match=r"04_x: line 2 of the parameters cell, .* is not plain"):
        parse_parameters(f"seed = 0  # seed\n{line}", "04_x")


@pytest.mark.parametrize(("cells", "count"), [("# %%\nseed = 0\n", 0), ('# %% tags=["parameters"]\na = 1\n' * 2, 2)])
def test_a_notebook_needs_exactly_one_parameters_cell(tmp_path, cells, count):
    source = tmp_path / "01_x.py"
    with pytest.raises(StudyError, match=r"there is no notebook at .*01_x\.py"):
        read_parameters(source)
    source.write_text(cells)
    with pytest.raises(StudyError, match=f"01_x.py has {count} cells tagged 'parameters'"):
        read_parameters(source)


def test_an_unknown_name_gets_the_closest_valid_one():
    with pytest.raises(
        StudyError, match=r"^04_x has no parameter 'sead'; it takes study, seed, .*: did you mean 'seed'"
    ):
        check_values(DECLARED, {"sead": 1}, "04_x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", value) for value in ("0", 1.0, True, None)),
        *(("rate", "0.1"), ("rate", False), ("resume", 1), ("study", 3), ("findings", "Edema")),
        *(("widths", 16), ("widths", [16, "32"])),
    ],
)
def test_a_wrong_type_is_refused_in_one_sentence(name, value):
    with pytest.raises(StudyError) as caught:
        check_value(DECLARED[name], value, "04_x")
    sentence = str(caught.value)
    assert sentence.startswith(f"parameter {name!r} of 04_x must be ")
    assert DECLARED[name].expected in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("seed", -1, "parameter 'seed' of 04_x must be 0 or more, not -1"),
        ("findings", ["Edema", "Mass", "Edema"], "parameter 'findings' of 04_x has 'Edema' twice: give it once"),
    ],
)
def test_a_negative_count_and_a_name_given_twice_are_refused(name, value, sentence):
    with pytest.raises(StudyError, match=sentence):
        check_value(DECLARED[name], value, "04_x")
    assert check_value(parse_parameters("offset = -1", "04_x")["offset"], -2, "04_x") == -2


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("study", "3", "3"), ("seed", "12", 12), ("seed", "-1", -1), ("rate", "3e-4", 3e-4), ("rate", "1", 1.0)),
        *(("resume", "false", False), ("resume", "True", True)),
        *(("widths", "[1, 2]", [1, 2]), ("widths", "1,2", [1, 2]), ("findings", "[]", []), ("findings", "7", ["7"])),
        ("findings", "Edema, Lung Lesion", ["Edema", "Lung Lesion"]),
        ("findings", "['Edema', \"Mass\"]", ["Edema", "Mass"]),
    ],
)
def test_text_is_converted_by_the_declared_type(name, text, value):
    converted = parse_text(DECLARED[name], text, "04_x")
    assert converted == value
    assert type(converted) is type(value)
    # A whole number is taken where a number is expected.
    assert type(check_value(DECLARED["rate"], 1, "04_x")) is float


@pytest.mark.parametrize(
    ("name", "text"), [("seed", "1.5"), ("seed", ""), ("rate", "fast"), ("resume", "maybe"), ("widths", "[1, a]")]
)
def test_text_that_is_not_of_the_type_is_refused(name, text):
    with pytest.raises(StudyError, match=f"parameter '{name}' of 04_x must be .* not {text!r}".replace("[", r"\[")):
        parse_text(DECLARED[name], text, "04_x")
