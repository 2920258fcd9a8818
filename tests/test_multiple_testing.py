import numpy as np
import pytest

from chexstudy.statistics.multiple_testing import correct_by_holm


def test_holm_by_hand():
    assert correct_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_by_holm([0.9, 0.8]) == pytest.approx([1, 1])


def test_a_test_that_was_not_made_counts_for_nothing():
    made = correct_by_holm([0.01, 0.03])
    assert correct_by_holm([np.nan, 0.01, np.nan, 0.03]) == pytest.approx(
        [np.nan, made[0], np.nan, made[1]], nan_ok=True
    )
    assert correct_by_holm([]).shape == (0,)
    assert (correct_by_holm([0.2, 0.01, 0.5, 0.04]) >= [0.2, 0.01, 0.5, 0.04]).all()
