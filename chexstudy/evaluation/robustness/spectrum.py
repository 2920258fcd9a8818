"""Spectrum effects: negatives who are healthy, or who have something else, and precision at other prevalences.

An AUROC against healthy negatives overstates what a model does in a clinic, where most who are imaged have something.
The same holds for precision: it is a property of the prevalence as much as of the model, and can be carried to another
prevalence in closed form.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pandas as pd

from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import MACRO
from chexstudy.statistics.bootstrap import count_patients, count_scarcer_patients, interval, resample_seeds
from chexstudy.statistics.ranking import auroc, known_labels, macro_mean

NEGATIVES = ("all", "healthy", "sick")
_GAP = "gap"
# Cases times resamples held at once.
_BLOCK = 400_000


def find_healthy(labels: np.ndarray, findings: Sequence[str]) -> np.ndarray:
    """Images without any finding, ``(images,)``: ``No Finding`` is 1; where a cohort lacks it, all known labels are 0.

    Labels are ``(images, findings)``, 1, 0, -1 or NaN.
    """
    if NO_FINDING in findings:
        return labels[:, list(findings).index(NO_FINDING)] == 1
    return ~np.isin(labels, (1, -1)).any(axis=1) & known_labels(labels).any(axis=1)


def choose_negatives(labels: np.ndarray, findings: Sequence[str], negatives: str) -> np.ndarray:
    """The labels with only some of the negatives left, the others NaN: ``(images, findings)``.

    Negatives are ``all``; ``healthy``: those of `find_healthy`; or ``sick``: not healthy, and with another finding than
    the one in question (``No Finding`` is none). Positives stay. ``No Finding`` is itself what parts healthy from sick,
    so that it keeps its negatives with ``all`` alone.
    """
    labels = np.asarray(labels, dtype=float)
    if negatives == "all":
        return labels
    disease = np.array([finding != NO_FINDING for finding in findings])
    kept = find_healthy(labels, findings)
    if negatives == "sick":
        # A negative for the finding in question has, if any, another one.
        kept = ~kept & (labels[:, disease] == 1).any(axis=1)
    chosen = np.where((labels == 1) | ((labels == 0) & kept[:, None]), labels, np.nan)
    chosen[:, ~disease] = np.nan
    return chosen


def measure_spectrum(
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """AUROC of every finding against all, healthy and sick negatives, and healthy minus sick on the same resamples.

    Scores are one array a seed; values are means over seeds, seeds resampled too.

    Gives rows ``finding, metric, group, reference, value, ci_low, ci_high, n, positives``: metric ``auroc`` with the
    negatives ``all``, ``healthy`` or ``sick`` as group, and ``auroc_difference``, healthy minus the reference sick. The
    macro rows mean over the findings that all three can be had for, so that they differ by their negatives alone. A
    finding that cannot be evaluated keeps its rows with NaN and n.
    """
    chosen = {name: choose_negatives(labels, findings, name) for name in NEGATIVES}
    values = {name: np.mean([auroc(one, score) for score in scores], axis=0) for name, one in chosen.items()}
    drawn = {name: np.stack([auroc(one, s, weights) for s in scores]) for name, one in chosen.items()}
    shared = ~np.isnan(np.stack(list(values.values()))).any(axis=0)
    patients = {name: count_scarcer_patients(one, weights) for name, one in chosen.items()}
    values[_GAP] = values["healthy"] - values["sick"]
    drawn[_GAP] = drawn["healthy"] - drawn["sick"]
    patients[_GAP] = np.minimum(patients["healthy"], patients["sick"])
    chosen[_GAP] = np.where(np.isnan(chosen["sick"]), chosen["healthy"], chosen["sick"])
    present = (np.asarray(labels, dtype=float)[:, shared] == 1).any(axis=1)
    of_macro = count_patients(present[:, None], weights)
    tables = []
    for name, replicates in drawn.items():
        place = {"metric": "auroc", "group": name, "reference": ""}
        if name == _GAP:
            place = {"metric": "auroc_difference", "group": "healthy", "reference": "sick"}
        resting_on = np.append(patients[name], of_macro)
        images = int(known_labels(chosen[name])[:, shared].any(axis=1).sum())
        bounds = (-1, 1) if name == _GAP else (0, 1)
        table = _list_rows(
            findings, values[name], replicates, chosen[name], resting_on, images, generator, shared, bounds
        )
        tables.append(table.assign(**place))
    return pd.concat(tables, ignore_index=True)


def _list_rows(
    findings, value, drawn, labels, patients, images, generator, in_macro=slice(None), bounds=(0, 1)
) -> pd.DataFrame:
    """Rows of every finding and of the mean of those in the macro, the same draws of seeds at every call."""
    replicates = resample_seeds(drawn, deepcopy(generator))
    replicates = np.column_stack([replicates, macro_mean(replicates[:, in_macro])])
    low, high = np.clip(interval(replicates, patients=patients), *bounds)
    known = known_labels(labels)
    table = {"finding": [*findings, MACRO], "value": [*value, macro_mean(value[in_macro])], "ci_low": low}
    table |= {"ci_high": high, "n": [*known.sum(axis=0), images]}
    return pd.DataFrame(table | {"positives": [*(known & (labels == 1)).sum(axis=0), -1]})


def average_precision_at(
    labels: np.ndarray, scores: np.ndarray, prevalences: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Average precision as it would be at other prevalences: positives and negatives count with another weight.

    The sick and the healthy being what they are, the share called positive at each threshold stays the same in either
    class, and the precision there is ``p TPR / (p TPR + (1 - p) FPR)``. At the prevalence of the cases it is the plain
    average precision.

    Labels, scores and weights are as in `chexstudy.statistics.ranking.rank_metrics`, prevalences ``(prevalences,
    findings)``; gives ``(prevalences, resamples, findings)``, NaN where a finding has one class only or was not
    predicted.
    """
    by_case = np.ones((len(labels), 1), dtype=np.int32) if weights is None else np.asarray(weights).T
    precision = np.full((len(prevalences), by_case.shape[1], labels.shape[1]), np.nan)
    known = known_labels(labels)
    ranked = []
    for finding, column in enumerate(scores.T):
        if np.isnan(column).all():
            continue
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
    weights: np.ndarray,
    generator: np.random.Generator,
    prevalences: Sequence[float],
) -> pd.DataFrame:
    """Average precision at stated prevalences, the same for every finding, so that findings and sets can be compared.

    Arguments as in `measure_spectrum`. Rows of the metric ``auprc_at_prevalence``, per finding and macro, the
    prevalence as group.
    """
    if not all(0 < one < 1 for one in prevalences):
        raise StudyError(f"a prevalence must lie between 0 and 1, both excluded, not {prevalences}.")
    labels = np.asarray(labels, dtype=float)
    present = (labels == 1).any(axis=1)
    patients = np.append(count_scarcer_patients(labels, weights), count_patients(present[:, None], weights))
    at = np.repeat(np.asarray(prevalences, dtype=float)[:, None], labels.shape[1], axis=1)
    values = np.mean([average_precision_at(labels, one, at, None)[:, 0] for one in scores], axis=0)
    drawn = np.stack([average_precision_at(labels, one, at, weights) for one in scores])
    tables = []
    for place, prevalence in enumerate(prevalences):
        table = _list_rows(findings, values[place], drawn[:, place], labels, patients, len(labels), generator)
        tables.append(table.assign(metric="auprc_at_prevalence", group=f"{prevalence:g}"))
    return pd.concat(tables, ignore_index=True)
