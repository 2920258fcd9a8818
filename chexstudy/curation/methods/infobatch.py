"""InfoBatch: prune well-learnt pairs at random and let those that stay speak for the pruned ones."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, check_option, choose_highest


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
    the count follows. Here the count is the budget, which gives the ratio. Below the mean there
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
