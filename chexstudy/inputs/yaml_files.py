"""YAML files of a user, read strictly: no key twice, no knots of aliases, nothing too deep or too large; and ours."""

import re
from pathlib import Path

import yaml

from chexstudy.errors import StudyError

_MOST_BYTES = 2**20
_MOST_NODES = 100_000  # aliases written out


class _Typed(yaml.SafeLoader):
    """YAML 1.1 reads ``3e-4`` as text; this loader reads it as the number it is."""


_Typed.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Words(yaml.BaseLoader):
    """Scalars are the texts that were written: ``no`` is no truth value, ``0017`` no number."""


_Words.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Words.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def read_data_beside(module: str) -> dict:
    """What lies in the YAML file beside a module of the package, named like it; ``module`` is its ``__file__``."""
    text = Path(module).with_suffix(".yaml").read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_yaml(path: Path, what: str, words: bool = False) -> object:
    """What a YAML file says; ``what`` is its name in messages.

    With ``words`` every value is the text that was written; else YAML's rules tell numbers and truth values.
    """
    if not path.is_file():
        raise StudyError(f"there is no {what} at {path}: check the path.")
    if path.stat().st_size > _MOST_BYTES:
        raise StudyError(f"{what} {path} has over {_MOST_BYTES:,} bytes, which no such file needs: check the path.")
    try:
        loader = (_Words if words else _Typed)(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        _measure_node(node, {}, f"{what} {path}")
        return loader.construct_document(node)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise StudyError(
            f"{what} {path} is not valid YAML{line}: {getattr(error, 'problem', None) or 'it is no text'}."
        ) from None
    except RecursionError:
        raise StudyError(f"{what} {path} is nested too deeply: take levels out.") from None


def _measure_node(node: yaml.Node, sizes: dict[int, int | None], what: str) -> int:
    """How many nodes there are with every alias written out."""
    line = node.start_mark.line + 1
    if id(node) in sizes:
        if sizes[id(node)] is None:
            raise StudyError(f"{what} holds itself by an alias at line {line}: write it out.")
        return sizes[id(node)]
    sizes[id(node)] = None
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise StudyError(f"{what} has {key.value!r} twice, again at line {key.start_mark.line + 1}: keep one.")
            seen.add(key.value)
    sizes[id(node)] = 1 + sum(_measure_node(child, sizes, what) for child in children)
    if sizes[id(node)] > _MOST_NODES:
        raise StudyError(f"{what} grows to over {_MOST_NODES:,} values by its aliases at line {line}: write them out.")
    return sizes[id(node)]
