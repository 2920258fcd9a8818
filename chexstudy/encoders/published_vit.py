"""Checkpoints of DINOv2's and CheXFound's own code as what transformers' DINOv2 with registers loads."""

import re
from collections.abc import Mapping

from torch import Tensor

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
