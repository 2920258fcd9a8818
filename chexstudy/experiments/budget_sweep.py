"""Curated against random and full training at several budgets: performance, what it cost, and what is saved.

The arms are those of `chexstudy.pretraining.arms.budgets`. Both kinds of random training are curves that end in
training on all pairs, which is either of them at a budget of everything. Epochs in the middle of that training are no
points of a curve: their learning rate has not fallen yet, and a model stopped there is worse than one trained for so
long.

A saving is read off such a curve: the cost at which random training reaches the curated arm's performance, and the cost
at which curated training reaches that of all pairs (`chexstudy.experiments.equal_performance`). Costs are means over
seeds; the intervals draw patients and seeds, the same for all arms, and hold no error of the costs, which hardly differ
by seed.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import finding_columns
from chexstudy.curation.choice import count_budget
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation, tell_exposure
from chexstudy.evaluation.image_text.zero_shot import ZeroShot
from chexstudy.evaluation.scores import MACRO, measure_findings, read_scores
from chexstudy.evaluation.task import add_costs, run_tasks
from chexstudy.experiments.equal_performance import AT_LEAST, AT_MOST, Curve, measure_saving
from chexstudy.pretraining.arms.budgets import CURATED, FULL, RANDOM, list_budget_arms, plan_budgets, read_budget
from chexstudy.pretraining.arms.definitions import arm_folder, name_arms, name_variant, read_costs
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.progress import progress
from chexstudy.results import COLUMNS, OVER_SEEDS, write_interval
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import interval, resample_seeds
from chexstudy.statistics.ranking import auroc

ZERO_SHOT, DIFFERENCE, SAVING = "budget_zero_shot", "budget_zero_shot_difference", "budget_saving"
# What is counted of a training, and the metric of a saving of it.
COSTS = {"flops": "flops_saved", "pairs_trained": "pairs_saved"}
_GROUPS = (MACRO, *TIERS)


def train_at_budgets(
    run: Run, cohort: pd.DataFrame, config: PretrainingConfig, shares: Sequence[float], seeds: Sequence[int], **options
) -> dict[str, PretrainingConfig]:
    """Train every arm at every budget (`plan_budgets`), and all pairs, and give the constants by variant.

    None for a cohort without labels, where no model is judged. ``options`` are those of `train_arms`.
    """
    if not finding_columns(cohort):
        return {}
    variants = plan_budgets(config, shares, int((cohort.split == "train").sum()))
    train_arms(run, list_budget_arms(variants), seeds, config, variants=variants, **options)
    return variants


def measure_budgets(
    evaluation: Evaluation, variants: Sequence[str], seeds: Sequence[int], workers: int = 1
) -> pd.DataFrame:
    """Zero-shot AUROC of every arm at every budget, curated minus each other, and what it saves.

    Measured on one test set, the one enriched with rare findings where there is one, with the prompts chosen on
    validation; as a mean over all findings and over those of each tier of prevalence.

    Gives rows of the results table: AUROC per seed and over seeds; ``auroc_difference`` of the curated arm and each
    other at the same budget, and all pairs; ``flops_saved`` and ``pairs_saved`` as shares, with the state of
    `chexstudy.experiments.equal_performance.Saving` as ``setting``, of the curated arm of each budget against both
    curves of random training, and of the curve of curated training (no variant) against all pairs.
    """
    if not variants:
        return pd.DataFrame(columns=COLUMNS)
    if not evaluation.findings:
        raise StudyError("zero-shot classification needs labels, and the cohort has none.")
    arms, data_set = list_budget_arms(variants), evaluation.main_test_set()
    run_tasks(evaluation, [ZeroShot()], arms, seeds, workers, data_set)
    costs = read_costs(evaluation.run, arms, seeds)
    rows, measured = _measure_arms(evaluation, arms, seeds, data_set)
    rows = add_costs(rows, costs).assign(task=ZERO_SHOT, setting="")
    tables = [rows, _list_differences(measured, variants)]
    tables.append(_list_savings(measured, variants, costs.groupby("arm")[list(COSTS)].mean()))
    rows = pd.concat(tables, ignore_index=True).dropna(subset=["value"], ignore_index=True)
    place = {"study": evaluation.run.study, "data_set": data_set, "n": len(evaluation.test_sets()[data_set])}
    exposure = tell_exposure(evaluation, arms[0], seeds[0], data_set)
    return name_arms(rows.assign(**place, exposure=exposure, positives=-1))


@dataclass(frozen=True)
class _Reached:
    """AUROC of an arm over seeds, by group of findings."""

    groups: list[str]  # names
    values: np.ndarray  # ``(groups,)``
    replicates: np.ndarray  # ``(resamples, groups)``, the same patients and seeds drawn for all arms
    patients: np.ndarray  # each group rests on ``(groups,)``


def _measure_arms(
    evaluation: Evaluation, arms: list[str], seeds: Sequence[int], data_set: str
) -> tuple[pd.DataFrame, dict[str, _Reached]]:
    """AUROC of groups as rows of every seed and over seeds, and as what comparisons are made of."""
    images, findings = evaluation.test_sets()[data_set], evaluation.findings
    weights, generator = evaluation.draw_patients(images)
    labels, tiers = evaluation.labels(images), evaluation.tiers()
    tables, measured = [], {}
    for arm in progress(arms, label="resampling"):
        scores = [read_scores(evaluation.run, images, findings, arm=arm, seed=one, task="zero_shot") for one in seeds]
        of_arm = measure_findings(scores, labels, findings, weights, tiers, ("auroc",), lambda *given: [auroc(*given)])
        tables.append(of_arm.each_seed(seeds, deepcopy(generator)).assign(arm=arm))
        groups = slice(len(findings), None)
        # Seeds are drawn alike for all arms: what is compared is paired.
        replicates = resample_seeds(of_arm.replicates[:, :, 0, groups], deepcopy(generator))
        names, values = of_arm.columns.finding[groups].tolist(), of_arm.values[:, 0, groups].mean(axis=0)
        measured[arm] = _Reached(names, values, replicates, of_arm.patients[groups])
    rows = pd.concat(tables, ignore_index=True)
    return rows[rows.finding.isin(names) & (rows.metric == "auroc")], measured


def _list_differences(measured: Mapping[str, _Reached], variants: Sequence[str]) -> pd.DataFrame:
    tables = []
    for variant in variants:
        arm = name_variant(CURATED, variant)
        for other in (*(name_variant(one, variant) for one in RANDOM), FULL):
            first, second = measured[arm], measured[other]
            low, high = interval(first.replicates - second.replicates, patients=first.patients)
            rows = {"finding": first.groups, "value": first.values - second.values, "ci_low": low, "ci_high": high}
            tables.append(pd.DataFrame(rows).assign(arm=arm, reference=other))
    place = {"task": DIFFERENCE, "metric": "auroc_difference", "setting": "", "seed": OVER_SEEDS}
    return pd.concat(tables, ignore_index=True).assign(**place)


def _list_savings(measured: Mapping[str, _Reached], variants: Sequence[str], costs: pd.DataFrame) -> pd.DataFrame:
    curated = [name_variant(CURATED, variant) for variant in variants]
    pairs = {
        (arm, other): ([arm], [*(name_variant(other, one) for one in variants), FULL])
        for arm in curated
        for other in RANDOM
    }
    pairs[CURATED, FULL] = (curated, [FULL])
    rows = []
    for (arm, other), sides in pairs.items():
        place = {"arm": arm, "reference": other, "task": SAVING, "seed": OVER_SEEDS}
        for cost, metric in COSTS.items():
            for group, finding in enumerate(measured[FULL].groups):
                curves = [_trace(measured, side, costs[cost], group) for side in sides]
                saving = measure_saving(*curves, patients=measured[FULL].patients[group])
                ends = {"value": saving.value, "ci_low": saving.ci_low, "ci_high": saving.ci_high}
                rows.append(place | {"metric": metric, "finding": finding, "setting": saving.state} | ends)
    return pd.DataFrame(rows)


def _trace(measured: Mapping[str, _Reached], arms: Sequence[str], costs: pd.Series, group: int) -> Curve:
    """Performance of some arms against a cost, by rising cost."""
    arms = sorted(arms, key=costs.get)
    points = [measured[arm] for arm in arms]
    values, replicates = ([getattr(one, name)[..., group] for one in points] for name in ("values", "replicates"))
    return Curve(costs[arms].to_numpy(dtype=float), np.array(values), np.stack(replicates, axis=1))


def tabulate_budgets(results: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Every arm at every budget: AUROC of all findings and of each tier with intervals, and its `read_costs`.

    Gives one row a budget and arm, ``kept`` being the share kept; cells such as ``0.812 [0.790, 0.833]``; costs are
    means over seeds, ``compute`` the operations as a share of those of all pairs.
    """
    rows = results[(results.task == ZERO_SHOT) & (results.seed == OVER_SEEDS)]
    if rows.empty:
        return rows
    cells = [write_interval(row.value, row.ci_low, row.ci_high) for row in rows.itertuples()]
    table = rows.assign(cell=cells).pivot(index=["arm", "variant"], columns="finding", values="cell")
    table = table[[group for group in _GROUPS if group in table]]
    mean = name_arms(costs).groupby(["arm", "variant"])[list(COSTS)].mean().loc[table.index]
    table["pairs_trained"] = mean.pairs_trained.round().astype(int)
    table["flops"] = mean.flops.map("{:.2e}".format)
    table["compute"] = (mean.flops / mean.flops[FULL, ""]).map("{:.1%}".format)
    order = sorted(table.index, key=lambda place: (read_budget(place[1]), (CURATED, *RANDOM, FULL).index(place[0])))
    table = table.loc[order]
    places = [(f"{read_budget(variant):.1%}", arm) for arm, variant in order]
    return table.set_index(pd.MultiIndex.from_tuples(places, names=["kept", "arm"]))


