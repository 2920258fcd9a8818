"""Adapt the encoder itself with a linear head: biases only, low-rank updates, or all weights.

A linear layer on the pooled embedding and the chosen weights of the encoder are trained together on labelled images.
Each learning rate starts anew from the pretrained encoder; the one with the best macro AUROC on validation is kept.
CheXFound's code offers the same three (low-rank updates of rank 16, scale 16). Its crops and flips are left out: a flip
makes a left-sided heart of a right-sided one, and the frozen heads see no crops either.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from chexstudy.cohort.table import label_matrix
from chexstudy.devices import autocast, autocast_dtype
from chexstudy.encoders.embeddings import PixelSource, embed_images
from chexstudy.encoders.image import ImageEncoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.linear import INITIAL_SPREAD
from chexstudy.evaluation.adaptation.losses import make_loss
from chexstudy.evaluation.adaptation.training import METRICS, check_splits
from chexstudy.pretraining.models.parameter_efficient import add_low_rank_updates, bias_only, merge_low_rank_updates
from chexstudy.progress import progress
from chexstudy.statistics.ranking import macro_mean, rank_metrics

METHODS = ("bias_only", "low_rank", "full")


@dataclass(frozen=True)
class FineTuning:
    """How an encoder is fine-tuned."""

    method: str = "full"  # ``bias_only`` (BitFit), ``low_rank`` (LoRA) or ``full``
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)  # of the encoder; one training each
    head_learning_rate: float = 1e-3  # of the linear head, which starts from nothing
    epochs: int = 10  # over the labelled training images
    batch_size: int = 128  # images a step
    weight_decay: float = 1e-4  # of AdamW, for weights of two or more dimensions
    rank: int = 16  # of low-rank updates
    alpha: float = 16.0  # scale of low-rank updates

    def __post_init__(self):
        if not self.learning_rates or min(*self.learning_rates, self.head_learning_rate) <= 0:
            raise StudyError("fine-tuning needs one learning rate or more, each above 0.")
        if self.epochs < 1 or self.batch_size < 1:
            raise StudyError(
                f"fine-tuning needs at least one epoch and one image a batch, not {self.epochs} and {self.batch_size}."
            )


@dataclass(frozen=True)
class FineTunedEncoder:
    """An adapted encoder with its head."""

    encoder: ImageEncoder  # in evaluation mode, low-rank updates merged
    head: nn.Linear  # ``dim`` to one logit a finding
    learning_rate: float  # of the encoder, chosen on validation
    validation: pd.DataFrame  # macro AUROC and average precision on validation for each learning rate

    def score(self, image_ids: Sequence[str], pixels: PixelSource) -> np.ndarray:
        """Logits ``(images, findings)``, float64."""
        return _score(self.encoder, self.head, pixels.read(list(image_ids)), 256)


def fine_tune(
    encoder: ImageEncoder,
    pixels: PixelSource,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    findings: Sequence[str],
    settings: FineTuning,
    seed: int,
    device: torch.device | str = "cpu",
) -> FineTunedEncoder:
    """Fine-tune a copy of a pretrained encoder on labelled images, and choose the learning rate on validation.

    The seed is that of the head, of low-rank updates and of the order of the images.
    """
    check_splits(train, validation, findings)
    labels, validation_labels = label_matrix(train, list(findings)), label_matrix(validation, list(findings))
    images, validation_images = pixels.read(train.image_id), pixels.read(validation.image_id)
    best, tried, best_score = None, [], -math.inf
    for learning_rate in progress(settings.learning_rates, label=f"fine-tuning, {settings.method}"):
        adapted, head = _train(encoder, images, labels, learning_rate, settings, seed, device)
        scores = _score(adapted, head, validation_images, settings.batch_size)
        area, precision = (macro_mean(values) for values in rank_metrics(validation_labels, scores))
        tried.append((learning_rate, float(area), float(precision)))
        if np.isnan(area):
            raise StudyError(
                "no finding is both present and absent in the validation split: a learning rate cannot be chosen."
            )
        if area > best_score:
            best_score, best = area, (adapted, head, learning_rate)
    return FineTunedEncoder(*best, pd.DataFrame(tried, columns=["learning_rate", *METRICS]))


@contextmanager
def tune(
    encoder: ImageEncoder, settings: FineTuning, seed: int, device: torch.device | str = "cpu"
) -> Iterator[ImageEncoder]:
    """A copy of an encoder of which, inside, what the method says is trained; afterwards it is a plain, frozen one."""
    adapted = copy.deepcopy(encoder).to(device)
    adapted.requires_grad_(True)
    if settings.method == "bias_only":
        bias_only(adapted)
    elif settings.method == "low_rank":
        add_low_rank_updates(adapted, settings.rank, settings.alpha, seed)
    hooks = [
        module.register_forward_pre_hook(_want_gradient)
        for module in adapted.modules()
        if isinstance(module, nn.GroupNorm)
    ]
    yield adapted.train()
    for hook in hooks:
        hook.remove()
    merge_low_rank_updates(adapted)
    adapted.eval()


def _train(encoder, images, labels, learning_rate, settings: FineTuning, seed, device):
    with tune(encoder, settings, seed, device) as adapted:
        return adapted, _train_head(adapted, images, labels, learning_rate, settings, seed)


def _train_head(adapted, images, labels, learning_rate, settings: FineTuning, seed) -> nn.Linear:
    device, generator = next(adapted.parameters()).device, torch.Generator().manual_seed(seed)
    head = nn.Linear(adapted.dim, labels.shape[1]).to(device)
    with torch.no_grad():
        head.weight.copy_(torch.empty(head.weight.shape).normal_(0, INITIAL_SPREAD, generator=generator))
        head.bias.zero_()
    optimizer = make_optimizer(adapted, head, learning_rate, settings)
    steps = settings.epochs * math.ceil(len(images) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    measure_loss, dtype = make_loss("bce", labels), autocast_dtype(device)
    targets = torch.from_numpy(np.asarray(labels, dtype=np.float32))
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            batch = torch.from_numpy(images[rows.numpy()]).unsqueeze(1).to(device)
            with autocast(device, dtype):
                embedded = adapted(batch)
            loss = measure_loss(head(embedded.float()), targets[rows].to(device)) / len(rows)
            if not torch.isfinite(loss):
                raise StudyError(
                    f"fine-tuning at a learning rate of {learning_rate:g} gave a loss that is no number: leave it out."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def _want_gradient(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A forward pre-hook of group normalisation.

    torch 2.13 crashes in its backward pass on a CPU if maps lie channels last and want no gradient while its own
    weights do, as in the first layer when biases alone are trained.
    """
    if torch.is_grad_enabled() and not inputs[0].requires_grad:
        return (inputs[0].detach().requires_grad_(), *inputs[1:])
    return inputs


def make_optimizer(
    adapted: ImageEncoder, head: nn.Module, learning_rate: float, settings: FineTuning
) -> torch.optim.AdamW:
    """AdamW for what is trained of an encoder, at a learning rate, and for the head, at its own."""
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "lr": learning_rate, "weight_decay": settings.weight_decay},
        {"params": vectors, "lr": learning_rate, "weight_decay": 0.0},
        {"params": head.parameters(), "lr": settings.head_learning_rate, "weight_decay": settings.weight_decay},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


@torch.no_grad()
def _score(encoder, head, images, batch_size) -> np.ndarray:
    device = head.weight.device
    embedded = embed_images(encoder, images, batch_size, device)
    return head(torch.from_numpy(embedded).to(device)).cpu().numpy().astype(float)
