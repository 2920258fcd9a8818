"""What one AUROC hides: prompts, negatives, prevalence, thresholds and calibration of a trained arm.

Everything is computed from the scores that `chexstudy.evaluation.image_text.evaluate.evaluate_arm` keeps; no model
runs. Thresholds and repairs of calibration are chosen on the validation split, all sources together, and carried to
each test set.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit

from chexstudy.cohort.table import label_matrix
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation, tell_exposure
from chexstudy.evaluation.image_text.prompts import CHOSEN, hash_families
from chexstudy.evaluation.image_text.zero_shot import ZeroShot, list_inverted
from chexstudy.evaluation.robustness.calibration import (
    fit_platt,
    fit_temperature,
    measure_calibration,
    reliability_curve,
    shift_prevalence,
    to_log_odds,
)
from chexstudy.evaluation.robustness.spectrum import measure_against_each, measure_precision, measure_spectrum
from chexstudy.evaluation.robustness.thresholds import RULES, choose_thresholds, measure_thresholds
from chexstudy.evaluation.scores import MACRO, measure_findings, read_scores, scores_artifact
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS
from chexstudy.statistics.bootstrap import bootstrap_patients
from chexstudy.statistics.ranking import known_labels

TASKS = ("prompt_family", "spectrum", "operating_point", "calibration")
# Before any repair, and each repair; the last knows the test set's prevalence, as one knows that of an enriched set.
AS_SCORED, TEMPERATURE, PLATT, PLATT_SHIFTED = REPAIRS = ("as_scored", "temperature", "platt", "platt_test_prevalence")
_RELIABILITY_COLUMNS = [
    *("arm", "seed", "data_set", "scores", "repair", "exposure"),
    *("predicted", "observed", "ci_low", "ci_high", "n", "positives"),
]


def scrutinise_arms(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], prevalences: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scrutinise evaluated arms; kept in ``evaluation/<arm>/scrutiny.parquet`` and ``reliability.parquet``.

    Args:
        evaluation: what the arms were measured with.
        arms: which.
        seeds: their seeds. Values are means over them; calibration is that of the first one.
        prevalences: at which average precision is stated.

    Returns:
        Rows of the results table, with the tasks ``prompt_family`` (setting: the family), ``spectrum`` (setting: the
        prompts, then the negatives or the prevalence), ``operating_point`` (setting: whose scores, then the rule) and
        ``calibration`` (setting: whose scores, then the repair); and the reliability curves of all findings pooled:
        ``arm, seed, data_set, scores, repair, exposure, predicted, observed, ci_low, ci_high, n, positives``. Both are
        empty for a cohort without labels.
    """
    if not seeds:
        raise StudyError("there are no seeds to scrutinise: name at least one.")
    if not evaluation.findings:
        return pd.DataFrame(), pd.DataFrame(columns=_RELIABILITY_COLUMNS)
    both = [_scrutinise_arm(evaluation, arm, seeds, prevalences) for arm in progress(arms, label="scrutinising arms")]
    rows, curves = (pd.concat(tables, ignore_index=True) for tables in zip(*both, strict=True))
    return rows, curves


