"""Fits against scipy's, and tables of curves as they are read."""

import numpy as np
import pandas as pd
import pytest
from learning_curves import CURVES, LABELS, TRUE, measure_curve
from scipy.optimize import curve_fit

from chexstudy.errors import StudyError
from chexstudy.label_planning.families import FAMILIES, POWER3
from chexstudy.label_planning.fitting import EXTRAPOLATION, INTERPOLATION, compare_families, fit_points
from chexstudy.label_planning.observations import LearningCurve, estimate_noise, list_curves, weigh_points


@pytest.mark.parametrize("name", CURVES)
def test_points_without_noise_give_the_curve_back_and_three_parameters_themselves(name):
    values = FAMILIES[name].evaluate(LABELS, CURVES[name])
    fit = fit_points(FAMILIES[name], LABELS, values)
    assert fit.predict(LABELS) == pytest.approx(values, abs=1e-6)
    if len(CURVES[name]) < 4:
        assert fit.parameters == pytest.approx(CURVES[name], rel=1e-6)
        assert fit.loss < 1e-16


@pytest.mark.parametrize("seed", range(8))
def test_noisy_points_are_fitted_at_least_as_well_as_by_scipy(seed):
    curve = measure_curve(LABELS, 3, np.random.default_rng(seed))
    weights = weigh_points(curve, estimate_noise([curve]))
    fit = fit_points(POWER3, LABELS, curve.means, weights)
    bounded = {"p0": (0.85, 0.5, 0.5), "sigma": weights**-0.5, "bounds": ((0.5, 0, 0.02), (1, np.inf, 2))}
    exactly = {"xtol": 1e-14, "ftol": 1e-14, "max_nfev": 20_000}
    found, _ = curve_fit(lambda n, *law: law[0] - law[1] * n ** -law[2], LABELS, curve.means, **bounded, **exactly)
    theirs = np.sum(weights * (curve.means - POWER3.evaluate(LABELS, found)) ** 2)
    assert fit.loss <= theirs * (1 + 1e-7)
    assert fit.loss == pytest.approx(np.sum(weights * (curve.means - fit.predict(LABELS)) ** 2))
    if 0.501 < found[0] < 0.999:
        assert fit.parameters == pytest.approx(found, rel=2e-3)


def test_bounds_hold_where_the_points_would_leave_them():
    falling = fit_points(POWER3, LABELS, np.linspace(0.8, 0.7, 8))
    assert falling.parameters[1] == 0
    assert falling.parameters[0] == pytest.approx(0.75)
    straight = fit_points(POWER3, LABELS, 0.4 + 0.075 * np.log(LABELS))
    assert straight.parameters[0] == 1
    useless = fit_points(POWER3, LABELS, np.full(8, 0.45))
    assert useless.parameters[0] == 0.5


def test_replicates_are_fitted_as_they_are_alone():
    values = np.stack([measure_curve(LABELS, 2, np.random.default_rng(seed)).means for seed in range(5)])
    together = fit_points(POWER3, LABELS, values)
    for row, one in zip(together.parameters, values, strict=True):
        assert row == pytest.approx(fit_points(POWER3, LABELS, one).parameters, rel=1e-9)
    # A point without weight takes no part.
    values, weights = POWER3.evaluate(LABELS, TRUE), np.ones(8)
    values[3], weights[3] = np.nan, 0
    assert fit_points(POWER3, LABELS, values, weights).parameters == pytest.approx(TRUE, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "values", "sentence"),
    [
        (LABELS[:2], [0.6, 0.7], "has 3 parameters and the curve 2 numbers of labels"),
        (LABELS[:4], [0.6, 0.7, np.nan, 0.8], "holds NaN"),
        (LABELS[:4], [0.6, 0.7, 0.8], "as many values and weights"),
    ],
)
def test_what_cannot_be_fitted_is_refused(labels, values, sentence):
    with pytest.raises(StudyError, match=sentence):
        fit_points(POWER3, labels, values)


def test_the_law_of_the_noise_is_found():
    noise = estimate_noise([measure_curve(LABELS, 20, np.random.default_rng(seed)) for seed in range(10)], at=10)
    assert noise.exponent == pytest.approx(1, abs=0.1)


