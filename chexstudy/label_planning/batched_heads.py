"""Heads on frozen features, fitted on many small sets of labels at once.

Learning curves take thousands of fits. Sets of one size are fitted together, as arrays ``(sets, images, dim)``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from chexstudy.errors import StudyError

# Largest gradient, in units of labels, at which a fit has ended.
_TOLERANCE = 1e-4
_NEWTON_STEPS = 60
_MOST_PRODUCTS = 400
_HALVINGS = 20


@dataclass(frozen=True)
class DropoutRecipe:
    """How a head of dropout and a linear projection is trained; the paper (A3) names neither of these numbers."""

    dropout: float = 0.1  # share of the features left out at each step
    steps: int = 300  # of AdamW, the learning rate falling to 0 along a cosine
    batch_size: int = 128  # images a step
    weight_decay: float = 1e-4  # of AdamW, on the coefficients

    def __post_init__(self):
        if not 0 <= self.dropout < 1 or self.steps < 1 or self.batch_size < 1 or self.weight_decay < 0:
            raise StudyError(
                "a head with dropout needs 0 <= dropout < 1, at least one step and one image a step, and no negative "
                f"weight decay, not {self}."
            )


def fit_logistic_sets(
    features: np.ndarray, present: np.ndarray, penalty: float, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """L2-penalised logistic regressions, one for each set: the minimum of the summed loss + penalty / 2 |w|^2.

    Newton's method whose steps are found by preconditioned conjugate gradients, without ever forming a Hessian: a
    product with it costs two passes over the features, and tens of them do. The intercept is not penalised; the
    solution is that of scikit-learn's ``LogisticRegression(C=1 / penalty)``.

    Takes features ``(sets, images, dim)``, float32 or float64, which is what it computes with, and labels ``(sets,
    images)``, both classes in every set; gives coefficients ``(sets, dim)`` and intercepts ``(sets,)``, float64. The
    spread ``(dim,)``, about the variance of each feature, is for the preconditioner: it decides the pace, not the
    solution. Features along principal axes are fastest.
    """
    sets, _, dim = _check(features, present)
    if not penalty > 0:
        raise StudyError(f"the penalty of a logistic head is {penalty}: give a number above 0.")
    kind = features.dtype
    target = present.astype(kind)
    spread = np.asarray(spread, dtype=kind)
    rate = present.mean(axis=1)
    solution = np.zeros((sets, dim + 1), dtype=kind)
    solution[:, dim] = np.log(rate / (1 - rate))
    logits = _apply(features, solution)
    loss = _loss(logits, target, solution, penalty)
    for _ in range(_NEWTON_STEPS):
        likely = 1 / (1 + np.exp(-logits))
        gradient = _pull(features, likely - target)
        gradient[:, :dim] += penalty * solution[:, :dim]
        size = np.abs(gradient).max(axis=1)
        if (size <= _TOLERANCE).all():
            break
        curvature = np.maximum(likely * (1 - likely), np.finfo(kind).tiny)
        step = _solve_step(features, curvature, penalty, gradient, spread, size)
        solution, logits, loss = _walk(features, target, penalty, solution, logits, loss, gradient, step)
    return solution[:, :dim].astype(float), solution[:, dim].astype(float)


def _check(features: np.ndarray, present: np.ndarray) -> tuple[int, int, int]:
    if features.ndim != 3 or present.shape != features.shape[:2]:
        raise StudyError(
            f"features {features.shape} and labels {present.shape} must be (sets, images, dim) and (sets, images)."
        )
    if not (present.any(axis=1) & ~present.all(axis=1)).all():
        raise StudyError("a set of labels has one class only: draw at least one positive and one negative.")
    return features.shape


def _apply(features: np.ndarray, solution: np.ndarray) -> np.ndarray:
    return (features @ solution[:, :-1, None])[..., 0] + solution[:, -1:]


def _pull(features: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """The transpose of `_apply`: ``(sets, dim + 1)``."""
    return np.concatenate([(residual[:, None, :] @ features)[:, 0], residual.sum(axis=1, keepdims=True)], axis=1)


def _loss(logits: np.ndarray, target: np.ndarray, solution: np.ndarray, penalty: float) -> np.ndarray:
    fit = (np.logaddexp(0, logits) - target * logits).sum(axis=1, dtype=float)
    return fit + penalty / 2 * (solution[:, :-1].astype(float) ** 2).sum(axis=1)


def _solve_step(features, curvature, penalty, gradient, spread, size) -> np.ndarray:
    """The Newton step of every set, to a precision that rises as the gradient falls (Eisenstat and Walker 1996)."""
    weight = curvature.sum(axis=1, keepdims=True)
    diagonal = np.concatenate([weight * spread + penalty, weight + 1e-6], axis=1)
    step, residual = np.zeros_like(gradient), -gradient
    scaled = residual / diagonal
    direction = scaled
    energy = (residual * scaled).sum(axis=1, keepdims=True)
    # Sets that have ended are given no more precision: a direction of zero leaves them where they are.
    goal = np.minimum(0.1, np.sqrt(size / size.max().clip(min=1))) * size
    goal = np.maximum(goal, 0.3 * _TOLERANCE)
    for _ in range(_MOST_PRODUCTS):
        active = (np.abs(residual).max(axis=1) > goal)[:, None]
        if not active.any():
            break
        product = _pull(features, curvature * _apply(features, direction))
        product[:, :-1] += penalty * direction[:, :-1]
        length = energy / np.maximum((direction * product).sum(axis=1, keepdims=True), np.finfo(energy.dtype).tiny)
        length = np.where(active, length, 0).astype(energy.dtype)
        step = step + length * direction
        residual = residual - length * product
        scaled = residual / diagonal
        new_energy = (residual * scaled).sum(axis=1, keepdims=True)
        direction = np.where(
            active, scaled + new_energy / np.maximum(energy, np.finfo(energy.dtype).tiny) * direction, direction
        )
        energy = np.where(active, new_energy, energy)
    return step


def _walk(features, target, penalty, solution, logits, loss, gradient, step):
    """Take the step, halved in those sets where a whole one would not lower the loss."""
    change = _apply(features, step)
    slope = (gradient * step).sum(axis=1, dtype=float)
    share = np.ones(len(solution))
    noise = 64 * np.finfo(features.dtype).eps * np.abs(loss)
    for _ in range(_HALVINGS):
        kind = features.dtype
        tried = solution + share.astype(kind)[:, None] * step
        tried_logits = logits + share.astype(kind)[:, None] * change
        tried_loss = _loss(tried_logits, target, tried, penalty)
        worse = tried_loss > loss + 1e-4 * share * slope + noise
        if not worse.any():
            break
        share = np.where(worse, share / 2, share)
    return tried, tried_logits, tried_loss


def fit_dropout_sets(
    features: np.ndarray, present: np.ndarray, learning_rate: float, recipe: DropoutRecipe, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Heads of dropout and a linear projection (A3), one for each set, by stochastic gradients.

    All sets see the same places of their images and the same features left out, drawn from the seed and the number of
    images: a set's head does not depend on what it is fitted together with. Takes and returns what `fit_logistic_sets`
    does, features in float32 and about standardised; the learning rate is that of AdamW at the first step.
    """
    sets, images, dim = _check(features, present)
    values, target = torch.from_numpy(features).float(), torch.from_numpy(present).float()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + images)
    rate = target.mean(dim=1)
    weight = torch.zeros(sets, dim, requires_grad=True)
    bias = torch.log(rate / (1 - rate)).requires_grad_()
    # The sum over sets leaves each set the gradient of its own mean loss.
    groups = [{"params": [weight], "weight_decay": recipe.weight_decay}, {"params": [bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    size = min(recipe.batch_size, images)
    for _ in range(recipe.steps):
        chosen = torch.randperm(images, generator=generator)[:size]
        kept = torch.rand(size, dim, generator=generator) >= recipe.dropout
        seen = values[:, chosen] * (kept / (1 - recipe.dropout))
        logits = (seen @ weight.unsqueeze(-1)).squeeze(-1) + bias.unsqueeze(-1)
        loss = functional.binary_cross_entropy_with_logits(logits, target[:, chosen], reduction="sum") / size
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return weight.detach().double().numpy(), bias.detach().double().numpy()
