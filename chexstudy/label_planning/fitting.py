"""Fits of learning curves: bounded weighted least squares, thousands at once, and what they leave open.

A family is linear in alpha and beta once its shape is given. The best alpha and beta within their bounds have a closed
form (a convex problem in two variables: the free optimum, or the best point of an edge), so only the shape, one or two
numbers, is searched: on a grid over its whole range, which finds the best of all valleys, and then on finer and finer
grids around the best node. Many curves go through this together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.label_planning.families import FAMILIES, POWER3, Family
from chexstudy.label_planning.observations import LearningCurve, Noise, estimate_noise, name_curves, weigh_points

EXTRAPOLATION, INTERPOLATION = "extrapolation", "interpolation"
_NODES = {0: 1, 1: 64, 2: 20}
_FINER_NODES = {0: 1, 1: 9, 2: 5}
_ROUNDS = {0: 1, 1: 12, 2: 16}
# Residuals held at once.
_BLOCK = 2_000_000


@dataclass(frozen=True, eq=False)
class Fit:
    """Fitted curves of one family."""

    family: Family  # of the curves
    parameters: np.ndarray  # ``(parameters,)`` of one fit or ``(replicates, parameters)``
    loss: np.ndarray  # weighted sum of squared residuals, ``()`` or ``(replicates,)``

    def predict(self, labels: np.ndarray) -> np.ndarray:
        """AUROC ``(..., points)`` at numbers of labels."""
        return self.family.evaluate(labels, self.parameters)


def fit_points(family: Family, labels: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> Fit:
    """Fit a family to points by bounded weighted least squares; a logarithmic curve is fitted unclipped.

    At labels ``(points,)`` lie values ``(points,)``, or ``(replicates, points)`` for as many fits, with weights of that
    shape or ``(points,)``; a point of weight 0 takes no part. Without weights all are equal.
    """
    labels = np.asarray(labels, dtype=float)
    single = np.ndim(values) == 1
    values = np.atleast_2d(np.asarray(values, dtype=float))
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    if labels.ndim != 1 or values.shape[1] != len(labels) or weights.shape[-1] != len(labels):
        raise StudyError(
            f"a fit needs as many values and weights as numbers of labels, not {values.shape[1]} and "
            f"{weights.shape[-1]} for {len(labels)}."
        )
    weights = np.broadcast_to(weights, values.shape)
    taken = weights > 0
    if np.isnan(values[taken]).any() or np.isnan(weights).any():
        raise StudyError("a learning curve holds NaN: leave out numbers of labels that could not be evaluated.")
    fewest = int(taken.sum(axis=1).min())
    if fewest < family.free:
        raise StudyError(
            f"the family {family.name} has {family.free} parameters and the curve {fewest} numbers of labels: "
            "draw more of them, or fit a smaller family."
        )
    values = np.where(taken, values, 0.0)
    block = max(1, _BLOCK // (_NODES[len(family.shape_ranges)] ** max(1, len(family.shape_ranges)) * len(labels)))
    parts = [
        _search(family, labels, values[first : first + block], weights[first : first + block])
        for first in range(0, len(values), block)
    ]
    parameters, loss = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Fit(family, parameters[0], loss[0]) if single else Fit(family, parameters, loss)


def _search(family: Family, labels: np.ndarray, values: np.ndarray, weights: np.ndarray):
    """Parameters ``(replicates, parameters)`` and loss ``(replicates,)`` by grids that grow finer."""
    dimensions = len(family.shape_ranges)
    low, high = (np.log([ends[side] for ends in family.shape_ranges]) for side in (0, 1))
    nodes = _NODES[dimensions]
    axes = [np.linspace(first, last, nodes) for first, last in zip(low, high, strict=True)]
    shapes = _combine(axes)[None]
    step = (high - low) / max(nodes - 1, 1)
    everyone = np.arange(len(values))
    best, loss, linear = None, None, None
    for _ in range(_ROUNDS[dimensions]):
        alpha, beta, losses = _solve_linear(family, labels, values, weights, np.exp(shapes))
        place = np.argmin(losses, axis=1)
        row = 0 if len(shapes) == 1 else everyone
        best, loss = shapes[row, place].reshape(len(values), dimensions), losses[everyone, place]
        linear = np.stack([alpha[everyone, place], beta[everyone, place]], axis=1)
        offsets = [np.linspace(-one, one, _FINER_NODES[dimensions]) for one in step]
        shapes = np.clip(best[:, None] + _combine(offsets), low, high)
        step = step * 2 / max(_FINER_NODES[dimensions] - 1, 1)
    return np.concatenate([linear, np.exp(best)], axis=1), loss


def _combine(axes: list[np.ndarray]) -> np.ndarray:
    """Every combination of the axes' values ``(combinations, axes)``; one, of nothing, where there are no axes."""
    combinations = list(product(*axes))
    return np.array(combinations, dtype=float).reshape(len(combinations), len(axes))


