"""The schemes that are compared: one step over a super-batch, each in its own way.

The published step is our own plain restatement: all pairs go forward and backward, the loss sees the kept ones. The
others are those of the package: score without gradient, then train on the kept pairs alone.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from curator import select_plainly, update_plainly
from pretraining_pairs import GeneratedPairs
from torch import Tensor

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.prototypes import initial_prototypes, join_features, update_prototypes
from chexstudy.curation.online.selection import draw_chance, select_samples
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.pretraining.models.texts import PaddedTexts, TextBatch, encode_texts
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder

# The share that the published constants keep of a batch of 480, less the bands.
_CENTRAL_SHARE = 0.127
# Weights that hardly move keep the steps alike.
_LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Scheme:
    """One way to take a step.

    Attributes:
        name: how it is called in a row.
        published: all pairs forward and backward.
        low_resolution: score at a third of the side.
        layout: of the texts, see `chexstudy.pretraining.models.texts`; ``longest`` pads each micro-batch to its longest
            text, as published.
    """

    name: str
    published: bool = False
    low_resolution: bool = False
    layout: str = "buckets"


PUBLISHED = Scheme("published", published=True, layout="longest")
TWO_PASS_PADDED = Scheme("two-pass, texts padded as published", layout="longest")
TWO_PASS = Scheme("two-pass")
LOW_RESOLUTION = Scheme("two-pass, scored at a third of the side", low_resolution=True)
PACKED = Scheme("two-pass, scored at a third of the side, packed texts", low_resolution=True, layout="packed")
SCHEMES = (PUBLISHED, TWO_PASS_PADDED, TWO_PASS, LOW_RESOLUTION, PACKED)


def curator_constants(super_batch: int) -> CuratorConfig:
    """The published constants, the cap scaled with the batch so that the same share is kept: 10 of 480 pairs."""
    prototypes = CuratorConfig().prototypes
    return CuratorConfig(central_cap=max(1, round(_CENTRAL_SHARE * super_batch / prototypes)))


def pad_to_longest(pairs: GeneratedPairs, rows: np.ndarray, device: torch.device) -> TextBatch:
    """Texts as the published code lays them out: padded to the longest of those encoded together."""
    (part,) = pairs.texts.batch(rows, device, "padded").parts
    longest = int(pairs.texts.lengths[rows].max())
    part = PaddedTexts(part.input_ids[:, :longest], part.mask[:, :longest])
    return TextBatch((part,), None, part.input_ids.numel())


def make_optimizer(model: ImageTextModel) -> torch.optim.Optimizer:
    """The optimiser that all steps of a model share."""
    fused = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=fused)


class Step:
    """A step over the first ``super_batch`` pairs, again and again.

    Args:
        scheme: how.
        model: in training mode or not makes no difference, because there is no dropout.
        optimizer: see `make_optimizer`.
        pairs: the pairs.
        super_batch: pairs scored together.
        micro_batch: pairs encoded at once, but for the published step, which takes all at once.
        scoring_size: side in pixels of low-resolution scoring.
        autocast: type of mixed precision, or None.
        compiled: whether the model's blocks are compiled; then micro-batches are filled up to one shape.
        seed: decides what the curator draws.

    Attributes:
        kept: pairs kept by the last call.
        flops: operations of the last call.
    """

    def __init__(
        self,
        scheme: Scheme,
        model: ImageTextModel,
        optimizer: torch.optim.Optimizer,
        pairs: GeneratedPairs,
        super_batch: int,
        micro_batch: int,
        scoring_size: int,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
        seed: int = 0,
    ):
        self.scheme, self.model, self.optimizer, self.pairs = scheme, model, optimizer, pairs
        self.device = next(model.parameters()).device
        self.rows = np.arange(super_batch)
        self.constants = curator_constants(super_batch)
        self.scoring_size = scoring_size if scheme.low_resolution else None
        self.autocast = autocast
        laid_out = _PaddedToLongest(pairs) if scheme.layout == "longest" else pairs
        self.encoder = PairEncoder(
            model, laid_out, self.device, micro_batch, autocast, text_layout=scheme.layout, equal_shapes=compiled
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.prototypes: Tensor | None = None
        self.kept = 0
        self.flops = 0.0

    def warm_up(self) -> None:
        """Fit the first prototypes on the embeddings of a sample."""
        sample = self.rows[: max(64, 4 * self.constants.prototypes)]
        self.prototypes = initial_prototypes(
            join_features(*self.encoder.embed(sample, self.scoring_size)), self.constants
        )

    def __call__(self) -> None:
        """One step; waits for the device."""
        if self.prototypes is None:
            self.warm_up()
        before = self.encoder.flops
        if self.scheme.published:
            self._take_published()
        else:
            self._take_in_two_passes()
        self.flops = self.encoder.flops - before
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _take_published(self) -> None:
        pixels = self.pairs.pixels(self.rows, pin_memory=self.device.type == "cuda").to(self.device)
        texts = pad_to_longest(self.pairs, self.rows, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            image = self.model.image_tower(pixels)
            text = encode_texts(self.model.text_tower, texts)
        features = join_features(image.detach(), text.detach())
        chance = draw_chance(self.constants, len(features), len(self.prototypes), self.generator).to(self.device)
        kept = select_plainly(features, self.prototypes, self.constants, chance)
        contrastive_loss(image[kept], text[kept], self.model.bounded_logit_scale()).backward()
        self.optimizer.step()
        self.prototypes = update_plainly(self.prototypes, features[kept], self.constants)
        self.kept = int(kept.sum())
        meter = self.encoder.meter
        self.encoder.flops += meter.images(pixels, True) + meter.texts(texts, True)
        self.encoder.flops += meter.loss(self.kept, self.model.dim)

    def _take_in_two_passes(self) -> None:
        embedded = self.encoder.embed(self.rows, self.scoring_size)
        features = join_features(*embedded)
        mask = self.select(features)
        kept = self.rows[mask.cpu().numpy()]
        # Scores at another size are no embeddings to train on.
        self.encoder.backward(kept, None if self.scoring_size else tuple(side[mask] for side in embedded))
        self.optimizer.step()
        self.prototypes = self.move(features[mask])
        self.kept = len(kept)

    def select(self, features: Tensor) -> Tensor:
        """The mask of kept pairs ``(super_batch,)``."""
        return select_samples(features, self.prototypes, self.constants, self.generator).kept

    def move(self, features: Tensor) -> Tensor:
        """The prototypes after a step that kept these features ``(kept, dim)``."""
        return update_prototypes(self.prototypes, features, self.constants)[0]


class _PaddedToLongest:
    """Pairs whose texts are laid out by `pad_to_longest`, whatever layout is asked for."""

    def __init__(self, pairs: GeneratedPairs):
        self.pixels, self.texts, self._pairs = pairs.pixels, self, pairs

    def batch(self, rows: np.ndarray, device: torch.device, layout: str) -> TextBatch:
        return pad_to_longest(self._pairs, rows, device)
