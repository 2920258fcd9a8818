"""The encoder as it is trained: positions at any size, dropped paths, and how fast each of its weights may change."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

_PATCH_RATE = 0.2
_POSITION_OFFSET = 0.1
_INITIAL_DEVIATION = 0.02


def interpolate_positions(positions: Tensor, side: int, offset: bool = False) -> Tensor:
    """Position embeddings ``(1, 1 + patches, dim)``, [CLS] first, for a square of ``side`` patches a side.

    With an ``offset``, as published, by a factor that is a tenth of a patch too large, which shifts the grid: 8 to 13 %
    off on smooth embeddings (S12).
    """
    own = round((positions.shape[1] - 1) ** 0.5)
    if side == own:
        return positions
    grid = positions[:, 1:].float().reshape(1, own, own, -1).permute(0, 3, 1, 2)
    if offset:
        factor = (side + _POSITION_OFFSET) / own
        grid = functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    else:
        grid = functional.interpolate(grid, (side, side), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def fit_positions(model: nn.Module, size: int, drawn: bool = False) -> None:
    """Let a DINOv2 learn positions of images of ``size`` pixels a side, if its own are of others; a DINOv3 learns none.

    They are those that it would interpolate, or ``drawn`` anew, as published at a new resolution (S12).
    """
    embeddings, side = model.embeddings, size // model.config.patch_size
    positions = getattr(embeddings, "position_embeddings", None)
    if positions is None or positions.shape[1] == 1 + side**2:
        return
    fitted = positions.new_empty(1, 1 + side**2, positions.shape[2])
    if drawn:
        nn.init.trunc_normal_(fitted, std=_INITIAL_DEVIATION)
    else:
        fitted = embeddings.interpolate_pos_encoding(fitted, size, size).detach()
    embeddings.position_embeddings, model.config.image_size = nn.Parameter(fitted), size


def use_published_positions(model: nn.Module) -> None:
    """Let a DINOv2 of transformers interpolate its positions as the published training does."""
    model.embeddings.interpolate_pos_encoding = MethodType(_interpolate_with_offset, model.embeddings)


def _interpolate_with_offset(embeddings: nn.Module, _: Tensor, height: int, width: int) -> Tensor:
    return interpolate_positions(embeddings.position_embeddings, height // embeddings.patch_size, offset=True)


def drop_paths(model: nn.Module, rate: float, of_batch: bool = False) -> None:
    """Let each branch of each block of a DINOv2 or DINOv3 leave out images at random; those that stay are scaled up.

    What is left out is not computed. It is exactly this share ``of_batch``, as published; else each image with this
    chance.
    """
    for block in list_blocks(model):
        block.forward = partial(_forward_some, block, rate, of_batch)


def list_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks of a DINOv2 or DINOv3, first to last."""
    return (model.encoder if hasattr(model, "encoder") else model.model).layer


@contextmanager
def ask_for_tokens(model: nn.Module, places: Tensor) -> Iterator[None]:
    """Let a DINOv2 or DINOv3 give some of its tokens only ``(1, places, width)``, and compute no other to the end.

    After the attention of the last block a token is looked at by nobody but who asks for it. Places are those among the
    tokens of all images. Where paths are dropped, all are computed.
    """
    block = list_blocks(model)[-1]
    dropping = vars(block).pop("forward", None)
    block.forward = partial(_forward_places, block, places, dropping)
    try:
        yield
    finally:
        del block.forward
        if dropping:
            block.forward = dropping


def _forward_places(block, places: Tensor, dropping, hidden_states: Tensor, attention_mask=None, **options) -> Tensor:
    if dropping:
        return dropping(hidden_states, attention_mask, **options).flatten(0, 1)[places][None]
    attended = block.attention(block.norm1(hidden_states), attention_mask=attention_mask, **options)[0]
    hidden_states = hidden_states.flatten(0, 1)[places] + block.layer_scale1(attended.flatten(0, 1)[places])
    return (hidden_states + block.layer_scale2(block.mlp(block.norm2(hidden_states))))[None]


def _forward_some(block, rate: float, of_batch: bool, hidden_states: Tensor, attention_mask=None, **options) -> Tensor:
    def attend(rows: Tensor) -> Tensor:
        return block.layer_scale1(block.attention(block.norm1(rows), attention_mask=attention_mask, **options)[0])

    for branch in (attend, lambda rows: block.layer_scale2(block.mlp(block.norm2(rows)))):
        count = len(hidden_states)
        if not block.training:
            hidden_states = hidden_states + branch(hidden_states)
            continue
        if of_batch:
            rows = torch.randperm(count)[: max(int(count * (1 - rate)), 1)]
            scale = count / len(rows)
        else:
            rows, scale = (torch.rand(count) >= rate).nonzero()[:, 0], 1 / (1 - rate)
        if len(rows):
            rows = rows.to(hidden_states.device)
            added = branch(hidden_states[rows]).to(hidden_states.dtype)
            hidden_states = hidden_states.index_add(0, rows, added, alpha=scale)
    return hidden_states


def group_parameters(
    parameters: Iterable[tuple[str, nn.Parameter]], depth: int, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """What an optimiser needs to know of each weight of a DINOv2 or DINOv3 of a ``depth``, and of projection heads.

    Biases, normalisations and LayerScale are not decayed; tokens, positions, and directions and lengths of prototypes
    are (S9). Patch embeddings learn at a fifth of the rate, deeper blocks faster than those before them:
    ``layer_decay`` is the factor from a block to the one before it (published: 1; DINOv2's short recipe: 0.9).

    Gives one group a weight: ``params``, ``rate`` (factor of the learning rate), ``decay`` (of the weight decay, 0 or
    1), ``of_head``, and ``is_prototype``, whether it learns at the last layer's rate.
    """
    groups = []
    for name, weight in parameters:
        layer = depth + 1
        if block := re.search(r"\blayer\.(\d+)\.", name):
            layer = int(block[1]) + 1
        elif "embeddings." in name:
            layer = 0
        rate = layer_decay ** (depth + 1 - layer) * (_PATCH_RATE if "patch_embeddings" in name else 1.0)
        plain = name.endswith(".bias") or "norm" in name or "lambda" in name
        kind = {"of_head": "head." in name, "is_prototype": "last_layer" in name}
        groups.append({"params": [weight], "rate": rate, "decay": float(not plain)} | kind)
    return groups


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Each weight of the teacher becomes ``momentum`` times itself and the rest of the student's."""
    weights = list(zip(teacher.parameters(), student.parameters(), strict=True))
    torch._foreach_mul_([mine for mine, _ in weights], momentum)
    torch._foreach_add_([mine for mine, _ in weights], [its for _, its in weights], alpha=1 - momentum)
