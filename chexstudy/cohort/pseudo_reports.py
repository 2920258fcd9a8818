"""Pseudo-reports: what the labels of an image say, in sentences, for sources without reports.

A pseudo-report depends on seed, image id and labels alone, and each sentence on its own label, so that adding an image
or a finding leaves all others as they were. Source: the label-to-report scheme of CheXficient (arXiv 2602.22843), after
LLaVA-Rad; the sentences, in ``pseudo_reports.yaml``, are our own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import pandas as pd

from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1

_WORDS = read_data_beside(__file__)
_STATES = {PRESENT: "present", ABSENT: "absent", UNCERTAIN: "uncertain"}


@dataclass(frozen=True)
class TemplateRules:
    """What is special about the pseudo-reports of a source."""

    display: Mapping[str, str] = field(default_factory=dict)  # finding -> its name in sentences, where it is another
    no_finding_rule: bool = True  # whether an image of no finding gets one sentence that says so
    absent_left_out: int = 0  # how many absent findings, chosen at random, are not told
    # Further absent ones are left out until a report has at most so many words; what is not absent always stays.
    word_budget: int | None = None


def template_report(labels: Mapping[str, int], image_id: str, seed: int, rules: TemplateRules = TemplateRules()) -> str:
    """A pseudo-report: one sentence for each stated label, in the order of the labels.

    Where ``No Finding`` is 1 and nothing is present or uncertain it is one of two fixed sentences, else that label gets
    none. It is one line, empty if no label is stated. Labels are 1 (present), 0 (absent) or -1 (uncertain); None, NaN
    or a missing value is not stated.
    """
    stated = {rules.display.get(finding, finding): label for finding, label in labels.items() if not pd.isna(label)}
    for finding, label in stated.items():
        if label not in _STATES:
            raise StudyError(f"a label of {finding!r} is {label!r}; a label is 1, 0, -1 or empty.")
    no_finding = stated.pop(NO_FINDING, None)
    absent = [finding for finding, label in stated.items() if label == ABSENT]
    if rules.no_finding_rule and no_finding == PRESENT and len(absent) == len(stated):
        return _pick(_WORDS["no_finding_sentences"], seed, image_id, NO_FINDING).capitalize() + "."
    sentences = {finding: _write_sentence(finding, label, image_id, seed) for finding, label in stated.items()}
    words = sum(len(sentence.split()) for sentence in sentences.values())
    excess = 0 if rules.word_budget is None else words - rules.word_budget
    if rules.absent_left_out or excess > 0:
        absent.sort(key=lambda name: _draw(seed, image_id, "leave out", name))
        for number, finding in enumerate(absent):
            if number >= rules.absent_left_out and excess <= 0:
                break
            excess -= len(sentences.pop(finding).split())
    return " ".join(sentences.values())


def _write_sentence(finding: str, label: int, image_id: str, seed: int) -> str:
    return _pick(_list_sentences(finding, label), seed, image_id, finding)


@cache
def _list_sentences(finding: str, label: int) -> list[str]:
    state = _STATES[label]
    templates = _WORDS["special_templates"].get(finding.lower(), {}).get(state, _WORDS["templates"][state])
    return [template.format(finding=finding).lower().capitalize() + "." for template in templates]


def _pick(choices: Sequence[str], seed: int, image_id: str, purpose: str) -> str:
    return choices[_draw(seed, image_id, "wording", purpose) % len(choices)]


def _draw(seed: int, image_id: str, use: str, name: str) -> int:
    # A hash in place of a generator: the draw for one label does not depend on how many were made before it.
    digest = hashlib.sha256("\0".join((str(seed), image_id, use, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
