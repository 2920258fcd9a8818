"""Image and text encoders behind one contract: small ones made here, others from the Hugging Face Hub or a folder.

Names are ``tiny-resnet``, ``tiny-vit`` and ``tiny-bert`` (0.3-1M parameters, for a CPU), a Hub id with a revision, or a
folder. All are ``transformers`` classes: ResNet, ViT, DINOv2 without and with registers (RAD-DINO is one), the towers
of CLIP and SigLIP pairs, BERT, and whatever else ``AutoModel`` reads if the pooling is named.

Every encoder is a function of one sample: batch normalisation is frozen where it comes pretrained and replaced by group
normalisation where it starts from scratch. So a pass in micro-batches, or without gradient first, gives the same
embeddings as one big batch.
"""

import hashlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.encoders import hub
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.errors import StudyError
from chexstudy.runs import atomic_path, name_partial
from chexstudy.workflow.unforeseen import tell_mistake

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Mean and standard deviation a channel, in units of full scale.
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_TINY_NAMES = ("tiny-resnet", "tiny-vit", "tiny-bert")
_TINY_IMAGE_SIZE = 96
# For sequences of tens of tokens, two plain matrix products are twice as fast in bfloat16 on a CPU as fused attention.
_TINY_ATTENTION = "eager"
_CHANNELS_A_GROUP = 16
_IMAGE_POOLINGS = ("cls", "mean", "max", "pooler", "projection")
_NO_CLS = ("resnet", "siglip", "siglip_vision_model")
# Positions are added once, before the first block, so that patches can be left out after that.
_DROPS_PATCHES = (
    *("vit", "deit", "dinov2", "dinov2_with_registers"),
    *("clip", "clip_vision_model", "siglip", "siglip_vision_model"),
)
# The normalisation after the last block. CLIP's own forward applies it to [CLS] alone.
_FINAL_NORMS = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov2_with_registers"), "layernorm"),
    **dict.fromkeys(("clip", "clip_vision_model", "siglip", "siglip_vision_model"), "post_layernorm"),
    "dinov3_vit": "norm",
}
# They take any size without being asked to.
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
# Positions are absolute and every token sees every other: many texts can share one row if attention keeps them apart.
_PACKS_TEXTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
_TEXT_POOLINGS = ("last", "first", "mean", "pooler", "projection")
# Compiled versions of a block: sizes, with and without gradient, whole and last batches.
_COMPILED_VERSIONS = 64
# What a saved encoder adds to its config.json.
_RECORD = "chexstudy"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder, and how it is used."""

    name: str  # ``tiny-resnet``, ``tiny-vit``, ``tiny-bert``, a Hub id such as ``microsoft/rad-dino``, or a folder
    # commit, tag or branch on the Hub; empty for ``main``. Name a commit in anything that is published.
    revision: str = ""
    # side in pixels at which the encoder looks; None for the encoder's own size (96 for the tiny ones)
    image_size: int | None = None
    # How tokens become one vector. Images: ``cls``, ``mean`` and ``max`` (of the patch tokens), joined as in
    # ``cls+mean``, or the model's own ``pooler`` or ``projection``. Texts: ``last`` (the last token that is not
    # padding, [SEP] for BERT: CheXficient, A1.4), ``first`` ([CLS]), ``mean``, ``pooler``, ``projection``. Empty for
    # the architecture's own.
    pooling: str = ""
    pretrained: bool = True  # load weights; False starts the architecture from scratch
    max_tokens: int = 256  # texts are cut to so many tokens, special tokens included
    # ``own`` (the checkpoint's ``preprocessor_config.json``, else the architecture's usual values), ``imagenet``,
    # ``clip`` (CheXficient feeds DINOv2 so), or ``half`` (mean 0.5, standard deviation 0.5).
    normalisation: str = "own"
    drop_registers: bool = False  # load a DINOv2 with registers into the architecture without, as CheXficient does
    # keep the checkpoint's dropout and stochastic depth; without, a pass is a deterministic function
    dropout: bool = False
    trust_remote_code: bool = False  # run model code that comes with the checkpoint; needs ``revision`` to be a commit

    def __post_init__(self):
        if not self.name:
            raise StudyError(f"an encoder needs a name: one of {', '.join(_TINY_NAMES)}, a Hub id or a folder.")
        if self.normalisation not in ("own", *NORMALISATIONS):
            raise StudyError(
                f"unknown normalisation {self.normalisation!r} for {self.name}: use own, {', '.join(NORMALISATIONS)}."
            )
        if self.image_size is not None and self.image_size < 1:
            raise StudyError(f"image_size of {self.name} is {self.image_size}: give pixels, 1 or more.")
        if self.max_tokens < 3:
            raise StudyError(f"max_tokens of {self.name} is {self.max_tokens}: a text needs 3 or more.")
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise StudyError(
                f"trust_remote_code for {self.name} needs revision to be a full commit of 40 hex digits, so that the "
                "code that runs is the code you read."
            )


@dataclass(frozen=True)
class _Architecture:
    """What must be known of a ``model_type`` to use it as an encoder; nothing is known of those not listed."""

    model_class: str = ""
    pooling: str = ""
    normalisation: str = "half"
    projection_class: str = ""
    pads_to_full_length: bool = False


_IMAGE_ARCHITECTURES = {
    "resnet": _Architecture("ResNetModel", "mean", "imagenet"),
    "vit": _Architecture("ViTModel", "cls"),
    "dinov2": _Architecture("Dinov2Model", "cls", "imagenet"),
    "dinov2_with_registers": _Architecture("Dinov2WithRegistersModel", "cls", "imagenet"),
    "clip": _Architecture("CLIPVisionModel", "projection", "clip", "CLIPVisionModelWithProjection"),
    "clip_vision_model": _Architecture("CLIPVisionModel", "pooler", "clip", "CLIPVisionModelWithProjection"),
    "siglip": _Architecture("SiglipVisionModel", "pooler"),
    "siglip_vision_model": _Architecture("SiglipVisionModel", "pooler"),
}
_TEXT_ARCHITECTURES = {
    "bert": _Architecture("BertModel", "last"),
    "clip": _Architecture("CLIPTextModel", "projection", projection_class="CLIPTextModelWithProjection"),
    "clip_text_model": _Architecture("CLIPTextModel", "pooler", projection_class="CLIPTextModelWithProjection"),
    # SigLIP was trained on texts padded to one length without a mask: its pooler reads the last position.
    "siglip": _Architecture("SiglipTextModel", "pooler", pads_to_full_length=True),
    "siglip_text_model": _Architecture("SiglipTextModel", "pooler", pads_to_full_length=True),
}


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and persistent buffers (names, types, shapes, values), 16 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


# --- the contract -------------------------------------------------------------------------------------------------


class _Encoder(nn.Module):
    """What image and text encoders share: a model, where it came from, and no statistic across the batch."""

    def __init__(self, model: "PreTrainedModel", pooling: str, origin: dict):
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.origin = origin
        self.dim = _pooled_dim(model, pooling)

    def train(self, mode: bool = True):
        """As ``nn.Module.train``, but batch normalisation keeps its pretrained statistics."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def describe(self) -> dict:
        """What decides the embeddings, as plain values: name, commit, weights, pooling, preprocessing."""
        return {
            **self.origin,
            "architecture": type(self.model).__name__,
            "weights": hash_weights(self.model),
            "pooling": self.pooling,
            "dim": self.dim,
        }


