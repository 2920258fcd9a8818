"""Spectrum effects: negatives who are healthy, who have something else, or who have each other disease.

An AUROC against healthy negatives overstates what a model does in a clinic, where most who are imaged have something.
The same holds for precision: it is a property of the prevalence as much as of the model, and can be carried to another
prevalence in closed form.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import MACRO
from chexstudy.statistics.bootstrap import (
    LEAST_PATIENTS,
    RESAMPLES,
    bootstrap_patients,
    count_patients,
    count_scarcer_patients,
    interval,
    resample_seeds,
)
from chexstudy.statistics.ranking import auroc, known_labels, macro_mean

NEGATIVES = ("all", "healthy", "sick")
_GAP = "gap"
# Cases times resamples held at once.
_BLOCK = 400_000


# --- negatives -------------------------------------------------------------------------------------------------------


def find_healthy(labels: np.ndarray, findings: Sequence[str]) -> np.ndarray:
    """Images without any finding, ``(images,)``: ``No Finding`` is 1; where a cohort lacks it, all known labels are 0.

    Args:
        labels: ``(images, findings)``, 1, 0, -1 or NaN.
    """
    labels = np.asarray(labels, dtype=float)
    if NO_FINDING in findings:
        return labels[:, list(findings).index(NO_FINDING)] == 1
    return ~np.isin(labels, (1, -1)).any(axis=1) & known_labels(labels).any(axis=1)


def choose_negatives(labels: np.ndarray, findings: Sequence[str], negatives: str) -> np.ndarray:
    """The labels with only some of the negatives left, the others NaN: ``(images, findings)``.

    Args:
        labels: ``(images, findings)``, 1, 0, -1 or NaN.
        negatives: ``all``; ``healthy``: those of `find_healthy`; ``sick``: not healthy, and with another finding than
            the one in question (``No Finding`` is none); or a finding's name: those who have it.

    Returns:
        Labels as `chexstudy.statistics.ranking.rank_metrics` takes them. Positives stay. ``No Finding`` is itself
        what parts healthy from sick, so that it keeps its negatives with ``all`` alone.
    """
    labels = np.asarray(labels, dtype=float)
    findings = list(findings)
    if labels.ndim != 2 or labels.shape[1] != len(findings):
        raise StudyError(f"labels {labels.shape} must be (images, findings) for {len(findings)} findings.")
    if negatives not in NEGATIVES and negatives not in findings:
        raise StudyError(f"negatives are {', '.join(NEGATIVES)} or one of the findings, not {negatives!r}.")
    if negatives == "all":
        return labels
    healthy = find_healthy(labels, findings)
    disease = np.array([finding != NO_FINDING for finding in findings])
    if negatives == "healthy":
        kept = np.broadcast_to(healthy[:, None], labels.shape)
    elif negatives == "sick":
        # A negative for the finding in question has, if any, another one.
        kept = np.broadcast_to((~healthy & (labels[:, disease] == 1).any(axis=1))[:, None], labels.shape)
    else:
        kept = np.broadcast_to((labels[:, findings.index(negatives)] == 1)[:, None], labels.shape)
    chosen = np.where((labels == 1) | ((labels == 0) & kept), labels, np.nan)
    chosen[:, ~disease] = np.nan
    return chosen


def measure_spectrum(
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    patient_ids: Sequence[str],
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """AUROC of every finding against all, healthy and sick negatives, and healthy minus sick on the same resamples.

    Args:
        scores: ``(images, findings)``, one a seed; means over seeds, seeds resampled too.
        labels: ``(images, findings)``, 1, 0, -1 or NaN.

    Returns:
        Rows ``finding, metric, group, reference, value, ci_low, ci_high, n, positives``: metric ``auroc`` with the
        negatives ``all``, ``healthy`` or ``sick`` as group, and ``auroc_difference``, healthy minus the reference sick.
        The macro rows mean over the findings that all three can be had for, so that they differ by their negatives
        alone. A finding that cannot be evaluated keeps its rows with NaN and n.
    """
    if len(scores) == 0:
        raise StudyError("there are no scores to measure: pass the scores of one seed at least.")
    weights = bootstrap_patients(patient_ids, resamples, generator)
    by_negatives = {name: choose_negatives(labels, findings, name) for name in NEGATIVES}
    values = {name: np.mean([auroc(one, score) for score in scores], axis=0) for name, one in by_negatives.items()}
    drawn = {name: np.stack([auroc(one, s, weights) for s in scores]) for name, one in by_negatives.items()}
    shared = ~np.isnan(np.stack(list(values.values()))).any(axis=0)
    patients = {name: count_scarcer_patients(one, weights) for name, one in by_negatives.items()}
    values[_GAP] = values["healthy"] - values["sick"]
    drawn[_GAP] = drawn["healthy"] - drawn["sick"]
    patients[_GAP] = np.minimum(patients["healthy"], patients["sick"])
    by_negatives[_GAP] = np.where(np.isnan(by_negatives["sick"]), by_negatives["healthy"], by_negatives["sick"])
    present = (np.asarray(labels, dtype=float)[:, shared] == 1).any(axis=1)
    of_macro = count_patients(present[:, None], weights)
    # The same draws of seeds for every sort of negatives.
    state = generator.bit_generator.state
    tables = []
    for name, replicates in drawn.items():
        generator.bit_generator.state = state
        replicates = resample_seeds(replicates, generator)
        replicates = np.column_stack([replicates, macro_mean(replicates[:, shared])])
        low, high = interval(replicates, patients=np.append(patients[name], of_macro))
        bounds = (-1, 1) if name == _GAP else (0, 1)
        known = known_labels(by_negatives[name])
        table = {
            "finding": [*findings, MACRO],
            "metric": "auroc_difference" if name == _GAP else "auroc",
            "group": "healthy" if name == _GAP else name,
            "reference": "sick" if name == _GAP else "",
            "value": [*values[name], macro_mean(values[name][shared])],
            "ci_low": np.clip(low, *bounds),
            "ci_high": np.clip(high, *bounds),
            "n": [*known.sum(axis=0), int(known[:, shared].any(axis=1).sum())],
            "positives": [*(known & (by_negatives[name] == 1)).sum(axis=0), -1],
        }
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def measure_against_each(
    scores: Sequence[np.ndarray], labels: np.ndarray, findings: Sequence[str], patient_ids: Sequence[str]
) -> pd.DataFrame:
    """AUROC of each finding against the people with each other finding: which diseases are mistaken for which.

    Args:
        scores, labels, findings, patient_ids: as in `measure_spectrum`.

    Returns:
        Rows ``finding, metric, group, value, ci_low, ci_high, n, positives`` of the metric ``auroc``, a row an ordered
        pair, the other finding as group. Values are means over seeds without intervals, NaN with fewer than five
        patients on a side.
    """
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    diseases = [finding for finding in findings if finding != NO_FINDING]
    tables = []
    for other in diseases:
        chosen = choose_negatives(labels, findings, other)
        table = {
            "finding": list(findings),
            "metric": "auroc",
            "group": other,
            "n": known_labels(chosen).sum(axis=0),
            "positives": (chosen == 1).sum(axis=0),
        }
        # What cannot be told is not ranked at all.
        ranked = np.where([_has_patients(column, patients) for column in chosen.T], chosen, np.nan)
        value = np.mean([auroc(ranked, score) for score in scores], axis=0)
        tables.append(pd.DataFrame(table).assign(value=value, ci_low=np.nan, ci_high=np.nan))
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["finding", "group"])
    return rows[rows.finding.isin(diseases) & (rows.finding != rows.group)]


def _has_patients(column: np.ndarray, patients: np.ndarray) -> bool:
    return all(len(np.unique(patients[column == label])) >= LEAST_PATIENTS for label in (0, 1))


# --- prevalence ------------------------------------------------------------------------------------------------------


def average_precision_at(
    labels: np.ndarray, scores: np.ndarray, prevalences: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Average precision as it would be at other prevalences: positives and negatives count with another weight.

    The sick and the healthy being what they are, the share called positive at each threshold stays the same in either
    class, and the precision there is ``p TPR / (p TPR + (1 - p) FPR)``. At the prevalence of the cases it is the plain
    average precision.

    Args:
        labels: ``(cases, findings)``, 1, 0, -1 or NaN; the last two are left out.
        scores: ``(cases, findings)``; a column of NaN alone was not predicted.
        prevalences: ``(prevalences, findings)``.
        weights: ``(resamples, cases)``, how often each case counts; without it, each once.

    Returns:
        ``(prevalences, resamples, findings)``; NaN where a finding has one class only or was not predicted.
    """
    by_case = np.ones((len(labels), 1), dtype=np.int32) if weights is None else np.asarray(weights).T
    precision = np.full((len(prevalences), by_case.shape[1], labels.shape[1]), np.nan)
    known = known_labels(labels)
    ranked = []
    for finding, column in enumerate(scores.T):
        if np.isnan(column).all():
            continue
        if np.isnan(column).any():
            raise StudyError(
                f"the scores of finding number {finding} are NaN for some cases: score every case or none."
            )
        # From the highest score down; at a threshold, all of the same score are called.
        positives, negatives = (
            own[np.argsort(-column[own], kind="stable")]
            for own in (np.flatnonzero(known[:, finding] & (labels[:, finding] == value)) for value in (1, 0))
        )
        if len(positives) and len(negatives):
            at = -column[positives]
            counts = (np.searchsorted(at, at, "right"), np.searchsorted(-column[negatives], at, "right"))
            ranked.append((finding, positives, negatives, *counts))
    width = max(1, _BLOCK // max(1, len(labels)))
    for start in range(0, by_case.shape[1], width):
        block = np.ascontiguousarray(by_case[:, start : start + width])
        for finding, positives, negatives, hits, alarms in ranked:
            drawn = block[positives]
            true_rate, false_rate = _rates(drawn, hits), _rates(block[negatives], alarms)
            for place, one in enumerate(prevalences[:, finding]):
                with np.errstate(divide="ignore", invalid="ignore"):
                    share = one * true_rate / (one * true_rate + (1 - one) * false_rate)
                    # Positives that a resample did not draw weigh nothing, whatever their share.
                    value = np.einsum("ij,ij->j", drawn, np.nan_to_num(share)) / drawn.sum(axis=0)
                evaluable = ~np.isnan(true_rate[0]) & ~np.isnan(false_rate[0])
                precision[place, start : start + block.shape[1], finding] = np.where(evaluable, value, np.nan)
    return precision


def _rates(drawn: np.ndarray, called: np.ndarray) -> np.ndarray:
    """Share of a class that is called at each threshold ``(thresholds, resamples)``; NaN where none is drawn."""
    total = np.cumsum(drawn, axis=0)
    total = np.concatenate([np.zeros((1, total.shape[1]), dtype=total.dtype), total])
    with np.errstate(divide="ignore", invalid="ignore"):
        return total[called] / total[-1]


def measure_precision(
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    patient_ids: Sequence[str],
    prevalences: Sequence[float],
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Average precision at stated prevalences, the same for every finding, so that findings and sets can be compared.

    Args:
        scores, labels, findings, patient_ids, generator, resamples: as in `measure_spectrum`.
        prevalences: at which to state it.

    Returns:
        Rows of the metric ``auprc_at_prevalence``, per finding and macro, the prevalence as group.
    """
    weights = bootstrap_patients(patient_ids, resamples, generator)
    known = known_labels(np.asarray(labels, dtype=float))
    positives = known & (np.asarray(labels) == 1)
    patients = np.append(
        count_scarcer_patients(labels, weights), count_patients(positives.any(axis=1)[:, None], weights)
    )
    if not all(0 < one < 1 for one in prevalences):
        raise StudyError(f"a prevalence must lie between 0 and 1, both excluded, not {prevalences}.")
    labels, scores = np.asarray(labels, dtype=float), [np.asarray(one, dtype=float) for one in scores]
    at = np.repeat(np.asarray(prevalences, dtype=float)[:, None], labels.shape[1], axis=1)
    values = np.mean([average_precision_at(labels, one, at, None)[:, 0] for one in scores], axis=0)
    drawn = np.stack([average_precision_at(labels, one, at, weights) for one in scores])
    state = generator.bit_generator.state
    tables = []
    for place, prevalence in enumerate(prevalences):
        generator.bit_generator.state = state
        value, replicates = values[place], resample_seeds(drawn[:, place], generator)
        replicates = np.column_stack([replicates, macro_mean(replicates)])
        low, high = np.clip(interval(replicates, patients=patients), 0, 1)
        table = {
            "finding": [*findings, MACRO],
            "metric": "auprc_at_prevalence",
            "group": f"{prevalence:g}",
            "value": [*value, macro_mean(value)],
            "ci_low": low,
            "ci_high": high,
            "n": [*known.sum(axis=0), len(known)],
            "positives": [*positives.sum(axis=0), -1],
        }
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)
