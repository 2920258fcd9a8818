"""What few labels say of a learning curve, alone or with the curves of other findings: a posterior in place of a fit.

The model is the power law with noise, whose start may be delayed::

    mean over draws at n  ~  alpha - beta (n + delay)^-gamma + misfit + noise of the draws
    logit(2 alpha - 1)    ~  Normal(mean, spread)     the plateau
    log gamma             ~  Normal(mean, spread)     the exponent, between 0.02 and 2
    log shortfall         ~  Normal(mean, spread)     share of alpha - 0.5 still lacking at a reference number of labels
    variance of a draw    ~  falling as n^-exponent, blended with what the draws at a point show

The misfit says that no curve is a power law exactly. Means, spreads, variance and misfit have weak priors of their own.
With pooling they are learnt from all findings together, so that a finding with 50 labels borrows what the
others show; without it each curve is alone with the priors. The shortfall needs its law as much as the others: were it
left flat, every pooled curve would add a preference for high plateaus, under which there is more room for it. Shortfall
and exponent are independent at one number of labels only, and taking the wrong one makes intervals far too narrow: the
reference is learnt, too, among a few.

Without a delay (half of the prior) this is the three-parameter power law. With one the curve stays near its start until
the labels amount to something: a rare finding has one positive among the first 50, and a law that must rise fastest at
the first labels would read a curve that is flat so far as a plateau at chance. Each curve has its own delay.

Everything is integrated by quadrature: sigma in closed form (which makes the
likelihood Student's t), beta at quantiles of its t, alpha and log gamma on a grid that each curve lays where its
likelihood is, the common quantities on a fixed grid. Curves of single draws share what they say of the noise, which is
weighed first, under the mean of the priors, as it hardly depends on them. Only the posterior draws at the end are
random.

What it does not hold: draws at different n are taken as independent, though draws from one finite pool overlap, and all
share one test set. What they share moves the whole curve, so forecasts are of this pool and this test set;
`chexstudy.label_planning.planner` adds what separates them from the population.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.ndimage import map_coordinates
from scipy.special import logsumexp, ndtr, stdtrit

from chexstudy.errors import StudyError
from chexstudy.label_planning.families import CHANCE, GAMMA, PERFECT, POWER4
from chexstudy.label_planning.observations import FEWEST_POINTS, LearningCurve, estimate_noise, relate_variances
from chexstudy.statistics.bootstrap import CONFIDENCE

DRAWS = 4000
_AT = 10.0
_GAMMA_NODES, _ALPHA_NODES, _BETA_NODES, _SEARCH_NODES = 32, 40, 5, 96
# The grid of alpha reaches so many standard errors to each side; what weighs less than this is dropped.
_REACH, _LEAST_WEIGHT, _HOPELESS = 8.0, 1e-5, -20.0
# Cells in which curves meet: plateau on the logit, log gamma, log shortfall.
_PLATEAU_BINS = np.linspace(-6.0, 9.0, 90)
_GAMMA_BINS = np.linspace(*np.log(GAMMA), 48)
_SHORTFALL_BINS = np.linspace(np.log(0.002), np.log(6.0), 48)


@dataclass(frozen=True)
class Prior:
    """Weak priors of what curves have in common; each list is a grid, weighted by the density stated."""

    # typical logit(2 alpha - 1), where 0.5 is a plateau of 0.81 and 1.5 one of 0.91; Normal(1, 1)
    plateau_means: tuple[float, ...] = (-0.8, -0.2, 0.4, 1.0, 1.6, 2.2, 2.8)
    plateau_spreads: tuple[float, ...] = (0.3, 0.5, 0.8, 1.2, 1.8)  # how it differs; half-normal, scale 1
    # typical log gamma; Normal(log 0.5, 0.5), 0.5 being the exponent of a parametric classifier
    gamma_means: tuple[float, ...] = tuple(np.log([0.12, 0.18, 0.27, 0.4, 0.6, 0.9, 1.3]))
    gamma_spreads: tuple[float, ...] = (0.1, 0.2, 0.35, 0.6, 1.0)  # how it differs; half-normal, scale 0.5
    # typical log shortfall; Normal(log 0.3, 0.8)
    shortfall_means: tuple[float, ...] = tuple(np.log([0.03, 0.06, 0.1, 0.17, 0.28, 0.47, 0.8]))
    shortfall_spreads: tuple[float, ...] = (0.15, 0.3, 0.6, 1.1)  # how it differs; half-normal, scale 0.6
    # numbers of labels at which the shortfall may be independent of gamma, all alike
    references: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0)
    # standard deviation of one draw of ten labels; log-normal around 0.06, sd 0.5
    deviations: tuple[float, ...] = (0.02, 0.033, 0.055, 0.09, 0.15)
    # standard deviation of what the power law misses, with their probabilities
    misfits: tuple[tuple[float, float], ...] = ((0.0, 0.5), (0.004, 0.3), (0.015, 0.2))
    # labels before a curve takes off, with their probabilities
    delays: tuple[tuple[float, float], ...] = ((0.0, 0.5), (30.0, 0.2), (200.0, 0.15), (1500.0, 0.15))
    likeness: float = 4.0  # degrees of freedom with which the variance of a curve is like the common one

    @cached_property
    def log_common(self) -> np.ndarray:
        """Of what is common ``(references, plateau, gamma, shortfall)``, each but the first means x spreads."""
        plateau = _weigh_block(self.plateau_means, 1.0, 1.0, self.plateau_spreads, 1.0)
        gamma = _weigh_block(self.gamma_means, np.log(0.5), 0.5, self.gamma_spreads, 0.5)
        shortfall = _weigh_block(self.shortfall_means, np.log(0.3), 0.8, self.shortfall_spreads, 0.6)
        total = np.stack([plateau[:, None, None] + gamma[:, None] + shortfall] * len(self.references))
        return total - logsumexp(total)

    @cached_property
    def log_noises(self) -> np.ndarray:
        """Of every pair of deviation and misfit ``(noises,)``."""
        deviation = _log_normal(np.log(self.deviations), np.log(0.06), 0.5)
        total = (deviation[:, None] + np.log([share for _, share in self.misfits])).ravel()
        return total - logsumexp(total)

    @cached_property
    def densities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of plateau, gamma and shortfall in their bins ``(means x spreads, bins)``."""
        return (
            _normal_grid(_PLATEAU_BINS, self.plateau_means, self.plateau_spreads),
            _normal_grid(_GAMMA_BINS, self.gamma_means, self.gamma_spreads, tuple(np.log(GAMMA))),
            _normal_grid(_SHORTFALL_BINS, self.shortfall_means, self.shortfall_spreads),
        )

    @cached_property
    def mixtures(self) -> np.ndarray:
        """Of one curve before anything is learnt, by reference."""
        return self.mix(self.log_common)

    @cached_property
    def log_mean(self) -> np.ndarray:
        """The same ``(plateau, gamma, shortfall bins)``, the shortfall being at the mean of the references."""
        return np.log(self.mixtures.sum(axis=0))

    def mix(self, log_weights: np.ndarray) -> np.ndarray:
        """Of one curve, given log weights of what is common: weight and density in every bin, by reference."""
        weights = np.exp(log_weights - log_weights.max())
        mixed = np.einsum("rpgs,pa,gb,sc->rabc", weights / weights.sum(), *self.densities, optimize=True)
        return np.maximum(np.ascontiguousarray(mixed), 1e-300)


