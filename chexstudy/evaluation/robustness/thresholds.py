"""Operating points: thresholds chosen on validation and carried, as they are, to a test set.

A case is called positive if its score is at least the threshold. What a carried threshold reaches on the test set may
differ from what it was chosen for, because patients, prevalence or machines differ: that is threshold transport. The
thresholds are fixed when the test set is resampled, so its intervals hold the test set's variation alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.evaluation.scores import MACRO
from chexstudy.statistics.bootstrap import interval, resample_seeds
from chexstudy.statistics.proportions import measure_proportion
from chexstudy.statistics.ranking import known_labels, macro_mean

METRICS = ("sensitivity", "specificity", "ppv", "npv")
# Weights of cases in resamples, times findings, held as float at once.
_BLOCK = 8_000_000


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen on validation."""

    criterion: str  # ``sensitivity`` or ``specificity``; the other of the two is made as large as it gets
    target: float  # what it must reach at least

    @property
    def name(self) -> str:
        """As the results table calls it: ``specificity_0.95``."""
        return f"{self.criterion}_{self.target:.2f}"


RULES = (Rule("specificity", 0.90), Rule("specificity", 0.95), Rule("sensitivity", 0.95))


@dataclass(frozen=True)
class Thresholds:
    """One threshold a finding."""

    values: np.ndarray  # ``(findings,)``, in units of the scores; NaN where none can be chosen
    reasons: tuple[str, ...]  # ``(findings,)``, why not; empty where one was chosen


