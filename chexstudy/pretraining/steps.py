"""One training step: score without gradient, and train on kept pairs with cached gradients.

The contrastive loss couples all pairs of a batch, so a large batch cannot simply be cut into pieces. With cached
gradients (Gao et al. 2021, GradCache) it can: embed all pairs without gradient, compute the loss and its gradient with
respect to the embeddings, then encode piece by piece again and push that gradient through. The sum is the gradient of
the whole batch. Because scoring has already embedded the kept pairs, that first pass costs nothing here.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from chexstudy.pretraining.compute import FlopMeter
from chexstudy.pretraining.loss import contrastive_loss
from chexstudy.pretraining.model import ImageTextModel
from chexstudy.pretraining.pairs import TokenGroup, TrainingPairs


@dataclass
class StepStatistics:
    """What a step reports.

    Attributes:
        loss: contrastive loss of the batch.
        matched_cosine: mean similarity of an image and its own text.
        unmatched_cosine: mean similarity of an image and the texts of others.
    """

    loss: float
    matched_cosine: float
    unmatched_cosine: float


@dataclass
class PairEncoder:
    """Encodes training pairs in micro-batches and counts what that costs.

    Attributes:
        model: the image-text model.
        pairs: the training pairs.
        device: where the model is.
        micro_batch: pairs encoded at once.
        autocast: type of mixed precision, or None.
        dropout_seed: maps the number of a micro-batch to the seed under which it is encoded, so that a second encoding
            drops the same units; None where dropout is off.
    """

    model: ImageTextModel
    pairs: TrainingPairs
    device: torch.device
    micro_batch: int
    autocast: torch.dtype | None = None
    dropout_seed: Callable[[int], int] | None = None
    flops: float = 0.0
    meter: FlopMeter = field(init=False)

    def __post_init__(self):
        self.meter = FlopMeter(self.model.image_tower, self.model.text_tower, self.model)

    def _precision(self):
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def encode(self, rows: np.ndarray, piece: int, backward: bool) -> tuple[Tensor, Tensor]:
        """Image and text embeddings ``(batch, dim)`` of one micro-batch, float32."""
        pixels, groups = self.pairs.pixels(rows, self.device), self.pairs.tokens(rows, self.device)
        self.flops += self._count(pixels, groups, backward)
        if self.dropout_seed is not None:
            torch.manual_seed(self.dropout_seed(piece))
        with self._precision():
            image = self.model.image_tower(pixels)
            texts = torch.cat([self.model.text_tower(group.input_ids, group.mask) for group in groups])
        return image, texts[torch.argsort(torch.cat([group.positions for group in groups]))]

    def _count(self, pixels: Tensor, groups: list[TokenGroup], backward: bool) -> float:
        texts = sum(self.meter.texts(group.input_ids, group.mask, backward) for group in groups)
        return self.meter.images(pixels, backward) + texts

    def count_step(self, rows: np.ndarray) -> float:
        """Operations that `backward` would spend on ``rows``, without spending them."""
        parts = self.pieces(rows)
        passes = [True] if len(parts) == 1 else [False, True]
        inputs = [(self.pairs.pixels(part, self.device), self.pairs.tokens(part, self.device)) for part in parts]
        encoding = sum(self._count(*part, backward) for part in inputs for backward in passes)
        return encoding + self.meter.loss(len(rows), self.model.dim)

    def pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        return np.array_split(rows, max(1, -(-len(rows) // self.micro_batch)))

    @torch.no_grad()
    def embed(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Image and text embeddings ``(len(rows), dim)``, without gradient."""
        encoded = [self.encode(part, piece, backward=False) for piece, part in enumerate(self.pieces(rows))]
        return torch.cat([image for image, _ in encoded]), torch.cat([text for _, text in encoded])

    def backward(
        self, rows: np.ndarray, embedded: tuple[Tensor, Tensor] | None = None, weights: Tensor | None = None
    ) -> StepStatistics:
        """Accumulate the gradient of the contrastive loss over all of ``rows``, whatever the micro-batch.

        Args:
            rows: the batch.
            embedded: the embeddings of ``rows`` under the present parameters, if they are known; valid only with
                dropout off.
            weights: of the pairs in the loss ``(len(rows),)``; each counts once without them.

        Returns:
            Loss and similarities of the batch.
        """
        parts = self.pieces(rows)
        if len(parts) == 1:
            image, text = self.encode(rows, 0, backward=True)
            loss = contrastive_loss(image, text, self.model.bounded_logit_scale(), weights)
            loss.backward()
        else:
            if embedded is None or self.dropout_seed is not None:
                embedded = self.embed(rows)
            image, text = (side.detach().requires_grad_() for side in embedded)
            loss = contrastive_loss(image, text, self.model.bounded_logit_scale(), weights)
            loss.backward()
            bounds = np.cumsum([0, *(len(part) for part in parts)])
            for piece, part in enumerate(parts):
                span = slice(bounds[piece], bounds[piece + 1])
                outputs = self.encode(part, piece, backward=True)
                torch.autograd.backward(outputs, (image.grad[span], text.grad[span]))
        self.flops += self.meter.loss(len(rows), self.model.dim)
        return _statistics(loss.detach(), image.detach(), text.detach())


def _statistics(loss: Tensor, image: Tensor, text: Tensor) -> StepStatistics:
    cosine = image @ text.T
    matched = cosine.diagonal().mean()
    others = len(cosine) * (len(cosine) - 1)
    unmatched = (cosine.sum() - cosine.diagonal().sum()) / max(others, 1)
    return StepStatistics(float(loss), float(matched), float(unmatched))
