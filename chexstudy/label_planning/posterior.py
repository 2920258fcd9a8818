"""What few labels say of a learning curve, alone or with the curves of other findings: a posterior in place of a fit.

The model is the power law with noise, whose start may be delayed::

    mean over draws at n  ~  alpha - beta (n + delay)^-gamma + misfit + noise of the draws
    logit(2 alpha - 1)    ~  Normal(mean, spread)     the plateau
    log gamma             ~  Normal(mean, spread)     the exponent, between 0.02 and 2
    log shortfall         ~  Normal(mean, spread)     share of alpha - 0.5 still lacking at 10 labels
    variance of a draw    ~  falling as n^-exponent, blended with what the draws at a point show

The misfit says that no curve is a power law exactly. Without a delay this is the three-parameter power law. With one
the curve stays near its start until the labels amount to something: a rare finding has one positive among the first 50,
and a law that must rise fastest at the first labels would read a curve that is flat so far as a plateau at chance.

Given exponent, delay, misfit and noise, the law is linear in the plateau and in the AUROC at 10 labels, and what the
points say of these two has a closed form; the four are a grid. Draws from it are weighed by the population of curves.
Alone, a curve comes from the population of all encoders. Pooled, the findings of one encoder have means and spreads of
their own, which are learnt from all of them together by Gibbs sampling (Gelman et al., Bayesian Data Analysis, section
11.6), so that a finding with 50 labels borrows what the others show.

What it does not hold: draws at different n are taken as independent, though draws from one finite pool overlap, and all
share one test set. What they share moves the whole curve, so forecasts are of this pool and this test set;
`chexstudy.label_planning.planner` adds what separates them from the population.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp, ndtr, ndtri
from scipy.stats import chi2

from chexstudy.errors import StudyError
from chexstudy.label_planning.families import CHANCE, GAMMA, PERFECT, POWER4
from chexstudy.label_planning.observations import FEWEST_POINTS, LearningCurve, estimate_noise, relate_variances
from chexstudy.statistics.bootstrap import CONFIDENCE

DRAWS = 4000
_START = 10.0
_GAMMA_NODES, _NOISE_NODES = 40, 7
_CANDIDATES, _BURN_IN, _SWEEPS = 12_000, 100, 400
# From where the linear part is drawn before the population weighs it: plateau and start, mean and standard deviation.
_WIDE = (0.8, 0.6), (0.25, 0.15)
_HOPELESS, _FALLS, _TINY, _EDGE = 12.0, -15.0, 1e-300, 1e-9


@dataclass(frozen=True)
class Prior:
    """What is known of learning curves before one is seen: logit(2 alpha - 1), log gamma, log shortfall; and noise."""

    means: tuple[float, float, float] = (1.0, -0.8, -0.3)  # over encoders and findings
    encoders: tuple[float, float, float] = (0.6, 0.4, 0.4)  # how the means of encoders differ
    findings: tuple[float, float, float] = (1.6, 0.4, 0.6)  # how the findings of one encoder differ
    likeness: float = 2.0  # degrees of freedom with which an encoder's spread is like that of others
    # standard deviation of one draw of the fewest labels, and the degrees of freedom with which it is known
    deviation: tuple[float, float] = (0.07, 3.0)
    # standard deviation of what the power law misses, with their probabilities
    misfits: tuple[tuple[float, float], ...] = ((0.0, 0.6), (0.005, 0.25), (0.015, 0.15))
    # labels before a curve takes off, with their probabilities
    delays: tuple[tuple[float, float], ...] = ((0.0, 0.4), (30.0, 0.25), (200.0, 0.2), (1500.0, 0.15))


_PRIOR = Prior()


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known of one curve: draws from its posterior."""

    curve: LearningCurve  # what was observed
    parameters: np.ndarray  # ``(draws, 4)``, alpha, beta, gamma and the delay; of the family `POWER4`, 0 being no delay
    deviations: np.ndarray  # ``(draws,)``, standard deviation of one draw of the fewest labels
    misfits: np.ndarray  # ``(draws,)``, standard deviation of what the power law misses at a point
    exponent: float  # of the variance of a draw

    @property
    def plateaus(self) -> np.ndarray:
        return self.parameters[:, 0]

    def predict(self, labels: np.ndarray) -> np.ndarray:
        """AUROC of the curve ``(draws, points)``."""
        return POWER4.evaluate(np.atleast_1d(labels), self.parameters)

    def foresee(self, labels: float, draws: float, generator: np.random.Generator) -> np.ndarray:
        """The mean AUROC that so many draws of so many labels will show ``(draws,)``, noise and misfit included.

        The misfit of a law grows with the distance from what it was fitted to: each doubling adds one of its own.
        """
        noise = self.deviations * (labels / self.curve.labels[0]) ** (-self.exponent / 2) / np.sqrt(draws)
        doublings = max(0.0, np.log2(labels / self.curve.most))
        spread = np.hypot(noise, self.misfits * np.sqrt(1 + doublings))
        return np.clip(self.predict(labels)[:, 0] + spread * generator.standard_normal(len(spread)), 0, 1)

    def take(self, rows: np.ndarray) -> "Posterior":
        """Some of the draws."""
        return Posterior(self.curve, self.parameters[rows], self.deviations[rows], self.misfits[rows], self.exponent)


