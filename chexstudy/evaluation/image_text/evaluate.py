"""Evaluate trained arms on every held-out data set, seed by seed, then over seeds and against each other.

Nothing is chosen on a test split: prompts and the strength of the linear probe are chosen on validation.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from chexstudy.children import end_with_parent
from chexstudy.cohort.pixels.store import PixelStore, open_pixel_store
from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers
from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import finding_columns, label_matrix, read_cohort
from chexstudy.encoders.embeddings import embed_images, embed_texts
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.logistic_path import evaluate_linear_probe, fit_linear_probe
from chexstudy.evaluation.image_text.prompts import (
    CHOSEN,
    FAMILIES,
    PUBLISHED,
    PromptFamily,
    choose_prompts,
    hash_families,
)
from chexstudy.evaluation.image_text.retrieval import compare_ranks, evaluate_retrieval, measure_rank_seeds, rank_pairs
from chexstudy.evaluation.image_text.zero_shot import prompt_directions, score_directions
from chexstudy.evaluation.scores import (
    compare_scores,
    measure_scores,
    measure_seeds,
    read_scores,
    scores_artifact,
    write_scores,
)
from chexstudy.pretraining.arms.definitions import read_costs, require_current_arm
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, load_model
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import RESAMPLES, bootstrap_patients
from chexstudy.statistics.ranking import auroc, macro_mean

_TEST_SPLITS = ("test", "test_enriched")
_BATCH = 256
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Evaluation:
    """What all arms of a study are measured with."""

    run: Run  # the study
    cohort: pd.DataFrame  # its cohort table
    store: PixelStore  # its pixels
    resamples: int = RESAMPLES  # bootstrap resamples of patients
    seed: int = 0  # seed of the resampling; the same patients are drawn for every arm
    probe: bool = True  # train linear probes too
    device: str = "cpu"  # where the models run
    # prompts that are measured; the choice on validation is between the candidates among them
    families: Mapping[str, PromptFamily] = field(default_factory=lambda: FAMILIES)

    @property
    def findings(self) -> list[str]:
        """The findings that are measured, in the cohort's order."""
        return finding_columns(self.cohort)

    @property
    def training(self) -> pd.DataFrame:
        return self.cohort[self.cohort.split == "train"]

    def tiers(self) -> dict[str, str]:
        """Tier of each finding by its prevalence in training; `No Finding` is in none."""
        return prevalence_tiers(measure_prevalence(self.training)).to_dict()

    def test_sets(self) -> dict[str, pd.DataFrame]:
        """Held-out rows by data set, ``source/split``."""
        held_out = self.cohort[self.cohort.split.isin(_TEST_SPLITS)]
        sets = {f"{source}/{split}": rows for (source, split), rows in held_out.groupby(["source", "split"])}
        if not sets:
            raise StudyError("the cohort has no test split: give some patients the split `test`.")
        return sets

    def validation_sets(self) -> dict[str, pd.DataFrame]:
        """Validation rows by data set, ``source/validate``; empty where the cohort has none."""
        rows = self.cohort[self.cohort.split == "validate"]
        return {f"{source}/validate": group for source, group in rows.groupby("source")}

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


class _EmbeddedSplit:
    """Rows of the cohort with one model's embeddings."""

    def __init__(self, evaluation: Evaluation, model: ImageTextModel, rows: pd.DataFrame, with_texts: bool):
        self.rows = rows
        self.labels = label_matrix(rows, evaluation.findings)
        pixels = evaluation.store.read(rows.image_id)
        # The encoder's own features serve the probe; projected, they are the embeddings.
        features = embed_images(model.image_tower.encoder, pixels, _BATCH, evaluation.device)
        self.features = features / np.linalg.norm(features, axis=1, keepdims=True)
        with torch.no_grad():
            self.images = model.image_tower.project(torch.from_numpy(features).to(evaluation.device)).cpu().numpy()
        self.texts = [training_text(report) for report in rows.report]
        self.text_embeddings = encode_sentences(model, self.texts, evaluation.device) if with_texts else None


