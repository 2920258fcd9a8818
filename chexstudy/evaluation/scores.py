"""Per-case scores: kept as artifacts, measured with intervals, compared between arms on the same patients.

One parquet table for each arm, seed, task and data set, ``evaluation/<arm>/seed<k>/<task>/<data_set>.parquet``:
``image_id`` and one column a finding (or, for retrieval, the columns of
`chexstudy.evaluation.image_text.retrieval.rank_pairs`). Numbers in the results table can be made again from these
tables and the cohort, and paired comparisons need them.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.errors import StudyError
from chexstudy.results import OVER_SEEDS
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import (
    Difference,
    count_patients,
    count_scarcer_patients,
    interval,
    paired_difference,
    resample_seeds,
)
from chexstudy.statistics.ranking import known_labels, macro_mean, rank_metrics
from chexstudy.steps import find_step

METRICS = ("auroc", "auprc")
MACRO = "macro"


# --- artifacts -------------------------------------------------------------------------------------------------------


def scores_artifact(arm: str, seed: int, task: str, data_set: str) -> str:
    """Name of the artifact that holds the scores: ``evaluation/full/seed0/zero_shot/phantom/test.parquet``."""
    return f"evaluation/{arm}/seed{seed}/{task}/{data_set}.parquet"


def write_scores(
    run: Run,
    scores: np.ndarray,
    image_ids: Sequence[str],
    findings: Sequence[str],
    *,
    arm: str,
    seed: int,
    task: str,
    data_set: str,
) -> str:
    """Write the scores ``(images, findings)`` of one arm and seed; returns the artifact's name."""
    if scores.shape != (len(image_ids), len(findings)):
        raise StudyError(
            f"scores are {scores.shape} for {len(image_ids)} images and {len(findings)} findings: pass a row an image."
        )
    table = pd.DataFrame(np.asarray(scores), columns=list(findings))
    table.insert(0, "image_id", list(image_ids))
    repeated = table.image_id.duplicated()
    if repeated.any():
        raise StudyError(f"the image of row {int(repeated.argmax())} is scored twice in {data_set}: score each once.")
    name = scores_artifact(arm, seed, task, data_set)
    run.write_table(name, table)
    return name


def read_scores(
    run: Run,
    image_ids: Sequence[str],
    findings: Sequence[str],
    *,
    arm: str,
    seed: int,
    task: str,
    data_set: str,
) -> np.ndarray:
    """Read scores in the order of ``image_ids`` and ``findings``, as ``(images, findings)``."""
    name = scores_artifact(arm, seed, task, data_set)
    table = run.read_table(name).set_index("image_id")
    images = sum(image_id not in table.index for image_id in image_ids)
    lacks = [f"{images:,} of the images"] * bool(images)
    lacks += [f"the finding {finding!r}" for finding in findings if finding not in table.columns]
    if lacks:
        raise StudyError(f"{name} lacks {lacks[0]}: run {find_step(name)} again.")
    return table.loc[list(image_ids), list(findings)].to_numpy()


def scored_seeds(run: Run, arms: Sequence[str], *, task: str, data_set: str) -> list[int]:
    """The seeds for which all the arms have scores, ascending."""
    seeds = []
    for arm in arms:
        folders = run.path(f"evaluation/{arm}").glob("seed*")
        numbers = {int(match[1]) for folder in folders if (match := re.fullmatch(r"seed(\d+)", folder.name))}
        seeds.append({seed for seed in numbers if run.has(scores_artifact(arm, seed, task, data_set))})
    shared = sorted(set.intersection(*seeds)) if seeds else []
    if not shared:
        raise StudyError(
            f"study {run.study!r} has no seed with {task} scores on {data_set} for {' and '.join(arms)}: "
            f"run {find_step(scores_artifact(arms[0], 0, task, data_set))} for these arms first."
        )
    return shared


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_scores(
    scores: np.ndarray,
    labels: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    *,
    tiers: Mapping[str, str] | None = None,
    setting: str = "",
) -> pd.DataFrame:
    """AUROC and average precision of every finding, of their macro mean and of each tier, with 95 % intervals.

    Args:
        scores: ``(images, findings)``.
        labels: ``(images, findings)``, 1, 0, -1 or NaN.
        findings: names of the columns.
        weights: ``(resamples, images)`` of `bootstrap_patients`; pass the same to all that will be compared.
        tiers: tier of each finding (``head``, ``medium`` or ``tail``); findings without one are in no tier.
        setting: what to write into the column ``setting``.

    Returns:
        Rows with ``finding, metric, setting, value, ci_low, ci_high, n, positives``. A finding with one class only
        keeps its row, with n, positives and value NaN; the row ``evaluable_findings`` counts those with a value. In a
        macro or tier row, n is the number of images. There is no interval for a finding that fewer than five patients
        have (or lack).
    """
    groups = group_findings(findings, tiers)
    value = _measure(labels, scores, None, groups)
    low, high = interval(_measure(labels, scores, weights, groups), patients=_patients(labels, weights, groups))
    rows = _rows(value, low, high, labels, findings, groups, METRICS, setting)
    return pd.concat([rows, _count_evaluable(value, findings, setting)], ignore_index=True)


def measure_seeds(
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    generator: np.random.Generator,
    *,
    tiers: Mapping[str, str] | None = None,
    setting: str = "",
) -> pd.DataFrame:
    """As `measure_scores` for one arm trained with several seeds: means over the seeds, patients and seeds drawn.

    Args:
        scores: one ``(images, findings)`` array a seed.
        generator: draws the seeds.
        labels, findings, weights, tiers, setting: as in `measure_scores`.
    """
    rows = measure_each_seed(
        dict(enumerate(scores)), labels, findings, weights, generator, tiers=tiers, setting=setting
    )
    return rows[rows.seed == OVER_SEEDS].drop(columns="seed").reset_index(drop=True)


