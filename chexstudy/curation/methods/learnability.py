"""Learnability: keep what the learner does not know yet and a reference model shows can be learnt."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from chexstudy.curation.choice import Choice, choose_highest
from chexstudy.curation.methods.blocks import read_rows
from chexstudy.curation.methods.options import check_option
from chexstudy.progress import progress


def choose_learnable(
    features: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    loss: np.ndarray,
    reference_loss: np.ndarray,
) -> Choice:
    """Keep the pairs with the highest loss of the learner minus loss of the reference model.

    Source: the score of JEST, Evans et al. 2024 (arXiv 2406.17711), after RHO-LOSS, Mindermann et al. 2022 (arXiv
    2206.07137). Departure: JEST selects batches jointly, because a contrastive loss depends on the other pairs of its
    batch; here each pair is scored alone, with its loss in whatever batch it was measured. For the joint form see
    `choose_learnable_batches`. Equal scores are taken in row order. Subsets are nested.

    Args:
        features: ``(n, dim)``, not used.
        budget: pairs to choose.
        generator: not used.
        loss: of each pair under the learner ``(n,)``.
        reference_loss: of each pair under the reference model ``(n,)``, in the same batches.
    """
    return choose_highest(np.asarray(loss, dtype=np.float64) - np.asarray(reference_loss, dtype=np.float64), budget)


def choose_learnable_batches(
    image: np.ndarray,
    text: np.ndarray,
    reference_image: np.ndarray,
    reference_text: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    super_batch: int = 2048,
    chunks: int = 16,
    scale: float = 10.0,
    bias: float = -10.0,
) -> Choice:
    """JEST: choose from each super-batch the sub-batch that is jointly most learnable.

    Source: Evans et al. 2024 (arXiv 2406.17711). With the sigmoid loss (Zhai et al. 2023, arXiv 2303.15343) the
    learnability of a batch is a sum over its pairs of pairs, so it can be gathered chunk by chunk: a row's log-weight
    is its own learnability plus its learnability against all rows gathered so far, and the next chunk is drawn by
    these weights, without replacement. Departures: the embeddings are fixed, where JEST scores with the model being
    trained; scale and bias are where that loss starts, unless given, and are the same for both models.

    Args:
        image: image embeddings of the learner ``(n, width)``, not zero, perhaps memory-mapped.
        text: its text embeddings ``(n, width)``.
        reference_image: image embeddings of the reference model ``(n, any)``.
        reference_text: its text embeddings ``(n, any)``.
        budget: pairs to choose; every super-batch gives its share.
        generator: source of chance.
        super_batch: largest number of pairs to choose from at once.
        chunks: in how many draws a sub-batch is gathered.
        scale: inverse temperature of the sigmoid loss.
        bias: its bias.

    Returns:
        The choice. Scores are comparable within a super-batch only: the sooner drawn, the higher.

    Raises:
        StudyError: ``super_batch`` or ``chunks`` is below 1.
    """
    check_option("super_batch", super_batch, 1)
    check_option("chunks", chunks, 1)
    pairs = len(image)
    scores = np.full(pairs, -1.0)
    order = torch.randperm(pairs, generator=generator).numpy()
    batches = np.array_split(order, -(-pairs // super_batch))
    seen = spent = 0
    for rows in progress(batches, label="choosing learnable batches"):
        seen += len(rows)
        count = budget * seen // pairs - spent
        spent += count
        learner = _pairwise_losses(read_rows(image, rows), read_rows(text, rows), scale, bias)
        reference = _pairwise_losses(read_rows(reference_image, rows), read_rows(reference_text, rows), scale, bias)
        picked = gather_jointly(learner - reference, count, chunks, generator)
        scores[rows[picked.numpy()]] = 1.0 - np.arange(count) / max(count, 1)
    return choose_highest(scores, budget)


def gather_jointly(learnability: Tensor, count: int, chunks: int, generator: torch.Generator) -> Tensor:
    """Gather rows of high joint learnability, chunk by chunk.

    Args:
        learnability: ``(rows, rows)``; entry ``(i, j)`` belongs to image ``i`` with text ``j``.
        count: rows to gather, at most ``rows``.
        chunks: number of draws; the first goes by the diagonal alone.
        generator: source of chance.

    Returns:
        Row numbers ``(count,)``, int64, as drawn.
    """
    weight = learnability.diagonal().clone().double()
    picked: list[Tensor] = []
    for size in (len(part) for part in np.array_split(np.arange(count), min(chunks, max(count, 1)))):
        # Adding Gumbel noise to log-weights and taking the highest draws without replacement.
        uniform = torch.rand(len(weight), generator=generator, dtype=torch.float64).clamp(min=1e-300)
        drawn = (weight - torch.log(-torch.log(uniform))).topk(size).indices
        picked.append(drawn)
        weight += learnability[drawn].sum(dim=0) + learnability[:, drawn].sum(dim=1)
        weight[drawn] = -torch.inf
    return torch.cat(picked)


def _pairwise_losses(image: Tensor, text: Tensor, scale: float, bias: float) -> Tensor:
    """Sigmoid loss of every image with every text ``(rows, rows)``; on the diagonal they belong together."""
    logits = scale * normalize(image, dim=1) @ normalize(text, dim=1).T + bias
    return -logsigmoid(torch.where(torch.eye(len(logits), dtype=torch.bool), logits, -logits))
