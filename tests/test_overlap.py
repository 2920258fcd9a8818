"""Stability of selections, by hand and against simulation."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from chexstudy.curation.choice import choose_highest
from chexstudy.curation.quality.overlap import OVERLAP_COLUMNS, compare_selections, jaccard, jaccard_by_chance
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


def test_masks_and_choices_side_by_side():
    scores = np.array([4.0, 3, 2, 1, 0])
    table = compare_selections(
        {"mask": mask("x...x"), "up": choose_highest(scores, 2), "down": choose_highest(-scores, 2)}
    )
    assert tuple(table.columns) == OVERLAP_COLUMNS
    rows = table.set_index(["first", "second"])
    assert list(rows.index) == [("mask", "up"), ("mask", "down"), ("up", "down")]
    assert rows.jaccard["mask", "up"] == pytest.approx(1 / 3)
    assert np.isnan(rows.rank_correlation["mask", "up"])
    assert (rows.jaccard["up", "down"], rows.rank_correlation["up", "down"]) == (0, pytest.approx(-1))


def test_rank_correlation_with_ties_is_that_of_scipy():
    first, second = np.random.default_rng(1).integers(0, 5, (2, 60)).astype(float)
    chosen = {"a": choose_highest(first, 10), "b": choose_highest(second, 10), "c": choose_highest(np.ones(60), 10)}
    found = compare_selections(chosen).rank_correlation
    assert found[0] == pytest.approx(spearmanr(first, second).statistic)
    assert found[1:].isna().all()


def test_wrong_input_is_one_sentence():
    with pytest.raises(StudyError, match="at least two"):
        compare_selections({"a": mask("x.")})
    with pytest.raises(StudyError, match="2 and 3 decisions"):
        compare_selections({"a": mask("x."), "b": mask("x..")})