def encode_sentences(model: ImageTextModel, sentences: Sequence[str], device: str) -> np.ndarray:
    """Unit-norm text embeddings ``(sentences, dim)``, float32."""
    return embed_texts(model.text_tower, model.text_tower.tokenize, sentences, _BATCH, device)


def evaluate_arm(evaluation: Evaluation, arm: str, seed: int) -> pd.DataFrame:
    """All tasks of one trained arm on all test sets; kept in ``evaluation/<arm>/seed<k>/results.parquet``.

    The scores of every case are kept as well (`chexstudy.evaluation.scores.scores_artifact`), on the test sets and on
    validation: tasks ``zero_shot`` (chosen prompts), ``zero_shot_<family>`` and ``linear_probe`` (log-odds).

    Args:
        evaluation: what to measure with.
        arm: a trained arm.
        seed: its seed.

    Returns:
        Rows of the results table.
    """
    run, folder = evaluation.run, require_current_arm(evaluation.run, arm, seed)
    name = f"evaluation/{arm}/seed{seed}/results.parquet"
    inputs = ("cohort.parquet", "pixels/index.parquet", f"{folder}/compute.json")
    parameters = {"resamples": evaluation.resamples, "seed": evaluation.seed, "probe": evaluation.probe}
    parameters["prompts"] = hash_families(evaluation.families)
    if run.is_current(name, run.key(parameters, inputs)):
        return pd.read_parquet(run.path(name))
    model = load_model(run.path(f"{folder}/model")).to(evaluation.device)
    rows = pd.concat(_measure_arm(evaluation, model, arm, seed), ignore_index=True)
    compute = run.read_json(f"{folder}/compute.json")
    rows = rows.assign(
        study=run.study,
        arm=arm,
        seed=seed,
        flops=compute["flops"],
        seconds=compute["seconds"],
        exposure=_exposure(model),
    )
    run.write_table(name, rows)
    scores = [scores_artifact(arm, seed, *place) for place in _kept_scores(evaluation)]
    files = (f"evaluation/{arm}/seed{seed}/prompts.json", *scores)
    run.record(name, parameters, inputs, evaluation.seed, files)
    return rows


def score_zero_shot(evaluation: Evaluation, arm: str, seed: int, data_set: str) -> str:
    """Zero-shot scores of one trained arm on one test set, with the prompts chosen on validation.

    Kept as `chexstudy.evaluation.scores.scores_artifact`, as `evaluate_arm` does, which measures all else as well.

    Returns:
        The artifact's name.
    """
    run, folder = evaluation.run, require_current_arm(evaluation.run, arm, seed)
    name = scores_artifact(arm, seed, "zero_shot", data_set)
    inputs = ("cohort.parquet", "pixels/index.parquet", f"{folder}/compute.json")
    parameters = {"prompts": CHOSEN, "families": hash_families(evaluation.families)}
    if run.is_current(name, run.key(parameters, inputs)):
        return name
    model = load_model(run.path(f"{folder}/model")).to(evaluation.device)

    def encode(sentences: list[str]) -> np.ndarray:
        return encode_sentences(model, sentences, evaluation.device)

    validation = _embed_validation(evaluation, model)
    test = _EmbeddedSplit(evaluation, model, evaluation.test_sets()[data_set], with_texts=False)
    directions = {
        name: prompt_directions(encode, evaluation.findings, family)
        for name, family in evaluation.families.items()
        if family.candidate or name == PUBLISHED.name
    }
    chosen = _choose_prompts(evaluation, validation, directions)
    scores = score_directions(test.images, directions[chosen])
    place = {"arm": arm, "seed": seed, "task": "zero_shot", "data_set": data_set}
    write_scores(run, scores, test.rows.image_id, evaluation.findings, **place)
    run.record(name, parameters, inputs, seed)
    return name


