"""Whether probabilities mean what they say: calibration error, reliability, Brier score, and recalibration.

Temperature and Platt's line are fitted on the validation split. Ranking is not changed by a temperature or by a Platt
fit with a positive slope. A softmax over two raw cosines lies between 0.27 and 0.73 for geometric reasons: it ranks,
but it is no probability before it is recalibrated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit

from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import MACRO
from chexstudy.statistics.bootstrap import LEAST_PATIENTS, count_patients, interval
from chexstudy.statistics.proportions import measure_proportion
from chexstudy.statistics.ranking import known_labels, macro_mean

BINNINGS = ("mass", "width", "adaptive")
METRICS = (*(f"ece_{binning}" for binning in BINNINGS), "brier")
_BINS, _MOST_BINS = 10, 100
# Log-odds past these are as good as certain; a longer tail only breaks sums.
_FARTHEST = 30.0
_INVERSE_TEMPERATURES = (1e-4, 1e4)
_STEPS = 100


def assign_bins(probabilities: np.ndarray, labels: np.ndarray, binning: str = "mass") -> np.ndarray:
    """The bin each case falls into, ``(cases,)``, from 0 on; bins without a case are left out.

    ``width``: ten equal steps of probability. ``mass``: ten equal numbers of cases, equal probabilities never parted.
    ``adaptive``: as ``mass``, with the largest number of bins up to which the share of positives does not fall from bin
    to bin (the monotonic sweep of Roelofs et al. 2022, AISTATS), at most 100.
    """
    if binning == "width":
        raw = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
        return np.unique(raw, return_inverse=True)[1]
    if binning == "mass":
        return _equal_mass(probabilities, _BINS)
    best = np.zeros(len(probabilities), dtype=int)
    for count in range(2, min(len(probabilities), _MOST_BINS) + 1):
        members = _equal_mass(probabilities, count)
        share = np.bincount(members, weights=labels) / np.bincount(members)
        if (np.diff(share) < 0).any():
            break
        best = members
    return best


def _equal_mass(probabilities: np.ndarray, bins: int) -> np.ndarray:
    order = np.sort(probabilities)
    first = np.searchsorted(order, probabilities, "left")
    last = np.searchsorted(order, probabilities, "right") - 1
    # Equal probabilities go where the middle of them falls.
    return np.unique((first + last) // 2 * bins // len(order), return_inverse=True)[1]


def reliability_curve(probabilities: np.ndarray, labels: np.ndarray, patient_ids: Sequence[str]) -> pd.DataFrame:
    """Share of positives against mean probability, a row a bin of equal mass, from low to high; labels 1 and 0.

    Gives ``predicted`` (mean probability), ``observed`` (share of positives) with ``ci_low`` and ``ci_high`` (Wilson,
    clustered by patient; NaN with fewer than five patients), ``n`` and ``positives``.
    """
    members = assign_bins(probabilities, labels)
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    rows = []
    for number in range(members.max() + 1):
        own = members == number
        share, low, high = measure_proportion(own, labels == 1, patients)
        rows.append((probabilities[own].mean(), share, low, high, int(own.sum()), int(labels[own].sum())))
    return pd.DataFrame(rows, columns=["predicted", "observed", "ci_low", "ci_high", "n", "positives"])


def to_log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities; 0 and 1 become the farthest that is told apart."""
    with np.errstate(divide="ignore"):
        return np.clip(logit(np.asarray(probabilities, dtype=float)), -_FARTHEST, _FARTHEST)


@dataclass(frozen=True)
class Calibrator:
    """A line on log-odds for each finding: ``slope * log_odds + intercept``."""

    slopes: np.ndarray  # ``(findings,)``; of a temperature, one over it
    intercepts: np.ndarray  # ``(findings,)``; of a temperature, zero
    reasons: tuple[str, ...]  # ``(findings,)``, why a finding has none (NaN); empty where it has

    def apply(self, log_odds: np.ndarray) -> np.ndarray:
        """Recalibrated log-odds ``(images, findings)``; a column of NaN where nothing was fitted."""
        return np.asarray(log_odds, dtype=float) * self.slopes + self.intercepts


