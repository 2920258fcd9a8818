"""Models with random weights and pairs drawn from a generator: what pretraining is measured on.

What a step costs depends on shapes, not on values. Yet images and texts of a pair show the same findings, so that a
model can learn from them and a selection means something.
"""

import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, Dinov2Config, PreTrainedConfig, ViTConfig

from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.pretraining.models.texts import TokenisedTexts

# Lengths of reports are about log-normal; with this width the longest of 480 is 3.9 times the mean, as in Open-I.
_LENGTH_SPREAD = 0.5
OPEN_I_TOKENS = 57
_SHORTEST = 5
_CLS, _SEP, _FIRST_WORD = 2, 3, 4
_FINDINGS, _WORDS_A_FINDING = 12, 6
_PREVALENCE = 0.25
_CHUNK = 256


@dataclass(frozen=True)
class Scale:
    """Architectures and sizes that are measured together.

    Attributes:
        name: how the scale is called in a row.
        image: architecture of the image encoder.
        text: architecture of the text encoder.
        image_size: side in pixels.
        scoring_size: a third of it.
        dim: size of the shared space.
        max_tokens: texts are cut to so many tokens.
    """

    name: str
    image: PreTrainedConfig
    text: PreTrainedConfig
    image_size: int
    scoring_size: int
    dim: int
    max_tokens: int = 256


def paper_scale() -> Scale:
    """ViT-B/14 as DINOv2 has it, at 378 pixels, and BERT-base with the vocabulary of Bio_ClinicalBERT."""
    return Scale("ViT-B/14 + BERT-base", Dinov2Config(image_size=518), BertConfig(vocab_size=28996), 378, 126, 512)


def small_scale() -> Scale:
    """For a CPU: about as many operations for images, relative to those for texts, as at paper scale."""
    return Scale("small ViT + small BERT", _small_vit(144, 12, 128, 4), _small_bert(96, 1, 512), 144, 48, 128)


def least_scale() -> Scale:
    """For tests: runs through everything in a moment."""
    return Scale("least ViT + least BERT", _small_vit(24, 4, 16, 1), _small_bert(16, 1, 128), 24, 8, 8, max_tokens=64)


def _small_vit(image_size: int, patch_size: int, width: int, layers: int) -> ViTConfig:
    return ViTConfig(
        num_channels=1,
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 8 if width < 32 else width // 32,
        intermediate_size=4 * width,
    )


def _small_bert(width: int, layers: int, vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 8 if width < 32 else width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=256,
    )


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

    Args:
        count: how many.
        scale: size of the images and longest text.
        seed: decides every pixel and token.
        mean_tokens: mean length of the texts.
        images: how many different images are held in memory; row ``n`` has the image of row ``n % images``.

    Attributes:
        texts: the tokenised texts.
    """

    def __init__(self, count: int, scale: Scale, seed: int, mean_tokens: int = OPEN_I_TOKENS, images: int = 4096):
        rng = np.random.default_rng(seed)
        findings = rng.random((min(count, images), _FINDINGS)) < _PREVALENCE
        self._images = _draw_images(findings, scale.image_size, rng)
        self._count = count
        lengths = draw_lengths(count, mean_tokens, scale.max_tokens, rng)
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
