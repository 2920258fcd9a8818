"""A task: how trained models are scored case by case, and how the scores are measured.

`run_task` is the one way to run them: scores that are current are left, others are made, written and recorded, one
table an arm, seed and data set (`chexstudy.evaluation.scores.scores_artifact`). A killed run goes on where it was.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from chexstudy.evaluation.context import EvaluatedModel, Evaluation, add_exposure, work_apart
from chexstudy.evaluation.encoders import is_arm
from chexstudy.evaluation.scores import (
    Measured,
    join_seeds,
    measure_findings,
    read_scores,
    scores_artifact,
    write_scores,
)
from chexstudy.pretraining.arms.definitions import require_current_arm
from chexstudy.results import COLUMNS, OVER_SEEDS, join_rows, validate_results
from chexstudy.statistics.multiple_testing import correct_by_holm

_INPUTS = ("cohort.parquet", "pixels/index.parquet")


@dataclass(frozen=True)
class Fitted:
    """What scores the cases of a data set, fitted on training and validation alone."""

    # rows of the cohort to ``(images, findings)``, or to a table with a row an image, or several and ``image_id``
    score: Callable[[pd.DataFrame], np.ndarray | pd.DataFrame]
    files: tuple[str, ...] = ()  # artifacts written while fitting: without them the scores are not current


class Task(ABC):
    """One way to use a model. What its fields hold, it depends on."""

    on_validation = False  # whether the validation sets are scored too

    @property
    @abstractmethod
    def name(self) -> str:
        """Under which scores are kept."""

    @property
    def place(self) -> dict[str, str]:
        """Columns of the results table that tell its rows from those of other tasks."""
        return {"task": self.name}

    def list_parameters(self, evaluation: Evaluation) -> dict:
        """What scores depend on beside the arm, the cohort and its pixels."""
        return {}

    def can_score(self, rows: pd.DataFrame) -> bool:
        """Whether a data set has what it takes; others have no scores and no rows of results."""
        return True

    @abstractmethod
    def fit(self, arm: EvaluatedModel) -> Fitted:
        """Make ready to score: choose prompts, train a head."""

    def read(self, evaluation: Evaluation, arm: str, seed: int, rows: pd.DataFrame):
        """Kept scores of rows of the cohort, as `measure` takes them."""
        return read_scores(evaluation.run, rows, evaluation.findings, arm=arm, seed=seed, task=self.name)

    def measure(self, evaluation: Evaluation, rows: pd.DataFrame, scores: Sequence) -> list[Measured]:
        """Metrics of a data set from its scores, one a seed, on resamples that are the same for all arms."""
        weights, _ = evaluation.draw_patients(rows)
        labels, tiers = evaluation.labels(rows), evaluation.tiers()
        return [measure_findings(scores, labels, evaluation.findings, weights, tiers)]


def run_task(evaluation: Evaluation, task: Task, arm: EvaluatedModel, data_set: str | None = None) -> None:
    """Score an arm on the data sets of a task, or on one test set; scores that are current are left."""
    run, place = evaluation.run, {"arm": arm.name, "seed": arm.seed, "task": task.name}
    parts = list(evaluation.test_sets().values()) if data_set is None else [evaluation.test_sets()[data_set]]
    if data_set is None and task.on_validation and len(evaluation.validation):
        # As one, whatever its sources: that is how choices on validation see it.
        parts.append(evaluation.validation)
    parts = list(filter(task.can_score, parts))
    sets = [rows.groupby(rows.source + "/" + rows.split).indices for rows in parts]
    inputs = (*_INPUTS, *arm.inputs)
    parameters = task.list_parameters(evaluation) | arm.parameters
    key = run.key(parameters, inputs, by=type(task))
    names = [scores_artifact(**place, data_set=name) for of_part in sets for name in of_part]
    if all(run.is_current(name, key) for name in names):
        return
    fitted = task.fit(arm)
    for rows, of_part in zip(parts, sets, strict=True):
        scores = fitted.score(rows)
        for name, places in of_part.items():
            if isinstance(scores, pd.DataFrame):
                artifact = scores_artifact(**place, data_set=name)
                if len(scores) != len(rows):
                    places = scores.image_id.isin(rows.image_id.iloc[places]).to_numpy().nonzero()[0]
                run.write_table(artifact, scores.iloc[places])
            else:
                ids = rows.image_id.iloc[places]
                artifact = write_scores(run, scores[places], ids, evaluation.findings, **place, data_set=name)
            run.record(artifact, parameters, inputs, arm.seed, fitted.files, by=type(task))


def run_tasks(
    evaluation: Evaluation,
    tasks: Sequence[Task],
    arms: Sequence[str],
    seeds: Sequence[int],
    workers: int = 1,
    data_set: str | None = None,
) -> None:
    """`run_task` for every task, arm (or encoder beside them) and seed, side by side; use one worker on a GPU."""
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    for job in jobs:
        # Said at once, not after the arms before it were scored.
        if is_arm(job[0]):
            require_current_arm(evaluation.run, *job)
    work_apart(evaluation, partial(_run_all, tasks=tuple(tasks), data_set=data_set), jobs, workers, "scoring arms")


def _run_all(evaluation: Evaluation, arm: str, seed: int, tasks: tuple[Task, ...], data_set: str | None) -> None:
    trained = EvaluatedModel(evaluation, arm, seed)
    for task in tasks:
        run_task(evaluation, task, trained, data_set)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_tasks(
    evaluation: Evaluation,
    tasks: Sequence[Task],
    arms: Sequence[str],
    seeds: Sequence[int],
    workers: int = 1,
    data_sets: Sequence[str] | None = None,
) -> dict[tuple[str, str, str], list[Measured]]:
    """What `Task.measure` gives by task, arm and data set, every arm and seed resampled once, side by side."""
    names = list(evaluation.test_sets()) if data_sets is None else list(data_sets)
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    work = partial(_measure_all, tasks=tuple(tasks), data_sets=names)
    of_jobs = dict(zip(jobs, work_apart(evaluation, work, jobs, workers, "measuring arms"), strict=True))
    return {
        (task.name, arm, name): [
            join_seeds(parts) for parts in zip(*(of_jobs[arm, seed][task.name, name] for seed in seeds), strict=True)
        ]
        for task in tasks
        for arm in arms
        for name in names
        if (task.name, name) in of_jobs[jobs[0]]
    }


def _measure_all(evaluation, arm: str, seed: int, tasks, data_sets) -> dict[tuple[str, str], list[Measured]]:
    sets = evaluation.test_sets()
    return {
        (task.name, name): task.measure(evaluation, sets[name], [task.read(evaluation, arm, seed, sets[name])])
        for task in tasks
        for name in data_sets
        if task.can_score(sets[name])
    }


_Measured = Mapping[tuple[str, str, str], Sequence[Measured]]
_Side = tuple[Task, str]  # a task and an arm


def list_values(
    evaluation: Evaluation, measured: _Measured, tasks: Sequence[Task], arms: Sequence[str], seeds: Sequence[int]
) -> pd.DataFrame:
    """Rows of the results table of every seed and over seeds, from `measure_tasks`; the arm by its own name."""
    tables = []
    for name, generator in _draw_generators(evaluation, measured).items():
        for task in tasks:
            for arm in arms:
                if (task.name, arm, name) not in measured:
                    continue
                drawn = deepcopy(generator)
                rows = [part.each_seed(seeds, drawn) for part in measured[task.name, arm, name]]
                tables.append(pd.concat(rows).assign(arm=arm, data_set=name, **task.place))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["seed"])


def add_costs(rows: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Rows of `list_values` with ``flops`` and ``seconds`` of the training, over seeds the mean, from `read_costs`."""
    costs = costs.set_index(["arm", "seed"])[["flops", "seconds"]]
    means = costs.groupby("arm").mean().assign(seed=OVER_SEEDS).set_index("seed", append=True)
    return rows.join(pd.concat([costs, means]), on=["arm", "seed"])


