"""Train a decoder on the last blocks of an encoder, or on pixels.

The loss is soft Dice of each structure of each image plus binary cross-entropy, 1 to 1; a structure of which it is not
known where it is takes no part. AdamW with a cosine to 0; of as many states as there are epochs the one with the best
Dice on validation is kept.

The encoder is frozen and in evaluation mode unless it is tuned. Frozen, and without augmentation, its blocks are
computed once and held in memory as float16: 69 kB an image of ``tiny-resnet`` at 96 pixels, 2 MB of ViT-B/14 at 224.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.encoders.image import ImageEncoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.fine_tuning import FineTuning, make_optimizer, tune
from chexstudy.evaluation.segmentation.decoders import Decoder, make_decoder, split_blocks
from chexstudy.progress import progress

_BLOCKS = 5  # as many as the published U-Net joins
_AT_ONCE = 32  # images
_SMOOTH = 1e-5
# Augmentation: degrees, share of the size, share of the side, share of the contrast, grey values.
_TURN, _SCALE, _SHIFT, _CONTRAST, _BRIGHTNESS = 10, 0.1, 0.05, 0.2, 20


@dataclass(frozen=True)
class DecoderRecipe:
    """How a decoder is trained."""

    epochs: int = 100  # over the training images, or over as many as `least_steps` takes
    least_steps: int = 100  # in all, however few the images
    batch_size: int = 8  # images a step
    learning_rate: float = 1e-3  # of the decoder
    weight_decay: float = 1e-4
    augment: bool = False  # turn, scale and shift images a little, and change their greys, anew in each step
    tuning: FineTuning | None = None  # tune the encoder with the decoder, at the first of its learning rates

    def __post_init__(self):
        if min(self.epochs, self.batch_size) < 1 or min(self.learning_rate, self.weight_decay, self.least_steps) < 0:
            raise StudyError(
                "a decoder is trained for 1 epoch or more on 1 image or more a step, with a learning rate and a weight "
                "decay of 0 or more."
            )


@dataclass(frozen=True)
class Examples:
    """Images with their targets."""

    pixels: np.ndarray  # uint8 ``(images, side, side)``
    masks: np.ndarray  # bool ``(images, structures, side, side)``
    known: np.ndarray  # bool ``(images, structures)``; others take no part


class Segmenter(nn.Module):
    """Pixels to logits of structures: a decoder on an encoder's last blocks, or on the pixels themselves."""

    def __init__(self, decoder: Decoder, encoder: ImageEncoder | None, recipe: DecoderRecipe):
        super().__init__()
        self.decoder, self.encoder, self.recipe = decoder, encoder, recipe

    def embed(self, pixels: Tensor) -> Tensor:
        """What the decoder sees of uint8 pixels ``(batch, side, side)``, as `decode` takes it."""
        pixels = pixels.unsqueeze(1)
        return pixels if self.encoder is None else self.encoder.embed_blocks(pixels, len(self.decoder.widths))[2]

    def decode(self, embedded: Tensor, size: int) -> Tensor:
        """Logits ``(batch, structures, size, size)``."""
        widths = self.decoder.widths
        blocks = [embedded.float()] if self.encoder is None else split_blocks(embedded.float(), widths)
        return self.decoder(blocks, size)

    def list_weights(self) -> dict[str, Tensor]:
        """The weights that were trained, by name."""
        state = self.state_dict() if self.recipe.tuning else self.decoder.state_dict(prefix="decoder.")
        # Weights of a tuned encoder may lie channels last, which safetensors does not take.
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
        }

    @torch.no_grad()
    def predict(self, pixels: np.ndarray) -> Iterator[np.ndarray]:
        """Logits float32 ``(structures, side, side)`` of one image after the other."""
        device = next(self.decoder.parameters()).device
        for start in range(0, len(pixels), _AT_ONCE):
            batch = torch.from_numpy(pixels[start : start + _AT_ONCE]).to(device)
            yield from self.decode(self.embed(batch), batch.shape[-1]).cpu().numpy()


def average_masks(examples: Examples) -> np.ndarray:
    """Logits ``(structures, side, side)`` of the mean mask of images: above 0 where more than half have it."""
    counts = np.maximum(examples.known.sum(axis=0), 1)[:, None, None]
    return np.einsum("nshw,ns->shw", examples.masks, examples.known, dtype=np.float32) / counts - 0.5


