"""What labels cost: cases to read for a number of positives, hours and money.

Reading cases in the order they come until k positives are found takes a number of cases with a negative binomial
distribution. The prevalence is itself known from a limited number of cases; with that number given, the distribution is
averaged over its posterior under Jeffreys' prior, Beta(1/2, 1/2).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import betainc
from scipy.stats import beta

from chexstudy.errors import StudyError
from chexstudy.label_planning.planner import REACHED
from chexstudy.statistics.bootstrap import CONFIDENCE

# Equally likely values that stand for the posterior of a prevalence: far more than an interval's ends can tell apart.
_NODES = 400


@dataclass(frozen=True)
class ReadingCost:
    """What labelling one case takes."""

    minutes_per_case: float = 2.0  # a reader's time for one case and one finding or for all; readers' minutes add up
    readers: int = 1  # how many read every case
    price_per_hour: float = 100.0  # of one reader

    def __post_init__(self):
        numbers = (self.minutes_per_case, self.price_per_hour)
        if not np.isfinite(numbers).all() or min(numbers) < 0 or self.readers < 1:
            raise StudyError("minutes and prices of reading are 0 or more, and at least one reader reads every case.")

    def hours(self, cases: float) -> float:
        """Reading time of all readers together, in hours; infinite for infinitely many cases."""
        return float(cases) * self.minutes_per_case * self.readers / 60

    def price(self, cases: float) -> float:
        """Money for reading so many cases; nothing for none."""
        return self.hours(cases) * self.price_per_hour


def count_cases_to_read(positives: int, prevalence: float, observed: int | None = None) -> tuple[float, float, float]:
    """How many cases must be read, as they come, until so many positives are found: median and 95 % interval.

    The interval is equal-tailed and of a new round of reading. ``observed`` cases are those that the prevalence was
    counted in; None takes it as known.
    """
    if not 0 < prevalence <= 1:
        raise StudyError(
            f"a prevalence of {prevalence} finds no positives by reading: give a share above 0, at most 1."
        )
    if positives < 0 or (observed is not None and observed < 1):
        raise StudyError(
            f"{positives} positives cannot be sought with a prevalence from {observed} cases: give 0 or more, and 1 "
            "or more."
        )
    if positives == 0:
        return 0.0, 0.0, 0.0
    shares = np.array([prevalence])
    if observed is not None:
        found = prevalence * observed
        shares = beta.ppf((np.arange(_NODES) + 0.5) / _NODES, found + 0.5, observed - found + 0.5)
    probabilities = (0.5, (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    return tuple(float(_quantile(positives, shares, probability)) for probability in probabilities)


def _quantile(positives: int, shares: np.ndarray, probability: float) -> int:
    """The smallest number of cases by which the positives are found with a probability, averaged over prevalences."""

    def found_by(cases: int) -> float:
        # k positives within c cases: the regularised incomplete beta function at the prevalence.
        return betainc(positives, cases - positives + 1, shares).mean()

    low, high = positives - 1, positives
    while found_by(high) < probability:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found_by(middle) >= probability else (middle, high)
    return high


def price_plans(
    plans: pd.DataFrame, cost: ReadingCost, prevalence: Mapping[str, float], observed: Mapping[str, int]
) -> pd.DataFrame:
    """Cases to read, hours and money for a plan of labels.

    A plan in cases is read as it stands. A plan in positives takes as many cases as it takes to find them: the low end
    is that of the fewest positives under a lucky reading, the high end that of the most under an unlucky one, which
    together hold more than 95 %.

    ``prevalence`` is the share of positives among the cases that will be read, ``observed`` the cases it was counted
    in, both by finding.

    Gives `plan_labels` with ``read``, ``hours`` and ``price``, each with ``_low`` and ``_high``; infinite without an
    end.
    """
    priced = plans.copy()
    for end, place in (("", 0), ("_low", 1), ("_high", 2)):
        cases = []
        for row in plans.itertuples():
            more = float(getattr(row, f"more{end}"))
            if row.unit == "positives" and np.isfinite(more):
                if row.finding not in prevalence:
                    raise StudyError(f"the prevalence of {row.finding!r} is not known: give one for every finding.")
                count = observed.get(row.finding)
                more = count_cases_to_read(int(np.ceil(more)), prevalence[row.finding], observed=count)[place]
            cases.append(more)
        priced[f"read{end}"] = cases
        priced[f"hours{end}"] = [cost.hours(one) for one in cases]
        priced[f"price{end}"] = [cost.price(one) for one in cases]
    return priced


def tabulate_readings(priced: pd.DataFrame | None, currency: str) -> pd.DataFrame:
    """What is still to be read for the target by `price_plans`, for the eye; None gives an empty table."""
    columns = {"read": "cases to read", "read_low": "at least", "read_high": "at most", "hours": "hours of reading"}
    columns |= {"price": f"price ({currency})", "price_high": f"price at most ({currency})"}
    names = ["encoder", "finding", "state", *columns.values()]
    if priced is None:
        return pd.DataFrame(columns=names)
    return priced[priced.state != REACHED].rename(columns=columns)[names]
