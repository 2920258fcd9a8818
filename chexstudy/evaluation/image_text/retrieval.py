"""Retrieval both ways: the report of an image among all reports, and an image of a report among all images.

What becomes of identical texts is a choice that moves recall, for normal reports repeat:

- ``collapse`` (default, as in the published protocol): identical texts are one candidate and one query, whose right
  answers are all images it describes;
- ``any_match``: every pair keeps a candidate and a query of its own, and every pair with an identical text is right;
- ``strict``: only a pair's own image and text are right; a model cannot tell identical texts apart, and gets what
  guessing among them gives.

Ranks are those expected when ties are broken at random: a model that maps everything to one point gets chance, not the
luck of the sorting order, by which the published code breaks ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.reports import training_text
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.image_text.zero_shot import normalise_rows
from chexstudy.evaluation.scores import Measured, scores_artifact
from chexstudy.evaluation.task import Fitted, Task
from chexstudy.statistics.ranking import weighted_median

DIRECTIONS = ("image_to_text", "text_to_image")
CUTOFFS = (1, 5, 10)
POLICIES = ("collapse", "any_match", "strict")
METRICS = (*(f"recall@{cutoff}" for cutoff in CUTOFFS), "median_rank", "mean_rank")
# Equal embeddings give cosines that differ in the last bits, depending on where in the matrix they stand.
_DECIMALS = 10
_ROWS_AT_ONCE = 1024


def rank_pairs(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, texts: Sequence[str], duplicates: str = "collapse"
) -> pd.DataFrame:
    """Rank the right answer of every pair in both directions, identical texts by one of `POLICIES`.

    Of embeddings ``(pairs, dim)`` and reports ``(pairs,)``. Texts that differ in white space alone are identical, and
    the first one's embedding counts.

    Gives one row a pair: ``text`` (number of its distinct text, -1 if the report is empty: such a pair is no query and
    no right answer, but its image stays a candidate), ``share`` (of the pair in its text as a query: one over the
    number of images with that text if identical texts are one, else 1) and, for each direction, ``<direction>_better``
    (wrong candidates nearer than the best right one), ``_tied`` (wrong ones as near) and ``_right`` (right ones as near
    as the best right one).
    """
    images, described = normalise_rows(image_embeddings), normalise_rows(text_embeddings)
    text_of_pair, first_pair = _number_texts(texts)
    if len(first_pair) == 0:
        raise StudyError("retrieval needs reports, and all of these are empty: choose a data set with reports.")
    with_text = text_of_pair >= 0
    ranks = pd.DataFrame({"text": text_of_pair, "share": 0.0})
    ranks.loc[with_text, "share"] = 1.0
    if duplicates == "collapse":
        ranks.loc[with_text, "share"] = 1 / _count_images(text_of_pair)[with_text]
        numbers = np.arange(len(first_pair))
        by_image = _rank(images, described[first_pair], text_of_pair, numbers)
        by_text = _rank(described[first_pair], images, numbers, text_of_pair)[text_of_pair]
    else:
        keys = text_of_pair if duplicates == "any_match" else np.where(with_text, np.arange(len(images)), -1)
        # Of identical texts the first one's embedding, so that they tie to the last bit.
        candidates = described[first_pair[text_of_pair[with_text]]]
        by_image = _rank(images, candidates, keys, keys[with_text])
        by_text = np.full((len(images), 3), -1, dtype=np.int64)
        by_text[with_text] = _rank(candidates, images, keys[with_text], keys)
    for column, name in enumerate(("better", "tied", "right")):
        ranks[f"image_to_text_{name}"] = np.where(with_text, by_image[:, column], -1)
        ranks[f"text_to_image_{name}"] = np.where(with_text, by_text[:, column], -1)
    return ranks


def _count_images(text_of_pair: np.ndarray) -> np.ndarray:
    """``(pairs,)``, how many pairs have the same text; 0 for those without."""
    return np.where(text_of_pair >= 0, np.bincount(text_of_pair + 1)[text_of_pair + 1], 0)


def _number_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The number of each pair's distinct text in order of appearance (-1 if empty), and each text's first pair."""
    text_of_pair = pd.factorize(pd.Series([" ".join(text.split()) or None for text in texts], dtype=object))[0]
    return text_of_pair, np.flatnonzero((text_of_pair >= 0) & ~pd.Series(text_of_pair).duplicated())


def _rank(queries, candidates, query_keys, candidate_keys) -> np.ndarray:
    """``(queries, 3)``: wrong candidates better than the best right one, wrong ones tied with it, right ones tied."""
    counts = np.zeros((len(queries), 3), dtype=np.int64)
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        similarity = np.round(queries[rows] @ candidates.T, _DECIMALS)
        right = query_keys[rows, None] == candidate_keys[None, :]
        best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
        tied = similarity == best
        counts[rows] = np.stack(
            [(similarity > best).sum(axis=1), (tied & ~right).sum(axis=1), (tied & right).sum(axis=1)], axis=1
        )
    return counts


def expected_recall(better: np.ndarray, tied: np.ndarray, right: np.ndarray, cutoff: int) -> np.ndarray:
    """Probability ``(queries,)`` that a right answer is among the first ``cutoff``, ties in random order.

    With j places left after the better ones, none of the first j of the ``tied + right`` equals is right with
    probability tied / (tied + right) * (tied - 1) / (tied + right - 1) ..., j factors.
    """
    places = cutoff - better
    missed = np.ones(len(better))
    for taken in range(cutoff):
        factor = np.maximum(tied - taken, 0) / np.maximum(tied + right - taken, 1)
        missed = np.where(taken < places, missed * factor, missed)
    return 1 - missed


