"""Methods of curation against each other: what each kept, how stable it is, and how well what is trained on it ranks.

A method is compared twice. At the *same data* every arm is trained on as many pairs for as many epochs. At the *same
compute* every arm spends the operations of the curated arm, the pass that scored the pairs included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import t as student

from chexstudy.cohort.prevalence import TIERS, measure_prevalence, prevalence_tiers
from chexstudy.cohort.table import finding_columns
from chexstudy.curation.choice import Choice
from chexstudy.curation.quality.overlap import compare_selections
from chexstudy.curation.quality.subset_metrics import ALL, measure_kept
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation, tell_exposure
from chexstudy.evaluation.image_text.zero_shot import ZeroShot
from chexstudy.evaluation.scores import MACRO
from chexstudy.evaluation.task import add_costs, list_values, measure_tasks, run_tasks
from chexstudy.pretraining.arms.definitions import find_arm, name_arms, name_method_arm, read_costs, subset_artifact
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.training.scoring import read_scores as read_pair_scores
from chexstudy.pretraining.training.subsets import BASELINE
from chexstudy.progress import progress
from chexstudy.results import COLUMNS, OVER_SEEDS
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import CONFIDENCE, RESAMPLES, difference_p_values
from chexstudy.statistics.multiple_testing import correct_by_holm
from chexstudy.steps import find_step

SAME_DATA, SAME_COMPUTE = "same_data", "same_compute"
KEPT, ZERO_SHOT, DIFFERENCE = "method_curation", "method_zero_shot", "method_zero_shot_difference"
P_VALUE, P_HOLM = "auroc_difference_p", "auroc_difference_p_holm"
STABILITY = "jaccard_across_seeds"
# Two trainings that differ by less than this share of operations are one.
SAME_TRAINING = 0.03
_CURATED = "curated"
_IDENTITY = ["arm", "metric", "finding"]
_WITHOUT_PATIENTS = ("redundancy", "coverage_radius")


def read_choices(run: Run, methods: Sequence[str], seed: int, image_ids: Sequence[str]) -> dict[str, Choice]:
    """What each method chose for a seed, with the rows of ``image_ids``."""
    choices, rows_of = {}, pd.Index(image_ids)
    for method in methods:
        name = subset_artifact(method, seed)
        subset = run.read_table(name)
        scores = run.read_table(name.replace("subset.parquet", "scores.parquet"))
        if set(scores.image_id) != set(image_ids):
            raise StudyError(f"{name} was chosen from other pairs than the study has now: run {find_step(name)} again.")
        places = rows_of.get_indexer(subset.image_id)
        order = np.argsort(places)
        values = scores.set_index("image_id").score.loc[list(image_ids)].to_numpy(dtype=np.float64)
        choices[method] = Choice(places[order], values, subset.weight.to_numpy()[order])
    return choices


def measure_methods_kept(
    run: Run,
    cohort: pd.DataFrame,
    methods: Sequence[str],
    seeds: Sequence[int],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """`chexstudy.curation.quality.subset_metrics.measure_kept` of every method and seed, then over seeds.

    Neighbours are those of the features the methods were given; the same patients are drawn for every method. On a
    cohort without labels or without a known truth the measures that need them are left out.

    Gives rows of the results table with the arm ``by_<method>``; seed -1 is over seeds, see `summarise_seeds`.
    """
    train = cohort[cohort.split == "train"].reset_index(drop=True)
    tiers = prevalence_tiers(measure_prevalence(train)).to_dict() if finding_columns(train) else None
    truth = None
    if run.has("truth.parquet"):
        truth = run.read_table("truth.parquet").set_index("image_id").loc[train.image_id].reset_index()
    tables = []
    for one in seeds:
        scores = read_pair_scores(run, one)
        if list(scores.image_ids) != list(train.image_id):
            step = find_step("curation/")
            raise StudyError(f"the scores of seed {one} are of other pairs than the study has now: run {step} again.")
        choices = read_choices(run, methods, one, train.image_id)
        for method, choice in progress(choices.items(), len(choices), f"seed {one}, what was kept"):
            about = train, tiers, truth, train.patient_id
            rows = measure_kept(choice.kept, scores.features, *about, np.random.default_rng(seed), resamples)
            tables.append(rows.assign(arm=name_method_arm(method), seed=one))
    by_seed = pd.concat(tables, ignore_index=True)
    rows = pd.concat([by_seed, summarise_seeds(by_seed)], ignore_index=True)
    return rows.assign(study=run.study, **_place_kept(cohort))


def _place_kept(cohort: pd.DataFrame) -> dict[str, str]:
    source = cohort.source[cohort.split == "train"].iloc[0]
    return {"task": KEPT, "data_set": f"{source}/train", "setting": SAME_DATA, "exposure": "seen"}


def summarise_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of what was kept, with intervals that hold patients and seeds.

    The two sources of error are independent and are added in quadrature: the mean reach of the seeds' own intervals,
    which draw patients and which the seeds share; and Student's t interval of the mean over seeds, which with few seeds
    is wide. What has no interval of patients, such as distances, has that of seeds alone, or none with one seed.

    Gives one row an arm, metric and finding, with seed -1; n and positives are means, rounded.
    """
    summaries = []
    for identity, of_seeds in rows.groupby(_IDENTITY, sort=False):
        metric, values = identity[1], of_seeds.value.dropna()
        in_patients, ends = metric not in _WITHOUT_PATIENTS, np.full(2, np.nan)
        if metric != "keep_ratio" and (in_patients or len(values) > 1):
            sides = of_seeds.value - of_seeds.ci_low, of_seeds.ci_high - of_seeds.value
            of_patients = [side.mean(skipna=False) if in_patients else 0.0 for side in sides]
            ends = values.mean() + np.array([-1, 1]) * np.hypot(of_patients, _reach_of_mean(values))
        if in_patients:
            ends = np.clip(ends, 0, np.inf if metric == "enrichment" else 1)
        row = dict(zip((*_IDENTITY, "value", "ci_low", "ci_high"), (*identity, values.mean(), *ends), strict=True))
        summaries.append(row | {name: round(of_seeds[name].mean()) for name in ("n", "positives")})
    return pd.DataFrame(summaries).assign(seed=OVER_SEEDS)


