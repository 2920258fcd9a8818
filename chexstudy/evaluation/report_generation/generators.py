"""Three ways to write a report from a frozen encoder: copy the nearest one, tell probed labels, or a language model.

All learn from the training reports of the cohort, from the same text of them that is compared, and choose on validation
alone. The first two need no language model and show how much is won by one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.pseudo_reports import TemplateRules, template_report
from chexstudy.cohort.table import NO_FINDING
from chexstudy.encoders.embeddings import embed_images
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.logistic_path import LinearProbe, fit_linear_probe
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.image_text.zero_shot import normalise_rows
from chexstudy.evaluation.report_generation.alignment import LanguageModelPlan, read_patches, train_aligned_model
from chexstudy.evaluation.report_generation.cases import read_indication
from chexstudy.evaluation.report_generation.language_model import TINY, train_tiny_model
from chexstudy.evaluation.report_generation.variants import prepare_texts
from chexstudy.statistics.ranking import known_labels

_IMAGES_AT_ONCE = 256
_NEIGHBOURS = 10  # among whose reports the medoid is chosen


@dataclass(frozen=True)
class GeneratorSettings:
    """Which text of reports is learnt, as in `prepare_texts`, and how others are written."""

    sections: str = "findings"
    strip_comparisons: bool = False
    plan: LanguageModelPlan = field(default_factory=LanguageModelPlan)  # of the language model


class Generator(ABC):
    """What writes a report of an image."""

    def __init__(self, arm: EvaluatedModel):
        self.arm = arm

    def generate(
        self, image_ids: Sequence[str], prompts: Sequence[str] | None = None, pixels: np.ndarray | None = None
    ) -> list[str]:
        """A report of each image, in the order of the ids.

        Args:
            prompts: what the radiologist was asked, one an image, empty where nobody knows; only a language model
                reads them.
            pixels: what is looked at in place of the images, uint8 ``(images, height, width)``, for controls.
        """
        image_ids = list(image_ids)
        for name, given in (("prompts", prompts), ("pixels", pixels)):
            if given is not None and len(given) != len(image_ids):
                raise StudyError(f"{len(image_ids)} images and {len(given)} {name}: give one for each image.")
        if not image_ids:
            return []
        pixels = self.arm.evaluation.store.read(image_ids) if pixels is None else pixels
        return self._write(image_ids, prompts or [""] * len(image_ids), pixels)

    @abstractmethod
    def _write(self, image_ids: list[str], prompts: Sequence[str], pixels: np.ndarray) -> list[str]: ...

    def _embed(self, pixels: np.ndarray) -> np.ndarray:
        return embed_images(self.arm.encoder, pixels, _IMAGES_AT_ONCE, self.arm.evaluation.device)


def list_training_reports(evaluation: Evaluation, settings: GeneratorSettings = GeneratorSettings()) -> pd.DataFrame:
    """Training rows whose reports say something, with what is learnt of them in ``text`` and ``indication``."""
    rows = evaluation.training
    rows = rows.assign(text=prepare_texts(rows.report, settings.sections, settings.strip_comparisons)[0])
    rows = rows[rows.text != ""]
    rows = rows.assign(indication=[read_indication(report) for report in rows.report])
    if rows.empty:
        raise StudyError("no training image has a report to learn from: build the cohort with reports.")
    return rows


# --- copying ---------------------------------------------------------------------------------------------------------


class NearestReport(Generator):
    """The report of the most similar training image, or of several the one most like the others.

    Args:
        space: ``image``, the cosine of the encoder's own features of two images, or ``text``, that of image and report
            where the two were trained to meet.
        neighbours: of so many nearest reports the medoid by the words they share (Jaccard index) is taken.
    """

    def __init__(self, arm: EvaluatedModel, rows: pd.DataFrame, space: str, neighbours: int = 1):
        super().__init__(arm)
        self._space, self._neighbours = space, min(neighbours, len(rows))
        self._texts, self._patients = rows.text.to_numpy(), rows.patient_id.to_numpy()
        embedded = arm.embed(rows) if space == "image" else arm.encode_texts(rows.text.tolist())
        self._targets = normalise_rows(embedded)
        self._patient_of = arm.evaluation.cohort.set_index("image_id").patient_id

    def _write(self, image_ids, prompts, pixels) -> list[str]:
        features = self._embed(pixels)
        if self._space == "text":
            with torch.no_grad():
                device = self.arm.evaluation.device
                features = self.arm.model.image_tower.project(torch.from_numpy(features).to(device)).cpu().numpy()
        patients = self._patient_of.reindex(image_ids).to_numpy()
        texts = []
        for start in range(0, len(features), _IMAGES_AT_ONCE):
            block = slice(start, start + _IMAGES_AT_ONCE)
            similar = normalise_rows(features[block]) @ self._targets.T
            similar[patients[block, None] == self._patients] = -np.inf
            order = np.argsort(-similar, axis=1, kind="stable")[:, : self._neighbours]
            texts += [choose_medoid(self._texts[row]) for row in order]
        return texts


def choose_medoid(texts: Sequence[str]) -> str:
    """The text that shares most words with the others (mean Jaccard index), the first of equal ones."""
    words = [set(text.lower().split()) for text in texts]
    shared = [sum(len(own & other) / max(len(own | other), 1) for other in words) for own in words]
    return texts[int(np.argmax(shared))]


# --- telling labels --------------------------------------------------------------------------------------------------


class LabelComposition(Generator):
    """Findings that a linear probe calls present, told in the sentences of pseudo-reports.

    The probe and the threshold of each finding, the one with the best F1, are chosen on validation. A finding that
    cannot be probed, or that no validation image has, is not told. What is absent is told up to the median length of
    the training reports.
    """

    def __init__(self, arm: EvaluatedModel, rows: pd.DataFrame, seed: int):
        super().__init__(arm)
        evaluation, validation = arm.evaluation, arm.evaluation.validation
        self._findings = [finding for finding in evaluation.findings if finding != NO_FINDING]
        if not self._findings or validation.empty:
            raise StudyError(
                "reports are composed of findings whose thresholds are chosen on validation: give the cohort labels "
                "and a validation split."
            )
        train, judged = evaluation.training, [evaluation.findings.index(finding) for finding in self._findings]
        labels, of_validation = evaluation.labels(train)[:, judged], evaluation.labels(validation)[:, judged]
        self.probe: LinearProbe = fit_linear_probe(arm.embed(train), labels, arm.embed(validation), of_validation)
        self.thresholds = choose_f1_thresholds(self.probe.score(arm.embed(validation)), of_validation)
        self._rules = TemplateRules(word_budget=round(rows.text.str.split().str.len().median()))
        self._seed = seed

    def _write(self, image_ids, prompts, pixels) -> list[str]:
        scores = self.probe.score(self._embed(pixels))
        told = np.where(np.isnan(scores + self.thresholds), np.nan, scores >= self.thresholds)
        return [self._compose(*one) for one in zip(told, image_ids, strict=True)]

    def _compose(self, told: np.ndarray, image_id: str) -> str:
        labels = dict(zip(self._findings, told, strict=True))
        labels[NO_FINDING] = int(not np.nansum(told))
        return template_report(labels, image_id, self._seed, self._rules)


def choose_f1_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The threshold of each finding ``(findings,)`` that gives the best F1, the highest of equal ones.

    Of scores and labels ``(images, findings)``, a score at the threshold being present; NaN where no image with a known
    label has the finding, or nothing was scored.
    """
    thresholds = np.full(scores.shape[1], np.nan)
    for finding, (column, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        known = known_labels(label) & ~np.isnan(column)
        order = np.argsort(-column[known], kind="stable")
        ranked, present = column[known][order], label[known][order] == 1
        if not present.any():
            continue
        f1 = 2 * np.cumsum(present) / (np.arange(1, len(present) + 1) + present.sum())
        # A threshold takes all of equal scores.
        f1[:-1][ranked[:-1] == ranked[1:]] = -1
        thresholds[finding] = ranked[np.argmax(f1)]
    return thresholds


# --- a language model ------------------------------------------------------------------------------------------------


class LanguageModelReport(Generator):
    """What a language model writes that has learnt to read the encoder's patches."""

    def __init__(self, arm: EvaluatedModel, rows: pd.DataFrame, plan: LanguageModelPlan, seed: int):
        super().__init__(arm)
        self._plan = plan
        self.model = train_aligned_model(arm, rows, plan, seed)

    def _write(self, image_ids, prompts, pixels) -> list[str]:
        patches = read_patches(self.arm.encoder, pixels, self._plan, self.arm.evaluation.device)
        return self.model.write(patches, [self.model.frame(prompt) for prompt in prompts])


def prepare_language_model(evaluation: Evaluation, settings: GeneratorSettings, seed: int) -> None:
    """Train the tiny language model of a seed, if it is used, so that encoders side by side find it."""
    if settings.plan.model == TINY:
        texts = list_training_reports(evaluation, settings).text.tolist()
        train_tiny_model(evaluation.run, texts, settings.plan.writing, seed, evaluation.device)


# --- by name ---------------------------------------------------------------------------------------------------------

LANGUAGE_MODEL = "language_model"
_FIT = {
    "nearest_image": lambda arm, rows, settings, seed: NearestReport(arm, rows, "image"),
    "nearest_text": lambda arm, rows, settings, seed: NearestReport(arm, rows, "text"),
    "medoid_image": lambda arm, rows, settings, seed: NearestReport(arm, rows, "image", _NEIGHBOURS),
    "medoid_text": lambda arm, rows, settings, seed: NearestReport(arm, rows, "text", _NEIGHBOURS),
    "composition": lambda arm, rows, settings, seed: LabelComposition(arm, rows, seed),
    LANGUAGE_MODEL: lambda arm, rows, settings, seed: LanguageModelReport(arm, rows, settings.plan, seed),
}
KINDS = tuple(_FIT)


def fit_generator(
    kind: str,
    arm: EvaluatedModel,
    evaluation: Evaluation,
    settings: GeneratorSettings = GeneratorSettings(),
    seed: int = 0,
) -> Generator:
    """A generator on an arm's frozen encoder, by one of the names in `KINDS`.

    ``nearest`` copies one report and ``medoid`` the middle one of several, by the similarity of ``image`` and image or
    of image and ``text``; ``composition`` tells probed labels; the ``language_model`` is trained to read patches.
    """
    if kind not in _FIT:
        raise StudyError(f"there is no generator {kind!r}: use {', '.join(KINDS)}.")
    return _FIT[kind](arm, list_training_reports(evaluation, settings), settings, seed)
