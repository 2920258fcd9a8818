"""Random selection: the baseline every other method has to beat."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, choose_highest


def choose_at_random(features: np.ndarray, budget: int, generator: torch.Generator) -> Choice:
    """Draw pairs uniformly, without replacement. The subsets of one seed are nested.

    Args:
        features: ``(n, dim)``; only their number counts.
        budget: pairs to choose.
        generator: source of chance.
    """
    return choose_highest(torch.randperm(len(features), generator=generator).numpy(), budget)
