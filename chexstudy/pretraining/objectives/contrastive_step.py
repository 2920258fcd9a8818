"""One training step: score without gradient, and train on kept pairs with cached gradients.

The contrastive loss couples all pairs of a batch, so a large batch cannot simply be cut into pieces. With cached
gradients (Gao et al. 2021, GradCache) it can: embed all pairs without gradient, compute the loss and its gradient with
respect to the embeddings, then encode piece by piece again and push that gradient through. The sum is the gradient of
the whole batch. Where scoring has already embedded the kept pairs, that first pass costs nothing here. The same cut
shares a batch out over processes, see `chexstudy.pretraining.engine.distributed`.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import InitVar, dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from chexstudy.devices import autocast
from chexstudy.pretraining.configuration import TOWERS
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.loading import StallMeter, prefetch
from chexstudy.pretraining.engine.micro_batch import MicroBatch
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.models.texts import TextBatch, encode_texts
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss
from chexstudy.pretraining.objectives.pair_flops import PairFlopMeter

_Outcome = TypeVar("_Outcome")


@dataclass
class PairEncoder:
    """Encodes training pairs in micro-batches and counts what that costs."""

    model: ImageTextModel  # the image-text model
    pairs: TrainingPairs  # the training pairs
    device: torch.device  # where the model is
    micro_batch: InitVar[int]  # pairs encoded at once; halved where memory does not suffice
    autocast: torch.dtype | None = None  # type of mixed precision, or None
    processes: Processes = field(default_factory=Processes)  # those that share the batches out
    text_layout: str = "buckets"  # see `chexstudy.pretraining.models.texts`
    equal_shapes: bool = False  # fill the last micro-batch up, so that compiled blocks see one shape
    # of encoders that are not trained, by tower: ``(pairs, encoder dim)``, float32
    features: dict[str, np.ndarray] = field(default_factory=dict)
    # Maps the number of a micro-batch to the seed under which it is encoded, so that a second encoding drops the same
    # units; None where dropout is off.
    dropout_seed: Callable[[int], int] | None = None
    flops: float = 0.0  # operations spent so far by this process
    meter: PairFlopMeter = field(init=False)
    micro: MicroBatch = field(init=False)
    stall: StallMeter = field(default_factory=StallMeter)  # how long the device waited for pixels

    def __post_init__(self, micro_batch: int):
        self.micro = MicroBatch(micro_batch, self.device, "pair", "encoder, image_size or max_tokens")
        self.meter = PairFlopMeter(self.model.image_tower, self.model.text_tower, self.model)

    def encode(
        self, rows: np.ndarray, piece: int, backward: bool, size: int | None = None, pixels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image and text embeddings ``(batch, dim)`` of one micro-batch, float32.

        Its number ``piece`` decides what dropout drops; ``backward`` says whether the operations of a backward pass are
        counted too; ``size`` is the side at which images are looked at; ``pixels`` are given where they were loaded
        ahead.
        """
        if self.dropout_seed is not None:
            torch.manual_seed(self.dropout_seed(piece))
        with autocast(self.device, self.autocast):
            image = self._encode_side("image", rows, backward, size, pixels)
            return image, self._encode_side("text", rows, backward)

    def _encode_side(self, side, rows, backward, size=None, pixels=None, projects: bool = True) -> Tensor:
        tower = self.model.tower(side)
        given, flops = self._read_side(side, rows, backward, size, pixels)
        self.flops += flops
        if side in self.features:
            return tower.project(given)
        encode = tower if projects else tower.encoder
        return encode_texts(encode, given) if side == "text" else encode(given, size)[: len(rows)]

    def _read_side(self, side, rows, backward, size=None, pixels=None) -> tuple[Tensor | TextBatch, float]:
        """What a tower takes of some rows, and the operations that it spends on it."""
        if side in self.features:
            given = torch.from_numpy(np.asarray(self.features[side][rows])).to(self.device)
            # One product forward and, because nothing that learns lies beneath the projection, one backward.
            return given, 2.0 * given.numel() * self.model.dim * (2 if backward else 1)
        if side == "text":
            batch = self.pairs.texts.batch(rows, self.device, self.text_layout)
            return batch, self.meter.texts(batch, backward)
        pixels = (self.pairs.pixels(rows) if pixels is None else pixels).to(self.device, non_blocking=True)
        if self.equal_shapes and len(pixels) < self.micro.size:
            pixels = torch.cat([pixels, pixels[:1].expand(self.micro.size - len(pixels), -1, -1, -1)])
        return pixels, self.meter.images(pixels, backward, size)

    def pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """Micro-batches of nearly equal size."""
        return np.array_split(rows, max(1, self.micro.count_pieces(len(rows))))

    def embed(self, rows: np.ndarray, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Image and text embeddings ``(len(rows), dim)`` of all processes' rows, without gradient."""
        return self._embed(rows, (self.model.dim,) * 2, lambda *given: self.encode(*given[:2], False, size, given[2]))

    def embed_frozen(self, side: str, rows: np.ndarray) -> Tensor:
        """What an encoder that is not trained makes of all processes' rows, before projection ``(len(rows), dim)``."""

        def encode(part: np.ndarray, piece: int, pixels: Tensor | None) -> tuple[Tensor]:
            with autocast(self.device, self.autocast):
                return (self._encode_side(side, part, False, pixels=pixels, projects=False).float(),)

        return self._embed(rows, (self.model.tower(side).encoder.dim,), encode, side == "image")[0]

    def _embed(self, rows, dims, encode: Callable[..., tuple[Tensor, ...]], needs_pixels=True) -> tuple[Tensor, ...]:
        own = rows[self.processes.share(len(rows))]

        @torch.no_grad()
        def embed_own() -> list[Tensor]:
            encoded = [tuple(torch.empty((0, dim), device=self.device) for dim in dims)]
            loaded = self._loaded(own, needs_pixels) if len(own) else ()
            encoded += [encode(part, piece, pixels) for piece, (part, _, pixels) in enumerate(loaded)]
            return [torch.cat(parts) for parts in zip(*encoded, strict=True)]

        return tuple(self.processes.gather(side, len(rows)) for side in self._halving(embed_own))

    def _loaded(self, rows: np.ndarray, needs_pixels: bool = True) -> Iterator[tuple[np.ndarray, slice, Tensor | None]]:
        """The micro-batches of ``rows``, where they lie in it, and their pixels, loaded while the device computes."""
        parts = self.pieces(rows)
        bounds = np.cumsum([0, *(len(part) for part in parts)])
        spans = [slice(start, stop) for start, stop in pairwise(bounds)]

        def load(number: int) -> Tensor | None:
            if "image" in self.features or not needs_pixels:
                return None
            return self.pairs.pixels(parts[number], pin_memory=self.device.type == "cuda")

        with closing(prefetch(range(len(parts)), load, self.stall)) as loaded:
            yield from zip(parts, spans, loaded, strict=True)

    def backward(
        self, rows: np.ndarray, embedded: tuple[Tensor, Tensor] | None = None, weights: Tensor | None = None
    ) -> dict[str, float]:
        """Set the gradient of the contrastive loss over all of ``rows``, the same in every process, whatever the
        micro-batch.

        The embeddings of these rows under the present parameters may be given if they are known; with dropout they are
        not used. Weights of the pairs in the loss are ``(len(rows),)``; each counts once without them.

        Gives the ``loss`` and the mean similarities of images with their own texts, ``matched_cosine``, and with those
        of others, ``unmatched_cosine``.
        """
        share, model, before = self.processes.share(len(rows)), self.model, self.flops
        own = rows[share]
        model.zero_grad(set_to_none=True)
        # A share that is one micro-batch is encoded once, with its graph.
        outputs = self._halving(lambda: self.encode(own, 0, True) if 0 < len(own) <= self.micro.size else None)
        if embedded is None or self.dropout_seed is not None:
            if outputs is None:
                embedded = self.embed(rows)
            else:
                embedded = tuple(self.processes.gather(side, len(rows)) for side in outputs)
        image, text = (side.detach().requires_grad_() for side in embedded)
        loss = contrastive_loss(image, text, model.bounded_logit_scale(), weights)
        *gradients, of_scale = torch.autograd.grad(loss, (image, text, model.logit_scale))
        gradients = [gradient[share] for gradient in gradients]

        def push_back() -> None:
            nonlocal outputs
            graph, outputs = outputs, None
            if graph is None:
                self._push_back(own, gradients)
            else:
                torch.autograd.backward(graph, gradients)

        if len(own):
            self._halving(push_back, False, self.flops if outputs is None else before)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.processes.sum_gradients([parameter for parameter in trained if parameter is not model.logit_scale])
        # Every process has computed the whole loss: its gradient is the same everywhere and is not summed.
        model.logit_scale.grad = of_scale
        if self.processes.first:
            self.flops += self.meter.loss(len(rows), model.dim)
        return _describe_step(loss.detach(), image.detach() @ text.detach().T)

    def _push_back(self, rows: np.ndarray, gradients: list[Tensor]) -> None:
        """Encode piece by piece again, and bring the gradient of the embeddings to the parameters."""
        self.model.zero_grad(set_to_none=True)
        for piece, (part, span, pixels) in enumerate(self._loaded(rows)):
            outputs = self.encode(part, piece, True, pixels=pixels)
            torch.autograd.backward(outputs, [gradient[span] for gradient in gradients])

    def _halving(
        self, attempt: Callable[[], _Outcome], repeats_dropout: bool = True, spent: float | None = None
    ) -> _Outcome:
        """Try with ever smaller micro-batches; after a failed attempt ``spent`` is counted, by default as before it."""
        spent = self.flops if spent is None else spent

        def undo() -> None:
            self.flops = spent

        return self.micro.halving(attempt, undo, repeats_dropout or self.dropout_seed is None)

    def count_step(self, rows: np.ndarray) -> float:
        """Operations that `backward` would spend on ``rows`` in all processes, without spending them."""
        spent = self.meter.loss(len(rows), self.model.dim)
        for share in self.processes.shares(len(rows)):
            parts = self.pieces(rows[share])
            passes = (True,) if len(parts) == 1 else (False, True)
            spent += sum(
                sum(self._read_side(side, part, backward)[1] for side in TOWERS)
                for part in parts
                for backward in passes
            )
        return spent


def _describe_step(loss: Tensor, cosine: Tensor) -> dict[str, float]:
    others = len(cosine) * (len(cosine) - 1)
    unmatched = (cosine.sum() - cosine.diagonal().sum()) / max(others, 1)
    return {
        "loss": float(loss),
        "matched_cosine": float(cosine.diagonal().mean()),
        "unmatched_cosine": float(unmatched),
    }
