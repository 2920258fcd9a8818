"""InfoBatch: prune well-learnt pairs at random and let those that stay speak for the pruned ones."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, choose_highest
from chexstudy.curation.methods.options import check_option


def choose_by_soft_pruning(
    features: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    loss: np.ndarray,
    highest_ratio: float = 0.9,
) -> Choice:
    """Keep all pairs of high loss and a random part of the others, rescaled, so that gradients stay unbiased.

    Source: Qin et al. 2024 (arXiv 2303.04947). There, pairs below the mean loss are pruned with a fixed probability and
    the count follows; `draw_epoch` does that. Here the count is the budget, which gives the ratio. Below the mean there
    may be too few to prune: the threshold then rises from the mean to the lowest loss at which no more than
    ``highest_ratio`` of those below it are pruned, and a budget under ``1 - highest_ratio`` of all pairs is drawn from
    all alike. Weights of the drawn are their group's size over the number drawn from it, so all weights sum to the
    number of pairs.

    Args:
        features: ``(n, dim)``, not used.
        budget: pairs to choose.
        generator: source of chance.
        loss: last known loss of each pair ``(n,)``.
        highest_ratio: largest share of a group that is pruned; near 1, a few pairs carry large weights.

    Raises:
        StudyError: ``highest_ratio`` does not lie from 0.01 to 0.99.
    """
    check_option("highest_ratio", highest_ratio, 0.01, 0.99)
    pairs = len(loss)
    pruned = pairs - budget
    below_mean = int((loss < np.mean(loss)).sum())
    easy = min(pairs, max(below_mean, int(np.ceil(pruned / highest_ratio)))) if pruned else 0
    is_easy = np.zeros(pairs, dtype=bool)
    is_easy[np.argsort(loss, kind="stable")[:easy]] = True
    draw = torch.rand(pairs, generator=generator, dtype=torch.float64).numpy()
    choice = choose_highest(np.where(is_easy, draw, 2.0), budget)
    return Choice(choice.rows, choice.scores, np.where(is_easy[choice.rows], easy / max(easy - pruned, 1), 1.0))


def draw_epoch(
    loss: np.ndarray,
    epoch: int,
    epochs: int,
    generator: torch.Generator,
    *,
    ratio: float = 0.5,
    whole_epochs: float = 0.125,
) -> Choice:
    """Prune one epoch of training as published.

    Of the pairs whose loss is below the mean a random ``ratio`` is left out of this epoch, and the gradients of the
    others among them are to be multiplied by ``1 / (1 - ratio)``. The last epochs see all pairs, with weight 1.

    Args:
        loss: last known loss of each pair ``(n,)``; a pair not yet seen has infinite loss and is kept.
        epoch: number of the epoch, from 0.
        epochs: epochs of the training.
        generator: source of chance.
        ratio: share pruned, below 1 (published: 0.5).
        whole_epochs: share of the training, at its end, without pruning (published: 0.125).

    Returns:
        Rows and weights of this epoch; their number varies from epoch to epoch. Scores are 1 for kept pairs, else 0.

    Raises:
        StudyError: ``ratio`` does not lie from 0 to 0.99.
    """
    check_option("ratio", ratio, 0, 0.99)
    loss = np.asarray(loss, dtype=np.float64)
    known = np.isfinite(loss)
    pruned = np.zeros(len(loss), dtype=bool)
    is_easy = known & (loss < loss[known].mean()) if known.any() else pruned.copy()
    if epoch < (1 - whole_epochs) * epochs:
        easy = np.flatnonzero(is_easy)
        shuffled = easy[torch.randperm(len(easy), generator=generator).numpy()]
        pruned[shuffled[: round(ratio * len(easy))]] = True
        weights = np.where(is_easy, 1 / (1 - ratio), 1.0)
    else:
        weights = np.ones(len(loss))
    rows = np.flatnonzero(~pruned)
    return Choice(rows, (~pruned).astype(np.float64), weights[rows])
