"""Subsets of the training pairs, one a method of curation, for arms to be trained on."""

import time
from collections.abc import Iterable, Sequence

import pandas as pd

from chexstudy.curation.choice import count_budget
from chexstudy.curation.methods import METHODS, choose_subset
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import choice_cost_artifact, name_objective, name_variant, subset_artifact
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.training.arm_run import is_trained
from chexstudy.pretraining.training.scoring import (
    Scores,
    score_folder,
    score_training_images,
    score_training_pairs,
    score_with_reference,
)
from chexstudy.progress import progress
from chexstudy.runs import Run

BASELINE = "random"
REFERENCE = "full"
_SCORED = ("ids.parquet", "image.npy", "text.npy")
_LOSSES, _REFERENCE_LOSSES = "losses.parquet", "reference.parquet"


def choose_methods(names: Sequence[str]) -> list[str]:
    """The named methods, or all if none is named, in the order of the registry; the baseline is always among them."""
    for name in names:
        if name not in METHODS:
            raise StudyError(f"unknown method {name!r}; there are {', '.join(METHODS)}.")
    return [name for name in METHODS if not names or name in names or name == BASELINE]


def needs_reference(methods: Iterable[str]) -> bool:
    """Whether one of the methods compares losses with those of a trained model."""
    return any("reference_loss" in METHODS[name].needs for name in methods)


def train_scoring_arms(
    run: Run,
    methods: Iterable[str],
    seeds: Sequence[int],
    config: PretrainingConfig,
    device: str = "auto",
    workers: int = 1,
) -> None:
    """Train what scores the pairs, where it is not trained: the warm-up, and the reference if a method needs one."""
    arms = ["warm_up"] * bool(config.warm_up_epochs) + [REFERENCE] * needs_reference(methods)
    missing = [arm for arm in arms if not all(is_trained(run, arm, seed, config) for seed in seeds)]
    if missing:
        train_arms(run, missing, seeds, config, device, workers)


def choose_training_subset(
    run: Run,
    method: str,
    seed: int,
    config: PretrainingConfig,
    keep: float,
    device: str = "auto",
    scores: Scores | None = None,
) -> pd.DataFrame:
    """Choose a subset of the training pairs by a method, from what the shared warm-up of a seed says of them.

    Under a self-supervised objective pairs are images, and what is kept and trained on it is a variant of its name.

    Kept in ``curation/<method>/seed<k>/`` as ``subset.parquet`` (``image_id``, ``weight``), on which the arm
    ``by_<method>`` is trained; ``scores.parquet`` (``image_id``, ``score``) of all pairs; and ``cost.json``, which that
    arm is charged: the scoring pass and the seconds of choosing. The operations of choosing are not counted; they are
    few beside those of an encoder. Learnability is charged a second pass, the reference's, but not the training of the
    reference. The baseline looks at nothing and is charged nothing.

    Prototypes and super-batch of the ``config`` are those of the curated arm, EL2N's softmax the model's; ``keep`` is
    the share of the pairs, or above 1 their number; ``scores`` are those of `score_training_pairs`, if they are at
    hand.

    Gives ``image_id`` and ``weight`` of the chosen pairs, in the order of the cohort.
    """
    scores = _score(run, seed, config, device) if scores is None else scores
    if needs_reference([method]) and scores.reference_loss is None:
        scores = score_with_reference(run, REFERENCE, seed, config, device, scores)
    budget, options = count_budget(keep, len(scores.image_ids)), _options(method, config, scores)
    parameters = {"method": method, "seed": seed, "budget": budget, "options": options}
    parameters |= {"fixed_streams": list(config.fixed_streams)}
    variant = name_objective(config)
    inputs, place = _inputs(method, seed, variant), name_variant(method, variant) if variant else method
    name, cost = subset_artifact(place, seed), choice_cost_artifact(place, seed)
    scored = name.replace("subset.parquet", "scores.parquet")
    if not run.is_current(name, run.key(parameters, inputs)):
        generator = RandomStreams(seed, config.fixed_streams).generator("subset")
        signals = {name: getattr(scores, name) for name in ("image", "text", "loss", "reference_loss")}
        start = time.perf_counter()
        choice = choose_subset(method, scores.features, budget, generator, **signals, **options)
        seconds = time.perf_counter() - start
        if choice.note:
            print(f"{method}, seed {seed}: {choice.note}")
        chosen = pd.DataFrame({"image_id": scores.image_ids[choice.rows], "weight": choice.weights})
        run.write_table(scored, pd.DataFrame({"image_id": scores.image_ids, "score": choice.scores}))
        run.write_json(cost, _charge(method, scores, seconds))
        run.write_table(name, chosen)
        run.record(name, parameters, inputs, seed, files=(scored, cost))
    return run.read_table(name)


def choose_training_subsets(
    run: Run, methods: Sequence[str], seeds: Sequence[int], config: PretrainingConfig, keep: float, device: str = "auto"
) -> dict[tuple[str, int], pd.DataFrame]:
    """`choose_training_subset` by method and seed; the pairs of a seed are scored once."""
    jobs, subsets, scores = [(seed, method) for seed in seeds for method in methods], {}, {}
    for seed, method in progress(jobs, label="choosing subsets"):
        if seed not in scores:
            scores = {seed: _score(run, seed, config, device)}
            if needs_reference(methods):
                scores = {seed: score_with_reference(run, REFERENCE, seed, config, device, scores[seed])}
        subsets[method, seed] = choose_training_subset(run, method, seed, config, keep, device, scores[seed])
    return subsets


def _score(run: Run, seed: int, config: PretrainingConfig, device: str) -> Scores:
    score = score_training_images if name_objective(config) else score_training_pairs
    return score(run, seed, config, device)


def _options(method: str, config: PretrainingConfig, scores: Scores) -> dict:
    """Options that the study has already settled."""
    if method in ("bands", "budgeted", "filtered"):
        return {"prototypes": config.curator.prototypes, "super_batch": config.super_batch}
    return {"temperature": scores.temperature, "batch": scores.batch_size} if method == "el2n" else {}


def _inputs(method: str, seed: int, variant: str) -> tuple[str, ...]:
    needs, scored = METHODS[method].needs, _SCORED[:2] if variant else _SCORED
    names = scored + (_LOSSES,) * ("loss" in needs) + (_REFERENCE_LOSSES,) * ("reference_loss" in needs)
    return tuple(f"{score_folder(seed, variant)}/{name}" for name in names)


def _charge(method: str, scores: Scores, seconds: float) -> dict:
    if method == BASELINE:
        return {"flops": 0.0, "seconds": 0.0, "pairs_scored": 0}
    passes = [scores.cost] + [scores.reference_cost] * needs_reference([method])
    charged = {part: sum(one[part] for one in passes) for part in ("flops", "seconds", "pairs_scored")}
    return charged | {"seconds": charged["seconds"] + seconds}
