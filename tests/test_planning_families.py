"""Families of learning curves: values by hand, inverses, bounds."""

import numpy as np
import pytest
from learning_curves import CURVES

from chexstudy.label_planning.families import FAMILIES, POWER3, POWER4, labels_for

BY_HAND = {
    "power3": 0.86 - 0.55 * 100**-0.45,
    "power2": 1 - 0.55 * 100**-0.25,
    "exponential": 0.86 - 0.3 / np.e,
    "logarithmic": 0.55 + 0.04 * np.log(100),
    "inverse_log": 0.95 - 0.6 / np.log(101),
    "power4": 0.86 - 0.9 / np.sqrt(120),
    "weibull": 0.88 - 0.4 * np.exp(-0.1 * 100**0.4),
}


def test_every_family_is_tried_and_its_free_parameters_are_counted():
    assert set(CURVES) == set(FAMILIES) == set(BY_HAND)
    # The first parameter of power2 is fixed.
    free = {name: len(CURVES[name]) - (name == "power2") for name in CURVES}
    assert {name: family.free for name, family in FAMILIES.items()} == free


@pytest.mark.parametrize("name", FAMILIES)
def test_values_are_those_of_the_formula_and_rise(name):
    assert (np.diff(FAMILIES[name].evaluate([2, 10, 100, 700.0], CURVES[name])) > 0).all()
    assert FAMILIES[name].evaluate([100], CURVES[name])[0] == pytest.approx(BY_HAND[name], abs=1e-15)


@pytest.mark.parametrize("parameters", [CURVES["power4"], [*CURVES["power3"], 0.0]])
def test_labels_for_a_target_are_the_inverse_of_the_curve(parameters):
    labels = np.array([2, 10, 100, 700.0])
    values = POWER4.evaluate(labels, parameters)
    assert [labels_for(value, parameters) for value in values] == pytest.approx(labels, rel=1e-9)


@pytest.mark.parametrize(
    ("target", "parameters", "needed"),
    [
        (0.87, [0.86, 0.55, 0.45, 0], np.inf),
        (0.86, [0.86, 0.55, 0.45, 0], np.inf),
        (0.2, [0.86, 0.55, 0.45, 0], 1),
        (0.80, [0.80, 0.0, 0.5, 0], 1),
        (0.81, [0.80, 0.0, 0.5, 0], np.inf),
    ],
)
def test_a_target_out_of_reach_needs_labels_without_end_and_one_below_the_start_one(target, parameters, needed):
    assert labels_for(target, parameters) == needed


def test_many_parameters_at_once():
    parameters = np.array([[[0.86, 0.55, 0.45], [0.9, 0.4, 0.3]]])
    assert POWER3.evaluate([1, 10, 100], parameters).shape == (1, 2, 3)
    assert FAMILIES["logarithmic"].evaluate([1e9], CURVES["logarithmic"])[0] == 1, "clipped at 1"
    assert POWER3.evaluate([1, 10], parameters)[0, 1] == pytest.approx(POWER3.evaluate([1, 10], [0.9, 0.4, 0.3]))
