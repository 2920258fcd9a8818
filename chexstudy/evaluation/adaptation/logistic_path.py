"""Linear probe: how much of each finding can be read off frozen features by one straight cut.

One logistic regression a finding, on features standardised by the training split, L2-penalised, fitted by L-BFGS along
a path of falling penalties, each start being the last solution. The penalty is chosen on the validation split alone, by
the finding's AUROC there; a finding that the split cannot judge takes the penalty with the best macro AUROC.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.statistics.ranking import auroc, known_labels, macro_mean

# Inverse strength of the penalty (scikit-learn's C), from strong to weak, for features of unit variance.
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe."""

    mean: np.ndarray  # ``(dim,)`` of the training features
    spread: np.ndarray  # ``(dim,)``, their standard deviation, 1 where a feature is constant
    coefficients: np.ndarray  # ``(findings, dim)``; NaN for a finding with one class in the training split
    intercepts: np.ndarray  # ``(findings,)``
    inverse_penalties: np.ndarray  # ``(findings,)``, what was chosen on validation

    def score(self, features: np.ndarray) -> np.ndarray:
        """Log-odds ``(images, findings)`` for features ``(images, dim)``; a column of NaN where nothing was fitted."""
        return (np.asarray(features, dtype=float) - self.mean) / self.spread @ self.coefficients.T + self.intercepts


def fit_linear_probe(
    train_features: np.ndarray, train_labels: np.ndarray, validation_features: np.ndarray, validation_labels: np.ndarray
) -> LinearProbe:
    """Fit one logistic regression a finding and choose its penalty on validation.

    Of features ``(images, dim)`` of a frozen encoder and labels ``(images, findings)``, 1, 0, -1 or NaN; the last two
    are left out, finding by finding.
    """
    train_features = np.asarray(train_features, dtype=float)
    validation_features = np.asarray(validation_features, dtype=float)
    for name, features in (("training", train_features), ("validation", validation_features)):
        if not np.isfinite(features).all():
            raise StudyError(f"the {name} features hold values that are not finite: embed this split again.")
    mean, spread = train_features.mean(axis=0), train_features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    train, validation = (train_features - mean) / spread, (validation_features - mean) / spread
    known = known_labels(train_labels)
    findings = train_labels.shape[1]
    fitted = np.full((len(INVERSE_PENALTIES), findings, train.shape[1] + 1), np.nan)
    for finding in progress(range(findings), findings, "fitting the linear probe"):
        rows = known[:, finding]
        present = train_labels[rows, finding] == 1
        if present.any() and not present.all():
            fitted[:, finding] = _fit_path(train[rows], present)
    scores = validation @ fitted[..., :-1].transpose(0, 2, 1) + fitted[:, None, :, -1]
    judged = np.stack([auroc(validation_labels, one) for one in scores])
    best = int(np.argmax(np.nan_to_num(macro_mean(judged), nan=-1.0)))
    cannot_judge = np.isnan(judged).all(axis=0)
    chosen = np.where(cannot_judge, best, np.argmax(np.where(np.isnan(judged), -1.0, judged), axis=0))
    solution = fitted[chosen, np.arange(findings)]
    return LinearProbe(mean, spread, solution[:, :-1], solution[:, -1], np.array(INVERSE_PENALTIES)[chosen])


def _fit_path(features: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Coefficients and intercept ``(penalties, dim + 1)`` along rising inverse penalties."""
    regression = LogisticRegression(warm_start=True, max_iter=1000)
    solutions = []
    # The products are small: several BLAS threads spend their time waiting for one another.
    with warnings.catch_warnings(), threadpool_limits(1):
        # A weak penalty on a separable finding has its optimum far away; the ranking settles long before.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for inverse_penalty in INVERSE_PENALTIES:
            regression.set_params(C=inverse_penalty).fit(features, present)
            solutions.append(np.append(regression.coef_[0], regression.intercept_))
    return np.stack(solutions)