def fit_temperature(log_odds: np.ndarray, labels: np.ndarray) -> Calibrator:
    """One temperature a finding, the one that makes its validation labels most likely (Guo et al. 2017).

    The likelihood has one maximum over the inverse temperature. There is none at a positive finite temperature where
    scores are inverted (the best inverse temperature is not positive) or where their sign tells the classes fully
    apart. Of log-odds ``(images, findings)`` and labels 1, 0, -1 or NaN of the same shape, the last two left out.
    """
    return _fit_each(_fit_inverse_temperature, log_odds, labels)


def fit_platt(log_odds: np.ndarray, labels: np.ndarray) -> Calibrator:
    """A slope and an intercept a finding, with Platt's smoothed targets (Platt 1999), which keep them finite.

    Any scores ``(images, findings)`` do; labels as in `fit_temperature`.
    """
    return _fit_each(_fit_smoothed, log_odds, labels)


_Line = tuple[float, float, str]  # slope, intercept, why there is none


def _fit_each(fit: Callable[[np.ndarray, np.ndarray], _Line], log_odds: np.ndarray, labels: np.ndarray) -> Calibrator:
    log_odds, labels = _check(log_odds), np.asarray(labels, dtype=float)
    lines = []
    for odds, label, own in zip(log_odds.T, labels.T, known_labels(labels).T, strict=True):
        reason = _lacking(label[own]) or ("not predicted" if np.isnan(odds[own]).any() else "")
        lines.append((np.nan, np.nan, reason) if reason else fit(odds[own], label[own]))
    slopes, intercepts, reasons = zip(*lines, strict=True)
    return Calibrator(np.array(slopes, dtype=float), np.array(intercepts, dtype=float), reasons)


def _lacking(labels: np.ndarray) -> str:
    if len(labels) == 0:
        return "no known label in validation"
    missing = [name for value, name in ((1, "positive"), (0, "negative")) if not (labels == value).any()]
    return f"no {missing[0]} in validation" if missing else ""


def _fit_inverse_temperature(odds: np.ndarray, labels: np.ndarray) -> _Line:
    def slope_of_loss(inverse):
        return float(np.sum((expit(inverse * odds) - labels) * odds))

    low, high = _INVERSE_TEMPERATURES
    if slope_of_loss(low) >= 0:
        return np.nan, np.nan, "the scores are inverted or say nothing"
    if slope_of_loss(high) <= 0:
        return np.nan, np.nan, "the sign of the scores tells the classes fully apart"
    return float(brentq(slope_of_loss, low, high, xtol=1e-14, rtol=1e-13)), 0.0, ""


def _fit_smoothed(odds: np.ndarray, labels: np.ndarray) -> _Line:
    if np.ptp(odds) == 0:
        return np.nan, np.nan, "all scores are equal"
    positives = labels.sum()
    negatives = len(labels) - positives
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, deviation = odds.mean(), odds.std()
    intercept, slope = _regress((odds - centre) / deviation, target)
    return slope / deviation, intercept - slope / deviation * centre, ""


def _regress(odds: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Intercept and slope of a logistic regression on shares, by Newton's method with halved steps."""
    columns = np.stack([np.ones_like(odds), odds], axis=1)
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-12)
    columns, beta = columns / scale, np.zeros(2)

    def measure_loss(weights: np.ndarray) -> float:
        log_odds = columns @ weights
        return float(np.sum(np.logaddexp(0, log_odds) - targets * log_odds))

    loss = measure_loss(beta)
    for _ in range(_STEPS):
        expected = expit(columns @ beta)
        curvature = (columns * (expected * (1 - expected))[:, None]).T @ columns
        step = np.linalg.lstsq(curvature, columns.T @ (targets - expected), rcond=None)[0]
        while np.abs(step).max() > 1e-12 and measure_loss(beta + step) > loss:
            step = step / 2
        beta, loss = beta + step, measure_loss(beta + step)
        if np.abs(step).max() < 1e-12 * max(1.0, np.abs(beta).max()):
            break
    return beta / scale


def shift_prevalence(log_odds: np.ndarray, before: np.ndarray | float, after: np.ndarray | float) -> np.ndarray:
    """Log-odds ``(images, findings)`` under another prevalence, the sick and the healthy looking as they did.

    By Bayes' rule the log-odds of the prevalences, ``(findings,)`` each, are exchanged.
    """
    return np.asarray(log_odds, dtype=float) + logit(after) - logit(before)


