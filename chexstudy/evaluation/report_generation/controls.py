"""Reports that look at no image: what a generator must beat, and one that is wrong on purpose.

How a sentence is made to say the opposite lies in ``controls.yaml``.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from chexstudy.cohort.reports import split_sentences
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

CONTROLS = COMMONEST, RANDOM, ITSELF, TURNED = "commonest", "random", "itself", "turned"
# Texts and findings to ``(texts, findings)``: 1 present, 0 absent, -1 uncertain, NaN not mentioned.
Labeler = Callable[[Sequence[str], Sequence[str]], np.ndarray]
_OPPOSITES = [(re.compile(rule, re.IGNORECASE), other) for rule, other in read_data_beside(__file__)["opposites"]]


def commonest_report(reports: Sequence[str]) -> str:
    """The report that is written most often, of several the first: the constant to beat."""
    written = Counter(" ".join(report.split()) for report in reports)
    del written[""]
    if not written:
        raise StudyError("all reference reports are empty: choose reports that say something.")
    return written.most_common(1)[0][0]


def random_reports(
    patients: Sequence[str], reports: Sequence[str], of_patients: Sequence[str], generator: np.random.Generator
) -> list[str]:
    """For each of the patients a report of another one, drawn evenly from ``reports`` of ``of_patients``."""
    patients, of_patients = (np.asarray(ids, dtype=str) for ids in (patients, of_patients))
    if len(set(of_patients)) < 2:
        raise StudyError("reports of other patients need at least two patients: give the reports of more.")
    drawn = generator.integers(len(reports), size=len(patients))
    while (own := of_patients[drawn] == patients).any():
        drawn[own] = generator.integers(len(reports), size=own.sum())
    return [reports[place] for place in drawn]


def flip_polarity(reports: Sequence[str], label: Labeler, findings: Sequence[str]) -> list[str]:
    """The reports with one sentence that says the opposite: a finding present where it was absent, or the reverse.

    Of the sentences that can be turned, which the labeler judges, it is one that turns the fewest findings, the first
    of several. A report without any stays as it is.
    """
    split = [split_sentences(report) for report in reports]
    turned = {sentence: _say_opposite(sentence) for sentence in chain.from_iterable(split)}
    before, after = (label(list(texts), findings) for texts in (turned.keys(), turned.values()))
    opposed = ((before == 1) & (after == 0)) | ((before == 0) & (after == 1))
    count = dict(zip(turned, opposed.sum(axis=1), strict=True))
    flipped = []
    for sentences in split:
        able = [place for place, sentence in enumerate(sentences) if count[sentence]]
        chosen = min(able, key=lambda place: count[sentences[place]], default=None)
        flipped.append(" ".join(turned[one] if place == chosen else one for place, one in enumerate(sentences)))
    return flipped


def _say_opposite(sentence: str) -> str:
    start = re.match(r"\W*(?:\d+\.\s)?\W*", sentence).end()  # behind the number of an item
    text = sentence[start:]
    if not text[1:2].isupper():
        text = text[:1].lower() + text[1:]
    rule, other = next((rule, other) for rule, other in _OPPOSITES if rule.search(text))
    text = rule.sub(other, text, count=1)
    return sentence[:start] + text[:1].upper() + text[1:]
