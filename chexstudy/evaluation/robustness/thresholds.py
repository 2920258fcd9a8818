"""Operating points: thresholds chosen on validation and carried, as they are, to a test set.

A case is called positive if its score is at least the threshold. What a carried threshold reaches on the test set may
differ from what it was chosen for, because patients, prevalence or machines differ: that is threshold transport. The
thresholds are fixed when the test set is resampled, so its intervals hold the test set's variation alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import MACRO
from chexstudy.statistics.bootstrap import RESAMPLES, bootstrap_patients, interval, resample_seeds
from chexstudy.statistics.proportions import measure_proportion
from chexstudy.statistics.ranking import known_labels, macro_mean

PROPORTIONS = ("sensitivity", "specificity", "ppv", "npv")
METRICS = (*PROPORTIONS, "f1", "youden")
_CRITERIA = ("f1", "youden", "sensitivity", "specificity")
# Weights of cases in resamples, times findings, held as float at once.
_BLOCK = 8_000_000


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen on validation."""

    # ``f1`` or ``youden``, made as large as it gets, or ``sensitivity`` or ``specificity``, held at a target
    criterion: str
    # what the latter must reach at least; the other of the two is then made as large as it gets
    target: float | None = None

    def __post_init__(self):
        if self.criterion not in _CRITERIA:
            raise StudyError(f"a threshold is chosen by {', '.join(_CRITERIA)}, not by {self.criterion!r}.")
        held = self.criterion in ("sensitivity", "specificity")
        if held and (self.target is None or not 0 < self.target <= 1):
            raise StudyError(f"the {self.criterion} to hold must be over 0 and at most 1, not {self.target}.")
        if not held and self.target is not None:
            raise StudyError(f"{self.criterion} is made as large as it gets and takes no target: leave it out.")

    @property
    def name(self) -> str:
        """As the results table calls it: ``f1``, ``specificity_0.95``."""
        return self.criterion if self.target is None else f"{self.criterion}_{self.target:.2f}"


RULES = (Rule("f1"), Rule("youden"), Rule("specificity", 0.90), Rule("specificity", 0.95), Rule("sensitivity", 0.95))


@dataclass(frozen=True)
class Thresholds:
    """Thresholds by one rule."""

    rule: Rule  # the rule
    values: np.ndarray  # ``(findings,)``, in units of the scores; NaN where none can be chosen
    reasons: tuple[str, ...]  # ``(findings,)``, why not; empty where one was chosen


