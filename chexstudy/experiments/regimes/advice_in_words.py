"""An advice as sentences and as a small table: what is advised, on which evidence, at what cost, what is not known."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from chexstudy.experiments.regimes.advice import EFFECTS, SIGNIFICANCE, Advice
from chexstudy.experiments.regimes.cohort_measures import CohortMeasures
from chexstudy.experiments.regimes.design import BASELINE

_SHOWN = 3


def describe_cohort(measures: CohortMeasures) -> list[str]:
    """What was measured of a cohort, in sentences."""
    verdict = measures.verdict
    copies = f"{measures.exact_copies:.1%} of the images are embedded exactly like an earlier one"
    if np.isnan(measures.copies):
        copies += "; near-duplicates are not known (`chexstudy cohort duplicates` finds them in a study)"
    else:
        copies += f", {measures.copies:.1%} are near-duplicates of another"
    wrong = ""
    if not verdict.abstains:
        wrong = f" The share that looks mismatched: {verdict.wrong_low:.1%} to {verdict.wrong_high:.1%}."
    healthy = "The share of normal radiographs is not known: there are no labels for No Finding."
    if not np.isnan(measures.healthy):
        healthy = f"{measures.healthy:.1%} of the labelled pairs are without any finding."
    return [f"{measures.pairs:,} pairs; {copies}.", f"{verdict}{wrong}", healthy]


def describe_advice(advice: Advice) -> list[str]:
    """What is advised and why, in sentences."""
    return [*_say_what(advice), *_say_effects(advice), *_say_cost(advice), *_say_limits(advice)]


def tabulate_gains(advice: Advice) -> pd.DataFrame:
    """Methods by their gain over random at the cohort's conditions, largest first, for reading."""
    gains = advice.gains
    return pd.DataFrame(
        {
            "method": gains.method,
            "over random": [_show(row) for row in gains.itertuples()],
            "p (Holm)": [_show_p(p) for p in gains.p_holm],
            "AUROC": gains["value"].round(3),
            "pools": gains.pools,
        }
    )


def _say_what(advice: Advice) -> Iterator[str]:
    pairs = advice.measures.pairs
    often = f"{advice.budget:,} of {pairs:,} pairs ({advice.budget / pairs:.1%}), for a training from {advice.start}"
    options = {name: value for name, value in advice.how.items() if name != "method"}
    command = f"--method {advice.how['method']} --keep {advice.budget}"
    command += "".join(f" -p {name} {value}" for name, value in options.items())
    yield f"Advised: {advice.method}, {often}: `chexstudy curate ... {command}`."
    best, compared = advice.gains.iloc[0], f"{len(advice.gains)} method{'s' * (len(advice.gains) > 1)}"
    better = advice.gains[(advice.gains.gain > 0) & (advice.gains.p_holm < SIGNIFICANCE)]
    if advice.method == BASELINE and len(better):
        yield "Since the scorer cannot tell anything, what was gained with one that can is no evidence here."
    elif advice.method == BASELINE:
        yield (
            f"Of {compared} none is above random after Holm's correction; the best was {best.method}, {_show(best)} "
            f"macro zero-shot AUROC, {best.pools} pools."
        )
    else:
        own = advice.gains[advice.gains.method == advice.method].iloc[0]
        yield (
            f"It gained {_show(own)} macro zero-shot AUROC over a random choice (p {_show_p(own.p_holm)} after Holm's "
            f"correction for {compared}; {own.pools} pools)."
        )
    shown = [
        f"{row.budget:,} of {row.pool:,}, {row.wrong:.0%} wrong, {row.duplicates:.0%} copies ({row.steps:.1f} steps)"
        for row in advice.conditions.head(_SHOWN).itertuples()
    ]
    more = len(advice.conditions) - len(shown)
    others = f"; {more} farther" if more else ""
    yield f"Measured at, with the steps of the design away: {'; '.join(shown)}{others}."


def _say_effects(advice: Advice) -> Iterator[str]:
    effects = advice.effects
    if effects.empty:
        return
    sure = effects.p_holm < SIGNIFICANCE
    names = effects.metric.map(EFFECTS)
    if sure.any():
        told = [f"{name} {_show(row)}" for name, row in zip(names[sure], effects[sure].itertuples(), strict=True)]
        yield f"Against random it also changed (Holm over {len(effects)} measures): {'; '.join(told)}."
    if not sure.all():
        yield f"Not resolved: {', '.join(names[~sure])}."


def _say_cost(advice: Advice) -> Iterator[str]:
    if advice.method == BASELINE:
        yield "A random choice costs nothing."
        return
    yield (
        f"Scoring the cohort takes {advice.scoring:.0%} of a training's operations, with the encoders of the bench; "
        "they are not charged above, as a released scorer's are not."
    )
    for row in advice.charged.itertuples():
        yield f"Against random that trains for as many operations, those of scoring included: {_show(row)}."


def _say_limits(advice: Advice) -> Iterator[str]:
    if advice.gaps:
        yield f"Not covered by what we measured: {'; '.join(advice.gaps)}."
    yield "Measured on drawn radiographs with small encoders; on real ones this is a guess that a trial should follow."


def _show(row) -> str:
    return f"{row.gain:+.3f} ({row.ci_low:+.3f} to {row.ci_high:+.3f})"


def _show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
