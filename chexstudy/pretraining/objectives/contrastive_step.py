"""One training step: score without gradient, and train on kept pairs with cached gradients.

The contrastive loss couples all pairs of a batch, so a large batch cannot simply be cut into pieces. With cached
gradients (Gao et al. 2021, GradCache) it can: embed all pairs without gradient, compute the loss and its gradient with
respect to the embeddings, then encode piece by piece again and push that gradient through. The sum is the gradient of
the whole batch. Where scoring has already embedded the kept pairs, that first pass costs nothing here. The same cut
shares a batch out over processes, see `chexstudy.pretraining.engine.distributed`.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.loading import StallMeter, prefetch
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.models.texts import encode_texts
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss
from chexstudy.pretraining.objectives.pair_flops import PairFlopMeter

_Outcome = TypeVar("_Outcome")
# What is loaded ahead, in micro-batches.
_DEPTH = 2


@dataclass
class StepStatistics:
    """What a step reports."""

    loss: float  # contrastive loss of the batch
    matched_cosine: float  # mean similarity of an image and its own text
    unmatched_cosine: float  # mean similarity of an image and the texts of others


@dataclass
class PairEncoder:
    """Encodes training pairs in micro-batches and counts what that costs."""

    model: ImageTextModel  # the image-text model
    pairs: TrainingPairs  # the training pairs
    device: torch.device  # where the model is
    micro_batch: int  # pairs encoded at once; halved where memory does not suffice
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
    stall: StallMeter = field(default_factory=StallMeter)  # how long the device waited for pixels

    def __post_init__(self):
        self.meter = PairFlopMeter(self.model.image_tower, self.model.text_tower, self.model)

    # --- encoding one micro-batch -----------------------------------------------------------------------------------

    def _precision(self):
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def encode(
        self,
        rows: np.ndarray,
        piece: int,
        backward: bool,
        size: int | None = None,
        pixels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image and text embeddings ``(batch, dim)`` of one micro-batch, float32.

        Args:
            rows: the micro-batch.
            piece: its number, which decides what dropout drops.
            backward: whether the operations of a backward pass are counted too.
            size: side in pixels at which images are looked at; the encoder's own by default.
            pixels: of these rows, where they were loaded ahead.
        """
        if self.dropout_seed is not None:
            torch.manual_seed(self.dropout_seed(piece))
        with self._precision():
            image = self._encode_images(rows, backward, size, pixels)
            return image, self._encode_texts(rows, backward)

    def _encode_images(self, rows, backward, size, pixels) -> Tensor:
        if "image" in self.features:
            return self._project("image", rows, backward)
        pixels = self.pairs.pixels(rows) if pixels is None else pixels
        pixels = self._fill_up(pixels.to(self.device, non_blocking=True))
        self.flops += self.meter.images(pixels, backward, size)
        return self.model.image_tower(pixels, size)[: len(rows)]

    def _fill_up(self, pixels: Tensor) -> Tensor:
        missing = self.micro_batch - len(pixels)
        if not self.equal_shapes or missing <= 0:
            return pixels
        return torch.cat([pixels, pixels[:1].expand(missing, -1, -1, -1)])

    def _encode_texts(self, rows: np.ndarray, backward: bool) -> Tensor:
        if "text" in self.features:
            return self._project("text", rows, backward)
        batch = self.pairs.texts.batch(rows, self.device, self.text_layout)
        self.flops += self.meter.texts(batch, backward)
        return encode_texts(self.model.text_tower, batch)

    def _project(self, side: str, rows: np.ndarray, backward: bool) -> Tensor:
        tower = self.model.tower(side)
        self.flops += self._projection_flops(side, len(rows), backward)
        return tower.project(torch.from_numpy(np.asarray(self.features[side][rows])).to(self.device))

    def _projection_flops(self, side: str, count: int, backward: bool) -> float:
        # One product forward and, because nothing that learns lies beneath the projection, one backward.
        return 2.0 * count * self.features[side].shape[1] * self.model.dim * (2 if backward else 1)

    # --- without gradient -------------------------------------------------------------------------------------------

    def pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """Micro-batches of nearly equal size."""
        return np.array_split(rows, max(1, -(-len(rows) // self.micro_batch)))

    def embed(self, rows: np.ndarray, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Image and text embeddings ``(len(rows), dim)`` of all processes' rows, without gradient."""
        share = self.processes.share(len(rows))
        own = self._halving(lambda: self._embed_own(rows[share], size))
        return tuple(self.processes.gather(side, len(rows)) for side in own)

    def embed_frozen(self, side: str, rows: np.ndarray) -> Tensor:
        """What an encoder that is not trained makes of all processes' rows, before projection ``(len(rows), dim)``."""
        share = self.processes.share(len(rows))
        own = self._halving(lambda: self._embed_frozen_own(side, rows[share]))
        return self.processes.gather(own, len(rows))

    @torch.no_grad()
    def _embed_frozen_own(self, side: str, rows: np.ndarray) -> Tensor:
        tower = self.model.tower(side)
        found = [torch.empty((0, tower.encoder.dim), device=self.device)]
        for part in self.pieces(rows) if len(rows) else ():
            with self._precision():
                if side == "image":
                    pixels = self.pairs.pixels(part).to(self.device)
                    self.flops += self.meter.images(pixels, False)
                    found.append(tower.encoder(pixels).float())
                else:
                    batch = self.pairs.texts.batch(part, self.device, self.text_layout)
                    self.flops += self.meter.texts(batch, False)
                    found.append(encode_texts(tower.encoder, batch).float())
        return torch.cat(found)

    @torch.no_grad()
    def _embed_own(self, rows: np.ndarray, size: int | None) -> tuple[Tensor, Tensor]:
        if len(rows) == 0:
            return tuple(torch.empty((0, self.model.dim), device=self.device) for _ in range(2))
        encoded = [
            self.encode(part, piece, False, size, pixels) for piece, (part, _, pixels) in enumerate(self._loaded(rows))
        ]
        return torch.cat([image for image, _ in encoded]), torch.cat([text for _, text in encoded])

    def _loaded(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, slice, Tensor | None]]:
        """The micro-batches of ``rows``, where they lie in it, and their pixels, loaded while the device computes."""
        parts = self.pieces(rows)
        bounds = np.cumsum([0, *(len(part) for part in parts)])
        spans = [slice(start, stop) for start, stop in pairwise(bounds)]

        def load(number: int) -> Tensor | None:
            if "image" in self.features:
                return None
            return self.pairs.pixels(parts[number], pin_memory=self.device.type == "cuda")

        with closing(prefetch(range(len(parts)), load, _DEPTH, self.stall)) as loaded:
            yield from zip(parts, spans, loaded, strict=True)

    # --- with gradient ----------------------------------------------------------------------------------------------

    def backward(
        self,
        rows: np.ndarray,
        embedded: tuple[Tensor, Tensor] | None = None,
        weights: Tensor | None = None,
    ) -> StepStatistics:
        """Set the gradient of the contrastive loss over all of ``rows``, whatever the micro-batch and the processes.

        Args:
            rows: the batch, the same in every process.
            embedded: the embeddings of ``rows`` under the present parameters, if they are known; not used where dropout
                is on.
            weights: of the pairs in the loss ``(len(rows),)``; each counts once without them.

        Returns:
            Loss and similarities of the batch.
        """
        share, model, before = self.processes.share(len(rows)), self.model, self.flops
        own = rows[share]
        model.zero_grad(set_to_none=True)
        outputs = self._encode_at_once(own) if 0 < len(own) <= self.micro_batch else None
        if embedded is None or self.dropout_seed is not None:
            if outputs is None:
                embedded = self.embed(rows)
            else:
                embedded = tuple(self.processes.gather(side, len(rows)) for side in outputs)
        image, text = (side.detach().requires_grad_() for side in embedded)
        loss = contrastive_loss(image, text, model.bounded_logit_scale(), weights)
        *gradients, of_scale = torch.autograd.grad(loss, (image, text, model.logit_scale))
        gradients = [gradient[share] for gradient in gradients]
        if outputs is not None and not self._push_back_at_once(outputs, gradients):
            outputs, self.flops = None, before
        if outputs is None and len(own):
            self._halving(lambda: self._push_back(own, gradients), repeats_dropout=False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.processes.sum_gradients([parameter for parameter in trained if parameter is not model.logit_scale])
        # Every process has computed the whole loss: its gradient is the same everywhere and is not summed.
        model.logit_scale.grad = of_scale
        if self.processes.first:
            self.flops += self.meter.loss(len(rows), model.dim)
        return _statistics(loss.detach(), image.detach(), text.detach())

    def _encode_at_once(self, rows: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """The embeddings of a share that is one micro-batch, with their graph; None if memory does not suffice."""
        flops = self.flops
        try:
            return self.encode(rows, 0, True)
        except (MemoryError, RuntimeError) as error:
            self._require_smaller(error)
        self.flops = flops
        self._halve()
        return None

    def _push_back_at_once(self, outputs, gradients) -> bool:
        try:
            torch.autograd.backward(outputs, gradients)
            return True
        except (MemoryError, RuntimeError) as error:
            self._require_smaller(error, repeats_dropout=False)
        self._halve()
        return False

    def _push_back(self, rows: np.ndarray, gradients: list[Tensor]) -> None:
        """Encode piece by piece again, and bring the gradient of the embeddings to the parameters."""
        self.model.zero_grad(set_to_none=True)
        for piece, (part, span, pixels) in enumerate(self._loaded(rows)):
            outputs = self.encode(part, piece, True, pixels=pixels)
            torch.autograd.backward(outputs, [gradient[span] for gradient in gradients])

    # --- memory -----------------------------------------------------------------------------------------------------

    def _halving(self, attempt: Callable[[], _Outcome], repeats_dropout: bool = True) -> _Outcome:
        """Try with ever smaller micro-batches; what a failed attempt has computed is not counted."""
        while True:
            flops = self.flops
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                self._require_smaller(error, repeats_dropout)
            self.flops = flops
            self._halve()

    def _require_smaller(self, error: Exception, repeats_dropout: bool = True) -> None:
        """Raise the error again unless memory ran out and a smaller micro-batch can help."""
        if not _is_out_of_memory(error):
            raise error
        if self.micro_batch == 1:
            raise StudyError(
                f"the memory of {self.device} does not suffice for one pair at a time: use a smaller encoder, "
                "image_size or max_tokens; the last checkpoint is intact."
            ) from None
        if self.dropout_seed is not None and not repeats_dropout:
            raise StudyError(
                f"micro_batch {self.micro_batch} is too much for the memory of {self.device}, and with dropout it "
                "cannot change within a step: use a smaller one; the last checkpoint is intact."
            ) from None

    def _halve(self) -> None:
        self.micro_batch = -(-self.micro_batch // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(
            f"memory does not suffice: {self.micro_batch} pairs at once from here on; results do not depend on it",
            flush=True,
        )

    # --- costs ------------------------------------------------------------------------------------------------------

    def count_step(self, rows: np.ndarray) -> float:
        """Operations that `backward` would spend on ``rows`` in all processes, without spending them."""
        spent = self.meter.loss(len(rows), self.model.dim)
        for share in self.processes.shares(len(rows)):
            parts = self.pieces(rows[share])
            passes = (True,) if len(parts) == 1 else (False, True)
            spent += sum(self._count(part, backward) for part in parts for backward in passes)
        return spent

    def _count(self, rows: np.ndarray, backward: bool) -> float:
        if "image" in self.features:
            images = self._projection_flops("image", len(rows), backward)
        else:
            images = self.meter.images(self._fill_up(self.pairs.pixels(rows).to(self.device)), backward)
        if "text" in self.features:
            return images + self._projection_flops("text", len(rows), backward)
        return images + self.meter.texts(self.pairs.texts.batch(rows, self.device, self.text_layout), backward)


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError that only its text tells apart.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _statistics(loss: Tensor, image: Tensor, text: Tensor) -> StepStatistics:
    cosine = image @ text.T
    matched = cosine.diagonal().mean()
    others = len(cosine) * (len(cosine) - 1)
    unmatched = (cosine.sum() - cosine.diagonal().sum()) / max(others, 1)
    return StepStatistics(float(loss), float(matched), float(unmatched))
