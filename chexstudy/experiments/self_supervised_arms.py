"""Self-supervised arms of a study: trained beside the contrastive ones, on all images, random or curated, and judged.

They see images alone, and no label: heads on their frozen encoders tell what they have learned. Every arm starts from
one encoder, and those on a subset from one warm-up. As many images as the curator keeps are given to random choice and
to the methods of `chexstudy.curation.methods`, which choose by what the teacher of the warm-up sees. Scoring an image
takes one plain view, a few hundredths of a step on it, so that equal images are equal compute but for that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import torch

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.recipes import HeadPlan
from chexstudy.evaluation.adaptation.run import adapt_arms, compare_adaptation, measure_adaptation
from chexstudy.evaluation.adaptation.training import Recipe
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.encoders import load_encoder
from chexstudy.evaluation.scores import MACRO
from chexstudy.evaluation.task import add_costs
from chexstudy.experiments.pretrained_starts import time_images
from chexstudy.pretraining.arms.definitions import (
    arm_folder,
    find_arm,
    name_arms,
    name_method_arm,
    name_untrained,
    name_variant,
    read_costs,
    subset_artifact,
)
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig, list_variables, read_constants
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.self_supervision.collapse import Verdict, judge_training
from chexstudy.pretraining.training.subsets import choose_training_subset
from chexstudy.results import COLUMNS, OVER_SEEDS, join_rows
from chexstudy.runs import Run

VARIANT = "self_supervised"
TASK, DIFFERENCE = "self_supervision", "self_supervision_difference"
RESOLUTION, SECONDS = "self_supervision_resolution", "seconds_an_image"
SOURCE, SOURCE_DIFFERENCE = "self_supervision_source", "self_supervision_source_difference"
CURATED, RANDOM = (name_variant(arm, VARIANT) for arm in ("curated", "random_same_data"))
UNTRAINED = name_variant("untrained", VARIANT)
OF_SOURCE = f"{VARIANT}_source"  # variant of arms that see images of one source, or as many of all
ALL_SOURCES = "all_sources"
POOLED = name_variant(name_method_arm(ALL_SOURCES), OF_SOURCE)
ARMS = (
    *("full", "random_same_compute", "random_same_data", "curated"),
    *("by_budgeted", "by_hierarchical", "by_semdedup"),
)
# Tuned as a whole from the same start, an encoder is what labels alone make of it.
SUPERVISED = "full"
_OF_THE_STUDY = {
    *("super_batch", "curation_epochs", "threads", "precision", "fixed_streams"),
    *(constant.name for constant in fields(CuratorConfig)),
}


def plan_self_supervision(study: PretrainingConfig, constants: Sequence[str]) -> PretrainingConfig:
    """The constants of self-supervised arms: the study's curator, and what else is given as ``name=value``."""
    of_study = [one for one in list_variables(study, ())["constants"] if one.partition("=")[0] in _OF_THE_STUDY]
    return read_constants({"constants": [f"objective={VARIANT}", *of_study, *constants]})


def train_self_supervised(
    run: Run,
    arms: Sequence[str],
    seeds: Sequence[int],
    config: PretrainingConfig,
    device: str = "auto",
    workers: int = 1,
) -> list[str]:
    """Train arms such as ``full``, ``curated`` or ``by_semdedup`` on images alone, or all `ARMS` if none is named.

    Finished ones are skipped. Gives their names in the study, the encoder that they start from first.
    """
    named = [name_variant(arm, VARIANT) for arm in arms or ARMS]
    chosen = {name: find_arm(name).method for name in named}
    variants, options = {VARIANT: config}, {"device": device, "workers": workers}
    others = [name for name in named if not chosen[name]]
    needed = [CURATED] * any(chosen.values())
    train_arms(run, [*others, *needed, name_untrained(config)], seeds, config, variants=variants, **options)
    methods = [method.partition(".")[0] for method in chosen.values() if method]
    for seed in seeds if methods else ():
        kept = len(run.read_table(f"{arm_folder(CURATED, seed)}/subset.parquet"))
        for method in methods:
            choose_training_subset(run, method, seed, config, kept, device)
    if methods:
        offline = [name for name in named if chosen[name]]
        train_arms(run, offline, seeds, config, variants=variants, **options)
    return [name_untrained(config), *named]


def name_source(source: str) -> str:
    """The arm that sees one source's images, without its variant."""
    return name_method_arm(re.sub(r"\W", "_", str(source)))


def train_by_source(
    run: Run,
    cohort: pd.DataFrame,
    column: str,
    seeds: Sequence[int],
    config: PretrainingConfig,
    device: str = "auto",
    workers: int = 1,
) -> list[str]:
    """Train an arm on each source's images, and one on as many of all: as many as the smallest source has.

    All take the same number of steps from the same start, without a warm-up, which would show them every source.
    Sources are the values of a column; one with fewer images than a batch has no arm of its own.

    Gives the start and the arms; the start alone where there are fewer than two sources.
    """
    training = cohort[cohort.split == "train"]
    if column not in training:
        raise StudyError(f"the cohort has no column {column!r} to tell sources by: use source, view or sex.")
    sources = training[column].map(name_source)
    sizes = sources.value_counts().sort_index()
    sizes = sizes[sizes >= config.batch_size]
    if len(sizes) < 2:
        return [name_untrained(config)]
    drawn_from = {arm: training.image_id[sources == arm] for arm in sizes.index}
    drawn_from |= {name_method_arm(ALL_SOURCES): training.image_id}
    own = replace(config, warm_up_epochs=0, subset_epochs=config.warm_up_epochs + config.subset_epochs)
    for seed in seeds:
        generator = RandomStreams(seed, config.fixed_streams).generator("subset")
        for arm, images in drawn_from.items():
            rows = torch.randperm(len(images), generator=generator)[: int(sizes.min())].sort().values
            subset = pd.DataFrame({"image_id": images.iloc[rows.numpy()], "weight": 1.0})
            run.write_table(subset_artifact(find_arm(name_variant(arm, OF_SOURCE)).method, seed), subset)
    arms = [name_variant(arm, OF_SOURCE) for arm in drawn_from]
    train_arms(run, [*arms, name_untrained(config)], seeds, config, device, workers, {OF_SOURCE: own})
    return [name_untrained(config), *arms]


