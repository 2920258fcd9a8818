"""Linear probes on frozen features: the published one, trained by gradient, and a logistic regression.

CheXFound's linear probe reads [CLS] of the last four blocks side by side and, where asked, the mean patch of the last
block; its weights start from N(0, 0.01) with bias 0. The features enter as they are. The logistic regression reads the
same features standardised, with a penalty chosen for each finding (`chexstudy.evaluation.adaptation.logistic_path`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from chexstudy.cohort.table import label_matrix
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.logistic_path import INVERSE_PENALTIES, LinearProbe, fit_linear_probe
from chexstudy.evaluation.adaptation.training import FeatureBatch, check_splits

PARTS = ("cls", "mean", "cls+mean", "pooled")
_INITIAL_SPREAD = 0.01


class LinearHead(nn.Module):
    """One linear layer on features without patches; weights N(0, 0.01), bias 0.

    Args:
        findings: number of findings.
        cls: channels of [CLS] that are read, the last ones; 0 for none.
        mean: channels of the mean patch, the last ones.
        pooled: channels of the pooled embedding, the last ones.
        generator: draws the weights.

    Attributes:
        needs_patches: never.
        settings: the arguments but the generator, to build the head again.
    """

    needs_patches = False

    def __init__(self, findings: int, *, cls: int = 0, mean: int = 0, pooled: int = 0, generator: torch.Generator):
        super().__init__()
        self.settings = {"findings": findings, "cls": cls, "mean": mean, "pooled": pooled}
        if min(cls, mean, pooled) < 0 or cls + mean + pooled == 0 or findings < 1:
            raise StudyError("a linear head needs one finding or more, and features to read.")
        self.weight = nn.Parameter(
            torch.empty(findings, cls + mean + pooled).normal_(0, _INITIAL_SPREAD, generator=generator)
        )
        self.bias = nn.Parameter(torch.zeros(findings))

    def forward(self, batch: FeatureBatch) -> Tensor:
        """Logits ``(batch, findings)``."""
        read = [
            getattr(batch, part)[:, -self.settings[part] :] for part in ("cls", "mean", "pooled") if self.settings[part]
        ]
        return nn.functional.linear(torch.cat(read, dim=1), self.weight, self.bias)


def linear_head(
    features: FrozenFeatures,
    findings: int,
    *,
    parts: str = "cls",
    blocks: int | None = None,
    generator: torch.Generator,
) -> LinearHead:
    """The published linear probe for these features.

    Args:
        features: tell how many channels there are.
        findings: number of findings.
        parts: ``cls`` of the last blocks, as published; ``mean``, the mean patch of the last block alone;
            ``cls+mean``, both, as published with average pooling; or ``pooled``, what the encoder's own pooling gives.
        blocks: of how many of the last blocks [CLS] is read; all that the features hold if not given (4 as published).
        generator: draws the weights.
    """
    return LinearHead(findings, **_count_channels(features, parts, blocks), generator=generator)


def read_vectors(
    features: FrozenFeatures, image_ids: Sequence[str], parts: str = "pooled", blocks: int | None = None
) -> np.ndarray:
    """Features a linear head reads, ``(images, channels)`` float32; ``parts`` and ``blocks`` as in `linear_head`."""
    rows = features.rows(image_ids)
    channels = _count_channels(features, parts, blocks)
    return np.concatenate([getattr(features, part)[rows, -count:] for part, count in channels.items()], axis=1)


@dataclass(frozen=True)
class FittedProbe:
    """Logistic regressions, one a finding."""

    probe: LinearProbe  # the coefficients and the penalty chosen for each finding
    parts: str  # what is read, as in `linear_head`
    blocks: int | None  # likewise
    encoder: dict  # `ImageEncoder.describe` of the encoder whose features it was fitted on
    findings: tuple[str, ...]  # in the order of the scores

    def score(self, features: FrozenFeatures, image_ids: Sequence[str]) -> np.ndarray:
        """Log-odds ``(images, findings)``, float64; a column of NaN for a finding with one class in training."""
        features.check_encoder(self.encoder)
        return self.probe.score(read_vectors(features, image_ids, self.parts, self.blocks))


def fit_logistic(
    features: FrozenFeatures,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    findings: Sequence[str],
    *,
    parts: str = "cls+mean",
    blocks: int | None = None,
    inverse_penalties: Sequence[float] = INVERSE_PENALTIES,
) -> FittedProbe:
    """Fit one logistic regression a finding; its penalty is chosen on validation by the finding's AUROC.

    A finding that validation cannot judge takes the penalty with the best mean over the others, or the strongest one
    where none can be judged.

    Args:
        features: of the images of both splits.
        train: cohort rows to fit on.
        validation: cohort rows the penalties are chosen on.
        findings: what is learnt; labels 1 and 0, all others are left out.
        parts: as in `linear_head`.
        blocks: likewise.
        inverse_penalties: the choices (scikit-learn's ``C``).
    """
    findings = tuple(findings)
    check_splits(train, validation, findings)
    vectors = [read_vectors(features, rows.image_id, parts, blocks) for rows in (train, validation)]
    labels = [label_matrix(rows, list(findings)) for rows in (train, validation)]
    probe = fit_linear_probe(vectors[0], labels[0], vectors[1], labels[1], inverse_penalties=inverse_penalties)
    return FittedProbe(probe, parts, blocks, features.encoder, findings)


def _count_channels(features: FrozenFeatures, parts: str, blocks: int | None) -> dict[str, int]:
    """How many of the last channels of each kind of feature are read."""
    if parts not in PARTS:
        raise StudyError(f"a linear head reads {', '.join(PARTS)}, not {parts!r}.")
    blocks = len(features.widths) if blocks is None else blocks
    if not 1 <= blocks <= len(features.widths):
        raise StudyError(
            f"the features hold {len(features.widths)} blocks, not {blocks}: ask for as many, or freeze more."
        )
    channels = {
        "cls": sum(features.widths[-blocks:]),
        "mean": features.widths[-1],
        "pooled": features.pooled.shape[1],
    }
    return {part: channels[part] for part in parts.split("+")}