def measure_loss(logits: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy, the mean over what is known.

    Of logits and float masks ``(batch, structures, height, width)`` and bool ``known`` ``(batch, structures)``.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((2, 3))
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum((2, 3))
    dice = (2 * overlap + _SMOOTH) / (probabilities.sum((2, 3)) + masks.sum((2, 3)) + _SMOOTH)
    return (1 - dice + entropy)[known].sum() / known.sum().clamp(min=1)


def augment(pixels: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images turned, scaled, shifted and of other greys, each by chance, with their masks; none is mirrored.

    Of uint8 pixels ``(batch, side, side)`` and float masks ``(batch, structures, side, side)``.
    """
    count = len(pixels)
    draw = (2 * torch.rand(6, count, generator=generator) - 1).to(pixels.device)
    angle, scale = torch.deg2rad(_TURN * draw[0]), 1 + _SCALE * draw[1]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    places = torch.cat([turn * scale.view(-1, 1, 1), 2 * _SHIFT * draw[2:4].T.unsqueeze(2)], dim=2)
    greys = (
        (pixels.float() - 127.5) * (1 + _CONTRAST * draw[4].view(-1, 1, 1))
        + 127.5
        + _BRIGHTNESS * draw[5].view(-1, 1, 1)
    )
    # What comes in from outside is black, and no structure.
    both = torch.cat([greys.clamp(0, 255).unsqueeze(1), masks], dim=1)
    moved = functional.grid_sample(
        both, functional.affine_grid(places, both.shape, align_corners=False), align_corners=False
    )
    return moved[:, 0].round().to(torch.uint8), (moved[:, 1:] > 0.5).float()


def fit_decoder(
    kind: str,
    encoder: ImageEncoder | None,
    train: Examples,
    validation: Examples,
    recipe: DecoderRecipe,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Segmenter, pd.DataFrame]:
    """Train a decoder and keep its best state by the Dice on validation.

    Args:
        kind: one of `chexstudy.evaluation.segmentation.decoders.DECODERS`.
        encoder: None for a decoder that sees pixels. It is not changed: a tuned one is a copy.
        validation: to choose the state by; without known structures there, the last is kept.
        seed: of the decoder's weights, of the order of images and of augmentation.

    Gives the segmenter in evaluation mode, and a row an epoch with ``steps``, ``loss`` and ``dice``.
    """
    generator = torch.Generator().manual_seed(seed)
    if encoder is not None:
        encoder = encoder.to(device).eval().requires_grad_(False)
    with tune(encoder, recipe.tuning, seed, device) if encoder and recipe.tuning else nullcontext(encoder) as seen:
        model = build_segmenter(kind, seen, train.masks.shape[1], recipe, generator).to(device)
        table = _train(model, train, validation, generator)
    return model.requires_grad_(False).eval(), table


def build_segmenter(
    kind: str, encoder: ImageEncoder | None, structures: int, recipe: DecoderRecipe, generator: torch.Generator
) -> Segmenter:
    """An encoder, or none, under a decoder whose weights are drawn from the generator."""
    widths = (1,) if encoder is None else encoder.block_widths()[-_BLOCKS:]
    return Segmenter(make_decoder(kind, widths, structures, generator), encoder, recipe)


def _train(model: Segmenter, train: Examples, validation: Examples, generator: torch.Generator) -> pd.DataFrame:
    recipe, device, size = model.recipe, next(model.decoder.parameters()).device, train.pixels.shape[-1]
    if recipe.tuning:
        own = replace(recipe.tuning, head_learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
        optimizer = make_optimizer(model.encoder, model.decoder, own.learning_rates[0], own)
    else:
        optimizer = torch.optim.AdamW(
            model.decoder.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    each = max(math.ceil(len(train.pixels) / recipe.batch_size), math.ceil(recipe.least_steps / recipe.epochs))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * each)
    is_fixed = not recipe.augment and not recipe.tuning
    kept = _embed(model, train.pixels, device) if is_fixed else None
    seen = _embed(model, validation.pixels, device) if not recipe.tuning else None
    batches, rounds, best = _draw_batches(len(train.pixels), recipe.batch_size, generator), [], (-math.inf, {})
    for epoch in progress(range(1, recipe.epochs + 1), recipe.epochs, "training a decoder"):
        model.decoder.train()
        losses = []
        for _ in range(each):
            rows = next(batches)
            masks, known = (torch.from_numpy(one[rows]).to(device) for one in (train.masks, train.known))
            masks = masks.float()
            if is_fixed:
                embedded = kept[rows].to(device)
            else:
                pixels = torch.from_numpy(train.pixels[rows]).to(device)
                if recipe.augment:
                    pixels, masks = augment(pixels, masks, generator)
                with torch.set_grad_enabled(bool(recipe.tuning)):
                    embedded = model.embed(pixels)
            loss = measure_loss(model.decode(embedded, size), masks, known)
            if not torch.isfinite(loss):
                raise StudyError(
                    f"training a decoder at a learning rate of {recipe.learning_rate:g} gave a loss that is no number: "
                    "use a smaller one."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        dice = _judge(model.eval(), validation, seen)
        rounds.append((epoch * each, float(np.mean(losses)), dice))
        # Where validation tells nothing, the last state is taken.
        if not dice <= best[0]:
            best = (dice, model.list_weights())
        if recipe.tuning:
            model.encoder.train()
    model.load_state_dict(best[1], strict=False)
    return pd.DataFrame(rounds, columns=["steps", "loss", "dice"])


def _draw_batches(count: int, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    while True:
        for rows in torch.randperm(count, generator=generator).split(size):
            yield rows.numpy()


@torch.no_grad()
def _embed(model: Segmenter, pixels: np.ndarray, device) -> Tensor:
    """What the decoder sees of all images, in main memory; blocks as float16."""
    parts = [
        model.embed(torch.from_numpy(pixels[start : start + _AT_ONCE]).to(device)).cpu()
        for start in range(0, len(pixels), _AT_ONCE)
    ]
    embedded = torch.cat(parts) if parts else torch.empty(0)
    return embedded.half() if embedded.is_floating_point() else embedded


@torch.no_grad()
def _judge(model: Segmenter, examples: Examples, embedded: Tensor | None) -> float:
    """Mean over structures of the mean Dice of images that show them, on the pixel store's images; NaN without any."""
    device, size = next(model.decoder.parameters()).device, examples.pixels.shape[-1]
    dice = np.full(examples.known.shape, np.nan)
    for start in range(0, len(dice), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        if embedded is None:
            batch = model.embed(torch.from_numpy(examples.pixels[part]).to(device))
        else:
            batch = embedded[part].to(device)
        marked, truth = model.decode(batch, size).cpu().numpy() > 0, examples.masks[part]
        area = marked.sum((2, 3)) + truth.sum((2, 3))
        overlap = (marked & truth).sum((2, 3))
        counted = examples.known[part] & (area > 0)
        dice[part][counted] = 2 * overlap[counted] / area[counted]
    columns = [column[~np.isnan(column)] for column in dice.T]
    means = [column.mean() for column in columns if len(column)]
    return float(np.mean(means)) if means else math.nan
