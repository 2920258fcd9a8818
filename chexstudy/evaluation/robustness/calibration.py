"""Whether probabilities mean what they say: calibration error, reliability, Brier score, and recalibration.

Temperature and Platt's line are fitted on the validation split. Ranking is not changed by a temperature or by a Platt
fit with a positive slope. A softmax over two raw cosines lies between 0.27 and 0.73 for geometric reasons: it ranks,
but it is no probability before it is recalibrated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import t as student

from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import MACRO
from chexstudy.statistics.bootstrap import CONFIDENCE, LEAST_PATIENTS, bootstrap_patients, interval
from chexstudy.statistics.proportions import measure_proportion
from chexstudy.statistics.ranking import known_labels, macro_mean

BINNINGS = ("mass", "width", "adaptive")
_BINS = 10
# Log-odds past these are as good as certain; a longer tail only breaks sums.
_FARTHEST = 30.0
_INVERSE_TEMPERATURES = (1e-4, 1e4)
_STEPS = 100
_MOST_BINS = 100


# --- bins ------------------------------------------------------------------------------------------------------------


def assign_bins(probabilities: np.ndarray, labels: np.ndarray, binning: str) -> np.ndarray:
    """The bin each case falls into, ``(cases,)``, from 0 on; bins without a case are left out.

    Args:
        probabilities: ``(cases,)`` between 0 and 1.
        labels: ``(cases,)``, 1 or 0; only ``adaptive`` looks at them.
        binning: ``width``: ten equal steps of probability. ``mass``: ten equal numbers of cases, equal probabilities
            never parted. ``adaptive``: as ``mass``, with the largest number of bins up to which the share of positives
            does not fall from bin to bin (the monotonic sweep of Roelofs et al. 2022, AISTATS); we stop at 100, which
            only scores that part the classes almost fully would pass.
    """
    probabilities, labels = _check_column(probabilities, labels)
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


def _excess(probabilities: np.ndarray, labels: np.ndarray, members: np.ndarray) -> np.ndarray:
    """``(cases, bins)``: probability minus label in the column of the case's bin."""
    excess = np.zeros((len(labels), members.max() + 1))
    excess[np.arange(len(labels)), members] = probabilities - labels
    return excess


def reliability_curve(
    probabilities: np.ndarray, labels: np.ndarray, patient_ids: Sequence[str], binning: str = "mass"
) -> pd.DataFrame:
    """Share of positives against mean probability, a row a bin.

    Returns:
        ``predicted`` (mean probability), ``observed`` (share of positives) with ``ci_low`` and ``ci_high`` (Wilson,
        clustered by patient; NaN with fewer than five patients), ``n`` and ``positives``, from low to high.
    """
    probabilities, labels = _check_column(probabilities, labels)
    members = assign_bins(probabilities, labels, binning)
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    rows = []
    for number in range(members.max() + 1):
        own = members == number
        share, low, high = measure_proportion(own, labels == 1, patients)
        rows.append((probabilities[own].mean(), share, low, high, int(own.sum()), int(labels[own].sum())))
    return pd.DataFrame(rows, columns=["predicted", "observed", "ci_low", "ci_high", "n", "positives"])


# --- slope and intercept ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoxCalibration:
    """Cox's recalibration (Cox 1958): log-odds of the label regressed on those of the prediction."""

    slope: tuple[float, float, float]  # 1 is right; under 1 the predictions are too extreme. Value, low and high end.
    intercept: tuple[float, float, float]  # at the fitted slope; 0 is right
    # the intercept with the slope held at 1; over 0 the predictions are too low on the whole
    in_the_large: tuple[float, float, float]


def fit_cox_calibration(probabilities: np.ndarray, labels: np.ndarray, patient_ids: Sequence[str]) -> CoxCalibration:
    """Slope and intercept of calibration with Wald intervals clustered by patient (sandwich, Student's t).

    NaN with one class only, without two different probabilities, or where probability tells the classes fully apart, so
    that no finite slope fits best; no interval with fewer than five patients of a class.
    """
    probabilities, labels = _check_column(probabilities, labels)
    odds = to_log_odds(probabilities)
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    nothing = (np.nan, np.nan, np.nan)
    one = np.ones_like(odds)
    large = _regress(one[:, None], labels, odds, patients) if 0 < labels.mean() < 1 else [nothing]
    if np.ptp(odds) == 0 or not _overlap(odds, labels):
        return CoxCalibration(nothing, nothing, large[0])
    intercept, slope = _regress(np.stack([one, odds], axis=1), labels, np.zeros_like(odds), patients)
    return CoxCalibration(slope, intercept, large[0])


