"""What is saved at equal performance: the cost at which others reach it, read off their performance against cost.

A few trainings at several budgets are points of a curve. More cost should not make a model worse, so the points are
first made to rise (isotonic regression: the closest rising values; Barlow et al. 1972, Statistical Inference under
Order Restrictions), and between them performance is taken to be linear in the logarithm of the cost. Nothing is
extrapolated: beyond the points measured there is a bound and no value.
"""

from dataclasses import dataclass

import numpy as np

from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import interval

REACHED, AT_LEAST, AT_MOST = "reached", "at_least", "at_most"


@dataclass(frozen=True)
class Curve:
    """Performance at several costs, or at one."""

    costs: np.ndarray  # ``(points,)``, positive, ascending
    values: np.ndarray  # ``(points,)``, the performance
    # ``(resamples, points)``, the performance in each resample; those of two curves in the same ones
    replicates: np.ndarray

    def __post_init__(self):
        costs = np.asarray(self.costs, dtype=float)
        if not (costs > 0).all() or (np.diff(costs) < 0).any():
            raise StudyError(f"the costs of a curve must be positive and ascending, not {costs.tolist()}.")


@dataclass(frozen=True)
class Saving:
    """The share of the cost that is saved at equal performance; negative where more is spent."""

    value: float  # the share, or a bound on it
    # ``reached`` for the share itself; ``at_least`` or ``at_most`` for a bound, where the performance lies beyond the
    # points measured.
    state: str
    # lower end of the 95 % interval; NaN where it lies beyond the points measured, or there is no interval
    ci_low: float
    ci_high: float  # upper end


def fit_rising(values: np.ndarray) -> np.ndarray:
    """The rising values closest to the given ones ``(..., points)`` in least squares, all of one weight.

    By the max-min formula, whose cost grows with the fourth power of the points: for curves of a few. NaN throughout
    where one is NaN.
    """
    values = np.asarray(values, dtype=float)
    points = range(values.shape[-1])
    means = {(a, b): values[..., a : b + 1].mean(axis=-1) for a in points for b in points[a:]}
    lowest = {(a, place): np.min([means[a, b] for b in points[place:]], axis=0) for a in points for place in points[a:]}
    fitted = [np.max([lowest[a, place] for a in points[: place + 1]], axis=0) for place in points]
    return np.where(np.isnan(values).any(axis=-1, keepdims=True), np.nan, np.stack(fitted, axis=-1))


def read_off_cost(costs: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The least cost ``(...)`` at which a rising curve has the performance wanted ``(...)``.

    The curve has values ``(..., points)`` at ascending costs ``(points,)``. It is 0 where all of the curve has the
    performance, infinity where none has, NaN where something is NaN.
    """
    logs, values, wanted = np.log(np.asarray(costs, dtype=float)), np.asarray(values), np.asarray(wanted)[..., None]
    reached = (values < wanted).sum(axis=-1, keepdims=True)
    inside = (reached > 0) & (reached < len(logs))
    after = np.where(inside, reached, 0)
    before = np.maximum(after - 1, 0)
    low, high = np.take_along_axis(values, before, axis=-1), np.take_along_axis(values, after, axis=-1)
    share = np.divide(wanted - low, high - low, out=np.zeros(low.shape), where=inside)
    cost = np.exp(logs[before] + share * (logs[after] - logs[before]))
    cost = np.where(inside, cost, np.where(reached == 0, 0.0, np.inf))
    return np.where(np.isnan(values).any(axis=-1) | np.isnan(wanted[..., 0]), np.nan, cost[..., 0])


def measure_saving(cheap: Curve, dear: Curve, patients: float | None = None) -> Saving:
    """The share of the second side's cost that the first saves at equal performance.

    One side is a single point. At its performance the cost of the other, the curve, is read off: on all data, for the
    value, and in each resample, for the interval. It rests on so many patients as `interval` takes them.
    """
    if min(len(cheap.costs), len(dear.costs)) != 1:
        raise StudyError("a saving is measured at one performance: give a curve and a single point, not two curves.")
    point, curve = (cheap, dear) if len(cheap.costs) == 1 else (dear, cheap)
    needed = read_off_cost(curve.costs, fit_rising(curve.values), point.values[0])
    replicates = read_off_cost(curve.costs, fit_rising(curve.replicates), point.replicates[:, 0])
    least, most = float(curve.costs[0]), float(curve.costs[-1])
    low, high = interval(np.clip(replicates, least, np.nextafter(most, np.inf)), patients=patients)
    # An end of the interval beyond the curve may lie anywhere; one that is surely beyond is bounded by the curve's end.
    low, high = (np.nan if low <= least else float(low)), (np.nan if high > most else float(high))
    cost, bounded = float(point.costs[0]), float(np.clip(needed, least, most))
    if point is cheap:
        states = (AT_MOST, AT_LEAST)
        value, ci_low, ci_high = (1 - cost / one for one in (bounded, low, high))
    else:
        states = (AT_LEAST, AT_MOST)
        value, ci_low, ci_high = (1 - one / cost for one in (bounded, high, low))
    state = states[0] if needed == 0 else states[1] if needed == np.inf else REACHED
    return Saving(value, state, ci_low, ci_high)