def infer_curves(
    curves: Sequence[LearningCurve], generator: np.random.Generator, pool: bool = True, prior: Prior = _PRIOR
) -> list[Posterior]:
    """The posterior of each curve; with ``pool`` they learn from each other, as findings of one encoder."""
    for curve in curves:
        if len(curve.labels) < FEWEST_POINTS:
            raise StudyError(
                f"the curve of {curve.encoder!r} on {curve.finding!r} has {len(curve.labels)} numbers of labels, and "
                f"what it says of more needs {FEWEST_POINTS}: draw more, or allow a larger number of labels."
            )
    groups = [list(curves)] if pool else [[curve] for curve in curves]
    found = []
    for group in groups:
        exponent = estimate_noise(group).exponent
        alone = [_infer_alone(curve, exponent, prior, generator) for curve in group]
        found += _infer_together(alone, prior, generator) if len(group) > 1 else alone
    return found


def trace_bands(posteriors: Sequence[Posterior]) -> pd.DataFrame:
    """Median and 95 % interval of each curve at 60 numbers of labels from its first to twice its largest.

    Columns ``encoder, finding, labels, value, low, high``; the interval holds at each label count alone.
    """
    tail, tables = (1 - CONFIDENCE) / 2, []
    for posterior in posteriors:
        curve = posterior.curve
        labels = np.geomspace(curve.labels[0], 2.0 * curve.most, 60)
        low, value, high = np.quantile(posterior.predict(labels), [tail, 0.5, 1 - tail], axis=0)
        place = {"encoder": curve.encoder, "finding": curve.finding, "labels": labels}
        tables.append(pd.DataFrame(place | {"value": value, "low": low, "high": high}))
    return pd.concat(tables, ignore_index=True)


