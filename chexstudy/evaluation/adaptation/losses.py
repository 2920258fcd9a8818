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

from chexstudy.errors import StudyError
from chexstudy.statistics.ranking import known_labels

LOSSES = ("bce", "asymmetric", "class_balanced", "logit_adjusted")
Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(
    name: str,
    labels: np.ndarray,
    *,
    focus_absent: float = 4.0,
    focus_present: float = 1.0,
    clip: float = 0.05,
    beta: float = 0.999,
    tau: float = 1.0,
) -> Loss:
    """The loss of a name, with what it needs to know of the training labels.

    ``bce``: binary cross-entropy.

    ``asymmetric`` (Ridnik et al., "Asymmetric loss for multi-label classification", ICCV 2021): terms of absent
    findings are focused by ``max(p - clip, 0) ** focus_absent``, terms of present ones by ``(1 - p) ** focus_present``.
    The focusing factors are differentiated too.

    ``class_balanced`` (Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019): each term is
    weighed by the inverse effective number of its class, ``(1 - beta) / (1 - beta ** n)``. The paper has one class an
    image; here the classes of a finding are present and absent, and its two weights sum to 2, as the paper's sum to the
    number of classes.

    ``logit_adjusted`` (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021): cross-entropy of
    ``logit + tau * logit(prevalence)``, the form of the paper's loss for one binary label a finding. The adjustment
    belongs to training alone: at inference the raw logit is the score. A prevalence of 0 or 1 is taken as half a case,
    so that it stays finite.

    Args:
        name: one of `LOSSES`.
        labels: ``(train images, findings)``: 1, 0, -1 or NaN; class counts and prevalences are read off them.
        focus_absent: gamma of absent findings, 0 or at least 1.
        focus_present: gamma of present findings, 0 or at least 1.
        clip: probability under which an absent finding costs nothing, from 0 to less than 1.
        beta: from 0 (all classes alike) to less than 1 (towards weights of 1 / n).
        tau: strength of the adjustment; 0 is ``bce``.

    Returns:
        A function of logits ``(..., batch, findings)`` and labels ``(batch, findings)`` that gives a scalar.
    """
    if name not in LOSSES:
        raise StudyError(f"there is no loss {name!r}: use one of {', '.join(LOSSES)}.")
    labels = np.asarray(labels, dtype=float)
    if labels.ndim != 2 or not (np.isnan(labels) | np.isin(labels, (-1, 0, 1))).all():
        raise StudyError("training labels must be (images, findings) of 1, 0, -1 or NaN: pass a label matrix.")
    if not all(gamma == 0 or 1 <= gamma < np.inf for gamma in (focus_absent, focus_present)):
        raise StudyError(f"a focus must be 0 or at least 1, not {focus_absent} and {focus_present}.")
    if not (0 <= clip < 1 and 0 <= beta < 1 and np.isfinite(tau)):
        raise StudyError(
            f"clip and beta lie from 0 to less than 1 and tau is finite, not {clip}, {beta} and {tau}: change them."
        )
    if name == "asymmetric":
        return _asymmetric(labels.shape[1], focus_absent, focus_present, clip)
    if name == "class_balanced":
        return _class_balanced(labels, beta)
    if name == "logit_adjusted":
        return _logit_adjusted(labels, tau)
    return _cross_entropy(labels.shape[1])


def _cross_entropy(findings: int) -> Loss:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        present, known = _split_labels(logits, labels, findings)
        return F.binary_cross_entropy_with_logits(logits, present, known, reduction="sum")

    return loss


def _asymmetric(findings: int, focus_absent: float, focus_present: float, clip: float) -> Loss:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        present, known = _split_labels(logits, labels, findings)
        shifted = (torch.sigmoid(logits) - clip).clamp(min=0)
        # The shift keeps the logarithm finite; without one, the logarithm of the sigmoid does.
        log_absent = torch.log1p(-shifted) if clip > 0 else F.logsigmoid(-logits)
        of_absent = shifted**focus_absent * log_absent
        of_present = torch.sigmoid(-logits) ** focus_present * F.logsigmoid(logits)
        return -(known * torch.where(present == 1, of_present, of_absent)).sum()

    return loss


def _class_balanced(labels: np.ndarray, beta: float) -> Loss:
    present, absent = _count_classes(labels)
    # A class that no training label has weighs nothing in training, whatever stands here.
    effective = [(1 - beta ** np.maximum(count, 1)) / (1 - beta) for count in (present, absent)]
    inverse = 1 / np.stack(effective)
    weights = torch.from_numpy(2 * inverse / inverse.sum(axis=0))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        present, known = _split_labels(logits, labels, weights.shape[1])
        of_present, of_absent = weights.to(logits)
        known = known * torch.where(present == 1, of_present, of_absent)
        return F.binary_cross_entropy_with_logits(logits, present, known, reduction="sum")

    return loss


def _logit_adjusted(labels: np.ndarray, tau: float) -> Loss:
    present, absent = _count_classes(labels)
    # A finding that no label states gets no adjustment.
    known = np.maximum(present + absent, 1)
    present = np.where(present + absent > 0, np.clip(present, 0.5, known - 0.5), 0.5)
    adjustment = torch.from_numpy(tau * np.log(present / (known - present)))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        present, known = _split_labels(logits, labels, len(adjustment))
        adjusted = logits + adjustment.to(logits)
        return F.binary_cross_entropy_with_logits(adjusted, present, known, reduction="sum")

    return loss


def _count_classes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training labels that say present and that say absent, each ``(findings,)``."""
    known = known_labels(labels)
    return (known & (labels == 1)).sum(axis=0), (known & (labels == 0)).sum(axis=0)


def _split_labels(logits: Tensor, labels: Tensor, findings: int) -> tuple[Tensor, Tensor]:
    """Whether each label says present, and whether it says anything, as numbers in the shape of the logits."""
    if logits.shape[-2:] != labels.shape or labels.shape[-1] != findings:
        raise StudyError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must both end in (images, {findings}), the "
            "findings the loss was made for."
        )
    present, known = labels == 1, (labels == 0) | (labels == 1)
    return tuple(one.to(logits).expand_as(logits) for one in (present, known))
