"""The contrastive objective."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    weights: Tensor | None = None,
    reports: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE (CLIP; Radford et al. 2021): each image must find its text among the batch, and back.

    Args:
        image: unit-norm image embeddings ``(batch, dim)``.
        text: unit-norm text embeddings ``(batch, dim)``, row by row the images' partners.
        logit_scale: logarithm of the inverse temperature, scalar.
        weights: of the pairs ``(batch,)``; each counts once without them. The mean is taken over the number of pairs,
            not over the weights, so that pairs that stand for dropped ones weigh as much as those did together.
        reports: a number for each pair's report ``(batch,)``, equal where reports are; see `pair_losses`.

    Returns:
        Mean of the two cross-entropies, scalar.
    """
    losses = pair_losses(image, text, logit_scale, reports)
    return losses.mean() if weights is None else (weights * losses).mean()


def pair_losses(image: Tensor, text: Tensor, logit_scale: Tensor, reports: Tensor | None = None) -> Tensor:
    """Each pair's mean of the two cross-entropies ``(batch,)``; arguments as in `contrastive_loss`.

    As published (F14), two identical reports are negatives of each other. With ``reports`` every pair of the same
    report is a partner: each partner competes with the pairs of other reports only, and a pair's loss is the mean over
    its partners. Sharing the target evenly among the partners, as SupCon (Khosla et al. 2020) and UniCL (Yang et al.
    2022) do, would change nothing here: identical reports have identical embeddings, and the sum over the batch stays
    that of the published loss.
    """
    logits = logit_scale.exp() * image @ text.T
    if reports is None:
        target = torch.arange(len(logits), device=logits.device)
        sides = (cross_entropy(side, target, reduction="none") for side in (logits, logits.T))
    else:
        partners = reports[:, None] == reports
        sides = (_partner_losses(side, partners) for side in (logits, logits.T))
    return sum(sides) / 2


def _partner_losses(logits: Tensor, partners: Tensor) -> Tensor:
    # Finite, because a batch of one report only has no negatives and must have no gradient either.
    negatives = logits.masked_fill(partners, torch.finfo(logits.dtype).min / 2).logsumexp(dim=1, keepdim=True)
    losses = softplus(negatives - logits) * partners
    return losses.sum(dim=1) / partners.sum(dim=1)


def pair_errors(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Each pair's EL2N score: the distance of its two softmax rows from the one-hot target, averaged ``(batch,)``.

    Source: Paul et al. 2021 (arXiv 2107.07075), there for classifiers; here the classes are the pairs of the batch.
    """
    logits = logit_scale.exp() * image @ text.T
    target = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)
    sides = (torch.linalg.vector_norm(side.softmax(dim=1) - target, dim=1) for side in (logits, logits.T))
    return sum(sides) / 2
