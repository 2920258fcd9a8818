"""Is the labeler right? What it reads in reference reports against the cohort's labels, before any F1 is believed."""

import numpy as np
import pandas as pd

from chexstudy.cohort.table import label_matrix
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.report_generation.cases import list_labelled
from chexstudy.evaluation.report_generation.controls import Labeler
from chexstudy.evaluation.report_generation.labeler import label_reports
from chexstudy.evaluation.scores import measure_findings
from chexstudy.results import COLUMNS, OVER_SEEDS, validate_results
from chexstudy.statistics.ranking import known_labels

AGREEMENT = "report_label_agreement"
_NAMES, _AS_PRESENT = ("sensitivity", "specificity", "kappa"), "_uncertain_present"
METRICS = (*_NAMES, *(name + _AS_PRESENT for name in _NAMES))


def measure_agreement(evaluation: Evaluation, label: Labeler = label_reports) -> pd.DataFrame:
    """Sensitivity, specificity and Cohen's kappa of each finding and their macro means, on references of test sets.

    What a report does not mention, or doubts, is absent; cases whose label is not known or uncertain, or whose report
    is not understood, are left out. ``..._uncertain_present`` takes what is uncertain for present on both sides. Of the
    phantom, whose reports say all that an image holds, a disagreement is the labeler's fault, but for ``No Finding``:
    devices alone are a finding there, and none in a report. Of others it can be the report's. Rows of the results
    table, of no arm, for the findings that the labeler knows; none of them, or no case, give none.
    """
    tables, findings = [pd.DataFrame(columns=COLUMNS)], list_labelled(evaluation)
    for name, rows in evaluation.test_sets().items() if findings and len(evaluation.cohort) else ():
        said = np.asarray(label(list(rows.report), findings))
        weights, understood = evaluation.draw_patients(rows)[0], ~np.isnan(said).all(axis=1, keepdims=True)
        labels = np.where(understood, label_matrix(rows, findings), np.nan)
        measured = measure_findings([said], labels, findings, weights, None, METRICS, _measure)
        tables.append(measured.of_seed(0).assign(data_set=name, seed=OVER_SEEDS))
    rows = pd.concat(tables[1:] or tables, ignore_index=True)
    place = {"task": AGREEMENT, "arm": "", "exposure": "held_out", "study": evaluation.run.study}
    return validate_results(rows.assign(**place))


def _measure(labels: np.ndarray, said: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """`METRICS` ``(..., metrics, findings)``."""
    measured = []
    for known, present in ((known_labels(labels), (1,)), (~np.isnan(labels), (1, -1))):
        true, told = np.isin(labels, present), np.isin(said, present)
        cells = np.stack([known & told & true, known & told & ~true, known & ~told & true, known & ~told & ~true])
        right, too_much, missed, rightly_not = cells.sum(axis=1) if weights is None else weights @ cells.astype(float)
        total = right + too_much + missed + rightly_not
        with np.errstate(divide="ignore", invalid="ignore"):
            chance = (right + too_much) * (right + missed) + (missed + rightly_not) * (too_much + rightly_not)
            chance = chance / total**2
            kappa = ((right + rightly_not) / total - chance) / (1 - chance)
            measured += [right / (right + missed), rightly_not / (rightly_not + too_much), kappa]
    return np.stack(measured, axis=-2)
