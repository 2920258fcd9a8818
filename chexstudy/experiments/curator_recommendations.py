"""Which method of curation when: tables to read and to act on, and sentences, all made from the numbers alone."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.curation.methods import METHODS
from chexstudy.curation.quality.subset_metrics import ALL
from chexstudy.evaluation.scores import MACRO
from chexstudy.experiments.curator_comparison import (
    DIFFERENCE,
    KEPT,
    P_HOLM,
    SAME_DATA,
    STABILITY,
    ZERO_SHOT,
    tabulate_comparison,
)
from chexstudy.pretraining.arms.definitions import find_arm
from chexstudy.pretraining.training.subsets import BASELINE
from chexstudy.results import OVER_SEEDS, write_interval
from chexstudy.statistics.bootstrap import CONFIDENCE

_KEPT = [("rare_recall", "tail"), *(("enrichment", tier) for tier in TIERS), ("redundancy", ALL)]
_KEPT += [("duplicates_removed", ALL), ("coverage_radius", ALL), ("knn_coverage", ALL)]
_KEPT += [("mismatched_kept", ALL), ("junk_kept", ALL)]
_TRAINED = {"auroc": "AUROC", "auroc_difference": "minus random", P_HOLM: "p (Holm)"}
_SIGNIFICANCE = 1 - CONFIDENCE
_AUROC = "auroc_"


@dataclass(frozen=True)
class Measure:
    """What a measure of the comparison means."""

    more_is_better: bool  # whether a higher value is better
    strength: str  # what a method is good at that has a good value
    best: str  # how a sentence about the best method begins
    style: str  # how its values are printed


MEASURES = {
    "rare_recall": Measure(True, "keeping rare findings", "Most of the rare findings are kept by", ".0%"),
    "redundancy": Measure(False, "avoiding redundancy", "The least redundancy is left by", ".3f"),
    "duplicates_removed": Measure(True, "removing near-duplicates", "Most near-duplicates are removed by", ".0%"),
    "coverage_radius": Measure(False, "leaving no pair far away", "The smallest coverage radius has", ".3f"),
    "knn_coverage": Measure(True, "covering neighbourhoods", "Most neighbourhoods are covered by", ".1%"),
    "mismatched_kept": Measure(False, "avoiding wrong reports", "Fewest of the wrong reports are kept by", ".0%"),
    "junk_kept": Measure(False, "avoiding junk", "Least of the junk is kept by", ".0%"),
    "auroc_macro": Measure(True, "AUROC of all findings", "The best AUROC of all findings has", ".3f"),
    "auroc_head": Measure(True, "AUROC of common findings", "The best AUROC of common findings has", ".3f"),
    "auroc_medium": Measure(
        True, "AUROC of medium findings", "The best AUROC of findings of medium prevalence has", ".3f"
    ),
    "auroc_tail": Measure(True, "AUROC of rare findings", "The best AUROC of rare findings has", ".3f"),
}


def summarise_kept(rows: pd.DataFrame) -> pd.DataFrame:
    """What each method kept (`measure_methods_kept`), over seeds, as text with 95 % intervals: one row a method."""
    words = [
        metric.replace("_", " ").replace("knn", "kNN") + f", {finding}" * (metric == "enrichment")
        for metric, finding in _KEPT
    ]
    headings = dict(zip(_KEPT, words, strict=True))
    return _lay_out(rows[rows.task == KEPT], headings, ["method"])


def summarise_trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Zero-shot AUROC (`measure_methods_zero_shot`) and its difference from random choice, over seeds, as text."""
    groups = [(metric, group) for group in (MACRO, *TIERS) for metric in _TRAINED]
    headings = {place: f"{_TRAINED[place[0]]}, {place[1]}" for place in groups}
    return _lay_out(rows[rows.task.isin([ZERO_SHOT, DIFFERENCE])], headings, ["budget", "method"])