# The patches to keep and how many there are, for the pass under way in this thread.
_KEPT_PATCHES: ContextVar[tuple[Tensor, int] | None] = ContextVar("kept_patches", default=None)


def _find_embeddings(model: nn.Module) -> str:
    return next(name for name, _ in model.named_modules() if name.rpartition(".")[2] == "embeddings")


def _leave_patches_out(module: nn.Module, inputs: tuple, tokens: Tensor) -> Tensor:
    """A forward hook of the embeddings: of ``(batch, prefix + patches, width)`` only the kept patches go on."""
    chosen = _KEPT_PATCHES.get()
    if chosen is None:
        return tokens
    patches, total = chosen
    prefix, every = tokens.split((tokens.shape[1] - total, total), dim=1)
    kept = every.gather(1, patches.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return torch.cat([prefix, kept], dim=1)


class ImageEncoder(_Encoder):
    """Pixels to one vector an image.

    Attributes:
        dim: length of the vector.
        image_size: side in pixels at which the encoder looks; other sizes are resized inside.
        token_dim: length of a patch token.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        pooling: str,
        origin: dict,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__(model, pooling, origin)
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.token_dim = _width(model)
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._embeddings = _find_embeddings(model) if model.config.model_type in _DROPS_PATCHES else None
        if self._embeddings is not None:
            model.get_submodule(self._embeddings).register_forward_hook(_leave_patches_out)
        self._tried_sizes: set[int] = set()
        self._channels_last = model.config.model_type == "resnet"
        if self._channels_last:
            self.model.to(memory_format=torch.channels_last)
        # uint8 pixel * scale + shift = (pixel / 255 - mean) / std; broadcasting repeats the channel.
        means, deviations = torch.tensor(self.mean), torch.tensor(self.std)
        self.register_buffer("_scale", (1 / (255 * deviations)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_shift", (-means / deviations).view(1, -1, 1, 1), persistent=False)

    def check_size(self, size: int) -> None:
        """Make sure that the encoder can look at ``size`` pixels a side."""
        config, name = self.model.config, self.origin["name"]
        if size < 1:
            raise StudyError(f"{name} cannot look at images of {size} pixels a side: give 1 or more.")
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int):
            return
        if size % patch:
            below = size // patch * patch
            raise StudyError(
                f"{name} cuts images into patches of {patch} pixels, and {size} is no multiple of it: use "
                f"{f'{below} or ' if below else ''}{below + patch}."
            )
        if self._interpolates or config.model_type in _ANY_SIZE or size in self._tried_sizes:
            return
        # Only the model itself knows, so it looks at nothing once.
        try:
            with torch.no_grad():
                self.model(pixel_values=self._shift.expand(1, -1, size, size))
        except (ValueError, RuntimeError):
            own = getattr(config, "image_size", "its own size")
            raise StudyError(
                f"{name} is a {config.model_type}, which cannot look at {size} pixels a side: use {own}."
            ) from None
        self._tried_sizes.add(size)

    def count_patches(self, size: int | None = None) -> int:
        """Patch tokens of an image seen at ``size`` pixels a side, without [CLS] and registers."""
        size = self.image_size if size is None else size
        self.check_size(size)
        if self._embeddings is None:
            raise StudyError(
                f"{self.origin['name']} is a {self.model.config.model_type}, which cannot leave patches out: let it "
                "see all of them, or use a ViT, DINOv2, CLIP or SigLIP."
            )
        return (size // self.model.config.patch_size) ** 2

    def _run(self, pixels: Tensor, size: int, patches: Tensor | None = None, **outputs: bool):
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (1, pixels.shape[-1], pixels.shape[-1]):
            raise StudyError(
                "an image encoder takes square uint8 pixels (batch, 1, height, width), not "
                f"{str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}: read them from the pixel store."
            )
        if size != self.image_size:
            self.check_size(size)
        values = pixels.float()
        if pixels.shape[-1] != size:
            values = functional.interpolate(values, (size,) * 2, mode="bicubic", antialias=True)
            # Bicubic overshoots at edges; 8-bit resizing, which the checkpoints saw, stays within the range.
            values = values.clamp(0, 255)
        values = values * self._scale + self._shift
        if self._channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        # Interpolating positions costs under 1 % of a pass over a batch of 32 or more, so they are not kept.
        options = ({"interpolate_pos_encoding": True} if self._interpolates else {}) | outputs
        if patches is None:
            return self.model(pixel_values=values, **options)
        total = self.count_patches(size)
        if patches.ndim != 2 or len(patches) != len(pixels) or not 0 < patches.shape[1] <= total:
            raise StudyError(
                f"the patches to keep must be (batch, kept) with at most {total} of each of {len(pixels)} images, not "
                f"{tuple(patches.shape)}."
            )
        token = _KEPT_PATCHES.set((patches, total))
        try:
            return self.model(pixel_values=values, **options)
        finally:
            _KEPT_PATCHES.reset(token)

    def _patches(self, tokens: Tensor, size: int, kept: int | None = None) -> Tensor:
        if tokens.ndim == 4:
            return tokens.flatten(2).transpose(1, 2)
        # Whatever is more than one token a patch ([CLS], registers) stands before the patches.
        patch = getattr(self.model.config, "patch_size", None)
        if kept is None:
            kept = (size // patch) ** 2 if isinstance(patch, int) else tokens.shape[1]
        return tokens[:, max(tokens.shape[1] - kept, 0) :]

    def forward(self, pixels: Tensor, size: int | None = None, patches: Tensor | None = None) -> Tensor:
        """Embed images.

        Args:
            pixels: uint8 ``(batch, 1, height, width)``, square, of any size, on the encoder's device.
            size: side in pixels at which the encoder looks this time; None for ``image_size``. Positions learned at
                another size are interpolated.
            patches: int64 ``(batch, kept)``, the patch tokens to keep, numbered row by row; None for all. The others
                are left out between the embeddings and the first block, as in FLIP (Li et al. 2023, section 3), and
                pooling sees those that are there; [CLS] and registers always stay. Unlike FLIP's, the kept ones are
                the caller's choice.

        Returns:
            ``(batch, dim)``, not normalised.
        """
        size = self.image_size if size is None else size
        return self._pool(self._run(pixels, size, patches), size, None if patches is None else patches.shape[1])

    def _pool(self, output, size: int, kept: int | None = None) -> Tensor:
        if self.pooling == "pooler":
            return output.pooler_output.flatten(1)
        if self.pooling == "projection":
            return output.image_embeds
        tokens = output.last_hidden_state
        seen = self._patches(tokens, size, kept)
        pooled = {"cls": lambda: tokens[:, 0], "mean": lambda: seen.mean(1), "max": lambda: seen.amax(1)}
        return torch.cat([pooled[part]() for part in self.pooling.split("+")], dim=1)

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """The last layer's tokens of image patches, row by row: ``(batch, tokens, token_dim)``.

        [CLS] and registers are left out; a ResNet's feature map counts as tokens.
        """
        return self._patches(self._run(pixels, self.image_size).last_hidden_state, self.image_size)

    def count_blocks(self) -> int:
        """How many blocks `block_tokens` can give: transformer blocks, or stages of a convolutional encoder."""
        config = self.model.config
        if config.model_type == "resnet":
            return len(config.hidden_sizes)
        if config.model_type in _FINAL_NORMS:
            return config.num_hidden_layers
        return len(self._blank_blocks())

    def block_widths(self, blocks: int = 4) -> tuple[int, ...]:
        """Channels of each of the last ``blocks`` blocks, first block first; ViT-L has 4 x 1024 = 4096."""
        self._check_blocks(blocks)
        config = self.model.config
        if config.model_type == "resnet":
            return tuple(config.hidden_sizes[-blocks:])
        if config.model_type in _FINAL_NORMS:
            return (self.token_dim,) * blocks
        return tuple(block.shape[1 if block.ndim == 4 else 2] for block in self._blank_blocks()[-blocks:])

    def block_tokens(self, pixels: Tensor, blocks: int = 4) -> tuple[Tensor, Tensor]:
        """What the last blocks say of an image, as the heads on frozen features see it (CheXFound: 4 blocks of ViT-L).

        Tokens of a transformer pass the backbone's final normalisation where it has one, so that the last block's
        patches are those of `patch_tokens`. CLIP normalises [CLS] alone before it pools; here its patches are
        normalised too. Registers are left out. SigLIP has no [CLS]: the mean over the patches of each block stands in.
        Of architectures not listed in this module the final normalisation is not known, and only the last block, as
        the model gives it, has passed it.

        A ResNet's blocks are its stages. Their maps have different sizes and are brought to one grid, that of the
        second-finest stage whatever ``blocks`` is: finer maps are averaged, coarser ones interpolated. "cls" is the
        mean of each map as it leaves its stage.

        Args:
            pixels: uint8 ``(batch, 1, height, width)``, as in `forward`.
            blocks: how many of the last blocks.

        Returns:
            [CLS] ``(batch, channels)`` and patches ``(batch, tokens, channels)``; channels are those of the blocks side
            by side, first block first, and tokens go row by row over a square grid.
        """
        return self.embed_blocks(pixels, blocks)[1:]

    def embed_blocks(self, pixels: Tensor, blocks: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` gives and what `block_tokens` gives, in one pass: pooled ``(batch, dim)``, [CLS], patches."""
        self._check_blocks(blocks)
        output = self._run(pixels, self.image_size, output_hidden_states=True)
        states = self._block_states(output)
        pooled = self._pool(output, self.image_size)
        if states[-1].ndim == 4:
            return pooled, *_join_maps(states, blocks)
        every = torch.cat(self._normalise_blocks(states[-blocks:], output.last_hidden_state), dim=2)
        patches = self._patches(every, self.image_size)
        has_cls = patches.shape[1] < every.shape[1]
        return pooled, every[:, 0] if has_cls else patches.mean(1), patches

    def _block_states(self, output) -> tuple[Tensor, ...]:
        """What leaves each block, ``(batch, tokens, width)`` or ``(batch, width, height, width)``."""
        # The first state is what enters the first block.
        states = tuple(getattr(output, "hidden_states", None) or ())[1:]
        alike = {state.ndim for state in states} in ({3}, {4})
        if not alike or (states[0].ndim == 3 and len({state.shape[:2] for state in states}) > 1):
            raise StudyError(
                f"{self.origin['name']} is a {self.model.config.model_type}, whose blocks cannot be seen on one grid: "
                "use a ViT, DINOv2, CLIP, SigLIP or ResNet."
            )
        return states

    def _normalise_blocks(self, states: tuple[Tensor, ...], last: Tensor) -> list[Tensor]:
        model_type = self.model.config.model_type
        if model_type not in _FINAL_NORMS:
            return [*states[:-1], last]
        leaf = _FINAL_NORMS[model_type]
        norm = next(module for name, module in self.model.named_modules() if name.rpartition(".")[2] == leaf)
        normalised = norm(states[-1]) if model_type.startswith("clip") else last
        return [*(norm(state) for state in states[:-1]), normalised]

    def _check_blocks(self, blocks: int) -> None:
        most = self.count_blocks()
        if not 1 <= blocks <= most:
            raise StudyError(f"{self.origin['name']} has {most} blocks, not {blocks}: ask for 1 to {most} of them.")

    @torch.no_grad()
    def _blank_blocks(self) -> tuple[Tensor, ...]:
        """What leaves each block for one blank image, where only the model itself knows."""
        pixels = torch.zeros(1, 1, self.image_size, self.image_size, dtype=torch.uint8, device=self._scale.device)
        return self._block_states(self._run(pixels, self.image_size, output_hidden_states=True))

    def describe(self) -> dict:
        return super().describe() | {"image_size": self.image_size, "mean": self.mean, "std": self.std}


def _join_maps(maps: tuple[Tensor, ...], blocks: int) -> tuple[Tensor, Tensor]:
    """Means ``(batch, channels)`` and tokens ``(batch, tokens, channels)`` of the last maps, on one grid."""
    sides = sorted((state.shape[-1] for state in maps), reverse=True)
    grid = sides[min(1, len(sides) - 1)]
    joined = []
    for state in maps[-blocks:]:
        if state.shape[-1] >= grid:
            joined.append(functional.adaptive_avg_pool2d(state, grid))
        else:
            joined.append(functional.interpolate(state, (grid, grid), mode="bilinear", align_corners=False))
    means = torch.cat([state.mean((2, 3)) for state in maps[-blocks:]], dim=1)
    return means, torch.cat(joined, dim=1).flatten(2).transpose(1, 2)


class TextEncoder(_Encoder):
    """Reports to one vector each.

    Attributes:
        dim: length of the vector.
        tokenizer: the ``transformers`` tokenizer.
        max_tokens: texts are cut to so many tokens.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        pooling: str,
        origin: dict,
        tokenizer: "PreTrainedTokenizerBase",
        max_tokens: int,
        pads_to_full_length: bool,
    ):
        super().__init__(model, pooling, origin)
        self.tokenizer = tokenizer
        self.max_tokens = min(max_tokens, _longest_text(model) or max_tokens, tokenizer.model_max_length)
        self._pads_to_full_length = pads_to_full_length
        self._first_position = _first_position(model)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise texts, padded on the right to the longest of them.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 ``(batch, length)``, length at most ``max_tokens``.
        """
        tokens = self.tokenizer(
            list(texts),
            padding="max_length" if self._pads_to_full_length else "longest",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        mask = torch.ones_like(tokens["input_ids"]) if self._pads_to_full_length else tokens["attention_mask"]
        return {"input_ids": tokens["input_ids"], "attention_mask": mask}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed tokenised texts.

        Args:
            input_ids: ``(batch, length)``.
            attention_mask: ``(batch, length)``, 1 for tokens and 0 for padding, which must be on the right.

        Returns:
            ``(batch, dim)``, not normalised; the amount of padding does not matter.
        """
        output = self.model(input_ids=input_ids, attention_mask=None if self._pads_to_full_length else attention_mask)
        if self.pooling == "pooler":
            return output.pooler_output
        if self.pooling == "projection":
            return output.text_embeds
        tokens = output.last_hidden_state
        if self.pooling == "first":
            return tokens[:, 0]
        if self.pooling == "last":
            last = (attention_mask.sum(1) - 1).clamp(min=0)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)

    def check_packing(self) -> None:
        """Make sure that `forward_packed` gives what `forward` gives."""
        config = self.model.config
        packs = config.model_type in _PACKS_TEXTS and not getattr(config, "is_decoder", False)
        if not packs or self._pads_to_full_length or self.pooling == "projection":
            raise StudyError(
                f"texts cannot be packed for {self.origin['name']}, a {config.model_type} pooled by {self.pooling}: "
                "lay them out in buckets or padded."
            )

    def forward_packed(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed tokenised texts that stand behind one another without padding.

        Every linear layer sees exactly these tokens; attention keeps to each text. On a CPU, texts of equal length
        attend as one batch, which is fastest where they stand side by side.

        Args:
            input_ids: ``(tokens,)``, one text after the other.
            lengths: tokens of each text ``(texts,)``, 1 or more; on the CPU, so that a GPU need not be waited for.

        Returns:
            ``(texts, dim)``, not normalised; what `forward` gives with padding.
        """
        from chexstudy.encoders.packed_attention import allow_packing

        self.check_packing()
        allow_packing(self.model)
        device = input_ids.device
        lengths = lengths.cpu()
        ends = lengths.cumsum(0)
        starts = ends - lengths
        places = torch.arange(len(input_ids)) - starts.repeat_interleave(lengths) + self._first_position
        output = self.model(
            input_ids=input_ids.unsqueeze(0),
            position_ids=places.unsqueeze(0).to(device, non_blocking=True),
            cu_seq_lens_q=functional.pad(ends, (1, 0)).to(torch.int32),
            max_length_q=int(lengths.max()),
        )
        tokens = output.last_hidden_state[0]
        if self.pooling == "mean":
            return torch.segment_reduce(tokens, "mean", lengths=lengths.to(device), unsafe=True)
        chosen = tokens.index_select(0, (ends - 1 if self.pooling == "last" else starts).to(device))
        # The model has pooled the row's first text only.
        return self.model.pooler(chosen.unsqueeze(1)) if self.pooling == "pooler" else chosen

    def describe(self) -> dict:
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return super().describe() | {
            "max_tokens": self.max_tokens,
            "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16],
        }


# --- building -----------------------------------------------------------------------------------------------------


def _refusing_odd_checkpoints(build: Callable) -> Callable:
    """Let a builder try what it has built, and tell in one sentence of a checkpoint that no code can make sense of."""

    @wraps(build)
    def build_and_try(spec: EncoderSpec, *arguments, **named):
        try:
            encoder = build(spec, *arguments, **named)
            if not spec.name.startswith("tiny-") and not torch.isfinite(_try(encoder)).all():
                raise StudyError(
                    f"{spec.name} gives embeddings that are not numbers: its weights or its image_mean and image_std "
                    "are damaged; save it again."
                )
        except Exception as error:
            if isinstance(error, StudyError) or tell_mistake(error) or spec.name.startswith("tiny-"):
                raise
            raise StudyError(
                f"{spec.name} is no checkpoint that can be used ({type(error).__name__}): its files are damaged or do "
                "not belong together; save or download it again."
            ) from error
        return encoder

    return build_and_try


@torch.no_grad()
def _try(encoder: "ImageEncoder | TextEncoder") -> Tensor:
    if isinstance(encoder, TextEncoder):
        return encoder(**encoder.tokenize(["Clear lungs."]))
    return encoder(torch.zeros(1, 1, encoder.image_size, encoder.image_size, dtype=torch.uint8))


@_refusing_odd_checkpoints
def build_image_encoder(spec: EncoderSpec, seed: int | torch.Generator = 0) -> ImageEncoder:
    """Make or load an image encoder: on the CPU, in float32, in evaluation mode.

    Args:
        spec: which one, and how it is used.
        seed: decides every weight that is not loaded. The global random state is left as it was.
    """
    if spec.name.startswith("tiny-"):
        config, checkpoint = _tiny_image_config(spec), None
        preprocessing = {"image_mean": (0.5,), "image_std": (0.25,)}
    else:
        checkpoint = _find(spec)
        config = hub.read_config(checkpoint, spec.trust_remote_code)
        preprocessing = hub.read_preprocessing(checkpoint)
    architecture = _IMAGE_ARCHITECTURES.get(config.model_type, _Architecture())
    pooling = _choose_pooling(spec, config, architecture, _IMAGE_POOLINGS)
    model = _make_model(spec, config, architecture, pooling, checkpoint, seed, "vision")
    image_size = spec.image_size or _own_image_size(preprocessing, model.config)
    mean, std = _choose_normalisation(spec, preprocessing, architecture, model.config)
    encoder = ImageEncoder(model, pooling, _origin(spec, config, checkpoint), image_size, mean, std).eval()
    encoder.check_size(image_size)
    return encoder


@_refusing_odd_checkpoints
def build_text_encoder(
    spec: EncoderSpec,
    tokenizer: "PreTrainedTokenizerBase | Sequence[str] | None" = None,
    seed: int | torch.Generator = 0,
) -> TextEncoder:
    """Make or load a text encoder: on the CPU, in float32, in evaluation mode.

    Args:
        spec: which one, and how it is used.
        tokenizer: for ``tiny-bert`` a tokenizer, or the training reports to train one on. A checkpoint brings its own,
            unless a tokenizer is given; reports do not change it.
        seed: decides every weight that is not loaded. The global random state is left as it was.
    """
    if spec.name.startswith("tiny-"):
        if tokenizer is None:
            raise StudyError(f"{spec.name} has no vocabulary of its own: give the training reports or a tokenizer.")
        if not callable(tokenizer):
            tokenizer = train_wordpiece(tokenizer, max_tokens=spec.max_tokens)
        config, checkpoint = _tiny_text_config(spec, len(tokenizer)), None
    else:
        checkpoint = _find(spec)
        config = hub.read_config(checkpoint, spec.trust_remote_code)
        tokenizer = tokenizer if callable(tokenizer) else hub.read_tokenizer(checkpoint, spec.trust_remote_code)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    architecture = _TEXT_ARCHITECTURES.get(config.model_type, _Architecture())
    pooling = _choose_pooling(spec, config, architecture, _TEXT_POOLINGS)
    model = _make_model(spec, config, architecture, pooling, checkpoint, seed, "text")
    if len(tokenizer) > model.config.vocab_size:
        raise StudyError(
            f"the tokenizer has {len(tokenizer)} tokens but {spec.name} knows {model.config.vocab_size}: give the "
            "tokenizer that belongs to it."
        )
    origin = _origin(spec, config, checkpoint)
    max_tokens = min(spec.max_tokens, getattr(config, _RECORD, {}).get("max_tokens", spec.max_tokens))
    return TextEncoder(model, pooling, origin, tokenizer, max_tokens, architecture.pads_to_full_length).eval()


def _find(spec: EncoderSpec) -> hub.Checkpoint:
    return hub.find_checkpoint(spec.name, spec.revision, weights=spec.pretrained, code=spec.trust_remote_code)


def _tiny_image_config(spec: EncoderSpec) -> "PreTrainedConfig":
    from transformers import ResNetConfig, ViTConfig

    if spec.name == "tiny-resnet":
        config = ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic"
        )
        record = {"pooling": "mean+max"}
    elif spec.name == "tiny-vit":
        config = ViTConfig(
            num_channels=1,
            image_size=spec.image_size or _TINY_IMAGE_SIZE,
            patch_size=12,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
        )
        record = {"pooling": "mean", "attention": _TINY_ATTENTION}
    else:
        raise StudyError(f"there is no image encoder {spec.name!r}: the small ones are tiny-resnet and tiny-vit.")
    setattr(config, _RECORD, record | {"name": spec.name, "image_size": _TINY_IMAGE_SIZE})
    return config


def _tiny_text_config(spec: EncoderSpec, vocabulary_size: int) -> "PreTrainedConfig":
    from transformers import BertConfig

    if spec.name != "tiny-bert":
        raise StudyError(f"there is no text encoder {spec.name!r}: the small one is tiny-bert.")
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=spec.max_tokens,
    )
    setattr(config, _RECORD, {"name": spec.name, "pooling": "mean", "attention": _TINY_ATTENTION})
    return config


