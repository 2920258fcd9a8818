"""Methods that score each pair alone, by what a model says of it: agreement of image and text, losses, errors."""

import numpy as np
import torch
from torch.nn.functional import normalize

from chexstudy.curation.choice import Choice, check_option, choose_highest
from chexstudy.curation.methods.blocks import iterate_blocks, read_rows


def choose_by_agreement(
    features: np.ndarray, budget: int, generator: torch.Generator, *, image: np.ndarray, text: np.ndarray
) -> Choice:
    """Keep the pairs of the highest cosine between image and text embedding: reports that fit their radiographs.

    Sources: CLIPScore, Hessel et al. 2021 (arXiv 2104.08718); as a filter of training pairs, LAION-400M, Schuhmann et
    al. 2021 (arXiv 2111.02114) and DataComp, Gadre et al. 2023 (arXiv 2304.14108). CLIPScore rescales the cosine and
    cuts it at zero, which changes no order above zero; we do neither. LAION cuts at a fixed cosine; here the budget
    sets the cut. Equal cosines are taken in row order. Subsets are nested.
    """
    agreement = np.empty(len(image))
    for rows, block in iterate_blocks(image):
        agreement[rows] = torch.cosine_similarity(block, read_rows(text, rows), dim=1).numpy()
    return choose_highest(agreement, budget)


def choose_by_loss(features: np.ndarray, budget: int, generator: torch.Generator, *, loss: np.ndarray) -> Choice:
    """Keep the pairs of the highest loss.

    The plainest score of difficulty, a baseline in Paul et al. 2021 (arXiv 2107.07075) and in most papers on this page.
    It says nothing about why a pair is hard: a wrong report has a high loss as well. Equal losses are taken in row
    order. Subsets are nested.
    """
    return choose_highest(loss, budget)


def choose_learnable(
    features: np.ndarray, budget: int, generator: torch.Generator, *, loss: np.ndarray, reference_loss: np.ndarray
) -> Choice:
    """Keep what the learner does not know yet and a reference model can learn: the largest difference of their losses.

    Source: the score of JEST, Evans et al. 2024 (arXiv 2406.17711), after RHO-LOSS, Mindermann et al. 2022 (arXiv
    2206.07137). Departure: JEST selects batches jointly, because a contrastive loss depends on the other pairs of its
    batch; here each pair is scored alone, with its loss in whatever batch it was measured, both models in the same
    batches. Equal scores are taken in row order. Subsets are nested.
    """
    return choose_highest(np.asarray(loss, dtype=np.float64) - np.asarray(reference_loss, dtype=np.float64), budget)


def choose_by_soft_pruning(
    features: np.ndarray, budget: int, generator: torch.Generator, *, loss: np.ndarray, highest_ratio: float = 0.9
) -> Choice:
    """InfoBatch: keep all pairs of high loss and a random part of the others, rescaled so that gradients stay unbiased.

    Source: Qin et al. 2024 (arXiv 2303.04947). There, pairs below the mean loss are pruned with a fixed probability and
    the count follows. Here the count is the budget, which gives the ratio. Below the mean there may be too few to
    prune: the threshold then rises from the mean to the lowest loss at which no more than ``highest_ratio`` of those
    below it are pruned (near 1, a few pairs carry large weights), and a budget under ``1 - highest_ratio`` of all pairs
    is drawn from all alike. Weights of the drawn are their group's size over the number drawn from it, so all weights
    sum to the number of pairs.
    """
    check_option("highest_ratio", highest_ratio, 0.01, 0.99)
    pairs = len(loss)
    pruned = pairs - budget
    below_mean = int((loss < np.mean(loss)).sum())
    easy = min(pairs, max(below_mean, int(np.ceil(pruned / highest_ratio)))) if pruned else 0
    is_easy = np.zeros(pairs, dtype=bool)
    is_easy[np.argsort(loss, kind="stable")[:easy]] = True
    draw = torch.rand(pairs, generator=generator, dtype=torch.float64).numpy()
    choice = choose_highest(np.where(is_easy, draw, 2.0), budget)
    return Choice(choice.rows, choice.scores, np.where(is_easy[choice.rows], easy / max(easy - pruned, 1), 1.0))


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
    pairs of a batch, so probabilities come from random batches of at most ``batch`` of the embeddings given, by a
    softmax of this temperature; both directions are averaged; one model stands for several.
    """
    check_option("temperature", temperature, 1e-4)
    check_option("batch", batch, 1)
    scores, order = np.empty(len(image)), torch.randperm(len(image), generator=generator).numpy()
    # Batches are of nearly equal size.
    for rows in np.array_split(order, -(-len(order) // batch)):
        rows = np.sort(rows)
        sides = [normalize(read_rows(side, rows), dim=1) for side in (image, text)]
        logits, target = sides[0] @ sides[1].T / temperature, torch.eye(len(rows))
        errors = [torch.linalg.vector_norm(way.softmax(dim=1) - target, dim=1) for way in (logits, logits.T)]
        scores[rows] = (sum(errors) / 2).numpy()
    return choose_highest(scores, budget)
