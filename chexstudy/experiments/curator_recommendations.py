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

_KEPT_HEADINGS = {
    ("rare_recall", "tail"): "rare recall",
    ("enrichment", "head"): "enrichment, head",
    ("enrichment", "medium"): "enrichment, medium",
    ("enrichment", "tail"): "enrichment, tail",
    ("redundancy", ALL): "redundancy",
    ("duplicates_removed", ALL): "duplicates removed",
    ("coverage_radius", ALL): "coverage radius",
    ("knn_coverage", ALL): "kNN coverage",
    ("mismatched_kept", ALL): "mismatched kept",
    ("junk_kept", ALL): "junk kept",
}
_SIGNIFICANCE = 1 - CONFIDENCE
_AUROC = "auroc_"
_RARE = "tail"


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
    rows = rows[(rows.task == KEPT) & (rows.seed == OVER_SEEDS) & rows.value.notna()]
    columns = {}
    for (metric, finding), heading in _KEPT_HEADINGS.items():
        chosen = rows[(rows.metric == metric) & (rows.finding == finding)]
        if len(chosen):
            columns[heading] = _print_by_method(chosen)
    return pd.DataFrame(columns).reindex(_in_order(rows)).rename_axis("method")


def summarise_trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Zero-shot AUROC (`measure_methods_zero_shot`) and its difference from random choice, over seeds, as text."""
    rows, parts = rows[rows.seed == OVER_SEEDS], []
    for kind in rows[rows.task == ZERO_SHOT].setting.unique():
        of_kind = rows[rows.setting == kind]
        columns = {}
        for group in (MACRO, *TIERS):
            place = of_kind[(of_kind.finding == group) & of_kind.value.notna()]
            columns[f"AUROC, {group}"] = _print_by_method(place[(place.task == ZERO_SHOT) & (place.metric == "auroc")])
            columns[f"minus random, {group}"] = _print_by_method(place[place.metric == "auroc_difference"], "+.3f")
            columns[f"p (Holm), {group}"] = _print_by_method(place[place.metric == P_HOLM]).replace("0.000", "< 0.001")
        part = pd.DataFrame({name: cells for name, cells in columns.items() if len(cells)})
        parts.append(part.reindex(_in_order(of_kind)).fillna("").assign(budget=kind.replace("_", " ")))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts).rename_axis("method").reset_index()
    return table.set_index(["budget", "method"]).fillna("")


def _print_by_method(rows: pd.DataFrame, style: str = ".3f") -> pd.Series:
    cells = {
        _method_of(row.arm): write_interval(row.value, row.ci_low, row.ci_high, style) for row in rows.itertuples()
    }
    return pd.Series(cells, dtype=object)


def _method_of(arm: str) -> str:
    return find_arm(arm).method


def _in_order(rows: pd.DataFrame) -> list[str]:
    there = {_method_of(arm) for arm in rows.arm.unique()}
    return [name for name in METHODS if name in there]


def judge_methods(results: pd.DataFrame) -> pd.DataFrame:
    """Every method by every measure, with a verdict against the baseline.

    AUROC is judged by the paired difference and its interval. What was kept has no pairs to compare: a method is beyond
    the baseline if its interval does not hold the baseline's value. Neither is corrected for the number of comparisons.

    Returns:
        `tabulate_comparison` with ``difference`` from the baseline, its interval ``difference_low, difference_high``
        and ``p_holm`` where there are any, and ``verdict``: ``better``, ``worse``, ``even`` or, for the baseline,
        ``baseline``.
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
    judged = {"difference": table.measure - table.baseline, "difference_low": low, "difference_high": high}
    return table.drop(columns=["baseline", "paired_ci_low", "paired_ci_high"]).assign(**judged, verdict=verdict)


def advise_methods(results: pd.DataFrame) -> pd.DataFrame:
    """Which method when: one row a method.

    Returns:
        Indexed by method: ``needs`` beyond embeddings; ``best of all at``, the measures at which no method has a better
        mean; ``better than random at`` and ``worse than random at``, by `judge_methods` at the same data; ``alike
        across seeds``, the Jaccard index; ``operations``, those of its arm over the baseline's. Columns that the study
        has no numbers for are left out.
    """
    judged = judge_methods(results)
    judged = judged[judged.budget_kind == SAME_DATA]
    winners = {metric: _best_of(rows) for metric, rows in judged.groupby("metric")}
    stability = _by_method(results[(results.task == KEPT) & (results.metric == STABILITY)], "value")
    trained = results[(results.task == ZERO_SHOT) & (results.setting == SAME_DATA)]
    flops = _by_method(trained[trained.seed == OVER_SEEDS], "flops")
    rows = {}
    for method in [name for name in METHODS if name in set(judged.method)]:
        own = judged[judged.method == method].set_index("metric")
        rows[method] = {
            "needs": ", ".join(need.replace("_", " ") for need in METHODS[method].needs) or "nothing more",
            "best of all at": _name_strengths([name for name in MEASURES if method in winners.get(name, ())]),
            "better than random at": _name_strengths([name for name in MEASURES if _has(own, name, "better")]),
            "worse than random at": _name_strengths([name for name in MEASURES if _has(own, name, "worse")]),
            "alike across seeds": stability.get(method, np.nan),
            "operations": flops.get(method, np.nan) / flops.get(BASELINE, np.nan),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").dropna(axis=1, how="all")


def _has(own: pd.DataFrame, metric: str, verdict: str) -> bool:
    return metric in own.index and own.verdict[metric] == verdict


def _by_method(rows: pd.DataFrame, column: str) -> dict[str, float]:
    return {_method_of(arm): value for arm, value in zip(rows.arm, rows[column], strict=True)}


def _name_strengths(metrics: list[str]) -> str:
    return ", ".join(MEASURES[metric].strength for metric in metrics)


def _best_of(rows: pd.DataFrame) -> list[str]:
    """The methods with the best mean of one measure; of several that share it, all."""
    values = rows.set_index("method").measure
    best = values.max() if MEASURES[rows.metric.iloc[0]].more_is_better else values.min()
    return list(values.index[values == best])


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
    best = rows[rows.method.isin(_best_of(rows))]
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
