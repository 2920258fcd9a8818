"""Learnability: keep what the learner does not know yet and a reference model shows can be learnt."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, choose_highest


def choose_learnable(
    features: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    loss: np.ndarray,
    reference_loss: np.ndarray,
) -> Choice:
    """Keep the pairs with the highest loss of the learner minus loss of the reference model.

    Source: the score of JEST, Evans et al. 2024 (arXiv 2406.17711), after RHO-LOSS, Mindermann et al. 2022 (arXiv
    2206.07137). Departure: JEST selects batches jointly, because a contrastive loss depends on the other pairs of its
    batch; here each pair is scored alone, with its loss in whatever batch it was measured. Equal scores are taken in
    row order. Subsets are nested.

    Args:
        features: ``(n, dim)``, not used.
        budget: pairs to choose.
        generator: not used.
        loss: of each pair under the learner ``(n,)``.
        reference_loss: of each pair under the reference model ``(n,)``, in the same batches.
    """
    return choose_highest(np.asarray(loss, dtype=np.float64) - np.asarray(reference_loss, dtype=np.float64), budget)
