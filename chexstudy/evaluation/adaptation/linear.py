"""The published linear probe on frozen features, trained by gradient, and what linear heads read.

CheXFound's linear probe reads [CLS] of the last four blocks side by side and, where asked, the mean patch of the last
block; its weights start from N(0, 0.01) with bias 0. The features enter as they are.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chexstudy.encoders.frozen_features import FeatureBatch, FrozenFeatures

INITIAL_SPREAD = 0.01


class LinearHead(nn.Module):
    """One linear layer on features without patches; weights N(0, 0.01), bias 0.

    It reads so many channels, the last ones, of [CLS], of the mean patch and of the pooled embedding.
    """

    needs_patches = False

    def __init__(self, findings: int, *, cls: int = 0, mean: int = 0, pooled: int = 0, generator: torch.Generator):
        super().__init__()
        # The arguments but the generator, to build the head again.
        self.settings = {"findings": findings, "cls": cls, "mean": mean, "pooled": pooled}
        self.weight = nn.Parameter(
            torch.empty(findings, cls + mean + pooled).normal_(0, INITIAL_SPREAD, generator=generator)
        )
        self.bias = nn.Parameter(torch.zeros(findings))

    def forward(self, batch: FeatureBatch) -> Tensor:
        """Logits ``(batch, findings)``."""
        read = [
            getattr(batch, part)[:, -self.settings[part] :] for part in ("cls", "mean", "pooled") if self.settings[part]
        ]
        return nn.functional.linear(torch.cat(read, dim=1), self.weight, self.bias)


def count_channels(features: FrozenFeatures, parts: str = "cls") -> dict[str, int]:
    """How many of the last channels of each kind of feature are read.

    Parts: ``cls`` of all blocks, as published; the ``mean`` patch of the last block; ``cls+mean``, as published with
    average pooling; or what the encoder's own pooling gives, ``pooled``.
    """
    channels = {"cls": sum(features.widths), "mean": features.widths[-1], "pooled": features.pooled.shape[1]}
    return {part: channels[part] for part in parts.split("+")}


def read_vectors(features: FrozenFeatures, image_ids: Sequence[str], parts: str) -> np.ndarray:
    """Features a linear head reads, ``(images, channels)`` float32."""
    rows, channels = features.rows(image_ids), count_channels(features, parts)
    return np.concatenate([getattr(features, part)[rows, -count:] for part, count in channels.items()], axis=1)