def choose_thresholds(scores: np.ndarray, labels: np.ndarray, rule: Rule) -> Thresholds:
    """One threshold a finding, chosen on the validation split: every score that occurs is tried.

    Of several that do equally well, the highest is taken: it calls the fewest cases positive. A specificity that no
    occurring score reaches is reached by the next number above the highest one, which calls no validation case
    positive.

    Args:
        scores: ``(images, findings)`` of the validation split; a column of NaN alone was not predicted.
        labels: ``(images, findings)``, 1, 0, -1 or NaN; the last two are left out.
        rule: how to choose. F1 and Youden need positives and negatives, a sensitivity needs positives, a specificity
            negatives.
    """
    scores, labels = _check(scores, labels)
    values, reasons = np.full(scores.shape[1], np.nan), []
    needs = {"sensitivity": (1,), "specificity": (0,)}.get(rule.criterion, (1, 0))
    for finding, (column, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        known = known_labels(label)
        missing = [value for value in needs if not (label[known] == value).any()]
        if missing:
            reasons.append(f"no {'positive' if missing[0] else 'negative'} in validation")
        elif np.isnan(column).all():
            reasons.append("not predicted")
        else:
            reasons.append("")
            values[finding] = _choose(column[known], label[known] == 1, rule)
    return Thresholds(rule, values, tuple(reasons))


def _choose(scores: np.ndarray, present: np.ndarray, rule: Rule) -> float:
    candidates = np.unique(scores)
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    positives, negatives = np.sort(scores[present]), np.sort(scores[~present])
    hits = len(positives) - np.searchsorted(positives, candidates, "left")
    false_alarms = len(negatives) - np.searchsorted(negatives, candidates, "left")
    if rule.criterion == "specificity":
        # Compared as whole numbers of cases: 0.95 of 20 negatives is 19 of them, whatever the last bit says.
        return candidates[len(negatives) - false_alarms >= _at_least(rule.target, len(negatives))][0]
    if rule.criterion == "sensitivity":
        return candidates[hits >= _at_least(rule.target, len(positives))][-1]
    if rule.criterion == "f1":
        quality = 2 * hits / (len(positives) + hits + false_alarms)
    else:
        quality = hits * len(negatives) - false_alarms * len(positives)
    return candidates[np.flatnonzero(quality == quality.max())[-1]]


def _at_least(target: float, count: int) -> int:
    return int(np.ceil(target * count - 1e-9))


def measure_thresholds(
    thresholds: Sequence[Thresholds],
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    patient_ids: Sequence[str],
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """What carried thresholds reach on a test set: per finding and as the macro mean.

    Sensitivity, specificity, PPV and NPV of a finding have Wilson intervals that know of patients and seeds
    (`chexstudy.statistics.proportions`); PPV and NPV pool the called cases of all seeds, since a seed may call none.
    F1, Youden's index and the macro means have bootstrap intervals over patients and seeds; a PPV or NPV that a seed
    does not have is left out of its macro mean.

    Args:
        thresholds: of one rule, one a seed; each from its own seed's validation scores.
        scores: ``(images, findings)`` of the test set, one a seed.
        labels: ``(images, findings)`` of the test set, 1, 0, -1 or NaN.

    Returns:
        Rows ``finding, metric, setting, value, ci_low, ci_high, n, positives, reason``; the setting is the rule.
        ``threshold`` is the mean over seeds.
        With a target there are two more metrics: ``transport``, reached minus target with its interval, and
        ``target_held``, 1 if that interval holds the target and 0 if not; its macro row is the share of findings for
        which it does, n their number. A finding without a threshold, or without the cases a metric needs on the test
        set, keeps its rows with NaN and the reason.
    """
    if not thresholds or len(thresholds) != len(scores) or len({one.rule for one in thresholds}) != 1:
        raise StudyError("carried thresholds need one rule, and one set of thresholds for the scores of each seed.")
    rule = thresholds[0].rule
    checked = [_check(one, labels) for one in scores]
    labels = checked[0][1]
    cut = np.stack([one.values for one in thresholds])
    if cut.shape[1] != labels.shape[1] or len(findings) != labels.shape[1] or len(patient_ids) != len(labels):
        raise StudyError(
            f"thresholds of {cut.shape[1]} findings and {len(patient_ids)} patient ids cannot be carried to labels "
            f"{labels.shape}: use the same findings, and one id an image."
        )
    called = np.stack([one >= row for (one, _), row in zip(checked, cut, strict=True)])
    weights = bootstrap_patients(patient_ids, resamples, generator)
    patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    known = known_labels(labels)
    present, absent = known & (labels == 1), known & (labels != 1)
    unset = np.isnan(cut).any(axis=0)
    value = _operate(called, present, absent, None).mean(axis=0)
    replicates = resample_seeds(_operate(called, present, absent, weights), generator)
    value[:, unset], replicates[..., unset] = np.nan, np.nan
    scarce = [min(len(np.unique(patients[of])) for of in pair) for pair in zip(present.T, absent.T, strict=True)]
    low, high = np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    for finding in np.flatnonzero(~unset):
        for row, metric in enumerate(PROPORTIONS):
            of, hit = _proportion(metric, called[:, :, finding], present[:, finding], absent[:, finding])
            value[row, finding], low[row, finding], high[row, finding] = measure_proportion(of, hit, patients)
    for row in range(len(PROPORTIONS), len(METRICS)):
        ends = interval(replicates[:, row], patients=np.array(scarce))
        bounds = (0 if METRICS[row] == "f1" else -1, 1)
        low[row], high[row] = np.clip(ends, *bounds)
    sick = len(np.unique(patients[present.any(axis=1)]))
    macro = macro_mean(value)
    macro_low, macro_high = np.clip(interval(macro_mean(replicates), patients=sick), -1, 1)
    table = _Table(rule, thresholds, present, absent, findings)
    for row, metric in enumerate(METRICS):
        table.add(metric, value[row], low[row], high[row])
        table.add_macro(metric, macro[row], max(macro_low[row], -float(metric == "youden")), macro_high[row])
    table.add("threshold", np.where(unset, np.nan, cut.mean(axis=0)))
    if rule.target is not None:
        row = METRICS.index(rule.criterion)
        table.add("transport", *(one[row] - rule.target for one in (value, low, high)))
        table.add_macro("transport", *(one[row] - rule.target for one in (macro, macro_low, macro_high)))
        held = np.where(np.isnan(low[row]), np.nan, (low[row] <= rule.target) & (rule.target <= high[row]))
        table.add("target_held", held)
        table.add_macro("target_held", macro_mean(held), n=int(np.sum(~np.isnan(held))))
    return pd.DataFrame(table.rows)


def _proportion(metric, called, present, absent) -> tuple[np.ndarray, np.ndarray]:
    """What a proportion is of and what counts, both ``(seeds, cases)``."""
    of, hit = {
        "sensitivity": (present, called),
        "specificity": (absent, ~called),
        "ppv": (called & (present | absent), present),
        "npv": (~called & (present | absent), absent),
    }[metric]
    return np.broadcast_to(of, called.shape), np.broadcast_to(hit, called.shape)


def _operate(called, present, absent, weights) -> np.ndarray:
    """``(seeds, metrics, findings)`` without weights, ``(seeds, resamples, metrics, findings)`` with them."""
    rows = np.ones((1, len(present)), dtype=np.float32) if weights is None else weights
    counted = np.concatenate([*(called & present), *(called & absent), present, absent], axis=1).astype(np.float32)
    width = max(1, _BLOCK // max(1, present.size))
    blocks = []
    for start in range(0, len(rows), width):
        # float32 holds whole numbers up to 16 million exactly, more than any data set has images.
        totals = np.asarray(rows[start : start + width].astype(np.float32) @ counted, dtype=float)
        totals = totals.reshape(len(totals), -1, present.shape[1]).swapaxes(0, 1)
        hits, alarms = totals[: len(called)], totals[len(called) : -2]
        blocks.append(_divide(hits, alarms, totals[-2], totals[-1]))
    stacked = np.concatenate(blocks, axis=1)
    return stacked[:, 0] if weights is None else stacked


def _divide(tp, fp, p, n) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / p, (n - fp) / n
        ppv, npv = tp / (tp + fp), (n - fp) / (n - fp + p - tp)
        f1 = np.where(p > 0, 2 * tp / (p + tp + fp), np.nan)
        return np.stack([sensitivity, specificity, ppv, npv, f1, sensitivity + specificity - 1], axis=-2)


class _Table:
    """Rows of one rule, with the reason where a value is not there."""

    def __init__(self, rule, thresholds, present, absent, findings):
        self.findings = findings
        self.positives, self.negatives = present.sum(axis=0), absent.sum(axis=0)
        self.images = len(present)
        self.setting = rule.name
        self.reasons = [
            next((one.reasons[finding] for one in thresholds if one.reasons[finding]), "")
            for finding in range(len(findings))
        ]
        self.rows: list[dict] = []

    def add(self, metric, value, low=None, high=None) -> None:
        for finding, name in enumerate(self.findings):
            reason = self.reasons[finding]
            if np.isnan(value[finding]) and not reason:
                reason = self._lacking(metric, finding)
            self.rows.append(
                {
                    "finding": name,
                    "metric": metric,
                    "setting": self.setting,
                    "reason": reason,
                    "value": float(value[finding]),
                    "ci_low": np.nan if low is None else float(low[finding]),
                    "ci_high": np.nan if high is None else float(high[finding]),
                    "n": int(self.positives[finding] + self.negatives[finding]),
                    "positives": int(self.positives[finding]),
                }
            )

    def _lacking(self, metric, finding) -> str:
        """What the test set lacks."""
        if self.positives[finding] == 0 and metric != "specificity":
            return "no positive in test"
        if self.negatives[finding] == 0:
            return "no negative in test"
        return {"ppv": "nothing called positive", "npv": "nothing called negative"}.get(metric, "too few patients")

    def add_macro(self, metric, value, low=np.nan, high=np.nan, n=None) -> None:
        self.rows.append(
            {
                "finding": MACRO,
                "metric": metric,
                "setting": self.setting,
                "reason": "",
                "value": float(value),
                "ci_low": float(low),
                "ci_high": float(high),
                "n": self.images if n is None else n,
                "positives": -1,
            }
        )


def _check(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    if labels.ndim != 2 or scores.shape != labels.shape:
        raise StudyError(
            f"labels {labels.shape} and scores {scores.shape} must both be (cases, findings) of one shape."
        )
    partly = np.isnan(scores).any(axis=0) & ~np.isnan(scores).all(axis=0)
    if partly.any():
        raise StudyError(
            f"the scores of finding number {np.flatnonzero(partly)[0]} are NaN for some cases: score all cases or none."
        )
    return scores, labels


def tabulate_transport(rows: pd.DataFrame) -> pd.DataFrame:
    """How well targets travelled: a line for each arm, data set, head, rule and exposure.

    Args:
        rows: rows of the results table of task ``operating_point``.

    Returns:
        ``arm, data_set, head, setting, exposure, target, reached`` (macro mean), ``findings`` (with an interval),
        ``held`` (of them, those whose interval holds the target) and ``below`` (those whose whole interval lies under
        it).
    """
    keys = ["arm", "data_set", "head", "setting", "exposure"]
    targets = {rule.name: rule.target for rule in RULES if rule.target is not None}
    macro = rows[(rows.finding == MACRO) & (rows.metric == "transport")].set_index(keys).value.sort_index()
    single = rows[rows.finding != MACRO]
    held = single[single.metric == "target_held"].groupby(keys).value.agg(["count", "sum"]).astype(int)
    below = single[(single.metric == "transport") & (single.ci_high < 0)].groupby(keys).size().rename("below")
    table = macro.to_frame("reached").join(held).join(below).fillna({"below": 0}).astype({"below": int}).reset_index()
    table.insert(len(keys), "target", table.setting.map(targets).astype(float))
    table["reached"] += table.target
    return table.rename(columns={"count": "findings", "sum": "held"})
