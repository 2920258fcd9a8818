"""Families of learning curves: values by hand, inverses, bounds."""

import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.label_planning.families import FAMILIES, POWER3, find_families

CURVES = {
    "power3": [0.86, 0.55, 0.45],
    "power2": [1.0, 0.55, 0.25],
    "exponential": [0.86, 0.3, 0.01],
    "logarithmic": [0.55, 0.04],
    "inverse_log": [0.95, 0.6],
    "power4": [0.86, 0.9, 0.5, 20.0],
    "weibull": [0.88, 0.4, 0.1, 0.4],
}
BY_HAND = {
    "power3": 0.86 - 0.55 * 100**-0.45,
    "power2": 1 - 0.55 * 100**-0.25,
    "exponential": 0.86 - 0.3 / np.e,
    "logarithmic": 0.55 + 0.04 * np.log(100),
    "inverse_log": 0.95 - 0.6 / np.log(101),
    "power4": 0.86 - 0.9 / np.sqrt(120),
    "weibull": 0.88 - 0.4 * np.exp(-0.1 * 100**0.4),
}


def test_every_family_is_tried():
    assert set(CURVES) == set(FAMILIES) == set(BY_HAND)


@pytest.mark.parametrize("name", FAMILIES)
def test_values_are_those_of_the_formula(name):
    assert FAMILIES[name].evaluate([100], CURVES[name])[0] == pytest.approx(BY_HAND[name], abs=1e-15)


@pytest.mark.parametrize("name", FAMILIES)
def test_curves_rise_and_their_inverse_gives_the_labels_back(name):
    family, labels = FAMILIES[name], np.array([2, 10, 100, 700.0])
    values = family.evaluate(labels, CURVES[name])
    assert (np.diff(values) > 0).all()
    assert [family.labels_for(value, CURVES[name]) for value in values] == pytest.approx(labels, rel=1e-9)


def test_a_target_above_the_plateau_needs_labels_without_end():
    assert POWER3.labels_for(0.87, CURVES["power3"]) == np.inf
    assert POWER3.labels_for(0.86, CURVES["power3"]) == np.inf
    assert FAMILIES["logarithmic"].labels_for(0.99, CURVES["logarithmic"]) == pytest.approx(np.exp(11))


def test_a_target_below_the_start_needs_one_label():
    assert POWER3.labels_for(0.2, CURVES["power3"]) == 1
    assert POWER3.labels_for(0.80, [0.80, 0.0, 0.5]) == 1
    assert POWER3.labels_for(0.81, [0.80, 0.0, 0.5]) == np.inf


def test_many_parameters_at_once():
    parameters = np.array([[[0.86, 0.55, 0.45], [0.9, 0.4, 0.3]]])
    assert POWER3.evaluate([1, 10, 100], parameters).shape == (1, 2, 3)
    assert POWER3.evaluate([1, 10], parameters)[0, 1] == pytest.approx(POWER3.evaluate([1, 10], [0.9, 0.4, 0.3]))
    assert POWER3.plateau(parameters).tolist() == [[0.86, 0.9]]


def test_only_the_logarithm_has_no_plateau_and_it_stops_at_one():
    assert [name for name, one in FAMILIES.items() if one.plateau(CURVES[name]) is None] == ["logarithmic"]
    assert FAMILIES["logarithmic"].evaluate([1e9], CURVES["logarithmic"])[0] == 1


def test_free_parameters_are_counted():
    assert {name: family.free for name, family in FAMILIES.items()} == {
        "power3": 3,
        "power2": 2,
        "exponential": 3,
        "logarithmic": 2,
        "inverse_log": 2,
        "power4": 4,
        "weibull": 4,
    }


def test_an_unknown_family_is_named():
    with pytest.raises(StudyError, match="no family of curves 'spline': choose among power3"):
        find_families(["power3", "spline"])
