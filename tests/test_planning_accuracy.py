import numpy as np
import pandas as pd
import pytest
from learning_curves import pick
from scipy.stats import spearmanr

from chexstudy.label_planning.accuracy import correlate_early, judge_early_claim, measure_families, measure_forecasts


def make_forecasts(findings=8, encoders=("curated", "full"), at=(50, 100)):
    """Forecasts that miss by 0.04 in `curated` and 0.02 in `full`, half as much at 100; every fourth finding missed."""
    rows = []
    for encoder in encoders:
        for most in at:
            for number in range(findings):
                truth = 0.6 + 0.04 * number
                miss = (0.04 if encoder == "curated" else 0.02) * 50 / most
                rows.append(
                    {
                        **{"encoder": encoder, "finding": f"f{number}", "data_set": "t/test", "unit": "cases"},
                        **{"at_most_n": float(most), "truth": truth, "forecast": truth + miss, "error": miss},
                        **{"fit_forecast": truth - 2 * miss, "last": truth - 3 * miss, "covered": number % 4 > 0},
                        "early_slope": truth / 10,
                    }
                )
    return pd.DataFrame(rows)


def rng():
    return np.random.default_rng(0)


def test_errors_and_coverage_are_means_over_curves():
    measured = measure_forecasts(make_forecasts(), rng(), 200)
    row = pick(measured, encoder="all", at_most_n=50, method="posterior")
    assert row.mae == pytest.approx(0.03)
    assert row.coverage == pytest.approx(0.75)
    assert (row.curves, row.findings) == (16, 8)
    assert pick(measured, encoder="full", at_most_n=100, method="posterior").mae == pytest.approx(0.01)
    assert pick(measured, encoder="curated", at_most_n=50, method="least_squares").mae == pytest.approx(0.08)
    assert pick(measured, encoder="curated", at_most_n=50, method="last").mae == pytest.approx(0.12)


def test_findings_are_drawn_and_not_curves():
    forecasts = make_forecasts(12, encoders=("curated",), at=(50,))
    forecasts["error"] = np.linspace(0, 0.11, 12)
    forecasts["forecast"] = forecasts.truth + forecasts.error
    twice = pd.concat([forecasts, forecasts.assign(encoder="full")])
    once = pick(measure_forecasts(forecasts, rng(), 2000), encoder="all", method="posterior")
    both = pick(measure_forecasts(twice, rng(), 2000), encoder="all", method="posterior")
    # A second encoder that says the same of the same findings tells nothing new.
    assert both.mae_high - both.mae_low == pytest.approx(once.mae_high - once.mae_low, rel=0.05)
    assert both.coverage_low == pytest.approx(once.coverage_low, abs=1e-9)
    assert once.mae_low < once.mae < once.mae_high


def test_four_findings_have_no_interval_and_no_correlation():
    forecasts = make_forecasts(4)
    row = pick(measure_forecasts(forecasts, rng(), 100), encoder="full", at_most_n=50, method="posterior")
    assert np.isnan([row.mae_low, row.mae_high, row.coverage_low]).all()
    assert correlate_early(forecasts, 50, rng(), 50).correlation.isna().all()


def test_curves_that_could_not_be_forecast_are_left_out():
    forecasts = make_forecasts()
    forecasts.loc[forecasts.finding == "f0", "error"] = np.nan
    assert pick(measure_forecasts(forecasts, rng(), 50), encoder="all", at_most_n=50, method="last").findings == 7
    assert measure_forecasts(forecasts.assign(error=np.nan), rng(), 50).empty


def test_the_correlation_is_spearmans_with_an_interval_around_it():
    forecasts = make_forecasts(10, encoders=("full",))
    forecasts["early_slope"] = np.tile(np.random.default_rng(1).normal(size=10), 2)
    row = pick(correlate_early(forecasts, 50, rng(), 500), encoder="full", predictor="early_slope")
    early = forecasts[forecasts.at_most_n == 50]
    assert row.correlation == pytest.approx(spearmanr(early.early_slope, early.truth).statistic)
    assert row.low < row.correlation < row.high
    last = pick(correlate_early(forecasts, 50, rng(), 50), encoder="full", predictor="last")
    assert last.correlation == pytest.approx(1)


@pytest.mark.parametrize(("sign", "word"), [(1, "supports"), (-1, "contradicts"), (0, "neither supports nor refutes")])
def test_the_claim_is_judged_as_it_comes_out(sign, word):
    forecasts = make_forecasts(20)
    noise = np.random.default_rng(2).normal(size=len(forecasts))
    forecasts["early_slope"] = sign * forecasts.truth + (0.01 if sign else 1.0) * noise
    correlations = correlate_early(forecasts, 50, rng(), 200)
    text = judge_early_claim(measure_forecasts(forecasts, rng(), 50), correlations, 50, "cases")
    assert word in text
    assert "75 % of the 95 % intervals hold the truth" in text
    assert "miss by 0.030" in text


def test_a_claim_without_curves_is_said_to_be_untested():
    measured = measure_forecasts(make_forecasts(at=(100,)), rng(), 50)
    text = judge_early_claim(measured, correlate_early(make_forecasts(at=(100,)), 50, rng(), 50), 50, "cases")
    assert "cannot be tested" in text


def test_families_are_compared_where_all_could_be_fitted():
    rows = []
    for number in range(6):
        for n, far in ((200.0, 0.01), (500.0, 0.03)):
            for family, factor in (("power3", 1.0), ("logarithmic", -2.0)):
                error = factor * far if (number, n, family) != (0, 500.0, "power3") else np.nan
                place = {"encoder": "full", "finding": f"f{number}", "data_set": "t/test", "unit": "cases"}
                rows.append(
                    place | {"family": family, "split": "extrapolation", "at_most_n": 100.0, "n": n, "error": error}
                )
    measured = measure_families(pd.DataFrame(rows), rng(), 200)
    assert set(measured.encoder) == {"all", "full"}
    best, worst = (pick(measured, encoder="all", family=family) for family in ("power3", "logarithmic"))
    assert best.mae == pytest.approx((6 * 0.01 + 5 * 0.03) / 11)
    assert worst.mae == pytest.approx(2 * best.mae)
    assert worst.bias == pytest.approx(-worst.mae)
    assert (best.points, best.findings) == (11, 6)
    assert measured[measured.encoder == "all"].family.tolist() == ["power3", "logarithmic"]


def test_families_that_no_curve_is_long_enough_for_are_left_out():
    place = {"encoder": "full", "data_set": "t/test", "unit": "cases", "split": "extrapolation", "at_most_n": 50.0}
    rows = [
        {**place, "finding": f"f{number}", "n": 100.0, "family": family, "error": error}
        for number in range(5)
        for family, error in (("power2", 0.02), ("weibull", np.nan))
    ]
    measured = measure_families(pd.DataFrame(rows), rng(), 50)
    assert set(measured.family) == {"power2"}
    assert (measured.points == 5).all()
    assert measure_families(pd.DataFrame(rows).assign(error=np.nan), rng(), 50).empty
