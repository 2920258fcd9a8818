"""Coverage of the pairs by the chosen ones: k-centre, facility location, and a random sample as the baseline."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, choose_first, choose_highest
from chexstudy.vectors.facility_location import facility_location
from chexstudy.vectors.farthest import cover_points


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
    `choose_k_centre`; with parts, the larger the gain the higher. Subsets of one seed are nested, unless the pairs are
    split.

    Args:
        part_rows: pick within random parts of about so many pairs, which takes much less time where there are many
            pairs, but is no longer exact greedy; see `chexstudy.vectors.facility_location`. Without it, nothing is left
            to chance.
    """
    picked, _ = facility_location(features, budget, generator, part_rows=part_rows, label="choosing representatives")
    return choose_first(picked, budget, len(features))
