"""How a verb of the command is declared, and a parser whose complaints are one sentence.

A verb is a function with its help as docstring: what it does, ``examples:``, and what it ``writes:``.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from chexstudy import __version__, paths
from chexstudy.errors import suggest

_EPILOG = re.compile(r"^(?=examples?:|first steps:|writes:)", re.MULTILINE)


@dataclass(frozen=True)
class Verb:
    """One verb, or one action of a verb."""

    name: str  # ``cohort build`` is an action of ``cohort``
    summary: str
    text: str
    act: Callable[[argparse.Namespace], int | None] | None = None  # returns the exit status; None asks for an action
    options: Sequence[tuple[tuple[str, ...], dict]] = ()  # made by `option`
    groups: dict[str, Sequence[tuple[tuple[str, ...], dict]]] = field(default_factory=dict)  # more, under a title


def verb(name: str, summary: str, *options, **groups) -> Callable[[Callable], Verb]:
    """Make a verb of a function that takes what was typed."""
    return lambda act: Verb(name, summary, inspect.cleandoc(act.__doc__), act, options, groups)


def option(name: str, help: str, repeated: bool = False, **rules) -> tuple[tuple[str, ...], dict]:
    """What `argparse` is told of an option; the default is added to its ``help``, and ``repeated`` may be given several
    times.

    In a name, ``--study S`` takes a value, ``-p --parameter NAME VALUE`` two, ``--yes`` is a switch, and ``study
    STUDY``, without a dash, must be given.
    """
    words = name.split()
    names = [word for word in words if word.startswith("-")] or words[:1]
    values = words[len(names) :]
    rules["help"] = help + (f" (default: {rules['default']})" if "default" in rules else "")
    if isinstance(rules.get("default"), int):
        rules["type"] = int
    if repeated:
        rules |= {"action": "append", "default": []}
    if len(values) > 1:
        rules |= {"nargs": len(values), "metavar": tuple(values)}
    elif values:
        rules["metavar"] = values[0]
    elif "choices" not in rules:
        rules["action"] = "store_true"
    return tuple(names), rules


STUDY = option("--study S", "the study", default="demo")
SEED = option("--seed K", "its seed", default=0)
QUIET = option("--quiet", "do not repeat what the notebooks print")


def run_options(profile: str = "that of the study, else demo") -> list[tuple[tuple[str, ...], dict]]:
    """What every verb takes that runs notebooks; ``profile`` says which one it takes if none is named."""
    named = ", ".join(sorted(path.stem for path in paths.PROFILES.glob("*.yaml")))
    change = "let a parameter differ from the study's value, and tell what is stale then; may be repeated"
    return [
        option("--profile P", f"set of parameters: {named}, or a .yaml of yours (default: {profile})"),
        option("--study S", "name of the run folder (default: the profile's name)"),
        option("--change NAME", change, repeated=True),
        option("-p --parameter NAME VALUE", "give a notebook parameter another value; may be repeated", repeated=True),
        option("--online", "let notebooks download models (default: local cache only)"),
        QUIET,
    ]


def make_parser(about: str, verbs: Iterable[Verb]) -> argparse.ArgumentParser:
    """The parser of all verbs; it leaves the function of the one typed in ``act`` and its parser in ``parser``."""
    parser = _new_parser(_Parser, "chexstudy", about)
    parser.set_defaults(debug=False, parser=parser, act=lambda options: parser.print_help())
    parser.add_argument("--version", action="version", version=f"chexstudy {__version__}")
    parsers, actions = {"": parser}, {"": parser.add_subparsers(title="verbs", metavar="VERB")}
    for one in verbs:
        above, _, name = one.name.rpartition(" ")
        if above not in actions:
            required = parsers[above].get_default("act") is None
            actions[above] = parsers[above].add_subparsers(title="actions", metavar="ACTION", required=required)
        parsers[one.name] = own = _new_parser(actions[above].add_parser, name, one.text, help=one.summary)
        own.set_defaults(act=one.act, parser=own)
        for title, options in [*one.groups.items(), ("", one.options)]:
            place = own.add_argument_group(title) if title else own
            for names, rules in options:
                place.add_argument(*names, **rules)
    return parser


def _new_parser(make: Callable[..., argparse.ArgumentParser], name: str, text: str, **options):
    """A parser whose help shows a text, from its examples on below the options."""
    description, *epilog = _EPILOG.split(text, maxsplit=1)
    parser = make(
        name,
        description=description.strip(),
        epilog="".join(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )
    # Without a default here, a verb does not undo a --debug given before it.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, like those of the rest of the study."""

    def error(self, message: str) -> NoReturn:
        choice = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[3])
            message = f"{choice[1]} cannot be {choice[2]!r}; it is one of {', '.join(known)}"
            # No slip of the finger leads to the verb that removes.
            message += _guess(choice[2], [one for one in known if one != "rm"])
        elif "-p/--parameter" in message:
            message = "-p takes a name and a value, for example `-p seed 3`"
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`.\n")

    def _print_message(self, message: str, file=None) -> None:
        # argparse would pass over a full disk.
        (file or sys.stderr).write(message)

    def refuse(self, argument: str) -> NoReturn:
        """Stop at an argument that no one takes."""
        own = [name for action in self._actions for name in action.option_strings]
        hint = _guess(argument, own)
        if not hint and argument.startswith("--") and "--parameter" in own:
            hint = ": what notebooks take is given as `-p name value`"
        self.error(f"unrecognised argument {argument!r}{hint}")


def _guess(word: str, known: Sequence[str]) -> str:
    guess = suggest(word, known)
    return guess and f": {guess}"
