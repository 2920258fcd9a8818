"""The steps that pretraining is measured by: models with random weights, generated pairs, and schemes of a step.

What a step costs depends on shapes, not on values. Yet images and texts of a pair show the same findings, so that a
model can learn from them and a selection means something. The published step is our own plain restatement: all pairs go
forward and backward, the loss sees the kept ones. The other schemes are those of the package: score without gradient,
then train on the kept pairs alone.
"""

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from curator import select_plainly, update_plainly
from torch import Tensor
from transformers import BertConfig, Dinov2Config, PreTrainedConfig, ViTConfig

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.prototypes import initial_prototypes, join_features, update_prototypes
from chexstudy.curation.online.selection import draw_chance, select_samples
from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.pretraining.models.texts import PaddedTexts, TextBatch, TokenisedTexts, encode_texts
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder

# Lengths of reports are about log-normal; with this width the longest of 480 is 3.9 times the mean, as in Open-I.
_LENGTH_SPREAD = 0.5
OPEN_I_TOKENS = 57
_SHORTEST = 5
_CLS, _SEP, _FIRST_WORD = 2, 3, 4
_FINDINGS, _WORDS_A_FINDING = 12, 6
_PREVALENCE = 0.25
_CHUNK = 256
# The share that the published constants keep of a batch of 480, less the bands.
_CENTRAL_SHARE = 0.127
# Weights that hardly move keep the steps alike.
_LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Scale:
    """Architectures and sizes that are measured together."""

    image: PreTrainedConfig
    text: PreTrainedConfig
    image_size: int  # side in pixels
    scoring_size: int  # a third of it
    dim: int  # of the shared space
    max_tokens: int = 256  # texts are cut to so many


def paper_scale() -> Scale:
    """ViT-B/14 as DINOv2 has it, at 378 pixels, and BERT-base with the vocabulary of Bio_ClinicalBERT."""
    return Scale(Dinov2Config(image_size=518), BertConfig(vocab_size=28996), 378, 126, 512)


def small_scale() -> Scale:
    """For a CPU: about as many operations for images, relative to those for texts, as at paper scale."""
    return Scale(_small_vit(144, 12, 128, 4), _small_bert(96, 1, 512), 144, 48, 128)


def least_scale() -> Scale:
    """For tests: runs through everything in a moment."""
    return Scale(_small_vit(24, 4, 16, 1), _small_bert(16, 1, 128), 24, 8, 8, max_tokens=64)


def _small_vit(image_size: int, patch_size: int, width: int, layers: int) -> ViTConfig:
    return ViTConfig(num_channels=1, image_size=image_size, patch_size=patch_size, **_blocks(width, layers))


def _small_bert(width: int, layers: int, vocabulary: int) -> BertConfig:
    return BertConfig(vocab_size=vocabulary, max_position_embeddings=256, **_blocks(width, layers))


