"""Which words a vocabulary may be learned from: none that would give away whom a report is about.

A surname or a telephone number that stands in two reports becomes a token of its own, and a vocabulary leaves with the
model. So a token needs reports of a least number of patients that hold it. Only written reports of real sources can
name someone: drawn ones and those written from labels are learned from as they are.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pandas as pd

from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import PHANTOM
from chexstudy.encoders.tokenizer import CONTINUATION, split_words
from chexstudy.errors import StudyError

LEAST_PATIENTS = 5


def texts_to_learn_from(training: pd.DataFrame) -> list[str]:
    """Texts of training reports in which words of fewer than `LEAST_PATIENTS` patients are spelled, letter by letter.

    The rows have ``report``; ``patient_id``, ``source`` and ``report_origin`` too if they are of a cohort.
    """
    texts = [training_text(report) for report in training.report]
    if not any(texts):
        raise StudyError(
            "no training image has a report to learn from: build the cohort with a column of reports or labels, or "
            "train with objective self_supervised, which learns from images alone."
        )
    telling = _may_name_someone(training)
    if not telling.any():
        return texts
    words = [split_words(text) for text in texts]
    patients = _count_patients(words, training.patient_id)
    return [
        " ".join(word if len(patients[word]) >= LEAST_PATIENTS else " ".join(word) for word in own) if tells else text
        for text, own, tells in zip(texts, words, telling, strict=True)
    ]


def find_rare_tokens(vocabulary: Iterable[str], training: pd.DataFrame) -> pd.Series:
    """Tokens that stand in written reports of fewer than `LEAST_PATIENTS` patients, with the number of these.

    Single characters tell nothing and are passed over. Patients by token, in alphabetical order.
    """
    telling = _may_name_someone(training)
    if not telling.any():
        return pd.Series(dtype=int)
    words = [split_words(training_text(report)) for report in training.report]
    patients = _count_patients(words, training.patient_id)
    tokens = {token for token in vocabulary if len(token.removeprefix(CONTINUATION)) > 1}
    holders: dict[str, set] = defaultdict(set)
    found = set()
    told = {word for own, tells in zip(words, telling, strict=True) if tells for word in own}
    for word, who in patients.items():
        pieces = {
            (CONTINUATION if start else "") + word[start:end]
            for start in range(len(word))
            for end in range(start + 2, len(word) + 1)
        } & tokens
        found |= pieces if word in told else set()
        for piece in pieces:
            if len(holders[piece]) < LEAST_PATIENTS:
                holders[piece] |= who
    return pd.Series({token: len(holders[token]) for token in sorted(found) if len(holders[token]) < LEAST_PATIENTS})


def _may_name_someone(training: pd.DataFrame) -> np.ndarray:
    if "patient_id" not in training:
        return np.zeros(len(training), dtype=bool)
    return ((training.report_origin == "written") & (training.source != PHANTOM)).to_numpy()


def _count_patients(words: list[list[str]], patient_ids: Iterable[str]) -> dict[str, set]:
    """Word -> patients in whose reports it stands, at most `LEAST_PATIENTS` of them."""
    patients: dict[str, set] = defaultdict(set)
    for own, patient in zip(words, patient_ids, strict=True):
        for word in own:
            if len(patients[word]) < LEAST_PATIENTS:
                patients[word].add(patient)
    return patients