def choose_thresholds(scores: np.ndarray, labels: np.ndarray, rule: Rule) -> Thresholds:
    """One threshold a finding, chosen on the validation split: every score that occurs is tried.

    Of several that do equally well, the highest is taken: it calls the fewest cases positive. A specificity that no
    occurring score reaches is reached by the next number above the highest one, which calls no validation case
    positive. A sensitivity needs positives, a specificity negatives.
    A column of scores that are all NaN was not predicted.
    """
    values, reasons = np.full(scores.shape[1], np.nan), []
    needed, name = {"sensitivity": (1, "positive"), "specificity": (0, "negative")}[rule.criterion]
    for finding, (column, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        own = np.sort(column[known_labels(label) & (label == needed)])
        if not len(own):
            reasons.append(f"no {name} in validation")
        elif np.isnan(column).all():
            reasons.append("not predicted")
        else:
            reasons.append("")
            candidates = np.unique(column[known_labels(label)])
            candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
            below = np.searchsorted(own, candidates, "left")
            # Compared as whole numbers of cases: 0.95 of 20 negatives is 19 of them, whatever the last bit says.
            least = int(np.ceil(rule.target * len(own) - 1e-9))
            values[finding] = (
                candidates[below >= least][0] if needed == 0 else candidates[len(own) - below >= least][-1]
            )
    return Thresholds(values, tuple(reasons))


def measure_thresholds(
    rule: Rule,
    thresholds: Sequence[Thresholds],
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    patient_ids: Sequence[str],
    weights: np.ndarray,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """What thresholds, carried from each seed's own validation scores, reach on a test set: per finding and as the
    macro mean.

    Sensitivity, specificity, PPV and NPV of a finding have Wilson intervals that know of patients and seeds
    (`chexstudy.statistics.proportions`); they pool the cases of all seeds, since a seed may call none. The macro means
    have bootstrap intervals over patients and seeds; a PPV or NPV that a seed does not have is left out.

    Gives rows ``finding, metric, setting, value, ci_low, ci_high, n, positives, reason``; the setting is the rule.
    There are three more metrics: ``threshold``, the mean over seeds; ``transport``, reached minus target with its
    interval; and ``target_held``, 1 if that interval holds the target and 0 if not, its macro row being the share of
    findings for which it does, n their number. A finding without a threshold, or without the cases a metric needs on
    the test set, keeps its rows with NaN and the reason.
    """
    cut = np.stack([one.values for one in thresholds])
    called = np.stack([one >= row for one, row in zip(scores, cut, strict=True)])
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    known = known_labels(labels)
    present, absent = known & (labels == 1), known & (labels != 1)
    unset = np.isnan(cut).any(axis=0)
    replicates = resample_seeds(_operate(called, present, absent, weights), generator)
    replicates[..., unset] = np.nan
    # Value, low and high end.
    single = np.full((3, len(METRICS), len(findings)), np.nan)
    for finding in np.flatnonzero(~unset):
        with_it, without_it, of_finding = present[:, finding], absent[:, finding], called[:, :, finding]
        shares = (with_it, of_finding), (without_it, ~of_finding)
        shares += (of_finding & known[:, finding], with_it), (~of_finding & known[:, finding], without_it)
        for row, (of, hit) in enumerate(shares):
            pair = (np.broadcast_to(one, of_finding.shape) for one in (of, hit))
            single[:, row, finding] = measure_proportion(*pair, patients)
    sick = len(np.unique(patients[present.any(axis=1)]))
    ends = np.clip(interval(macro_mean(replicates), patients=sick), 0, 1)
    macro = np.stack([macro_mean(single[0]), *ends])
    measured = dict(zip(METRICS, np.concatenate([single, macro[..., None]], axis=-1).swapaxes(0, 1), strict=True))
    measured["transport"] = measured[rule.criterion] - rule.target
    _, low, high = measured[rule.criterion][:, :-1]
    held = np.where(np.isnan(low), np.nan, (low <= rule.target) & (rule.target <= high))
    measured["threshold"] = np.full_like(measured["transport"], np.nan)
    measured["threshold"][0, :-1] = np.where(unset, np.nan, cut.mean(axis=0))
    measured["target_held"] = np.stack([np.append(held, macro_mean(held)), *np.full((2, len(held) + 1), np.nan)])
    positives, negatives = present.sum(axis=0), absent.sum(axis=0)
    carried = [next(filter(None, of_finding), "") for of_finding in zip(*(t.reasons for t in thresholds), strict=True)]
    tables = []
    for metric, (value, low, high) in measured.items():
        reasons = [
            reason or (_lacking(metric, *counts) if np.isnan(one) else "")
            for reason, one, *counts in zip(carried, value[:-1], positives, negatives, strict=True)
        ]
        images = int(np.sum(~np.isnan(held))) if metric == "target_held" else len(labels)
        table = {"finding": [*findings, MACRO], "metric": metric, "setting": rule.name, "reason": [*reasons, ""]}
        table |= {"value": value, "ci_low": low, "ci_high": high}
        table |= {"n": [*(positives + negatives), images], "positives": [*positives, -1]}
        tables.append(pd.DataFrame(table))
    rows = pd.concat(tables, ignore_index=True)
    # Thresholds of findings have no mean.
    return rows[(rows.metric != "threshold") | (rows.finding != MACRO)]


def _operate(called, present, absent, weights) -> np.ndarray:
    """`METRICS` in resamples, ``(seeds, resamples, metrics, findings)``."""
    counted = np.concatenate([*(called & present), *(called & absent), present, absent], axis=1).astype(np.float32)
    width = max(1, _BLOCK // max(1, present.size))
    blocks = []
    for start in range(0, len(weights), width):
        # float32 holds whole numbers up to 16 million exactly, more than any data set has images.
        totals = np.asarray(weights[start : start + width].astype(np.float32) @ counted, dtype=float)
        totals = totals.reshape(len(totals), -1, present.shape[1]).swapaxes(0, 1)
        hits, alarms, p, n = totals[: len(called)], totals[len(called) : -2], totals[-2], totals[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = [hits / p, (n - alarms) / n, hits / (hits + alarms), (n - alarms) / (n - alarms + p - hits)]
        blocks.append(np.stack(shares, axis=-2))
    return np.concatenate(blocks, axis=1)


def _lacking(metric: str, positives: int, negatives: int) -> str:
    if positives == 0 and metric != "specificity":
        return "no positive in test"
    if negatives == 0:
        return "no negative in test"
    return {"ppv": "nothing called positive", "npv": "nothing called negative"}.get(metric, "too few patients")


def tabulate_transport(rows: pd.DataFrame) -> pd.DataFrame:
    """How well targets travelled, from rows of task ``operating_point``.

    A line for each ``arm, data_set, head, setting`` (the rule) and ``exposure``: ``target, reached`` (macro mean),
    ``findings`` (with an interval), ``held`` (of them, those whose interval holds the target) and ``below`` (those
    whose whole interval lies under it).
    """
    keys = ["arm", "data_set", "head", "setting", "exposure"]
    macro = rows[(rows.finding == MACRO) & (rows.metric == "transport")].set_index(keys).value.sort_index()
    single = rows[rows.finding != MACRO]
    held = single[single.metric == "target_held"].groupby(keys).value.agg(["count", "sum"]).astype(int)
    below = single[(single.metric == "transport") & (single.ci_high < 0)].groupby(keys).size().rename("below")
    table = macro.to_frame("reached").join(held).join(below).fillna({"below": 0}).astype({"below": int}).reset_index()
    table.insert(len(keys), "target", table.setting.map({rule.name: rule.target for rule in RULES}).astype(float))
    table["reached"] += table.target
    return table.rename(columns={"count": "findings", "sum": "held"})
