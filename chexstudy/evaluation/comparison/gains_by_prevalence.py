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

from chexstudy.cohort.prevalence import measure_prevalence
from chexstudy.cohort.table import NO_FINDING
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.scores import measure_findings, read_scores
from chexstudy.pretraining.arms.definitions import choose_arms
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS, join_rows
from chexstudy.statistics.bootstrap import LEAST_PATIENTS, interval
from chexstudy.statistics.ranking import known_labels, rank_metrics

GAIN_METRICS = ("auroc", "auprc", "normalised_auprc", "auprc_log2_lift")
# Of these the study has rows of per-finding differences already: those that compare the arms.
_MEASURED_BEFORE = ("auroc", "auprc")
TREND = "trend"
GAIN, GAIN_TREND = "gain", "gain_trend"
PER_DECADE = "_difference_per_decade"
_ARM = "curated"
_LEAST_FINDINGS = 3


def least_average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Average precision of ranking every positive last, the sum over i of i / (i + negatives), over the positives.

    Boyd, Davis, Page and Costa 2012 (Unachievable region in precision-recall space), in closed form with the digamma
    function, of numbers of cases ``(...)``. NaN without positives or negatives.
    """
    positives, negatives = np.asarray(positives, dtype=float), np.asarray(negatives, dtype=float)
    both = (positives > 0) & (negatives > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        harmonic = digamma(positives + negatives + 1) - digamma(negatives + 1)
        return np.where(both, 1 - negatives / positives * harmonic, np.nan)


def measure_gain_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """`GAIN_METRICS` ``(..., metrics, findings)``, prevalence counted anew in every resample; see `rank_metrics`."""
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
    prevalence: pd.Series,
    weights: np.ndarray,
    generator: np.random.Generator,
    tiers: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """What one arm gains over another on each finding, beside how common the finding is in training.

    Args:
        first, second: scores of the arm and of the baseline, one array a seed.
        prevalence: share of training images with each finding, in the order of the columns.
        tiers: tier of each finding; adds a row for each tier.

    Returns:
        For each of `GAIN_METRICS` (column ``metric``) one row a finding in the order given, then ``macro`` and the
        tiers, then ``trend``: ``metric, finding, tier, prevalence, test_prevalence, first, second, value, ci_low,
        ci_high, n, positives``; ``first`` and ``second`` are the arms' own means over seeds, ``value`` their paired
        difference. The trend is the least-squares slope of the gain over log10 prevalence, fitted in every resample of
        patients and seeds: below zero, the arm gains most on the rare; ``n`` is the number of findings fitted. A
        finding that fewer than five patients have, or lack, has no interval and does not enter the trend: one patient
        with a hernia would steer it. Nor does ``No Finding``, which is no disease however common it is.
    """
    findings, tiers, count = list(prevalence.index), tiers or {}, len(prevalence)
    place = (labels, findings, weights, tiers, GAIN_METRICS, measure_gain_metrics)
    sides = [measure_findings(side, *place) for side in (first, second)]
    difference = sides[0].subtract(sides[1], generator)
    share, columns = prevalence.to_numpy(dtype=float), sides[0].columns
    fitted = (np.array(findings) != NO_FINDING) & (sides[0].patients[:count] >= LEAST_PATIENTS) & (share > 0)
    single = columns[:count].assign(prevalence=share, tier=[tiers.get(finding, "") for finding in findings])
    single["test_prevalence"] = single.positives / np.maximum(single.n, 1)
    groups = columns[count:].assign(tier=columns.finding[count:])
    tables = []
    for row, metric in enumerate(GAIN_METRICS):
        of_findings = np.where(fitted, difference.value[row, :count], np.nan)
        redrawn = np.where(np.isnan(of_findings), np.nan, difference.replicates[:, row, :count])
        low, high = interval(_slopes(share, redrawn))
        trend = {"finding": TREND, "tier": "", "n": int((~np.isnan(of_findings)).sum()), "positives": -1}
        trend |= {"value": _slopes(share, of_findings[None])[0], "ci_low": float(low), "ci_high": float(high)}
        table = pd.concat([single, groups], ignore_index=True).assign(
            first=sides[0].values.mean(axis=0)[row],
            second=sides[1].values.mean(axis=0)[row],
            value=difference.value[row],
            ci_low=difference.ci_low[row],
            ci_high=difference.ci_high[row],
        )
        tables.append(pd.concat([table, pd.DataFrame([trend])], ignore_index=True).assign(metric=metric))
    return pd.concat(tables, ignore_index=True)


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


def measure_gains(evaluation: Evaluation, results: pd.DataFrame, baselines: Sequence[str] = ()) -> pd.DataFrame:
    """`gain_against_prevalence` of the curated arm on every data set, over every arm it was compared with there.

    Data sets and seeds are those of the study's ``results``, all arms are baselines if none is named. Gives the tables
    of `gain_against_prevalence` with ``data_set, setting, exposure``, ``arm`` and ``reference`` (the baseline); no rows
    where the arms were not compared.
    """
    choose_arms(list(baselines))
    compared = results[(results.task == "zero_shot_difference") & (results.seed == OVER_SEEDS) & (results.arm == _ARM)]
    compared = compared[compared.reference.isin(baselines)] if baselines else compared
    jobs = list(compared.groupby(["reference", "data_set", "setting"], sort=True))
    tables, findings, sets = [pd.DataFrame()], evaluation.findings, evaluation.test_sets()
    for (baseline, data_set, setting), rows in progress(jobs, len(jobs), "gains by prevalence"):
        of_arm = results[(results.task == "zero_shot") & (results.arm == _ARM) & (results.data_set == data_set)]
        seeds, images = sorted(set(of_arm.seed) - {OVER_SEEDS}), sets[data_set]
        sides = [
            [read_scores(evaluation.run, images, findings, arm=one, seed=own, task="zero_shot") for own in seeds]
            for one in (_ARM, baseline)
        ]
        place = evaluation.labels(images), measure_prevalence(evaluation.training), *evaluation.draw_patients(images)
        table = gain_against_prevalence(*sides, *place, evaluation.tiers())
        names = {"arm": _ARM, "reference": baseline, "data_set": data_set, "setting": setting}
        tables.append(table.assign(**names, exposure=rows.exposure.iloc[0]))
    return join_rows(*tables)


def tabulate_trends(gains: pd.DataFrame) -> pd.DataFrame:
    """The trends of `measure_gains`, for the eye."""
    columns = ["data_set", "metric", "reference", "value", "ci_low", "ci_high", "n"]
    trends = gains[gains.finding == TREND] if len(gains) else pd.DataFrame(columns=columns)
    return trends[columns].set_index(columns[:3]).sort_index()


def tabulate_gains(gains: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The gains in average precision over one arm by finding, for the eye."""
    columns = ["data_set", "tier", "finding", "prevalence", "test_prevalence", "first", "second", "value", "ci_low"]
    columns += ["ci_high", "positives"]
    if gains.empty:
        return pd.DataFrame(columns=columns)
    of_arm = gains[(gains.reference == baseline) & (gains.metric == "auprc") & (gains.positives >= 0)]
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