def test_identical_draws_of_everything_are_one_draw():
    values = np.array([[0.6, 0.7], [0.7, 0.72], [0.8, 0.8]])
    curve = LearningCurve("e", "f", LABELS[:3], values)
    assert curve.draws.tolist() == [2, 2, 1]
    assert np.isnan(curve.variances[2])
    assert curve.variances[0] == pytest.approx(0.005)


SIMPLE = ("power3", "power2", "logarithmic")


def test_the_true_family_extrapolates_best():
    curves = [measure_curve(LABELS, 50, np.random.default_rng(seed), deviation=0.02) for seed in range(3)]
    errors = compare_families(curves)
    assert set(errors[errors.split == EXTRAPOLATION].at_most_n) == {20, 50, 100, 200, 500, 1000}
    errors = errors[((errors.at_most_n == 200) | (errors.split == INTERPOLATION)) & (errors.family.isin(SIMPLE))]
    size = errors.assign(size=errors.error.abs()).groupby(["split", "family"])["size"].mean()
    best = {split: size[split].idxmin() for split in (EXTRAPOLATION, INTERPOLATION)}
    assert best[EXTRAPOLATION] == best[INTERPOLATION] == "power3"
    assert set(errors[errors.split == EXTRAPOLATION].n) == {500, 1000, 2000}
    assert set(errors[errors.split == INTERPOLATION].n) == {20, 50, 100, 200, 500, 1000}
    bias = errors[errors.split == EXTRAPOLATION].groupby("family").error.mean()
    assert bias["logarithmic"] > bias["power2"] > 0
    # Families with too few points are not evaluable.
    few = compare_families([measure_curve(LABELS[:4], 5, np.random.default_rng(0))])
    assert few[few.family == "power4"].error.isna().all()
    assert few[few.family == "power2"].error.notna().all()


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_simple_table_is_one_curve_and_repeated_rows_are_draws():
    table = pd.DataFrame({"n": [10, 10, 50, 50, 100], "auroc": [0.6, 0.7, 0.7, 0.8, 0.8]})
    (curve,) = list_curves(table)
    assert curve.labels.tolist() == [10, 50, 100]
    assert curve.means == pytest.approx([0.65, 0.75, 0.8])
    assert curve.draws.tolist() == [2, 2, 1]


def test_seeds_of_a_draw_are_averaged():
    rows = [
        {"n": n, "auroc": 0.5 + 0.1 * k + 0.02 * seed, "draw": k, "seed": seed, "positives": n / 10}
        for n in (10, 50, 100)
        for k in (0, 1)
        for seed in (0, 1)
    ]
    (curve,) = list_curves(pd.DataFrame(rows))
    assert curve.values[0] == pytest.approx([0.51, 0.61])
    assert curve.prevalence == pytest.approx(0.1)


def test_positives_are_counted_where_they_are_the_unit():
    table = pd.DataFrame({"n": [100, 500, 1000], "positives": [5, 25, 50], "auroc": [0.6, 0.7, 0.8]})
    (curve,) = list_curves(table.assign(unit="positives"))
    assert curve.labels.tolist() == [5, 25, 50]
    assert curve.prevalence == pytest.approx(0.05)


GOOD = pd.DataFrame({"n": [10, 50, 100], "auroc": [0.6, 0.7, 0.8], "finding": "Effusion"})


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (GOOD.drop(columns="auroc"), "lacks the column 'auroc'"),
        (GOOD.drop(columns="n"), "lacks the column 'n'"),
        (GOOD.assign(auroc=np.nan), "holds no AUROC"),
        (GOOD.assign(auroc=[60, 70, 80]), "between 0 and 1"),
        (GOOD.assign(auroc=["a", "b", "c"]), "no number"),
        (GOOD.assign(n=[0, 50, 100]), "1 or more"),
        (GOOD.assign(n=[np.nan, 50, 100]), "1 or more"),
        (GOOD[:2], "'Effusion' has 2 numbers of labels with an AUROC, and a curve needs 3"),
        (GOOD.assign(auroc=[0.6, 0.7, np.nan]), "has 2 numbers of labels with an AUROC"),
        (GOOD.assign(unit="patients"), "cases or positives"),
        (GOOD.assign(unit="positives"), "needs the column 'positives'"),
        (pd.concat([GOOD.assign(draw=0)] * 2), "the same draw"),
    ],
)
def test_bad_tables_are_refused(table, sentence):
    with pytest.raises(StudyError, match=sentence):
        list_curves(table)