def read_histories(run: Run, arms: Sequence[str], seed: int) -> dict[str, pd.DataFrame]:
    """The steps of trained arms by name, those of the warm-up among those of an arm that starts with it."""
    return {arm: run.read_table(f"{arm_folder(arm, seed)}/history.parquet") for arm in arms if arm != UNTRAINED}


def judge_arms(histories: Mapping[str, pd.DataFrame], config: PretrainingConfig) -> dict[str, Verdict]:
    """How each training of `read_histories` ended."""
    share = config.self_supervision.temperature_share
    return {arm: judge_training(history, share, len(history)) for arm, history in histories.items()}


def plan_supervision(epochs: int) -> list[HeadPlan]:
    """The start tuned as a whole, on labels alone; none where there are no epochs."""
    rates = (3e-4, 1e-3)
    return [HeadPlan(SUPERVISED, options={"epochs": epochs, "learning_rates": rates})] if epochs else []


def judge_encoders(
    evaluation: Evaluation,
    arms: Sequence[str],
    seeds: Sequence[int],
    probes: Sequence[HeadPlan],
    supervised: Sequence[HeadPlan] = (),
    workers: int = 1,
    reference: str = RANDOM,
    tasks: tuple[str, str] = (TASK, DIFFERENCE),
) -> pd.DataFrame:
    """AUROC and average precision of every head on every encoder, and each encoder minus a reference and untrained.

    Arms are those of `train_self_supervised`, with contrastive ones to hold them against, or of `train_by_source`;
    ``supervised`` heads tune the encoder of the first. Gives rows of the results table under the ``tasks`` of values
    and differences; none for a cohort without labels, or where nothing was trained.
    """
    if not evaluation.findings or len(arms) < 2:
        return pd.DataFrame(columns=COLUMNS)
    adapt_arms(evaluation, arms, seeds, probes, workers)
    adapt_arms(evaluation, arms[:1], seeds, supervised, workers)
    values = join_rows(
        measure_adaptation(evaluation, arms, seeds, probes), measure_adaptation(evaluation, arms[:1], seeds, supervised)
    )
    values = add_costs(values.drop(columns=["flops", "seconds"]), read_costs(evaluation.run, arms, seeds))
    pairs = [
        ((arm, probe), (other, probe))
        for other in (reference, arms[0])
        if other in arms
        for arm in arms
        if arm != other and not (arm == arms[0] and other == reference)
        for probe in probes
    ]
    differences = compare_adaptation(evaluation, seeds, pairs)
    names = {f"adaptation{end}": task for end, task in zip(("", "_difference"), tasks, strict=True)}
    rows = join_rows(values, differences)
    return name_arms(rows.assign(task=rows.task.map(names)))


def compare_sides(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], sides: Sequence[int], recipe: Recipe
) -> pd.DataFrame:
    """The linear probe on encoders that look at images of each side in pixels, and the seconds that an image takes.

    Encoders stay as they were trained: positions are interpolated. Gives rows of the results table, the side in
    ``setting``; none for a cohort without labels. No sides are three that suit encoder and images.
    """
    if not evaluation.findings:
        return pd.DataFrame(columns=COLUMNS)
    encoder, stored = load_encoder(evaluation.run, arms[0], seeds[0]), evaluation.store.size
    own, patch = encoder.image_size, encoder.model.config.patch_size
    # Half of what the encoder was trained at, that, and all that is stored.
    sides = sides or sorted({max(side // patch, 1) * patch for side in (own // 2, own, stored) if side <= stored})
    if above := [side for side in sides if side > stored]:
        raise StudyError(
            f"images are stored at {stored} pixels a side, and {above[0]} would show no more: build the cohort with a "
            f"larger image_size, or leave {above[0]} out."
        )
    plans = [HeadPlan("linear", f"{side}px", recipe=recipe, side=side) for side in dict.fromkeys(sides)]
    adapt_arms(evaluation, arms, seeds, plans)
    rows = measure_adaptation(evaluation, arms, seeds, plans)
    rows = rows.assign(setting=rows.variant.str.removesuffix("px"))
    once = rows[(rows.finding == MACRO) & (rows.metric == "auroc") & (rows.seed == seeds[0])]
    once = once[once.data_set == evaluation.main_test_set()]
    seconds = [
        time_images(
            load_encoder(evaluation.run, row.arm, row.seed).at_size(int(row.setting)),
            evaluation.store,
            evaluation.training,
        )
        for row in once.itertuples()
    ]
    timed = once.assign(value=seconds, metric=SECONDS, finding="all", ci_low=np.nan, ci_high=np.nan, seed=OVER_SEEDS)
    return name_arms(join_rows(rows, timed).assign(task=RESOLUTION))
