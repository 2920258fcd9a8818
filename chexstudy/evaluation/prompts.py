"""Prompt families for zero-shot classification, as data, and the choice between them on the validation split.

A family pairs sentences that say a finding is there with sentences that say it is not. The casing rule is explicit:
``as_named`` keeps the finding's name as the cohort spells it (``Pleural Effusion``, as published); ``as_written`` puts
it into a sentence as a radiologist would, in lower case but for abbreviations (``Pleural effusion.``, ``No ILD.``).
Whether the tokenizer lower-cases the sentence is the text encoder's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.evaluation.statistics import auroc, macro_mean

CASINGS = ("as_named", "as_written")


@dataclass(frozen=True)
class PromptFamily:
    """Templates with ``{}`` in the place of the finding's name; several of a side are averaged into one direction.

    Attributes:
        name: what the results table calls the family.
        present: sentences that say the finding is there.
        absent: sentences that say it is not; those without ``{}`` are the same for every finding.
        normal: for ``No Finding``, sentences of a normal radiograph.
        abnormal: for ``No Finding``, sentences of an abnormal one.
        casing: ``as_named`` or ``as_written``.
    """

    name: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    casing: str

    def __post_init__(self):
        if self.casing not in CASINGS:
            raise StudyError(f"casing must be one of {', '.join(CASINGS)}, not {self.casing!r}.")
        if not all((self.present, self.absent, self.normal, self.abnormal)):
            raise StudyError(f"prompt family {self.name!r} has a side without a sentence: give at least one a side.")

    def prompts(self, finding: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The sentences for and against one finding."""
        if finding == NO_FINDING:
            return self.normal, self.abnormal
        name = finding.replace("_", " ")
        if self.casing == "as_named":
            return tuple(t.format(name) for t in self.present), tuple(t.format(name) for t in self.absent)
        name = name_in_sentence(name)
        return (
            tuple(_begin_sentence(t.format(name)) for t in self.present),
            tuple(_begin_sentence(t.format(name)) for t in self.absent),
        )


def name_in_sentence(finding: str) -> str:
    """A finding's name in lower case, words with two or more capitals (``ILD``, ``COVID-19``) left as they are."""
    return " ".join(word if sum(map(str.isupper, word)) > 1 else word.lower() for word in finding.split())


def _begin_sentence(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


# The published protocol of CheXficient: bare names, "no" before them, and its own pair for No Finding.
PUBLISHED = PromptFamily(
    name="published",
    present=("{}",),
    absent=("no {}",),
    normal=("No Finding",),
    abnormal=("there is Finding",),
    casing="as_named",
)

# No template has a verb that must agree with the finding: names are singular (mass) and plural (support devices).
_PRESENT = (
    "{}.",
    "Findings consistent with {}.",
    "There is evidence of {}.",
    "Mild {}.",
    "Severe {}.",
    "{} noted.",
    "Impression: {}.",
)
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "The lungs are clear.",
    "Normal chest radiograph.",
    "Heart size is normal. The lungs are clear. No pleural effusion or pneumothorax.",
)
_ABNORMAL = (
    "Abnormal chest radiograph.",
    "There is an acute cardiopulmonary abnormality.",
    "Abnormal findings are seen.",
)

CLINICAL = PromptFamily(
    name="clinical",
    present=_PRESENT,
    absent=(
        "No {}.",
        "No evidence of {}.",
        "There is no {}.",
        "No {} seen.",
        "Negative for {}.",
        "Impression: no {}.",
    ),
    normal=_NORMAL,
    abnormal=_ABNORMAL,
    casing="as_written",
)

# Reports of normal radiographs rarely name the finding they lack, so "no X" may lie closer to X than to them.
CONTRAST_NORMAL = PromptFamily(
    name="contrast_normal",
    present=_PRESENT,
    absent=_NORMAL,
    normal=_NORMAL,
    abnormal=_ABNORMAL,
    casing="as_written",
)

FAMILIES = {family.name: family for family in (PUBLISHED, CLINICAL, CONTRAST_NORMAL)}


def choose_prompts(scores: Mapping[str, np.ndarray], labels: np.ndarray) -> str:
    """The family with the highest macro AUROC. Pass the validation split: a choice on the test split inflates it.

    Args:
        scores: for each family's name its zero-shot scores ``(images, findings)`` on the validation split.
        labels: ``(images, findings)`` of the validation split, 1, 0, -1 or NaN.

    Returns:
        The name; of equal ones the first.

    Raises:
        StudyError: there is no family, or no finding has both classes in the validation split.
    """
    macro = {name: float(macro_mean(auroc(labels, family_scores))) for name, family_scores in scores.items()}
    if not macro or np.isnan(list(macro.values())).all():
        raise StudyError(
            "prompts cannot be chosen: no finding is both present and absent in the validation split; use 'published'."
        )
    return max(macro, key=macro.get)