def _choose_pooling(spec: EncoderSpec, config, architecture: _Architecture, known: tuple[str, ...]) -> str:
    pooling = spec.pooling or getattr(config, _RECORD, {}).get("pooling") or architecture.pooling
    if not pooling:
        raise StudyError(
            f"{spec.name} is a {config.model_type}, whose tokens may mean anything: name a pooling, one of "
            f"{', '.join(known)}."
        )
    parts = pooling.split("+")
    joined = len(parts) > 1 and (known is _TEXT_POOLINGS or {"pooler", "projection"} & set(parts))
    if joined or not set(parts) <= set(known):
        joinable = "; cls, mean and max may be joined with +" if known is _IMAGE_POOLINGS else ""
        raise StudyError(f"unknown pooling {pooling!r} for {spec.name}: use {', '.join(known)}{joinable}.")
    if (pooling == "projection" and not architecture.projection_class) or (
        "cls" in parts and config.model_type in _NO_CLS
    ):
        raise StudyError(
            f"{spec.name} is a {config.model_type} and has no {pooling} to pool by: use {architecture.pooling}."
        )
    return pooling


def _choose_normalisation(spec: EncoderSpec, preprocessing: dict, architecture: _Architecture, config) -> tuple:
    if spec.normalisation == "own":
        usual = NORMALISATIONS[architecture.normalisation]
        values = preprocessing.get("image_mean") or usual[0], preprocessing.get("image_std") or usual[1]
    else:
        values = NORMALISATIONS[spec.normalisation]
    if not all(one > 0 for one in values[1]):
        raise StudyError(f"the image_std of {spec.name} must be above 0: write its preprocessor_config.json again.")
    channels = getattr(config, "num_channels", 3)
    return tuple(tuple(v) if len(v) == channels else (sum(v) / len(v),) * channels for v in values)