def _reach_of_mean(values: pd.Series) -> float:
    if len(values) < 2:
        return 0.0
    return float(student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * values.std() / np.sqrt(len(values)))


def measure_stability(run: Run, cohort: pd.DataFrame, methods: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """How alike a method's choices are from seed to seed: another warm-up and other draws.

    Means over pairs of seeds by method, and ``comparisons``, their number; no row with one seed.
    """
    image_ids = cohort.image_id[cohort.split == "train"].to_numpy()
    choices = {seed: read_choices(run, methods, seed, image_ids) for seed in seeds}
    measures = ["jaccard", "jaccard_by_chance", "rank_correlation"]
    rows = {}
    for method in methods if len(seeds) > 1 else ():
        compared = compare_selections({f"seed {seed}": choices[seed][method] for seed in seeds})
        rows[method] = compared[measures].mean().to_dict() | {"comparisons": len(compared)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*measures, "comparisons"])
    return table.rename_axis("method")


def list_stability(stability: pd.DataFrame, cohort: pd.DataFrame) -> pd.DataFrame:
    """`measure_stability` as rows of the results table."""
    rows = stability[["jaccard", "comparisons"]].set_axis(["value", "n"], axis=1).astype({"n": int})
    place = {"finding": ALL, "metric": STABILITY, "seed": OVER_SEEDS, "ci_low": np.nan, "ci_high": np.nan}
    arms = [name_method_arm(method) for method in stability.index]
    return rows.assign(arm=arms, positives=-1, **place, **_place_kept(cohort)).reset_index(drop=True)


