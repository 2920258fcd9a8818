import math
from functools import partial

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.label_planning.costs import ReadingCost, count_cases_to_read, price_plans


def test_hours_and_price_are_those_of_all_readers():
    cost = ReadingCost(minutes_per_case=3, readers=2, price_per_hour=50)
    assert cost.hours(20) == 2
    assert cost.price(20) == 100
    assert cost.price(0) == 0
    assert math.isinf(cost.price(math.inf))


def test_one_positive_takes_a_geometric_number_of_cases():
    # P(found within c cases) = 1 - 0.9^c.
    median, low, high = count_cases_to_read(1, 0.1)
    assert median == math.ceil(math.log(0.5) / math.log(0.9))
    assert low == math.ceil(math.log(0.975) / math.log(0.9))
    assert high == math.ceil(math.log(0.025) / math.log(0.9))
    assert count_cases_to_read(12, 1.0) == (12, 12, 12)
    assert count_cases_to_read(0, 0.2) == (0, 0, 0)


def test_the_interval_covers_as_often_as_it_says():
    _, low, high = count_cases_to_read(20, 0.05)
    generator = np.random.default_rng(3)
    needed = np.array([np.flatnonzero(generator.random(3000) < 0.05)[19] + 1 for _ in range(3000)])
    assert np.mean((needed >= low) & (needed <= high)) == pytest.approx(0.95, abs=0.015)


def test_a_prevalence_counted_in_few_cases_widens_the_interval():
    known = count_cases_to_read(20, 0.05)
    counted = count_cases_to_read(20, 0.05, observed=200)
    assert counted[1] < known[1] < known[2] < counted[2]
    many = count_cases_to_read(20, 0.05, observed=10_000_000)
    assert many == pytest.approx(known, rel=0.01)


def test_a_counted_prevalence_covers_new_readings_as_often_as_it_says():
    generator = np.random.default_rng(4)
    inside = []
    for _ in range(400):
        truth = generator.beta(2, 30)
        found = generator.binomial(300, truth)
        if found:
            _, low, high = count_cases_to_read(10, found / 300, observed=300)
            inside.append(low <= 10 + generator.negative_binomial(10, truth) <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
    "ask",
    [
        *(
            partial(ReadingCost, **{name: value})
            for name, value in (("minutes_per_case", -1), ("readers", 0), ("price_per_hour", math.nan))
        ),
        *(partial(count_cases_to_read, *given) for given in ((5, 0.0), (5, 1.2), (-1, 0.2), (5, 0.2, 0))),
    ],
)
def test_wrong_numbers_are_refused(ask):
    with pytest.raises(StudyError):
        ask()


def test_plans_in_cases_are_read_as_they_stand():
    plans = pd.DataFrame({"finding": ["Mass", "Hernia"], "unit": "cases", "more": [60.0, math.inf]})
    plans = plans.assign(more_low=[30.0, 0.0], more_high=[90.0, math.inf])
    priced = price_plans(plans, ReadingCost(minutes_per_case=1, price_per_hour=10), {}, {})
    assert priced["read"].tolist() == [60, math.inf]
    assert (priced.hours[0], priced.price_low[0], priced.hours_high[0]) == (1, 5, 1.5)
    assert (priced.price_low[1], priced.price_high[1]) == (0, math.inf)


def test_plans_in_positives_are_read_until_they_are_found():
    plans = pd.DataFrame({"finding": ["Mass"], "unit": "positives", "more": [20.0], "more_low": [10.0]})
    plans = plans.assign(more_high=[30.0])
    priced = price_plans(plans, ReadingCost(), {"Mass": 0.05}, {"Mass": 4000}).iloc[0]
    assert priced["read"] == count_cases_to_read(20, 0.05, observed=4000)[0]
    assert priced.read_low == count_cases_to_read(10, 0.05, observed=4000)[1]
    assert priced.read_high == count_cases_to_read(30, 0.05, observed=4000)[2]
    with pytest.raises(StudyError, match="prevalence of 'Mass'"):
        price_plans(plans, ReadingCost(), {}, {})