def _scrutinise_arm(evaluation, arm, seeds, prevalences) -> tuple[pd.DataFrame, pd.DataFrame]:
    run = evaluation.run
    names = [f"evaluation/{arm}/{name}.parquet" for name in ("scrutiny", "reliability")]
    kinds = ("zero_shot", "linear_probe") if evaluation.probe and evaluation.validation_sets() else ("zero_shot",)
    tasks = [*kinds, *(ZeroShot(family).name for family in evaluation.families)]
    sets = [*evaluation.test_sets(), *evaluation.validation_sets()]
    scores = [scores_artifact(arm, seed, task, name) for seed in seeds for task in tasks for name in sets]
    for name in scores:
        run.require(name)
    inputs = ("cohort.parquet", *scores)
    parameters = {"resamples": evaluation.resamples, "seed": evaluation.seed, "prevalences": list(prevalences)}
    parameters["prompts"] = hash_families(evaluation.families)
    if all(run.is_current(name, run.key(parameters, inputs)) for name in names):
        return tuple(pd.read_parquet(run.path(name)) for name in names)
    arm_scores = _ArmScores(evaluation, arm, seeds)
    exposure = tell_exposure(run, arm, seeds[0])
    tables, curves = [], []
    for name, rows in evaluation.test_sets().items():
        measured = [
            _measure_families(arm_scores, rows, name).assign(task="prompt_family", seed=OVER_SEEDS),
            _measure_negatives(arm_scores, rows, name, prevalences).assign(task="spectrum", seed=OVER_SEEDS),
        ]
        for kind in kinds:
            points = _measure_operating_points(arm_scores, rows, name, kind)
            measured.append(points.assign(task="operating_point", seed=OVER_SEEDS))
            table, curve = _measure_repairs(arm_scores, rows, name, kind)
            measured.append(table.assign(task="calibration", seed=seeds[0]))
            curves.append(curve.assign(arm=arm, seed=seeds[0], data_set=name, exposure=exposure))
        tables += [table.assign(data_set=name) for table in measured]
    result = pd.concat(tables, ignore_index=True).assign(study=run.study, arm=arm, exposure=exposure)
    curve = pd.concat(curves, ignore_index=True)[_RELIABILITY_COLUMNS]
    for name, table in zip(names, (result, curve), strict=True):
        run.write_table(name, table)
        run.record(name, parameters, inputs, evaluation.seed)
    return result, curve


def summarise_scrutiny(results: pd.DataFrame) -> pd.DataFrame:
    """Means over findings by arm and data set: each prompt family, each sort of negatives, each prevalence.

    Args:
        results: rows of the results table.

    Returns:
        One row a task, metric, setting, data set and its exposure; one column an arm; cells such as
        ``0.812 [0.790, 0.833]``.
    """
    metrics = ("auroc", "auroc_difference", "auprc_at_prevalence", "inverted_findings")
    rows = results[results.task.isin(TASKS[:2]) & (results.finding == MACRO) & results.metric.isin(metrics)]
    cells = [
        f"{row.value:.0f} of {row.n}"
        if row.metric == "inverted_findings"
        else f"{row.value:.3f}" + ("" if np.isnan(row.ci_low) else f" [{row.ci_low:.3f}, {row.ci_high:.3f}]")
        for row in rows.itertuples()
    ]
    places = ["data_set", "exposure", "task", "metric", "setting"]
    table = rows.assign(cell=cells).pivot(index=places, columns="arm", values="cell")
    return table.sort_index()[sorted(table.columns)]


class _ArmScores:
    """The kept scores of one arm, seed by seed."""

    def __init__(self, evaluation: Evaluation, arm: str, seeds: Sequence[int]):
        self.evaluation, self.arm, self.seeds = evaluation, arm, list(seeds)
        self.findings = evaluation.findings
        self.validation = pd.concat([evaluation.cohort[:0], *evaluation.validation_sets().values()])

    def read(self, rows: pd.DataFrame, data_set: str, task: str) -> list[np.ndarray]:
        shared = {"arm": self.arm, "task": task, "data_set": data_set}
        run, findings = self.evaluation.run, self.findings
        return [read_scores(run, rows.image_id, findings, **shared, seed=seed) for seed in self.seeds]

    def read_validation(self, task: str) -> list[np.ndarray]:
        """The scores of `validation`, source by source; no rows where the cohort has none."""
        of_sources = [self.read(rows, name, task) for name, rows in self.evaluation.validation_sets().items()]
        empty = [np.empty((0, len(self.findings)))] * len(self.seeds)
        return [np.concatenate(parts) for parts in zip(empty, *of_sources, strict=True)]