def list_differences(results: pd.DataFrame) -> pd.DataFrame:
    """Curated minus each other at the same budget: AUROC of all findings and of each tier, for the eye."""
    rows = results[results.task == DIFFERENCE]
    return rows[["arm", "variant", "reference", "finding", "value", "ci_low", "ci_high"]].reset_index(drop=True)


def compare_spending(
    run: Run, cohort: pd.DataFrame, variants: Mapping[str, PretrainingConfig], seeds: Sequence[int]
) -> pd.DataFrame:
    """Whether the arms of each budget and seed were given what they are compared at.

    That is ``asked`` and ``kept`` pairs of the curated arm; ``pairs_trained`` of it and ``same_data_pairs`` of random
    pairs; ``same_compute_operations``, those of random batches over its own.
    """
    rows, pairs = [], int((cohort.split == "train").sum())
    for variant, config in variants.items():
        curated, *others = (name_variant(arm, variant) for arm in (CURATED, *RANDOM))
        costs = read_costs(run, [curated, *others], seeds).set_index(["arm", "seed"])
        for seed in seeds:
            own, same_data, same_compute = (costs.loc[arm, seed] for arm in (curated, *others))
            kept = len(run.read_table(f"{arm_folder(curated, seed)}/subset.parquet"))
            counts = (count_budget(config.curator.budget, pairs), kept, own.pairs_trained, same_data.pairs_trained)
            rows.append((variant, seed, *counts, same_compute.flops / own.flops))
    names = ["variant", "seed", "asked", "kept", "pairs_trained", "same_data_pairs", "same_compute_operations"]
    return pd.DataFrame(rows, columns=names)


