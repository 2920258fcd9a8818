"""Nearest neighbours among many rows, exact, and what they say of density.

The only module that imports faiss.
"""

import importlib
from functools import cache
from types import ModuleType

import numpy as np
import torch

from chexstudy.errors import StudyError

# A block of distances takes 256 MiB, however many rows there are.
_BLOCK_ROWS, _BLOCK_COLUMNS = 1_024, 65_536
_SPARE = 8
_QUERY_ROWS = 4096


@cache
def load_faiss() -> ModuleType | None:
    """faiss, if it can be imported; a build for another CUDA than torch's is there but cannot."""
    try:
        return importlib.import_module("faiss")
    except (ImportError, OSError):
        return None


def count_faiss_gpus() -> int:
    """GPUs that faiss can use; none for a CPU build or without faiss."""
    return load_faiss().get_num_gpus() if hasattr(load_faiss(), "get_num_gpus") else 0


def nearest_rows(
    points: np.ndarray, features: np.ndarray, count: int, without_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest features of each point by Euclidean distance, exact within float32, nearest first.

    Row numbers ``(m, count)`` and distances of as many. With ``without_self`` points are the features, and no row is
    its own neighbour.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    targets = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(device)
    # About the centre the numbers are small, and the expansion below keeps more of their digits.
    centre = targets.mean(dim=0)
    targets = targets - centre
    rows = targets
    if not without_self:
        rows = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)).to(device) - centre
    squares = (targets * targets).sum(dim=1)
    # The expansion of the square cancels for close rows: a few more than asked for are found by it, then measured
    # again, directly.
    candidates = min(count + _SPARE, len(targets) - without_self)
    indices, distances = [], []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        own = torch.arange(start, start + len(block), device=device) if without_self else None
        index = _find_candidates(block, targets, squares, candidates, own)
        distance = (targets[index] - block[:, None]).norm(dim=2)
        distance, order = distance.sort(dim=1, stable=True)
        indices.append(index.gather(1, order)[:, :count].cpu())
        distances.append(distance[:, :count].cpu())
    return torch.cat(indices).numpy(), torch.cat(distances).numpy()


def _find_candidates(block, targets, squares, count: int, own) -> torch.Tensor:
    """Row numbers ``(rows, count)`` of the nearest targets by the expanded square, from blocks of columns."""
    best = index = None
    for start in range(0, len(targets), _BLOCK_COLUMNS):
        part = slice(start, start + _BLOCK_COLUMNS)
        squared = torch.addmm(squares[part], block, targets[part].T, alpha=-2)
        if own is not None:
            here = (own >= start) & (own < start + squared.shape[1])
            squared[here.nonzero()[:, 0], own[here] - start] = torch.inf
        value, place = squared.topk(min(count, squared.shape[1]), dim=1, largest=False)
        place += start
        if best is not None:
            value, place = torch.cat([best, value], dim=1), torch.cat([index, place], dim=1)
            value, order = value.topk(min(count, value.shape[1]), dim=1, largest=False)
            place = place.gather(1, order)
        best, index = value, place
    return index


def neighbour_distances(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Euclidean distance ``(n,)`` of each row ``(n, dim)`` to its ``neighbours``-th nearest other row, or the farthest.

    It is exactly zero for a row with that many copies, and zero for a row that is alone.
    """
    neighbours = min(neighbours, len(features) - 1)
    if neighbours < 1:
        return np.zeros(len(features))
    held = np.array(features, dtype=np.float32)
    found = nearest_rows(held, held, neighbours, without_self=True)[0][:, -1]
    distances = np.empty(len(features))
    for start in range(0, len(features), _QUERY_ROWS):
        rows = slice(start, start + _QUERY_ROWS)
        distances[rows] = np.linalg.norm(held[rows] - held[found[rows]], axis=1)
    return distances


def density(features: np.ndarray, neighbours: int = 10) -> np.ndarray:
    """One over the mean Euclidean distance of each image ``(images, dim)`` to its nearest others ``(images,)``.

    Infinite where that many others lie on the same point. Time grows with the square of the number of images, memory
    only with the number.
    """
    if neighbours < 1:
        raise StudyError(f"neighbours must be at least 1, not {neighbours}.")
    features = np.asarray(features, dtype=np.float32)
    if len(features) <= neighbours:
        raise StudyError(f"density needs more than {neighbours} images, not {len(features)}: take fewer neighbours.")
    if not np.isfinite(features).all():
        raise StudyError("the features hold values that are not finite: embed these images again.")
    _, distance = nearest_rows(features, features, neighbours, without_self=True)
    with np.errstate(divide="ignore"):
        return 1 / distance.astype(float).mean(axis=1)


def find_most_similar(rows: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest inner product with each query, and these ``(q, count)``; equal ones by row number."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if faiss := load_faiss():
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        search = index.search
    else:
        transposed = torch.from_numpy(rows).T

        def search(block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            similar, found = (torch.from_numpy(block) @ transposed).topk(count, dim=1)
            return similar.numpy(), found.numpy()

    similarities, found = (np.empty((len(queries), count), dtype=dtype) for dtype in (np.float32, np.int64))
    for start in range(0, len(queries), _QUERY_ROWS):
        block = np.ascontiguousarray(queries[start : start + _QUERY_ROWS], dtype=np.float32)
        similar, numbers = search(block, count)
        order = np.lexsort((numbers, -similar), axis=1)
        similarities[start : start + len(block)] = np.take_along_axis(similar, order, axis=1)
        found[start : start + len(block)] = np.take_along_axis(numbers, order, axis=1)
    return found, similarities