def _overlap(odds: np.ndarray, labels: np.ndarray) -> bool:
    """Whether no cut of the log-odds parts the classes: only then a slope is finite."""
    if not 0 < labels.mean() < 1:
        return False
    sick, healthy = odds[labels == 1], odds[labels == 0]
    return bool(sick.min() < healthy.max() and healthy.min() < sick.max())


def _regress(design, labels, offset, patients) -> list[tuple[float, float, float]]:
    """Logistic regression by Newton's method with halved steps; each coefficient with its clustered interval."""
    scale = np.maximum(np.abs(design).max(axis=0), 1e-12)
    columns = design / scale
    beta = np.zeros(columns.shape[1])
    loss = _log_loss(columns @ beta + offset, labels)
    for _ in range(_STEPS):
        expected = expit(columns @ beta + offset)
        curvature = (columns * (expected * (1 - expected))[:, None]).T @ columns
        step = np.linalg.lstsq(curvature, columns.T @ (labels - expected), rcond=None)[0]
        while np.abs(step).max() > 1e-12:
            ahead = _log_loss(columns @ (beta + step) + offset, labels)
            if ahead <= loss:
                break
            step = step / 2
        beta, loss = beta + step, _log_loss(columns @ (beta + step) + offset, labels)
        if np.abs(step).max() < 1e-12 * max(1.0, np.abs(beta).max()):
            break
    expected = expit(columns @ beta + offset)
    curvature = np.linalg.pinv((columns * (expected * (1 - expected))[:, None]).T @ columns)
    residual = columns * (labels - expected)[:, None]
    count = patients.max() + 1
    totals = np.stack([np.bincount(patients, weights=column, minlength=count) for column in residual.T], axis=1)
    covariance = curvature @ (totals.T @ totals) @ curvature * count / max(1, count - 1)
    scarce = min(len(np.unique(patients[labels == label])) for label in (0, 1))
    quantile = student.ppf(0.5 + CONFIDENCE / 2, count - 1) if scarce >= LEAST_PATIENTS else np.nan
    error = np.sqrt(np.diag(covariance)) * quantile
    return [
        tuple(float(one / unit) for one in (b, b - e, b + e)) for b, e, unit in zip(beta, error, scale, strict=True)
    ]


def _log_loss(odds: np.ndarray, labels: np.ndarray) -> float:
    return float(np.sum(np.logaddexp(0, odds) - labels * odds))