def list_differences(
    evaluation: Evaluation, measured: _Measured, pairs: Sequence[tuple[_Side, _Side]], tested: bool = False
) -> pd.DataFrame:
    """Rows of first minus second, paired by patient and seed; ``reference`` is the second side's arm.

    Where ``tested``, with p values that are not corrected for their number.
    """
    tables = [pd.DataFrame(columns=["arm", "reference", "task", "seed"])]
    for name, generator in _draw_generators(evaluation, measured).items():
        for (task, arm), (other, reference) in pairs:
            if not {(task.name, arm, name), (other.name, reference, name)} <= measured.keys():
                continue
            drawn = deepcopy(generator)
            sides = zip(measured[task.name, arm, name], measured[other.name, reference, name], strict=True)
            rows = pd.concat([first.minus(second, drawn, tested) for first, second in sides])
            place = task.place | {"task": f"{task.place['task']}_difference", "data_set": name, "seed": OVER_SEEDS}
            tables.append(rows.assign(arm=arm, reference=reference, **place))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def correct_p_values(rows: pd.DataFrame, whole: Collection[str]) -> pd.DataFrame:
    """Rows of `list_differences`, tested, with p values corrected by Holm, ``..._p_holm``.

    Within a data set over all comparisons of findings that stand for the whole; within a comparison over the others.
    """
    tested = rows[rows.metric.str.endswith("_p") & rows.value.notna()]
    comparison = tested["arm"] + "/" + tested["head"] + "/" + tested["reference"]
    family = [tested.data_set, tested.metric, tested.finding.where(tested.finding.isin(whole), comparison)]
    family += [tested.group.fillna("")] if "group" in tested else []
    corrected = tested.groupby(family).value.transform(lambda p_values: correct_by_holm(p_values.to_numpy()))
    return join_rows(rows, tested.assign(metric=tested.metric + "_holm", value=corrected))