def _infer_alone(curve: LearningCurve, exponent: float, prior: Prior, generator: np.random.Generator) -> Posterior:
    """Draws from a grid of exponents, delays, misfits and noise, weighed by the population of all encoders."""
    relative = relate_variances(curve, exponent, curve.labels[0])
    centre, degrees = prior.deviation
    within = np.sum((curve.draws - 1) * np.nan_to_num(curve.variances) / relative)
    # Equally likely values of the deviation, given the prior and how draws at a point differ.
    middles = (np.arange(_NOISE_NODES) + 0.5) / _NOISE_NODES
    deviations = np.sqrt((degrees * centre**2 + within) / chi2.ppf(middles, degrees + np.sum(curve.draws - 1)))
    (misfits, misfit_shares), (delays, delay_shares) = np.array(prior.misfits).T, np.array(prior.delays).T
    variances = deviations[:, None, None] ** 2 * relative / curve.draws + misfits[:, None] ** 2
    # Delays, exponents and noises, each of which is a deviation and a misfit.
    shares = np.log(delay_shares)[:, None, None] + np.tile(np.log(misfit_shares), _NOISE_NODES)
    low, high = np.log(GAMMA)
    # Twice: where the exponent may lie, and there more closely.
    for _ in range(2):
        edges = np.linspace(low, high, _GAMMA_NODES + 1)
        log_gammas = (edges[:-1] + edges[1:]) / 2
        plane = _Plane(curve, np.exp(log_gammas), delays[:, None], variances.reshape(-1, len(relative)))
        log_mass = plane.evidence + shares - _surprise(log_gammas, prior, 1)[:, None]
        by_gamma = logsumexp(log_mass, axis=(0, 2))
        likely = np.flatnonzero(by_gamma > by_gamma.max() - _HOPELESS)
        low, high = edges[likely[0]], edges[likely[-1] + 1]
    place = np.unravel_index(_draw(log_mass.ravel(), _CANDIDATES, generator), log_mass.shape)
    plateau, start, log_below, log_weight = plane.draw(place, generator)
    # A start below the plateau is then as unlikely in every cell as five standard deviations.
    if log_below.max() < _FALLS:
        raise StudyError(
            f"the curve of {curve.encoder!r} on {curve.finding!r} falls as labels are added, so how many are needed "
            "cannot be told: check its numbers, or leave it out with --finding or --encoder."
        )
    delay, gamma, noise = place
    delay, gamma = delays[delay], np.exp(log_gammas[gamma])
    beta = np.maximum(plateau - start, _EDGE) * (_START + delay) ** gamma
    parameters = np.stack([plateau, beta, gamma, delay], axis=1)
    logit, _, shortfall = _locate(parameters)
    # The population is of the logit and of the log shortfall, the draws are of plateau and start.
    log_weight = log_below + log_weight - shortfall - 2 * np.log(plateau - CHANCE) - np.log(PERFECT - plateau)
    log_weight -= _surprise(logit, prior, 0) + _surprise(shortfall, prior, 2)
    deviation, misfit = np.divmod(noise, len(misfits))
    found = Posterior(curve, parameters, deviations[deviation], misfits[misfit], exponent)
    return found.take(_draw(log_weight, DRAWS, generator))


def _surprise(values: np.ndarray, prior: Prior, number: int) -> np.ndarray:
    """Minus the log density over encoders and findings of one of the prior's three quantities, up to a constant."""
    return (values - prior.means[number]) ** 2 / (prior.encoders[number] ** 2 + prior.findings[number] ** 2) / 2


def _locate(parameters: np.ndarray) -> np.ndarray:
    """logit(2 alpha - 1), log gamma and log shortfall ``(3, draws)``."""
    alpha, beta, gamma, delay = parameters.T
    lacking = np.log(beta) - gamma * np.log(_START + delay) - np.log(alpha - CHANCE)
    return np.stack([np.log((alpha - CHANCE) / (PERFECT - alpha)), np.log(gamma), lacking])


