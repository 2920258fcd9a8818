"""Performance by subgroup of patients, how far apart the subgroups are, and whether an arm widens that gap.

Groups are compared on the same findings: those that five patients or more have, and lack, in every compared group. A
macro mean over other findings in each group would compare findings, not groups. AUROC and average precision within a
group ask how well its own cases are ranked; at thresholds carried from validation, the shares of present findings that
are called (TPR) and of absent ones (FPR) ask whether the groups get the same decisions (equalised odds: Hardt, Price
and Srebro 2016). For ``No Finding`` the FPR is the share of patients with disease who are called healthy, the rate of
underdiagnosis (Seyyed-Kalantari et al. 2021, Nature Medicine 27).

Three numbers for each grouping:

- the *gap*, worst group minus best. The largest of several noisy differences is never zero, so its interval is the one
  that holds for all differences at once: gap plus or minus the 95 % quantile of the spread of the groups' errors. It
  reaches zero exactly where the p value, the share of resamples whose errors alone spread as far, is above 0.05;
- each group *against the rest*, the mean of the other groups weighted by their patients. The others are not pooled: the
  AUROC of a pool also counts pairs across groups, and falls when the groups' scores are shifted though each is ranked
  as well;
- what an arm *widens*: its gap minus that of another arm, in the same resamples of patients and seeds.

p values of gaps are corrected by Holm over groupings.

Age, sex and view go together with how ill patients are. The macro mean is therefore given a second time, *standardised*
to one mix of findings (`chexstudy.evaluation.subgroups.case_mix`); a gap that vanishes with it came from that mix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.groups import list_groups
from chexstudy.cohort.splits import TEST_SPLITS
from chexstudy.cohort.table import label_matrix
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.robustness.thresholds import Rule, choose_thresholds
from chexstudy.evaluation.scores import MACRO, read_scores, scores_artifact
from chexstudy.evaluation.subgroups.case_mix import balance_case_mix
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS, join_rows, worst_exposure
from chexstudy.statistics.bootstrap import (
    LEAST_PATIENTS,
    Difference,
    bootstrap_patients,
    difference_p_values,
    interval,
    resample_seeds,
)
from chexstudy.statistics.multiple_testing import correct_by_holm
from chexstudy.statistics.ranking import known_labels, macro_mean, rank_metrics
from chexstudy.steps import find_step

GROUPINGS = ("sex", "age", "view", "source")
SUBGROUP, SUBGROUP_GAP = "subgroup", "subgroup_gap"
# The arm whose gaps are compared with the others'.
REFERENCE = "curated"
_TASK = "zero_shot"
# A group of fewer patients is left out of its grouping: it would leave few findings for the others to be compared on.
LEAST_GROUP = 20
# Carried from validation, for every finding: nine in ten of those without it are not called.
THRESHOLD_RULE = Rule("specificity", 0.90)
STANDARDISED = "_standardised"
GAP, AGAINST_REST, WIDENING = "_gap", "_against_rest", "_gap_widening"
EQUALISED_ODDS = "equalised_odds"
_RANKING, _DECISIONS = ("auroc", "auprc"), ("tpr", "fpr")
_LOWER_IS_BETTER = ("fpr",)
_MOST_GROUPS = 12
_PRIVATE = ("image_id", "patient_id", "study_id", "image_path", "report")


@dataclass(frozen=True)
class Grouping:
    """Groups that are compared with each other."""

    name: str  # what they are grouped by, such as ``sex``
    groups: tuple[str, ...]  # names of the compared groups
    members: np.ndarray  # ``(groups, images)`` bool
    shared: np.ndarray  # positions of the findings that can be evaluated in all compared groups
    # One row a group and finding, those not compared too: ``grouping, group, finding, n, positives, patients_with,
    # patients_without, evaluable, left_out`` (why the group is not compared) and ``compared`` (in the macro mean).
    cells: pd.DataFrame

    @property
    def comparable(self) -> bool:
        """Whether there are two groups or more, and a finding to compare them on."""
        return len(self.groups) > 1 and len(self.shared) > 0


def plan_grouping(cohort: pd.DataFrame, name: str, findings: Sequence[str]) -> Grouping:
    """Find the groups of a grouping, the findings on which they can be compared, and what cannot be compared.

    Groups by ``sex``, ``age`` (bands of twenty years), ``view``, ``source``, or a column of the table with at most
    twelve values; images whose value is unknown are in no group. Left out are groups of fewer than twenty patients, and
    those in which no finding can be evaluated.
    """
    labels = label_matrix(cohort, list(findings)).astype(float)
    known = known_labels(labels)
    patients = pd.factorize(cohort.patient_id)[0]
    columns = ["finding", "n", "positives", "patients_with", "patients_without", "evaluable", "grouping", "group"]
    cells, kept = [pd.DataFrame(columns=[*columns, "left_out"])], {}
    for group, members in _list_members(cohort, name).items():
        present, absent = known & (labels == 1) & members[:, None], known & (labels != 1) & members[:, None]
        having, lacking = ([len(np.unique(patients[column])) for column in cases.T] for cases in (present, absent))
        evaluable = np.minimum(having, lacking) >= LEAST_PATIENTS
        count, why = len(np.unique(patients[members])), ""
        if count < LEAST_GROUP:
            why = f"{count} patients"
        elif not evaluable.any():
            why = "no finding that five patients have and five lack"
        else:
            kept[group] = members, evaluable
        counts = list(findings), (present | absent).sum(axis=0), present.sum(axis=0), having, lacking, evaluable
        table = dict(zip(columns, (*counts, name, group), strict=True))
        cells.append(pd.DataFrame(table | {"left_out": why}))
    table = join_rows(*cells)
    members, evaluable = (
        (np.stack(parts) for parts in zip(*kept.values(), strict=True)) if kept else np.zeros((2, 0, 0))
    )
    shared = np.flatnonzero(evaluable.all(axis=0))
    in_macro = table.group.isin(list(kept)) & table.finding.isin([findings[place] for place in shared])
    return Grouping(name, tuple(kept), members, shared, table.assign(compared=in_macro))


def _list_members(cohort: pd.DataFrame, name: str) -> dict[str, np.ndarray]:
    if name in GROUPINGS:
        groups = {one.name: one.members for one in list_groups(cohort) if one.kind == name}
        return {group: members for group, members in groups.items() if members.any()}
    if name in _PRIVATE or name not in cohort:
        raise StudyError(
            f"there is no grouping by {name!r}: take {', '.join(GROUPINGS)} or a column of the cohort table that "
            "identifies no one."
        )
    values = cohort[name].map(lambda value: f"{value:g}" if isinstance(value, int | float) else str(value), "ignore")
    names = sorted(set(values.dropna()) - {"unknown"})
    if len(names) > _MOST_GROUPS:
        raise StudyError(
            f"column {name!r} has {len(names)} values, more than {_MOST_GROUPS}: add a column of coarser groups."
        )
    return {one: (values == one).to_numpy(dtype=bool, na_value=False) for one in names}


@dataclass(frozen=True)
class _Measured:
    """One grouping: ``point`` by seed ``(seeds, arms, groups, ...)`` and over seeds in resamples ``(resamples, ...)``.

    ``macro`` and ``macro_drawn`` end in the macro metrics, ``each`` and ``each_drawn`` in metrics and findings.
    """

    metrics: tuple[str, ...]
    macro_metrics: tuple[str, ...]
    macro: np.ndarray
    macro_drawn: np.ndarray
    each: np.ndarray
    each_drawn: np.ndarray


def measure_subgroups(
    scores: Mapping[str, Sequence[np.ndarray]],
    labels: np.ndarray,
    findings: Sequence[str],
    groupings: Sequence[Grouping],
    patient_ids: Sequence[str],
    generator: np.random.Generator,
    *,
    seeds: Sequence[int],
    resamples: int,
    thresholds: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> pd.DataFrame:
    """Metrics by subgroup, gaps between subgroups and differences in gaps between arms, with 95 % intervals.

    All groups, arms and metrics share the resamples of patients; seeds are drawn as a second level, the same for all
    arms.

    Args:
        scores: by arm, one array a seed.
        groupings: of `plan_grouping`, on the same images.
        seeds: their numbers, the same of all arms.
        thresholds: by arm, the ``(findings,)`` thresholds of each seed, chosen on validation; adds TPR and FPR.

    Gives rows of the results table; ``setting`` is what is grouped by, such as ``sex``, and ``group`` a group, ``F``.
    Task ``subgroup``: ``auroc``, ``auprc`` (and ``tpr``, ``fpr``) of each finding and of ``macro``, and
    ``auroc_standardised`` and ``auprc_standardised`` of ``macro``; a finding not evaluable in the group has NaN with
    its n. Task ``subgroup_gap``, finding ``macro``, without a group: the ``<metric>_gap`` (worst minus best: negative
    where more is better, positive for ``fpr``) and ``equalised_odds_gap`` (the larger of the gaps in TPR and FPR), with
    ``_p`` and ``_p_holm``; with a group ``<metric>_against_rest``. Of `REFERENCE` with another arm as ``reference``:
    ``<metric>_gap_widening`` (positive where the first arm's groups are farther apart), with ``_p`` and ``_p_holm``.
    Rows over seeds have seed -1 and intervals, those of single seeds none. Groupings without two comparable groups have
    no rows.
    """
    labels = np.asarray(labels, dtype=float)
    weights = bootstrap_patients(patient_ids, resamples, generator)
    patients = pd.factorize(np.asarray(patient_ids, dtype=str))[0]
    arms, tables = list(scores), [pd.DataFrame()]
    for grouping in groupings:
        if not grouping.comparable:
            continue
        measured = _measure_grouping(scores, labels, weights, grouping, thresholds, generator)
        # A macro mean rests on the patients of a group with one of the shared findings or more.
        present = (labels[:, grouping.shared] == 1).any(axis=1)
        few = np.array([len(np.unique(patients[members & present])) for members in grouping.members])
        size = np.array([len(np.unique(patients[members])) for members in grouping.members], dtype=float)
        tables.append(_list_groups(measured, grouping, arms, seeds, few))
        tables.append(_list_gaps(measured, grouping, arms, seeds, few, size))
    rows = join_rows(*tables)
    if rows.empty:
        return rows
    tested = rows[rows.metric.str.endswith("_p") & rows.value.notna()]
    families = tested.groupby(["arm", "reference", "metric"]).value
    corrected = families.transform(lambda p_values: correct_by_holm(p_values.to_numpy()))
    return join_rows(rows, tested.assign(metric=tested.metric + "_holm", value=corrected))


def _measure_grouping(scores, labels, weights, grouping, thresholds, generator) -> _Measured:
    metrics = _RANKING + (_DECISIONS if thresholds is not None else ())
    macro_metrics = metrics + tuple(metric + STANDARDISED for metric in _RANKING)
    shared, cells, balanced = grouping.shared, grouping.cells, balance_case_mix(grouping.members, labels)
    evaluable = [np.flatnonzero(cells.evaluable[cells.group == group]) for group in grouping.groups]
    by_seed, drawn = [], []
    for seed in range(len(next(iter(scores.values())))):
        points, replicates = [], []
        for arm, of_arm in scores.items():
            for members, usable in zip(grouping.members, evaluable, strict=True):
                cutoffs = None if thresholds is None else thresholds[arm][seed]
                own = labels[members], of_arm[seed][members], cutoffs
                places = balanced[members], usable, shared
                points.append(_measure_group(*own, None, *places))
                replicates.append(_measure_group(*own, weights[:, members], *places))
        by_seed.append(np.concatenate(points))
        drawn.append(np.stack(replicates, axis=1))
    shape = (len(scores), len(grouping.groups), -1)
    point = np.stack(by_seed).reshape(len(by_seed), *shape)
    # One draw of seeds for everything: arms are compared seed by seed, and so are groups.
    over_seeds = resample_seeds(np.stack(drawn), generator).reshape(len(weights), *shape)
    macros = len(macro_metrics)
    each = (len(metrics), labels.shape[1])
    return _Measured(
        metrics,
        macro_metrics,
        point[..., :macros],
        over_seeds[..., :macros],
        point[..., macros:].reshape(*point.shape[:-1], *each),
        over_seeds[..., macros:].reshape(*over_seeds.shape[:-1], *each),
    )


def _measure_group(labels, scores, cutoffs, weights, heavy, usable, shared) -> np.ndarray:
    """Macro metrics, then every metric of every finding, of one group: ``(resamples, macros + metrics * findings)``."""
    own = labels[:, usable], scores[:, usable]
    measured = list(rank_metrics(*own, weights))
    if cutoffs is not None:
        measured += list(_measure_decisions(*own, cutoffs[usable], weights))
    each = []
    for of_usable in map(np.atleast_2d, measured):
        each.append(np.full((len(of_usable), labels.shape[1]), np.nan))
        each[-1][:, usable] = of_usable
    drawn = np.ones((1, len(labels))) if weights is None else weights
    standardised = rank_metrics(labels[:, shared], scores[:, shared], drawn * heavy)
    macro = [macro_mean(one[:, shared]) for one in each] + [macro_mean(one) for one in standardised]
    return np.concatenate([np.stack(macro, axis=1), *each], axis=1)


def _measure_decisions(labels, scores, cutoffs, weights) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the present and of the absent that reach the threshold; NaN without a threshold or a case."""
    known = known_labels(labels)
    drawn = np.ones((1, len(labels))) if weights is None else weights.astype(float)
    called = scores >= cutoffs
    rates = []
    for cases in (known & (labels == 1), known & (labels != 1)):
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = (drawn @ (cases & called).astype(float)) / (drawn @ cases.astype(float))
        rates.append(np.where(np.isnan(cutoffs), np.nan, rate))
    return rates[0], rates[1]


def _list_groups(measured, grouping, arms, seeds, few) -> pd.DataFrame:
    """Rows of task ``subgroup``: every arm, group and metric, of the findings and of their macro mean."""
    tables = []
    cells = grouping.cells.set_index("group")
    for place, group in enumerate(grouping.groups):
        of_group = cells.loc[[group]]
        single = {name: of_group[name].to_numpy() for name in ("finding", "n", "positives")}
        macro = {"finding": MACRO, "n": int(grouping.members[place].sum()), "positives": -1}
        scarcer = of_group[["patients_with", "patients_without"]].min(axis=1).to_numpy()
        for number, arm in enumerate(arms):
            over = {"arm": arm, "group": group, "seed": OVER_SEEDS}
            for row, metric in enumerate(measured.metrics):
                value = measured.each[:, number, place, row].mean(axis=0)
                low, high = _bound(measured.each_drawn[:, number, place, row], scarcer)
                table = {"metric": metric, "value": value, "ci_low": low, "ci_high": high}
                tables.append(pd.DataFrame(table | over | single))
            point = measured.macro[:, number, place]
            low, high = _bound(measured.macro_drawn[:, number, place], few[place])
            table = {"metric": measured.macro_metrics, "value": point.mean(axis=0), "ci_low": low, "ci_high": high}
            tables.append(pd.DataFrame(table | over | macro))
            for seed, of_seed in zip(seeds, point, strict=True):
                table = {"metric": measured.macro_metrics, "value": of_seed, "ci_low": np.nan, "ci_high": np.nan}
                tables.append(pd.DataFrame(table | over | macro | {"seed": seed}))
    return pd.concat(tables, ignore_index=True).assign(task=SUBGROUP, setting=grouping.name, reference="")


def _bound(replicates: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Drawing few seeds stretches deviations from the mean, which can carry an end past what a share can be."""
    return np.clip(interval(replicates, patients=patients), 0, 1)


def _list_gaps(measured, grouping, arms, seeds, few, size) -> pd.DataFrame:
    """Rows of task ``subgroup_gap``: the gap of each arm, its groups against the rest, and what an arm widens.

    Patients of each group, ``few`` those with one of the shared findings or more, ``size`` all.
    """
    contrast, images = _contrasts(size), grouping.members.sum(axis=1)
    everyone = int(grouping.members.any(axis=0).sum())
    fewer = np.minimum(few, [np.delete(few, place).sum() for place in range(len(few))])
    rows = []

    def add(arm, metric, value, low=np.nan, high=np.nan, p_value=None, **place):
        row = {"arm": arm, "reference": "", "metric": metric, "value": value, "ci_low": low, "ci_high": high}
        rows.append(row | {"group": "", "seed": OVER_SEEDS, "n": everyone} | place)
        if p_value is not None:
            add(arm, f"{metric}_p", p_value, **place)

    for column, metric in enumerate(measured.macro_metrics):
        point, drawn = measured.macro[..., column], measured.macro_drawn[..., column]
        mean = point.mean(axis=0)
        sign = 1.0 if metric in _LOWER_IS_BETTER else -1.0
        for number, arm in enumerate(arms):
            spread = _spread_of_errors(drawn[:, number] - mean[number], few)
            value, low, high, p_value = _judge_gap(np.ptp(mean[number]), spread)
            # Adding zero makes a negative zero positive.
            add(arm, metric + GAP, sign * value + 0.0, *sorted((sign * low + 0.0, sign * high + 0.0)), p_value)
            ends = interval(drawn[:, number] @ contrast.T, patients=fewer)
            for group, count, *against in zip(grouping.groups, images, contrast @ mean[number], *ends, strict=True):
                add(arm, metric + AGAINST_REST, *against, group=group, n=int(count))
            for seed, of_seed in zip(seeds, point[:, number], strict=True):
                add(arm, metric + GAP, sign * np.ptp(of_seed), seed=seed)
                for group, one in zip(grouping.groups, contrast @ of_seed, strict=True):
                    add(arm, metric + AGAINST_REST, one, seed=seed, group=group)
        for number, arm in enumerate(arms):
            if REFERENCE in arms and arm != REFERENCE:
                first = arms.index(REFERENCE)
                wider = np.ptp(mean[first]) - np.ptp(mean[number])
                replicates = np.ptp(drawn[:, first], axis=1) - np.ptp(drawn[:, number], axis=1)
                low, high = interval(replicates, patients=np.array(few.min()))
                p_value = difference_p_values(Difference(wider, low, high, replicates, len(seeds)), few.min())
                add(REFERENCE, metric + WIDENING, wider, float(low), float(high), float(p_value), reference=arm)
    if set(_DECISIONS) <= set(measured.macro_metrics):
        columns = [measured.macro_metrics.index(metric) for metric in _DECISIONS]
        for number, arm in enumerate(arms):
            mean = measured.macro[:, number][..., columns].mean(axis=0)
            errors = measured.macro_drawn[:, number][..., columns] - mean
            spread = np.max([_spread_of_errors(errors[..., place], few) for place in (0, 1)], axis=0)
            add(arm, EQUALISED_ODDS + GAP, *_judge_gap(np.ptp(mean, axis=0).max(), spread))
    place = {"task": SUBGROUP_GAP, "finding": MACRO, "setting": grouping.name, "positives": -1}
    return pd.DataFrame(rows).assign(**place)


def _contrasts(size: np.ndarray) -> np.ndarray:
    """``(groups, groups)``: each row takes one group minus the others' mean, weighted by their patients."""
    contrast = -np.tile(size, (len(size), 1))
    np.fill_diagonal(contrast, 0.0)
    contrast /= np.abs(contrast.sum(axis=1, keepdims=True))
    np.fill_diagonal(contrast, 1.0)
    return contrast


def _spread_of_errors(errors: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """How far apart errors ``(resamples, groups)`` alone put the groups; widened for few patients by k / (k - 1)."""
    return np.ptp(errors * np.sqrt(patients / np.maximum(patients - 1, 1)), axis=1)


def _judge_gap(size: float, spread: np.ndarray) -> tuple[float, float, float, float]:
    """The size of a gap, its simultaneous 95 % interval, and the p value of there being none.

    The spread of the true values differs from the measured one by no more than the spread of the errors, whichever
    groups are worst and best.
    """
    known = spread[~np.isnan(spread)]
    if not np.isfinite(size) or len(known) == 0:
        return size, np.nan, np.nan, np.nan
    reach = float(np.quantile(known, 0.95))
    return size, max(0.0, size - reach), size + reach, (1 + int(np.sum(known >= size))) / (1 + len(known))


def measure_study_subgroups(
    evaluation: Evaluation, results: pd.DataFrame, arms: Sequence[str] = (), names: Sequence[str] = GROUPINGS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`measure_subgroups` of a study's arms on its test sets, from the zero-shot scores it has kept.

    Test sets of one split are put together if they are of several sources, which can then be compared (data set
    ``all/test``). Thresholds are carried from validation (`choose_thresholds`) where validation scores were kept for
    every arm; otherwise there is no TPR and FPR.

    Args:
        results: the study's; says which arms and seeds were evaluated, and exposure.
        arms: arms to measure; all that were evaluated if empty.
        names: groupings, as in `plan_grouping`.

    Gives rows of the results table, and all cells of all groupings (`Grouping.cells`, with ``data_set``); both empty if
    the cohort has no labels or no arm was evaluated.
    """
    run, cohort, findings = evaluation.run, evaluation.cohort, evaluation.findings
    evaluated = results[(results.task == _TASK) & (results.seed != OVER_SEEDS)]
    unknown = [arm for arm in arms if findings and arm not in set(evaluated.arm)]
    if unknown:
        step = find_step("evaluation/")
        raise StudyError(f"arm {unknown[0]!r} has no {_TASK} scores in study {run.study!r}: run {step} with it.")
    # The reference first, whatever order they were evaluated in.
    arms = sorted(dict.fromkeys(arms or evaluated.arm), key=lambda arm: arm != REFERENCE)
    if not findings or not arms:
        return pd.DataFrame(), pd.DataFrame()
    seeds = sorted(set.intersection(*[set(evaluated.seed[evaluated.arm == arm]) for arm in arms]))
    if not seeds:
        step = find_step("evaluation/")
        raise StudyError(f"the arms {', '.join(arms)} share no seed: run {step} with the same seeds for all.")

    def read(rows: pd.DataFrame) -> dict[str, list[np.ndarray]]:
        return {arm: [read_scores(run, rows, findings, arm=arm, seed=one, task=_TASK) for one in seeds] for arm in arms}

    validation, thresholds = evaluation.validation, None
    places = [(arm, seed, f"{source}/validate") for arm in arms for seed in seeds for source in set(validation.source)]
    if places and all(run.has(scores_artifact(arm, seed, _TASK, data_set)) for arm, seed, data_set in places):
        labels = evaluation.labels(validation)
        thresholds = {
            arm: [choose_thresholds(one, labels, THRESHOLD_RULE).values for one in of_arm]
            for arm, of_arm in read(validation).items()
        }
    tables, cells = [], []
    splits = [split for split in TEST_SPLITS if (cohort.split == split).any()]
    for split in progress(splits, len(splits), "measuring subgroups"):
        rows = cohort[cohort.split == split]
        sources = sorted(set(rows.source))
        data_set = f"{sources[0] if len(sources) == 1 else 'all'}/{split}"
        groupings = [plan_grouping(rows, name, findings) for name in names]
        place = (read(rows), evaluation.labels(rows), findings, groupings, rows.patient_id, evaluation.generator())
        options = {"seeds": seeds, "resamples": evaluation.resamples, "thresholds": thresholds}
        exposures = evaluated.exposure[evaluated.data_set.isin([f"{source}/{split}" for source in sources])]
        tables.append(
            measure_subgroups(*place, **options).assign(data_set=data_set, exposure=worst_exposure(exposures))
        )
        cells += [one.cells.assign(data_set=data_set) for one in groupings]
    return join_rows(*tables), pd.concat(cells, ignore_index=True)


def count_cells(cells: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """How many findings each group can be judged and compared on, and which cannot: fewer than five with or without."""
    names = ["evaluable", "compared", "left_out", "not_evaluable", "which"]
    if cells.empty:
        return pd.DataFrame(columns=names)
    by_group = cells.groupby(["data_set", "grouping", "group"], sort=False)
    counts = by_group.agg(evaluable=("evaluable", "sum"), compared=("compared", "sum"), left_out=("left_out", "first"))
    few = cells[~cells.evaluable.astype(bool)].groupby(["data_set", "grouping", "group"]).finding.agg(", ".join)
    return counts.assign(not_evaluable=len(findings) - counts.evaluable, which=few)[names]
