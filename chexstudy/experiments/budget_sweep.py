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
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import finding_columns, label_matrix
from chexstudy.curation.choice import count_budget
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation, tell_exposure
from chexstudy.evaluation.image_text.zero_shot import ZeroShot
from chexstudy.evaluation.scores import MACRO, group_findings, read_scores
from chexstudy.evaluation.task import run_tasks
from chexstudy.experiments.equal_performance import AT_LEAST, AT_MOST, Curve, measure_saving
from chexstudy.pretraining.arms.budgets import CURATED, FULL, RANDOM, list_budget_arms, plan_budgets, read_budget
from chexstudy.pretraining.arms.definitions import arm_folder, name_arms, name_variant, read_costs
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.progress import progress
from chexstudy.results import COLUMNS, OVER_SEEDS, write_interval
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import bootstrap_patients, count_patients, interval, resample_seeds
from chexstudy.statistics.ranking import auroc, macro_mean

ZERO_SHOT, DIFFERENCE, SAVING = "budget_zero_shot", "budget_zero_shot_difference", "budget_saving"
# What is counted of a training, and the metric of a saving of it.
COSTS = {"flops": "flops_saved", "pairs_trained": "pairs_saved"}
_GROUPS = (MACRO, *TIERS)


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Zero-shot AUROC of all arms, their findings put together in groups."""

    arms: list[str]  # names
    groups: list[str]  # names
    by_seed: np.ndarray  # ``(arms, seeds, groups)``
    replicates_by_seed: np.ndarray  # ``(arms, seeds, resamples, groups)``
    replicates: np.ndarray  # over seeds ``(arms, resamples, groups)``, the same patients and seeds drawn for all arms
    patients: np.ndarray  # each group rests on ``(groups,)``
    costs: pd.DataFrame  # mean over seeds by arm, with the columns of `COSTS` and ``seconds``
    costs_by_seed: pd.DataFrame  # the same by arm and seed
    n: int  # images of the test set

    @property
    def values(self) -> np.ndarray:
        """Means over seeds ``(arms, groups)``."""
        return self.by_seed.mean(axis=1)

    def curve(self, arms: Sequence[str], cost: str, group: int) -> Curve:
        """Performance of some arms against a cost, by rising cost."""
        places = [self.arms.index(arm) for arm in sorted(arms, key=self.costs[cost].get)]
        costs = self.costs[cost][[self.arms[place] for place in places]].to_numpy(dtype=float)
        return Curve(costs, self.values[places, group], self.replicates[places, :, group].T)


def train_at_budgets(
    run: Run, cohort: pd.DataFrame, config: PretrainingConfig, shares: Sequence[float], seeds: Sequence[int], **options
) -> dict[str, PretrainingConfig]:
    """Train every arm at every budget, and all pairs; none for a cohort without labels, where no model is judged.

    Args:
        config: every constant.
        shares: of the training pairs that are kept.
        options: ``device`` and ``workers``, as in `chexstudy.pretraining.arms.worker_pool.train_arms`.

    Returns:
        The constants of each budget's arms by variant (`chexstudy.pretraining.arms.budgets.plan_budgets`).
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

    Args:
        variants: of `train_at_budgets`.
        workers: processes; use 1 on a GPU.

    Returns:
        Rows of the results table: AUROC per seed and over seeds; ``auroc_difference`` of the curated arm and each other
        at the same budget, and all pairs; ``flops_saved`` and ``pairs_saved`` as shares, with the state of
        `chexstudy.experiments.equal_performance.Saving` as ``setting``, of the curated arm of each budget against both
        curves of random training, and of the curve of curated training (no variant) against all pairs.
    """
    if not variants:
        return pd.DataFrame(columns=COLUMNS)
    if not evaluation.findings:
        raise StudyError("zero-shot classification needs labels, and the cohort has none.")
    arms, data_set = list_budget_arms(variants), evaluation.main_test_set()
    run_tasks(evaluation, [ZeroShot()], arms, seeds, workers, data_set)
    measured = _measure_arms(evaluation, arms, seeds, data_set)
    tables = [_list_values(measured, seeds), _list_differences(measured, variants), _list_savings(measured, variants)]
    exposure = tell_exposure(evaluation.run, arms[0], seeds[0])
    rows = pd.concat(tables, ignore_index=True).dropna(subset=["value"], ignore_index=True)
    place = {"study": evaluation.run.study, "data_set": data_set, "exposure": exposure}
    return name_arms(rows.assign(**place, n=measured.n, positives=-1))


def _measure_arms(evaluation: Evaluation, arms: list[str], seeds: Sequence[int], data_set: str) -> _Measured:
    rows, findings = evaluation.test_sets()[data_set], evaluation.findings
    labels, groups = label_matrix(rows, findings), group_findings(findings, evaluation.tiers())
    generator = evaluation.generator()
    weights = bootstrap_patients(rows.patient_id, evaluation.resamples, generator)
    by_seed, replicates = [], []
    for arm in progress(arms, label="resampling"):
        scores = [read_scores(evaluation.run, rows, findings, arm=arm, seed=one, task="zero_shot") for one in seeds]
        by_seed.append([_average_groups(auroc(labels, one), groups) for one in scores])
        replicates.append([_average_groups(auroc(labels, one, weights), groups) for one in scores])
    by_seed, replicates = np.array(by_seed), np.array(replicates)
    present = np.stack([(labels[:, members] == 1).any(axis=1) for members in groups.values()], axis=1)
    costs = read_costs(evaluation.run, arms, seeds)[["arm", "seed", *COSTS, "seconds"]]
    return _Measured(
        arms=arms,
        groups=list(groups),
        by_seed=by_seed,
        replicates_by_seed=replicates,
        # Seeds are drawn for all arms at once: what is compared is paired.
        replicates=np.moveaxis(resample_seeds(np.moveaxis(replicates, 0, 2), generator), 1, 0),
        patients=count_patients(present, weights),
        costs=costs.groupby("arm")[[*COSTS, "seconds"]].mean(),
        costs_by_seed=costs.set_index(["arm", "seed"]),
        n=len(rows),
    )


def _average_groups(values: np.ndarray, groups: Mapping[str, list[int]]) -> np.ndarray:
    """``(..., findings)`` to ``(..., groups)``."""
    return np.stack([macro_mean(values[..., members]) for members in groups.values()], axis=-1)


def _list_values(measured: _Measured, seeds: Sequence[int]) -> pd.DataFrame:
    tables = []
    for place, arm in enumerate(measured.arms):
        spent = measured.costs.loc[arm, ["flops", "seconds"]]
        table = _list_groups(measured, measured.values[place], measured.replicates[place])
        tables.append(table.assign(arm=arm, seed=OVER_SEEDS, **spent))
        for number, seed in enumerate(seeds):
            spent = measured.costs_by_seed.loc[(arm, seed), ["flops", "seconds"]]
            table = _list_groups(measured, measured.by_seed[place, number], measured.replicates_by_seed[place, number])
            tables.append(table.assign(arm=arm, seed=seed, **spent))
    rows = pd.concat(tables, ignore_index=True)
    # Drawing few seeds stretches deviations from the mean, which can carry an end past what the metric can be.
    ends = rows[["ci_low", "ci_high"]].clip(0, 1)
    return rows.assign(**ends, task=ZERO_SHOT, metric="auroc", setting="")


def _list_differences(measured: _Measured, variants: Sequence[str]) -> pd.DataFrame:
    tables = []
    for variant in variants:
        first = measured.arms.index(name_variant(CURATED, variant))
        for other in (*(name_variant(arm, variant) for arm in RANDOM), FULL):
            second = measured.arms.index(other)
            value = measured.values[first] - measured.values[second]
            table = _list_groups(measured, value, measured.replicates[first] - measured.replicates[second])
            tables.append(table.assign(arm=measured.arms[first], reference=other))
    place = {"task": DIFFERENCE, "metric": "auroc_difference", "setting": "", "seed": OVER_SEEDS}
    return pd.concat(tables, ignore_index=True).assign(**place)


def _list_groups(measured: _Measured, values: np.ndarray, replicates: np.ndarray) -> pd.DataFrame:
    low, high = interval(replicates, patients=measured.patients)
    return pd.DataFrame({"finding": measured.groups, "value": values, "ci_low": low, "ci_high": high})


def _list_savings(measured: _Measured, variants: Sequence[str]) -> pd.DataFrame:
    curated = [name_variant(CURATED, variant) for variant in variants]
    pairs = {
        (arm, other): ([arm], [*(name_variant(other, one) for one in variants), FULL])
        for arm in curated
        for other in RANDOM
    }
    pairs[CURATED, FULL] = (curated, [FULL])
    rows = []
    for (arm, other), (cheap, dear) in pairs.items():
        for cost, metric in COSTS.items():
            for group, finding in enumerate(measured.groups):
                curves = [measured.curve(side, cost, group) for side in (cheap, dear)]
                saving = measure_saving(*curves, patients=measured.patients[group])
                ends = {"value": saving.value, "ci_low": saving.ci_low, "ci_high": saving.ci_high}
                rows.append(
                    {"arm": arm, "reference": other, "metric": metric, "finding": finding, "setting": saving.state}
                    | ends
                )
    return pd.DataFrame(rows).assign(task=SAVING, seed=OVER_SEEDS)


# --- for the eye -----------------------------------------------------------------------------------------------------


def tabulate_budgets(results: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Every arm at every budget: AUROC of all findings and of each tier with intervals, and what was counted.

    Args:
        results: of `measure_budgets`, or the results table.
        costs: `chexstudy.pretraining.arms.definitions.read_costs` of the arms.

    Returns:
        One row a budget and arm, ``kept`` being the share kept; cells such as ``0.812 [0.790, 0.833]``; costs are means
        over seeds, ``compute`` the operations as a share of those of all pairs.
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
    """Whether the arms of each budget were given what they are compared at: pairs, and operations.

    Returns:
        One row a budget and seed: ``asked`` and ``kept`` pairs of the curated arm; ``pairs_trained`` of it and
        ``same_data_pairs`` of random pairs; ``same_compute_operations``, those of random batches over its own.
    """
    rows = []
    for variant, config in variants.items():
        curated, *others = (name_variant(arm, variant) for arm in (CURATED, *RANDOM))
        costs = read_costs(run, [curated, *others], seeds).set_index(["arm", "seed"])
        for seed in seeds:
            own, same_data, same_compute = (costs.loc[arm, seed] for arm in (curated, *others))
            rows.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "asked": count_budget(config.curator.budget, int((cohort.split == "train").sum())),
                    "kept": len(run.read_table(f"{arm_folder(curated, seed)}/subset.parquet")),
                    "pairs_trained": own.pairs_trained,
                    "same_data_pairs": same_data.pairs_trained,
                    "same_compute_operations": same_compute.flops / own.flops,
                }
            )
    names = ["variant", "seed", "asked", "kept", "pairs_trained", "same_data_pairs", "same_compute_operations"]
    return pd.DataFrame(rows, columns=names)


def state_differences(results: pd.DataFrame) -> list[str]:
    """Which arms the curated one is told from at each budget, in sentences.

    Args:
        results: of `measure_budgets`, or the results table.
    """
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
    """What is saved at equal performance over all findings, in words.

    Args:
        results: of `measure_budgets`, or the results table.

    Returns:
        ``arm``, ``variant``, ``reference``, ``cost``, ``saved``, ``interval`` and ``verdict``, as text.
    """
    rows = results[(results.task == SAVING) & (results.finding == MACRO)]
    costs = {metric: cost for cost, metric in COSTS.items()}
    return pd.DataFrame(
        {
            **{name: rows[name] for name in ("arm", "variant", "reference")},
            "cost": rows.metric.map(costs),
            "saved": [write_saving(row.value, row.setting) for row in rows.itertuples()],
            "interval": [write_ends(row.ci_low, row.ci_high) for row in rows.itertuples()],
            "verdict": [judge_saving(row.ci_low, row.ci_high) for row in rows.itertuples()],
        }
    ).reset_index(drop=True)


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
