"""The results in one small table, as notebook 5 shows it and the README prints it."""

import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.evaluation.image_text.prompts import CHOSEN
from chexstudy.evaluation.scores import MACRO
from chexstudy.pretraining.arms.definitions import CURATING
from chexstudy.results import OVER_SEEDS, write_interval


def summarise_zero_shot(results: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Zero-shot AUROC, means over seeds with their 95 % intervals, as text.

    One row a data set, its exposure (``held_out``, ``seen`` or ``unknown``) and group of findings (``macro``, ``head``,
    ``medium``, ``tail``); a column an arm in the order given, those without rows left out.
    """
    chosen = (results.task == "zero_shot") & (results.metric == "auroc") & (results.setting == CHOSEN)
    groups = [MACRO, *TIERS]
    rows = results[chosen & (results.seed == OVER_SEEDS) & results.finding.isin(groups)]
    cells = [write_interval(row.value, row.ci_low, row.ci_high) for row in rows.itertuples()]
    places = ["data_set", "exposure", "finding"]
    table = rows.assign(cell=cells).pivot(index=places, columns="arm", values="cell")
    order = sorted(table.index, key=lambda place: (*place[:2], groups.index(place[2])))
    return table.loc[order, [arm for arm in arms if arm in table]]


def state_arm_differences(results: pd.DataFrame) -> list[str]:
    """What arms that curate gain or lose against the others, in sentences: in AUROC, or without labels in recall."""
    rows = results[(results.seed == OVER_SEEDS) & results.arm.isin(CURATING) & (results.reference != "")]
    found = rows[(rows.metric == "auroc_difference") & (rows.finding == MACRO) & (rows.setting == CHOSEN)]
    found = found[found.task == "zero_shot_difference"]
    if found.empty:
        found = rows[(rows.task == "retrieval_difference") & (rows.metric == "recall@10_difference")]
    sentences = []
    for row in found[found.ci_low.notna()].itertuples():
        verdict = "is better than" if row.ci_low > 0 else "is worse than" if row.ci_high < 0 else "cannot be told from"
        what = row.metric.removesuffix("_difference").replace("auroc", "macro zero-shot AUROC")
        interval = write_interval(row.value, row.ci_low, row.ci_high, "+.3f")
        sentences.append(f"{row.data_set}: {row.arm} {verdict} {row.reference}, {interval} in {what}.")
    return sentences or ["With one arm there is nothing to compare."]
