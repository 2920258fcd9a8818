"""Checkpoints of DINOv2's and CheXFound's own code as what transformers' DINOv2, with or without registers, loads."""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from chexstudy.errors import StudyError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_NAMES = (
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    # Blocks that were saved in chunks bear the chunk's number before their own.
    (r"^blocks\.(?:\d+\.)?(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w3\.", ".mlp.down_proj."),
    (r"^norm\.", "layernorm."),
)
# Layers that one matrix holds there, in its order.
_JOINED = {
    ".attn.qkv.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj."),
    ".mlp.w12.": (".mlp.gate_proj.", ".mlp.up_proj."),
}


_HEAD_WIDTH = 64


def read_teacher(path: Path) -> dict[str, Tensor]:
    """The tensors of what stands alone in a file, or else of the teacher, under the names of the published code.

    Training leaves it under ``teacher`` or ``model``, beside a student and an optimiser.
    """
    try:
        is_safe = path.suffix == ".safetensors"
        weights = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise StudyError(
            f"{path} does not load as tensors alone ({type(error).__name__}): it is damaged, or holds code, which is "
            "never run; save its state_dict again."
        ) from None
    for entry in ("model", "teacher"):
        weights = weights.get(entry, weights) if isinstance(weights, dict) else {}
    tensors = {name: one for name, one in weights.items() if isinstance(one, Tensor)}
    return _take_inside(tensors, "teacher.")


def _take_inside(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    inside = {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
    return inside or weights


def read_backbone(path: Path) -> dict[str, Tensor]:
    """The weights of the backbone in a file of the published code, under transformers' names."""
    weights = _take_inside(read_teacher(path), "backbone.")
    if not {"patch_embed.proj.weight", "pos_embed"} <= weights.keys():
        raise StudyError(
            f"the weights in {path} do not bear the names that DINOv2's own code gives: give a file of that code, or "
            "for other encoders the folder with their config.json."
        )
    return translate_weights({name: one.float() for name, one in weights.items()})


def derive_config(weights: Mapping[str, Tensor], name: str) -> "PreTrainedConfig":
    """What the shapes of weights under transformers' names tell of their architecture; heads are 64 wide, as always."""
    from transformers import Dinov2Config, Dinov2WithRegistersConfig

    width, channels, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    patches = weights["embeddings.position_embeddings"].shape[1] - 1
    gated = "encoder.layer.0.mlp.gate_proj.weight" in weights
    hidden = len(weights[f"encoder.layer.0.mlp.{'gate_proj' if gated else 'fc1'}.weight"])
    if width % _HEAD_WIDTH:
        raise StudyError(
            f"the weights in {name} are {width} wide, and a ViT of DINOv2's own code has heads of {_HEAD_WIDTH}: give "
            "the folder that transformers saves, whose config.json says how many there are."
        )
    registers = weights.get("embeddings.register_tokens")
    of_registers = {} if registers is None else {"num_register_tokens": registers.shape[1]}
    return (Dinov2Config if registers is None else Dinov2WithRegistersConfig)(
        hidden_size=width,
        num_hidden_layers=len({key.split(".")[2] for key in weights if key.startswith("encoder.layer.")}),
        num_attention_heads=width // _HEAD_WIDTH,
        # Of a gated layer, transformers takes two thirds.
        mlp_ratio=round(hidden / width * (1.5 if gated else 1)),
        use_swiglu_ffn=gated,
        qkv_bias="encoder.layer.0.attention.q_proj.bias" in weights,
        image_size=math.isqrt(patches) * patch,
        patch_size=patch,
        num_channels=channels,
        **of_registers,
    )


def translate_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a backbone under transformers' names, joined matrices taken apart."""
    translated = {}
    for name, weight in published.items():
        for joined, parts in _JOINED.items():
            if joined in name:
                pieces = zip(parts, weight.chunk(len(parts)), strict=True)
                translated |= {translate_name(name).replace(joined, part): piece for part, piece in pieces}
                break
        else:
            translated[translate_name(name)] = weight
    return translated


def translate_name(name: str) -> str:
    """A weight's name in transformers; that of a joined matrix keeps its own ending."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