# --- recalibration ---------------------------------------------------------------------------------------------------


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
    apart.

    Args:
        log_odds: ``(images, findings)`` of the validation split.
        labels: ``(images, findings)``, 1, 0, -1 or NaN; the last two are left out.
    """
    log_odds, labels = _check_table(log_odds, labels)
    known = known_labels(labels)
    fits = [
        _fit_inverse_temperature(odds[own], label[own])
        for odds, label, own in zip(log_odds.T, labels.T, known.T, strict=True)
    ]
    slopes = np.array([inverse for inverse, _ in fits], dtype=float)
    return Calibrator(slopes, np.where(np.isnan(slopes), np.nan, 0.0), tuple(reason for _, reason in fits))


def _fit_inverse_temperature(odds: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
    reason = _lacking(labels)
    if reason:
        return np.nan, reason
    if np.isnan(odds).any():
        return np.nan, "not predicted"

    def slope_of_loss(inverse):
        return float(np.sum((expit(inverse * odds) - labels) * odds))

    low, high = _INVERSE_TEMPERATURES
    if slope_of_loss(low) >= 0:
        return np.nan, "the scores are inverted or say nothing"
    if slope_of_loss(high) <= 0:
        return np.nan, "the sign of the scores tells the classes fully apart"
    return float(brentq(slope_of_loss, low, high, xtol=1e-14, rtol=1e-13)), ""


def fit_platt(log_odds: np.ndarray, labels: np.ndarray) -> Calibrator:
    """A slope and an intercept a finding, with Platt's smoothed targets (Platt 1999), which keep them finite.

    Args:
        log_odds: ``(images, findings)`` of the validation split; any scores do.
        labels: ``(images, findings)``, 1, 0, -1 or NaN; the last two are left out.

    Returns:
        The calibrator; ``reasons`` names findings with one class only, or whose scores are all equal.
    """
    log_odds, labels = _check_table(log_odds, labels)
    slopes, intercepts, reasons = [], [], []
    for odds, label, own in zip(log_odds.T, labels.T, known_labels(labels).T, strict=True):
        odds, label = odds[own], label[own]
        reason = _lacking(label) or ("not predicted" if np.isnan(odds).any() else "")
        reason = reason or ("all scores are equal" if np.ptp(odds) == 0 else "")
        reasons.append(reason)
        if reason:
            slopes.append(np.nan)
            intercepts.append(np.nan)
            continue
        positives = label.sum()
        negatives = len(label) - positives
        target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        centre, deviation = odds.mean(), odds.std()
        design = np.stack([np.ones_like(odds), (odds - centre) / deviation], axis=1)
        (intercept, *_), (slope, *_) = _regress(design, target, np.zeros_like(odds), np.arange(len(odds)))
        slopes.append(slope / deviation)
        intercepts.append(intercept - slope / deviation * centre)
    return Calibrator(np.array(slopes, dtype=float), np.array(intercepts, dtype=float), tuple(reasons))


def _lacking(labels: np.ndarray) -> str:
    if len(labels) == 0:
        return "no known label in validation"
    for value, name in ((1, "positive"), (0, "negative")):
        if not (labels == value).any():
            return f"no {name} in validation"
    return ""


# --- prevalence ------------------------------------------------------------------------------------------------------


def shift_prevalence(log_odds: np.ndarray, before: np.ndarray | float, after: np.ndarray | float) -> np.ndarray:
    """Log-odds under another prevalence, the images of the sick and of the healthy being what they were.

    By Bayes' rule the log-odds of the prevalence are exchanged: ``+ logit(after) - logit(before)``.

    Args:
        log_odds: ``(images, findings)``.
        before: prevalence they were calibrated under, ``(findings,)`` or one number.
        after: prevalence they are to hold under.
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    for prevalence in (before, after):
        if not ((prevalence > 0) & (prevalence < 1) | np.isnan(prevalence)).all():
            raise StudyError("a prevalence must lie between 0 and 1, both excluded: leave such findings out.")
    return np.asarray(log_odds, dtype=float) + logit(after) - logit(before)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_calibration(
    log_odds: np.ndarray,
    labels: np.ndarray,
    findings: Sequence[str],
    patient_ids: Sequence[str],
    generator: np.random.Generator,
    *,
    resamples: int,
    reasons: Sequence[str] | None = None,
    macro: np.ndarray | None = None,
) -> pd.DataFrame:
    """Calibration of every finding, and the macro means of calibration error and Brier score.

    A calibration error is larger in resamples than in the cases they are drawn from, as it is larger in few cases than
    in many. Its interval is therefore that of the patient bootstrap around the error itself: how much the number
    varies with other patients. The upward bias of the number stays in it; ``ece_adaptive`` has least of it.

    Args:
        log_odds: ``(images, findings)``; a column of NaN alone was not predicted.
        labels: ``(images, findings)``, 1, 0, -1 or NaN.
        reasons: why a column is not predicted.
        macro: ``(findings,)``, bool: which findings enter the macro mean, so that means of several methods are of the
            same findings; all that are predicted if it is None.

    Returns:
        Rows ``finding, metric, value, ci_low, ci_high, n, positives, reason`` of the metrics ``ece_mass``,
        ``ece_width``, ``ece_adaptive`` (by `assign_bins`), ``brier``, ``calibration_slope``, ``calibration_intercept``
        and ``calibration_in_the_large``. A finding without a known label, or not predicted, keeps its rows with NaN.
    """
    log_odds, labels = _check_table(log_odds, labels)
    weights = bootstrap_patients(patient_ids, resamples, generator).astype(np.float32)
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    known, predicted = known_labels(labels), ~np.isnan(log_odds).any(axis=0)
    enters = np.ones(len(findings), dtype=bool) if macro is None else np.asarray(macro, dtype=bool)
    rows, replicates = [], {}
    for number, finding in enumerate(findings):
        own = known[:, number]
        label = labels[own, number]
        measured = {}
        if own.any() and predicted[number]:
            odds = log_odds[own, number]
            measured, drawn = _measure_one(expit(odds), label, own, patients, weights)
            for name, values in drawn.items() if enters[number] else ():
                replicates.setdefault(name, []).append((measured[name][0], values))
        reason = (reasons[number] if reasons else "") or ("" if own.any() else "no known label in test")
        place = {"finding": finding, "n": len(label), "positives": int((label == 1).sum()), "reason": reason}
        rows += [place | _name_estimate(metric, *measured.get(metric, (np.nan,) * 3)) for metric in _MEASURED]
    place = {"finding": MACRO, "n": len(labels), "positives": -1, "reason": ""}
    for metric in _AVERAGED:
        estimate = (np.nan,) * 3
        if metric in replicates:
            singles, drawn = zip(*replicates[metric], strict=True)
            value = float(np.mean(singles))
            estimate = value, *_interval_around(value, macro_mean(np.stack(drawn, axis=1)))
        rows.append(place | _name_estimate(metric, *estimate))
    return pd.DataFrame(rows)


