"""Semantic duplicates: SemDeDup, and D4, which goes on where SemDeDup ends."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, check_option, choose_highest
from chexstudy.curation.methods.blocks import RowView, read_rows
from chexstudy.curation.methods.clusters import Clusters, cluster_rows
from chexstudy.progress import progress

_BLOCK_ROWS = 1024


def choose_without_duplicates(
    features: np.ndarray, budget: int, generator: torch.Generator, *, clusters: int | None = None, iterations: int = 20
) -> Choice:
    """SemDeDup: drop pairs that are too similar to another of their cluster.

    Source: Abbas et al. 2023 (arXiv 2303.09540). Rows of a k-means cluster stand in ascending order of their cosine to
    the centroid; each is compared with all before it, and dropped if its highest cosine exceeds a threshold: of a
    group of duplicates the one least like the centroid remains. As in the paper's listing, a row that is dropped still
    drops those after it. Departures: the paper sets the threshold and takes the count that follows; here the count is
    the budget, and the threshold the cosine that meets it. The number of clusters is the square root of the pairs
    unless given (the paper: 50,000 for 440 million images, and not sensitive). Scores are the negative highest cosine
    to an earlier row of the cluster, and 1 for the first. Subsets of one seed are nested.
    """
    clustered = cluster_rows(features, clusters, iterations, generator)
    return choose_highest(-duplication(features, clustered), budget)


def choose_deduplicated_and_diverse(
    features: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    deduplicated_share: float = 0.75,
    clusters: int | None = None,
    iterations: int = 20,
) -> Choice:
    """D4: SemDeDup, then k-means anew on what is left, then the pairs farthest from their centroids.

    Source: Tirumala et al. 2023 (arXiv 2308.12284), which keeps 75 % by SemDeDup and the rest of the way by
    prototypicality; clustering anew matters because duplicates draw centroids to themselves. Departures: pairs of image
    and text instead of documents; the number of clusters as in `choose_without_duplicates`. A budget beyond
    ``deduplicated_share``, what SemDeDup leaves, is met by it alone. Subsets of one seed are nested up to there.
    """
    check_option("deduplicated_share", deduplicated_share, 0, 1)
    rows = len(features)
    deduplicated = choose_without_duplicates(
        features, max(budget, round(deduplicated_share * rows)), generator, clusters=clusters, iterations=iterations
    )
    left = deduplicated.rows
    clustered = cluster_rows(RowView(features, left), clusters, iterations, generator)
    # Those SemDeDup dropped come after all it left, by how little they are duplicates.
    scores = deduplicated.scores - 3.0
    scores[left] = 1.0 - clustered.similarity
    return choose_highest(scores, budget)


def duplication(features: np.ndarray, clustered: Clusters) -> np.ndarray:
    """Highest cosine of each row to one of its cluster that is less like the centroid ``(n,)``; -1 for the first."""
    highest = np.full(len(features), -1.0)
    order = np.lexsort((clustered.similarity, clustered.nearest))
    starts = np.flatnonzero(np.diff(clustered.nearest[order], prepend=-1))
    for members in progress(np.split(order, starts[1:]), label="comparing pairs within clusters"):
        for start in range(0, len(members), _BLOCK_ROWS):
            block = read_rows(features, members[start : start + _BLOCK_ROWS])
            best = torch.full((len(block),), -1.0)
            for earlier in range(0, start, _BLOCK_ROWS):
                others = read_rows(features, members[earlier : earlier + _BLOCK_ROWS])
                best = torch.maximum(best, (block @ others.T).amax(dim=1))
            within = (block @ block.T).masked_fill(torch.ones(len(block), len(block), dtype=torch.bool).triu(), -1.0)
            best = torch.maximum(best, within.amax(dim=1))
            highest[members[start : start + _BLOCK_ROWS]] = best.clamp(-1, 1).numpy()
    return highest
