"""Targets of the teacher: its logits made probabilities that do not all fall on a few prototypes.

Logits are never held for all rows. With 131,072 prototypes those of the masked patches would take more memory than the
encoder (17,900 rows at the published batch: 9.4 GB), so they are made from what enters the last layer, a chunk of rows
at a time, each time they are needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SINKHORN_ITERATIONS = 3
_CENTRE_MOMENTUM = 0.9
# Elements of a chunk of logits: 32 MiB in float32.
_CHUNK_ELEMENTS = 2**23
_HELD_ELEMENTS = 2**26  # 256 MiB


@dataclass(frozen=True)
class Logits:
    """Products of features and prototypes, made a chunk of rows at a time."""

    features: Tensor  # ``(rows, bottleneck)``
    prototypes: Tensor  # ``(count, bottleneck)``, of the length that the last layer gives them

    @cached_property
    def _held(self) -> Tensor | None:
        """All of them, where they are few."""
        if not self.are_held(len(self.features), len(self.prototypes)):
            return None
        return self.features.float() @ self.prototypes.float().T

    @staticmethod
    def are_held(rows: int, count: int) -> bool:
        """Whether all of them are kept, or made anew for every look."""
        return rows * count <= _HELD_ELEMENTS

    def __len__(self) -> int:
        return len(self.features)

    def chunk(self, rows: slice) -> Tensor:
        """``(rows, count)`` in float32, whatever the features are in (S6)."""
        if self._held is not None:
            return self._held[rows]
        return self.features[rows].float() @ self.prototypes.float().T

    def chunks(self) -> Iterator[slice]:
        step = max(1, _CHUNK_ELEMENTS // max(len(self.prototypes), 1))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))


@dataclass(frozen=True)
class Targets:
    """The teacher's probability of each prototype, row by row."""

    logits: Logits
    temperature: float
    of_prototype: Tensor  # logarithm of each prototype's factor ``(count,)``

    def chunk(self, rows: slice) -> Tensor:
        """``(rows, count)``; each row sums to one."""
        return (self.logits.chunk(rows) / self.temperature + self.of_prototype).softmax(dim=1)


def balance_by_sinkhorn(
    logits: Logits, temperature: float, iterations: int = SINKHORN_ITERATIONS, overflows: bool = False
) -> Targets:
    """Probabilities under which all prototypes are used alike (Sinkhorn-Knopp; Caron et al. 2020, SwAV).

    Rows are all of a step, from all processes: balanced by parts, the targets are others. Prototypes and rows are
    normalised in turns. With ``overflows`` logits are exponentiated first, as published, so that one above 88
    temperatures makes everything NaN (S7).
    """
    # Both normalisations only ever scale prototypes and rows, and the softmax of `Targets` is that of rows, so the
    # logarithms of the prototypes' factors are all there is.
    of_prototype = logits.features.new_full((len(logits.prototypes),), -torch.inf, dtype=torch.float32)
    for rows in logits.chunks():
        of_prototype = torch.logaddexp(of_prototype, (logits.chunk(rows) / temperature).logsumexp(dim=0))
    of_prototype = -of_prototype
    for _ in range(iterations - 1):
        used = torch.zeros_like(of_prototype)
        for rows in logits.chunks():
            used += Targets(logits, temperature, of_prototype).chunk(rows).sum(dim=0)
        # None is zero: the row that likes a prototype most gives it one over rows and prototypes at the least.
        of_prototype = of_prototype - used.log()
    if overflows:
        total = sum((logits.chunk(rows) / temperature).exp().sum() for rows in logits.chunks())
        of_prototype += total - total
    return Targets(logits, temperature, of_prototype)


class Centre:
    """A running mean ``(count,)`` of the teacher's logits before the present step, which is taken from them (DINO;
    Caron et al. 2021).
    """

    def __init__(self, count: int, device: torch.device | str = "cpu"):
        self.value = torch.zeros(count, device=device)

    def balance(self, logits: Logits, temperature: float) -> Targets:
        """Softmax of the centred logits; the centre moves afterwards, so that it counts from the next step on."""
        targets = Targets(logits, temperature, -self.value / temperature)
        # The mean of products is the product of the mean.
        mean = logits.features.float().mean(dim=0) @ logits.prototypes.float().T
        self.value = _CENTRE_MOMENTUM * self.value + (1 - _CENTRE_MOMENTUM) * mean
        return targets
