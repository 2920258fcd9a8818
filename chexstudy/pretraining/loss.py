"""The contrastive objective."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP; Radford et al. 2021): each image must find its text among the batch, and back.

    Args:
        image: unit-norm image embeddings ``(batch, dim)``.
        text: unit-norm text embeddings ``(batch, dim)``, row by row the images' partners.
        logit_scale: logarithm of the inverse temperature, scalar.

    Returns:
        Mean of the two cross-entropies, scalar. As published (F14), two identical texts are negatives of each other.
    """
    logits = logit_scale.exp() * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