_AVERAGED = (*(f"ece_{binning}" for binning in BINNINGS), "brier")
_MEASURED = (*_AVERAGED, "calibration_slope", "calibration_intercept", "calibration_in_the_large")


def _name_estimate(metric: str, value: float, low: float, high: float) -> dict:
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high}


def _measure_one(probabilities, labels, own, patients, weights) -> tuple[dict, dict]:
    """Values with intervals of one finding, and the replicates of those that are averaged over findings."""
    few = len(np.unique(patients[own])) < LEAST_PATIENTS
    bins = {f"ece_{binning}": assign_bins(probabilities, labels, binning) for binning in BINNINGS}
    columns = {name: _excess(probabilities, labels, members) for name, members in bins.items()}
    columns["brier"] = ((probabilities - labels) ** 2)[:, None]
    # One product for all of them, cases that are not known counting nothing: reading the weights is what takes time.
    stacked = np.zeros((len(own), sum(one.shape[1] for one in columns.values()) + 1), dtype=weights.dtype)
    stacked[own] = np.concatenate([*columns.values(), np.ones((len(labels), 1))], axis=1)
    drawn = weights @ stacked
    ends = np.cumsum([one.shape[1] for one in columns.values()])
    measured, replicates = {}, {}
    for (name, one), end in zip(columns.items(), ends, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.abs(drawn[:, end - one.shape[1] : end]).sum(axis=1, dtype=float) / drawn[:, -1]
        value = float(np.abs(one.sum(axis=0)).sum() / len(labels))
        replicates[name] = values
        measured[name] = (value, *((np.nan, np.nan) if few else _interval_around(value, values)))
    cox = fit_cox_calibration(probabilities, labels, patients[own])
    measured |= {"calibration_slope": cox.slope, "calibration_intercept": cox.intercept}
    return measured | {"calibration_in_the_large": cox.in_the_large}, replicates


def _interval_around(value: float, replicates: np.ndarray) -> tuple[float, float]:
    low, high = interval(replicates - np.nanmean(replicates))
    return max(0.0, value + float(low)), value + float(high)


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_column(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels, dtype=float)
    if probabilities.ndim != 1 or probabilities.shape != labels.shape or len(labels) == 0:
        raise StudyError(
            f"calibration needs one probability and one label a case, at least one, not {probabilities.shape} and "
            f"{labels.shape}."
        )
    if not np.isin(labels, (0, 1)).all():
        raise StudyError("calibration knows the labels 1 and 0 only: leave out uncertain and missing ones first.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise StudyError("a probability must lie from 0 to 1: turn scores into log-odds and those into probabilities.")
    return probabilities, labels


def _check_table(log_odds, labels) -> tuple[np.ndarray, np.ndarray]:
    log_odds, labels = np.asarray(log_odds, dtype=float), np.asarray(labels, dtype=float)
    if labels.ndim != 2 or log_odds.shape != labels.shape:
        raise StudyError(
            f"labels {labels.shape} and log-odds {log_odds.shape} must both be (images, findings) of one shape."
        )
    wrong = ~np.isfinite(log_odds) & ~np.isnan(log_odds).all(axis=0)
    if wrong.any():
        image, finding = np.argwhere(wrong)[0]
        raise StudyError(
            f"the log-odds of finding number {finding} are not finite for image number {image}: score it again."
        )
    return log_odds, labels