def score_arms(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], data_set: str, workers: int = 1
) -> None:
    """`score_zero_shot` for every arm and seed, several side by side; use one worker on a GPU."""
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    for job in jobs:
        require_current_arm(evaluation.run, *job)
    work_apart(evaluation, partial(score_zero_shot, data_set=data_set), jobs, workers)


def tell_exposure(run: Run, arm: str, seed: int) -> str:
    """Whether a trained arm's encoders may have seen the held-out data: ``held_out`` or ``unknown``."""
    return _exposure(load_arm(run, arm, seed))


def load_arm(run: Run, arm: str, seed: int) -> ImageTextModel:
    """A trained arm's model, on the CPU, in evaluation mode."""
    return load_model(run.path(f"{require_current_arm(run, arm, seed)}/model"))


def _exposure(model: ImageTextModel) -> str:
    # An encoder from scratch has seen the training split alone; what a released one has seen is not known here.
    names = (model.image_tower.encoder.origin["name"], model.text_tower.encoder.origin["name"])
    return "held_out" if all(name.startswith("tiny-") for name in names) else "unknown"


def _measure_arm(evaluation: Evaluation, model: ImageTextModel, arm: str, seed: int) -> list[pd.DataFrame]:
    findings, tiers = evaluation.findings, evaluation.tiers()
    validation = _embed_validation(evaluation, model)
    tests = {
        name: _EmbeddedSplit(evaluation, model, rows, with_texts=True) for name, rows in evaluation.test_sets().items()
    }

    def encode(sentences: list[str]) -> np.ndarray:
        return encode_sentences(model, sentences, evaluation.device)

    families = evaluation.families if findings else {}
    directions = {name: prompt_directions(encode, findings, family) for name, family in families.items()}
    chosen = _choose_prompts(evaluation, validation, directions) if findings else ""
    if findings:
        _keep_zero_shot(evaluation, {**tests, "validate": validation}, directions, chosen, arm, seed)
    probe = None
    if evaluation.probe and findings and validation is not None:
        training = _EmbeddedSplit(evaluation, model, evaluation.training, with_texts=False)
        probe = fit_linear_probe(training.features, training.labels, validation.features, validation.labels)
        for split in (*tests.values(), validation):
            _keep_scores(evaluation, probe.score(split.features), split.rows, arm, seed, "linear_probe")
    tables = []
    for name, test in tests.items():
        patients = test.rows.patient_id
        shared = {"resamples": evaluation.resamples}
        measured = []
        if findings:
            measured.append(_measure_zero_shot(evaluation, test, directions, chosen))
        ranks = rank_pairs(test.images, test.text_embeddings, test.texts)
        evaluation.run.write_table(scores_artifact(arm, seed, "retrieval", name), ranks)
        retrieval = evaluate_retrieval(
            test.images, test.text_embeddings, test.texts, patients, evaluation.generator(), **shared
        )
        measured.append(retrieval.assign(task="retrieval"))
        if probe is not None:
            rows = evaluate_linear_probe(
                probe, test.features, test.labels, patients, findings, evaluation.generator(), tiers=tiers, **shared
            )
            measured.append(rows.assign(task="linear_probe"))
        tables += [table.assign(data_set=name) for table in measured]
    evaluation.run.write_json(f"evaluation/{arm}/seed{seed}/prompts.json", {"chosen_on_validation": chosen})
    return tables


def family_task(family: str) -> str:
    """The task under which the scores of one prompt family are kept."""
    return f"zero_shot_{family}"


