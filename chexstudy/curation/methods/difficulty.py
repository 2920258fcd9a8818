"""Difficulty: keep the pairs a model gets wrong, by its loss or by its error vector (EL2N)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from chexstudy.curation.choice import Choice, check_option, choose_highest
from chexstudy.curation.methods.blocks import read_rows


def choose_by_loss(features: np.ndarray, budget: int, generator: torch.Generator, *, loss: np.ndarray) -> Choice:
    """Keep the pairs of the highest loss.

    The plainest score of difficulty, a baseline in Paul et al. 2021 (arXiv 2107.07075) and in most papers on this page.
    It says nothing about why a pair is hard: a wrong report has a high loss as well. Equal losses are taken in row
    order. Subsets are nested.

    Args:
        features: ``(n, dim)``, not used.
        budget: pairs to choose.
        generator: not used.
        loss: of each pair ``(n,)``.
    """
    return choose_highest(loss, budget)


def choose_by_error(
    features: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    image: np.ndarray,
    text: np.ndarray,
    temperature: float = 0.07,
    batch: int = 480,
) -> Choice:
    """EL2N: keep the pairs whose error vector is longest.

    Source: Paul et al. 2021 (arXiv 2107.07075): the L2 norm of predicted probabilities minus the one-hot label, early
    in training, as the mean over several initialisations. Departures: in contrastive training the classes are the other
    pairs of a batch, so probabilities come from random batches of the embeddings given; both directions are averaged;
    one model stands for several.

    Args:
        features: ``(n, dim)``, not used.
        budget: pairs to choose.
        generator: draws the batches.
        image: image embeddings of the model in question ``(n, width)``, not zero.
        text: its text embeddings ``(n, width)``.
        temperature: of the softmax.
        batch: largest number of pairs of a batch.
    """
    scores = np.empty(len(image))
    for rows, logits in _contrast(image, text, generator, temperature, batch):
        target = torch.eye(len(rows))
        errors = [torch.linalg.vector_norm(way.softmax(dim=1) - target, dim=1) for way in (logits, logits.T)]
        scores[rows] = (sum(errors) / 2).numpy()
    return choose_highest(scores, budget)


def _contrast(
    image: np.ndarray, text: np.ndarray, generator: torch.Generator, temperature: float, batch: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Random batches of nearly equal size: their rows, and cosines over the temperature ``(rows, rows)``."""
    check_option("temperature", temperature, 1e-4)
    check_option("batch", batch, 1)
    order = torch.randperm(len(image), generator=generator).numpy()
    for rows in np.array_split(order, -(-len(order) // batch)):
        rows = np.sort(rows)
        sides = [normalize(read_rows(side, rows), dim=1) for side in (image, text)]
        yield rows, sides[0] @ sides[1].T / temperature
