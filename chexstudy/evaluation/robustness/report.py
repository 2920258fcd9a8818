"""What one AUROC hides: prompts, negatives, prevalence, thresholds and calibration of a trained arm.

Everything is computed from the scores that `chexstudy.evaluation.image_text.evaluate.evaluate_arms` keeps; no model
scores anew. Thresholds and recalibrations are chosen on the validation split, all sources together, and carried to each
test set.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import expit

from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation, add_exposure
from chexstudy.evaluation.image_text.evaluate import LinearProbe, list_tasks
from chexstudy.evaluation.image_text.prompts import CHOSEN, hash_families
from chexstudy.evaluation.image_text.zero_shot import ZeroShot, list_families, list_inverted
from chexstudy.evaluation.robustness.calibration import (
    fit_platt,
    fit_temperature,
    measure_calibration,
    reliability_curve,
    shift_prevalence,
    to_log_odds,
)
from chexstudy.evaluation.robustness.spectrum import measure_precision, measure_spectrum
from chexstudy.evaluation.robustness.thresholds import RULES, choose_thresholds, measure_thresholds
from chexstudy.evaluation.scores import MACRO, measure_findings, scores_artifact
from chexstudy.evaluation.task import Task
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS, join_rows, write_interval
from chexstudy.statistics.ranking import known_labels

TASKS = ("prompt_family", "spectrum", "operating_point", "calibration")
# Before any recalibration, and each; the last knows the test set's prevalence, as one knows that of an enriched set.
RECALIBRATIONS = ("as_scored", "temperature", "platt", "platt_test_prevalence")
AS_SCORED, TEMPERATURE, PLATT, PLATT_SHIFTED = RECALIBRATIONS
_CURVE_COLUMNS = [
    *("arm", "seed", "data_set", "head", "setting", "exposure"),
    *("predicted", "observed", "ci_low", "ci_high", "n", "positives"),
]


def measure_robustness(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], prevalences: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Robustness of evaluated arms; kept in ``evaluation/<arm>/robustness.parquet`` and ``reliability.parquet``.

    Values are means over the seeds, calibration is that of the first one; average precision is stated at
    ``prevalences``.

    Gives rows of the results table, with the tasks ``prompt_family`` (setting: the family), ``spectrum`` (group: the
    negatives or the prevalence), ``operating_point`` (head: whose scores, setting: the rule) and ``calibration``
    (setting: the recalibration); and the reliability curves of all findings pooled: ``arm, seed, data_set, head,
    setting, exposure, predicted, observed, ci_low, ci_high, n, positives``. Both are empty for a cohort without labels.
    """
    if not seeds:
        raise StudyError("there are no seeds to measure: name at least one.")
    if not evaluation.findings:
        return pd.DataFrame(), pd.DataFrame(columns=_CURVE_COLUMNS)
    run, tasks = evaluation.run, [task for task in list_tasks(evaluation) if task.on_validation]
    sets = [*evaluation.test_sets(), *(f"{source}/validate" for source in sorted(set(evaluation.validation.source)))]
    parameters = {"resamples": evaluation.resamples, "seed": evaluation.seed, "prevalences": list(prevalences)}
    parameters["prompts"] = hash_families(list_families(evaluation))
    both = []
    for name in progress(arms, label="robustness"):
        scores = [scores_artifact(name, seed, task.name, one) for seed in seeds for task in tasks for one in sets]
        measure = partial(_measure_arm, evaluation, name, seeds, tasks, prevalences)
        names = [f"evaluation/{name}/{table}.parquet" for table in ("robustness", "reliability")]
        inputs = ("cohort.parquet", *scores)
        both.append(run.keep_tables(names, parameters, measure, inputs, evaluation.seed, by=_measure_arm))
    rows, curves = (pd.concat(tables, ignore_index=True) for tables in zip(*both, strict=True))
    return rows, curves


