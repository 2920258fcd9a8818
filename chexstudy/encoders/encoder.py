"""What image and text encoders share: a model, where it came from, and no statistic across the batch."""

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from chexstudy.errors import StudyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Encoder(nn.Module):
    """A model of ``transformers`` whose output is pooled to ``dim`` numbers a sample."""

    def __init__(self, model: "PreTrainedModel", pooling: str, origin: dict):
        super().__init__()
        self.model, self.pooling, self.origin = model, pooling, origin
        joined = len(pooling.split("+"))
        self.dim = model.config.projection_dim if pooling == "projection" else width_of(model) * joined

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


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and persistent buffers (names, types, shapes, values), 16 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def width_of(model: "PreTrainedModel") -> int:
    config = model.config
    sizes = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", None)]
    if not isinstance(sizes[-1], int):
        raise StudyError(f"cannot tell the width of a {config.model_type}: use an architecture with a hidden_size.")
    return sizes[-1]