def measure_each_seed(
    scores: Mapping[int, np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    generator: np.random.Generator,
    *,
    tiers: Mapping[str, str] | None = None,
    setting: str = "",
) -> pd.DataFrame:
    """`measure_scores` of every seed and `measure_seeds` of all, from the same resamples, drawn through once.

    Args:
        scores: seed to ``(images, findings)``.
        labels, findings, weights, generator, tiers, setting: as in `measure_seeds`.

    Returns:
        Rows as in `measure_scores` with the column ``seed``, -1 over all seeds.
    """
    if not scores:
        raise StudyError("there are no scores to measure: pass the scores of one seed at least.")
    groups = group_findings(findings, tiers)
    patients = _patients(labels, weights, groups)
    values = np.stack([_measure(labels, one, None, groups) for one in scores.values()])
    replicates = np.stack([_measure(labels, one, weights, groups) for one in scores.values()])
    tables = []
    for seed, value, drawn in zip(scores, values, replicates, strict=True):
        tables.append((seed, value, *interval(drawn, patients=patients)))
    # Drawing few seeds stretches deviations from the mean, which can carry an end past what the metric can be.
    low, high = np.clip(interval(resample_seeds(replicates, generator), patients=patients), 0, 1)
    tables.append((OVER_SEEDS, values.mean(axis=0), low, high))
    rows = []
    for seed, value, low, high in tables:
        rows.append(_rows(value, low, high, labels, findings, groups, METRICS, setting).assign(seed=seed))
        rows.append(_count_evaluable(value, findings, setting).assign(seed=seed))
    return pd.concat(rows, ignore_index=True)


def compare_scores(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    generator: np.random.Generator,
    *,
    tiers: Mapping[str, str] | None = None,
    setting: str = "",
) -> pd.DataFrame:
    """First arm minus second, paired by patient and seed: rows of ``auroc_difference`` and ``auprc_difference``.

    Args:
        first: one ``(images, findings)`` array a seed.
        second: the same seeds of the other arm.
        generator: draws the seeds.
        labels, findings, weights, tiers, setting: as in `measure_scores`.
    """
    groups = group_findings(findings, tiers)
    difference = subtract_scores(first, second, labels, weights, generator, groups)
    names = [f"{metric}_difference" for metric in METRICS]
    return _rows(difference.value, difference.ci_low, difference.ci_high, labels, findings, groups, names, setting)


def subtract_scores(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    labels: np.ndarray,
    weights: np.ndarray,
    generator: np.random.Generator,
    groups: Mapping[str, list[int]],
) -> Difference:
    """The paired difference of `compare_scores` with its replicates, ``(metrics, findings + groups)``."""
    if len(first) == 0 or len(first) != len(second):
        raise StudyError(
            f"a paired comparison needs the same seeds in both arms, at least one, not {len(first)} and {len(second)}."
        )
    points = [np.stack([_measure(labels, one, None, groups) for one in arm]) for arm in (first, second)]
    replicates = [np.stack([_measure(labels, one, weights, groups) for one in arm]) for arm in (first, second)]
    return paired_difference(*points, *replicates, generator, _patients(labels, weights, groups))


def group_findings(findings: Sequence[str], tiers: Mapping[str, str] | None) -> dict[str, list[int]]:
    """The groups that get a row of their own, each with the positions of its findings: all of them, then the tiers."""
    groups = {MACRO: list(range(len(findings)))}
    if tiers is not None:
        wrong = [tier for tier in dict(tiers).values() if tier not in TIERS]
        if wrong:
            raise StudyError(f"a finding's tier is one of {', '.join(TIERS)}, not {wrong[0]!r}.")
        for tier in TIERS:
            members = [position for position, finding in enumerate(findings) if tiers.get(finding) == tier]
            if members:
                groups[tier] = members
    return groups


def _measure(labels, scores, weights, groups) -> np.ndarray:
    """``(metrics, findings + groups)``, with a leading axis of resamples if there are weights."""
    columns = []
    for values in rank_metrics(labels, scores, weights):
        means = [macro_mean(values[..., members])[..., None] for members in groups.values()]
        columns.append(np.concatenate([values, *means], axis=-1))
    return np.stack(columns, axis=-2)


def _patients(labels, weights, groups) -> np.ndarray:
    """Patients each column rests on ``(findings + groups,)``; a group on all who have one of its findings or more."""
    labels = np.asarray(labels, dtype=float)
    present = [(labels[:, members] == 1).any(axis=1) for members in groups.values()]
    of_groups = count_patients(np.stack(present, axis=1), weights) if present else []
    return np.array([*count_scarcer_patients(labels, weights), *of_groups])


def _count_evaluable(value, findings, setting) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "finding": [MACRO],
            "metric": "evaluable_findings",
            "setting": setting,
            "value": float(np.sum(~np.isnan(value[0, : len(findings)]))),
            "ci_low": np.nan,
            "ci_high": np.nan,
            "n": len(findings),
            "positives": -1,
        }
    )


def _rows(value, low, high, labels, findings, groups, metrics, setting) -> pd.DataFrame:
    known = known_labels(np.asarray(labels, dtype=float))
    n = [*known.sum(axis=0), *[len(labels)] * len(groups)]
    positives = [*(known & (np.asarray(labels) == 1)).sum(axis=0), *[-1] * len(groups)]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "finding": [*findings, *groups],
                    "metric": metric,
                    "setting": setting,
                    "value": value[row],
                    "ci_low": low[row],
                    "ci_high": high[row],
                    "n": n,
                    "positives": positives,
                }
            )
            for row, metric in enumerate(metrics)
        ],
        ignore_index=True,
    )
