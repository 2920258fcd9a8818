"""How alike the choices of a curator are across seeds, batch sizes, encoders or methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, rankdata

from chexstudy.curation.choice import Choice, choose_highest
from chexstudy.errors import StudyError

STABILITY_COLUMNS = (
    *("first", "second", "kept_first", "kept_second", "shared", "jaccard", "jaccard_by_chance"),
    *("rank_correlation", "top_overlap"),
)


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Pairs kept by both over pairs kept by either; 1 where neither keeps any.

    Args:
        first: ``(pairs,)`` bool.
        second: the same of the same pairs.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
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


def compare_selections(
    selections: Mapping[str, np.ndarray | pd.Series | Choice], budget: int | None = None
) -> pd.DataFrame:
    """Compare every two selections of the same pairs.

    Args:
        selections: by name, each in one of four forms: a bool mask ``(pairs,)`` of what was kept; scores ``(pairs,)``,
            the higher the sooner kept, NaN where a pair has none; either of them as a Series indexed by ``image_id``,
            in any order; or a `Choice`, which has both.
        budget: how many of the highest scores count as kept where only scores are given, and for ``top_overlap``.
            Without it, ``top_overlap`` is taken at the smaller of the two sizes.

    Returns:
        One row for each two, columns `STABILITY_COLUMNS`: sizes and the number shared; ``jaccard`` and what two random
        subsets of these sizes would have (`jaccard_by_chance`); where both have scores, Spearman's
        ``rank_correlation`` over the pairs scored by both (NaN if one is constant), and ``top_overlap``, the share of
        the highest ``budget`` scores of one that are among those of the other.
    """
    if len(selections) < 2:
        raise StudyError("stability needs at least two selections to compare: name two seeds, batches or methods.")
    read = _align({name: _read(name, selection) for name, selection in selections.items()})
    pairs = len(next(iter(read.values())))
    if budget is not None and not 1 <= budget <= pairs:
        raise StudyError(f"the budget must be from 1 to the {pairs:,} pairs there are, not {budget:,}.")
    kept = {name: one.mask(name, budget) for name, one in read.items()}
    rows = []
    for first, second in combinations(read, 2):
        sizes = (int(kept[first].sum()), int(kept[second].sum()))
        shared = int((kept[first] & kept[second]).sum())
        alike = (jaccard(kept[first], kept[second]), jaccard_by_chance(*sizes, pairs))
        ranked = _compare_scores(read[first].scores, read[second].scores, budget or min(sizes))
        rows.append((first, second, *sizes, shared, *alike, *ranked))
    return pd.DataFrame(rows, columns=STABILITY_COLUMNS)


@dataclass(frozen=True)
class _Read:
    kept: np.ndarray | None
    scores: np.ndarray | None
    image_ids: pd.Index | None

    def __len__(self) -> int:
        return len(self.scores if self.kept is None else self.kept)

    def mask(self, name: str, budget: int | None) -> np.ndarray:
        if self.kept is not None:
            return self.kept
        if budget is None:
            raise StudyError(f"{name} has scores but no decisions: say with budget how many of the highest are kept.")
        kept = np.zeros(len(self), dtype=bool)
        kept[_top(self.scores, budget)] = True
        return kept


def _read(name: str, selection: np.ndarray | pd.Series | Choice) -> _Read:
    if isinstance(selection, Choice):
        kept = np.zeros(len(selection.scores), dtype=bool)
        kept[selection.rows] = True
        return _Read(kept, np.asarray(selection.scores, dtype=float), None)
    image_ids = selection.index if isinstance(selection, pd.Series) else None
    if image_ids is not None and image_ids.has_duplicates:
        raise StudyError(
            f"{name} has the pair of row {int(image_ids.duplicated().argmax())} twice: give each pair once."
        )
    values = np.asarray(selection)
    if values.dtype == bool:
        return _Read(values, None, image_ids)
    return _Read(None, values.astype(float), image_ids)


def _align(read: dict[str, _Read]) -> dict[str, _Read]:
    """Bring selections indexed by ``image_id`` into one order, and make sure that all are of the same pairs."""
    lengths = {name: len(one) for name, one in read.items()}
    (first, length), *others = lengths.items()
    for name, other in others:
        if other != length:
            raise StudyError(
                f"{first} has {length:,} pairs and {name} has {other:,}: compare choices of the same pairs."
            )
    indexed = [name for name, one in read.items() if one.image_ids is not None]
    if indexed and len(indexed) < len(read):
        absent = next(name for name in read if name not in indexed)
        raise StudyError(f"{indexed[0]} names its pairs and {absent} does not: give all with image_id, or none.")
    if not indexed:
        return read
    order = read[first].image_ids
    aligned = {}
    for name, one in read.items():
        place = one.image_ids.get_indexer(order)
        if (place < 0).any():
            raise StudyError(f"{name} lacks {(place < 0).sum()} pairs of {first}: compare choices of the same pairs.")
        kept, scores = (None if values is None else values[place] for values in (one.kept, one.scores))
        aligned[name] = _Read(kept, scores, order)
    return aligned


def _top(scores: np.ndarray, budget: int) -> np.ndarray:
    return choose_highest(np.where(np.isnan(scores), -np.inf, scores), budget).rows


def _compare_scores(first: np.ndarray | None, second: np.ndarray | None, budget: int) -> tuple[float, float]:
    if first is None or second is None:
        return np.nan, np.nan
    both = ~(np.isnan(first) | np.isnan(second))
    ranks = [rankdata(scores[both]) for scores in (first, second)]
    varied = all(len(one) and one.min() < one.max() for one in ranks)
    correlation = float(np.corrcoef(*ranks)[0, 1]) if varied else np.nan
    overlap = len(np.intersect1d(_top(first, budget), _top(second, budget))) / budget if budget else np.nan
    return correlation, overlap
