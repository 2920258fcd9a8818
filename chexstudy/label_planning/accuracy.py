"""How far forecasts, families of curves and early slopes are from what was measured later, over findings.

Findings are what is drawn in the intervals: one that is hard to forecast is so for every encoder. With few findings the
intervals are wide, and say so.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from chexstudy.statistics.bootstrap import RESAMPLES, bootstrap_patients, interval
from chexstudy.statistics.proportions import measure_proportion

EVERY = "all"
# How a forecast is made: the posterior's median, least squares, or the last AUROC seen.
_GUESSES = {"posterior": "forecast", "least_squares": "fit_forecast", "last": "last"}
_FEWEST = 5


def _group_by_encoder(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield EVERY, table
    yield from table.groupby("encoder")


def measure_forecasts(
    forecasts: pd.DataFrame, generator: np.random.Generator, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Mean absolute error and coverage of `forecast_plateau` by the number of labels used.

    Gives one row an encoder (and ``all``), ``at_most_n`` and method: ``curves, findings, mae, mae_low, mae_high``, and
    for the method ``posterior`` ``coverage, coverage_low, coverage_high`` of its 95 % intervals. No interval with fewer
    than five findings.
    """
    tables = []
    for encoder, own in _group_by_encoder(forecasts.dropna(subset=["error"])):
        for most, rows in own.groupby("at_most_n"):
            finding = pd.factorize(rows.finding)[0]
            weights = bootstrap_patients(rows.finding, resamples, generator)
            place = {"encoder": encoder, "at_most_n": most, "curves": len(rows), "findings": int(finding.max()) + 1}
            for method, guess in _GUESSES.items():
                error = np.abs(rows[guess].to_numpy(float) - rows.truth.to_numpy(float))
                low, high = interval(weights @ error / weights.sum(axis=1), patients=np.array(place["findings"]))
                row = place | {"method": method, "mae": error.mean(), "mae_low": float(low), "mae_high": float(high)}
                if method == "posterior":
                    ends = measure_proportion(np.ones(len(rows), bool), rows.covered.to_numpy(bool), finding)
                    row |= dict(zip(("coverage", "coverage_low", "coverage_high"), ends, strict=True))
                tables.append(row)
    columns = ["encoder", "at_most_n", "method", "curves", "findings", "mae", "mae_low", "mae_high"]
    return pd.DataFrame(tables, columns=[*columns, "coverage", "coverage_low", "coverage_high"])


