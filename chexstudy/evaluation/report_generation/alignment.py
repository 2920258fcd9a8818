"""A frozen image encoder and a language model brought together in two stages, as LLaVA-Rad does it.

Patches of one block of the encoder pass a projector of two layers and stand in the language model's context, as words
would. First the projector alone learns to put there what the reports say, then the language model learns with it: all
its weights, or low-rank updates of them. Source: LLaVA-Rad (Zambrano Chaves et al., Nature Communications 2025),
constants from its public code; after LLaVA (Liu et al. 2023).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.devices import autocast, autocast_dtype
from chexstudy.encoders.embeddings import embed_images, hash_texts
from chexstudy.encoders.encoder import hash_weights
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import name_encoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import EvaluatedModel
from chexstudy.evaluation.report_generation.language_model import (
    TINY,
    LanguageModel,
    Stage,
    list_answers,
    load_language_model,
    train_or_load,
    train_stage,
    train_tiny_model,
)
from chexstudy.pretraining.models.parameter_efficient import add_low_rank_updates
from chexstudy.progress import progress
from chexstudy.runs import hash_values

_PIXELS = "pixels/manifest.json"
_LONGEST_INDICATION = 64  # words
_READ_AT_ONCE = 1024  # images
_SPREAD = 0.1  # of what is added for a place, at first
_WRITING = Stage(8, 3e-3, least_steps=640, second_moment=0.98)
_ALIGNMENT = Stage(1, 3e-3, second_moment=0.98)
_TUNING = Stage(5, 2e-3, least_steps=400, second_moment=0.98)
# Tokens before an image, and between it and its report.
Frame = tuple[list[int], list[int]]


@dataclass(frozen=True)
class LanguageModelPlan:
    """How images are put before a language model, and what is trained; by default what suits small encoders."""

    model: str = TINY  # or a causal one of the Hub, ``name`` or ``name@revision``, or a folder
    layer: int = -1  # whose patches are looked at, -1 the last block
    normalise: bool = True  # whether they pass the encoder's final normalisation, where it has one
    standardise: bool = True  # bring each channel to mean 0 and spread 1 over the training images
    places: bool = True  # add to each patch what is learnt of its place, for encoders that do not tell it
    visual_tokens: int = 16  # patches are averaged over a square grid of at most so many; 0 leaves them as they are
    system: str = ""  # what stands before everything else
    question: str = ""  # what is asked of the image; empty for a model that only writes
    writing: Stage = _WRITING  # of the tiny language model, without images
    alignment: Stage = _ALIGNMENT  # of the projector alone
    tuning: Stage = _TUNING  # of the projector and the language model
    rank: int = 0  # of low-rank updates of the language model; 0 trains all its weights
    alpha: float = 128.0
    dropout: float = 0.05  # before low-rank updates
    max_tokens: int = 256  # written at most
    at_once: int = 64  # images in memory, whatever the batch is

    def __post_init__(self):
        if self.visual_tokens < 0 or math.isqrt(self.visual_tokens) ** 2 != self.visual_tokens:
            raise StudyError(f"visual tokens make a square grid: give 0, 1, 4, 9, 16 ..., not {self.visual_tokens}.")
        least = {"max_tokens": 1, "at_once": 1, "rank": 0}
        if wrong := [name for name, number in least.items() if getattr(self, name) < number]:
            raise StudyError(f"{wrong[0]} is {least[wrong[0]]} or more, not {getattr(self, wrong[0])}.")


# As published, but for Vicuna's place in the local cache, and broken images, which never get here.
FAITHFUL = LanguageModelPlan(
    model="lmsys/vicuna-7b-v1.5",
    layer=-2,
    normalise=False,
    standardise=False,
    places=False,
    visual_tokens=0,
    system=(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    ),
    question="Provide a description of the findings in the radiology image",
    alignment=Stage(1, 1e-3, 256),
    tuning=Stage(3, 1e-4, 64),
    rank=64,
)


def plan_language_model(model: str, published: bool = False, epochs: float = 0) -> LanguageModelPlan:
    """How a model is trained: by the published recipe or our own, in so many last epochs or as the recipe has them."""
    plan = replace(FAITHFUL if published else LanguageModelPlan(), model=model)
    if not epochs:
        return plan
    writing = replace(plan.writing, least_steps=0)
    return replace(plan, writing=writing, tuning=replace(plan.tuning, epochs=epochs, least_steps=0))


class AlignedModel(nn.Module):
    """A projector and a language model that reads what it gives.

    Args:
        shape: how many patches of an image, of how many channels.
        seed: decides the projector's weights.
    """

    def __init__(self, language_model: LanguageModel, shape: tuple[int, int], plan: LanguageModelPlan, seed: int):
        super().__init__()
        self.language_model, self.plan = language_model, plan
        (patches, channels), width = shape, language_model.width
        if patches + 4 * _LONGEST_INDICATION + plan.max_tokens > language_model.positions:
            raise StudyError(
                f"{language_model.origin['name']} reads {language_model.positions} tokens, too few for {patches} of an "
                f"image, a question and a report of {plan.max_tokens}: give fewer visual_tokens or max_tokens."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.projector = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
            # Patches of a ViT know their place, those of a ResNet hardly do.
            self.places = nn.Parameter(_SPREAD * torch.randn(patches, width)) if plan.places else None
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    def standardise_by(self, patches: Tensor) -> None:
        """Bring each channel to mean 0 and spread 1 over these patches ``(images, patches, channels)`` from now on."""
        spread, centre = torch.std_mean(patches.float(), dim=(0, 1), correction=0)
        self.centre.copy_(centre)
        self.spread.copy_(torch.where(spread > 0, spread, 1.0))

    def frame(self, indication: str, plain: bool = False) -> Frame:
        """Tokens before and after the image: the question, or for a model that only writes what is known beforehand.

        ``plain`` is the form of the first stage, without a question.
        """
        plan, encode = self.plan, self.language_model.encode
        indication = " ".join(indication.split()[:_LONGEST_INDICATION])
        if not plan.question:
            known = encode([f"{indication}\n"])[0] if indication and not plain else []
            return [], [*self.language_model.start, *known]
        if plain:
            return self.language_model.start, []
        given = f" given the following indication: {indication}" if indication else "."
        before, after = encode([f"{plan.system} USER: ".lstrip(), f"\n{plan.question}{given} ASSISTANT: "])
        return [*self.language_model.start, *before], after

    def see(self, patches: Tensor, before: Sequence[int]) -> Tensor:
        """Patches ``(images, patches, channels)`` behind the tokens before them ``(images, length, width)``."""
        tokens = torch.tensor(before, dtype=torch.long, device=patches.device).expand(len(patches), -1)
        seen = self.projector((patches.float() - self.centre) / self.spread)
        seen = seen if self.places is None else seen + self.places
        return torch.cat([self.language_model.embed(tokens), seen], dim=1)

    def sum_loss(self, patches: Tensor, frames: Sequence[Frame], answers: Sequence[list[int]]) -> Tensor:
        """Cross-entropy of the tokens of all answers to images ``(images, patches, channels)``, summed."""
        return self.language_model.sum_loss(self.see(patches, frames[0][0]), [after for _, after in frames], answers)

    @torch.no_grad()
    def write(self, patches: Tensor, frames: Sequence[Frame]) -> list[str]:
        """A report of each image, the likeliest token each time; those of equally long questions side by side."""
        language_model, size = self.language_model, self.plan.at_once
        lengths = np.array([len(after) for _, after in frames])
        alike = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        batches = [rows[start : start + size] for rows in alike for start in range(0, len(rows), size)]
        texts = [""] * len(frames)
        device = next(self.parameters()).device
        dtype = autocast_dtype(device) if device.type == "cuda" else None
        for rows in progress(batches, len(batches), "writing reports"):
            with autocast(device, dtype):
                seen = self.see(patches[rows].to(device), frames[0][0])
                after = torch.tensor([frames[row][1] for row in rows], dtype=torch.long, device=device)
                written = language_model.write(torch.cat([seen, language_model.embed(after)], 1), self.plan.max_tokens)
            for row, text in zip(rows, written, strict=True):
                texts[row] = text
        return texts


def read_patches(
    encoder: ImageEncoder, pixels: np.ndarray, plan: LanguageModelPlan, device: torch.device | str = "cpu"
) -> Tensor:
    """What is seen of images, uint8 ``(images, height, width)``: float16 ``(images, patches, channels)``."""

    def look(batch: Tensor) -> Tensor:
        patches = encoder.embed_layer(batch, plan.layer, plan.normalise)
        grid, side = math.isqrt(patches.shape[1]), math.isqrt(plan.visual_tokens)
        if not side or grid <= side:
            return patches
        maps = patches.transpose(1, 2).unflatten(2, (grid, grid))
        return functional.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)

    return torch.from_numpy(embed_images(look, pixels, plan.at_once, device)).half()


def read_in_parts(arm: EvaluatedModel, image_ids: Sequence[str], plan: LanguageModelPlan) -> Tensor:
    """As `read_patches` of images of the cohort, whose pixels are not all in memory at once."""
    store, device = arm.evaluation.store, arm.evaluation.device
    parts = np.split(np.array(image_ids), range(_READ_AT_ONCE, len(image_ids), _READ_AT_ONCE))
    seen = progress(parts, len(parts), "looking at training images")
    return torch.cat([read_patches(arm.encoder, store.read(part.tolist()), plan, device) for part in seen])


def train_aligned_model(arm: EvaluatedModel, rows: pd.DataFrame, plan: LanguageModelPlan, seed: int) -> AlignedModel:
    """Both stages on a frozen encoder, each read from the study where it is current.

    ``rows`` are of training, with what is to be written in the column ``text`` and what is known beforehand in
    ``indication``. Every image of theirs passes the encoder once.
    """
    run, device, texts = arm.evaluation.run, arm.evaluation.device, rows.text.tolist()
    inputs, parameters = [*arm.inputs, *[_PIXELS] * run.has(_PIXELS)], {"seed": seed, **arm.parameters}
    if plan.model == TINY:
        language_model, name = train_tiny_model(run, texts, plan.writing, seed, device)
        inputs.append(f"{name}.safetensors")
    else:
        language_model = load_language_model(plan.model).to(device)
        parameters["language_model"] = language_model.origin["revision"] or hash_weights(language_model)
    shape = read_in_parts(arm, rows.image_id.tolist()[:1], plan).shape[1:]
    model = AlignedModel(language_model, tuple(shape), plan, seed).to(device)
    answers = list_answers(language_model, texts, plan.max_tokens)
    told = {"plan": asdict(plan), "images": hash_texts(rows.image_id), "texts": hash_texts(texts)}
    folder = f"report_models/{name_encoder(arm.name)}-{hash_values(told)[:8]}/seed{seed}"
    read = cache(partial(read_in_parts, arm, rows.image_id.tolist(), plan))

    def train(stage: Stage, plain: bool, label: str) -> dict:
        patches, frames = read(), [model.frame(indication, plain) for indication in rows.indication]
        if plan.standardise:
            model.standardise_by(patches)

        def measure(batch: np.ndarray) -> Tensor:
            own = ([values[row] for row in batch] for values in (frames, answers))
            return model.sum_loss(patches[batch].to(device), *own)

        return train_stage(model, measure, answers, stage, seed, label, plan.at_once)

    def take(name: str, *what: object) -> None:
        train_or_load(run, f"{folder}/{name}", model, partial(train, *what), parameters | told, tuple(inputs))
        inputs.append(f"{folder}/{name}.safetensors")

    language_model.requires_grad_(False)
    take("alignment", plan.alignment, True, "aligning image and language")
    if plan.rank:
        add_low_rank_updates(language_model, plan.rank, plan.alpha, seed, plan.dropout)
        language_model.to(device)
    else:
        language_model.requires_grad_(True)
    take("tuning", plan.tuning, False, "learning to report")
    return model
