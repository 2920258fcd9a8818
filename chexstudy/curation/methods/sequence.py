"""Choices of methods that pick one row after another."""

import numpy as np

from chexstudy.curation.choice import Choice, choose_highest


def choose_first(sequence: np.ndarray, budget: int, pairs: int) -> Choice:
    """The first rows of a sequence. The first has the highest score; rows that are not in the sequence have score 0.

    Args:
        sequence: row numbers in the order of picking, each at most once, at least ``budget`` of them.
        budget: rows to choose.
        pairs: number of all rows.
    """
    scores = np.zeros(pairs)
    scores[sequence] = np.arange(len(sequence), 0, -1)
    return choose_highest(scores, budget)
