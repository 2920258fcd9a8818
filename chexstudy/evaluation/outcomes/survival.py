"""Time-to-event outcomes: a penalised Cox model on frozen features, how well it ranks and whether its risks are right.

Fitting, Kaplan-Meier and the log-rank test are scikit-survival's (the extra ``survival``). Concordance, time-dependent
AUROC and the survival at a horizon are computed here, because their intervals need them for a thousand weighted
resamples of patients; without weights they equal that library's.

Censoring is corrected by inverse probability weights, whose Kaplan-Meier is that of the training split. It is taken as
known: the resamples draw test patients alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import CONFIDENCE
from chexstudy.statistics.ranking import rank_metrics

# Weight of half the squared coefficients beside the summed log partial likelihood, for features of unit variance.
PENALTIES = (1e4, 3e3, 1e3, 3e2, 1e2, 3e1, 1e1, 1.0)
# A ridge but for a thousandth: the library's path is defined above 0 only.
_RIDGE = 1e-3
GROUP_NAMES = ("low", "medium", "high")

# Keeps the model without other penalty defined where two of its few covariates say the same.
_LEAST_PENALTY = 1e-4
# Comparable pairs held at once.
_PAIRS = 4_000_000


@dataclass(frozen=True)
class RiskModel:
    """A fitted Cox model."""

    mean: np.ndarray  # ``(dim,)`` of the training features
    spread: np.ndarray  # ``(dim,)``, their standard deviation, 1 where a feature is constant
    coefficients: np.ndarray  # ``(dim,)``, log hazard ratios of one standard deviation
    penalty: float  # what was chosen on validation; 0 where nothing is penalised
    validation: pd.DataFrame  # ``penalty`` and ``c_index`` on validation
    baseline_years: np.ndarray  # ``(times,)``, rising
    baseline_hazard: np.ndarray  # ``(times,)``, Breslow's cumulative hazard of a case with mean features

    def score(self, features: np.ndarray) -> np.ndarray:
        """Log hazard ratios to a case with mean features, ``(cases,)`` of ``(cases, dim)``."""
        return (np.asarray(features, dtype=float) - self.mean) / self.spread @ self.coefficients

    def hazard_at(self, years: Sequence[float]) -> np.ndarray:
        """Cumulative hazard of a case with mean features by these times; 0 before the first event."""
        return np.r_[0.0, self.baseline_hazard][np.searchsorted(self.baseline_years, years, side="right")]


def fit_risk_model(
    features: np.ndarray,
    years: np.ndarray,
    events: np.ndarray,
    validation_features: np.ndarray,
    validation_years: np.ndarray,
    validation_events: np.ndarray,
    unpenalised: int = 0,
) -> RiskModel:
    """Fit a Cox proportional hazards model with a ridge penalty whose strength is chosen on validation.

    Cases are taken as independent: several images of a patient change the estimate little, and intervals come from
    resampling patients.

    Of the penalties, the strongest with the best concordance on validation wins; those too weak to have a solution are
    left out. The first so many features are ``unpenalised``, such as age and sex beside an image.

    Args:
        features: ``(cases, dim)`` of the training split; each column is standardised.
        years: ``(cases,)``, time of the event or of censoring, above 0.
        events: bool ``(cases,)``, whether the event happened; somebody has it in both splits.
    """
    from sksurv.linear_model import CoxnetSurvivalAnalysis, CoxPHSurvivalAnalysis
    from sksurv.linear_model.coxph import BreslowEstimator
    from sksurv.util import Surv

    features, validation_features = np.asarray(features, dtype=float), np.asarray(validation_features, dtype=float)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    train, validation = (features - mean) / spread, (validation_features - mean) / spread
    observed = Surv.from_arrays(events, years)
    if unpenalised >= features.shape[1]:
        path = np.zeros(1)

        def fit_path(count: int) -> np.ndarray:
            return CoxPHSurvivalAnalysis(alpha=_LEAST_PENALTY, ties="efron").fit(train, observed).coef_[:, None]

    else:
        path = np.array(PENALTIES)
        factors = np.r_[np.zeros(unpenalised), np.ones(features.shape[1] - unpenalised)]
        # The library divides the likelihood by the cases and makes the factors sum to their number.
        strength = path / len(years) * factors.mean()

        def fit_path(count: int) -> np.ndarray:
            net = CoxnetSurvivalAnalysis(l1_ratio=_RIDGE, alphas=strength[:count], penalty_factor=factors)
            return net.fit(train, observed).coef_

    fitted = _fit_as_far_as_possible(fit_path, len(path), features.shape[1], events)
    path = path[: fitted.shape[1]]
    judged = concordance(validation_years, validation_events, validation @ fitted)
    chosen = int(np.argmax(judged))
    baseline = BreslowEstimator().fit(train @ fitted[:, chosen], events, years).cum_baseline_hazard_
    table = pd.DataFrame({"penalty": path, "c_index": judged})
    return RiskModel(mean, spread, fitted[:, chosen], float(path[chosen]), table, baseline.x, baseline.y)


def _fit_as_far_as_possible(
    fit_path: Callable[[int], np.ndarray], longest: int, count: int, events: np.ndarray
) -> np.ndarray:
    """Coefficients along falling penalties to the weakest with a solution: few events and many features have none."""
    problem = ""
    for length in range(longest, 0, -1):
        try:
            return fit_path(length)
        except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            problem = str(error).splitlines()[0]
    raise StudyError(
        f"the Cox model of {count} features and {events.sum()} events has no solution ({problem}): penalise more, or "
        "take fewer features."
    )


def weigh_events(
    train_years: np.ndarray, train_events: np.ndarray, years: np.ndarray, events: np.ndarray
) -> np.ndarray:
    """One over the probability, in training, of being observed beyond a time; 0 for the censored ``(cases,)``."""
    from sksurv.nonparametric import kaplan_meier_estimator

    if train_events.all():
        times, observed = np.unique(train_years), np.ones(len(np.unique(train_years)))
    else:
        times, observed = kaplan_meier_estimator(train_events, train_years, reverse=True)
    probability = np.r_[1.0, observed][np.searchsorted(times, years, side="right")]
    return np.divide(1.0, probability, out=np.zeros(len(probability)), where=events & (probability > 0))


def concordance(
    years: np.ndarray, events: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """How often, of two cases, the one whose event came first has the higher score; equal scores count one half.

    A case with the event is compared with all that were observed longer, and with those censored at the same time
    (Harrell's C-index).

    Scores ``(cases, models)``, higher means earlier, give ``(models,)``; with weights ``(resamples, cases)``, how often
    each case counts, ``(resamples, models)``. NaN where no two cases can be compared.
    """
    # Sums of whole and half numbers up to 2**23 are exact in float32.
    by_case = np.ones((1, len(years)), np.float32) if weights is None else np.asarray(weights, dtype=np.float32)
    earlier = np.flatnonzero(events)
    won = np.zeros((len(by_case), scores.shape[1]))
    pairs = np.zeros(len(by_case))
    width = max(1, _PAIRS // max(1, len(years)))
    for start in range(0, len(earlier), width):
        rows = earlier[start : start + width]
        longer = years > years[rows, None]
        longer |= (years == years[rows, None]) & ~events
        share = by_case[:, rows].astype(float)
        pairs += (share * (by_case @ longer.T.astype(np.float32))).sum(axis=1)
        for model, score in enumerate(scores.T):
            wins = longer * ((score < score[rows, None]) + np.float32(0.5) * (score == score[rows, None]))
            won[:, model] += (share * (by_case @ wins.T.astype(np.float32))).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(pairs[:, None] > 0, won / pairs[:, None], np.nan)
    return values[0] if weights is None else values


def status_at(years: np.ndarray, events: np.ndarray, horizon: float) -> np.ndarray:
    """Whether the event had happened by a time: 1, 0, or NaN where observation ended before, ``(cases,)``."""
    return np.where(years > horizon, 0.0, np.where(events, 1.0, np.nan))


def dynamic_auroc(
    years: np.ndarray,
    events: np.ndarray,
    scores: np.ndarray,
    horizon: float,
    of_events: np.ndarray,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Time-dependent AUROC: who had the event by the horizon against who was observed beyond it without.

    The cumulative/dynamic one, cases weighted by the inverse probability of being observed, ``of_events`` of
    `weigh_events` (Uno et al. 2007, JASA 102; Hung and Chiang 2010, Canadian Journal of Statistics 38). Other arguments
    and shapes as in `concordance`.
    """
    status = np.broadcast_to(status_at(years, events, horizon)[:, None], scores.shape)
    importance = np.where(status[:, 0] == 1, of_events, 1.0)
    by_case = importance[None] if weights is None else np.asarray(weights) * importance
    area = rank_metrics(status, scores, by_case)[0]
    return area[0] if weights is None else area


def survival_at(
    years: np.ndarray, events: np.ndarray, horizon: float, weights: np.ndarray | None = None
) -> np.ndarray | float:
    """Kaplan-Meier at a horizon: a number, or ``(resamples,)`` of ``weights`` ``(resamples, cases)``."""
    order = np.argsort(years, kind="stable")
    sorted_years, sorted_events = np.asarray(years)[order], np.asarray(events)[order]
    by_case = np.ones((1, len(order))) if weights is None else np.asarray(weights)[:, order].astype(float)
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_years) > 0])
    starts = starts[sorted_years[starts] <= horizon]
    survival = np.ones(len(by_case))
    if len(starts):
        ends = int(np.searchsorted(sorted_years, horizon, side="right"))
        before = np.concatenate([np.zeros((len(by_case), 1)), np.cumsum(by_case, axis=1)], axis=1)
        at_risk = before[:, -1:] - before[:, starts]
        died = np.add.reduceat(by_case[:, :ends] * sorted_events[:ends], starts, axis=1)
        survival = np.prod(1.0 - np.divide(died, at_risk, out=np.zeros_like(died), where=at_risk > 0), axis=1)
    return float(survival[0]) if weights is None else survival


