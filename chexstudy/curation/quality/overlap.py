"""How alike the choices of a curator are across seeds, batch sizes, encoders or methods."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, rankdata

from chexstudy.curation.choice import Choice
from chexstudy.errors import StudyError

OVERLAP_COLUMNS = ("first", "second", "jaccard", "jaccard_by_chance", "rank_correlation")


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Pairs kept by both over pairs kept by either, ``(pairs,)`` bool each; 1 where neither keeps any."""
    if first.shape != second.shape:
        raise StudyError(f"{first.size:,} and {second.size:,} decisions cannot be compared: take the same pairs.")
    either = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / either if either else 1.0


def jaccard_by_chance(first: int, second: int, pairs: int) -> float:
    """Expected `jaccard` of two random subsets of these sizes, exactly: their overlap is hypergeometric."""
    if first == second == 0:
        return 1.0
    shared = np.arange(max(0, first + second - pairs), min(first, second) + 1)
    probability = hypergeom(pairs, first, second).pmf(shared)
    return float(np.sum(probability * shared / (first + second - shared)))


def compare_selections(selections: Mapping[str, np.ndarray | Choice]) -> pd.DataFrame:
    """Compare every two selections of the same pairs, masks ``(pairs,)`` of what was kept or choices with scores.

    One row for each two: ``jaccard``, what two random subsets of these sizes would have (`jaccard_by_chance`), and
    between two choices Spearman's ``rank_correlation`` of the scores (NaN if one is constant).
    """
    if len(selections) < 2:
        raise StudyError("stability needs at least two selections to compare: name two seeds, batches or methods.")
    masks = {name: one.kept if isinstance(one, Choice) else one for name, one in selections.items()}
    rows = []
    for first, second in combinations(masks, 2):
        kept = masks[first], masks[second]
        alike = jaccard(*kept), jaccard_by_chance(*(int(one.sum()) for one in kept), len(kept[0]))
        rows.append((first, second, *alike, _correlate_ranks(selections[first], selections[second])))
    return pd.DataFrame(rows, columns=OVERLAP_COLUMNS)


def _correlate_ranks(first: np.ndarray | Choice, second: np.ndarray | Choice) -> float:
    if not (isinstance(first, Choice) and isinstance(second, Choice)):
        return np.nan
    ranks = [rankdata(one.scores) for one in (first, second)]
    varied = all(one.min() < one.max() for one in ranks)
    return float(np.corrcoef(*ranks)[0, 1]) if varied else np.nan
