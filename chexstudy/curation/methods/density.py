"""Density: draw pairs the more readily, the fewer neighbours they have."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, check_option, choose_highest
from chexstudy.vectors.neighbours import neighbour_distances

# Above and below every score a drawn row can have (the log odds below lie within 74 of zero).
_CERTAIN, _NEVER = 100.0, -100.0
_SMALLEST_CHANCE = 1e-12


def choose_by_density(features: np.ndarray, budget: int, generator: torch.Generator, *, neighbours: int = 5) -> Choice:
    """Draw pairs with chances proportional to the distance to their k-th nearest neighbour.

    Source: the inverse-propensity idea of Density sampling, Sachdeva et al. 2024 (arXiv 2402.09668), with the k-nearest
    neighbour estimate of density, Loftsgaarden and Quesenberry 1965. Departures: that paper estimates density with
    hashed kernels; the k-NN estimate would be the distance to the power of the data's dimension, which nobody knows, so
    the distance itself is taken. The count is exact by Pareto sampling (Rosén 1997), whose chances meet the wanted ones
    to within a percent or so for budgets above some tens. A row whose chance would exceed one is always chosen; rows
    with k (``neighbours``) exact copies come last.
    """
    check_option("neighbours", neighbours, 1)
    distance = neighbour_distances(features, neighbours)
    chance = inclusion_chances(distance, budget)
    draw = torch.rand(len(features), generator=generator, dtype=torch.float64).numpy()
    scores = _log_odds(chance) - _log_odds(draw)
    scores[chance >= 1] = _CERTAIN + distance[chance >= 1]
    scores[distance == 0] = _NEVER - draw[distance == 0]
    return choose_highest(scores, budget)


def inclusion_chances(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Chances ``(n,)`` proportional to the sizes ``(n,)``, none above one, that sum to the budget.

    What rows with a size cannot take up is spread evenly over those without.
    """
    positive = sizes > 0
    if budget >= positive.sum():
        chances = positive.astype(np.float64)
        if not positive.all():
            chances[~positive] = (budget - positive.sum()) / (~positive).sum()
        return chances
    certain = np.zeros(len(sizes), dtype=bool)
    while True:
        chances = np.where(certain, 1.0, sizes * ((budget - certain.sum()) / sizes[~certain].sum()))
        above = ~certain & (chances >= 1)
        if not above.any():
            return chances
        certain |= above


def _log_odds(chances: np.ndarray) -> np.ndarray:
    inside = np.clip(chances, _SMALLEST_CHANCE, 1 - _SMALLEST_CHANCE)
    return np.log(inside) - np.log1p(-inside)
