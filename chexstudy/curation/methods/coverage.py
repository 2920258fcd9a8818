"""Coverage of the pairs by the chosen: k-centre, facility location, density, and a random sample as the baseline."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, check_option, choose_first, choose_highest
from chexstudy.vectors.facility_location import facility_location
from chexstudy.vectors.farthest import cover_points
from chexstudy.vectors.neighbours import neighbour_distances

# Above and below every score a drawn row can have (the log odds below lie within 74 of zero).
_CERTAIN, _NEVER = 100.0, -100.0
_SMALLEST_CHANCE = 1e-12


def choose_at_random(features: np.ndarray, budget: int, generator: torch.Generator) -> Choice:
    """Draw pairs uniformly, without replacement: what all others have to beat. Subsets of one seed are nested."""
    return choose_highest(torch.randperm(len(features), generator=generator).numpy(), budget)


def choose_k_centre(features: np.ndarray, budget: int, generator: torch.Generator) -> Choice:
    """k-centre: pick pair after pair, each the farthest from those picked before.

    Source: Gonzalez 1985; for choosing training data, Sener and Savarese 2018 (arXiv 1708.00489), greedy form. It makes
    the largest distance of any pair to a chosen one at most twice what is possible, so it takes edges and outliers
    first. Departure: no labelled pairs to start from; the first pick is drawn. The sooner picked, the higher the score,
    and 0 for those not picked. Subsets of one seed are nested.
    """
    start = int(torch.randint(len(features), (), generator=generator))
    return choose_first(cover_points(features, budget, start, label="choosing the farthest"), budget, len(features))


def choose_facilities(
    features: np.ndarray, budget: int, generator: torch.Generator, *, part_rows: int | None = None
) -> Choice:
    """Facility location: pick pair after pair, each the one that makes all pairs most similar to a chosen one.

    Sources: the greedy algorithm of Nemhauser, Wolsey and Fisher 1978, whose objective is at least 63 % of the best;
    for choosing training data, Wei, Iyer and Bilmes 2015 (Submodularity in data subset selection and active learning).
    It takes the middle of dense regions first, where `choose_k_centre` takes edges. Departures: similarity is the
    cosine, and 0 where that is negative; there are no labels to divide the pairs by. Scores are those of
    `choose_k_centre`. Nothing is left to chance and subsets are nested, unless pairs are picked within random parts of
    about ``part_rows``: that takes much less time where there are many, but is no longer exact greedy
    (`chexstudy.vectors.facility_location`), and the larger the gain within its part, the higher a score.
    """
    picked, _ = facility_location(features, budget, generator, part_rows=part_rows, label="choosing representatives")
    return choose_first(picked, budget, len(features))


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
