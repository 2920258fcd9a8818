"""The parameters of a notebook, read from its source and held strict.

A notebook's ``parameters`` cell holds plain assignments, one a line, with a trailing comment as help::

    study = "demo"  # name of the study, the folder under runs/
    learning_rate = 1e-3  # peak learning rate of AdamW
    findings: list[str] = []  # findings to show; empty means all

The value says the type: text, whole number, number, true/false, or a list of them. papermill only warns about an
unknown parameter and takes any type, so every way into a notebook (command line, profile, papermill, JupyterLab)
checks here.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from chexstudy.errors import StudyError, suggest

_TAG = '"parameters"'  # as the header of the cell holds it
_WORDS = {str: "text (str)", int: "a whole number (int)", float: "a number (float)", bool: "true or false (bool)"}
_WORDS[list] = "a list"
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Parameter:
    """One declared parameter; ``element`` is the type of a list's elements, where it is known."""

    name: str
    type: type
    default: object
    help: str = ""
    element: type | None = None

    @property
    def expected(self) -> str:
        """The declared type in words."""
        return _WORDS[self.type] if self.element is None else f"a list of {self.element.__name__}"


def read_parameters(source: str | Path) -> dict[str, Parameter]:
    """The parameters a notebook, a percent-format ``.py`` file, declares, in the order of its ``parameters`` cell."""
    source = Path(source)
    if not source.is_file():
        raise StudyError(
            f"there is no notebook at {source}: the notebooks lie in the notebooks/ folder of the checkout."
        )
    cells = [cell for header, cell in split_cells(source) if _TAG in header]
    if len(cells) != 1:
        raise StudyError(
            f"{source.name} has {len(cells)} cells tagged 'parameters' and needs exactly one: "
            'begin it with the line `# %% tags=["parameters"]`.'
        )
    return parse_parameters(cells[0], source.stem)


def split_cells(source: Path) -> list[tuple[str, str]]:
    """Headers and texts of a notebook's cells; jupytext, which knows more, takes seconds to import."""
    _, *parts = re.split(r"^# %%(.*)$", source.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(header, text.strip()) for header, text in zip(parts[::2], parts[1::2], strict=True)]


def parse_parameters(cell: str, notebook: str) -> dict[str, Parameter]:
    """The parameters that the text of a ``parameters`` cell declares; ``notebook`` names it in messages."""
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(cell).readline) if one.type == tokenize.COMMENT]
    comments = {token.start[0]: token.string.lstrip("# ").strip() for token in tokens}
    parameters = {}
    for statement in ast.parse(cell).body:
        parameter = _parse_assignment(statement, comments.get(statement.end_lineno, ""))
        if parameter is None:
            raise StudyError(
                f"{notebook}: line {statement.lineno} of the parameters cell, `{ast.unparse(statement)}`, is not "
                "plain: write `name = value  # help` with text, a whole number, a number, True/False or a list."
            )
        parameters[parameter.name] = parameter
    return parameters


def _parse_assignment(statement: ast.stmt, comment: str) -> Parameter | None:
    """The parameter an assignment declares, or None if it is not a plain one."""
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else None
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        return None
    try:
        default = ast.literal_eval(statement.value)
    except (ValueError, AttributeError):
        return None
    named, element = {None: None, type(default).__name__: None}, None
    if isinstance(default, list):
        kinds = {type(item) for item in default}
        element = kinds.pop() if len(kinds) == 1 else None
        named |= {f"list[{kind.__name__}]": kind for kind in (str, int, float, bool)}
    if type(default) not in _WORDS or annotation not in named:
        return None
    return Parameter(targets[0].id, type(default), default, comment, named[annotation] or element)


def check_names(names: Iterable[str], declared: Iterable[str], notebook: str) -> None:
    """Raise a StudyError for the first name that is not declared, with the closest declared one."""
    declared = list(declared)
    for name in names:
        if name not in declared:
            guess = suggest(name, declared, "choose one of them", cutoff=0.5)
            raise StudyError(f"{notebook} has no parameter {name!r}; it takes {', '.join(declared)}: {guess}.")


def check_value(parameter: Parameter, value: object, notebook: str) -> object:
    """The value with the declared type; a whole number is taken where a number is expected.

    What counts or numbers something has no negative value unless its default has, and a list holds nothing twice.
    """
    if parameter.type is list and isinstance(value, list):
        if twice := [item for place, item in enumerate(value) if item in value[:place]]:
            raise StudyError(f"parameter {parameter.name!r} of {notebook} has {twice[0]!r} twice: give it once.")
        if parameter.element is None:
            return value
        one = replace(parameter, type=parameter.element)
        return [_check_one(one, item, notebook) for item in value]
    return _check_one(parameter, value, notebook)


def _check_one(parameter: Parameter, value: object, notebook: str) -> object:
    if parameter.type is float and type(value) is int:
        return float(value)
    if type(value) is not parameter.type:
        raise _refuse(parameter, f"{value!r} ({type(value).__name__})", notebook)
    if type(parameter.default) is int and value < 0 <= parameter.default:
        raise StudyError(f"parameter {parameter.name!r} of {notebook} must be 0 or more, not {value}.")
    return value


def _refuse(parameter: Parameter, given: str, notebook: str) -> StudyError:
    wanted = f"{parameter.expected} such as {parameter.default!r}"
    return StudyError(f"parameter {parameter.name!r} of {notebook} must be {wanted}, not {given}.")


def check_values(declared: Mapping[str, Parameter], values: Mapping[str, object], notebook: str) -> dict[str, object]:
    """The values, checked by name and by type."""
    check_names(values, declared, notebook)
    return {name: check_value(declared[name], value, notebook) for name, value in values.items()}


def parse_text(parameter: Parameter, text: str, notebook: str) -> object:
    """The value that a text typed on the command line means, by the declared type.

    ``0.3`` is a number, ``true`` is True, ``[1, 2]`` and ``1,2`` are lists; brackets may leave out the quotes of texts.
    """
    try:
        return _parse_list(text, parameter.element) if parameter.type is list else _parse_one(text, parameter.type)
    except (ValueError, KeyError):
        raise _refuse(parameter, repr(text), notebook) from None


def _parse_one(text: str, wanted: type) -> object:
    return _TRUTH[text.strip().lower()] if wanted is bool else wanted(text)


def _parse_list(text: str, element: type | None) -> list:
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    try:
        items = ast.literal_eval(f"[{inner}]")
    except (SyntaxError, ValueError):
        items = [item.strip().strip("'\"") for item in inner.split(",")]
    return [item if element in (None, type(item)) else _parse_one(str(item), element) for item in items]
