"""What all models of a study are measured with, and one model as it is measured."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from chexstudy.children import end_with_parent
from chexstudy.cohort.overlaps import list_untold
from chexstudy.cohort.pixels.store import PixelStore, open_pixel_store
from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers
from chexstudy.cohort.splits import choose_main_test_set, list_test_sets
from chexstudy.cohort.table import finding_columns, label_matrix, read_cohort
from chexstudy.encoders.embeddings import embed_images, embed_texts
from chexstudy.encoders.exposure import tell_encoder_exposure
from chexstudy.encoders.frozen_features import FrozenFeatures, freeze_features
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import name_encoder
from chexstudy.evaluation.encoders import NO_ENCODER, START, UNTRAINED, is_arm, load_encoder
from chexstudy.pretraining.arms.definitions import require_current_arm
from chexstudy.pretraining.arms.study_config import read_config
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, load_model
from chexstudy.progress import progress
from chexstudy.results import worst_exposure
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import RESAMPLES, bootstrap_patients

_BATCH = 256
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Evaluation:
    """What all arms of a study are measured with."""

    run: Run
    cohort: pd.DataFrame
    store: PixelStore
    resamples: int = RESAMPLES  # bootstrap resamples of patients
    seed: int = 0  # of the resampling; the same patients are drawn for every arm
    probe: bool = True  # train linear probes too
    device: str = "cpu"  # where the models run
    # prompt families that are measured, by name; those of the study if there are none
    families: Mapping = field(default_factory=dict)

    @property
    def findings(self) -> list[str]:
        """The findings that are measured, in the cohort's order."""
        return finding_columns(self.cohort)

    @property
    def training(self) -> pd.DataFrame:
        return self.cohort[self.cohort.split == "train"]

    @property
    def validation(self) -> pd.DataFrame:
        """Of all sources."""
        return self.cohort[self.cohort.split == "validate"]

    def tiers(self) -> dict[str, str]:
        """Tier of each finding by its prevalence in training; `No Finding` is in none."""
        return prevalence_tiers(measure_prevalence(self.training)).to_dict()

    def test_sets(self) -> dict[str, pd.DataFrame]:
        """Held-out rows by data set, ``source/split``."""
        return list_test_sets(self.cohort)

    def main_test_set(self) -> str:
        return choose_main_test_set(self.test_sets())

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def draw_patients(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.random.Generator]:
        """``(resamples, images)`` of `bootstrap_patients`, and the generator, which draws seeds next."""
        generator = self.generator()
        return bootstrap_patients(rows.patient_id, self.resamples, generator), generator

    def labels(self, rows: pd.DataFrame) -> np.ndarray:
        """``(images, findings)``."""
        return label_matrix(rows, self.findings)


