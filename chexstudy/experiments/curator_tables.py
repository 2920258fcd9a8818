"""What methods of curation kept, and how well what was trained on it ranks, as tables of text with intervals."""

import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.curation.methods import METHODS
from chexstudy.curation.quality.subset_metrics import ALL
from chexstudy.evaluation.scores import MACRO
from chexstudy.experiments.curator_comparison import DIFFERENCE, KEPT, P_HOLM, ZERO_SHOT
from chexstudy.pretraining.arms.definitions import find_arm
from chexstudy.results import OVER_SEEDS, write_interval

_KEPT = [("rare_recall", "tail"), *(("enrichment", tier) for tier in TIERS), ("redundancy", ALL)]
_KEPT += [("duplicates_removed", ALL), ("coverage_radius", ALL), ("knn_coverage", ALL)]
_KEPT += [("mismatched_kept", ALL), ("junk_kept", ALL)]
_TRAINED = {"auroc": "AUROC", "auroc_difference": "minus random", P_HOLM: "p (Holm)"}


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
        method=pd.Categorical(rows.arm.map(lambda arm: find_arm(arm).method), METHODS),
        budget=pd.Categorical(rows.setting.str.replace("_", " "), ["same data", "same compute"]),
    )
    table = rows.set_index([*index, "heading"]).cell.unstack().sort_index().fillna("")
    return table[[name for name in headings.values() if name in table]].rename_axis(columns=None)
