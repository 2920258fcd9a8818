"""Adapt trained encoders to labels: fit heads, keep their scores, measure them, and compare on the same patients.

Heads see the training and the validation split alone; test splits are only scored. Scores of every head are kept, one
table an encoder, seed, head and test set, and current ones are not computed again: a killed run goes on where it was.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chexstudy.cohort.table import label_matrix
from chexstudy.encoders.frozen_features import FrozenFeatures, drop_patches, freeze_features
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.glori import GloriHead
from chexstudy.evaluation.adaptation.linear import LinearHead
from chexstudy.evaluation.adaptation.recipes import HeadPlan, Pair, fit_plan
from chexstudy.evaluation.adaptation.training import FittedHead
from chexstudy.evaluation.context import Evaluation, load_arm, tell_exposure, work_apart
from chexstudy.evaluation.scores import (
    MACRO,
    compare_scores,
    measure_each_seed,
    read_scores,
    scores_artifact,
    write_scores,
)
from chexstudy.pretraining.arms.definitions import require_current_arm
from chexstudy.results import COLUMNS, OVER_SEEDS
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import bootstrap_patients
from chexstudy.steps import find_step

ADAPTATION = "adaptation"
ADAPTATION_DIFFERENCE = "adaptation_difference"
SMALL_LESIONS = "small lesions"
_INPUTS = ("cohort.parquet", "pixels/index.parquet")
_CLASSES = {kind.__name__: kind for kind in (LinearHead, GloriHead)}


def scores_task(head: str) -> str:
    """The task under which the scores of a head are kept: ``adaptation_glori_v1``."""
    return f"{ADAPTATION}_{head}"


def _head_folder(arm: str, seed: int, head: str) -> str:
    return f"heads/{arm}/seed{seed}/{head}"


def _features_name(arm: str, seed: int) -> str:
    return f"{arm}/seed{seed}"


def freeze_arm(evaluation: Evaluation, arm: str, seed: int, patches: bool) -> FrozenFeatures:
    """Frozen features of a trained arm's image encoder for every image of the cohort, ``features/<arm>/seed<k>``."""
    encoder = load_arm(evaluation.run, arm, seed).image_tower.encoder
    return freeze_features(
        evaluation.run,
        _features_name(arm, seed),
        encoder,
        evaluation.cohort.image_id.tolist(),
        evaluation.store,
        patches=patches,
        device=evaluation.device,
    )


@dataclass(frozen=True)
class _Job:
    """What one process does: the heads of one arm and seed."""

    plans: tuple[HeadPlan, ...]
    keep_patches_of: tuple[str, int]

    def __call__(self, evaluation: Evaluation, arm: str, seed: int) -> None:
        adapt_arm(evaluation, arm, seed, self.plans)
        name = _features_name(arm, seed)
        if (arm, seed) != self.keep_patches_of and evaluation.run.has(f"features/{name}/layout.json"):
            drop_patches(evaluation.run, name)


def adapt_arm(evaluation: Evaluation, arm: str, seed: int, plans: Sequence[HeadPlan]) -> None:
    """Fit heads on one arm's encoder and keep their scores on every test set; those that are current are left.

    The arm's seed is also that of the heads.
    """
    run, cohort, findings = evaluation.run, evaluation.cohort, evaluation.findings
    if not plans:
        return
    if not findings:
        raise StudyError("the cohort has no labels to adapt to: add a column for each finding.")
    folder = require_current_arm(run, arm, seed)
    inputs = (*_INPUTS, f"{folder}/compute.json")
    left = [plan for plan in plans if not _is_scored(evaluation, arm, seed, plan, inputs)]
    if not left:
        return
    encoder = load_arm(run, arm, seed).image_tower.encoder
    features = freeze_arm(evaluation, arm, seed, any(plan.needs_patches for plan in left))
    splits = [cohort[cohort.split == split] for split in ("train", "validate")]
    for plan in left:
        start = time.perf_counter()
        fitted, score = fit_plan(plan, features, encoder, evaluation.store, *splits, findings, seed, evaluation.device)
        folder = _head_folder(arm, seed, plan.name)
        files = _save_head(run, folder, fitted) if isinstance(fitted, FittedHead) else ()
        run.write_json(f"{folder}/cost.json", {"seconds": time.perf_counter() - start})
        for data_set, rows in evaluation.test_sets().items():
            place = {"arm": arm, "seed": seed, "task": scores_task(plan.name), "data_set": data_set}
            name = write_scores(run, score(rows.image_id.tolist()), rows.image_id, findings, **place)
            run.record(name, _parameters(plan), inputs, seed, files=(*files, f"{folder}/cost.json"))


