"""Figures as tests look at them: each part made from the tables of a notebook, and the marks in the panels."""

from types import SimpleNamespace

import matplotlib.pyplot
import numpy as np
from matplotlib.text import Text

matplotlib.pyplot.switch_backend("Agg")


def draw(figure, *tables, **words) -> SimpleNamespace:
    """All parts of a figure: ``numbers``, ``drawing`` with its ``axes``, ``caption`` and the sentence ``said``."""
    chosen = figure.choose(*tables)
    drawing = figure.plot(*chosen)
    caption, said = figure.describe(*chosen, **words), figure.conclude(*chosen)
    return SimpleNamespace(numbers=chosen[0], drawing=drawing, axes=drawing.axes, caption=caption, said=said)


def plot(figure, *tables):
    return figure.plot(*figure.choose(*tables))


def describe(figure, *tables, **words) -> str:
    return figure.describe(*figure.choose(*tables), **words)


def marks(axes, gid: str, along: str = "") -> list:
    """Places of the marks drawn under a group id, as (x, y), or ``along`` one axis alone."""
    lines = [line for line in axes.get_lines() if line.get_gid() == gid]
    points = [(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    return [point["xy".index(along)] for point in points] if along else points


def texts(drawing) -> list[str]:
    """All strings on a figure, also those of nested figures."""
    return [text.get_text() for text in drawing.findobj(Text)]


def titles(drawing) -> list[str]:
    """Of the panels, without their letters."""
    return [axes.get_title(loc="left").rpartition("$   ")[2] for axes in drawing.axes]


def read_nothing(image_id: str) -> np.ndarray:
    """The pixels of an image that shows nothing."""
    return np.zeros((8, 8), dtype=np.uint8)