def _lay_out(rows: pd.DataFrame, headings: dict[tuple[str, str], str], index: list[str]) -> pd.DataFrame:
    """Cells over seeds, a column a metric and finding, methods in the order of the registry."""
    wanted = pd.DataFrame([*headings], columns=["metric", "finding"]).assign(heading=headings.values())
    rows = rows[(rows.seed == OVER_SEEDS) & rows.value.notna()].merge(wanted, on=["metric", "finding"])
    cells = [
        write_interval(row.value, row.ci_low, row.ci_high, "+.3f" if row.metric == "auroc_difference" else ".3f")
        for row in rows.itertuples()
    ]
    shown = pd.Series(cells, index=rows.index, dtype=object)
    rows = rows.assign(
        cell=shown.mask((rows.metric == P_HOLM) & (shown == "0.000"), "< 0.001"),
        method=pd.Categorical(rows.arm.map(_method_of), METHODS),
        budget=pd.Categorical(rows.setting.str.replace("_", " "), ["same data", "same compute"]),
    )
    table = rows.set_index([*index, "heading"]).cell.unstack().sort_index().fillna("")
    return table[[name for name in headings.values() if name in table]].rename_axis(columns=None)


def _method_of(arm: str) -> str:
    return find_arm(arm).method


def judge_methods(results: pd.DataFrame) -> pd.DataFrame:
    """Every method by every measure, with a verdict against the baseline.

    AUROC is judged by the paired difference and its interval. What was kept has no pairs to compare: a method is beyond
    the baseline if its interval does not hold the baseline's value. Neither is corrected for the number of comparisons.

    Gives `tabulate_comparison` with ``difference`` from the baseline, its interval ``difference_low, difference_high``
    and ``p_holm`` where there are any, ``verdict``: ``better``, ``worse``, ``even`` or, for the baseline, ``baseline``,
    and ``is_best``, whether no method has a better mean.
    """
    table = tabulate_comparison(results, [name for name in MEASURES if not name.startswith(_AUROC)])
    kind = ["metric", "budget_kind"]
    baseline = table[table.method == BASELINE].set_index(kind).measure.rename("baseline")
    table = table.join(baseline, on=kind)
    paired = results[(results.task == DIFFERENCE) & (results.seed == OVER_SEEDS)].rename(columns={"setting": kind[1]})
    paired = paired.assign(method=paired.arm.map(_method_of), of=paired.metric, metric=_AUROC + paired.finding)
    place = ["method", *kind]
    of_means, p_values = (paired[paired.of == name].set_index(place) for name in ("auroc_difference", P_HOLM))
    table = table.join(of_means[["ci_low", "ci_high"]].add_prefix("paired_"), on=place)
    table = table.join(p_values.value.rename("p_holm"), on=place)
    is_paired = table.metric.str.startswith(_AUROC)
    low, high = (table[f"paired_{end}"].where(is_paired, table[end] - table.baseline) for end in ("ci_low", "ci_high"))
    more_is_better = table.metric.map({name: one.more_is_better for name, one in MEASURES.items()})
    outcomes = {
        "baseline": table.method == BASELINE,
        "even": ~((low > 0) | (high < 0)),
        "better": np.where(more_is_better, low > 0, high < 0),
    }
    verdict = np.select([*outcomes.values()], [*outcomes], "worse")
    merit = table.measure.where(more_is_better, -table.measure)
    judged = {"difference": table.measure - table.baseline, "difference_low": low, "difference_high": high}
    judged["is_best"] = merit == merit.groupby([table.metric, table.budget_kind]).transform("max")
    return table.drop(columns=["baseline", "paired_ci_low", "paired_ci_high"]).assign(**judged, verdict=verdict)