def _save_head(run: Run, folder: str, fitted: FittedHead) -> tuple[str, str]:
    """Keep the weights of a trained head and what is needed to build it again; the names of the artifacts."""
    state = {key: value.detach().cpu().contiguous() for key, value in fitted.head.state_dict().items()}
    with run.writing(f"{folder}/head.safetensors") as temporary:
        save_file(state, temporary)
    record = {
        "head": {"class": type(fitted.head).__name__, "settings": fitted.head.settings},
        "learning_rate": fitted.learning_rate,
        "validation": fitted.validation.astype(object).where(fitted.validation.notna(), None).to_dict("records"),
        "encoder": fitted.encoder,
        "findings": fitted.findings,
    }
    run.write_json(f"{folder}/head.json", record)
    return f"{folder}/head.json", f"{folder}/head.safetensors"


def load_head(run: Run, arm: str, seed: int, head: str) -> FittedHead:
    """Read a head trained by gradient that `adapt_arm` kept, ``head`` being the name of its plan."""
    folder = _head_folder(arm, seed, head)
    record = run.read_json(f"{folder}/head.json")
    weights = run.require(f"{folder}/head.safetensors")
    try:
        built = _CLASSES[record["head"]["class"]](**record["head"]["settings"], generator=torch.Generator())
        built.load_state_dict(load_file(weights))
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError):
        raise StudyError(
            f"the head in {weights.parent} is damaged: run {find_step(f'{folder}/head.json')} again."
        ) from None
    validation = pd.DataFrame(record["validation"]).astype({"auroc": float, "auprc": float})
    built.requires_grad_(False).eval()
    return FittedHead(built, record["learning_rate"], validation, record["encoder"], tuple(record["findings"]))


def _parameters(plan: HeadPlan) -> dict:
    return {"plan": asdict(plan)}


def _is_scored(evaluation: Evaluation, arm: str, seed: int, plan: HeadPlan, inputs: tuple[str, ...]) -> bool:
    key = evaluation.run.key(_parameters(plan), inputs)
    names = [scores_artifact(arm, seed, scores_task(plan.name), data_set) for data_set in evaluation.test_sets()]
    return all(evaluation.run.is_current(name, key) for name in names)


def adapt_arms(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], plans: Sequence[HeadPlan], workers: int = 1
) -> None:
    """`adapt_arm` for every arm and seed, several side by side; use one worker on a GPU.

    Patches take by far the most disk: they are kept for the first arm and seed and dropped for the others.
    """
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        raise StudyError(f"two heads are named {next(n for n in names if names.count(n) > 1)!r}: name a variant.")
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    if not jobs or not plans:
        return
    for job in jobs:
        require_current_arm(evaluation.run, *job)
    work_apart(evaluation, _Job(tuple(plans), jobs[0]), jobs, workers, "adapting encoders")


def tabulate_costs(run: Run, arms: Sequence[str], seeds: Sequence[int], plans: Sequence[HeadPlan]) -> pd.DataFrame:
    """Seconds that fitting each head took: one row a head, mean and sum over arms and seeds."""
    rows = [
        (plan.name, run.read_json(f"{_head_folder(arm, seed, plan.name)}/cost.json")["seconds"])
        for plan in plans
        for arm in arms
        for seed in seeds
    ]
    seconds = pd.DataFrame(rows, columns=["head", "seconds"]).groupby("head", sort=False).seconds
    return seconds.agg(["mean", "sum", "count"]).rename(columns={"sum": "all", "count": "fits"})


# --- measuring and comparing -----------------------------------------------------------------------------------------