def state_differences(results: pd.DataFrame) -> list[str]:
    """Which arms the curated one is told from at each budget, in sentences."""
    rows = results[(results.task == DIFFERENCE) & (results.finding == MACRO) & (results.seed == OVER_SEEDS)]
    verdicts = np.select([rows.ci_low > 0, rows.ci_high < 0], ["better", "worse"], "not told apart")
    return [
        f"{row.arm}, {row.variant}, minus {row.reference}: "
        f"{write_interval(row.value, row.ci_low, row.ci_high, '+.3f')} in macro AUROC, {verdict}."
        for row, verdict in zip(rows.itertuples(), verdicts, strict=True)
    ]


def judge_saving(low: float, high: float) -> str:
    """``saved`` or ``lost`` if the whole interval says so, else ``cannot be told``; an open end may lie anywhere."""
    return "saved" if low > 0 else "lost" if high < 0 else "cannot be told"


def list_savings(results: pd.DataFrame) -> pd.DataFrame:
    """What is saved at equal performance over all findings, in words: ``saved``, ``interval`` and ``verdict``."""
    rows = results[(results.task == SAVING) & (results.finding == MACRO)].reset_index(drop=True)
    ends = list(zip(rows.ci_low, rows.ci_high, strict=True))
    return rows[["arm", "variant", "reference"]].assign(
        cost=rows.metric.map({metric: cost for cost, metric in COSTS.items()}),
        saved=[write_saving(*one) for one in zip(rows.value, rows.setting, strict=True)],
        interval=[write_ends(*one) for one in ends],
        verdict=[judge_saving(*one) for one in ends],
    )


def write_saving(value: float, state: str) -> str:
    """``32 %``, ``at least 32 %`` or ``at most 32 %``, with a true minus sign."""
    bound = {AT_LEAST: "at least ", AT_MOST: "at most "}.get(state, "")
    return f"{bound}{_percent(value)} %"


def write_ends(low: float, high: float) -> str:
    """``10 to 45 %``; ``10 % or more`` and ``45 % or less`` where an end is open, ``not bounded`` where both are."""
    if np.isfinite(low) and np.isfinite(high):
        return f"{_percent(low)} to {_percent(high)} %"
    if np.isfinite(low):
        return f"{_percent(low)} % or more"
    return f"{_percent(high)} % or less" if np.isfinite(high) else "not bounded"


def _percent(share: float) -> str:
    # Adding zero turns a rounded minus zero into zero.
    return f"{round(100 * share) + 0:d}".replace("-", "\N{MINUS SIGN}")
