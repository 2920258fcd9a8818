"""Attention over texts that stand behind one another in one row, each looking at itself only.

Padding a batch of texts to the longest wastes most of the text encoder's work on tokens that are not there. In one row
without padding the linear layers see exactly the tokens there are; only attention must know where a text ends. The
variants registered here go through the attention interface of ``transformers`` and run what the model ran before
wherever no packing is given: so one model serves padded and packed texts, in several threads at once.
"""

import sys
from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX = "packable_"
_LARGEST_FLASH_HEAD = 256
_HEAD_STEP = 8


def allow_packing(model: nn.Module) -> None:
    """Let a ``transformers`` encoder without causal attention take ``cu_seq_lens_q`` and ``max_length_q``.

    Nothing in it is rebuilt, and without them it runs as before, on ``eager`` or ``sdpa`` attention.
    """
    present = model.config._attn_implementation
    if present.startswith(_PREFIX):
        return
    name = _PREFIX + present
    AttentionInterface.register(name, _make_attention(present))
    AttentionMaskInterface.register(name, _make_mask(present))
    model.set_attn_implementation(name)


def _make_attention(present: str) -> Callable:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **options,
    ) -> tuple[Tensor, Tensor | None]:
        # Every modelling file of transformers defines its own plain form under this name.
        plain = sys.modules[type(module).__module__].eager_attention_forward
        ordinary = ALL_ATTENTION_FUNCTIONS.get_interface(present, plain)
        if cu_seq_lens_q is None:
            return ordinary(module, query, key, value, attention_mask, **options)
        return _attend_packed(ordinary, module, query, key, value, cu_seq_lens_q, max_length_q, options), None

    return attend


def _make_mask(present: str) -> Callable:
    def make_mask(*args, attention_mask: Tensor | None = None, **options) -> Tensor | None:
        if attention_mask is None:
            return None
        return ALL_MASK_ATTENTION_FUNCTIONS[present](*args, attention_mask=attention_mask, **options)

    return make_mask


# Where texts end changes from batch to batch: compiled code would be compiled anew each time.
@torch.compiler.disable
def _attend_packed(
    ordinary: Callable,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    options: dict,
) -> Tensor:
    """``(1, heads, tokens, width)`` each to ``(1, tokens, heads, width)``; ``ends`` are int32, with a leading 0."""
    if _has_flash(query, options.get("dropout", 0.0)):
        rows = (part[0].transpose(0, 1) for part in (query, key, value))
        ends = ends.to(query.device, non_blocking=True)
        return varlen_attn(*rows, ends, ends, longest, longest, scale=options.get("scaling")).unsqueeze(0)
    # Texts of equal length are a batch without padding. Splitting has one backward pass for all of them; slicing would
    # fill a whole gradient for each.
    runs = [(len(list(run)), length) for length, run in groupby(ends.diff().tolist())]
    sizes = [texts * length for texts, length in runs]
    groups = zip(runs, *(part[0].split(sizes, dim=1) for part in (query, key, value)), strict=True)
    attended = [
        ordinary(module, *(part.unflatten(1, run).transpose(0, 1) for part in parts), None, **options)[0].flatten(0, 1)
        for run, *parts in groups
    ]
    return torch.cat(attended).unsqueeze(0)


def _has_flash(query: Tensor, dropout: float) -> bool:
    """Whether flash attention for texts of any length can run: not in float32, and it knows no dropout."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and dropout == 0
        and query.shape[-1] <= _LARGEST_FLASH_HEAD
        and query.shape[-1] % _HEAD_STEP == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and torch.backends.cuda.flash_sdp_enabled()
    )