def _draw(log_weights: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Systematic draws in random order: each place is taken as often as its weight says, but for rounding."""
    running = np.cumsum(np.exp(log_weights - log_weights.max()))
    taken = np.searchsorted(running, (np.arange(draws) + generator.random()) / draws * running[-1])
    return generator.permutation(np.minimum(taken, len(running) - 1))


class _Plane:
    """Plateau and start, normal given all else: ``(delays, exponents, noises)``, by least squares within wide normals.

    ``evidence`` is the log likelihood of all else, with the plateau between 0.5 and 1.
    """

    def __init__(self, curve: LearningCurve, gammas: np.ndarray, delays: np.ndarray, variances: np.ndarray):
        lacking = ((curve.labels + delays[..., None]) / (_START + delays[..., None])) ** -gammas[:, None]
        reached, precision = 1 - lacking, 1 / variances.T
        means = curve.means - reached * _WIDE[0][0] - lacking * _WIDE[0][1]
        both = (reached * lacking) @ precision
        first = reached**2 @ precision + _WIDE[1][0] ** -2
        self.second = lacking**2 @ precision + _WIDE[1][1] ** -2
        one, other = (reached * means) @ precision, (lacking * means) @ precision
        determinant = first * self.second - both**2
        plateau = (self.second * one - both * other) / determinant
        start = (first * other - both * one) / determinant
        fitted = one * plateau + other * start - means**2 @ precision
        self.evidence = (fitted + np.log(precision).sum(axis=0) - np.log(determinant)) / 2
        self.plateau, self.start, self.slope = plateau + _WIDE[0][0], start + _WIDE[0][1], both / self.second
        self.spread = np.sqrt(self.second / determinant)
        low, high = self._tails(...)
        self.evidence += np.log(np.maximum(high - low, _TINY))

    def _tails(self, place) -> tuple[np.ndarray, np.ndarray]:
        return tuple(ndtr((end - self.plateau[place]) / self.spread[place]) for end in (CHANCE, PERFECT))

    def draw(self, place: tuple, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Plateau, start below it, log probability of such a start, and log weight in place of the wide normals."""
        centre, (low, high), chances = self.plateau[place], self._tails(place), generator.random((2, len(place[0])))
        plateau = centre + self.spread[place] * ndtri(low + (high - low) * chances[0])
        plateau = np.clip(plateau, CHANCE + _EDGE, PERFECT - _EDGE)
        start, root = self.start[place] - self.slope[place] * (plateau - centre), np.sqrt(self.second[place])
        below = np.maximum(ndtr((plateau - start) * root), _TINY)
        start = start + ndtri(below * chances[1]) / root
        wide = sum(((one - mean) / spread) ** 2 for one, mean, spread in zip((plateau, start), *_WIDE, strict=True))
        return plateau, start, np.log(below), wide / 2


def _infer_together(alone: list[Posterior], prior: Prior, generator: np.random.Generator) -> list[Posterior]:
    """Posteriors of the findings of one encoder, whose draws are weighed by what the others show."""
    places = np.stack([_locate(one.parameters) for one in alone])
    centre, between, within = (np.array(one)[:, None] for one in (prior.means, prior.encoders, prior.findings))
    # What the draws were weighed by already.
    known = ((places - centre) ** 2 / (2 * (between**2 + within**2))).sum(axis=1)
    count, every = len(alone), np.arange(len(alone))
    mean, spread, kept = centre, within, []
    for sweep in range(_BURN_IN + _SWEEPS):
        weights = known - ((places - mean) ** 2 / (2 * spread**2)).sum(axis=1)
        running = np.cumsum(np.exp(weights - weights.max(axis=1, keepdims=True)), axis=1)
        chance = generator.random((count, DRAWS // _SWEEPS)) * running[:, -1:]
        chosen = np.stack([np.searchsorted(*one) for one in zip(running, chance, strict=True)])
        if sweep >= _BURN_IN:
            kept.append(chosen)
        now = places[every, :, chosen[:, 0]].T
        precision = between**-2 + count / spread**2
        mean = (centre / between**2 + now.sum(axis=1, keepdims=True) / spread**2) / precision
        mean = mean + generator.standard_normal((3, 1)) / np.sqrt(precision)
        off = prior.likeness * within**2 + ((now - mean) ** 2).sum(axis=1, keepdims=True)
        spread = np.sqrt(off / generator.chisquare(prior.likeness + count, (3, 1)))
    return [one.take(rows) for one, rows in zip(alone, np.concatenate(kept, axis=1), strict=True)]
