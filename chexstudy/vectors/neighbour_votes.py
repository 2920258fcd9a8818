"""What the labels of the nearest neighbours say of an image (Wu et al. 2018; DINO: Caron et al. 2021)."""

from collections.abc import Sequence

import numpy as np

from chexstudy.statistics.ranking import known_labels

_TEMPERATURE = 0.07
_BLOCK_ROWS = 1024


def scale_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows ``(n, dim)`` at unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def share_votes(
    labels: np.ndarray, found: np.ndarray, similar: np.ndarray, candidates: Sequence[int]
) -> list[np.ndarray]:
    """Share of the votes that say present, for each k of the candidates ``(queries, findings)``.

    The k most similar rows vote with the weight ``exp(cosine / 0.07)``, but for those whose label is not known; where
    none is, the finding's share among all known labels stands in. Labels are of all rows ``(rows, findings)``, 1 and 0
    vote; neighbours, nearest first ``(queries, most)``, are row numbers, with their cosines.
    """
    known = known_labels(labels)
    present = np.where(known, labels, 0.0)
    prior = present.sum(axis=0) / known.sum(axis=0)
    shares = [np.empty((len(found), labels.shape[1])) for _ in candidates]
    for start in range(0, len(found), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        # The nearest neighbour votes with weight 1, which cancels and keeps the others from overflowing.
        weights = np.exp((similar[block].astype(float) - similar[block, :1]) / _TEMPERATURE)
        for k, share in zip(candidates, shares, strict=True):
            near, weight = found[block, :k], weights[:, :k]
            saying = np.einsum("qk,qkf->qf", weight, present[near])
            voting = np.einsum("qk,qkf->qf", weight, known[near].astype(float))
            share[block] = np.divide(saying, voting, out=np.tile(prior, (len(near), 1)), where=voting > 0)
    return shares
