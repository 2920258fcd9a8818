"""Heads by name: which head, in which variant, trained how, on which share of the labelled patients.

A name such as ``glori_v2.no_pyramid@10`` is a kind, a variant and a share in percent. It names the scores that are kept
and stands in the results table, so that any two can be compared on the same patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from chexstudy.encoders.embeddings import PixelSource
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.encoders.image import ImageEncoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation import fine_tuning
from chexstudy.evaluation.adaptation.glori import GloriHead, glori_v1, glori_v2
from chexstudy.evaluation.adaptation.knn import fit_neighbours
from chexstudy.evaluation.adaptation.linear import fit_logistic, linear_head
from chexstudy.evaluation.adaptation.losses import LOSSES
from chexstudy.evaluation.adaptation.training import Recipe, fit_head

FROZEN_KINDS = ("linear", "logistic", "neighbours", "glori_v1", "glori_v2")
KINDS = (*FROZEN_KINDS, *fine_tuning.METHODS)
PUBLISHED_WIDTH = 768
LOCAL = "local"
_GLORI = {"glori_v1": glori_v1, "glori_v2": glori_v2}


class Scorer(Protocol):
    """What a fitted head can do."""

    def __call__(self, image_ids: Sequence[str]) -> np.ndarray:
        """Scores ``(images, findings)``, higher meaning more likely present."""


@dataclass(frozen=True)
class HeadPlan:
    """One head to fit."""

    kind: str  # one of `KINDS`
    variant: str = ""  # a word for what differs from the head of this kind; empty for the head itself
    # arguments of the head, such as ``{"pyramid": ()}``; for fine-tuning, fields of `FineTuning`
    options: Mapping[str, object] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)  # how a head that is trained by gradient is trained
    labelled_share: float = 1.0  # share of the labelled patients, of training and of validation, it may see

    def __post_init__(self):
        if self.kind not in KINDS:
            raise StudyError(f"there is no head {self.kind!r}: use {', '.join(KINDS)}.")
        if not 0 < self.labelled_share <= 1:
            raise StudyError(f"the share of labels must lie above 0 and be at most 1, not {self.labelled_share}.")

    @property
    def name(self) -> str:
        """``kind.variant@percent``, without the parts that are as usual."""
        share = f"@{100 * self.labelled_share:g}" if self.labelled_share < 1 else ""
        return self.kind + (f".{self.variant}" if self.variant else "") + share

    @property
    def needs_patches(self) -> bool:
        return self.kind in _GLORI


def split_head(name: str) -> tuple[str, str, float]:
    """Kind, variant and share of labels of a head's name."""
    name, _, percent = name.partition("@")
    kind, _, variant = name.partition(".")
    return kind, variant, float(percent) / 100 if percent else 1.0