def _measure_families(scores: _ArmScores, rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Every family, on the same resamples, and how many findings it certainly ranks the wrong way."""
    evaluation, tables = scores.evaluation, []
    labels = label_matrix(rows, scores.findings)
    for family in evaluation.families:
        generator = evaluation.generator()
        weights = bootstrap_patients(rows.patient_id, evaluation.resamples, generator)
        of_family = scores.read(rows, name, ZeroShot(family).name)
        table = (
            measure_findings(of_family, labels, scores.findings, weights).over_seeds(generator).assign(setting=family)
        )
        evaluable = int(table.value[table.metric == "evaluable_findings"].iloc[0])
        count = {"finding": MACRO, "metric": "inverted_findings", "setting": family, "n": evaluable, "positives": -1}
        count |= {"value": float(list_inverted(table).certain.sum()), "ci_low": np.nan, "ci_high": np.nan}
        tables.append(pd.concat([table, pd.DataFrame([count])], ignore_index=True))
    return pd.concat(tables, ignore_index=True)


def _measure_negatives(scores: _ArmScores, rows: pd.DataFrame, name: str, prevalences) -> pd.DataFrame:
    evaluation, findings = scores.evaluation, scores.findings
    of_arm, labels = scores.read(rows, name, "zero_shot"), label_matrix(rows, findings)
    shared = {"resamples": evaluation.resamples, "setting": CHOSEN}
    place = (of_arm, labels, findings, rows.patient_id)
    tables = [
        measure_spectrum(*place, evaluation.generator(), **shared),
        measure_against_each(*place, setting=CHOSEN),
    ]
    if prevalences:
        tables.append(measure_precision(*place, prevalences, evaluation.generator(), **shared))
    return pd.concat(tables, ignore_index=True)


def _measure_operating_points(scores: _ArmScores, rows: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    evaluation, findings = scores.evaluation, scores.findings
    validation, test = scores.read_validation(kind), scores.read(rows, name, kind)
    known, labels = label_matrix(scores.validation, findings), label_matrix(rows, findings)
    tables = []
    for rule in RULES:
        carried = [choose_thresholds(one, known, rule) for one in validation]
        shared = {"resamples": evaluation.resamples, "setting": kind}
        tables.append(
            measure_thresholds(carried, test, labels, findings, rows.patient_id, evaluation.generator(), **shared)
        )
    return pd.concat(tables, ignore_index=True)


def _measure_repairs(scores: _ArmScores, rows: pd.DataFrame, name: str, kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Calibration of the first seed before and after each repair, and its reliability curves over all findings."""
    evaluation, findings = scores.evaluation, scores.findings
    validation, test = scores.read_validation(kind)[0], scores.read(rows, name, kind)[0]
    if kind == "zero_shot":
        validation, test = to_log_odds(validation), to_log_odds(test)
    known, labels = label_matrix(scores.validation, findings), label_matrix(rows, findings)
    temperature, platt = fit_temperature(validation, known), fit_platt(validation, known)
    before, after = (_prevalence(one) for one in (known, labels))
    repaired = {
        AS_SCORED: (test, None),
        TEMPERATURE: (temperature.apply(test), temperature.reasons),
        PLATT: (platt.apply(test), platt.reasons),
        PLATT_SHIFTED: (shift_prevalence(platt.apply(test), before, after), platt.reasons),
    }
    tables, curves = [], []
    # One set of findings for all curves: those that every repair could be fitted for.
    shown = np.all([np.isfinite(odds).all(axis=0) for odds, _ in repaired.values()], axis=0)
    pooled = known_labels(labels) & shown
    patients = np.repeat(rows.patient_id.to_numpy()[:, None], len(findings), axis=1)
    for repair, (odds, reasons) in repaired.items():
        shared = {"resamples": evaluation.resamples, "setting": f"{kind}; {repair}", "reasons": reasons, "macro": shown}
        tables.append(measure_calibration(odds, labels, findings, rows.patient_id, evaluation.generator(), **shared))
        if pooled.any():
            curve = reliability_curve(expit(odds[pooled]), labels[pooled], patients[pooled])
            curves.append(curve.assign(scores=kind, repair=repair))
    empty = pd.DataFrame(columns=_RELIABILITY_COLUMNS)
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True) if curves else empty


def _prevalence(labels: np.ndarray) -> np.ndarray:
    """Share of positives among known labels ``(findings,)``; NaN where it is 0 or 1, or nothing is known."""
    known = known_labels(labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (known & (labels == 1)).sum(axis=0) / known.sum(axis=0)
    return np.where((share > 0) & (share < 1), share, np.nan)