def measure_adaptation(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], plans: Sequence[HeadPlan]
) -> pd.DataFrame:
    """AUROC and average precision of every head on every encoder and test set, by seed and over seeds.

    The heads are those that `adapt_arms` scored. Rows of the results table, task ``adaptation``; no head gives no rows.
    """
    if not plans:
        return pd.DataFrame(columns=COLUMNS)
    tables = []
    for data_set, rows in evaluation.test_sets().items():
        labels = label_matrix(rows, evaluation.findings)
        for arm in arms:
            for plan in plans:
                scores = _read(evaluation, arm, seeds, plan, data_set, rows.image_id, evaluation.findings)
                generator = evaluation.generator()
                weights = bootstrap_patients(rows.patient_id, evaluation.resamples, generator)
                measured = measure_each_seed(
                    dict(zip(seeds, scores, strict=True)),
                    labels,
                    evaluation.findings,
                    weights,
                    generator,
                    tiers=evaluation.tiers(),
                    setting=plan.name,
                )
                tables.append(measured.assign(arm=arm, data_set=data_set))
    table = pd.concat(tables, ignore_index=True).assign(task=ADAPTATION)
    exposure = {arm: tell_exposure(evaluation.run, arm, seeds[0]) for arm in arms}
    return table.assign(study=evaluation.run.study, exposure=table.arm.map(exposure))


def compare_adaptation(
    evaluation: Evaluation,
    seeds: Sequence[int],
    pairs: Sequence[Pair],
    small: Sequence[str] = (),
) -> pd.DataFrame:
    """Paired differences between encoders with heads, by patient and seed.

    Args:
        evaluation: cohort, resamples and seed of the resampling.
        seeds: of both sides.
        pairs: an arm and a head each, against another arm or head.
        small: findings with small lesions, whose mean is added as the finding ``small lesions``.

    Returns:
        Rows of the results table: task ``adaptation_difference``, over seeds; ``first - second`` stands in the columns
        ``arm`` and ``setting`` where the two sides differ. Nothing to compare gives no rows.
    """
    if not pairs:
        return pd.DataFrame(columns=COLUMNS)
    rows = _compare(evaluation, seeds, pairs, evaluation.findings)
    if not small:
        return rows
    of_small = _compare(evaluation, seeds, pairs, list(small))
    return pd.concat([rows, of_small[of_small.finding == MACRO].assign(finding=SMALL_LESIONS)], ignore_index=True)


def _compare(
    evaluation: Evaluation, seeds: Sequence[int], pairs: Sequence[Pair], findings: Sequence[str]
) -> pd.DataFrame:
    tables = []
    for data_set, rows in evaluation.test_sets().items():
        labels = label_matrix(rows, findings)
        for (first_arm, first_head), (second_arm, second_head) in pairs:
            generator = evaluation.generator()
            weights = bootstrap_patients(rows.patient_id, evaluation.resamples, generator)
            difference = compare_scores(
                _read(evaluation, first_arm, seeds, first_head, data_set, rows.image_id, findings),
                _read(evaluation, second_arm, seeds, second_head, data_set, rows.image_id, findings),
                labels,
                findings,
                weights,
                generator,
                tiers=evaluation.tiers(),
                setting=_name_sides(first_head.name, second_head.name),
            )
            exposure = tell_exposure(evaluation.run, first_arm, seeds[0])
            place = {"arm": _name_sides(first_arm, second_arm), "data_set": data_set, "exposure": exposure}
            tables.append(difference.assign(**place))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(study=evaluation.run.study, task=ADAPTATION_DIFFERENCE, seed=OVER_SEEDS)


def _name_sides(first: str, second: str) -> str:
    return first if first == second else f"{first} - {second}"


def _read(
    evaluation: Evaluation,
    arm: str,
    seeds: Sequence[int],
    plan: HeadPlan,
    data_set: str,
    image_ids: Sequence[str],
    findings: Sequence[str],
) -> list[np.ndarray]:
    place = {"arm": arm, "task": scores_task(plan.name), "data_set": data_set}
    return [read_scores(evaluation.run, image_ids, findings, seed=seed, **place) for seed in seeds]