class EvaluatedModel:
    """A trained arm or another encoder by its name (`chexstudy.evaluation.encoders`).

    It is loaded, and embeds each part of the cohort, when it is first asked to. Only arms have texts and projections.
    """

    def __init__(self, evaluation: Evaluation, name: str, seed: int):
        self.evaluation, self.name, self.seed = evaluation, name, seed
        self.folder = require_current_arm(evaluation.run, name, seed) if is_arm(name) else ""
        self._features: dict[tuple, np.ndarray] = {}
        self._texts: dict[tuple, np.ndarray] = {}

    @cached_property
    def model(self) -> ImageTextModel:
        return load_model(self.evaluation.run.path(f"{self.folder}/model")).to(self.evaluation.device)

    @cached_property
    def encoder(self) -> ImageEncoder:
        """The image encoder; models trained on images alone have no more."""
        return load_encoder(self.evaluation.run, self.name, self.seed).to(self.evaluation.device)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Artifacts that make the model what it is."""
        return (f"{self.folder}/compute.json",) if self.folder else ()

    @cached_property
    def parameters(self) -> dict:
        """What makes a model what it is that is no artifact of the study."""
        return {} if self.folder or self.name == NO_ENCODER else {"encoder": self.encoder.describe()}

    def name_features(self, side: int = 0) -> str:
        """Where `freeze` keeps the features, within those of the study."""
        return f"{name_encoder(self.name)}/seed{self.seed}" + (f"/{side}px" if side else "")

    def freeze(self, patches: bool, side: int = 0) -> FrozenFeatures:
        """Frozen features of every image of the cohort, seen at ``side`` pixels or the encoder's own size."""
        evaluation, encoder = self.evaluation, self.encoder.at_size(side) if side else self.encoder
        images, options = evaluation.cohort.image_id.tolist(), {"patches": patches, "device": evaluation.device}
        return freeze_features(evaluation.run, self.name_features(side), encoder, images, evaluation.store, **options)

    def embed(self, rows: pd.DataFrame) -> np.ndarray:
        """The image encoder's own features ``(images, dim)``, before the projection."""
        key = tuple(rows.image_id)
        if key not in self._features:
            pixels = self.evaluation.store.read(rows.image_id)
            self._features[key] = embed_images(self.encoder, pixels, _BATCH, self.evaluation.device)
        return self._features[key]

    def project(self, rows: pd.DataFrame) -> np.ndarray:
        """Image embeddings beside those of texts, ``(images, dim)``."""
        with torch.no_grad():
            features = torch.from_numpy(self.embed(rows)).to(self.evaluation.device)
            return self.model.image_tower.project(features).cpu().numpy()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm text embeddings ``(texts, dim)``, float32."""
        key, tower = tuple(texts), self.model.text_tower
        if key not in self._texts:
            self._texts[key] = embed_texts(tower, tower.tokenize, texts, _BATCH, self.evaluation.device)
        return self._texts[key]


def tell_exposure(evaluation: Evaluation, name: str, seed: int, data_set: str) -> str:
    """Whether a model has seen a data set of the cohort: in training, or before by what its encoders began from.

    The training split counts for encoders that were not trained on it, too, for what is fitted on them is. What shares
    images with it without a way to tell counts as seen.
    """
    source, _, split = data_set.partition("/")
    if (split == "train" and source in set(evaluation.training.source)) or list_untold(evaluation.cohort, data_set):
        return "seen"
    if name in (UNTRAINED, NO_ENCODER):
        return "held_out"
    if not is_arm(name):
        encoder = read_config(evaluation.run).image_encoder if name == START else name
        return tell_encoder_exposure(encoder, data_set)
    model = f"{require_current_arm(evaluation.run, name, seed)}/model"
    config = evaluation.run.read_json(f"{model}/pretraining.json")
    sides = [side for side in ("image_encoder", "text_encoder") if evaluation.run.path(f"{model}/{side}").is_dir()]
    return worst_exposure(tell_encoder_exposure(config[side], data_set) for side in sides)


def add_exposure(evaluation: Evaluation, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows of the results table with ``exposure``, by their arm, as it was trained with a seed, and their data set."""
    places = list(zip(rows.arm, rows.data_set, strict=True))
    told = {place: tell_exposure(evaluation, place[0], seed, place[1]) for place in set(places)}
    return rows.assign(exposure=[told[place] for place in places])


# --- side by side ----------------------------------------------------------------------------------------------------


def work_apart(
    evaluation: Evaluation,
    work: Callable[..., _Result],
    jobs: Sequence[tuple[str, int]],
    workers: int,
    label: str = "evaluating arms",
) -> list[_Result]:
    """``work(evaluation, arm, seed)`` for every job, in processes of one share of the cores each."""
    if workers <= 1 or len(jobs) == 1:
        return [work(evaluation, *job) for job in progress(jobs, label=label)]
    # Cohort and pixels are read anew there: cheaper than sending them. Of a part of the cohort, its images are told.
    part = set(evaluation.cohort.image_id) if len(evaluation.cohort) < len(evaluation.store) else None
    settings = {name: getattr(evaluation, name) for name in ("resamples", "seed", "probe", "device", "families")}
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers,
        get_context("spawn"),
        initializer=_open_evaluation,
        initargs=(os.getpid(), evaluation.run.study, part, settings, threads),
    ) as pool:
        return list(progress(pool.map(partial(_work, work), jobs), len(jobs), label))


_opened: Evaluation | None = None


def _open_evaluation(parent: int, study: str, part: set[str] | None, settings: dict, threads: int) -> None:
    global _opened
    end_with_parent(parent)
    torch.set_num_threads(threads)
    run = Run(study)
    cohort = read_cohort(run.path("cohort.parquet"))
    if part is not None:
        cohort = cohort[cohort.image_id.isin(part)]
    _opened = Evaluation(run, cohort, open_pixel_store(run), **settings)


def _work(work: Callable[..., _Result], job: tuple[str, int]) -> _Result:
    return work(_opened, *job)
