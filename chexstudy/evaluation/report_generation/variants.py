"""Which text of reports is compared: findings or the impression too, with or without what needs an earlier study.

The words that compare lie in ``variants.yaml``.
"""

import re
from collections.abc import Sequence

from chexstudy.cohort.reports import split_sections, split_sentences
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

SECTIONS = ("findings", "findings+impression")
_COMPARES = re.compile(rf"\b(?:{'|'.join(read_data_beside(__file__)['comparisons'])})\b", re.IGNORECASE)


def prepare_texts(
    reports: Sequence[str], sections: str = "findings", strip_comparisons: bool = False
) -> tuple[list[str], dict[str, int]]:
    """The compared text of each report in one line, empty where it has none, and counts of what was met.

    No text is cut. Counted are reports without these sections (``empty``), ``sentences``, those that compare with an
    earlier study (``comparisons``), and the reports that hold such ones (``comparing``).

    Args:
        sections: one of `SECTIONS`. A text without headings is all findings.
        strip_comparisons: take sentences out that compare with an earlier study, for one image does not show it.
    """
    if sections not in SECTIONS:
        raise StudyError(f"sections of reports are {' or '.join(SECTIONS)}, not {sections!r}.")
    texts, counts = [], dict.fromkeys(("empty", "sentences", "comparisons", "comparing"), 0)
    for report in reports:
        parts = split_sections(report)
        sentences = split_sentences(" ".join(filter(None, map(parts.get, sections.split("+")))))
        compares = [_COMPARES.search(sentence) is not None for sentence in sentences]
        kept = [one for one, is_one in zip(sentences, compares, strict=True) if not (strip_comparisons and is_one)]
        texts.append(" ".join(kept))
        met = (not kept, len(sentences), sum(compares), any(compares))
        counts = {name: counts[name] + int(count) for name, count in zip(counts, met, strict=True)}
    return texts, counts