def first_images(patient_ids: Sequence[str], years: np.ndarray) -> np.ndarray:
    """One case a patient, the earliest: that with the longest time to the patient's one end; positions, rising."""
    table = pd.DataFrame({"patient": np.asarray(patient_ids, dtype=str), "years": np.asarray(years, dtype=float)})
    earliest = table.sort_values("years", ascending=False, kind="stable").drop_duplicates("patient").index
    return np.sort(earliest.to_numpy())


def group_risk(training_scores: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Low (0), medium (1) or high (2) risk, cut at the tertiles of the training scores."""
    return np.searchsorted(np.quantile(training_scores, [1 / 3, 2 / 3]), scores, side="right")


def estimate_survival(years: np.ndarray, events: np.ndarray) -> pd.DataFrame:
    """Kaplan-Meier with pointwise 95 % intervals (log-log) from time 0: ``years, survival, ci_low, ci_high, at_risk``.

    ``at_risk`` counts the cases observed up to that time.
    """
    from sksurv.nonparametric import kaplan_meier_estimator

    times, survival, ends = kaplan_meier_estimator(events, years, conf_level=CONFIDENCE, conf_type="log-log")
    times = np.r_[0.0, times]
    return pd.DataFrame(
        {
            "years": times,
            "survival": np.r_[1.0, survival],
            "ci_low": np.r_[1.0, ends[0]],
            "ci_high": np.r_[1.0, ends[1]],
            "at_risk": len(years) - np.searchsorted(np.sort(years), times, side="left"),
        }
    )


def compare_groups(years: np.ndarray, events: np.ndarray, groups: np.ndarray) -> float:
    """P-value of the log-rank test that the groups survive alike; NaN where there is one group only, or no event."""
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    if len(np.unique(groups)) < 2 or not events.any():
        return float("nan")
    return float(compare_survival(Surv.from_arrays(events, years), groups)[1])