def measure_and_compare(
    evaluation: Evaluation,
    work: Iterable[tuple[Sequence[str], Sequence[Task]]],
    pairs: Mapping[str, Sequence[tuple[_Side, _Side]]],
    seeds: Sequence[int],
    whole: Collection[str],
    workers: int = 1,
    compared: str | tuple[str, ...] = "",
) -> pd.DataFrame:
    """Rows of the results table of kept scores: their values, and tested differences over seeds; of nothing, none.

    Args:
        work: models, and the tasks that are measured on each of them.
        pairs: of what is subtracted, its name in ``reference`` and the sides.
        whole: findings that stand for the whole, as in `correct_p_values`.
        compared: how the metrics begin that are compared.
    """
    measured, tables = {}, [pd.DataFrame(columns=COLUMNS)]
    for models, tasks in work:
        of_models = measure_tasks(evaluation, tasks, models, seeds, workers)
        measured |= of_models
        tables.append(list_values(evaluation, of_models, tasks, models, seeds))
    if not measured:
        return tables[0]
    differences = join_rows(
        *(list_differences(evaluation, measured, own, True).assign(reference=name) for name, own in pairs.items())
    )
    differences = differences[differences.metric.str.startswith(compared)]
    rows = add_exposure(evaluation, join_rows(*tables, correct_p_values(differences, whole)), seeds[0])
    return validate_results(rows.assign(study=evaluation.run.study))


def _draw_generators(evaluation: Evaluation, measured: _Measured) -> dict[str, np.random.Generator]:
    """By data set the generator that has drawn its patients and draws seeds next."""
    sets = evaluation.test_sets()
    return {name: evaluation.draw_patients(sets[name])[1] for name in dict.fromkeys(name for *_, name in measured)}