_PRIOR = Prior()


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known of one curve: draws from its posterior."""

    curve: LearningCurve  # what was observed
    parameters: np.ndarray  # ``(draws, 4)``, alpha, beta, gamma and the delay; of the family `POWER4`, 0 being no delay
    deviations: np.ndarray  # ``(draws,)``, standard deviation of one draw of ten labels
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
        noise = self.deviations * (labels / _AT) ** (-self.exponent / 2) / np.sqrt(draws)
        doublings = max(0.0, np.log2(labels / self.curve.most))
        spread = np.hypot(noise, self.misfits * np.sqrt(1 + doublings))
        return np.clip(self.predict(labels)[:, 0] + spread * generator.standard_normal(len(spread)), 0, 1)


def infer_curves(curves: Sequence[LearningCurve], generator: np.random.Generator, pool: bool = True) -> list[Posterior]:
    """The posterior of each curve; with ``pool`` they learn from each other, as findings of one encoder."""
    for curve in curves:
        if len(curve.labels) < FEWEST_POINTS:
            raise StudyError(
                f"the curve of {curve.encoder!r} on {curve.finding!r} has {len(curve.labels)} numbers of labels, and "
                f"what it says of more needs {FEWEST_POINTS}: draw more, or allow a larger number of labels."
            )
    groups = [list(curves)] if pool else [[curve] for curve in curves]
    return [posterior for group in groups for posterior in _infer_group(group, generator)]


def _infer_group(
    curves: list[LearningCurve], generator: np.random.Generator, prior: Prior = _PRIOR, draws: int = DRAWS
) -> list[Posterior]:
    exponent = estimate_noise(curves, _AT).exponent
    grids = [_Grid(curve, exponent, prior) for curve in curves]
    # Only curves of single draws need each other's word on the noise. One with repeated draws knows its own, which need
    # not be like that of the others.
    single = [grid for grid in grids if (grid.curve.draws == 1).all()]
    noise = prior.log_noises + sum(grid.noise_evidence for grid in single)
    for grid in grids:
        # What a curve has to say itself is in its likelihood.
        grid.place_nodes(noise - grid.noise_evidence if grid in single else prior.log_noises)
    if len(grids) == 1:
        return [_draw_posterior(grids[0], prior.mixtures, generator, draws)]
    evidence = [grid.weigh_priors() for grid in grids]
    common = prior.log_common + sum(evidence)
    # What a curve has to say of itself is in its likelihood: its prior is what the others say.
    return [
        _draw_posterior(grid, prior.mix(common - own), generator, draws)
        for grid, own in zip(grids, evidence, strict=True)
    ]


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


def _log_normal(values: Sequence[float], centre: float, width: float) -> np.ndarray:
    return -(((np.asarray(values) - centre) / width) ** 2) / 2


def _weigh_block(means: Sequence[float], centre: float, width: float, spreads: Sequence[float], scale: float):
    """Log weights of a grid of means and spreads, spread out to one axis."""
    spacing = np.log(np.gradient(np.asarray(spreads, dtype=float)))
    return (_log_normal(means, centre, width)[:, None] + _log_normal(spreads, 0.0, scale) + spacing).ravel()


def _normal_grid(values: np.ndarray, means: Sequence[float], spreads: Sequence[float], ends=None) -> np.ndarray:
    mean, spread = (one.ravel()[:, None] for one in np.meshgrid(means, spreads, indexing="ij"))
    density = np.exp(-(((values - mean) / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
    if ends is not None:
        density /= ndtr((ends[1] - mean) / spread) - ndtr((ends[0] - mean) / spread)
    return density


class _Grid:
    """One curve's likelihood on its own grid of alpha and gamma, for every common deviation and misfit and every delay.

    ``noise_evidence`` is its logarithm for every noise ``(noises,)``, under the mean of the priors.
    """

    def __init__(self, curve: LearningCurve, exponent: float, prior: Prior):
        self.curve, self.exponent, self.prior = curve, exponent, prior
        self.middle = float(np.exp(np.mean(np.log(prior.references))))
        relative = relate_variances(curve, exponent, _AT)
        # Rows of the grid: every pair of deviation and misfit, which curves share, and then every delay.
        delays, shares = np.array(prior.delays).T
        noises = len(prior.deviations) * len(prior.misfits)
        self.delay = np.tile(delays, noises)
        deviation = np.repeat(prior.deviations, len(prior.misfits) * len(delays))
        self.misfit = np.repeat(np.tile([one for one, _ in prior.misfits], len(prior.deviations)), len(delays))
        within = np.sum((curve.draws - 1) * np.nan_to_num(curve.variances) / relative)
        self.known = prior.likeness * deviation**2 + within
        # Precision of the mean at each point, in units of the variance of a draw of ten labels: (rows, points). The
        # misfit is absolute, so its share of the noise needs the curve's own variance as far as it is known.
        own = self.known / (prior.likeness + np.sum(curve.draws - 1))
        self.precision = 1 / (relative / curve.draws + (self.misfit**2 / own)[:, None])
        self.degrees = prior.likeness + np.sum(curve.draws - 1) + len(curve.labels)
        self.constant = prior.likeness * np.log(deviation) + np.log(self.precision).sum(axis=1) / 2
        self.constant += np.tile(np.log(shares), noises)
        self.log_gamma = self._place_gammas()
        self._lay_grid()
        # What no prior could lift is dropped at once, but no row: the other curves may yet want it. A first look takes
        # beta at its best.
        best = self.log_likelihood.max(axis=(1, 2), keepdims=True)
        flat = np.flatnonzero(self.log_likelihood > best + _HOPELESS)
        beta = np.maximum(self.beta.ravel()[flat], self.beta_width.ravel()[flat] / 2)
        self.first_look = np.full(self.alpha.shape, -np.inf)
        prior_there = _interpolate(prior.log_mean, self._places(flat, beta))
        self.first_look.ravel()[flat] = self.log_likelihood.ravel()[flat] + prior_there - np.log(beta)
        by_row = logsumexp(self.first_look, axis=(1, 2))
        self.noise_evidence = logsumexp(by_row.reshape(-1, len(delays)), axis=1)

    def _moments(self, log_gamma: np.ndarray):
        """Weighted sums for the linear problem at each gamma, each ``(rows, gammas)`` or ``(rows, 1)``."""
        delays, row = np.unique(self.delay, return_inverse=True)
        log_labels = np.log(self.curve.labels + delays[:, None])
        basis = np.exp(-np.exp(log_gamma)[:, None] * log_labels[:, None])[row]
        weight, means = self.precision[..., None], self.curve.means
        return (
            self.precision.sum(axis=1)[:, None],
            (basis @ weight)[..., 0],
            (basis**2 @ weight)[..., 0],
            (self.precision @ means)[:, None],
            (basis @ (self.precision * means)[..., None])[..., 0],
            (self.precision @ means**2)[:, None],
        )

    def _place_gammas(self) -> np.ndarray:
        """Midpoints of equal cells of log gamma, over the range that the likelihood does not rule out."""
        ends = np.log(GAMMA)
        search = np.linspace(*ends, _SEARCH_NODES)
        total, basis, square, value, product, values = self._moments(search)
        centred = square - basis**2 / total
        alpha = np.clip((value + (value * basis / total - product) / centred * basis) / total, CHANCE, PERFECT)
        beta = np.maximum((alpha * basis - product) / square, 0.0)
        lost = values - 2 * alpha * value + 2 * beta * product + alpha**2 * total - 2 * alpha * beta * basis
        lost = np.maximum(lost + beta**2 * square, 0.0)
        likely = -self.degrees / 2 * np.log(self.known[:, None] + lost)
        kept = (likely - likely.max(axis=1, keepdims=True) > -14).any(axis=0)
        step = search[1] - search[0]
        low, high = search[kept][0] - step, search[kept][-1] + step
        edges = np.linspace(max(low, ends[0]), min(high, ends[1]), _GAMMA_NODES + 1)
        return (edges[:-1] + edges[1:]) / 2

    def _lay_grid(self) -> None:
        """Likelihood at midpoints of cells of alpha for each noise and gamma, sigma and beta integrated out.

        The integral over beta is that of Student's t alone; the prior of the shortfall enters at quantiles of that t.
        """
        total, basis, square, value, product, values = (part[..., None] for part in self._moments(self.log_gamma))
        # At a gamma, the loss with beta at its best is a parabola in alpha: its top, its curvature, its height.
        curvature = total - basis**2 / square
        top = (value - basis * product / square) / curvature
        height = np.maximum(values - product**2 / square - top**2 * curvature, 0.0)
        width = np.sqrt((self.known[:, None, None] + height) / self.degrees / curvature)
        centre = np.clip(top, CHANCE, PERFECT)
        low = np.maximum(CHANCE, centre - _REACH * width)
        high = np.minimum(PERFECT, centre + _REACH * width)
        self.cell = (high - low) / _ALPHA_NODES
        self.alpha = low + self.cell * (np.arange(_ALPHA_NODES) + 0.5)
        self.left = self.known[:, None, None] + height + curvature * (self.alpha - top) ** 2
        # Given alpha, beta is Student's t around its best.
        self.beta = (self.alpha * basis - product) / square
        self.beta_width = np.sqrt(self.left / (self.degrees - 1) / square)
        share = np.clip((self.alpha - CHANCE) / (PERFECT - CHANCE), 1e-12, 1 - 1e-12)
        self.logit = np.log(share) - np.log1p(-share)
        self.log_likelihood = (
            self.constant[:, None, None]
            - (self.degrees - 1) / 2 * np.log(self.left)
            - np.log(square) / 2
            # Cells are of alpha and log gamma; the prior's densities are of the logit and log gamma.
            + np.log(self.cell)
            - np.log(share * (1 - share))
            + np.log(self.log_gamma[1] - self.log_gamma[0])
        )

    def _places(self, flat: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Plateau, gamma and shortfall ``(3, nodes)`` of nodes at flat positions, at some beta."""
        row, gamma, _ = np.unravel_index(flat, self.alpha.shape)
        log_gamma, alpha = self.log_gamma[gamma], self.alpha.ravel()[flat]
        lacking = np.log(beta) - np.exp(log_gamma) * np.log(self.middle + self.delay[row])
        return np.stack([self.logit.ravel()[flat], log_gamma, lacking - np.log(alpha - CHANCE)])

    def place_nodes(self, log_noise: np.ndarray) -> None:
        """List the nodes of beta, alpha and gamma that matter, with their weights and places among the bins.

        ``log_noise`` are the log weights of the noises ``(noises,)``.
        """
        by_row = np.repeat(log_noise - log_noise.max(), len(self.prior.delays))
        look = self.first_look + by_row[:, None, None]
        flat = np.flatnonzero(look > look.max() + np.log(_LEAST_WEIGHT))
        likely = (self.log_likelihood + by_row[:, None, None]).ravel()[flat]
        quantiles = stdtrit(self.degrees - 1, (np.arange(_BETA_NODES) + 0.5) / _BETA_NODES)
        beta = self.beta.ravel()[flat] + self.beta_width.ravel()[flat] * quantiles[:, None]
        part, node = np.nonzero(beta > 0)
        if not len(node):
            raise StudyError(
                f"the curve of {self.curve.encoder!r} on {self.curve.finding!r} falls as labels are added, so how many "
                "are needed cannot be told: check its numbers, or leave it out with --finding or --encoder."
            )
        beta = beta[part, node]
        self.nodes = np.stack([flat[node], part])
        self.places = self._places(flat[node], beta)
        # The prior's density is of the log shortfall, which is that of beta over beta.
        self.log_weights = likely[node] - np.log(beta)
        posterior = self.log_weights + _interpolate(self.prior.log_mean, self.places)
        kept = posterior > posterior.max() + np.log(_LEAST_WEIGHT)
        self.nodes, self.places, self.log_weights = self.nodes[:, kept], self.places[:, kept], self.log_weights[kept]

    def weigh_priors(self) -> np.ndarray:
        """Log likelihood for every node of what is common ``(references, plateau, gamma, shortfall)``."""
        offset = self.log_weights.max()
        mass = np.exp(self.log_weights - offset)
        binned = np.stack([_bin(self._refer(one), mass) for one in self.prior.references])
        evidence = np.einsum("rabc,pa,gb,sc->rpgs", binned, *self.prior.densities, optimize=True)
        return np.log(np.maximum(evidence, 1e-300)) + offset

    def weigh_nodes(self, mixtures: np.ndarray) -> np.ndarray:
        """Log of the priors ``(references, plateau, gamma, shortfall bins)`` at the nodes, summed over references."""
        share = mixtures.sum(axis=(1, 2, 3))
        logs = [
            _interpolate(np.log(mixture), self._refer(one))
            for mixture, one, weight in zip(mixtures, self.prior.references, share, strict=True)
            # What curves rule out as reference need not be looked at.
            if weight > 1e-4 * share.max()
        ]
        return logsumexp(logs, axis=0)

    def _refer(self, reference: float) -> np.ndarray:
        """The nodes' places with the shortfall at another number of labels."""
        plateau, gamma, shortfall = self.places
        delay = self.delay[self.nodes[0] // (_GAMMA_NODES * _ALPHA_NODES)]
        moved = np.exp(gamma) * (np.log(reference + delay) - np.log(self.middle + delay))
        return np.stack([plateau, gamma, shortfall - moved])


_AXES = (_PLATEAU_BINS, _GAMMA_BINS, _SHORTFALL_BINS)
_SHAPE = tuple(len(axis) for axis in _AXES)


def _bin(places: Sequence[np.ndarray], mass: np.ndarray) -> np.ndarray:
    """Mass of nodes in the common bins, shared between the eight around each: ``(plateau, gamma, shortfall)``."""
    lower, share = [], []
    for axis, place in zip(_AXES, places, strict=True):
        position = np.clip((place - axis[0]) / (axis[1] - axis[0]), 0, len(axis) - 1 - 1e-9)
        lower.append(position.astype(np.int64))
        share.append(position - lower[-1])
    binned = 0
    for corner in np.ndindex(2, 2, 2):
        flat = np.ravel_multi_index(tuple(one + side for one, side in zip(lower, corner, strict=True)), _SHAPE)
        part = 1.0
        for side, one in zip(corner, share, strict=True):
            part = part * (one if side else 1 - one)
        binned = binned + np.bincount(flat, mass * part, np.prod(_SHAPE))
    return binned.reshape(_SHAPE)


def _interpolate(table: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """Values of a table over the bins at nodes, linear between bins."""
    positions = [(place - axis[0]) / (axis[1] - axis[0]) for axis, place in zip(_AXES, places, strict=True)]
    return map_coordinates(table, np.stack(positions), order=1, mode="nearest")


def _draw_posterior(grid: _Grid, mixtures: np.ndarray, generator: np.random.Generator, draws: int) -> Posterior:
    """Draws of one curve, given its prior in bins, by reference."""
    log_mass = grid.log_weights + grid.weigh_nodes(mixtures)
    running = np.cumsum(np.exp(log_mass - log_mass.max()))
    # Systematic draws: each node is taken as often as its mass says, but for rounding.
    taken = np.searchsorted(running, (np.arange(draws) + generator.random()) / draws * running[-1])
    node, slice_of_beta = grid.nodes[:, np.minimum(taken, len(running) - 1)]
    place = np.unravel_index(node, grid.alpha.shape)
    shifted = generator.random(draws) - 0.5
    alpha = grid.alpha[place] + np.broadcast_to(grid.cell, grid.alpha.shape)[place] * shifted
    quantile = (slice_of_beta + generator.random(draws)) / _BETA_NODES
    centre, width = grid.beta[place], grid.beta_width[place]
    beta = centre + width * stdtrit(grid.degrees - 1, np.clip(quantile, 1e-9, 1 - 1e-9))
    deviation = np.sqrt(grid.left[place] / generator.chisquare(grid.degrees, draws))
    parameters = [alpha, np.maximum(beta, 0.0), np.exp(grid.log_gamma[place[1]]), grid.delay[place[0]]]
    return Posterior(grid.curve, np.stack(parameters, axis=1), deviation, grid.misfit[place[0]], grid.exponent)
