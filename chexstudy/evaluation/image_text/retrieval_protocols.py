"""How much the protocol of retrieval matters: which part of a report is the text, and what identical texts count as.

The published code trains on one order of a report's sections and retrieves with another; here both default to findings,
then impression. Neither choice is right or wrong, but numbers under different ones cannot be compared.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.reports import split_sections, training_text
from chexstudy.encoders.embeddings import embed_images, embed_texts
from chexstudy.errors import StudyError
from chexstudy.evaluation.image_text.retrieval import POLICIES, evaluate_retrieval
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.progress import progress
from chexstudy.statistics.bootstrap import RESAMPLES

TASK = "retrieval_choice"
_BATCH = 256
_ORDERS = {
    "findings, impression": ("findings", "impression"),
    "impression, findings": ("impression", "findings"),
    "findings": ("findings",),
    "impression": ("impression",),
}
TEXT_CHOICES = tuple(_ORDERS)


def choose_texts(reports: Sequence[str], choice: str) -> list[str]:
    """The texts to retrieve, one a report; empty where a report lacks what was chosen.

    Args:
        reports: the reports as written.
        choice: one of `TEXT_CHOICES`; the first is what pairs are trained on.
    """
    if choice not in _ORDERS:
        raise StudyError(f"the text of a report is chosen from {'; '.join(TEXT_CHOICES)}, not {choice!r}.")
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


def measure_retrieval_choices(
    model: ImageTextModel,
    pixels: np.ndarray,
    reports: Sequence[str],
    patient_ids: Sequence[str],
    seed: int,
    *,
    resamples: int = RESAMPLES,
    device: str = "cpu",
) -> pd.DataFrame:
    """Retrieval by one model under every choice of text and every policy for identical texts.

    Args:
        model: a trained model, on ``device``.
        pixels: uint8 ``(pairs, height, width)``, as the pixel store gives them.
        reports: ``(pairs,)``, as written.
        patient_ids: ``(pairs,)``.
        seed: of the resampling; the same patients are drawn under every choice.
        resamples: number of resamples.
        device: where the model runs.

    Returns:
        Rows as `evaluate_retrieval` gives them, with ``text_choice`` and ``duplicates``; the setting names the choice
        of text too.
    """
    images = _project(model, embed_images(model.image_tower.encoder, pixels, _BATCH, device), device)
    tables, choices = [], list_text_choices(reports)
    for choice in progress(choices, len(choices), "retrieving by choice of text"):
        texts = choose_texts(reports, choice)
        described = embed_texts(model.text_tower, model.text_tower.tokenize, texts, _BATCH, device)
        for duplicates in POLICIES:
            generator = np.random.default_rng(seed)
            rows = evaluate_retrieval(
                images, described, texts, patient_ids, generator, resamples=resamples, duplicates=duplicates
            )
            rows = rows.assign(setting=rows.setting + f"; text: {choice}", text_choice=choice, duplicates=duplicates)
            tables.append(rows)
    return pd.concat(tables, ignore_index=True)


def _project(model: ImageTextModel, features: np.ndarray, device: str) -> np.ndarray:
    with torch.no_grad():
        return model.image_tower.project(torch.from_numpy(features).to(device)).cpu().numpy()


def tabulate_retrieval_choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Recall and ranks by direction, choice of text and policy, beside what chance gives at 10."""
    shown = rows.assign(direction=rows.setting.str.partition("; ")[0])
    table = shown.pivot(index=["direction", "text_choice", "duplicates"], columns="metric", values="value")
    counted = shown.groupby(["direction", "text_choice", "duplicates"]).n.first()
    columns = ["recall@1", "recall@5", "recall@10", "recall@10 by chance", "median_rank", "mean_rank"]
    return table[columns].assign(queries=counted).rename_axis(columns=None)
