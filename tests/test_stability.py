"""Stability of selections, by hand and against simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from chexstudy.curation.choice import choose_highest
from chexstudy.curation.quality.overlap import STABILITY_COLUMNS, compare_selections, jaccard, jaccard_by_chance
from chexstudy.errors import StudyError


def mask(text):
    return np.array([one == "x" for one in text])


def test_jaccard_by_hand():
    assert jaccard(mask("xx.."), mask("xx..")) == 1
    assert jaccard(mask("xx.."), mask("..xx")) == 0
    assert jaccard(mask("xxx."), mask(".xxx")) == 0.5
    assert jaccard(mask("...."), mask("....")) == 1
    with pytest.raises(StudyError, match="4 and 3 decisions"):
        jaccard(mask("xx.."), mask("xx."))


def test_chance_by_hand_and_by_simulation():
    # Two of three twice: they share both pairs in 1 of 3 cases (Jaccard 1), else one of three (1/3).
    assert jaccard_by_chance(2, 2, 3) == pytest.approx(1 / 3 + 2 / 3 / 3)
    assert jaccard_by_chance(5, 5, 5) == pytest.approx(1)
    assert jaccard_by_chance(0, 3, 5) == 0
    rng = np.random.default_rng(0)
    drawn = [
        jaccard(*(np.isin(np.arange(200), rng.choice(200, size, replace=False)) for size in (40, 60)))
        for _ in range(3000)
    ]
    assert jaccard_by_chance(40, 60, 200) == pytest.approx(np.mean(drawn), abs=0.003)


def test_masks_scores_and_choices_side_by_side():
    scores = np.array([4.0, 3, 2, 1, 0])
    table = compare_selections(
        {"mask": mask("x...x"), "scores": scores, "choice": choose_highest(-scores, 2)}, budget=2
    )
    assert tuple(table.columns) == STABILITY_COLUMNS
    rows = table.set_index(["first", "second"])
    one = rows.loc["mask", "scores"]
    assert (one.kept_first, one.kept_second, one.shared, one.jaccard) == (2, 2, 1, pytest.approx(1 / 3))
    assert np.isnan(one.rank_correlation)
    assert np.isnan(one.top_overlap)
    both = rows.loc["scores", "choice"]
    assert (both.shared, both.rank_correlation, both.top_overlap) == (0, pytest.approx(-1), 0)


def test_rank_correlation_with_ties_is_that_of_scipy_and_skips_pairs_without_a_score():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 5, 60).astype(float), rng.integers(0, 5, 60).astype(float)
    found = compare_selections({"a": first, "b": second}, budget=10).rank_correlation[0]
    assert found == pytest.approx(spearmanr(first, second).statistic)
    holed = second.copy()
    holed[:20] = np.nan
    found = compare_selections({"a": first, "b": holed}, budget=10)
    assert found.rank_correlation[0] == pytest.approx(spearmanr(first[20:], second[20:]).statistic)
    assert found.kept_second[0] == 10
    assert np.isnan(compare_selections({"a": first, "b": np.ones(60)}, budget=10).rank_correlation[0])


def test_top_overlap_is_at_the_budget_or_at_the_smaller_size():
    ascending = np.arange(10.0)
    swapped = np.array([0, 1, 2, 3, 4, 5, 9, 7, 8, 6], dtype=float)
    chosen = {"a": choose_highest(ascending, 4), "b": choose_highest(swapped, 3)}
    # The three highest of one are rows 9, 8, 7, of the other rows 6, 8, 7; of two, rows 9, 8 and 6, 8.
    assert compare_selections(chosen).top_overlap[0] == pytest.approx(2 / 3)
    assert compare_selections(chosen, budget=2).top_overlap[0] == pytest.approx(1 / 2)


def test_series_are_aligned_by_image():
    kept = pd.Series([True, True, False, False], index=["a", "b", "c", "d"])
    table = compare_selections({"one": kept, "two": kept.iloc[[3, 1, 0, 2]]})
    assert table.jaccard[0] == 1
    with pytest.raises(StudyError, match="two lacks 1 pairs of one"):
        compare_selections({"one": kept, "two": kept.rename({"a": "z"})})
    with pytest.raises(StudyError, match="two does not"):
        compare_selections({"one": kept, "two": kept.to_numpy()})
    with pytest.raises(StudyError, match="one has the pair of row 1 twice"):
        compare_selections({"one": kept.rename({"b": "a"}), "two": kept})


def test_every_two_are_compared_once():
    table = compare_selections({name: mask("xx..") for name in "abc"})
    assert list(zip(table["first"], table["second"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_wrong_input_is_one_sentence():
    with pytest.raises(StudyError, match="at least two"):
        compare_selections({"a": mask("x.")})
    with pytest.raises(StudyError, match="a has 2 pairs and b has 3"):
        compare_selections({"a": mask("x."), "b": mask("x..")})
    with pytest.raises(StudyError, match="a has scores but no decisions"):
        compare_selections({"a": np.arange(3.0), "b": mask("x..")})
    with pytest.raises(StudyError, match="from 1 to the 3 pairs"):
        compare_selections({"a": np.arange(3.0), "b": mask("x..")}, budget=4)
