"""Coverage: choose pairs such that every pair has a chosen one near it."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice
from chexstudy.curation.farthest import cover_points
from chexstudy.curation.methods.sequence import choose_first


def choose_k_centre(features: np.ndarray, budget: int, generator: torch.Generator) -> Choice:
    """k-centre: pick pair after pair, each the farthest from those picked before.

    Source: Gonzalez 1985; for choosing training data, Sener and Savarese 2018 (arXiv 1708.00489), greedy form. It makes
    the largest distance of any pair to a chosen one at most twice what is possible, so it takes edges and outliers
    first. Departure: no labelled pairs to start from; the first pick is drawn. Subsets of one seed are nested.

    Args:
        features: ``(n, dim)``.
        budget: pairs to choose.
        generator: draws the first pick.

    Returns:
        The choice; the sooner picked, the higher the score, and 0 for those not picked.
    """
    pairs = len(features)
    start = int(torch.randint(pairs, (), generator=generator))
    cover = cover_points(features, budget, start, exact_remaining=False, label="choosing the farthest")
    return choose_first(cover.rows, budget, pairs)
