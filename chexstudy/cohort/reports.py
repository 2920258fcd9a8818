"""Reports: sections of a written report, the text a pair is trained on, and pseudo-reports made from labels.

Everything that is a matter of wording is data at the top of the file. A pseudo-report depends on the seed, the image id
and the labels alone, never on the order in which images are read, so that adding an image leaves all others as they
were; a sentence depends on its own label alone, so that adding a finding leaves the other sentences as they were.

Source: the label-to-report scheme of CheXficient (arXiv 2602.22843), after LLaVA-Rad; the sentences are our own.
"""

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd

from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1

# No template has a verb that must agree with the finding, because names are singular (mass) and plural (devices).
TEMPLATES = MappingProxyType(
    {
        PRESENT: (
            "the radiograph shows {finding}",
            "{finding} can be seen",
            "the appearance is that of {finding}",
            "there are signs of {finding}",
            "changes in keeping with {finding}",
            "positive for {finding}",
            "{finding} noted on this image",
            "imaging features of {finding}",
        ),
        ABSENT: (
            "no {finding}",
            "no sign of {finding}",
            "{finding} not seen",
            "nothing to suggest {finding}",
            "negative for {finding}",
            "the image is free of {finding}",
            "without {finding}",
        ),
        UNCERTAIN: (
            "{finding} cannot be ruled out",
            "questionable {finding}",
            "the image may show {finding}",
        ),
    }
)

# Where the plain templates would not read as English. Names are compared in lower case.
SPECIAL_TEMPLATES = MappingProxyType(
    {
        "pleural other": {
            PRESENT: ("pleural changes other than effusion and pneumothorax", "there is another pleural abnormality"),
            ABSENT: ("the pleura is otherwise unremarkable", "no further pleural abnormality"),
            UNCERTAIN: ("another pleural abnormality cannot be ruled out", "questionable further pleural change"),
        },
        "support devices": {
            ABSENT: ("no lines, tubes or devices", "the chest is free of hardware", "no support devices seen"),
        },
    }
)

NO_FINDING_SENTENCES = ("no acute cardiopulmonary abnormality", "normal chest radiograph without focal lesion")

# The headings that open each section, in lower case, with their commonest misspellings. A heading that is not here is
# part of the text it stands in ("Heart: normal").
SECTION_HEADINGS = MappingProxyType(
    {
        "findings": (
            "findings",
            "finding",
            "findngs",
            "fidings",
            "findings and impression",
            "findings/impression",
            "radiographic findings",
            "observations",
        ),
        "impression": (
            "impression",
            "impressions",
            "impresson",
            "impresion",
            "conclusion",
            "conclusions",
            "opinion",
            "summary",
            "assessment",
        ),
        "other": (
            "indication",
            "indications",
            "clinical indication",
            "clinical information",
            "clinical history",
            "history",
            "reason for exam",
            "reason for examination",
            "comparison",
            "comparisons",
            "technique",
            "procedure",
            "examination",
            "exam",
            "views",
            "recommendation",
            "recommendations",
            "notification",
            "wet read",
            "addendum",
        ),
    }
)

_SECTION_OF = {heading: section for section, headings in SECTION_HEADINGS.items() for heading in headings}
_HEADING = re.compile(
    # At the start of a line, or after the end of a sentence in the same line.
    r"(?:^|(?<=[.!?])[ \t])[ \t]*("
    + "|".join(re.escape(name) for name in sorted(_SECTION_OF, key=len, reverse=True))
    + r")[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)


def split_sections(report: str) -> dict[str, str]:
    """The ``findings`` and the ``impression`` of a report, each as one line; a section that is not there is empty.

    The last section of a name wins (earlier ones are drafts and preliminary reads). A report without either heading is
    all findings, its other headed sections (indication, technique ...) left out.
    """
    sections = {"findings": "", "impression": ""}
    headings = list(_HEADING.finditer(report))
    starts = [heading.start() for heading in headings] + [len(report)]
    for heading, end in zip(headings, starts[1:], strict=True):
        name = _SECTION_OF[heading.group(1).lower()]
        text = " ".join(report[heading.end() : end].split())
        if name in sections and text:
            sections[name] = text
    if not any(sections.values()):
        sections["findings"] = " ".join(report[: starts[0]].split())
    return sections


def training_text(report: str) -> str:
    """The text a pair is trained on: findings, then impression, in one line; empty if the report says nothing."""
    sections = split_sections(report)
    return f"{sections['findings']} {sections['impression']}".strip()


def retrieval_text(report: str) -> str:
    """The published text for retrieval: impression first, then findings, in one line."""
    sections = split_sections(report)
    return f"{sections['impression']} {sections['findings']}".strip()


def template_report(labels: Mapping[str, int], image_id: str, seed: int, word_budget: int | None = None) -> str:
    """A pseudo-report: one sentence for each stated label, in the order of the labels.

    Where ``No Finding`` is 1 and nothing is present or uncertain, the report is one of two fixed sentences (so many
    images share a text); otherwise the label ``No Finding`` itself gets no sentence.

    Args:
        labels: finding -> 1 (present), 0 (absent), -1 (uncertain); a finding that is not stated (None, NaN or a missing
            value of pandas) gets no sentence.
        image_id: the image the report belongs to.
        seed: seed of the wording.
        word_budget: number of words the report should not exceed; randomly chosen absent findings are left out until it
            fits. Present and uncertain ones always stay.

    Returns:
        The report in one line, empty if no label is stated.

    Raises:
        StudyError: a label is not 1, 0, -1 or missing.
    """
    stated = {finding: int(label) for finding, label in labels.items() if _is_stated(label, finding)}
    no_finding = stated.pop(NO_FINDING, None)
    if no_finding == PRESENT and all(label == ABSENT for label in stated.values()):
        return _pick(NO_FINDING_SENTENCES, seed, image_id, NO_FINDING).capitalize() + "."
    sentences = {finding: _write_sentence(finding, label, image_id, seed) for finding, label in stated.items()}
    if word_budget is not None:
        excess = sum(len(sentence.split()) for sentence in sentences.values()) - word_budget
        absent = [finding for finding, label in stated.items() if label == ABSENT]
        for finding in sorted(absent, key=lambda name: _draw(seed, image_id, "leave out", name)):
            if excess <= 0:
                break
            excess -= len(sentences.pop(finding).split())
    return " ".join(sentences.values())


def _is_stated(label: object, finding: str) -> bool:
    if pd.isna(label):
        return False
    if label not in (PRESENT, ABSENT, UNCERTAIN):
        raise StudyError(f"a label of {finding!r} is {label!r}; a label is 1, 0, -1 or empty.")
    return True


def _write_sentence(finding: str, label: int, image_id: str, seed: int) -> str:
    templates = SPECIAL_TEMPLATES.get(finding.lower(), {}).get(label, TEMPLATES[label])
    return _pick(templates, seed, image_id, finding).format(finding=finding).lower().capitalize() + "."


def _pick(choices: tuple[str, ...], seed: int, image_id: str, purpose: str) -> str:
    return choices[_draw(seed, image_id, "wording", purpose) % len(choices)]


def _draw(seed: int, image_id: str, use: str, name: str) -> int:
    # A hash in place of a generator: the draw for one label does not depend on how many were made before it.
    digest = hashlib.sha256("\0".join((str(seed), image_id, use, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