def measure_calibration(
    log_odds: np.ndarray,
    labels: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    *,
    macro: np.ndarray,
    reasons: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Calibration errors (by each way of `assign_bins`) and Brier score of every finding, and their macro means.

    A calibration error is larger in resamples than in the cases they are drawn from, as it is larger in few cases than
    in many. Its interval is therefore that of the patient bootstrap around the error itself: how much the number
    varies with other patients. The upward bias of the number stays in it; ``ece_adaptive`` has least of it.

    Args:
        log_odds: ``(images, findings)``; a column of NaN alone was not predicted.
        macro: ``(findings,)``, bool: which findings enter the macro mean, so that means of several methods are of the
            same findings.
        reasons: why a column is not predicted.

    Gives rows ``finding, metric, value, ci_low, ci_high, n, positives, reason``. A finding without a known label, or
    not predicted, keeps its rows with NaN.
    """
    log_odds, labels = _check(log_odds), np.asarray(labels, dtype=float)
    known, drawn = known_labels(labels), weights.astype(np.float32)
    few = count_patients(known, weights) < LEAST_PATIENTS
    rows, averaged = [], {metric: [] for metric in METRICS}
    for number, (finding, own) in enumerate(zip(findings, known.T, strict=True)):
        label, odds = labels[own, number], log_odds[own, number]
        reason = (reasons[number] if reasons else "") or ("" if own.any() else "no known label in test")
        place = {"finding": finding, "n": len(label), "positives": int((label == 1).sum()), "reason": reason}
        measured = {}
        if own.any() and not np.isnan(log_odds[:, number]).any():
            measured = _resample_errors(expit(odds), label, own, drawn)
        for metric in METRICS:
            value, replicates = measured.get(metric, (np.nan, None))
            rows.append(place | _describe_estimate(metric, value, None if few[number] else replicates))
            if macro[number] and measured:
                averaged[metric].append(measured[metric])
    place = {"finding": MACRO, "n": len(labels), "positives": -1, "reason": ""}
    for metric, of_findings in averaged.items():
        value, replicates = np.nan, None
        if of_findings:
            values, drawn = zip(*of_findings, strict=True)
            value, replicates = float(np.mean(values)), macro_mean(np.stack(drawn, axis=1))
        rows.append(place | _describe_estimate(metric, value, replicates))
    return pd.DataFrame(rows)


def _resample_errors(probabilities, labels, own, weights) -> dict[str, tuple[float, np.ndarray]]:
    """By metric the value of one finding and its replicates."""
    columns = []
    for binning in BINNINGS:
        members = assign_bins(probabilities, labels, binning)
        columns.append(np.zeros((len(labels), members.max() + 1)))
        columns[-1][np.arange(len(labels)), members] = probabilities - labels
    columns.append(((probabilities - labels) ** 2)[:, None])
    # One product for all, cases that are not known counting nothing: reading the weights is what takes time.
    ends = np.cumsum([one.shape[1] for one in columns])
    stacked = np.zeros((len(own), ends[-1] + 1), dtype=weights.dtype)
    stacked[own] = np.concatenate([*columns, np.ones((len(labels), 1))], axis=1)
    drawn = weights @ stacked
    measured = {}
    for metric, one, end in zip(METRICS, columns, ends, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = np.abs(drawn[:, end - one.shape[1] : end]).sum(axis=1, dtype=float) / drawn[:, -1]
        measured[metric] = float(np.abs(one.sum(axis=0)).sum() / len(labels)), replicates
    return measured


def _describe_estimate(metric: str, value: float, replicates: np.ndarray | None) -> dict:
    low, high = np.nan, np.nan
    if replicates is not None:
        low, high = (value + float(end) for end in interval(replicates - np.nanmean(replicates)))
        low = max(0.0, low)
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high}


def _check(log_odds: np.ndarray) -> np.ndarray:
    log_odds = np.asarray(log_odds, dtype=float)
    wrong = ~np.isfinite(log_odds) & ~np.isnan(log_odds).all(axis=0)
    if wrong.any():
        image, finding = np.argwhere(wrong)[0]
        raise StudyError(
            f"the log-odds of finding number {finding} are not finite for image number {image}: score it again."
        )
    return log_odds