def _own_image_size(preprocessing: dict, config: "PreTrainedConfig") -> int:
    recorded = getattr(config, _RECORD, {}).get("image_size")
    size = recorded or hub.preprocessed_size(preprocessing) or getattr(config, "image_size", None)
    return size if isinstance(size, int) else 224


def _make_model(spec, config, architecture, pooling, checkpoint, seed, tower: str) -> "PreTrainedModel":
    """The ``transformers`` model of an encoder, with loaded or seeded weights; ``tower`` is vision or text."""
    if hasattr(config, f"{tower}_config"):
        # A pair's own projection_dim holds for both towers, whatever theirs say.
        shared = getattr(config, "projection_dim", None)
        config = getattr(config, f"{tower}_config")
        if shared:
            config.projection_dim = shared
    # The other tower of a pair, and the way into the shared space where it is not taken.
    unused = [r"^text_" if tower == "vision" else r"^(vision|visual)_", r"^(text|visual)_projection\."]
    if spec.drop_registers:
        config = _without_registers(spec, config)
        architecture = _IMAGE_ARCHITECTURES[config.model_type]
        unused.append(r"(^|\.)register_tokens$")
    if not spec.dropout:
        for name in config.to_dict():
            if name.endswith(("dropout", "dropout_prob", "dropout_rate", "drop_path_rate")):
                setattr(config, name, 0.0)
    model_class = _model_class(config, architecture, pooling)
    options = {}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = pooling == "pooler"
    if model_class.__name__ == "AutoModel":
        options["trust_remote_code"] = spec.trust_remote_code
    record = getattr(config, _RECORD, {})
    with _seeded(seed), hub.quiet_transformers():
        if spec.pretrained and checkpoint and not record.get("group_normalisation"):
            model = hub.load_model(checkpoint, model_class, unused, config=config, **options)
        else:
            create = getattr(model_class, "from_config", model_class)
            model = create(config, **options).float()
            if _replace_batch_normalisation(model):
                setattr(model.config, _RECORD, record | {"group_normalisation": True})
            if spec.pretrained and checkpoint:
                _load_own_weights(model, checkpoint)
    if "attention" in record:
        hub.check_attentions({"implementation": record["attention"]}, spec.name)
        model.set_attn_implementation(record["attention"])
    return model


