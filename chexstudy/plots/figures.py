"""Every figure of a study by its name: ``figures.zero_shot.show(study, results)``.

A figure is imported when it is first asked for, so that a notebook loads what it draws and no more.
"""

from dataclasses import dataclass
from importlib import import_module

from chexstudy.inputs.yaml_files import read_data_beside
from chexstudy.plots.figure import Figure


@dataclass(frozen=True)
class Entry:
    """What is known of a figure beside its numbers."""

    module: str  # of `chexstudy.plots`, where it is made
    title: str  # heading in the gallery
    regenerates: str  # the published figure


CATALOGUE = {name: Entry(**facts) for name, facts in read_data_beside(__file__).items()}


def __getattr__(name: str) -> Figure:
    if name not in CATALOGUE:
        raise AttributeError(f"there is no figure {name!r}: there are {', '.join(CATALOGUE)}")
    return getattr(import_module(f"chexstudy.plots.{CATALOGUE[name].module}"), name)


def __dir__() -> list[str]:
    return list(CATALOGUE)
