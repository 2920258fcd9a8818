"""Which method and budget for a cohort, from what was measured on the bench.

The conditions are those at which the start of training is the same. Between two of them lie steps: along each axis
(pool over budget, budget, share of wrong pairs, share of copies) from one measured level to the next is one step, by
the logarithm of pairs. A cohort's share of wrong pairs is the filter's estimate, so it is held against what the filter
told of the measured pools. A gain at the cohort is the mean over all measured pools, weighted by how near their
condition is: exp(-d^2) at d steps, nothing from two steps on (Nadaraya 1964, Theory Probab. Appl. 9: 141). The nearest
condition alone would be simpler, but most have three to five pools, too few to show a gain of 0.05; and the conditions,
which are no full grid, do not say by which law gains grow between them. What differs between conditions widens the
interval, as everything does that differs between pools.

Of the methods that anybody can use and that were measured at the nearest condition, that of the largest gain in macro
zero-shot AUROC is advised which is above random after Holm's correction over them; if none is, random, because nothing
better was shown. Where the filter abstains, because its scorer cannot tell anything, only what was measured with such
a scorer counts, and without that random is advised.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from chexstudy.curation.choice import count_budget
from chexstudy.curation.online.mismatch_filter import FilterVerdict
from chexstudy.errors import StudyError
from chexstudy.experiments.regimes.cohort_measures import CohortMeasures
from chexstudy.experiments.regimes.contrasts import CELL, MAIN_METRIC, pair_pools
from chexstudy.experiments.regimes.design import BASELINE, SCORERS, STARTS, read_design
from chexstudy.experiments.regimes.evidence import read_evidence
from chexstudy.statistics.bootstrap import CONFIDENCE
from chexstudy.statistics.multiple_testing import correct_by_holm

# What else is looked at of the advised method, and what that is called; `chexstudy.experiments.regimes.training.judge`.
EFFECTS = {
    "zero_shot_auroc_tail": "zero-shot AUROC of rare findings",
    "probe_auroc_macro": "AUROC of a linear probe",
    "specificity_healthy": "specificity on healthy patients",
    "calibration_error": "calibration error",
    "recall_at_10_image_to_text": "recall at 10, image to report",
    "recall_at_10_text_to_image": "recall at 10, report to image",
    "kept_healthy": "share of the chosen without any finding",
}
# Two steps away a condition counts nothing.
REACH = 2.0
# Of budgets whose AUROC is no more apart, which the bench does not resolve, the smallest is advised.
_RESOLUTION = 0.01
SIGNIFICANCE = 1 - CONFIDENCE
UNALIGNED = SCORERS[-1]


@dataclass(frozen=True)
class Advice:
    """How to choose from a cohort, and what that rests on."""

    method: str  # of the design, see `chexstudy.experiments.regimes.design`
    how: Mapping[str, str]  # as `chexstudy curate` calls it: ``method`` and its options
    budget: int  # pairs
    start: str  # what training begins with
    measures: CohortMeasures
    # One row a method that was compared, largest gain first: ``method, gain, ci_low, ci_high, p, p_holm, value`` (its
    # AUROC), ``pools`` and ``conditions`` (how many it rests on).
    gains: pd.DataFrame
    effects: pd.DataFrame  # the same of the advised method, one row a metric of `EFFECTS`; empty for random
    charged: pd.DataFrame  # one row: against random that trains for the scoring's operations as well; may be empty
    conditions: pd.DataFrame  # the measured conditions that count: the cell's columns and ``weight``
    scoring: float  # operations of scoring the cohort with the bench's encoders, over those of a training there
    gaps: tuple[str, ...]  # where the cohort lies outside of what was measured, in sentences

    @property
    def is_covered(self) -> bool:
        return not self.gaps


def advise(
    measures: CohortMeasures, keep: float | None = None, start: str = "scratch", evidence: pd.DataFrame | None = None
) -> Advice:
    """Which method to choose with, and how many pairs.

    ``keep`` is a share up to 1 or a number of pairs. Without it the pool over the budget is taken from what was
    measured: of those budgets whose conditions were, the smallest whose AUROC with the method advised for it is within
    0.01 of the best. ``evidence`` are rows of `chexstudy.experiments.regimes.evidence.read_evidence`, which is the
    default.
    """
    evidence = read_evidence() if evidence is None else evidence
    if start not in STARTS:
        raise StudyError(f"start must be one of {', '.join(STARTS)}, not {start!r}.")
    measured = _choose_conditions(evidence, start, measures.verdict.abstains)
    if keep is not None:
        budget = count_budget(keep, measures.pairs)
        if budget == measures.pairs:
            raise StudyError(f"a budget of all {budget:,} pairs leaves no choice: give a smaller one.")
        return _advise_at(measures, budget, measured)
    ratios = (measured.pool / measured.budget).unique()
    budgets = sorted({round(measures.pairs / ratio) for ratio in ratios if measures.pairs / ratio >= 1})
    if not budgets:
        raise StudyError(f"{measures.pairs:,} pairs leave nothing to choose from: give more.")
    offers = [_advise_at(measures, budget, measured) for budget in budgets]
    offers = [one for one in offers if one.is_covered] or offers
    values = [_read_value(one) for one in offers]
    return next(one for one, value in zip(offers, values, strict=True) if value >= max(values) - _RESOLUTION)


def _choose_conditions(evidence: pd.DataFrame, start: str, abstains: bool) -> pd.DataFrame:
    """Outcomes from a start at the image size and with the scorer of most trainings, or one that was never aligned."""
    own = evidence[evidence.start == start]
    if own.empty:
        raise StudyError(f"nothing was measured from the start {start}: run `chexstudy regimes` and give --own.")
    unaligned = own.scorer == UNALIGNED
    own = own[unaligned] if abstains and unaligned.any() else own[own.scorer == own.scorer.mode()[0]]
    return own[own.side == own.side.mode()[0]]


def _read_value(advice: Advice) -> float:
    """AUROC to be expected of an advice; for random, what its rivals leave after their gains."""
    own = advice.gains[advice.gains.method == advice.method]
    return float(own.value.iloc[0]) if len(own) else float((advice.gains.value - advice.gains.gain).mean())


def _advise_at(measures: CohortMeasures, budget: int, measured: pd.DataFrame) -> Advice:
    methods = read_design().methods
    conditions = weigh_conditions(measures, budget, measured)
    nearest = conditions[np.isclose(conditions.steps, conditions.steps.min())]
    there = set(measured.merge(nearest[CELL], on=CELL).method)
    usable = [name for name, how in methods.items() if name in there and "truth" not in how and "spends" not in how]
    gains = average_gains(measured[measured.method.isin(usable)], [MAIN_METRIC], conditions)
    if gains.empty:
        raise StudyError("too few pools were measured: an interval needs two of some condition.")
    gains = gains.assign(p_holm=correct_by_holm(gains.p.to_numpy())).sort_values("gain", ascending=False)
    better = gains[(gains.p_holm < SIGNIFICANCE) & (gains.gain > 0)]
    blind = measures.verdict.abstains and (measured.scorer != UNALIGNED).any()
    method = BASELINE if blind or better.empty else better.method.iloc[0]
    own = measured[measured.method.isin([method, BASELINE])]
    effects = average_gains(own, [*EFFECTS], conditions)
    if len(effects):
        effects = effects.assign(p_holm=correct_by_holm(effects.p.to_numpy()))
    payers = [name for name, how in methods.items() if "spends" in how and how["spends"] == method]
    charged = [average_gains(measured, [MAIN_METRIC], conditions, payer) for payer in payers]
    charged = pd.concat([pd.DataFrame(columns=gains.columns), *charged])
    scored = own[own.method == method]
    per_pair = (scored.scoring_flops / scored.pool).mean()
    return Advice(
        method,
        methods[method],
        budget,
        measured.start.iloc[0],
        measures,
        gains.reset_index(drop=True),
        effects,
        charged[charged.method == method],
        conditions,
        float(per_pair * measures.pairs / scored.flops.mean()),
        tuple(_find_gaps(measures, budget, measured, conditions)),
    )


def weigh_conditions(measures: CohortMeasures, budget: int, measured: pd.DataFrame) -> pd.DataFrame:
    """Conditions that count for a cohort at a budget, nearest first: the cell's columns, ``steps`` and ``weight``.

    If none is less than two steps away, the nearest.
    """
    cells = measured[CELL].drop_duplicates()
    estimates = estimate_wrong(measured)
    places = {
        "choice": (np.log(cells.pool / cells.budget), np.log(measures.pairs / budget)),
        "budget": (np.log(cells.budget), np.log(budget)),
        "wrong": (cells.wrong.map(estimates), np.nan_to_num(measures.verdict.wrong_share, nan=estimates.median())),
        # Where nobody looked, they are taken to be as many as in most pools.
        "copies": (cells.duplicates, np.nan_to_num(measures.copies, nan=measured.duplicates.mode()[0])),
    }
    squares = np.zeros(len(cells))
    for at_cells, at_cohort in places.values():
        levels = np.unique(at_cells)
        steps = [np.interp(values, levels, np.arange(len(levels))) for values in (at_cells, at_cohort)]
        squares += (steps[0] - steps[1]) ** 2
    distance = np.sqrt(squares)
    weight = np.where(distance < REACH, np.exp(-(distance**2)), 0)
    weight = weight if weight.any() else np.isclose(distance, distance.min()).astype(float)
    cells = cells.assign(steps=distance, weight=weight)
    return cells[cells.weight > 0].sort_values("steps").reset_index(drop=True)


def estimate_wrong(measured: pd.DataFrame) -> pd.Series:
    """What the filter tells of pools with a share of wrong pairs, by that share: at least as much as of a smaller one.

    The share itself where no filter was run.
    """
    notes = measured[["wrong", "note"]].dropna()
    told = notes.note.map(lambda note: FilterVerdict.read(note)[1]).astype(float).groupby(notes.wrong).mean()
    shares = pd.Series({share: share for share in sorted(measured.wrong.unique())})
    return told.reindex(shares.index).fillna(shares).cummax()


def average_gains(
    outcomes: pd.DataFrame, metrics: list[str], conditions: pd.DataFrame, reference: str = BASELINE
) -> pd.DataFrame:
    """Each method's gain over the reference: the mean over pools with the weights of their conditions, of two or more.

    A pool that several conditions share is one draw: what it deviates by there is added before it is squared. Degrees
    of freedom are those of the effective number of pools (Kish 1965), less one; with one condition all this is
    Student's interval over its pools. Gives ``method``, ``metric``, ``value`` (of the method), ``gain``, ``ci_low``,
    ``ci_high``, ``p``, ``pools``, ``conditions``.
    """
    near = outcomes.merge(conditions[CELL], on=CELL)
    pools = pair_pools(near, metrics, reference).reset_index().merge(conditions, on=CELL)
    rows = []
    for (method, metric), own in pools.groupby(["method", "metric"], sort=False):
        count = own.seed.nunique()
        if count < 2:
            continue
        share = own.weight / own.weight.sum()
        gain = float((share * own.gain).sum())
        of_pool = (share * (own.gain - gain)).groupby(own.seed).sum()
        error = float(np.sqrt((of_pool**2).sum() * count / (count - 1)))
        freedom = 1 / float((share.groupby(own.seed).sum() ** 2).sum()) - 1
        reach = float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
        p = 2 * float(student.sf(abs(gain) / error, freedom)) if error > 0 else float(gain == 0)
        told = {"gain": gain, "ci_low": gain - reach, "ci_high": gain + reach, "p": p, "pools": count}
        held = {"value": float((share * own.value).sum()), "conditions": own.groupby(CELL).ngroups}
        rows.append({"method": method, "metric": metric} | told | held)
    columns = ["method", "metric", "value", "gain", "ci_low", "ci_high", "p", "pools", "conditions"]
    return pd.DataFrame(rows, columns=columns)


def _find_gaps(
    measures: CohortMeasures, budget: int, measured: pd.DataFrame, conditions: pd.DataFrame
) -> Iterator[str]:
    """Where a cohort is outside of what was measured, in sentences."""
    spans = (
        ("a pool over budget of", measures.pairs / budget, measured.pool / measured.budget, ",.1f"),
        ("a pool of", measures.pairs, measured.pool, ",.0f"),
        ("a budget of", budget, measured.budget, ",.0f"),
    )
    for what, own, known, style in spans:
        if not known.min() <= own <= known.max():
            span = f"{known.min():{style}} to {known.max():{style}}"
            yield f"{what} {own:{style}} (measured: {span})"
    if measures.verdict.abstains and (measured.scorer != UNALIGNED).any():
        yield "a scorer that cannot tell matched from shuffled pairs"
    areas = measured.note.dropna().map(lambda note: FilterVerdict.read(note)[0]).dropna()
    if len(areas) and not measures.verdict.abstains and measures.verdict.ci_high < areas.min():
        yield (
            f"a scorer that tells matched from shuffled pairs with an AUROC of {measures.verdict.area:.2f} (measured: "
            f"{areas.min():.2f} to {areas.max():.2f})"
        )
    most = estimate_wrong(measured).max()
    if measures.verdict.wrong_low > most:
        yield f"{measures.verdict.wrong_share:.1%} of pairs that look mismatched (measured: up to {most:.1%})"
    if measures.copies > measured.duplicates.max():
        yield f"{measures.copies:.1%} near-duplicates (measured: up to {measured.duplicates.max():.1%})"
    if conditions.steps.min() >= REACH:
        yield f"conditions {conditions.steps.min():.1f} steps of the design from the nearest that was measured"
