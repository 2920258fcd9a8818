"""Families of learning curves: the AUROC as a function of the number of labels.

Every family is ``alpha - beta * basis(n; shape)`` with a basis that falls with ``n``: given its shape it is linear in
alpha and beta, which is what makes thousands of fits cheap (`chexstudy.label_planning.fitting`). Parameters are
arrays ``(..., parameters)`` in the order alpha, beta, shape.

The three-parameter power law is the one that "How many samples to label" (arXiv 2510.11553) chose. The others are those
that Viering & Loog (2022, The Shape of Learning Curves, table 1) list for bounded performance, here with the bounds of
an AUROC: a plateau between 0.5 and 1, and performance that never falls with more labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CHANCE, PERFECT = 0.5, 1.0


@dataclass(frozen=True)
class Family:
    """A family of curves ``alpha - beta * basis(n; shape)``."""

    name: str  # how it is asked for
    formula: str  # how it is written
    basis: Callable[..., np.ndarray]  # ``basis(n, *shape)``, falling with n
    alpha: tuple[float, float] = (CHANCE, PERFECT)  # lowest and highest alpha; equal where it is fixed
    # lowest and highest value of each parameter behind alpha and beta; positive, searched on a logarithmic scale
    shape_ranges: tuple[tuple[float, float], ...] = ()

    @property
    def free(self) -> int:
        """How many parameters a fit has to find."""
        return 2 + len(self.shape_ranges) - (self.alpha[0] == self.alpha[1])

    def evaluate(self, labels: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """AUROC ``(..., points)`` at numbers of labels ``(points,)``, 1 or more, for ``(..., parameters)``.

        It is at most 1; far below the fitted range a curve may fall under chance.
        """
        alpha, beta, *shape = np.moveaxis(np.asarray(parameters, dtype=float)[..., None, :], -1, 0)
        return np.minimum(alpha - beta * self.basis(np.asarray(labels, dtype=float), *shape), PERFECT)


GAMMA = (0.02, 2.0)
_LISTED = (
    Family("power3", "α − β n^−γ", lambda n, gamma: n**-gamma, shape_ranges=(GAMMA,)),
    Family("power2", "1 − β n^−γ", lambda n, gamma: n**-gamma, (PERFECT, PERFECT), ((0.005, 2.0),)),
    Family("exponential", "α − β e^(−ρn)", lambda n, rate: np.exp(-rate * n), shape_ranges=((1e-5, 2.0),)),
    Family("logarithmic", "α + β ln n", lambda n: -np.log(n), alpha=(0.0, PERFECT)),
    # One label has no logarithm to divide by; counting from two shifts the curve by less than any noise.
    Family("inverse_log", "α − β / ln(n + 1)", lambda n: 1 / np.log(n + 1)),
    Family(
        *("power4", "α − β (n + δ)^−γ", lambda n, gamma, shift: (n + shift) ** -gamma),
        shape_ranges=(GAMMA, (0.1, 1000.0)),
    ),
    Family(
        *("weibull", "α − β e^(−ρ n^κ)", lambda n, rate, power: np.exp(-rate * n**power)),
        shape_ranges=((1e-4, 5.0), (0.1, 1.5)),
    ),
)
FAMILIES = {family.name: family for family in _LISTED}
POWER3, POWER4 = FAMILIES["power3"], FAMILIES["power4"]


def labels_for(target: float, parameters: np.ndarray) -> np.ndarray:
    """The number of labels ``(...)`` at which curves of `POWER4` ``(..., 4)`` reach a target AUROC.

    It is 1 or more, not rounded; infinite where the curve stays below. A shift of 0 makes the curve one of `POWER3`.
    """
    alpha, beta, gamma, shift = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        needed = ((alpha - target) / beta) ** (-1 / gamma) - shift
    flat = np.where(alpha >= target, 1.0, np.inf)
    needed = np.where(beta <= 0, flat, np.where(alpha <= target, np.inf, needed))
    return np.maximum(np.nan_to_num(needed, nan=1.0, posinf=np.inf), 1.0)
