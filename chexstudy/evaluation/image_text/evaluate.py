"""Evaluate trained arms on every held-out data set, seed by seed, then over seeds and against each other.

Nothing is chosen on a test split: prompts and the strength of the linear probe are chosen on validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.evaluation.adaptation.logistic_path import fit_linear_probe
from chexstudy.evaluation.context import EvaluatedModel, Evaluation, add_exposure
from chexstudy.evaluation.image_text.prompts import PUBLISHED
from chexstudy.evaluation.image_text.retrieval import Retrieval
from chexstudy.evaluation.image_text.zero_shot import ZeroShot, list_families
from chexstudy.evaluation.task import Fitted, Task, add_costs, list_differences, list_values, measure_tasks, run_tasks
from chexstudy.pretraining.arms.definitions import CURATING, name_arms, read_costs
from chexstudy.results import OVER_SEEDS


@dataclass(frozen=True)
class LinearProbe(Task):
    """One logistic regression a finding on the image encoder's own features; scores are log-odds."""

    name = "linear_probe"
    on_validation = True

    def fit(self, arm: EvaluatedModel) -> Fitted:
        """Fit on training; the penalty is chosen on validation."""
        evaluation = arm.evaluation
        parts = evaluation.training, evaluation.validation
        features, labels = zip(*((_embed(arm, rows), evaluation.labels(rows)) for rows in parts), strict=True)
        probe = fit_linear_probe(features[0], labels[0], features[1], labels[1])
        return Fitted(lambda rows: probe.score(_embed(arm, rows)))


def _embed(arm: EvaluatedModel, rows: pd.DataFrame) -> np.ndarray:
    features = arm.embed(rows)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def list_tasks(evaluation: Evaluation) -> list[Task]:
    """What arms of a study are scored by: without labels retrieval alone."""
    if not evaluation.findings:
        return [Retrieval()]
    probe = [LinearProbe()] if evaluation.probe and len(evaluation.validation) else []
    return [ZeroShot(), *map(ZeroShot, list_families(evaluation)), Retrieval(), *probe]


def evaluate_arms(
    evaluation: Evaluation,
    arms: Sequence[str],
    seeds: Sequence[int],
    references: Sequence[str] = CURATING,
    workers: int = 1,
) -> pd.DataFrame:
    """Every arm and seed, then means over seeds and the differences between each of ``references`` and the other arms.

    Those are of `pair_arms`, the reference first.

    Scores of all of `list_tasks` are kept; measured are the prompts chosen on validation and the published ones. On a
    GPU, use one worker.

    Gives rows of the results table. Rows over seeds have seed -1, and intervals that draw patients and seeds.
    """
    run, tasks = evaluation.run, list_tasks(evaluation)
    run_tasks(evaluation, tasks, arms, seeds, workers)
    summarised = [task for task in tasks if task in (ZeroShot(), Retrieval())]
    by_seed = [task for task in tasks if task in (ZeroShot(PUBLISHED.name), LinearProbe())]
    measured = measure_tasks(evaluation, [*summarised, *by_seed], arms, seeds, workers)
    rows = list_values(evaluation, measured, summarised, arms, seeds)
    alone = list_values(evaluation, measured, by_seed, arms, seeds)
    rows = pd.concat([rows, alone[alone.seed != OVER_SEEDS]], ignore_index=True)
    rows = add_costs(rows, read_costs(run, arms, seeds))
    pairs = [((task, one), (task, arm)) for task in summarised for one, arm in pair_arms(arms, references)]
    rows = pd.concat([rows, list_differences(evaluation, measured, pairs)], ignore_index=True)
    return name_arms(add_exposure(evaluation, rows.assign(study=run.study), seeds[0]))


def pair_arms(arms: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Each reference among the arms beside every other arm, two references once."""
    there = [one for one in references if one in arms]
    return [(one, arm) for place, one in enumerate(there) for arm in arms if arm not in there[: place + 1]]
