"""Is the labeler right? What it reads in reference reports against the cohort's labels, before any F1 is believed."""

import numpy as np
import pandas as pd

from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import label_matrix
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.report_generation.cases import list_labelled
from chexstudy.evaluation.report_generation.controls import Labeler
from chexstudy.evaluation.report_generation.labeler import label_reports
from chexstudy.evaluation.scores import Measured, append_groups, group_findings
from chexstudy.results import COLUMNS, OVER_SEEDS, validate_results
from chexstudy.statistics.bootstrap import count_scarcer_patients
from chexstudy.statistics.ranking import known_labels

AGREEMENT = "report_label_agreement"
METRICS = ("sensitivity", "specificity", "kappa")


def measure_agreement(evaluation: Evaluation, label: Labeler = label_reports) -> pd.DataFrame:
    """Sensitivity, specificity and Cohen's kappa of each finding and their macro means, on references of test sets.

    What a report does not mention is absent; cases whose label is not known or uncertain are left out. Of the phantom,
    whose reports say all that an image holds, a disagreement is the labeler's fault; of others it can be the report's.
    Rows of the results table, of no arm, for the findings that the labeler knows; none of them, or no case, give none.
    """
    tables, findings = [pd.DataFrame(columns=COLUMNS)], list_labelled(evaluation)
    for name, rows in evaluation.test_sets().items() if findings and len(evaluation.cohort) else ():
        labels, (weights, _) = label_matrix(rows, findings), evaluation.draw_patients(rows)
        said = np.asarray(label([training_text(report) for report in rows.report], findings)) == 1
        known, groups = known_labels(labels), group_findings(findings, None)
        true = labels == 1
        cells = np.stack([known & said & true, known & said & ~true, known & ~said & true, known & ~said & ~true])
        drawn = np.stack([weights @ cell.astype(float) for cell in cells])
        columns = {"finding": [*findings, *groups], "n": [*known.sum(axis=0), len(rows)]}
        columns["positives"] = [*(known & true).sum(axis=0), -1]
        patients = count_scarcer_patients(labels, weights)
        measured = Measured(
            METRICS,
            pd.DataFrame(columns),
            append_groups(_score(*cells.sum(axis=1)), groups)[None],
            append_groups(_score(*drawn), groups)[None],
            np.append(patients, patients.max()),
            findings=len(findings),
        )
        tables.append(measured.of_seed(0).assign(data_set=name, seed=OVER_SEEDS))
    rows = pd.concat(tables[1:] or tables, ignore_index=True)
    place = {"task": AGREEMENT, "arm": "", "exposure": "held_out", "study": evaluation.run.study}
    return validate_results(rows.assign(**place))


def _score(right: np.ndarray, too_much: np.ndarray, missed: np.ndarray, rightly_not: np.ndarray) -> np.ndarray:
    """`METRICS` of counts ``(..., findings)``, as ``(..., 3, findings)``."""
    total = right + too_much + missed + rightly_not
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = ((right + too_much) * (right + missed) + (missed + rightly_not) * (too_much + rightly_not)) / total**2
        kappa = ((right + rightly_not) / total - chance) / (1 - chance)
        return np.stack([right / (right + missed), rightly_not / (rightly_not + too_much), kappa], axis=-2)
