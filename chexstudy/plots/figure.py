"""A figure of the study: drawn, captioned, stored with its numbers and said in one sentence, by one call."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure as Drawing

from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.saving import save_figure
from chexstudy.study import Study


@dataclass(frozen=True)
class Figure:
    """How one figure is made: its numbers are selected once, and drawn and put into words from there.

    ``select`` raises `NothingToDraw`, or gives the numbers, one row a mark; or, where they alone do not tell all that
    is drawn, a tuple of the numbers and of what the other three take after them.
    """

    name: str  # of its files, such as ``zero_shot``
    select: Callable[..., pd.DataFrame | tuple]
    plot: Callable[..., Drawing]
    describe: Callable[..., str]  # the caption: what is shown, with n, seeds and the kind of interval
    conclude: Callable[..., str]  # one sentence of what came out

    def choose(self, *tables) -> tuple:
        """What the figure is made of, numbers first."""
        if tables[0] is None:
            raise NothingToDraw("it was not measured, there is nothing to draw")
        chosen = self.select(*tables)
        return chosen if isinstance(chosen, tuple) else (chosen,)

    def show(self, study: Study, *tables, name: str = "", **words) -> Drawing | None:
        """Draw the figure, store it with caption and numbers, say what came out; or say why there is nothing to draw.

        The first of the tables is None where it could not be measured. ``name`` is that of the files, where a study has
        several figures of this kind; ``words`` are what only the caption tells, such as the seed of a map.
        """
        name = name or self.name
        try:
            chosen = self.choose(*tables)
        except NothingToDraw as reason:
            unlabelled = study.run.has("cohort.parquet") and not study.findings
            print(f"Figure {name}: {reason}{'; the cohort has no labels' if unlabelled else ''}.")
            return None
        drawing = self.plot(*chosen)
        save_figure(study.run, drawing, name, self.describe(*chosen, **words), chosen[0])
        print(self.conclude(*chosen))
        return drawing
