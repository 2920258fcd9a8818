"""How much the protocol of retrieval matters: which part of a report is the text, and what identical texts count as.

The published code trains on one order of a report's sections and retrieves with another; here both default to findings,
then impression. Neither choice is right or wrong, but numbers under different ones cannot be compared.
"""

from collections.abc import Sequence

import pandas as pd

from chexstudy.cohort.reports import split_sections, training_text
from chexstudy.evaluation.context import EvaluatedModel, Evaluation, add_exposure
from chexstudy.evaluation.image_text.retrieval import POLICIES, measure_retrieval, rank_pairs
from chexstudy.progress import progress

TASK = "retrieval_choice"
_ORDERS = {
    "findings, impression": ("findings", "impression"),
    "impression, findings": ("impression", "findings"),
    "findings": ("findings",),
    "impression": ("impression",),
}
# The first is what pairs are trained on.
TEXT_CHOICES = tuple(_ORDERS)


def choose_texts(reports: Sequence[str], choice: str) -> list[str]:
    """The texts to retrieve by one of `TEXT_CHOICES`, one a report; empty where a report lacks what was chosen."""
    sections = [split_sections(report) for report in reports]
    return [" ".join(one[name] for name in _ORDERS[choice] if one[name]) for one in sections]


def list_text_choices(reports: Sequence[str]) -> list[str]:
    """The choices that give these reports different texts: without headings there is one, as trained."""
    trained = [training_text(report) for report in reports]
    kept, seen = [TEXT_CHOICES[0]], [trained]
    for choice in TEXT_CHOICES[1:]:
        texts = choose_texts(reports, choice)
        if texts not in seen and any(texts):
            kept.append(choice)
            seen.append(texts)
    return kept


def measure_retrieval_choices(arm: EvaluatedModel, rows: pd.DataFrame) -> pd.DataFrame:
    """Retrieval by one arm on a data set under every choice of text and every policy for identical texts.

    Rows of the results table: ``setting`` is the direction, ``variant`` the choice of text, ``group`` the policy. The
    same patients are drawn under every choice.
    """
    images, choices = arm.project(rows), list_text_choices(rows.report)
    weights, _ = arm.evaluation.draw_patients(rows)
    tables = []
    for choice in progress(choices, len(choices), "retrieving by choice of text"):
        texts = choose_texts(rows.report, choice)
        described = arm.encode_texts(texts)
        for duplicates in POLICIES:
            measured = measure_retrieval([rank_pairs(images, described, texts, duplicates)], weights, duplicates)
            tables += [part.of_seed(0).assign(variant=choice) for part in measured]
    return pd.concat(tables, ignore_index=True).assign(arm=arm.name, seed=arm.seed, task=TASK)


def measure_study_retrieval(evaluation: Evaluation, arm: str, seed: int) -> pd.DataFrame:
    """`measure_retrieval_choices` of a trained arm on the largest test set; none where it has no reports."""
    test = evaluation.cohort[evaluation.cohort.split == "test"]
    test = test[test.source.isin(test.source.mode()[:1])]
    if not (test.report.str.strip() != "").any():
        print("The test set has no reports: there is nothing to retrieve.")
        return pd.DataFrame()
    rows = measure_retrieval_choices(EvaluatedModel(evaluation, arm, seed), test)
    return add_exposure(evaluation, rows.assign(data_set=f"{test.source.iloc[0]}/test"), seed)


def tabulate_retrieval_choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Recall and ranks by direction, choice of text and policy, beside what chance gives at 10."""
    if rows.empty:
        return rows
    index = ["direction", "text", "identical texts"]
    shown = rows.rename(columns=dict(zip(("setting", "variant", "group"), index, strict=True)))
    table = shown.pivot(index=index, columns="metric", values="value")
    columns = ["recall@1", "recall@5", "recall@10", "recall@10 by chance", "median_rank", "mean_rank"]
    return table[columns].assign(queries=shown.groupby(index).n.first()).rename_axis(columns=None)
