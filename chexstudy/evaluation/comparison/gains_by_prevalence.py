"""What one arm gains over another on each finding, and how the gain goes with how common the finding is in training.

Four measures. AUROC does not depend on prevalence. The average precision (AUPRC) does: what a blind model gets is the
share of positives in the test set, so that the same ranking scores higher on a test enriched with rare findings than
on a natural one. Beside it stand two that relate it to that share: ``normalised_auprc`` is the part reached of what can
be reached, (AP - least) / (1 - least), where the least is that of ranking every positive last (Boyd et al. 2012, ICML);
for rare findings the least is close to zero, so that it changes little. ``auprc_log2_lift`` is log2(AP / share of
positives): 0 is blind and 1 is twice as good; a gain of 1 is twice the other arm's AP, whatever the prevalence.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import digamma

from chexstudy.cohort.table import NO_FINDING, label_matrix
from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import group_findings, read_scores, scored_seeds
from chexstudy.pretraining.arms.definitions import choose_arms
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import (
    LEAST_PATIENTS,
    RESAMPLES,
    bootstrap_patients,
    count_patients,
    count_scarcer_patients,
    interval,
    paired_difference,
)
from chexstudy.statistics.ranking import known_labels, macro_mean, rank_metrics

GAIN_METRICS = ("auroc", "auprc", "normalised_auprc", "auprc_log2_lift")
# Of these the study has rows of per-finding differences already: those that compare the arms.
_MEASURED_BEFORE = ("auroc", "auprc")
TREND = "trend"
GAIN, GAIN_TREND = "gain", "gain_trend"
PER_DECADE = "_difference_per_decade"
_LEAST_FINDINGS = 3


def least_average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Average precision of ranking every positive last, the sum over i of i / (i + negatives), over the positives.

    Boyd, Davis, Page and Costa 2012 (Unachievable region in precision-recall space), in closed form with the digamma
    function. NaN without positives or negatives.

    Args:
        positives: ``(...)``, how many.
        negatives: ``(...)``, how many.
    """
    positives, negatives = np.asarray(positives, dtype=float), np.asarray(negatives, dtype=float)
    both = (positives > 0) & (negatives > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        harmonic = digamma(positives + negatives + 1) - digamma(negatives + 1)
        return np.where(both, 1 - negatives / positives * harmonic, np.nan)


def measure_gain_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The measures of `GAIN_METRICS` of every finding, prevalence counted anew in every resample.

    Args:
        labels: ``(images, findings)``, 1, 0, -1 or NaN.
        scores: ``(images, findings)``.
        weights: ``(resamples, images)`` of `bootstrap_patients`; without it, each image once.

    Returns:
        ``(metrics, findings)``, or ``(resamples, metrics, findings)`` with weights.
    """
    labels = np.asarray(labels, dtype=float)
    area, precision = rank_metrics(labels, scores, weights)
    known = known_labels(labels)
    drawn = np.ones((1, len(labels))) if weights is None else np.asarray(weights, dtype=float)
    positives, negatives = (drawn @ (known & one).astype(float) for one in (labels == 1, labels != 1))
    if weights is None:
        positives, negatives = positives[0], negatives[0]
    least = least_average_precision(positives, negatives)
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = (precision - least) / (1 - least)
        lift = np.log2(precision * (positives + negatives) / positives)
    return np.stack([area, precision, normalised, lift], axis=-2)


def gain_against_prevalence(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    labels: np.ndarray,
    patient_ids: Sequence[str],
    prevalence: pd.Series,
    generator: np.random.Generator,
    *,
    tiers: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """What one arm gains over another on each finding, beside how common the finding is in training.

    Args:
        first: scores of the arm, one ``(images, findings)`` array a seed.
        second: scores of the baseline, the same seeds.
        labels: ``(images, findings)``, 1, 0, -1 or NaN.
        patient_ids: ``(images,)``.
        prevalence: share of training images with each finding, in the order of the columns.
        generator: draws patients and seeds.
        tiers: tier of each finding; adds a row for each tier.
        resamples: number of resamples.

    Returns:
        For each of `GAIN_METRICS` (column ``metric``) one row a finding in the order given, then ``macro`` and the
        tiers, then ``trend``: ``metric, finding, tier, prevalence, test_prevalence, first, second, value, ci_low,
        ci_high, n, positives``; ``first`` and ``second`` are the arms' own means over seeds, ``value`` their paired
        difference. The trend is the least-squares slope of the gain over log10 prevalence, fitted in every resample of
        patients and seeds: below zero, the arm gains most on the rare; ``n`` is the number of findings fitted. A
        finding that fewer than five patients have, or lack, has no interval and does not enter the trend: one patient
        with a hernia would steer it. Nor does ``No Finding``, which is no disease however common it is.
    """
    if len(first) == 0 or len(first) != len(second):
        raise StudyError(
            f"a paired comparison needs the same seeds in both arms, at least one, not {len(first)} and {len(second)}."
        )
    findings, labels = list(prevalence.index), np.asarray(labels, dtype=float)
    groups = group_findings(findings, tiers)
    weights = bootstrap_patients(patient_ids, resamples, generator)
    points = [
        np.stack([_with_groups(measure_gain_metrics(labels, one), groups) for one in arm]) for arm in (first, second)
    ]
    replicates = [
        np.stack([_with_groups(measure_gain_metrics(labels, one, weights), groups) for one in arm])
        for arm in (first, second)
    ]
    scarcer = count_scarcer_patients(labels, weights)
    present = np.stack([(labels[:, members] == 1).any(axis=1) for members in groups.values()], axis=1)
    patients = np.array([*scarcer, *count_patients(present, weights)])
    difference = paired_difference(*points, *replicates, generator, patients)
    means = [one.mean(axis=0) for one in points]

    share = prevalence.to_numpy(dtype=float)
    fitted = (np.array(findings) != NO_FINDING) & (scarcer >= LEAST_PATIENTS) & (share > 0)
    known = known_labels(labels)
    n, positives = known.sum(axis=0), (known & (labels == 1)).sum(axis=0)
    tables = []
    for row, metric in enumerate(GAIN_METRICS):
        of_findings = np.where(fitted, difference.value[row, : len(findings)], np.nan)
        redrawn = np.where(np.isnan(of_findings), np.nan, difference.replicates[:, row, : len(findings)])
        slope = _slopes(share, of_findings[None])[0]
        low, high = interval(_slopes(share, redrawn))
        tables.append(
            pd.DataFrame(
                {
                    "metric": metric,
                    "finding": [*findings, *groups, TREND],
                    "tier": [*[(tiers or {}).get(finding, "") for finding in findings], *groups, ""],
                    "prevalence": [*share, *[np.nan] * (len(groups) + 1)],
                    "test_prevalence": [*positives / np.maximum(n, 1), *[np.nan] * (len(groups) + 1)],
                    "first": [*means[0][row], np.nan],
                    "second": [*means[1][row], np.nan],
                    "value": [*difference.value[row], slope],
                    "ci_low": [*difference.ci_low[row], float(low)],
                    "ci_high": [*difference.ci_high[row], float(high)],
                    "n": [*n, *[len(labels)] * len(groups), int((~np.isnan(of_findings)).sum())],
                    "positives": [*positives, *[-1] * (len(groups) + 1)],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _with_groups(values: np.ndarray, groups: Mapping[str, list[int]]) -> np.ndarray:
    """``(..., findings + groups)``: the findings, then the mean of each group."""
    means = [macro_mean(values[..., members])[..., None] for members in groups.values()]
    return np.concatenate([values, *means], axis=-1)


def _slopes(prevalence: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Slope ``(rows,)`` of each row of ``gains (rows, findings)`` over log10 prevalence; NaN with fewer than three."""
    with np.errstate(divide="ignore"):
        decades = np.log10(prevalence)
    usable = ~np.isnan(gains) & np.isfinite(decades)
    count = usable.sum(axis=1)
    decades = np.where(usable, decades, 0.0)
    gains = np.where(usable, gains, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        centred = np.where(usable, decades - decades.sum(axis=1, keepdims=True) / count[:, None], 0.0)
        slope = (centred * gains).sum(axis=1) / (centred**2).sum(axis=1)
    return np.where(count >= _LEAST_FINDINGS, slope, np.nan)


def read_gain_against_prevalence(
    run: Run,
    cohort: pd.DataFrame,
    arm: str,
    baseline: str,
    prevalence: pd.Series,
    generator: np.random.Generator,
    *,
    task: str = "zero_shot",
    data_set: str,
    tiers: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seeds: Sequence[int] | None = None,
) -> tuple[pd.DataFrame, list[int]]:
    """`gain_against_prevalence` from the scores a study has kept.

    Args:
        run: the study.
        cohort: the rows of the data set that was scored.
        arm, baseline: the arms.
        prevalence, generator, tiers, resamples: as in `gain_against_prevalence`.
        task, data_set: which scores.
        seeds: seeds of both arms; all that both have if None.

    Returns:
        The table and the seeds.
    """
    findings = list(prevalence.index)
    seeds = scored_seeds(run, [arm, baseline], task=task, data_set=data_set) if seeds is None else list(seeds)
    first, second = (
        [
            read_scores(run, cohort.image_id, findings, arm=one, seed=seed, task=task, data_set=data_set)
            for seed in seeds
        ]
        for one in (arm, baseline)
    )
    labels = label_matrix(cohort, findings)
    table = gain_against_prevalence(
        first, second, labels, cohort.patient_id, prevalence, generator, tiers=tiers, resamples=resamples
    )
    return table, seeds


def measure_gains(
    run: Run,
    cohort: pd.DataFrame,
    results: pd.DataFrame,
    prevalence: pd.Series,
    *,
    baselines: Sequence[str] = (),
    arm: str = "curated",
    tiers: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """`gain_against_prevalence` on every data set, over every arm with which the arm was compared there.

    Args:
        run: the study.
        cohort: its cohort table.
        results: its results table; says which data sets and seeds were compared.
        baselines: the arms it is compared with; all of them if empty.
        arm, prevalence, tiers, resamples: as in `gain_against_prevalence`.
        seed: seed of the resampling; the same patients are drawn for every data set's comparisons.

    Returns:
        The tables of `gain_against_prevalence` with ``data_set, setting, exposure``, ``arm`` and ``reference`` (the
        baseline); no rows where the arms were not compared.
    """
    choose_arms([arm, *baselines])
    compared = results[(results.task == "zero_shot_difference") & (results.seed == OVER_SEEDS) & (results.arm == arm)]
    compared = compared[compared.reference.isin(baselines)] if baselines else compared
    jobs = list(compared.groupby(["reference", "data_set", "setting"], sort=True))
    tables = []
    for names, rows in progress(jobs, len(jobs), "gains by prevalence"):
        baseline, data_set, setting = names
        of_arm = results[(results.task == "zero_shot") & (results.arm == arm) & (results.data_set == data_set)]
        table, _ = read_gain_against_prevalence(
            run,
            cohort[cohort.source + "/" + cohort.split == data_set],
            arm,
            baseline,
            prevalence,
            np.random.default_rng(seed),
            data_set=data_set,
            tiers=tiers,
            resamples=resamples,
            seeds=sorted(set(of_arm.seed) - {OVER_SEEDS}),
        )
        place = {
            "arm": arm,
            "reference": baseline,
            "data_set": data_set,
            "setting": setting,
            "exposure": rows.exposure.iloc[0],
        }
        tables.append(table.assign(**place))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def tabulate_trends(gains: pd.DataFrame) -> pd.DataFrame:
    """The trends of `measure_gains`, for the eye."""
    columns = ["data_set", "metric", "reference", "value", "ci_low", "ci_high", "n"]
    trends = gains[gains.finding == TREND] if len(gains) else pd.DataFrame(columns=columns)
    return trends[columns].set_index(columns[:3]).sort_index()


def tabulate_gains(gains: pd.DataFrame, baseline: str, metric: str = "auprc") -> pd.DataFrame:
    """The gains of `measure_gains` over one arm by finding, for the eye."""
    columns = ["data_set", "tier", "finding", "prevalence", "test_prevalence", "first", "second", "value", "ci_low"]
    columns += ["ci_high", "positives"]
    if gains.empty:
        return pd.DataFrame(columns=columns)
    of_arm = gains[(gains.reference == baseline) & (gains.metric == metric) & (gains.positives >= 0)]
    return of_arm[columns].set_index(columns[:3])


def list_gains(gains: pd.DataFrame) -> pd.DataFrame:
    """`measure_gains` as rows of the results table.

    Task ``gain_trend`` holds the trends, finding ``all``, metric ``auroc_difference_per_decade`` and so on (change for
    ten times the prevalence), ``n`` the number of findings fitted. Task ``gain`` holds the paired differences in the
    two measures that relate AUPRC to prevalence, by finding and tier; those in AUROC and AUPRC are rows of task
    ``zero_shot_difference`` already.
    """
    if gains.empty:
        return gains
    of_trend = gains.finding == TREND
    trends = gains[of_trend].assign(task=GAIN_TREND, finding="all", metric=gains.metric[of_trend] + PER_DECADE)
    others = gains[~of_trend & ~gains.metric.isin(_MEASURED_BEFORE)]
    others = others.assign(task=GAIN, metric=others.metric + "_difference")
    rows = pd.concat([trends, others], ignore_index=True).assign(seed=OVER_SEEDS)
    return rows.drop(columns=["tier", "prevalence", "test_prevalence", "first", "second"])
