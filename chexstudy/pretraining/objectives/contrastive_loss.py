"""The contrastive objective."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor, weights: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (CLIP; Radford et al. 2021): each image must find its text among the batch, and back.

    Unit-norm embeddings ``(batch, dim)`` each, row by row partners; the scale is the logarithm of the inverse
    temperature. With weights of the pairs ``(batch,)`` the mean of the two cross-entropies is taken over the number of
    pairs, not over the weights, so that pairs that stand for dropped ones weigh as much as those did together.
    """
    losses = pair_losses(image, text, logit_scale)
    return losses.mean() if weights is None else (weights * losses).mean()


def pair_losses(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Each pair's mean of the two cross-entropies ``(batch,)``; arguments as in `contrastive_loss`.

    As published (F14), two identical reports are negatives of each other.
    """
    logits = logit_scale.exp() * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return sum(cross_entropy(side, target, reduction="none") for side in (logits, logits.T)) / 2
