"""Savings at equal performance: rising fits, costs read off, bounds where nothing was measured, intervals."""

import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.experiments.equal_performance import (
    AT_LEAST,
    AT_MOST,
    REACHED,
    Curve,
    fit_rising,
    measure_saving,
    read_off_cost,
)


def pool_adjacent_violators(values):
    """The textbook algorithm, as an independent reference."""
    blocks = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (second, n), (first, m) = blocks.pop(), blocks.pop()
            blocks.append([(first * m + second * n) / (m + n), m + n])
    return [value for value, count in blocks for _ in range(count)]


def curve(costs, values, spread=None):
    """A curve whose replicates are its values, moved by each of ``spread``."""
    spread = np.zeros(100) if spread is None else np.asarray(spread)
    values = np.asarray(values, dtype=float)
    return Curve(np.asarray(costs, dtype=float), values, values + spread[:, None])


def test_rising_values_are_those_of_pooling_adjacent_violators():
    assert fit_rising(np.array([1.0, 3.0, 2.0, 4.0])).tolist() == [1.0, 2.5, 2.5, 4.0]
    assert fit_rising(np.array([3.0, 2.0, 1.0])).tolist() == [2.0, 2.0, 2.0]
    drawn = np.random.default_rng(0).normal(size=(50, 6))
    assert np.allclose(fit_rising(drawn), [pool_adjacent_violators(row) for row in drawn])
    assert np.isnan(fit_rising(np.array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]]))).tolist() == [[True] * 3, [False] * 3]


def test_costs_are_read_off_in_the_logarithm():
    costs, values = np.array([1.0, 4.0, 16.0]), np.array([0.6, 0.7, 0.7])
    wanted = np.array([0.65, 0.7, 0.6001, 0.6, 0.5, 0.71, np.nan])
    read = read_off_cost(costs, np.broadcast_to(values, (len(wanted), 3)), wanted)
    assert read[:2] == pytest.approx([2.0, 4.0])
    assert 1.0 < read[2] < 1.01
    assert read[3:6].tolist() == [0.0, 0.0, np.inf]
    assert np.isnan(read[6])
    assert read_off_cost(np.array([3.0]), np.array([0.6]), np.array(0.5)) == 0.0
    assert read_off_cost(np.array([3.0]), np.array([0.6]), np.array(0.7)) == np.inf


NAN = float("nan")
OTHERS = ([1, 4, 16], [0.6, 0.7, 0.8])


@pytest.mark.parametrize(
    ("cheap", "dear", "value", "state", "ends"),
    [
        # A point saves what the curve needs more, and a curve what it needs less than a point.
        (([2], [0.7]), OTHERS, 0.5, REACHED, (0.5, 0.5)),
        (([8], [0.7]), OTHERS, -1.0, REACHED, (-1.0, -1.0)),
        (OTHERS, ([10], [0.7]), 0.6, REACHED, (0.6, 0.6)),
        # Beyond the curve there is a bound. Surely beyond: the interval begins there, and where it ends is not known.
        (([2], [0.75]), ([1, 4], [0.6, 0.7]), 0.5, AT_LEAST, (0.5, NAN)),
        (([2], [0.5]), ([1, 4], [0.6, 0.7]), -1.0, AT_MOST, (NAN, -1.0)),
        (([1, 4], [0.6, 0.7]), ([10], [0.5]), 0.9, AT_LEAST, (0.9, NAN)),
        (([1, 4], [0.6, 0.7]), ([10], [0.9]), 0.6, AT_MOST, (NAN, 0.6)),
        # One budget gives bounds: all pairs reach what it reaches; at what cost is not known.
        (([4], [0.75]), ([10], [0.7]), 0.6, AT_LEAST, (0.6, NAN)),
        (([4], [0.65]), ([10], [0.7]), 0.6, AT_MOST, (NAN, 0.6)),
    ],
)
def test_a_saving_is_read_off_or_bounded(cheap, dear, value, state, ends):
    saving = measure_saving(curve(*cheap), curve(*dear))
    assert (saving.value, saving.state) == (pytest.approx(value), state)
    assert (saving.ci_low, saving.ci_high) == pytest.approx(ends, nan_ok=True)


def test_the_interval_is_that_of_the_cost_read_off():
    spread = np.linspace(-0.04, 0.04, 1001)
    others = curve([1, 4, 16], [0.6, 0.7, 0.8], np.zeros(1001))
    point = curve([1], [0.7], spread)
    saving = measure_saving(point, others)
    # The outer 2.5 % of the performance lie 0.038 from 0.7, a factor of 4 ** 0.38 in cost.
    assert saving.ci_low == pytest.approx(1 - 4**-0.62, abs=2e-3)
    assert saving.ci_high == pytest.approx(1 - 4**-1.38, abs=2e-3)
    # What moves both sides alike moves no saving.
    together = measure_saving(point, curve([1, 4, 16], [0.6, 0.7, 0.8], spread))
    assert (together.ci_low, together.ci_high) == (pytest.approx(0.75), pytest.approx(0.75))
    few = measure_saving(point, others, patients=8)
    assert few.ci_low < saving.ci_low
    assert np.isnan(measure_saving(point, others, patients=4).ci_low)
    # One that runs off the curve on both sides is open.
    wide = measure_saving(curve([1], [0.7], np.linspace(-0.2, 0.2, 1001)), others)
    assert (wide.value, wide.state) == (pytest.approx(0.75), REACHED)
    assert np.isnan([wide.ci_low, wide.ci_high]).all()


def test_what_cannot_be_a_curve_is_refused():
    with pytest.raises(StudyError, match="ascending"):
        curve([4, 1], [0.6, 0.7])
    with pytest.raises(StudyError, match="positive"):
        curve([0, 1], [0.6, 0.7])
    with pytest.raises(StudyError, match="not two curves"):
        measure_saving(curve([1, 2], [0.6, 0.7]), curve([1, 2], [0.6, 0.7]))