def measure_families(errors: pd.DataFrame, generator: np.random.Generator, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Mean absolute error of each family in `compare_families`, where all could be fitted.

    Families with more parameters than any curve has label counts are left out.

    Gives one row an encoder (and ``all``), split and family: ``mae, mae_low, mae_high, bias, points, findings``.
    """
    curve = ["encoder", "finding", "data_set", "unit"]
    columns = ["encoder", "split", "family", "mae", "mae_low", "mae_high", "bias", "points", "findings"]
    if errors.error.isna().all():
        return pd.DataFrame(columns=columns)
    fitted = errors[errors.groupby(["split", "family"]).error.transform(lambda one: one.notna().any())]
    points = fitted.groupby([*curve, "split", "at_most_n", "n"])
    shared = fitted[points.error.transform(lambda one: one.notna().all())]
    tables = []
    for encoder, own in _group_by_encoder(shared):
        for split, rows in own.groupby("split"):
            table = rows.pivot_table(index=[*curve, "at_most_n", "n"], columns="family", values="error")
            weights = bootstrap_patients(table.index.get_level_values("finding"), resamples, generator)
            findings = table.index.get_level_values("finding").nunique()
            replicates = weights @ table.abs().to_numpy() / weights.sum(axis=1, keepdims=True)
            low, high = interval(replicates, patients=np.full(table.shape[1], findings))
            for number, family in enumerate(table.columns):
                row = {"encoder": encoder, "split": split, "family": family, "mae": table[family].abs().mean()}
                row |= {"mae_low": low[number], "mae_high": high[number], "bias": table[family].mean()}
                tables.append(row | {"points": len(table), "findings": findings})
    return pd.DataFrame(tables, columns=columns).sort_values(["encoder", "split", "mae"], ignore_index=True)


def correlate_early(
    forecasts: pd.DataFrame, early: float, generator: np.random.Generator, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Rank correlation of what the first labels of `forecast_plateau` show with the AUROC at the largest n.

    Gives one row an encoder (and ``all``) and ``predictor``, ``early_slope`` (AUROC a tenfold of labels) or ``last``
    (the AUROC at the ``early`` labels): ``correlation, low, high, curves, findings``. NaN with fewer than five
    findings.
    """
    tables = []
    for encoder, rows in _group_by_encoder(take_early(forecasts, early)):
        findings = rows.finding.nunique()
        weights = bootstrap_patients(rows.finding, resamples, generator) if findings >= _FEWEST else None
        for predictor in ("early_slope", "last"):
            row = {"encoder": encoder, "predictor": predictor, "curves": len(rows), "findings": findings}
            if weights is not None:
                pair = rows[[predictor, "truth"]].to_numpy(float)
                drawn = np.array([_correlate_ranks(np.repeat(pair, one, axis=0)) for one in weights])
                low, high = interval(drawn, patients=np.array(findings))
                row |= {"correlation": _correlate_ranks(pair), "low": float(low), "high": float(high)}
            tables.append(row)
    columns = ["encoder", "predictor", "curves", "findings", "correlation", "low", "high"]
    return pd.DataFrame(tables, columns=columns).astype(dict.fromkeys(columns[-3:], float))


def take_early(forecasts: pd.DataFrame, early: float) -> pd.DataFrame:
    """Forecasts from ``early`` labels that can be held against what came of them."""
    return forecasts[(forecasts.at_most_n == early) & forecasts.error.notna() & forecasts.early_slope.notna()]


def _correlate_ranks(pair: np.ndarray) -> float:
    ranks = pd.DataFrame(pair).rank().to_numpy()
    if (ranks.std(axis=0) == 0).any():
        return np.nan
    return float(np.corrcoef(ranks.T)[0, 1])


def judge_early_claim(measured: pd.DataFrame, correlations: pd.DataFrame, early: float, unit: str) -> str:
    """The published claim, that the slope from 50 labelled cases predicts the plateau (A3), as it came out here.

    ``measured`` is of `measure_forecasts`, ``correlations`` of `correlate_early`.
    """
    start = f"Published: the slope from {early:g} labelled cases predicts the plateau."
    rows = measured[(measured.encoder == EVERY) & (measured.at_most_n == early)].set_index("method")
    if rows.empty:
        return f"{start} Here it cannot be tested: no curve has three label counts up to {early:g} {unit}."
    posterior, squares = rows.loc["posterior"], rows.loc["least_squares"]
    curves, findings = (
        f"{int(posterior[name])} {name if posterior[name] != 1 else name[:-1]}" for name in ("curves", "findings")
    )
    correlation = "These are too few findings for a correlation."
    every = correlations[correlations.encoder == EVERY].set_index("predictor")
    slope, level = every.loc["early_slope"], every.loc["last"]
    if np.isfinite(slope.correlation):
        verdict = "supports" if slope.low > 0 else "contradicts" if slope.high < 0 else "neither supports nor refutes"
        correlation = (
            f"The rank correlation of the early slope with the AUROC at the largest n is {slope.correlation:.2f} "
            f"(95 %: {slope.low:.2f} to {slope.high:.2f}), which {verdict} the claim; that of the early AUROC itself "
            f"is {level.correlation:.2f} ({level.low:.2f} to {level.high:.2f})."
        )
    return (
        f"{start} Here, {curves} of {findings} with three label counts up to {early:g} {unit} can test it. "
        f"{correlation} Forecasts of the AUROC at the largest n miss by {posterior.mae:.3f} on average (least squares "
        f"{squares.mae:.3f}), and {100 * posterior.coverage:.0f} % of the 95 % intervals hold the truth."
    )
