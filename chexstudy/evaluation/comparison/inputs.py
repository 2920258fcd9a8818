"""Scores and labels by the names a user gives them: an arm of a study, or files of one's own.

An arm is named as in the study (``curated``), with all seeds it was evaluated with; ``arm@task`` names one of its heads
(``curated@linear_probe``). Files hold ``image_id`` and one column a finding, one file a seed, separated by commas.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.errors import StudyError
from chexstudy.evaluation.comparison.two_models import ModelScores
from chexstudy.evaluation.scores import scores_artifact
from chexstudy.inputs.identifiers import normalise_ids
from chexstudy.inputs.tables import is_table, read_typed_table, table_stem
from chexstudy.paths import resolve_user_path
from chexstudy.runs import Run
from chexstudy.steps import find_step

DEFAULT_TASK = "zero_shot"
# Ranks of reports and reports themselves, not scores of findings.
_NOT_SCORES = ("retrieval", "report_generation")


def list_scored(run: Run) -> pd.DataFrame:
    """Every table of scores a study holds: ``arm, seed, task, data_set``, sorted."""
    rows = []
    for path in run.path("evaluation").glob("*/seed*/*/*/*.parquet"):
        arm, seed, task, *data_set = path.relative_to(run.path("evaluation")).with_suffix("").parts
        number = re.fullmatch(r"seed(\d+)", seed)
        if number and not task.startswith(_NOT_SCORES):
            rows.append((arm, int(number[1]), task, "/".join(data_set)))
    return pd.DataFrame(sorted(rows), columns=["arm", "seed", "task", "data_set"])


def split_name(scored: pd.DataFrame, name: str, task: str) -> tuple[str, str]:
    """The arm and task meant by ``arm`` or ``arm@task``; names of arms may hold an @ themselves."""
    arms = list(dict.fromkeys(scored.arm))
    arm = name
    if name not in arms and "@" in name:
        arm, task = name.rsplit("@", 1)
    if arm not in arms:
        if not arms:
            raise StudyError(f"the study has no scores of any arm yet: run {find_step('evaluation/')} first.")
        closest = difflib.get_close_matches(arm, arms, n=1)
        hint = f"did you mean {closest[0]!r}; those" if closest else "those"
        raise StudyError(f"the study has no scores of an arm {arm!r}: {hint} with scores are {', '.join(arms)}.")
    tasks = list(dict.fromkeys(scored.task[scored.arm == arm]))
    if task not in tasks:
        raise StudyError(f"arm {arm!r} has no scores for the task {task!r}; it has {', '.join(tasks)}.")
    return arm, task


def choose_data_set(scored: pd.DataFrame, sides: Sequence[tuple[str, str]], wanted: str | None = None) -> str:
    """The data set to compare sides (arm, task) on: the one wanted, else the only one all have, else the test set."""
    sets = [set(scored.data_set[(scored.arm == arm) & (scored.task == task)]) for arm, task in sides]
    shared = sorted(set.intersection(*sets))
    who = " and ".join(dict.fromkeys(f"{arm}@{task}" for arm, task in sides))
    if wanted is not None:
        if wanted not in shared:
            raise StudyError(f"{who} have no scores on {wanted!r}; they have {', '.join(shared) or 'none in common'}.")
        return wanted
    tests = [name for name in shared if name.endswith("/test")]
    for candidates in (shared, tests):
        if len(candidates) == 1:
            return candidates[0]
    if not shared:
        raise StudyError(f"{who} were scored on no data set in common: evaluate both on one.")
    raise StudyError(f"{who} were scored on {', '.join(shared)}: say which with --data-set.")


def read_arm(run: Run, scored: pd.DataFrame, arm: str, task: str, data_set: str, name: str) -> ModelScores:
    """The scores of an arm with all its seeds, to be called ``name``."""
    rows = scored[(scored.arm == arm) & (scored.task == task) & (scored.data_set == data_set)]
    tables = [run.read_table(scores_artifact(arm, seed, task, data_set)) for seed in rows.seed]
    return ModelScores(name, tuple(tables), tuple(rows.seed))


def read_files(names: str) -> ModelScores:
    """The scores in files separated by commas, one file a seed."""
    paths = [resolve_user_path(name.strip()) for name in names.split(",")]
    tables = tuple(read_typed_table(path) for path in paths)
    return ModelScores("+".join(dict.fromkeys(table_stem(path) for path in paths)), tables)


def tiers_of_labels(labels: pd.DataFrame) -> dict[str, str] | None:
    """Tier of each finding by its prevalence in training; None where the labels do not say what training is."""
    training = labels[labels.split == "train"] if "split" in labels else labels[:0]
    if training.empty or not finding_columns(labels):
        return None
    return prevalence_tiers(measure_prevalence(training)).to_dict()


@dataclass(frozen=True)
class Contest:
    """Two models and what they are compared on."""

    first: ModelScores  # one model
    second: ModelScores  # the other
    labels: pd.DataFrame  # of the images
    tiers: dict[str, str] | None  # tier of each finding, where the labels tell what was trained on
    place: str  # which scores these are, in words


def read_contest(
    first: str,
    second: str,
    *,
    study: str,
    task: str = DEFAULT_TASK,
    data_set: str | None = None,
    labels: str | None = None,
) -> Contest:
    """Read the scores and labels of two models named by a user: an arm of ``study``, ``arm@task``, or files.

    Labels are the study's, unless a table is named, with ``image_id``, ``patient_id`` and one column a finding;
    ``task`` is that of arms named without one; the ``data_set``, ``source/split``, that of the arms if not given, and
    all images for files.
    """
    run, names = Run(study), (first, second)
    table = (
        read_cohort(run.require("cohort.parquet")) if labels is None else read_typed_table(resolve_user_path(labels))
    )
    arms = [name for name in names if not is_table(name)]
    scored = list_scored(run) if arms else None
    parts = {name: split_name(scored, name, task) for name in arms}
    if parts:
        data_set = choose_data_set(scored, list(parts.values()), data_set)
    rows = _rows_of(table, data_set, required=not parts) if data_set is not None else None
    sides = [
        read_arm(run, scored, *parts[name], data_set, name) if name in parts else _keep_images(read_files(name), rows)
        for name in names
    ]
    tasks = " and ".join(dict.fromkeys(of_task for _, of_task in parts.values()))
    told = [f"{tasks} of study {study}"] * bool(parts) + [f"on {data_set}"] * (data_set is not None)
    return Contest(*sides, table, tiers_of_labels(table), " ".join(told))


def _rows_of(labels: pd.DataFrame, data_set: str, required: bool) -> set[str] | None:
    """The images of a data set; None where the labels do not tell and need not."""
    if not {"image_id", "source", "split"} <= set(labels.columns):
        if required:
            raise StudyError(
                f"the labels have no columns source and split to find {data_set!r} by: leave out --data-set."
            )
        return None
    places = labels.source.astype(str) + "/" + labels.split.astype(str)
    if required and not (places == data_set).any():
        raise StudyError(f"the labels have no data set {data_set!r}; they have {', '.join(sorted(set(places)))}.")
    return set(normalise_ids(labels.image_id[places == data_set]))


def _keep_images(side: ModelScores, images: set[str] | None) -> ModelScores:
    """Of a file that may hold the scores of several data sets, those of one."""
    if images is None or not all("image_id" in table for table in side.tables):
        return side
    kept = tuple(table[normalise_ids(table.image_id).isin(images)] for table in side.tables)
    if any(table.empty for table in kept):
        raise StudyError(f"{side.name} has no scores of the images to compare on: pass the labels of its own cohort.")
    return replace(side, tables=kept)