def thin_patients(rows: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Rows of a random share of the patients, at least one.

    Of one seed, a smaller share is part of every larger one.
    """
    if share >= 1:
        return rows
    patients = np.sort(rows.patient_id.unique())
    order = np.random.default_rng(seed).permutation(patients)
    return rows[rows.patient_id.isin(order[: max(1, math.ceil(share * len(order)))])]


def fit_plan(
    plan: HeadPlan,
    features: FrozenFeatures,
    encoder: ImageEncoder,
    pixels: PixelSource,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    findings: Sequence[str],
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[object, Scorer]:
    """Fit one head.

    Args:
        plan: which, and how.
        features: of the frozen encoder, for training, validation and whatever is scored later.
        encoder: for fine-tuning.
        pixels: likewise.
        train, validation: cohort rows; thinned here to the plan's share of patients.
        findings: what is learnt.
        seed: of the head, of the order of the images and of the draw of patients.
        device: where heads are trained.

    Returns:
        The fitted head, and what scores images with it.
    """
    train, validation = (thin_patients(rows, plan.labelled_share, seed) for rows in (train, validation))
    if plan.kind in fine_tuning.METHODS:
        settings = fine_tuning.FineTuning(method=plan.kind, **plan.options)
        tuned = fine_tuning.fine_tune(encoder, pixels, train, validation, findings, settings, seed, device)
        return tuned, lambda image_ids: tuned.score(image_ids, pixels)
    if plan.kind == "logistic":
        fitted = fit_logistic(features, train, validation, findings, **plan.options)
    elif plan.kind == "neighbours":
        fitted = fit_neighbours(features, train, validation, findings, **plan.options)
    else:
        fitted = fit_head(
            _maker(plan, features, train, len(findings)),
            features,
            train,
            validation,
            findings,
            plan.recipe,
            seed,
            device,
        )
    return fitted, lambda image_ids: fitted.score(features, image_ids)


def _maker(plan: HeadPlan, features: FrozenFeatures, train: pd.DataFrame, findings: int):
    options = dict(plan.options)
    if plan.kind not in _GLORI:
        return lambda generator: linear_head(features, findings, generator=generator, **options)
    widths = features.widths[-options.pop("blocks", len(features.widths)) :]
    left_out = options.pop("skip_blocks", 0)
    if left_out >= len(widths):
        raise StudyError(f"{plan.name} leaves out {left_out} of {len(widths)} blocks: let it see one at least.")
    channels, options["skip"] = sum(widths[: len(widths) - left_out]), sum(widths[len(widths) - left_out :])
    statistics = None
    if options.get("standardise"):
        statistics = [torch.from_numpy(part) for part in features.measure_channels(train.image_id)]

    def make(generator: torch.Generator) -> GloriHead:
        head = _GLORI[plan.kind](channels, findings, generator=generator, **options)
        if statistics is not None:
            head.standardise_by(*statistics)
        return head

    return make


# --- the plans of a study --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GloriConstants:
    """Size and training of GLoRI, the same for both versions and all variants."""

    recipe: Recipe  # how it is trained
    options: Mapping[str, object]  # ``width``, ``heads``, ``feedforward`` and ``standardise`` of `GloriHead`


def plan_glori(
    epochs: int, batch_size: int, learning_rates: Sequence[float], width: int, standardise: bool
) -> GloriConstants:
    """Constants of GLoRI at a width; the published ones are a width of 768, batches of 128, channels as they come.

    Heads of attention are 16 wide (8 heads of 96 at a width of 768), the feed-forward layer is twice as wide (2,048).
    """
    if width < 16 or width % 16:
        raise StudyError(f"the width of GLoRI must be a multiple of 16, not {width}: use {max(1, width // 16) * 16}.")
    heads, feedforward = (8, 2048) if width == PUBLISHED_WIDTH else (width // 16, 2 * width)
    recipe = Recipe(tuple(learning_rates), epochs, batch_size, reduced_precision=True)
    size = {"width": width, "heads": heads, "feedforward": feedforward}
    return GloriConstants(recipe, size | {"standardise": standardise})


def plan_heads(kinds: Sequence[str], recipe: Recipe, glori: GloriConstants) -> list[HeadPlan]:
    """One plan a kind of head on frozen features.

    Args:
        kinds: among `FROZEN_KINDS`.
        recipe: of the linear probe.
        glori: constants of GLoRI.
    """
    wrong = [kind for kind in kinds if kind not in FROZEN_KINDS]
    if wrong:
        raise StudyError(f"there is no head {wrong[0]!r} on frozen features: use {', '.join(FROZEN_KINDS)}.")
    return [
        HeadPlan(kind, options=glori.options, recipe=glori.recipe) if kind in _GLORI else HeadPlan(kind, recipe=recipe)
        for kind in kinds
    ]


def plan_label_shares(kind: str, shares: Sequence[float], recipe: Recipe) -> list[HeadPlan]:
    """The same head on several shares of the labelled patients, all of them included."""
    return [HeadPlan(kind, recipe=recipe, labelled_share=share) for share in sorted({*shares, 1.0})]


def find_glori(name: str, glori: GloriConstants) -> HeadPlan:
    """The plan of a version of GLoRI or of one of its variants, by name."""
    known = {plan.name: plan for plan in (*plan_heads(tuple(_GLORI), Recipe(), glori), *plan_glori_variants(glori))}
    if name not in known:
        raise StudyError(f"there is no head {name!r} that looks at places: use {', '.join(known)}.")
    return known[name]


def plan_glori_variants(glori: GloriConstants) -> list[HeadPlan]:
    """Version 2 with one part changed at a time, the component ablation of CheXFound (its Table 11); and local heads.

    The ``local`` variants of both versions do not see the last block. Where that one has seen the whole image, as the
    last stage of a convolutional encoder has, its tokens tell the same everywhere and a query need not look anywhere.
    """
    scaled = bool(glori.options["standardise"])
    changes = {
        "no_temperature": {"temperature": False},
        "no_pyramid": {"pyramid": ()},
        "no_cls": {"cat_cls": False},
        "channels_as_they_come" if scaled else "channels_standardised": {"standardise": not scaled},
        "learnable_queries": {"learnable_queries": True},
        "one_block": {"blocks": 1},
        LOCAL: {"skip_blocks": 1},
    }
    second = [HeadPlan("glori_v2", name, {**glori.options, **change}, glori.recipe) for name, change in changes.items()]
    return [*second, HeadPlan("glori_v1", LOCAL, {**glori.options, **changes[LOCAL]}, glori.recipe)]


def plan_probe_features(recipe: Recipe) -> list[HeadPlan]:
    """The linear probe on other features than the CLS tokens of four blocks."""
    variants = {"cls_and_mean": {"parts": "cls+mean"}, "mean_patch": {"parts": "mean"}, "pooled": {"parts": "pooled"}}
    return [HeadPlan("linear", name, options, recipe) for name, options in variants.items()]


def plan_losses(recipe: Recipe) -> list[HeadPlan]:
    """The linear probe under each loss for the tail; plain cross-entropy is the probe itself."""
    return [
        HeadPlan("linear", f"{loss}_loss", recipe=replace(recipe, loss=loss)) for loss in LOSSES if loss != recipe.loss
    ]


def plan_tuning(methods: Sequence[str], epochs: int) -> list[HeadPlan]:
    """Each way to tune the encoder itself."""
    wrong = [method for method in methods if method not in fine_tuning.METHODS]
    if wrong:
        raise StudyError(f"an encoder is tuned by {', '.join(fine_tuning.METHODS)}, not {wrong[0]!r}.")
    return [HeadPlan(method, options={"epochs": epochs}) for method in methods]
