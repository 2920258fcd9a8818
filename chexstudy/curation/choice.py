"""A subset chosen at a budget: what every offline method of curation returns."""

import math
from dataclasses import dataclass

import numpy as np

from chexstudy.errors import StudyError


@dataclass(frozen=True)
class Choice:
    """Pairs chosen from a set."""

    rows: np.ndarray  # row numbers of the chosen pairs ``(budget,)``, int64, ascending
    # ``(pairs,)`` float64, the higher the sooner kept; the chosen rows are those of the highest scores, ties apart, so
    # the same method at a smaller budget can be read off where its paper defines a ranking.
    scores: np.ndarray
    weights: np.ndarray  # weight of each chosen pair in training ``(budget,)``; 1 unless the method rescales
    note: str = ""  # what the user should know of how it was chosen, in sentences
    # ``(pairs,)`` bool, what a filter had set aside before anything was chosen; None of a method without one
    set_aside: np.ndarray | None = None

    @property
    def kept(self) -> np.ndarray:
        """Which of the pairs are chosen ``(pairs,)``, bool."""
        kept = np.zeros(len(self.scores), dtype=bool)
        kept[self.rows] = True
        return kept


def count_budget(keep: float, pairs: int) -> int:
    """How many pairs a budget stands for: a share up to 1, or above that a whole number of pairs.

    The share is rounded to the nearest whole number of pairs, but never to none.
    """
    if not np.isfinite(keep) or keep <= 0:
        raise StudyError(f"the budget must be a share above 0 and up to 1, or a number of pairs, not {keep:g}.")
    if keep <= 1:
        return max(1, round(keep * pairs))
    if keep != int(keep):
        raise StudyError(f"a budget above 1 is a number of pairs and must be whole, not {keep:g}.")
    if keep > pairs:
        raise StudyError(f"the budget of {int(keep):,} pairs is more than the {pairs:,} pairs there are.")
    return int(keep)


def choose_highest(scores: np.ndarray, budget: int, note: str = "") -> Choice:
    """The ``budget`` rows of the highest scores ``(pairs,)``; of equal ones, the first."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:budget]
    return Choice(np.sort(order), np.asarray(scores, dtype=np.float64), np.ones(budget), note)


def choose_first(sequence: np.ndarray, budget: int, pairs: int) -> Choice:
    """The first ``budget`` of row numbers in the order of picking; scores fall, and are 0 for rows not picked."""
    scores = np.zeros(pairs)
    scores[sequence] = np.arange(len(sequence), 0, -1)
    return choose_highest(scores, budget)


def check_option(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise a StudyError unless the option lies from ``least`` to ``most``."""
    if not least <= value <= most:
        span = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise StudyError(f"{name} must be {span}, not {value}.")
