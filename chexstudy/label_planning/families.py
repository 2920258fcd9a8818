"""Families of learning curves: the AUROC as a function of the number of labels.

Every family is ``alpha - beta * basis(n; shape)`` with a basis that falls with ``n``: given its shape it is linear in
alpha and beta, which is what makes thousands of fits cheap (`chexstudy.label_planning.fitting`). Parameters are
arrays ``(..., parameters)`` in the order alpha, beta, shape.

The three-parameter power law is the one that "How many samples to label" (arXiv 2510.11553) chose. The others are those
that Viering & Loog (2022, The Shape of Learning Curves, table 1) list for bounded performance, here with the bounds of
an AUROC: a plateau between 0.5 and 1, and performance that never falls with more labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chexstudy.errors import StudyError

CHANCE, PERFECT = 0.5, 1.0


@dataclass(frozen=True)
class Family:
    """A family of curves ``alpha - beta * basis(n; shape)``."""

    name: str  # how it is asked for
    formula: str  # how it is written
    basis: Callable[..., np.ndarray]  # ``basis(n, *shape)``, falling with n
    inverse_basis: Callable[..., np.ndarray]  # ``inverse_basis(value, *shape)``, the n at which the basis has a value
    alpha: tuple[float, float] = (CHANCE, PERFECT)  # lowest and highest alpha; equal where it is fixed
    shape_names: tuple[str, ...] = ()  # names of the parameters behind alpha and beta
    # lowest and highest value of each; both positive, they are searched on a logarithmic scale
    shape_ranges: tuple[tuple[float, float], ...] = ()
    bounded: bool = True  # whether alpha is a plateau. Without one, a curve rises until it is clipped at 1.

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters, in order."""
        return ("alpha", "beta", *self.shape_names)

    @property
    def free(self) -> int:
        """How many parameters a fit has to find."""
        return len(self.parameters) - (self.alpha[0] == self.alpha[1])

    def evaluate(self, labels: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """AUROC at numbers of labels.

        Args:
            labels: ``(points,)``, each 1 or more.
            parameters: ``(..., parameters)``.

        Returns:
            ``(..., points)``, at most 1. Far below the fitted range a curve may fall under chance.
        """
        alpha, beta, *shape = np.moveaxis(np.asarray(parameters, dtype=float)[..., None, :], -1, 0)
        return np.minimum(alpha - beta * self.basis(np.asarray(labels, dtype=float), *shape), PERFECT)

    def plateau(self, parameters: np.ndarray) -> np.ndarray | None:
        """AUROC with labels without end ``(...)``; None where the family has no plateau."""
        return np.asarray(parameters, dtype=float)[..., 0] if self.bounded else None

    def labels_for(self, target: float, parameters: np.ndarray) -> np.ndarray:
        """The number of labels at which curves reach a target AUROC.

        Args:
            target: the AUROC.
            parameters: ``(..., parameters)``.

        Returns:
            ``(...)``, 1 or more, not rounded; infinite where the curve stays below.
        """
        alpha, beta, *shape = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            needed = self.inverse_basis((alpha - target) / beta, *shape)
        flat = beta <= 0
        never = (alpha <= target) if self.bounded else np.full(np.shape(alpha), target > PERFECT)
        needed = np.where(flat, np.where(alpha >= target, 1.0, np.inf), np.where(never, np.inf, needed))
        return np.maximum(np.nan_to_num(needed, nan=1.0, posinf=np.inf), 1.0)


def _power(n, gamma):
    return n**-gamma


def _inverse_power(value, gamma):
    return value ** (-1 / gamma)


def _exponential(n, rate):
    return np.exp(-rate * n)


def _inverse_exponential(value, rate):
    return -np.log(np.minimum(value, 1.0)) / rate


def _shifted_power(n, gamma, shift):
    return (n + shift) ** -gamma


def _inverse_shifted_power(value, gamma, shift):
    return value ** (-1 / gamma) - shift


def _weibull(n, rate, power):
    return np.exp(-rate * n**power)


def _inverse_weibull(value, rate, power):
    return (-np.log(np.minimum(value, 1.0)) / rate) ** (1 / power)


def _inverse_logarithm(n):
    # One label has no logarithm to divide by; counting from two shifts the curve by less than any noise.
    return 1 / np.log(n + 1)


GAMMA = (0.02, 2.0)
_LISTED = (
    Family("power3", "α − β n^−γ", _power, _inverse_power, shape_names=("gamma",), shape_ranges=(GAMMA,)),
    Family(
        "power2",
        "1 − β n^−γ",
        _power,
        _inverse_power,
        alpha=(PERFECT, PERFECT),
        shape_names=("gamma",),
        shape_ranges=((0.005, 2.0),),
    ),
    Family(
        "exponential",
        "α − β e^(−ρn)",
        _exponential,
        _inverse_exponential,
        shape_names=("rate",),
        shape_ranges=((1e-5, 2.0),),
    ),
    Family(
        "logarithmic",
        "α + β ln n",
        lambda n: -np.log(n),
        lambda value: np.exp(-value),
        alpha=(0.0, PERFECT),
        bounded=False,
    ),
    Family("inverse_log", "α − β / ln(n + 1)", _inverse_logarithm, lambda value: np.exp(1 / value) - 1),
    Family(
        "power4",
        "α − β (n + δ)^−γ",
        _shifted_power,
        _inverse_shifted_power,
        shape_names=("gamma", "shift"),
        shape_ranges=(GAMMA, (0.1, 1000.0)),
    ),
    Family(
        "weibull",
        "α − β e^(−ρ n^κ)",
        _weibull,
        _inverse_weibull,
        shape_names=("rate", "power"),
        shape_ranges=((1e-4, 5.0), (0.1, 1.5)),
    ),
)
FAMILIES = {family.name: family for family in _LISTED}
POWER3, POWER4 = FAMILIES["power3"], FAMILIES["power4"]


def find_families(names: Sequence[str]) -> list[Family]:
    """The families of some names."""
    for name in names:
        if name not in FAMILIES:
            raise StudyError(f"there is no family of curves {name!r}: choose among {', '.join(FAMILIES)}.")
    return [FAMILIES[name] for name in names]
