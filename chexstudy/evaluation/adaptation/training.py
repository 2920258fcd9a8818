"""Train a head on frozen features as CheXFound does: every learning rate in one pass over the data.

Source: CheXFound (arXiv 2502.05142) and its public code: thirteen learning rates, one head and one AdamW each, binary
cross-entropy summed over findings and images, weight decay 1e-4, a cosine to 0 step by step, 10 epochs of batches of
128. The head with the best mean over findings on the validation split is kept; the test split is never looked at.

Where we depart from it: no crops or flips, since features are computed once; every head of a sweep starts from the same
weights, so that learning rates alone are compared; uncertain and unstated labels are masked; a head whose logits are no
longer finite is out of the race, where the public code sets such gradients to 0; the chosen head is not trained once
more on training and validation images together.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from chexstudy.cohort.table import label_matrix
from chexstudy.devices import autocast, autocast_dtype
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.losses import LOSSES, make_loss
from chexstudy.progress import progress
from chexstudy.statistics.ranking import known_labels, macro_mean, rank_metrics

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
METRICS = ("auroc", "auprc")
_SCORED_AT_ONCE = 256


@dataclass(frozen=True)
class Recipe:
    """How heads are trained; the defaults are the published ones."""

    learning_rates: tuple[float, ...] = LEARNING_RATES  # the sweep; one head each
    epochs: int = 10  # over the training images
    batch_size: int = 128  # images a step; the last batch of an epoch may be smaller
    weight_decay: float = 1e-4  # of AdamW, for all weights
    loss: str = "bce"  # as in `chexstudy.evaluation.adaptation.losses.make_loss`

    def __post_init__(self):
        rates = tuple(self.learning_rates)
        if not rates or len(set(rates)) < len(rates) or not all(0 < rate < math.inf for rate in rates):
            raise StudyError("a sweep needs one learning rate or more, each above 0 and each once.")
        if self.epochs < 1 or self.batch_size < 1 or not 0 <= self.weight_decay < math.inf:
            raise StudyError(
                "a head is trained for 1 epoch or more, on 1 image or more a batch and with a weight decay of 0 or "
                f"more, not {self.epochs}, {self.batch_size} and {self.weight_decay}."
            )
        if self.loss not in LOSSES:
            raise StudyError(f"there is no loss {self.loss!r}: use one of {', '.join(LOSSES)}.")


@dataclass(frozen=True)
class FittedHead:
    """A trained head."""

    head: nn.Module  # in evaluation mode
    learning_rate: float  # the one chosen on validation
    # One row a learning rate: ``learning_rate``, ``auroc`` and ``auprc``, means over the findings that the validation
    # split can judge, and ``finite``; the means are NaN where it can judge none or where the head's logits were not
    # finite.
    validation: pd.DataFrame
    encoder: dict  # `ImageEncoder.describe` of the encoder whose features it was trained on
    findings: tuple[str, ...]  # in the order of the logits

    def score(self, features: FrozenFeatures, image_ids: Sequence[str]) -> np.ndarray:
        """Logits ``(images, findings)``, float64."""
        features.check_encoder(self.encoder)
        return _score([self.head], features, features.rows(image_ids))[0].astype(float)


def fit_head(
    make_head: Callable[[torch.Generator], nn.Module],
    features: FrozenFeatures,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    findings: Sequence[str],
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
) -> FittedHead:
    """Train one head a learning rate, all in one pass over the data, and keep the best on validation.

    A head is a module whose ``forward`` takes a `FeatureBatch` and gives logits ``(batch, findings)``, with the class
    attribute ``needs_patches``. Each batch is read once for all heads. A head's result does not depend on which other
    learning rates are tried. Equally good learning rates: the first of the recipe is taken.

    Args:
        make_head: makes a head with weights drawn from the generator.
        train, validation: cohort rows to train on, and to choose the learning rate on by the macro AUROC.
        findings: what is learnt; labels 1 and 0, all others are masked.
        seed: of the weights, of the order of the images and of dropout. The global random state is left as it was.
    """
    findings = tuple(findings)
    check_splits(train, validation, findings)
    labels, validation_labels = label_matrix(train, list(findings)), label_matrix(validation, list(findings))
    rows, validation_rows = features.rows(train.image_id), features.rows(validation.image_id)
    heads = [make_head(torch.Generator().manual_seed(seed)).to(device) for _ in recipe.learning_rates]
    _train(heads, features, rows, labels, recipe, seed)
    table = _judge(heads, recipe, features, validation_rows, validation_labels)
    if not table.finite.any():
        raise StudyError("no learning rate of the sweep gives finite logits: try smaller ones.")
    chosen = choose_row(table, "learning rate")
    head = heads[chosen].requires_grad_(False).eval()
    return FittedHead(head, float(recipe.learning_rates[chosen]), table, features.encoder, findings)


def check_splits(train: pd.DataFrame, validation: pd.DataFrame, findings: Sequence[str]) -> None:
    """Make sure that heads can be trained and chosen on these rows of the cohort."""
    if not len(findings):
        raise StudyError("there is no finding to learn: name one of the cohort's findings at least.")
    for name, rows in (("training", train), ("validation", validation)):
        if rows.empty:
            raise StudyError(f"the {name} split has no images: give some patients the split.")
        missing = [finding for finding in findings if finding not in rows.columns]
        if missing:
            raise StudyError(f"the cohort has no finding {missing[0]!r}: name findings of its table.")
    for unit in ("image_id", "patient_id"):
        if unit in train.columns and unit in validation.columns and train[unit].isin(validation[unit]).any():
            raise StudyError(
                f"some {unit.removesuffix('_id')}s are in training and in validation, where the head would be chosen "
                "on what it was trained on: give all images of a patient one split."
            )
    known = known_labels(label_matrix(train, list(findings))).any(axis=0)
    if not known.any():
        raise StudyError(
            "no label of the training split is known, all are uncertain or not stated: label some images as present "
            "or absent."
        )
    if not known.all():
        finding = findings[int(np.flatnonzero(~known)[0])]
        raise StudyError(
            f"{finding} has no known label in the training split, all are uncertain or not stated: label some images "
            "or leave the finding out."
        )


def choose_row(table: pd.DataFrame, what: str) -> int:
    """The row with the largest ``auroc``, the first of equal ones; one row alone needs no choice."""
    if len(table) > 1 and table.auroc.isna().all():
        raise StudyError(
            f"no finding is both present and absent in the validation split, so no {what} can be chosen: move some "
            f"patients to it, or name one {what} alone."
        )
    return int(table.auroc.fillna(-1.0).argmax())


def _train(
    heads: Sequence[nn.Module],
    features: FrozenFeatures,
    rows: np.ndarray,
    labels: np.ndarray,
    recipe: Recipe,
    seed: int,
) -> None:
    """Train the heads in place, each at its learning rate, on the same batches in the same order."""
    device = next(heads[0].parameters()).device
    measure_loss = make_loss(recipe.loss, labels)
    # Heads that look at patches compute in bfloat16 where the device gains by it, which halves the time of GLoRI on a
    # CPU that has it; weights, losses and scores stay in float32. Vectors are too small to gain.
    dtype = autocast_dtype(device) if heads[0].needs_patches else None
    targets = torch.from_numpy(np.asarray(labels, dtype=np.float32))
    groups = [
        {"params": [weight for weight in head.parameters() if weight.requires_grad], "lr": rate}
        for head, rate in zip(heads, recipe.learning_rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
    steps = recipe.epochs * math.ceil(len(rows) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    generator = torch.Generator().manual_seed(seed)
    for head in heads:
        head.train()
    for chosen, dropout_seed in progress(_draw_batches(rows, recipe, generator), steps, "training heads"):
        batch = features.read_batch(rows[chosen], heads[0].needs_patches, device)
        known = targets[chosen].to(device)
        optimizer.zero_grad()
        losses = []
        for head in heads:
            with seeded(dropout_seed, device), autocast(device, dtype):
                logits = head(batch)
            losses.append(measure_loss(logits.float(), known))
        # Heads share no weight: the gradient of the sum is each head's own.
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()


def _draw_batches(rows: np.ndarray, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """Positions of each batch among ``rows``, in the order in which they lie on disk, and a seed for its dropout."""
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(rows), generator=generator).split(recipe.batch_size):
            positions = batch.numpy()
            yield positions[np.argsort(rows[positions])], int(torch.randint(2**62, (1,), generator=generator))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout inside draws from a seed, alike for every head; the global random state is left as it was."""
    # Not torch.manual_seed: it seeds every device and keeps a stack trace of each call until CUDA is first used.
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index or 0]
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _judge(
    heads: Sequence[nn.Module], recipe: Recipe, features: FrozenFeatures, rows: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    """Means over findings of AUROC and average precision of each head; NaN where its logits are not finite."""
    table = []
    for learning_rate, logits in zip(recipe.learning_rates, _score(heads, features, rows), strict=True):
        finite = np.isfinite(logits).all()
        means = [macro_mean(values) for values in rank_metrics(labels, logits)] if finite else [np.nan] * len(METRICS)
        table.append((float(learning_rate), *map(float, means), bool(finite)))
    return pd.DataFrame(table, columns=["learning_rate", *METRICS, "finite"])


@torch.no_grad()
def _score(heads: Sequence[nn.Module], features: FrozenFeatures, rows: np.ndarray) -> list[np.ndarray]:
    device = next(heads[0].parameters()).device
    for head in heads:
        head.eval()
    logits: list[list[np.ndarray]] = [[] for _ in heads]
    for start in range(0, len(rows), _SCORED_AT_ONCE):
        batch = features.read_batch(rows[start : start + _SCORED_AT_ONCE], heads[0].needs_patches, device)
        for kept, head in zip(logits, heads, strict=True):
            kept.append(head(batch).cpu().numpy())
    return [np.concatenate(kept) for kept in logits]