def _kept_scores(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Task and data set of all scores that `evaluate_arm` keeps."""
    tests, validation = list(evaluation.test_sets()), list(evaluation.validation_sets())
    tasks = ["zero_shot", *map(family_task, evaluation.families)] if evaluation.findings else []
    if tasks and evaluation.probe and validation:
        tasks.append("linear_probe")
    return [("retrieval", name) for name in tests] + [(task, name) for task in tasks for name in (*tests, *validation)]


def _keep_zero_shot(evaluation: Evaluation, splits, directions, chosen: str, arm: str, seed: int) -> None:
    """Keep the scores of all families and of the chosen one: comparisons and choices of thresholds need them."""
    for split in splits.values():
        if split is not None:
            scores = {name: score_directions(split.images, one) for name, one in directions.items()}
            for task, one in {"zero_shot": chosen, **{family_task(name): name for name in scores}}.items():
                _keep_scores(evaluation, scores[one], split.rows, arm, seed, task)


def _keep_scores(evaluation: Evaluation, scores: np.ndarray, rows: pd.DataFrame, arm: str, seed: int, task: str):
    for (source, split), place in rows.groupby(["source", "split"]).indices.items():
        shared = {"arm": arm, "seed": seed, "task": task, "data_set": f"{source}/{split}"}
        write_scores(evaluation.run, scores[place], rows.image_id.iloc[place], evaluation.findings, **shared)


def _measure_zero_shot(evaluation: Evaluation, test: _EmbeddedSplit, directions, chosen: str) -> pd.DataFrame:
    """Zero-shot rows of one data set, with the published prompts and with the chosen ones."""
    weights = bootstrap_patients(test.rows.patient_id, evaluation.resamples, evaluation.generator())
    shared = {"findings": evaluation.findings, "weights": weights, "tiers": evaluation.tiers()}
    tables = []
    for setting, family in {PUBLISHED.name: PUBLISHED.name, CHOSEN: chosen}.items():
        scores = score_directions(test.images, directions[family])
        tables.append(measure_scores(scores, test.labels, **shared, setting=setting))
    return pd.concat(tables, ignore_index=True).assign(task="zero_shot")


def _embed_validation(evaluation: Evaluation, model: ImageTextModel) -> _EmbeddedSplit | None:
    rows = evaluation.cohort[evaluation.cohort.split == "validate"]
    return _EmbeddedSplit(evaluation, model, rows, with_texts=False) if len(rows) else None


def _choose_prompts(evaluation: Evaluation, validation: _EmbeddedSplit | None, directions) -> str:
    if validation is None:
        return PUBLISHED.name
    candidates = [name for name, family in evaluation.families.items() if family.candidate]
    scores = {name: score_directions(validation.images, directions[name]) for name in candidates}
    evaluable = [macro_mean(auroc(validation.labels, one)) for one in scores.values()]
    return choose_prompts(scores, validation.labels) if np.isfinite(evaluable).any() else PUBLISHED.name


def work_apart(
    evaluation: Evaluation,
    task: Callable[..., _Result],
    jobs: list[tuple[str, int]],
    workers: int,
    label: str = "evaluating arms",
) -> list[_Result]:
    """``task(evaluation, arm, seed)`` for every job, in processes of one share of the cores each."""
    if workers <= 1 or len(jobs) == 1:
        return [task(evaluation, *job) for job in progress(jobs, label=label)]
    # Cohort and pixels are read anew there: cheaper than sending them.
    settings = {name: getattr(evaluation, name) for name in ("resamples", "seed", "probe", "device", "families")}
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers,
        get_context("spawn"),
        initializer=_open_evaluation,
        initargs=(os.getpid(), evaluation.run.study, settings, threads),
    ) as pool:
        return list(progress(pool.map(partial(_work, task), jobs), len(jobs), label))


_opened: Evaluation | None = None


def _open_evaluation(parent: int, study: str, settings: dict, threads: int) -> None:
    global _opened
    end_with_parent(parent)
    torch.set_num_threads(threads)
    run = Run(study)
    _opened = Evaluation(run, read_cohort(run.path("cohort.parquet")), open_pixel_store(run), **settings)


def _work(task: Callable[..., _Result], job: tuple[str, int]) -> _Result:
    return task(_opened, *job)


def evaluate_arms(
    evaluation: Evaluation,
    arms: Sequence[str],
    seeds: Sequence[int],
    reference: str = "curated",
    workers: int = 1,
) -> pd.DataFrame:
    """Every arm and seed, then means over seeds and the differences between ``reference`` and each other arm.

    Args:
        evaluation: what to measure with.
        arms: trained arms.
        seeds: their seeds.
        reference: the arm the others are subtracted from.
        workers: processes; use 1 on a GPU.

    Returns:
        Rows of the results table. Rows over seeds have seed -1, and intervals that draw patients and seeds.
    """
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    for job in jobs:
        # Said at once, not after the arms before it were measured.
        require_current_arm(evaluation.run, *job)
    by_seed = work_apart(evaluation, evaluate_arm, jobs, workers)
    over_seeds = [_summarise_arm(evaluation, arm, seeds) for arm in arms]
    others = [arm for arm in arms if arm != reference] if reference in arms else []
    differences = [_subtract_arms(evaluation, reference, other, seeds) for other in others]
    exposure = by_seed[0].exposure.iloc[0]
    summaries = pd.concat([*over_seeds, *differences], ignore_index=True)
    summaries = summaries.assign(study=evaluation.run.study, seed=OVER_SEEDS, exposure=exposure)
    return pd.concat([*by_seed, summaries], ignore_index=True)


def _scores_of_seeds(evaluation: Evaluation, arm: str, seeds: Sequence[int], name: str, ids) -> list[np.ndarray]:
    shared = {"task": "zero_shot", "data_set": name}
    return [read_scores(evaluation.run, ids, evaluation.findings, arm=arm, seed=seed, **shared) for seed in seeds]


def _ranks_of_seeds(evaluation: Evaluation, arm: str, seeds: Sequence[int], name: str) -> list[pd.DataFrame]:
    return [evaluation.run.read_table(scores_artifact(arm, seed, "retrieval", name)) for seed in seeds]


def _summarise_arm(evaluation: Evaluation, arm: str, seeds: Sequence[int]) -> pd.DataFrame:
    tables = []
    for name, rows in evaluation.test_sets().items():
        if evaluation.findings:
            generator = evaluation.generator()
            weights = bootstrap_patients(rows.patient_id, evaluation.resamples, generator)
            scores = _scores_of_seeds(evaluation, arm, seeds, name, rows.image_id)
            labels = label_matrix(rows, evaluation.findings)
            zero_shot = measure_seeds(
                scores, labels, evaluation.findings, weights, generator, tiers=evaluation.tiers(), setting=CHOSEN
            )
            tables.append(zero_shot.assign(data_set=name, task="zero_shot"))
        ranks = _ranks_of_seeds(evaluation, arm, seeds, name)
        retrieval = measure_rank_seeds(ranks, rows.patient_id, evaluation.generator(), resamples=evaluation.resamples)
        tables.append(retrieval.assign(data_set=name, task="retrieval"))
    summary = pd.concat(tables, ignore_index=True).assign(arm=arm)
    return summary.assign(**read_costs(evaluation.run, [arm], seeds)[["flops", "seconds"]].mean())


def _subtract_arms(evaluation: Evaluation, first: str, second: str, seeds: Sequence[int]) -> pd.DataFrame:
    tables = []
    for name, rows in evaluation.test_sets().items():
        if evaluation.findings:
            generator = evaluation.generator()
            weights = bootstrap_patients(rows.patient_id, evaluation.resamples, generator)
            scores = [_scores_of_seeds(evaluation, arm, seeds, name, rows.image_id) for arm in (first, second)]
            labels = label_matrix(rows, evaluation.findings)
            zero_shot = compare_scores(
                *scores, labels, evaluation.findings, weights, generator, tiers=evaluation.tiers(), setting=CHOSEN
            )
            tables.append(zero_shot.assign(data_set=name, task="zero_shot_difference"))
        ranks = [_ranks_of_seeds(evaluation, arm, seeds, name) for arm in (first, second)]
        retrieval = compare_ranks(*ranks, rows.patient_id, evaluation.generator(), resamples=evaluation.resamples)
        tables.append(retrieval.assign(data_set=name, task="retrieval_difference"))
    return pd.concat(tables, ignore_index=True).assign(arm=f"{first} - {second}")