def advise_methods(results: pd.DataFrame) -> pd.DataFrame:
    """Which method when: one row a method.

    Gives, by method, ``needs`` beyond embeddings; ``best of all at``, the measures at which no method has a better
    mean; ``better than random at`` and ``worse than random at``, by `judge_methods` at the same data; ``alike
    across seeds``, the Jaccard index; ``operations``, those of its arm over the baseline's. Columns that the study has
    no numbers for are left out.
    """
    judged = judge_methods(results)
    judged = judged[judged.budget_kind == SAME_DATA]
    stability = _by_method(results[(results.task == KEPT) & (results.metric == STABILITY)], "value")
    trained = results[(results.task == ZERO_SHOT) & (results.setting == SAME_DATA)]
    flops = _by_method(trained[trained.seed == OVER_SEEDS], "flops")
    holds = {"best of all at": judged.is_best}
    holds |= {f"{verdict} than random at": judged.verdict == verdict for verdict in ("better", "worse")}
    rows = {}
    for method in [name for name in METHODS if name in set(judged.method)]:
        needs = ", ".join(need.replace("_", " ") for need in METHODS[method].needs) or "nothing more"
        at = {name: set(judged.metric[one & (judged.method == method)]) for name, one in holds.items()}
        strengths = {name: [one.strength for metric, one in MEASURES.items() if metric in at[name]] for name in at}
        rows[method] = {"needs": needs, **{name: ", ".join(words) for name, words in strengths.items()}}
        rows[method]["alike across seeds"] = stability.get(method, np.nan)
        rows[method]["operations"] = flops.get(method, np.nan) / flops.get(BASELINE, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").dropna(axis=1, how="all")


def _by_method(rows: pd.DataFrame, column: str) -> dict[str, float]:
    return {_method_of(arm): value for arm, value in zip(rows.arm, rows[column], strict=True)}


def state_comparison(results: pd.DataFrame) -> list[str]:
    """What the comparison shows, in sentences: for each measure the best method, and whether it is beyond random."""
    judged, sentences = judge_methods(results), []
    for metric, measure in MEASURES.items():
        for kind in judged.budget_kind.unique():
            rows = judged[(judged.metric == metric) & (judged.budget_kind == kind)]
            if rows.method.nunique() > 1:
                sentences.append(_state_best(rows, measure, kind))
    corrected = [_state_corrected(judged, kind) for kind in judged.budget_kind.unique()]
    alone = ["With one seed, intervals and p values hold the variation of patients and not that of training."]
    return [*sentences, *(sentence for sentence in corrected if sentence), *alone * bool((judged.seeds == 1).any())]


def _state_best(rows: pd.DataFrame, measure: Measure, kind: str) -> str:
    best = rows[rows.is_best]
    names, first = ", ".join(best.method), best.iloc[0]
    of_training = first.metric.startswith(_AUROC)
    where = f" at the {kind.replace('_', ' ')}" if of_training else ""
    value = format(first.measure, measure.style)
    if (best.method == BASELINE).any():
        others = "" if len(best) == 1 else f" (shared by {names})"
        return f"{measure.best} random choice{where}: {value}{others}; no method has a better mean."
    chance = rows.measure[rows.method == BASELINE]
    beside = f" (random: {format(chance.iloc[0], measure.style)})" if len(chance) else ""
    return f"{measure.best} {names}{where}: {value}{beside}{_state_verdict(first, of_training)}."


def _state_verdict(row, of_training: bool) -> str:
    if not np.isfinite([row.difference_low, row.difference_high]).all():
        return "; no interval could be had, so this study cannot tell it from random"
    if not of_training:
        holds = "holds random's value, so this study cannot tell the two apart"
        return f"; its interval {holds if row.verdict == 'even' else 'does not hold the value of random'}"
    interval = f"{row.difference:+.3f} ({row.difference_low:+.3f} to {row.difference_high:+.3f})"
    if row.verdict == "even":
        return f", but its difference from random, {interval}, spans zero: this study cannot tell the two apart"
    corrected = "and stays" if row.p_holm < _SIGNIFICANCE else "but not"
    return f"; its difference from random, {interval}, does not span zero {corrected} so after correction by Holm"


def _state_corrected(judged: pd.DataFrame, kind: str) -> str:
    rows = judged[(judged.metric == _AUROC + MACRO) & (judged.budget_kind == kind) & judged.p_holm.notna()]
    if rows.empty:
        return ""
    sure = rows[rows.p_holm < _SIGNIFICANCE]
    better, worse = (list(sure.method[sure.verdict == verdict]) for verdict in ("better", "worse"))
    found = [f"better is {', '.join(better)}"] * bool(better) + [f"worse is {', '.join(worse)}"] * bool(worse)
    outcome = " and ".join(found) or "none differs from random"
    where = kind.replace("_", " ")
    tests = f"{len(rows)} method{'s' * (len(rows) > 1)}"
    return f"Corrected by Holm over {tests}, in AUROC of all findings at the {where} {outcome}."