def expected_rank(better: np.ndarray, tied: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank ``(queries,)`` of the first right answer, 1 the best, averaged over the orders of the tied ones."""
    return better + (tied + right + 1) / (right + 1)


def measure_ranks(ranks: pd.DataFrame, direction: str, weights: np.ndarray | None = None) -> np.ndarray:
    """Recall at 1, 5 and 10, median and mean rank in one direction.

    An image is one query; a distinct text is one query, shared in equal parts by the patients of its images when these
    are drawn. The candidates stay the same in every resample.

    Of `rank_pairs`; with weights ``(resamples, pairs)`` of `bootstrap_patients` it gives ``(resamples, 5)`` in the
    order of `METRICS`, without them, each pair once, ``(5,)``.
    """
    queries = (ranks["text"] >= 0).to_numpy()
    better, tied, right = (
        ranks.loc[queries, f"{direction}_{name}"].to_numpy(dtype=float) for name in ("better", "tied", "right")
    )
    share = np.ones(queries.sum()) if direction == "image_to_text" else ranks.loc[queries, "share"].to_numpy()
    drawn = np.ones((1, len(share))) if weights is None else weights[:, queries]
    weight = drawn * share
    rank = expected_rank(better, tied, right)
    measured = [expected_recall(better, tied, right, cutoff) for cutoff in CUTOFFS]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = weight @ np.stack([*measured, rank], axis=1) / weight.sum(axis=1, keepdims=True)
    values = np.insert(means, len(CUTOFFS), weighted_median(rank, weight), axis=1)
    return values[0] if weights is None else values


def measure_chance(ranks: pd.DataFrame, direction: str, duplicates: str = "collapse") -> np.ndarray:
    """What a model gets that finds all candidates equally near: ``(5,)`` in the order of `METRICS`."""
    queries = ranks["text"] >= 0
    blind = ranks.copy()
    alike = _count_images(ranks["text"].to_numpy())[queries]
    one_right = duplicates == "strict" or (duplicates == "collapse" and direction == "image_to_text")
    right = np.ones(queries.sum()) if one_right else alike
    if direction == "text_to_image":
        candidates = len(ranks)
    else:
        candidates = ranks.loc[queries, "text"].nunique() if duplicates == "collapse" else int(queries.sum())
    blind[f"{direction}_better"] = 0
    blind.loc[queries, f"{direction}_right"] = right
    blind.loc[queries, f"{direction}_tied"] = candidates - right
    return measure_ranks(blind, direction)


def measure_retrieval(
    ranks: Sequence[pd.DataFrame], weights: np.ndarray, duplicates: str = "collapse"
) -> list[Measured]:
    """Retrieval of one model in both directions, one `Measured` each; what chance gives stands beside it.

    Of `rank_pairs` on the same pairs by one policy, a table a seed, and weights ``(resamples, pairs)``.
    """
    queries = ranks[0]["text"] >= 0
    bounds = np.array([[0, 1] if metric.startswith("recall") else [1, np.inf] for metric in METRICS])
    measured = []
    for direction in DIRECTIONS:
        texts_as_queries = direction == "text_to_image" and duplicates == "collapse"
        n = ranks[0].loc[queries, "text"].nunique() if texts_as_queries else int(queries.sum())
        place = {"finding": "all", "setting": direction, "group": duplicates, "n": n, "positives": -1}
        chance = {"metric": [f"{metric} by chance" for metric in METRICS]}
        chance |= {"value": measure_chance(ranks[0], direction, duplicates)}
        measured.append(
            Measured(
                METRICS,
                pd.DataFrame([place]),
                np.stack([measure_ranks(one, direction)[:, None] for one in ranks]),
                np.stack([measure_ranks(one, direction, weights)[..., None] for one in ranks]),
                bounds=(bounds[:, :1], bounds[:, 1:]),
                beside=pd.DataFrame(chance).assign(**place),
            )
        )
    return measured


@dataclass(frozen=True)
class Retrieval(Task):
    """Every report among all of a data set, every image among all."""

    name = "retrieval"

    def can_score(self, rows: pd.DataFrame) -> bool:
        """Whether there is a report to look for."""
        return any(training_text(report) for report in rows.report)

    def fit(self, arm: EvaluatedModel) -> Fitted:
        """Nothing is chosen."""

        def rank(rows: pd.DataFrame) -> pd.DataFrame:
            texts = [training_text(report) for report in rows.report]
            return rank_pairs(arm.project(rows), arm.encode_texts(texts), texts)

        return Fitted(rank)

    def read(self, evaluation: Evaluation, arm: str, seed: int, rows: pd.DataFrame) -> pd.DataFrame:
        """The kept ranks of one data set."""
        data_set = f"{rows.source.iloc[0]}/{rows.split.iloc[0]}"
        return evaluation.run.read_table(scores_artifact(arm, seed, self.name, data_set))

    def measure(self, evaluation: Evaluation, rows: pd.DataFrame, scores: Sequence[pd.DataFrame]) -> list[Measured]:
        """Both directions."""
        return measure_retrieval(scores, evaluation.draw_patients(rows)[0])
