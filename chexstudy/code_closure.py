"""The code that computes an artifact: a module and whatever of the package it imports, itself or through others.

Comments, docstrings and layout do not count, nor do the modules that start, tell, show and store what others compute: a
change in them cannot change a number.
"""

import ast
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FrameType

from chexstudy import paths

Makers = Callable | tuple[Callable, ...] | None  # functions or classes whose modules compute something
_COMPUTE_NOTHING = {
    *("arrays", "children", "code_closure", "errors", "paths", "progress", "pseudonyms", "runs", "steps"),
    *("workflow", "plots", "cli"),
}


@cache
def hash_closure(modules: str) -> str:
    """Hash of the code of modules, their names joined by a comma, and of what they import, 12 hex digits.

    For what lies outside the package, such as a notebook, the whole package counts.
    """
    digest = hashlib.sha256()
    for name in sorted({name for module in modules.split(", ") for name in list_closure(module)}):
        digest.update(f"{name} {_read_module(name)[0]}\n".encode())
    return digest.hexdigest()[:12]


@cache
def list_closure(module: str) -> tuple[str, ...]:
    """The modules of the package that compute what a module computes, itself among them, in order of their names."""
    ahead = [module] if _locate(module) else [_name_module(path) for path in paths.PACKAGE.rglob("*.py")]
    found: set[str] = set()
    while ahead:
        name = ahead.pop()
        if name not in found and not _COMPUTE_NOTHING.intersection(name.split(".")[1:2]):
            found.add(name)
            ahead += _read_module(name)[1]
    return tuple(sorted(found))


def name_computing_modules(by: Makers, frame: FrameType) -> str:
    """The modules of functions or classes, or without any of a frame, also where it is run as ``python -m``."""
    makers = by if isinstance(by, tuple) else (by,) if by else ()
    spaces = [vars(sys.modules[one.__module__]) for one in makers] or [frame.f_globals]
    return ", ".join(spec.name if (spec := space.get("__spec__")) else space["__name__"] for space in spaces)


def _locate(module: str) -> Path | None:
    """The file of a module of the package, None of anything else."""
    place = paths.REPOSITORY.joinpath(*module.split("."))
    files = (place / "__init__.py", place.with_suffix(".py")) if place.is_relative_to(paths.PACKAGE) else ()
    return next((path for path in files if path.is_file()), None)


def _name_module(path: Path) -> str:
    return ".".join(path.relative_to(paths.REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


@cache
def _read_module(name: str) -> tuple[str, list[str]]:
    """Hash of a module's code and of the files beside it that are no code, and the modules of the package it imports.

    A module in a folder imports the ``__init__`` of that folder.
    """
    path = _locate(name)
    tree = ast.parse(path.read_bytes())
    _leave_out_words(tree)
    digest = hashlib.sha256(ast.dump(tree).encode())
    for data in sorted(path.parent.glob("[!._]*.*")):
        if data.suffix != ".py" and data.is_file():
            digest.update(data.name.encode() + b"\0" + data.read_bytes())
    imported = [name.rpartition(".")[0], *find_imports(tree)]
    return digest.hexdigest(), [one for one in imported if _locate(one)]


def find_imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported, inside of functions too, and may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _leave_out_words(tree: ast.AST) -> None:
    """Take docstrings away, and imports that only type checkers read."""
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    del node.body[0]
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                node.body = []


@cache
def code_revision() -> str:
    """The git commit of the checkout, ``+changes`` if the working tree differs, else ``unversioned``."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(paths.REPOSITORY), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "chexstudy"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unversioned"
    return commit + ("+changes" if status else "")