def compare_methods(run: Run, cohort: pd.DataFrame, methods: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Jaccard index of what two methods keep, mean over seeds, as a square table; the diagonal is 1."""
    image_ids = cohort.image_id[cohort.split == "train"].to_numpy()
    total = pd.DataFrame(np.eye(len(methods)) * len(seeds), index=list(methods), columns=list(methods))
    for seed in seeds if len(methods) > 1 else ():
        for row in compare_selections(read_choices(run, methods, seed, image_ids)).itertuples():
            total.loc[row.first, row.second] += row.jaccard
            total.loc[row.second, row.first] += row.jaccard
    return total / len(seeds)


def plan_same_compute(costs: pd.DataFrame, methods: Sequence[str]) -> dict[str, str]:
    """The arm of each method that spends what the curated arm spent, by the costs of both at the same data.

    Where the arm trained on the same data spends nearly as much already, it is that arm, and nothing is trained twice.
    """
    flops = costs.groupby("arm").flops.mean()
    share = {method: flops[name_method_arm(method)] / flops[_CURATED] for method in methods}
    return {method: name_method_arm(method, matched=abs(share[method] - 1) > SAME_TRAINING) for method in methods}


def train_methods(
    run: Run,
    cohort: pd.DataFrame,
    methods: Sequence[str],
    seeds: Sequence[int],
    config: PretrainingConfig,
    device: str = "auto",
    workers: int = 1,
) -> dict[str, dict[str, str]]:
    """Train on every method's subset at the same data, and at the same compute where that is another training.

    Gives the arm of each method by kind of budget; none for a cohort without labels, where no model could be judged.
    """
    if not finding_columns(cohort):
        return {}
    same_data = {method: name_method_arm(method) for method in methods}
    arms = [_CURATED, *same_data.values()]
    train_arms(run, arms, seeds, config, device, workers)
    same_compute = plan_same_compute(read_costs(run, arms, seeds), methods)
    anew = sorted(set(same_compute.values()) - set(same_data.values()))
    print(f"trained anew for the same compute: {', '.join(anew) or 'none'}")
    if anew:
        train_arms(run, anew, seeds, config, device, workers)
    return {SAME_DATA: same_data, SAME_COMPUTE: same_compute}


def compare_spending(run: Run, budgets: Mapping[str, Mapping[str, str]], seeds: Sequence[int]) -> pd.DataFrame:
    """What each method's arms spent, means over seeds; no row for `train_methods` of no arm.

    Pairs are those at the same data; at the ``same_data`` and the ``same_compute`` stand the operations over those of
    the curated arm.
    """
    rows = []
    for method in budgets.get(SAME_DATA, ()):
        arms = {kind: of_methods[method] for kind, of_methods in budgets.items()}
        mean = read_costs(run, {_CURATED, *arms.values()}, seeds).groupby("arm").mean(numeric_only=True)
        counts = mean.loc[arms[SAME_DATA], ["pairs_scored", "pairs_trained"]].to_dict()
        shares = {kind: mean.flops[arm] / mean.flops[_CURATED] for kind, arm in arms.items()}
        rows.append({"method": method} | counts | shares)
    return pd.DataFrame(rows, columns=["method", "pairs_scored", "pairs_trained", SAME_DATA, SAME_COMPUTE])


def measure_methods_zero_shot(
    evaluation: Evaluation, arms: Mapping[str, Mapping[str, str]], seeds: Sequence[int], workers: int = 1
) -> pd.DataFrame:
    """Zero-shot AUROC and average precision of every method's arms, and their AUROC minus that of the baseline's.

    Differences are paired by patient and seed, those of findings and those of the macro mean and the tiers. For the
    latter there are p values too, two-sided, from the spread of the bootstrap and Student's t with one degree less than
    the patients that the difference rests on, as the intervals are; and p values corrected by Holm over the methods
    compared with the baseline, for each group of findings and each kind of budget.

    Gives rows of the results table: per seed, over seeds (-1), and differences; ``setting`` is the kind of budget.
    """
    if not arms:
        return pd.DataFrame(columns=COLUMNS)
    run, data_set = evaluation.run, evaluation.main_test_set()
    every = list(dict.fromkeys(arm for of_methods in arms.values() for arm in of_methods.values()))
    run_tasks(evaluation, [ZeroShot()], every, seeds, workers, data_set)
    measured = measure_tasks(evaluation, [ZeroShot()], every, seeds, workers, [data_set])
    rows = list_values(evaluation, measured, [ZeroShot()], every, seeds)
    rows = add_costs(rows, read_costs(run, every, seeds)).assign(task=ZERO_SHOT)
    tables = []
    for kind, of_methods in arms.items():
        tables.append(rows[rows.arm.isin(of_methods.values())].assign(setting=kind))
        baseline = of_methods[BASELINE]
        differences = [
            _subtract_baseline(evaluation, measured, arm, baseline, data_set)
            for method, arm in of_methods.items()
            if method != BASELINE
        ]
        if differences:
            rows_of_kind = pd.concat(differences, ignore_index=True)
            p_values = rows_of_kind[(rows_of_kind.metric == P_VALUE) & rows_of_kind.value.notna()]
            corrected = p_values.groupby("finding").value.transform(lambda one: correct_by_holm(one.to_numpy()))
            p_values = p_values.assign(metric=P_HOLM, value=corrected)
            tables += [one.assign(setting=kind) for one in (rows_of_kind, p_values)]
    exposure = tell_exposure(evaluation, every[0], seeds[0], data_set)
    rows = name_arms(pd.concat(tables, ignore_index=True))
    return rows.assign(study=run.study, data_set=data_set, exposure=exposure)


def _subtract_baseline(evaluation: Evaluation, measured, arm: str, baseline: str, data_set: str) -> pd.DataFrame:
    (first,), (second,) = (measured["zero_shot", one, data_set] for one in (arm, baseline))
    _, generator = evaluation.draw_patients(evaluation.test_sets()[data_set])
    difference = first.subtract(second, generator)
    auroc = first.list_difference(difference).query("metric == 'auroc_difference'")
    groups = slice(first.findings, None)
    of_groups = {name: getattr(difference, name)[0, groups] for name in ("value", "ci_low", "ci_high")}
    of_groups["replicates"] = difference.replicates[:, 0, groups]
    values = difference_p_values(replace(difference, **of_groups), first.patients[groups])
    p_values = auroc[groups].assign(metric=P_VALUE, value=values, ci_low=np.nan, ci_high=np.nan)
    rows = pd.concat([auroc, p_values], ignore_index=True)
    return rows.assign(arm=arm, reference=baseline, seed=OVER_SEEDS, task=DIFFERENCE)


FIGURE_METRICS = ("rare_recall", "redundancy", "coverage_radius", "knn_coverage", "mismatched_kept", "junk_kept")


def tabulate_comparison(results: pd.DataFrame, metrics: Sequence[str] = FIGURE_METRICS) -> pd.DataFrame:
    """Every method by every measure over seeds, as `chexstudy.plots.curators` draws it.

    AUROC is always there; measures that the study could not take are left out.

    Gives ``method, metric, measure, ci_low, ci_high, budget_kind, seeds, n``.
    """
    of_methods = results[results.task.isin([KEPT, ZERO_SHOT])]
    if of_methods.empty:
        raise StudyError(f"no method was measured: run {find_step('curation/')} first.")
    rows = of_methods[of_methods.seed == OVER_SEEDS]
    kept = rows[(rows.task == KEPT) & rows.metric.isin(metrics)]
    trained = rows[(rows.task == ZERO_SHOT) & (rows.metric == "auroc") & rows.finding.isin([MACRO, *TIERS])]
    trained = trained.assign(metric="auroc_" + trained.finding)
    rows = pd.concat([kept, trained], ignore_index=True).rename(columns={"value": "measure", "setting": "budget_kind"})
    seeds = of_methods.seed[of_methods.seed != OVER_SEEDS].nunique()
    table = rows.assign(method=[find_arm(arm).method for arm in rows.arm], seeds=seeds)
    columns = ["method", "metric", "measure", "ci_low", "ci_high", "budget_kind", "seeds", "n"]
    return table[columns].dropna(subset=["measure"], ignore_index=True)
