"""What a learning curve forecasts, and how many labels a target AUROC needs: with intervals, or why it cannot be told.

Everything is read off the posterior of `chexstudy.label_planning.posterior`. A number of labels needed is a quantile
over its draws, some of which may never reach the target: an interval may have no upper end, and then the answer is not
a number but a state. Intervals are of this pool of labelled cases and this test set. With the test set's counts given,
its own uncertainty is added: the forecast is then of the population.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.label_planning.families import CHANCE, PERFECT, labels_for
from chexstudy.label_planning.fitting import fit_curve
from chexstudy.label_planning.observations import (
    FEWEST_POINTS,
    LearningCurve,
    estimate_noise,
    list_curves,
    name_curves,
    weigh_points,
)
from chexstudy.label_planning.posterior import Posterior, infer_curves
from chexstudy.statistics.bootstrap import CONFIDENCE

REACHED, NEEDED, UNREACHABLE, TOO_FEW = "reached", "needed", "unreachable", "not evaluable"
TOLD, NOT_YET = "told", "cannot be told yet"
# A plateau known less well than this is no answer: it is the whole difference between poor and good encoders.
WIDEST = 0.1
# Beyond this many times the labels at hand a power law is a guess, however narrow its interval.
FARTHEST = 100.0
# Numbers of labels beyond this are no plan: they are called no end.
_LARGEST_SAID = 1e7


def infer_by_encoder(curves: Sequence[LearningCurve], seed: int, pool: bool = True) -> list[Posterior]:
    """Posteriors in the order of the curves; those of one encoder, data set and unit learn from each other."""
    posteriors: dict[int, Posterior] = {}
    groups = name_curves(curves).groupby(["data_set", "unit", "encoder"]).indices.values()
    for number, members in enumerate(groups):
        found = infer_curves([curves[place] for place in members], np.random.default_rng([seed, number]), pool)
        posteriors.update(zip(members, found, strict=True))
    return [posteriors[place] for place in range(len(curves))]


def _ends(values: np.ndarray) -> tuple[float, float, float]:
    """Median and interval; infinite draws are larger than any number."""
    tail = (1 - CONFIDENCE) / 2
    low, middle, high = np.quantile(values, [tail, 0.5, 1 - tail], method="inverted_cdf")
    return float(middle), float(low), float(high)


def deviate_by_test_set(auroc: float, positives: int, negatives: int) -> float:
    """Standard deviation of an AUROC over test sets of such a size (Hanley & McNeil 1982, Radiology 143)."""
    if positives < 1 or negatives < 1:
        raise StudyError("a test set needs cases with and without the finding: give the counts of both.")
    both_positive, both_negative = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (positives - 1) * (both_positive - auroc**2)
    variance += (negatives - 1) * (both_negative - auroc**2)
    return float(np.sqrt(max(variance, 0.0) / (positives * negatives)))


def measure_slope(curve: LearningCurve, most: float) -> float:
    """How much AUROC a tenfold of labels adds up to ``most``; NaN with fewer than two numbers of labels there."""
    early = curve.until(most)
    if len(early.labels) < 2:
        return float("nan")
    weights = weigh_points(early, estimate_noise([curve]))
    tens = np.log10(early.labels)
    centred = tens - np.average(tens, weights=weights)
    return float(np.sum(weights * centred * early.means) / np.sum(weights * centred**2))


def forecast_plateau(
    curves: Sequence[LearningCurve], at_most_n: Sequence[float], seed: int = 0, pool: bool = True
) -> pd.DataFrame:
    """Forecast the AUROC at the largest number of labels, and the plateau, from the first labels alone.

    The truth at the largest n is the mean over the draws there; its noise is in the forecast's interval. A forecast
    from all labels has no truth to be compared with.

    Gives one row a curve and each of ``at_most_n``: what the curve is of (``encoder, finding, data_set, unit``); what
    was used (``labels``, the largest n up to it, ``points`` and ``last``, the AUROC at ``labels``); ``target_n, truth,
    forecast, forecast_low, forecast_high, error`` (forecast minus truth) and ``covered``; ``plateau, plateau_low,
    plateau_high, state``, told if that interval is narrow enough to be an answer; ``fit_forecast`` of least squares;
    ``early_slope``, AUROC a tenfold of labels. With fewer than three numbers of labels the state is ``not evaluable``.
    """
    if not at_most_n or min(at_most_n) < 1:
        raise StudyError("a forecast starts from 1 label or more: give at_most_n, for example 50, 100, 200.")
    tables = []
    for turn, most in enumerate(sorted(set(at_most_n))):
        early = [curve.until(most) for curve in curves]
        usable = [place for place, curve in enumerate(early) if len(curve.labels) >= FEWEST_POINTS]
        posteriors = infer_by_encoder([early[place] for place in usable], seed, pool) if usable else []
        found = dict(zip(usable, posteriors, strict=True))
        noise = estimate_noise([early[place] for place in usable]) if usable else None
        generator = np.random.default_rng([seed, turn, 1])
        rows = []
        for place, curve in enumerate(curves):
            points = len(early[place].labels)
            row = {"at_most_n": float(most), "labels": early[place].most if points else 0.0, "points": points}
            row |= {"target_n": curve.most, "early_slope": measure_slope(curve, most), "state": TOO_FEW}
            rows.append(row | (_forecast_curve(curve, found[place], noise, generator) if place in found else {}))
        tables.append(pd.concat([name_curves(curves), pd.DataFrame(rows, columns=_FORECAST_COLUMNS)], axis=1))
    return pd.concat(tables, ignore_index=True)


_FORECAST_COLUMNS = [
    *("at_most_n", "labels", "points", "target_n", "truth", "forecast", "forecast_low", "forecast_high", "error"),
    *("covered", "plateau", "plateau_low", "plateau_high", "state", "fit_forecast", "last", "early_slope"),
]


def _forecast_curve(curve, posterior, noise, generator) -> dict:
    used = posterior.curve
    plateau, low, high = _ends(posterior.plateaus)
    row = {"plateau": plateau, "plateau_low": low, "plateau_high": high}
    row |= {"state": TOLD if high - low <= WIDEST else NOT_YET, "last": float(used.means[-1])}
    row["fit_forecast"] = float(fit_curve(used, noise).predict([curve.most])[0])
    row["truth"] = float(curve.means[-1])
    middle, low, high = _ends(posterior.foresee(curve.most, float(curve.draws[-1]), generator))
    row |= {"forecast": middle, "forecast_low": low, "forecast_high": high}
    if used.most < curve.most:
        row |= {"error": middle - row["truth"], "covered": bool(low <= row["truth"] <= high)}
    return row


def plan_labels(
    curves: Sequence[LearningCurve],
    target: float,
    seed: int = 0,
    pool: bool = True,
    cost: float | None = None,
    prevalence: Mapping[str, float] | None = None,
    test_counts: Mapping[str, tuple[int, int]] | None = None,
) -> pd.DataFrame:
    """How many labels more a target AUROC needs, by encoder and finding.

    The states: ``reached`` (the whole interval of what is needed lies within what we have), ``needed`` (an interval
    with two ends), ``unreachable`` (the whole interval of the plateau lies under the target, or that of what is needed
    beyond `FARTHEST` times what we have), ``cannot be told yet`` (the interval has no upper end, or one beyond). What
    we have is the largest n of each curve. Give all findings, also for a plan of one: they learn from each other.

    Args:
        cost: of labelling one case.
        prevalence: share of positives among cases to be labelled, by finding; that of the curve's draws without it.
        test_counts: finding -> positives and negatives of the test set: plan for the population, not for this test set.

    Gives one row a curve: what it is of (``encoder, finding, data_set, unit``), ``target, state, have, auroc`` (of the
    curve at what we have); ``plateau``, ``need`` and ``more`` (in the unit of the curve, whole numbers, infinite where
    there is no end), ``cases`` to be labelled, ``positives`` among them and ``cost``, each with ``_low`` and ``_high``;
    and ``answer``, a sentence.
    """
    if not CHANCE < target < PERFECT:
        raise StudyError(
            f"a target AUROC of {target:g} cannot be planned for: give one above {CHANCE}, which chance reaches, "
            f"and below {PERFECT:g}."
        )
    if cost is not None and not (np.isfinite(cost) and cost >= 0):
        raise StudyError(f"a label cannot cost {cost}: give a number of 0 or more.")
    rows = []
    generator = np.random.default_rng([seed, 2])
    for curve, posterior in zip(curves, infer_by_encoder(curves, seed, pool), strict=True):
        share = (prevalence or {}).get(curve.finding, curve.prevalence)
        if not (np.isnan(share) or 0 < share < 1):
            raise StudyError(f"the prevalence of {curve.finding!r} cannot be {share}: give a share between 0 and 1.")
        shift = 0.0  # what the test set may have added to the whole curve
        if test_counts and curve.finding in test_counts:
            likely = float(np.median(posterior.predict(curve.most)))
            deviation = deviate_by_test_set(likely, *test_counts[curve.finding])
            shift = deviation * generator.standard_normal(len(posterior.plateaus))
        rows.append(plan_curve(posterior, target, cost, share, shift))
    return pd.concat([name_curves(curves), pd.DataFrame(rows)], axis=1)


_THREE = ("", "_low", "_high")
_QUANTITIES = ("plateau", "need", "more", "cases", "positives", "cost")


def plan_curve(
    posterior: Posterior,
    target: float,
    cost: float | None = None,
    share: float = float("nan"),
    shift: np.ndarray | float = 0.0,
) -> dict:
    """The row of `plan_labels` of one curve, whose posterior serves for any number of targets.

    ``share`` is that of positives among cases, NaN if it is not known; ``shift``, a number or ``(draws,)``, is added to
    the whole curve.
    """
    curve = posterior.curve
    shifted = posterior.parameters.copy()
    shifted[:, 0] = np.clip(shifted[:, 0] + shift, 0, PERFECT)
    plateau, need = _ends(shifted[:, 0]), _ends(np.ceil(labels_for(target, shifted)))
    more = tuple(max(0.0, one - curve.most) for one in need)
    if need[2] <= curve.most:
        state = REACHED
    elif plateau[2] < target or need[1] > FARTHEST * curve.most:
        state = UNREACHABLE
    elif need[2] <= FARTHEST * curve.most:
        state = NEEDED
    else:
        state = NOT_YET
    row = {"target": target, "state": state, "have": curve.most}
    row["auroc"] = float(np.median(posterior.predict(curve.most)))
    in_cases = curve.unit == "cases"
    # Positives are found by reading cases; how many, nobody knows without their share.
    cases = tuple(np.ceil(one / (1.0 if in_cases else share)) for one in more)
    positives = tuple(one * share for one in more) if in_cases else more
    costs = (np.nan,) * 3 if cost is None else tuple(one * cost if cost else 0.0 for one in cases)
    for name, values in zip(_QUANTITIES, (plateau, need, more, cases, positives, costs), strict=True):
        row |= {f"{name}{end}": float(value) for end, value in zip(_THREE, values, strict=True)}
    return row | {"answer": _answer(curve, row)}


def _answer(curve: LearningCurve, row: Mapping) -> str:
    what = "" if curve.unit == "cases" else " positives"
    labels = what or " labels"
    target, have = f"{row['target']:g}", f"{row['have']:,.0f}{labels}"
    if row["state"] == REACHED:
        if row["need_high"] < curve.labels[0]:
            return f"reached already: the fewest drawn, {curve.labels[0]:,.0f}{labels}, are enough for {target}"
        return f"reached already: {target} needs {row['need_high']:,.0f}{labels} at most, and there are {have}"
    if row["state"] == UNREACHABLE:
        if row["plateau_high"] < row["target"]:
            plateau = f"{row['plateau']:.3f} (95 %: {row['plateau_low']:.3f}-{row['plateau_high']:.3f})"
            return f"unreachable: the plateau lies at {plateau}, below {target}"
        return f"unreachable: {target} needs more than {FARTHEST:g} times the {have} there are (95 %)"
    if row["state"] == NEEDED:
        if row["more"] == 0:
            return f"probably reached with {have}; up to {row['more_high']:,.0f} more{what} may be needed (95 %)"
        text = f"label {row['more']:,.0f} more{what} (95 %: {row['more_low']:,.0f}-{row['more_high']:,.0f})"
        if what and np.isfinite(row["cases"]):
            text += f", which is reading {row['cases']:,.0f} cases ({row['cases_low']:,.0f}-{row['cases_high']:,.0f})"
        if np.isfinite(row["cost"]):
            text += f", at a cost of {row['cost']:,.0f} ({row['cost_low']:,.0f}-{row['cost_high']:,.0f})"
        return text
    least = f"{row['more_low']:,.0f} more{what} may do"
    if not row["more_low"] <= _LARGEST_SAID:
        least = "no number may do"
    elif row["more_low"] == 0:
        least = f"the {have} there are may do"
    most = "no number may" if not row["more_high"] <= _LARGEST_SAID else f"{row['more_high']:,.0f} more may not"
    return (
        f"cannot be told yet: {least}, and {most} (the plateau lies between {row['plateau_low']:.3f} and "
        f"{row['plateau_high']:.3f}, 95 %); label as many again as there are and ask anew"
    )


def plan_table(
    table: pd.DataFrame,
    target: float,
    finding: str | None = None,
    encoder: str | None = None,
    at_most_n: float | None = None,
    pool: bool = True,
    cost: float | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """`plan_labels` of a table of curves, of their parts up to ``at_most_n`` labels.

    A finding asked for still learns from the others.
    """
    curves = list_curves(table, encoder=encoder)
    if finding is not None:
        list_curves(table, finding, encoder)
    if at_most_n is not None:
        curves = [curve.until(at_most_n) for curve in curves]
    plans = plan_labels(curves, target, seed, pool, cost)
    return plans if finding is None else plans[plans.finding == finding].reset_index(drop=True)


def describe_plans(plans: pd.DataFrame) -> str:
    """One sentence a curve, and a table, as text."""
    named = plans if plans.encoder.nunique() > 1 else plans.drop(columns="encoder")
    shown = named[[name for name in ("finding", "encoder", "state") if name in named]].assign(
        have=plans.have.map("{:,.0f}".format), AUROC=plans.auroc.map("{:.3f}".format)
    )
    for name, form in (("plateau", "{:.3f}"), ("more", "{:,.0f}"), ("cost", "{:,.0f}")):
        if plans[f"{name}_low"].notna().any():
            shown[f"{name} (95 %)"] = _join(plans, name, form)
    return "\n".join([*_tell_answers(named), "", shown.to_string(index=False)])


def _tell_answers(plans: pd.DataFrame) -> list[str]:
    names = plans[["finding", *plans.columns.intersection(["encoder"])]].agg(", ".join, axis=1)
    return [f"{name}: {answer}." for name, answer in zip(names, plans.answer, strict=True)]


def _join(plans: pd.DataFrame, name: str, form: str) -> list[str]:
    def show(value: float) -> str:
        return "-" if np.isnan(value) else "no end" if value > _LARGEST_SAID else form.format(value)

    columns = (plans[f"{name}{end}"] for end in _THREE)
    return [f"{show(one)} ({show(low)} to {show(high)})" for one, low, high in zip(*columns, strict=True)]


def state_plans(plans: pd.DataFrame | None) -> list[str]:
    """The answers of `plan_labels` for the first encoder, in sentences; None gives none."""
    return [] if plans is None else _tell_answers(plans[plans.encoder == plans.encoder.iloc[0]])