def _solve_linear(family: Family, labels: np.ndarray, values: np.ndarray, weights: np.ndarray, shapes: np.ndarray):
    """Best alpha and beta for every shape, and their loss: each ``(replicates, shapes)``.

    ``shapes`` is ``(1 or replicates, shapes, dimensions)``. Within bounds the loss is convex, so its lowest point is
    the free one, or lies on an edge: beta at 0, or alpha at one of its bounds.
    """
    basis = family.basis(labels, *np.moveaxis(shapes[..., None, :], -1, 0))
    basis = np.broadcast_to(basis, (*np.broadcast_shapes(shapes.shape[:2], basis.shape[:-1]), len(labels)))
    low, high = family.alpha
    total = weights.sum(axis=1)[:, None]
    share = weights / total
    mean = np.einsum("rp,rp->r", share, values)[:, None]
    basis_mean = np.einsum("rp,rsp->rs", share, np.broadcast_to(basis, (len(values), *basis.shape[1:])))
    centred = basis - basis_mean[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = -np.einsum("rp,rsp->rs", share * (values - mean), centred)
        slope = slope / np.einsum("rp,rsp->rs", share, centred**2)
        free = mean + slope * basis_mean, slope
        square = np.einsum("rp,rsp->rs", share, np.broadcast_to(basis**2, centred.shape))
        product_mean = np.einsum("rp,rsp->rs", share * values, np.broadcast_to(basis, centred.shape))
        # Edges: a flat curve, and a plateau at either bound.
        edges = [(np.clip(mean, low, high) + np.zeros_like(slope), np.zeros_like(slope))]
        for bound in sorted({low, high}):
            edges.append((np.full_like(slope, bound), np.maximum((bound * basis_mean - product_mean) / square, 0.0)))

    def lose(alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
        residual = values[:, None, :] - alpha[..., None] + beta[..., None] * basis
        return np.einsum("rp,rsp->rs", weights, residual**2)

    inside = np.isfinite(slope) & (slope >= 0) & (free[0] >= low) & (free[0] <= high)
    alpha, beta = (np.where(inside, one, 0.0) for one in free)
    loss = np.where(inside, lose(alpha, beta), np.inf)
    for edge in edges:
        usable = np.isfinite(edge[1])
        at_edge = np.where(usable, lose(edge[0], np.where(usable, edge[1], 0.0)), np.inf)
        better = at_edge < loss
        alpha, beta = np.where(better, edge[0], alpha), np.where(better, edge[1], beta)
        loss = np.minimum(loss, at_edge)
    return alpha, beta, loss


def fit_curve(curve: LearningCurve, noise: Noise) -> Fit:
    """Fit the three-parameter power law to the means over draws, weighted by how little draws differ there."""
    return fit_points(POWER3, curve.labels, curve.means, weigh_points(curve, noise))


def compare_families(curves: Sequence[LearningCurve]) -> pd.DataFrame:
    """Errors of families at points they were not fitted to.

    Extrapolation: fitted to the numbers of labels up to each in turn, and asked for every larger one. Interpolation:
    one number of labels between the first and the last is left out, and asked for.

    Gives one row a curve, family and left-out point: ``encoder``, ``finding``, ``data_set``, ``unit``, ``family``,
    ``split`` (``extrapolation`` or ``interpolation``), ``at_most_n``, ``n`` and ``error`` (predicted minus observed;
    NaN where points are too few for a family).
    """
    noise, names, tables = estimate_noise(curves), name_curves(curves), []
    for place, curve in enumerate(curves):
        points, own = np.arange(len(curve.labels)), weigh_points(curve, noise)
        # What is fitted to, the point asked for, and how it is called.
        asked = [
            (points <= last, one, EXTRAPOLATION, curve.labels[last])
            for last in points[FAMILIES["power2"].free - 1 : -1]
            for one in points[last + 1 :]
        ]
        asked += [(points != one, one, INTERPOLATION, curve.most) for one in points[1:-1]]
        kept, asked, *places = map(np.array, zip(*asked, strict=True))
        for family in FAMILIES.values():
            error = np.full(len(kept), np.nan)
            enough = kept.sum(axis=1) >= family.free
            if enough.any():
                values = np.repeat(curve.means[None], enough.sum(), axis=0)
                fit = fit_points(family, curve.labels, values, own * kept[enough])
                predicted = fit.predict(curve.labels)[np.arange(enough.sum()), asked[enough]]
                error[enough] = predicted - curve.means[asked[enough]]
            rows = dict(zip(("split", "at_most_n"), places, strict=True)) | {"n": curve.labels[asked], "error": error}
            tables.append(pd.DataFrame({**names.loc[place], **rows, "family": family.name}))
    return pd.concat(tables, ignore_index=True)
