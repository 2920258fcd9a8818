"""Variants of the curated arm that are trained: the curator meets a model that learns from what it keeps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.curation.records.ledger import measure_churn, read_ledger
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.image_text.evaluate import evaluate_arms
from chexstudy.evaluation.image_text.prompts import CHOSEN
from chexstudy.evaluation.scores import MACRO, METRICS
from chexstudy.experiments.curator_ablation import RARE_TIER, REFERENCE, KeptMeasure, Setting, measure_kept_sets
from chexstudy.pretraining.arms.definitions import require_current_arm
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.training.arm_run import is_trained
from chexstudy.pretraining.training.scoring import Scores
from chexstudy.progress import progress
from chexstudy.results import COLUMNS, OVER_SEEDS
from chexstudy.runs import Run

ZERO_SHOT, ZERO_SHOT_DIFFERENCE = "ablation_zero_shot", "ablation_zero_shot_difference"


def list_variants(reference: PretrainingConfig) -> list[Setting]:
    """The settings that are trained, the reference first."""
    slow, budgeted = reference.learning_rate / 10, {"rule": "budgeted"}
    variants = [
        Setting(REFERENCE, "Rule", "published"),
        Setting("budgeted", "Rule", "budgeted", budgeted),
        Setting("budgeted_outliers_kept", "Rule", "budgeted, outliers kept", budgeted | {"outlier_policy": "keep"}),
        Setting("outliers_kept", "Outliers", "keep", {"outlier_policy": "keep"}),
        Setting("two_epochs", "Curation epochs", "2", {"curation_epochs": 2}),
        Setting("three_epochs", "Curation epochs", "3", {"curation_epochs": 3}),
        Setting("after_step", "Prototypes move", "after the step", {"update_timing": "after_step"}),
    ]
    factor = "Learning-rate schedule"
    if reference.schedule == "published":
        # The published schedule has no rate of its own for curating.
        return [*variants, Setting("schedule_held", factor, "held, then cosine", {"schedule": "hold_then_cosine"})]
    low_rate = {"curation_learning_rate": slow}
    return [
        *variants,
        Setting("low_rate", "Learning rate while curating", f"{slow:g}", low_rate),
        Setting("schedule_published", factor, "published", {"schedule": "published"}),
    ]


def choose_variants(names: Sequence[str], reference: PretrainingConfig) -> list[Setting]:
    """The named variants, or all; the reference, with which they are compared, is always among them and first."""
    known = {variant.name: variant for variant in list_variants(reference)}
    for name in names:
        if name not in known:
            raise StudyError(f"unknown variant {name!r}; there are {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys([REFERENCE, *(names or known)])]


def train_variants(
    run: Run,
    variants: Sequence[Setting],
    seeds: Sequence[int],
    reference: PretrainingConfig,
    device: str = "auto",
    workers: int = 1,
) -> None:
    """Train what is not trained yet, each variant of the reference as the arm of its name, by the same processes."""
    configs = {variant.name: variant.apply(reference) for variant in variants}
    # An arm that lacks one seed is asked for with all; what is finished costs a look.
    arms = [one.arm for one in variants if not all(is_trained(run, one.arm, seed, configs[one.name]) for seed in seeds)]
    if arms:
        train_arms(run, arms, seeds, reference, device, workers, configs)


def measure_variants(
    run: Run, seed: int, variants: Sequence[Setting], scores: Scores, measure: KeptMeasure
) -> pd.DataFrame:
    """What every trained variant, the reference first, has kept; kept in ``ablation/seed<k>/variants.parquet``.

    Coverage and redundancy are those under the seed's warm-up, the same model for all variants.
    """
    subsets = {one.name: f"{require_current_arm(run, one.arm, seed)}/subset.parquet" for one in variants}

    def compute() -> list[pd.DataFrame]:
        ids = pd.Index(scores.image_ids)
        kept = {name: ids.isin(run.read_table(subset).image_id) for name, subset in subsets.items()}
        baseline = next(iter(kept.values()))
        return [
            measure.measure(own, scores.features, baseline).assign(setting=name)
            for name, own in progress(kept.items(), len(kept), f"seed {seed}, variants")
        ]

    parameters, inputs = {"variants": list(subsets)}, tuple(subsets.values())
    return measure_kept_sets(run, "variants", seed, parameters, inputs, measure, compute)


def summarise_churn(run: Run, variants: Sequence[Setting], seeds: Sequence[int]) -> pd.DataFrame:
    """How decisions change between epochs of curation, means over seeds by variant and epoch (`measure_churn`)."""
    tables = {(one.name, seed): measure_churn(read_ledger(run, one.arm, seed)) for one in variants for seed in seeds}
    churn = pd.concat(tables, names=["variant", "seed", None])
    return churn.groupby(["variant", "epoch"])[["readmitted_share", "newly_dropped_share", "differ"]].mean()


def evaluate_variants(
    evaluation: Evaluation, variants: Sequence[Setting], seeds: Sequence[int], workers: int = 1
) -> pd.DataFrame:
    """Zero-shot classification of trained variants, and of each minus the reference, which is the first.

    Gives rows of the results table for means over findings (all, and by tier), under tasks of their own. None where the
    cohort has no labels.
    """
    if not evaluation.findings:
        return pd.DataFrame(columns=COLUMNS)
    arms = [variant.arm for variant in variants]
    rows = evaluate_arms(evaluation, arms, seeds, references=arms[:1], workers=workers)
    rows = rows[rows.finding.isin((MACRO, *TIERS))]
    scored = rows[(rows.task == "zero_shot") & rows.metric.isin(METRICS)]
    differences = rows[rows.task == "zero_shot_difference"]
    # There the reference comes first; here it is what the variant is compared with.
    differences = differences.assign(
        variant=differences.reference,
        reference=differences.variant,
        value=-differences.value,
        ci_low=-differences.ci_high,
        ci_high=-differences.ci_low,
    )
    tasks = [scored.assign(task=ZERO_SHOT), differences.assign(task=ZERO_SHOT_DIFFERENCE)]
    return pd.concat(tasks, ignore_index=True)


def summarise_variants(results: pd.DataFrame, data_set: str) -> pd.DataFrame:
    """AUROC of the variants over seeds, as `tabulate_settings` takes it: ``auroc`` of all findings, ``auroc_tail``."""
    columns = ["setting", "metric", "finding", "value", "ci_low", "ci_high", "seeds"]
    chosen = (results.task == ZERO_SHOT) & (results.setting == CHOSEN) & (results.metric == "auroc")
    rows = results[chosen & (results.data_set == data_set) & results.finding.isin((MACRO, RARE_TIER))]
    seeds = rows.seed[rows.seed != OVER_SEEDS].nunique()
    rows = rows[rows.seed == OVER_SEEDS]
    metric = np.where(rows.finding == MACRO, "auroc", "auroc_tail")
    return rows.assign(setting=rows.variant, metric=metric, seeds=seeds)[columns]


def list_differences(results: pd.DataFrame, data_set: str) -> pd.DataFrame:
    """Each variant minus the reference, over seeds: AUROC of all findings and of each tier, for the eye."""
    columns = ["variant", "finding", "value", "ci_low", "ci_high", "n"]
    wanted = (results.task == ZERO_SHOT_DIFFERENCE) & (results.metric == "auroc_difference")
    return results.loc[wanted & (results.data_set == data_set) & results.value.notna(), columns].reset_index(drop=True)
