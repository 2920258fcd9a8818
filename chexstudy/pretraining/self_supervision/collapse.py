"""Whether a self-supervised training learns: its loss does not say, for that of a collapsed model is low.

Four ends are told apart: healthy; not training, where targets say nothing; collapsing, where images become alike; and
exploding, where the gradient does.
"""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from chexstudy.pretraining.self_supervision.centring import Targets

HEALTHY, NOT_TRAINING, COLLAPSING, EXPLODING = "healthy", "not training", "collapsing", "exploding"
_LEAST_RANK = 2.0
_MOST_ENTROPY = 0.995  # of that of equal probabilities
_LEAST_USED = 0.01
_TIMES_THE_MEDIAN = 100.0


def measure_targets(targets: Targets) -> dict[str, float]:
    """How targets are spread over prototypes.

    Returns:
        As shares of the logarithm of the count ``row_entropy``, the mean of the entropies of rows, 1 where targets say
        nothing, and ``mean_entropy``, the entropy of the mean row, which falls where few prototypes take everything;
        ``prototypes_used``, the share of prototypes that are the likeliest of a row, of as many as there are rows.
    """
    count, rows = len(targets.logits.prototypes), len(targets.logits)
    total, entropy = torch.zeros(count, device=targets.of_prototype.device), 0.0
    likeliest = torch.zeros(count, dtype=torch.bool, device=total.device)
    for chunk in targets.logits.chunks():
        probabilities = targets.chunk(chunk)
        total += probabilities.sum(dim=0)
        entropy += float(torch.special.entr(probabilities).sum())
        likeliest[probabilities.argmax(dim=1)] = True
    return {
        "row_entropy": entropy / rows / math.log(count),
        "mean_entropy": float(torch.special.entr(total / rows).sum()) / math.log(count),
        "prototypes_used": int(likeliest.sum()) / min(count, rows),
    }


def measure_features(features: Tensor) -> dict[str, float]:
    """How different images are to an encoder.

    Args:
        features: ``(images, dim)``.

    Returns:
        ``effective_rank``, the exponential of the entropy of the singular values (RankMe: Garrido et al. 2023), and
        ``mean_cosine`` of two images.
    """
    unit = functional.normalize(features.float(), dim=1)
    values = torch.linalg.svdvals(unit)
    shares = values / values.sum()
    images = len(unit)
    cosine = (unit.sum(dim=0).square().sum() - images) / max(images * (images - 1), 1)
    return {"effective_rank": float(torch.special.entr(shares).sum().exp()), "mean_cosine": float(cosine)}


@dataclass(frozen=True)
class Verdict:
    """How a training stands."""

    state: str  # one of the four
    reason: str  # the number that says so, and what to do

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


def judge_training(history: pd.DataFrame, temperature_share: float, steps: int) -> Verdict:
    """How a training stands by its history.

    Args:
        history: of `chexstudy.pretraining.training.trainer.Trainer`, of a self-supervised arm.
        temperature_share: of the steps, in which the teacher's temperature rises; before, targets may be flat.
        steps: of the whole training.
    """
    watched = history.dropna(subset=["effective_rank"])
    if watched.empty:
        return Verdict(NOT_TRAINING, "no step was watched yet.")
    last, norms = watched.iloc[-1], history.gradient_norm
    if not (math.isfinite(last.loss) and norms.iloc[-1] <= _TIMES_THE_MEDIAN * norms.median()):
        return Verdict(
            EXPLODING,
            f"the gradient's norm is {norms.iloc[-1]:.3g}, {norms.iloc[-1] / norms.median():.0f} times its median: "
            "lower learning_rate, or use precision fp32.",
        )
    if last.effective_rank < _LEAST_RANK or last.prototypes_used < _LEAST_USED:
        return Verdict(
            COLLAPSING,
            f"images fill {last.effective_rank:.1f} dimensions and {last.prototypes_used:.1%} of the prototypes, at a "
            f"mean cosine of {last.mean_cosine:.3f}: lower learning_rate or teacher_temperature, raise koleo_weight.",
        )
    if last.row_entropy > _MOST_ENTROPY and last.step >= temperature_share * steps:
        return Verdict(
            NOT_TRAINING,
            f"the teacher's targets have {last.row_entropy:.1%} of the entropy of equal ones: lower "
            "teacher_temperature, or train longer.",
        )
    return Verdict(
        HEALTHY,
        f"images fill {last.effective_rank:.1f} dimensions, {last.prototypes_used:.0%} of the prototypes are used, "
        f"targets have {last.row_entropy:.0%} of the entropy of equal ones.",
    )