def _measure_arm(
    evaluation: Evaluation, arm: str, seeds: Sequence[int], tasks: Sequence[Task], prevalences: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    findings, validation = evaluation.findings, evaluation.validation
    known, tables, curves = evaluation.labels(validation), [], []

    def read(task: Task, rows: pd.DataFrame) -> list[np.ndarray]:
        return [task.read(evaluation, arm, seed, rows) for seed in seeds]

    for data_set, rows in evaluation.test_sets().items():
        labels, (weights, generator) = evaluation.labels(rows), evaluation.draw_patients(rows)
        over = {"data_set": data_set, "seed": OVER_SEEDS}
        for family in list_families(evaluation):
            measured = measure_findings(read(ZeroShot(family), rows), labels, findings, weights)
            table = _count_inverted(measured.over_seeds(deepcopy(generator)))
            tables.append(table.assign(task="prompt_family", setting=family, **over))
        place = read(ZeroShot(), rows), labels, findings, weights, generator
        for table in (measure_spectrum(*place), *([measure_precision(*place, prevalences)] if prevalences else [])):
            tables.append(table.assign(task="spectrum", setting=CHOSEN, **over))
        for task in (task for task in tasks if task in (ZeroShot(), LinearProbe())):
            test, carried = read(task, rows), read(task, validation)
            for rule in RULES:
                thresholds = [choose_thresholds(one, known, rule) for one in carried]
                place = test, labels, findings, rows.patient_id, weights, deepcopy(generator)
                points = measure_thresholds(rule, thresholds, *place)
                tables.append(points.assign(task="operating_point", head=task.name, **over))
            first = (to_log_odds(one[0]) if task == ZeroShot() else one[0] for one in (carried, test))
            table, curve = _measure_recalibrations(*first, known, labels, findings, rows.patient_id, weights)
            place = {"head": task.name, "seed": seeds[0], "data_set": data_set}
            tables.append(table.assign(task="calibration", **place))
            curves.append(curve.assign(**place))
    measured, drawn = (
        add_exposure(evaluation, pd.concat(some, ignore_index=True).assign(arm=arm), seeds[0])
        for some in (tables, curves)
    )
    return measured.assign(study=evaluation.run.study), drawn[_CURVE_COLUMNS]


def summarise_robustness(results: pd.DataFrame) -> pd.DataFrame:
    """Means over findings as text, a column an arm: each prompt family, each sort of negatives, each prevalence."""
    metrics = ("auroc", "auroc_difference", "auprc_at_prevalence", "inverted_findings")
    rows = results[results.task.isin(TASKS[:2]) & (results.finding == MACRO) & results.metric.isin(metrics)]
    cells = [
        f"{row.value:.0f} of {row.n}"
        if row.metric == "inverted_findings"
        else write_interval(row.value, row.ci_low, row.ci_high)
        for row in rows.itertuples()
    ]
    places = ["data_set", "exposure", "task", "metric", "setting", "group"]
    table = rows.assign(cell=cells).pivot(index=places, columns="arm", values="cell")
    return table.sort_index()[sorted(table.columns)]


def _count_inverted(rows: pd.DataFrame) -> pd.DataFrame:
    """With a row of how many findings are certainly ranked the wrong way."""
    count = {"finding": MACRO, "metric": "inverted_findings", "positives": -1}
    count["n"] = int(rows.value[rows.metric == "evaluable_findings"].iloc[0])
    count["value"] = float(list_inverted(rows).certain.sum())
    return pd.concat([rows, pd.DataFrame([count])], ignore_index=True)


def _measure_recalibrations(
    validation, test, known, labels, findings, patient_ids, weights
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Calibration of log-odds by every method, and its reliability curves over all findings."""
    temperature, platt = fit_temperature(validation, known), fit_platt(validation, known)
    before, after = (_prevalence(one) for one in (known, labels))
    recalibrated = {
        AS_SCORED: (test, None),
        TEMPERATURE: (temperature.apply(test), temperature.reasons),
        PLATT: (platt.apply(test), platt.reasons),
        PLATT_SHIFTED: (shift_prevalence(platt.apply(test), before, after), platt.reasons),
    }
    tables, curves = [], [pd.DataFrame(columns=_CURVE_COLUMNS)]
    # One set of findings for all curves: those that every method could be fitted for.
    shown = np.all([np.isfinite(odds).all(axis=0) for odds, _ in recalibrated.values()], axis=0)
    pooled = known_labels(labels) & shown
    patients = np.repeat(patient_ids.to_numpy()[:, None], len(findings), axis=1)
    for setting, (odds, reasons) in recalibrated.items():
        table = measure_calibration(odds, labels, findings, weights, macro=shown, reasons=reasons)
        tables.append(table.assign(setting=setting))
        if pooled.any():
            curve = reliability_curve(expit(odds[pooled]), labels[pooled], patients[pooled])
            curves.append(curve.assign(setting=setting))
    return pd.concat(tables, ignore_index=True), join_rows(*curves)


def _prevalence(labels: np.ndarray) -> np.ndarray:
    """Share of positives among known labels ``(findings,)``; NaN where it is 0 or 1, or nothing is known."""
    known = known_labels(labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (known & (labels == 1)).sum(axis=0) / known.sum(axis=0)
    return np.where((share > 0) & (share < 1), share, np.nan)
