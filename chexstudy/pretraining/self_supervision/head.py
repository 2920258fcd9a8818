"""The projection head: what is compared across crops and patches is its output, not the encoder's."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.devices import memory_of
from chexstudy.errors import StudyError
from chexstudy.pretraining.self_supervision.centring import Logits
from chexstudy.pretraining.self_supervision.configuration import SelfSupervisionConfig

_INITIAL_DEVIATION = 0.02
# Copies of a weight: student, gradient, two moments and teacher; of prototypes too those of the lengths they were given
# and their gradient.
_COPIES, _COPIES_OF_PROTOTYPES = 5, 7
# Of the logits of an image: themselves, their softmax, the targets and the gradient.
_COPIES_OF_LOGITS = 4
_BYTES, _GIB = 4, 2**30


def require_memory(config: SelfSupervisionConfig, width: int, device: torch.device) -> None:
    """Refuse heads on features of that width that even one image at a time would not leave room for."""
    needed = 0
    for prototypes, bottleneck, rows in (
        (config.crop_prototypes, config.crop_bottleneck, 2 + config.local_crops),
        (config.patch_prototypes, config.patch_bottleneck, 1),
    ):
        needed += _COPIES * config.head_hidden * (width + config.head_hidden + bottleneck)
        needed += prototypes * (_COPIES_OF_PROTOTYPES * bottleneck + _COPIES_OF_LOGITS * rows)
    there = memory_of(device)
    if _BYTES * needed > there:
        raise StudyError(
            f"{config.crop_prototypes:,} crop_prototypes and {config.patch_prototypes:,} patch_prototypes need about "
            f"{_BYTES * needed / _GIB:,.1f} GiB of memory, and {device} has {there / _GIB:,.1f}: use fewer, or smaller "
            "bottlenecks."
        )


class ProjectionHead(nn.Module):
    """Three layers to a bottleneck of unit length, then prototypes of lengths that are learned.

    Weights are drawn as published: the layers from a truncated normal, the prototypes' directions as torch draws a
    linear layer, their lengths 1. Lengths are trained and decayed: a logit is bounded by them and not by 1 (S9).
    Published are 131,072 prototypes, 2,048 ``hidden`` for the first two layers, and a ``bottleneck`` of 384 for crops,
    256 for patches. In DINOv3 a ``plain`` linear layer is in place of directions and lengths.
    """

    def __init__(self, dim: int, prototypes: int, hidden: int, bottleneck: int, plain: bool = False):
        super().__init__()
        widths = (dim, hidden, hidden, bottleneck)
        layers = [nn.Linear(into, out) for into, out in pairwise(widths)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=_INITIAL_DEVIATION)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)
        if plain:
            nn.init.trunc_normal_(self.last_layer.weight, std=_INITIAL_DEVIATION)
        else:
            nn.utils.parametrizations.weight_norm(self.last_layer)
            nn.init.ones_(self.last_layer.parametrizations.weight.original0)

    def reduce(self, features: Tensor) -> Tensor:
        """What enters the last layer: ``(rows, dim)`` to ``(rows, bottleneck)`` of unit length."""
        reduced = self.mlp(features)
        # Float16 has no smaller number that division bears.
        return functional.normalize(reduced, dim=-1, eps=1e-6 if reduced.dtype == torch.float16 else 1e-12)

    def forward(self, features: Tensor) -> Tensor:
        """``(rows, dim)`` to logits ``(rows, prototypes)``."""
        return self.last_layer(self.reduce(features))

    def logits(self, reduced: Tensor) -> Logits:
        """Logits of what `reduce` gave, without gradient, made when they are needed."""
        return Logits(reduced.detach(), self.last_layer.weight.detach())
