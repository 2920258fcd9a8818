"""Losses of self-supervised pretraining: agreement of crops (DINO), of masked patches (iBOT), spread (KoLeo), Gram."""

import torch
from torch import Tensor
from torch.nn import functional

from chexstudy.pretraining.self_supervision.centring import Logits, Targets

STUDENT_TEMPERATURE = 0.1
_EPSILON = 1e-8


def cross_entropies(targets: Tensor, logits: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Cross-entropy of each row ``(rows,)`` between targets and student logits, both ``(rows, count)``."""
    return -(targets * functional.log_softmax(logits.float() / temperature, dim=1)).sum(dim=1)


def crop_loss(targets: Tensor, local_logits: Tensor, global_logits: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """DINO: what the student makes of a crop is what the teacher makes of the image's other crops. A scalar; at the
    start it is near the logarithm of the count.

    Every local crop ``(local crops, images, count)`` is compared with both global ones ``(2, images, count)``, each
    global crop with the other; the sum of the means over images, by their weights ``(images,)`` or each once, is
    divided by the number of terms. Targets are of the first global crops, then of the second.
    """
    terms = 2 + 2 * len(local_logits)
    # Both targets of an image meet the same crop, so their sum does.
    both = targets.sum(dim=0)
    local = sum((weights * cross_entropies(both, logits)).mean() for logits in local_logits)
    pairs = zip(targets, global_logits.flip(0), strict=False)
    across = sum((weights * cross_entropies(target, logits)).mean() for target, logits in pairs)
    return (local + across) / terms


def patch_losses(targets: Tensor, logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """iBOT: what the student makes of a masked patch is what the teacher makes of it when it is seen.

    The gradient is written out, because with many prototypes what autograd keeps for it would decide the memory.
    Targets and logits are ``(patches, count)``, each row of targets sums to one; weights ``(patches,)`` are one over
    the number of masked patches of the crop.

    Gives the sum over patches, to be divided by the number of global crops, masked or not, and its gradient with
    respect to the logits ``(patches, count)``.
    """
    shares = functional.log_softmax(logits.float() / STUDENT_TEMPERATURE, dim=1)
    loss = -weights @ torch.linalg.vecdot(targets, shares)
    return loss, shares.exp_().sub_(targets).mul_(weights[:, None] / STUDENT_TEMPERATURE)


def patch_gradient(
    features: Tensor, prototypes: Tensor, targets: Targets, rows: slice, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `patch_losses` gives for patches whose logits are never held all at once, by what enters the student's last
    layer ``(patches, bottleneck)`` and its weights ``(count, bottleneck)``; ``rows`` are those of these patches among
    the targets.

    Gives the sum over patches, and its gradients with respect to features and prototypes.
    """
    total, of_features, of_prototypes = features.new_zeros(()), torch.empty_like(features), torch.zeros_like(prototypes)
    for chunk in Logits(features, prototypes).chunks():
        targets_of_chunk = targets.chunk(slice(rows.start + chunk.start, rows.start + chunk.stop))
        loss, gradient = patch_losses(targets_of_chunk, features[chunk] @ prototypes.T, weights[chunk])
        of_features[chunk] = gradient @ prototypes
        of_prototypes.addmm_(gradient.T, features[chunk])
        total += loss
    return total, of_features, of_prototypes


def find_neighbours(features: Tensor, copies: Tensor | None = None) -> Tensor:
    """The row most similar to each row ``(rows,)``, itself and its copies left out; a row alone is its own neighbour.

    Features are of unit length ``(rows, dim)``; copies ``(rows,)`` have the same number for rows of the same image.
    """
    similarity = features @ features.T
    if copies is None:
        similarity.fill_diagonal_(-1)
    else:
        similarity[copies[:, None] == copies] = -torch.inf
    return similarity.argmax(dim=1)


def koleo_loss(features: Tensor, copies: Tensor | None = None) -> Tensor:
    """KoLeo: features ``(rows, dim)`` of any length spread out as far as the nearest neighbour tells (Sablayrolles et
    al. 2019), scalar.

    In the precision of the features: two equal rows make the loss infinite in half precision (S4). With ``copies``, as
    in `find_neighbours`, rows without another image beside them do not count. Without, as published, copies are
    neighbours and a row alone is its own (S5).
    """
    features = functional.normalize(features, eps=_EPSILON, dim=-1)
    with torch.no_grad():
        neighbours = find_neighbours(features, copies)
    distances = functional.pairwise_distance(features, features[neighbours], eps=_EPSILON)
    losses = -torch.log(distances + _EPSILON)
    if copies is None:
        return losses.mean()
    counted = copies[neighbours] != copies
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def gram_loss(student: Tensor, teacher: Tensor, of_batch: bool = False, keep_negative: bool = True) -> Tensor:
    """Patches of an image stay as similar to each other as an earlier teacher sees them (DINOv3's Gram anchoring).

    Both are patch features ``(images, patches, dim)``; ``of_batch`` compares the patches of all images with each other;
    similarities below zero count as zero if they are not kept.
    """
    grams = []
    for features in (student, teacher):
        features = functional.normalize(features.float(), dim=-1)
        features = features.flatten(0, 1) if of_batch else features
        gram = features @ features.transpose(-1, -2)
        grams.append(gram if keep_negative else gram.clamp(min=0))
    return functional.mse_loss(*grams)
