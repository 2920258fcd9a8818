"""How densely pairs lie in feature space, beside how rare what they show is."""

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers, tiers_of_pairs
from chexstudy.cohort.table import finding_columns
from chexstudy.vectors.neighbours import density


def list_densities(train: pd.DataFrame, features: np.ndarray, neighbours: int) -> pd.DataFrame:
    """Local density of each training pair and, where there are labels, the rarest ``tier`` among its findings.

    Exact copies have the largest finite density of the unit-norm features ``(pairs, dim)``.
    """
    local = density(features, min(neighbours, len(features) - 1))
    finite = np.where(np.isfinite(local), local, np.nanmax(local[np.isfinite(local)]))
    pairs = pd.DataFrame({"image_id": train.image_id, "density": finite})
    if not finding_columns(train):
        return pairs
    return pairs.assign(tier=tiers_of_pairs(train, prevalence_tiers(measure_prevalence(train)).to_dict()))


def summarise_densities(pairs: pd.DataFrame) -> pd.DataFrame:
    """Number of pairs and median percentile of density by tier, or of all pairs without tiers."""
    groups = pairs.tier if "tier" in pairs else pd.Series("all", index=pairs.index)
    return pairs.density.rank(pct=True).groupby(groups).agg(pairs="size", median_density_percentile="median")
