"""Losses for heads on frozen features: binary cross-entropy with masked labels, and three that help rare findings.

Labels are 1 present, 0 absent, -1 uncertain and NaN not stated; the last two give neither loss nor gradient. All losses
are sums over findings and images, as the published probe has it, and take logits ``(batch, findings)`` or, where
several heads are trained side by side, ``(heads, batch, findings)`` with the same labels for all.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from chexstudy.statistics.ranking import known_labels

LOSSES = ("bce", "asymmetric", "class_balanced", "logit_adjusted")
Loss = Callable[[Tensor, Tensor], Tensor]
# The published constants: focus on absent and on present findings, and the probability under which an absent finding
# costs nothing (Ridnik et al.); beta (Cui et al.).
_FOCUS_ABSENT, _FOCUS_PRESENT, _CLIP = 4.0, 1.0, 0.05
_BETA = 0.999


def make_loss(name: str, labels: np.ndarray) -> Loss:
    """The loss of a name, with what it needs to know of the training labels.

    ``bce``: binary cross-entropy.

    ``asymmetric`` (Ridnik et al., "Asymmetric loss for multi-label classification", ICCV 2021): terms of absent
    findings are focused by ``max(p - clip, 0) ** 4``, terms of present ones by ``1 - p``. The focusing factors are
    differentiated too.

    ``class_balanced`` (Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019): each term is
    weighed by the inverse effective number of its class, ``(1 - beta) / (1 - beta ** n)``. The paper has one class an
    image; here the classes of a finding are present and absent, and its two weights sum to 2, as the paper's sum to the
    number of classes.

    ``logit_adjusted`` (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021): cross-entropy of
    ``logit + logit(prevalence)``, the form of the paper's loss for one binary label a finding. The adjustment belongs
    to training alone: at inference the raw logit is the score. A prevalence of 0 or 1 is taken as half a case, so that
    it stays finite.

    Of labels ``(train images, findings)``, off which class counts and prevalences are read; gives a function of logits
    ``(..., batch, findings)`` and labels ``(batch, findings)`` to a scalar.
    """
    labels = np.asarray(labels, dtype=float)
    known = known_labels(labels)
    present, absent = (known & (labels == 1)).sum(axis=0), (known & (labels == 0)).sum(axis=0)
    weights = _weigh_classes(present, absent) if name == "class_balanced" else None
    adjustment = _adjust_logits(present, absent) if name == "logit_adjusted" else None

    def loss(logits: Tensor, given: Tensor) -> Tensor:
        states = given == 1, (given == 0) | (given == 1)
        present, known = (one.to(logits).expand_as(logits) for one in states)
        if name == "asymmetric":
            return _focus(logits, present, known)
        if weights is not None:
            of_present, of_absent = weights.to(logits)
            known = known * torch.where(present == 1, of_present, of_absent)
        if adjustment is not None:
            logits = logits + adjustment.to(logits)
        return F.binary_cross_entropy_with_logits(logits, present, known, reduction="sum")

    return loss


def _focus(logits: Tensor, present: Tensor, known: Tensor) -> Tensor:
    shifted = (torch.sigmoid(logits) - _CLIP).clamp(min=0)
    of_absent = shifted**_FOCUS_ABSENT * torch.log1p(-shifted)
    of_present = torch.sigmoid(-logits) ** _FOCUS_PRESENT * F.logsigmoid(logits)
    return -(known * torch.where(present == 1, of_present, of_absent)).sum()


def _weigh_classes(present: np.ndarray, absent: np.ndarray) -> Tensor:
    # A class that no training label has weighs nothing in training, whatever stands here.
    inverse = 1 / np.stack([(1 - _BETA ** np.maximum(count, 1)) / (1 - _BETA) for count in (present, absent)])
    return torch.from_numpy(2 * inverse / inverse.sum(axis=0))


def _adjust_logits(present: np.ndarray, absent: np.ndarray) -> Tensor:
    # A finding that no label states gets no adjustment.
    known = np.maximum(present + absent, 1)
    present = np.where(present + absent > 0, np.clip(present, 0.5, known - 0.5), 0.5)
    return torch.from_numpy(np.log(present / (known - present)))