def _blocks(width: int, layers: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": width // 8 if width < 32 else width // 32}


def build_model(scale: Scale, device: torch.device | str, seed: int) -> ImageTextModel:
    """An image-text model with random weights; nothing is downloaded."""
    tokenizer = train_wordpiece(["heart and lungs"], max_tokens=scale.max_tokens)
    with tempfile.TemporaryDirectory() as image, tempfile.TemporaryDirectory() as text:
        scale.image.save_pretrained(image)
        scale.text.save_pretrained(text)
        spec = EncoderSpec(image, pretrained=False, image_size=scale.image_size)
        image_encoder = build_image_encoder(spec, seed)
        spec = EncoderSpec(text, pretrained=False, max_tokens=scale.max_tokens)
        text_encoder = build_text_encoder(spec, tokenizer, seed)
    return ImageTextModel(image_encoder, text_encoder, scale.dim, logit_scale_max=100.0, seed=seed).to(device)


class GeneratedPairs:
    """Pairs as `chexstudy.pretraining.objectives.contrastive_step.PairEncoder` sees those of a cohort.

    So many different ``images`` are held in memory; row ``n`` has the image of row ``n % images``.
    """

    def __init__(self, count: int, scale: Scale, seed: int, images: int = 4096):
        rng = np.random.default_rng(seed)
        findings = rng.random((min(count, images), _FINDINGS)) < _PREVALENCE
        self._images = _draw_images(findings, scale.image_size, rng)
        self._count = count
        lengths = draw_lengths(count, OPEN_I_TOKENS, scale.max_tokens, rng)
        shown = findings[np.arange(count) % len(findings)]
        ids, mask = _draw_texts(shown, lengths, scale.text.vocab_size, rng)
        self.texts = TokenisedTexts(torch.from_numpy(ids), torch.from_numpy(mask))

    def __len__(self) -> int:
        return self._count

    def pixels(self, rows: np.ndarray, pin_memory: bool = False) -> Tensor:
        """uint8 ``(batch, 1, size, size)`` in main memory, page-locked if asked for."""
        pixels = torch.from_numpy(self._images[rows % len(self._images)]).unsqueeze(1)
        return pixels.pin_memory() if pin_memory else pixels


def draw_lengths(count: int, mean: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Log-normal numbers of tokens ``(count,)``, cut at ``longest``, with this mean after the cut."""
    draws = rng.lognormal(0.0, _LENGTH_SPREAD, count)
    low, high = 0.0, float(longest)
    for _ in range(40):
        factor = (low + high) / 2
        lengths = np.clip(np.round(factor * draws), _SHORTEST, longest).astype(np.int64)
        low, high = (factor, high) if lengths.mean() < mean else (low, factor)
    return lengths


def _draw_images(findings: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A bright spot a finding, each at its place, on noise: uint8 ``(images, size, size)``."""
    axis = np.linspace(0, 1, size, dtype=np.float32)
    centres = rng.random((_FINDINGS, 2), dtype=np.float32)
    squared = (axis[None, :, None] - centres[:, :1, None]) ** 2 + (axis[None, None, :] - centres[:, 1:, None]) ** 2
    spots = np.exp(-squared / (2 * 0.06**2)).reshape(_FINDINGS, -1)
    images = np.empty((len(findings), size, size), dtype=np.uint8)
    for start in range(0, len(findings), _CHUNK):
        part = findings[start : start + _CHUNK]
        strength = part * rng.uniform(40, 110, part.shape).astype(np.float32)
        values = 70 + strength.astype(np.float32) @ spots
        values += 12 * rng.standard_normal(values.shape, dtype=np.float32)
        images[start : start + _CHUNK] = values.clip(0, 255).reshape(-1, size, size)
    return images


def _draw_texts(findings: np.ndarray, lengths: np.ndarray, vocabulary: int, rng: np.random.Generator) -> tuple:
    """``[CLS] words [SEP]``, half of the words about the findings: ids and mask ``(texts, longest)``."""
    longest = int(lengths.max())
    common = _FIRST_WORD + _FINDINGS * _WORDS_A_FINDING
    ids = rng.integers(common, vocabulary, (len(lengths), longest))
    # Every text can speak of something, if only of the last finding's absence.
    chance = rng.random((len(lengths), longest, 1), dtype=np.float32)
    cumulated = findings.cumsum(axis=1, dtype=np.float32)
    told = (chance * cumulated[:, None, -1:] >= cumulated[:, None, :]).sum(axis=2).clip(max=_FINDINGS - 1)
    words = _FIRST_WORD + told * _WORDS_A_FINDING + rng.integers(_WORDS_A_FINDING, size=told.shape)
    ids = np.where(rng.random(ids.shape) < 0.5, words, ids)
    places = np.arange(longest)
    ids[:, 0] = _CLS
    ids[places == lengths[:, None] - 1] = _SEP
    mask = places < lengths[:, None]
    return np.where(mask, ids, 0), mask.astype(np.int64)


@dataclass(frozen=True)
class Scheme:
    """One way to take a step."""

    name: str  # in a row
    published: bool = False  # all pairs forward and backward
    low_resolution: bool = False  # score at a third of the side
    # of the texts, see `chexstudy.pretraining.models.texts`; ``longest`` pads each micro-batch to its longest text, as
    # published
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
    return TextBatch((part,), None)


def make_optimizer(model: ImageTextModel) -> torch.optim.Optimizer:
    """The optimiser that all steps of a model share."""
    fused = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=fused)


class Step:
    """A step over the first ``super_batch`` pairs, again and again.

    The published step takes all pairs at once, the others encode ``micro_batch`` of them, filled up to one shape where
    the model's blocks are compiled. There is no dropout.

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
