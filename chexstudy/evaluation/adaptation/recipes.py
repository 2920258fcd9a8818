"""Heads by name: which head, in which variant, trained how, on which share of the labelled patients."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.table import label_matrix
from chexstudy.encoders.embeddings import PixelSource
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.encoders.image import ImageEncoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation import fine_tuning
from chexstudy.evaluation.adaptation.glori import VERSIONS, GloriHead
from chexstudy.evaluation.adaptation.knn import fit_neighbours
from chexstudy.evaluation.adaptation.linear import LinearHead, count_channels, read_vectors
from chexstudy.evaluation.adaptation.logistic_path import fit_linear_probe
from chexstudy.evaluation.adaptation.losses import LOSSES
from chexstudy.evaluation.adaptation.training import Recipe, check_splits, fit_head

# Heads that are not trained by gradient: how they are fitted, and what they read (`linear.count_channels`).
_BY_VECTORS = {"logistic": (fit_linear_probe, "cls+mean"), "neighbours": (fit_neighbours, "pooled")}
FROZEN_KINDS = ("linear", *_BY_VECTORS, *VERSIONS)
PUBLISHED_WIDTH = 768
LOCAL = "local"
# Scores ``(images, findings)`` of images, higher meaning more likely present.
Scorer = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class HeadPlan:
    """One head to fit."""

    kind: str  # one of `FROZEN_KINDS`, or a method of `fine_tuning`
    variant: str = ""  # a word for what differs from the head of this kind; empty for the head itself
    # arguments of the head, such as ``{"pyramid": ()}``; for fine-tuning, fields of `FineTuning`
    options: Mapping[str, object] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)  # how a head that is trained by gradient is trained
    labelled_share: float = 1.0  # share of the labelled patients, of training and of validation, it may see
    side: int = 0  # pixels a side at which the frozen encoder looks; 0 for its own size

    def __post_init__(self):
        check_labelled_share(self.labelled_share)

    @property
    def name(self) -> str:
        return name_fitted(self.kind, self.variant, self.labelled_share)

    @property
    def needs_patches(self) -> bool:
        return self.kind in VERSIONS


def check_labelled_share(share: float) -> None:
    if not 0 < share <= 1:
        raise StudyError(f"the share of labels must lie above 0 and be at most 1, not {share}.")


def name_fitted(kind: str, variant: str, labelled_share: float) -> str:
    """``kind.variant@percent``, without the parts that are as usual: what artifacts are called."""
    share = f"@{100 * labelled_share:g}" if labelled_share < 1 else ""
    return kind + (f".{variant}" if variant else "") + share


def name_share(labelled_share: float) -> str:
    """A share of the labels as the results table has it in ``setting``, empty for all of them."""
    return f"{labelled_share:g}" if labelled_share < 1 else ""


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
    """Fit one head; gives it, and what scores images with it.

    The ``features`` of the frozen encoder are for training, validation and whatever is scored later, ``encoder`` and
    ``pixels`` for fine-tuning. The cohort rows are thinned here to the plan's share of patients, by the ``seed`` of the
    head and of the order of the images.
    """
    train, validation = (thin_patients(rows, plan.labelled_share, seed) for rows in (train, validation))
    if plan.kind in fine_tuning.METHODS:
        settings = fine_tuning.FineTuning(method=plan.kind, **plan.options)
        tuned = fine_tuning.fine_tune(encoder, pixels, train, validation, findings, settings, seed, device)
        return tuned, lambda image_ids: tuned.score(image_ids, pixels)
    if plan.kind in _BY_VECTORS:
        fit, parts = _BY_VECTORS[plan.kind]
        check_splits(train, validation, findings)
        read = [
            (read_vectors(features, rows.image_id, parts), label_matrix(rows, list(findings)))
            for rows in (train, validation)
        ]
        probe = fit(*read[0], *read[1])
        return probe, lambda image_ids: probe.score(read_vectors(features, image_ids, parts))
    make_head = _maker(plan, features, train, len(findings))
    fitted = fit_head(make_head, features, train, validation, findings, plan.recipe, seed, device)
    return fitted, lambda image_ids: fitted.score(features, image_ids)


def _maker(plan: HeadPlan, features: FrozenFeatures, train: pd.DataFrame, findings: int):
    options = dict(plan.options)
    if plan.kind not in VERSIONS:
        channels = count_channels(features, **options)
        return lambda generator: LinearHead(findings, **channels, generator=generator)
    widths = features.widths[-options.pop("blocks", len(features.widths)) :]
    left_out = options.pop("skip_blocks", 0)
    if left_out >= len(widths):
        raise StudyError(f"{plan.name} leaves out {left_out} of {len(widths)} blocks: let it see one at least.")
    channels, options["skip"] = sum(widths[: len(widths) - left_out]), sum(widths[len(widths) - left_out :])
    statistics = None
    if options.get("standardise"):
        statistics = [torch.from_numpy(part) for part in features.measure_channels(train.image_id)]

    def make(generator: torch.Generator) -> GloriHead:
        head = GloriHead(channels, findings, generator=generator, **(VERSIONS[plan.kind] | options))
        if statistics is not None:
            head.standardise_by(*statistics)
        return head

    return make


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
    size = {"width": width, "heads": heads, "feedforward": feedforward}
    return GloriConstants(Recipe(tuple(learning_rates), epochs, batch_size), size | {"standardise": standardise})


def find_glori(name: str, glori: GloriConstants) -> HeadPlan:
    """The plan of a version of GLoRI or of one of its variants, by name."""
    known = {plan.name: plan for plan in (*plan_heads(tuple(VERSIONS), Recipe(), glori), *plan_glori_variants(glori))}
    if name not in known:
        raise StudyError(f"there is no head {name!r} that looks at places: use {', '.join(known)}.")
    return known[name]


# What is compared: an arm and a head against another arm, another head, or both.
Pair = tuple[tuple[str, HeadPlan], tuple[str, HeadPlan]]


@dataclass(frozen=True)
class StudyPlans:
    """Every head that a study fits."""

    heads: list[HeadPlan]  # on frozen features, as asked for
    shares: list[HeadPlan]  # logistic regression on shares of the labelled patients and on all, but those in `heads`
    glori_variants: list[HeadPlan]  # see `plan_glori_variants`
    probe_variants: list[HeadPlan]  # the linear probe on other features and under other losses, and the encoder tuned

    def find(self, name: str) -> list[HeadPlan]:
        """The head of a name, or none."""
        return [plan for plan in (*self.heads, *self.shares) if plan.name == name]

    def pair_glori(self, arms: Sequence[str]) -> list[Pair]:
        """GLoRI against the linear probe and against logistic regression, on each encoder."""
        glori = [plan for plan in self.heads if plan.kind in VERSIONS]
        bases = [base for kind in ("linear", "logistic") for base in self.find(kind)]
        return [((arm, head), (arm, base)) for arm in arms for base in bases for head in glori]

    def pair_label_shares(self, arms: Sequence[str], share: float) -> list[Pair]:
        """The first encoder with a share of the labels against each other encoder with all of them."""
        few = [plan for plan in self.shares if plan.labelled_share == share]
        return [((arms[0], one), (arm, whole)) for one in few for arm in arms[1:] for whole in self.find("logistic")]

    def pair_glori_variants(self, arm: str) -> list[Pair]:
        """Every variant of GLoRI, and version 1, against version 2."""
        variants = self.glori_variants + (self.find("glori_v1") if self.glori_variants else [])
        return [((arm, plan), (arm, base)) for plan in variants for base in self.find("glori_v2")]

    def pair_probe_variants(self, arm: str) -> list[Pair]:
        """Every variant of the linear probe, and every tuned encoder, against the probe."""
        return [((arm, plan), (arm, base)) for plan in self.probe_variants for base in self.find("linear")]


def plan_study(
    findings: Sequence[str],
    kinds: Sequence[str],
    recipe: Recipe,
    glori: GloriConstants,
    label_shares: Sequence[float],
    tune: Sequence[str],
    tune_epochs: int,
) -> StudyPlans:
    """The heads of a study, from what its parameters say; none without a kind of head or a labelled finding.

    ``kinds`` are heads on frozen features, ``recipe`` the linear probe's, ``label_shares`` shares of the labelled
    patients, for logistic regression, ``tune`` ways to tune the encoder.
    """
    kinds = list(kinds) if findings else []
    heads = plan_heads(kinds, recipe, glori)
    shares = [HeadPlan("logistic", recipe=recipe, labelled_share=one) for one in sorted({*label_shares, 1.0})]
    return StudyPlans(
        heads,
        [plan for plan in shares if plan.name not in kinds] if heads else [],
        plan_glori_variants(glori) if "glori_v2" in kinds else [],
        plan_probe_variants(recipe) + plan_tuning(tune, tune_epochs) if "linear" in kinds else [],
    )


def plan_heads(kinds: Sequence[str], recipe: Recipe, glori: GloriConstants) -> list[HeadPlan]:
    """One plan a kind of head on frozen features; ``recipe`` is that of the linear probe."""
    wrong = [kind for kind in kinds if kind not in FROZEN_KINDS]
    if wrong:
        raise StudyError(f"there is no head {wrong[0]!r} on frozen features: use {', '.join(FROZEN_KINDS)}.")
    of_glori = {"options": glori.options, "recipe": glori.recipe}
    return [HeadPlan(kind, **(of_glori if kind in VERSIONS else {"recipe": recipe})) for kind in kinds]


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


def plan_probe_variants(recipe: Recipe) -> list[HeadPlan]:
    """The linear probe on other features than the CLS tokens, and under each loss for the tail."""
    parts = {"cls_and_mean": "cls+mean", "mean_patch": "mean", "pooled": "pooled"}
    features = [HeadPlan("linear", name, {"parts": part}, recipe) for name, part in parts.items()]
    losses = [loss for loss in LOSSES if loss != recipe.loss]
    return features + [HeadPlan("linear", f"{loss}_loss", recipe=replace(recipe, loss=loss)) for loss in losses]


def plan_tuning(methods: Sequence[str], epochs: int) -> list[HeadPlan]:
    """Each way to tune the encoder itself."""
    wrong = [method for method in methods if method not in fine_tuning.METHODS]
    if wrong:
        raise StudyError(f"an encoder is tuned by {', '.join(fine_tuning.METHODS)}, not {wrong[0]!r}.")
    return [HeadPlan(method, options={"epochs": epochs}) for method in methods]
