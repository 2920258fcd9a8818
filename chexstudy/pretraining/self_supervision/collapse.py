"""Whether a self-supervised training learns: its loss does not say, for that of a collapsed model is low.

Four ends are told apart: healthy; not training, where targets say nothing; collapsing, where images become alike; and
exploding, where the gradient does. A training that stays in one of the last three is stopped.
"""

import math
from dataclasses import dataclass
from itertools import takewhile

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
# Whether images are told apart cannot be read off fewer.
_FEWEST_IMAGES = 4
# Of the run, how long a training may stand before it is stopped.
_STANDSTILL = 0.1


def measure_targets(targets: Targets) -> dict[str, float]:
    """How targets are spread over prototypes.

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
    """How different images are to an encoder, by features ``(images, dim)``.

    Gives ``effective_rank``, the exponential of the entropy of the singular values (RankMe: Garrido et al. 2023), and
    ``mean_cosine`` of two images; not a number for fewer than four.
    """
    if len(features) < _FEWEST_IMAGES:
        return dict.fromkeys(("effective_rank", "mean_cosine"), math.nan)
    unit = functional.normalize(features.float(), dim=1)
    values = torch.linalg.svdvals(unit)
    shares = values / values.sum()
    images = len(unit)
    cosine = (unit.sum(dim=0).square().sum() - images) / (images * (images - 1))
    return {"effective_rank": float(torch.special.entr(shares).sum().exp()), "mean_cosine": float(cosine)}


@dataclass(frozen=True)
class Verdict:
    """How a training stands."""

    state: str  # one of the four
    reason: str  # the number that says so, and what to do

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


def judge_training(history: pd.DataFrame, temperature_share: float, steps: int) -> Verdict:
    """How a training of so many steps stands by its history; in the ``temperature_share`` of them, in which the
    teacher's temperature rises, targets may be flat.
    """
    last, norms = history.iloc[-1], history.gradient_norm
    if last.skipped or last.gradient_norm > _TIMES_THE_MEDIAN * norms.median():
        return Verdict(
            EXPLODING,
            f"the loss is {last.loss:.3g} and the gradient's norm {last.gradient_norm:.3g}, with a median of "
            f"{norms.median():.3g}: lower learning_rate, or use precision fp32.",
        )
    watched = history.dropna(subset=["row_entropy"])
    if watched.empty:
        return Verdict(NOT_TRAINING, "no step was watched yet.")
    return _judge_look(watched.iloc[-1].to_dict(), temperature_share * steps)


def _judge_look(look: dict, warm_from: float) -> Verdict:
    """How a training stands by a step that was watched; targets may be flat before the step ``warm_from``."""
    rank, used, entropy = look["effective_rank"], look["prototypes_used"], look["row_entropy"]
    if math.isnan(rank):
        return Verdict(NOT_TRAINING, f"a step of fewer than {_FEWEST_IMAGES} images says little: raise batch_size.")
    if rank < _LEAST_RANK or used < _LEAST_USED:
        return Verdict(
            COLLAPSING,
            f"images fill {rank:.1f} dimensions and {used:.1%} of the prototypes, at a mean cosine of "
            f"{look['mean_cosine']:.3f}: lower learning_rate or teacher_temperature, raise koleo_weight.",
        )
    if entropy > _MOST_ENTROPY and look["step"] >= warm_from:
        return Verdict(
            NOT_TRAINING,
            f"the teacher's targets have {entropy:.1%} of the entropy of equal ones: lower teacher_temperature, or "
            "train longer.",
        )
    return Verdict(
        HEALTHY,
        f"images fill {rank:.1f} dimensions, {used:.0%} of the prototypes are used, targets have {entropy:.0%} of the "
        "entropy of equal ones.",
    )


def find_end(history: list[dict], temperature_share: float, steps: int, patience: int) -> Verdict | None:
    """Why a training is to stop before its last step; None where it goes on.

    It stops after ``patience`` steps in a row, or a tenth of the run if that is less, none of which was taken because
    loss or gradient are not finite. And it stops where all looks of a tenth of the run find it collapsing or not
    training, once the teacher's temperature has risen: a slow start looks the same, and must not be cut off.
    """
    standstill, warm_from, last = max(1, round(_STANDSTILL * steps)), temperature_share * steps, history[-1]
    skipped = min(patience, standstill)
    if len(history) >= skipped and all(entry["skipped"] for entry in history[-skipped:]):
        return Verdict(
            EXPLODING,
            f"of the last {skipped} step{'s' * (skipped > 1)} none was taken, because the loss is {last['loss']:.3g} "
            f"and the gradient's norm {last['gradient_norm']:.3g}: lower learning_rate, or use precision fp32.",
        )
    if "row_entropy" not in last or last["step"] < warm_from + standstill:
        return None
    recent = takewhile(lambda entry: entry["step"] >= last["step"] - standstill, reversed(history))
    looks = [_judge_look(entry, warm_from) for entry in recent if "row_entropy" in entry]
    return None if any(look.state == HEALTHY for look in looks) or math.isnan(last["effective_rank"]) else looks[0]