def _model_class(config: "PreTrainedConfig", architecture: _Architecture, pooling: str) -> type:
    import transformers

    if architecture.model_class:
        name = architecture.projection_class if pooling == "projection" else architecture.model_class
        return getattr(transformers, name)
    try:
        known = transformers.MODEL_MAPPING[type(config)]
    except KeyError:
        # Code that came with the checkpoint, which only AutoModel finds.
        return transformers.AutoModel
    return known[0] if isinstance(known, tuple) else known


def _load_own_weights(model: nn.Module, checkpoint: hub.Checkpoint) -> None:
    try:
        model.load_state_dict(load_file(checkpoint.folder / _WEIGHTS))
    except (OSError, RuntimeError, SafetensorError):
        raise StudyError(f"the weights in {checkpoint.folder} are damaged: save the encoder again.") from None


def _without_registers(spec: EncoderSpec, config: "PreTrainedConfig") -> "PreTrainedConfig":
    from transformers import Dinov2Config

    if config.model_type != "dinov2_with_registers":
        raise StudyError(f"{spec.name} is a {config.model_type} and has no registers: leave drop_registers out.")
    other = ("num_register_tokens", "model_type", "architectures")
    return Dinov2Config(**{name: value for name, value in config.to_dict().items() if name not in other})


def _replace_batch_normalisation(module: nn.Module) -> bool:
    replaced = False
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(max(child.num_features // _CHANNELS_A_GROUP, 1), child.num_features))
            replaced = True
        else:
            replaced |= _replace_batch_normalisation(child)
    return replaced


def _width(model: "PreTrainedModel") -> int:
    config = model.config
    sizes = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", None)]
    if not isinstance(sizes[-1], int):
        raise StudyError(f"cannot tell the width of a {config.model_type}: use an architecture with a hidden_size.")
    return sizes[-1]


def _pooled_dim(model: "PreTrainedModel", pooling: str) -> int:
    return model.config.projection_dim if pooling == "projection" else _width(model) * len(pooling.split("+"))


def _longest_text(model: "PreTrainedModel") -> int | None:
    """How many tokens a text model has positions for, or None if it does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else limit - _first_position(model)


def _first_position(model: nn.Module) -> int:
    for name, module in model.named_modules():
        # RoBERTa numbers its positions from the padding token's id on.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.padding_idx + 1
    return 0


def _origin(spec: EncoderSpec, config: "PreTrainedConfig", checkpoint: hub.Checkpoint | None) -> dict:
    recorded = getattr(config, _RECORD, {})
    commit = checkpoint.commit if checkpoint else ""
    return {"name": recorded.get("name", spec.name), "revision": recorded.get("revision", commit or spec.revision)}


@contextmanager
def _seeded(seed: int | torch.Generator) -> Iterator[None]:
    """Draw what is drawn inside from a seed, and leave the global random state as it was."""
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (1,), generator=seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# --- compiling ----------------------------------------------------------------------------------------------------


def compile_blocks(encoder: ImageEncoder | TextEncoder) -> int:
    """Compile each transformer block, or each stage of a ResNet, in place; the names of its weights stay.

    Images have static shapes, so that each size is compiled once; texts have dynamic ones. Blocks alike share what is
    compiled. The first pass of each kind takes the time of a compilation.

    Returns:
        How many blocks.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in encoder.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks and encoder.model.config.model_type == "resnet":
        blocks = list(encoder.model.encoder.stages)
    if not blocks:
        raise StudyError(
            f"{encoder.origin['name']} is a {encoder.model.config.model_type}, whose blocks are not known: train it "
            "without compile_blocks."
        )
    for block in blocks:
        block.compile(dynamic=isinstance(encoder, TextEncoder), recompile_limit=_COMPILED_VERSIONS)
    return len(blocks)


# --- saving -------------------------------------------------------------------------------------------------------


def save_encoder(encoder: ImageEncoder | TextEncoder, folder: str | Path) -> Path:
    """Write an encoder as a checkpoint folder that :func:`load_image_encoder` and ``transformers`` read.

    Files: ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` or the tokenizer's. ``config.json`` is
    written last: a folder that has it is whole.
    """
    folder = Path(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    with atomic_path(folder / _WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    record = getattr(encoder.model.config, _RECORD, {}) | encoder.origin | {"pooling": encoder.pooling}
    if isinstance(encoder, ImageEncoder):
        record["image_size"] = encoder.image_size
        size = {"height": encoder.image_size, "width": encoder.image_size}
        preprocessing = {"image_mean": encoder.mean, "image_std": encoder.std, "size": size, "resample": 3}
        _write_json(folder / "preprocessor_config.json", preprocessing)
    else:
        record["max_tokens"] = encoder.max_tokens
        with tempfile.TemporaryDirectory(prefix=name_partial("tokenizer"), dir=folder) as draft:
            for path in encoder.tokenizer.save_pretrained(draft):
                if os.path.isfile(path):
                    os.replace(path, folder / Path(path).name)
    config = encoder.model.config.to_dict() | {"architectures": [type(encoder.model).__name__], _RECORD: record}
    _write_json(folder / "config.json", config)
    return folder


def load_image_encoder(folder: str | Path) -> ImageEncoder:
    """Read an image encoder that :func:`save_encoder` wrote: the same weights, size, pooling and normalisation."""
    return build_image_encoder(EncoderSpec(str(folder)))


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """Read a text encoder that :func:`save_encoder` wrote: the same weights, tokenizer, pooling and length."""
    return build_text_encoder(EncoderSpec(str(folder)))


def _write_json(path: Path, value: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
