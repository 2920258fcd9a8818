"""Prompt families for zero-shot classification, as data, and the choice between them on the validation split.

A family pairs sentences that say a finding is there with sentences that say it is not. The casing rule is explicit:
``as_named`` keeps the finding's name as the cohort spells it (``Pleural Effusion``, as published); ``as_written`` puts
it into a sentence as a radiologist would, in lower case but for abbreviations (``Pleural effusion.``, ``No ILD.``).
Whether the tokenizer lower-cases the sentence is the text encoder's business.

The families lie in ``prompt_families.yaml`` beside this file; a file of one's own has the same form.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from chexstudy import paths
from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_yaml
from chexstudy.runs import hash_values
from chexstudy.statistics.ranking import auroc, macro_mean

CASINGS = ("as_named", "as_written")
CHOSEN = "chosen"
_FILE = Path(__file__).with_name("prompt_families.yaml")
_SIDES = ("present", "absent", "normal", "abnormal")
_KEYS = (*_SIDES, "casing", "candidate", "findings", "about")
Sides = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class PromptFamily:
    """Templates with ``{}`` in the place of the finding's name; several of a side are averaged into one direction."""

    name: str  # what the results table calls the family
    present: tuple[str, ...]  # sentences that say the finding is there
    absent: tuple[str, ...]  # sentences that say it is not; those without ``{}`` are the same for every finding
    normal: tuple[str, ...]  # for ``No Finding``, sentences of a normal radiograph
    abnormal: tuple[str, ...]  # for ``No Finding``, sentences of an abnormal one
    casing: str  # ``as_named`` or ``as_written``
    candidate: bool = True  # whether the family takes part in the choice on validation
    # for single findings (spelt with spaces), sentences for and against, used as they stand
    by_finding: Mapping[str, Sides] = field(default_factory=dict)

    def prompts(self, finding: str) -> Sides:
        """The sentences for and against one finding."""
        name = finding.replace("_", " ")
        if name in self.by_finding:
            return self.by_finding[name]
        if finding == NO_FINDING:
            return self.normal, self.abnormal
        sides = self.present, self.absent
        if self.casing == "as_named":
            return tuple(tuple(one.format(name) for one in side) for side in sides)
        written = [[one.format(name_in_sentence(name)) for one in side] for side in sides]
        return tuple(tuple(one[:1].upper() + one[1:] for one in side) for side in written)


def name_in_sentence(finding: str) -> str:
    """A finding's name in lower case, words with two or more capitals (``ILD``, ``COVID-19``) left as they are."""
    return " ".join(word if sum(map(str.isupper, word)) > 1 else word.lower() for word in finding.split())


def read_prompt_families(path: str | Path) -> dict[str, PromptFamily]:
    """The families a YAML file holds under ``families``, in its order.

    The file has the form of ``prompt_families.yaml``: for each family its ``casing`` (``as_written`` if it is left
    out), ``present``, ``absent``, ``normal`` and ``abnormal``, and if wanted ``candidate`` and ``findings``.
    """
    path = Path(path)
    content = read_yaml(path, "file of prompts")
    families = content.get("families") if isinstance(content, dict) else None
    if not isinstance(families, dict) or not families:
        raise StudyError(f"{path.name} holds no prompt family: write `families:` and each family under its name.")
    return {name: _read_family(f"{path.name}: family {name!r}", name, keys) for name, keys in families.items()}


def add_prompt_families(path: str | Path = "") -> dict[str, PromptFamily]:
    """The families of the study, and after them those of a file of one's own, if a path is given."""
    if not str(path):
        return dict(FAMILIES)
    own = read_prompt_families(paths.resolve_user_path(path))
    taken = [name for name in own if name in FAMILIES]
    if taken:
        raise StudyError(f"{Path(path).name}: the name {taken[0]!r} belongs to a family of the study: choose another.")
    return {**FAMILIES, **own}


def hash_families(families: Mapping[str, PromptFamily]) -> str:
    """One hash of all sentences: what was scored with other prompts is stale."""
    return hash_values([asdict(family) for family in families.values()])


def _read_family(place: str, name: object, keys: object) -> PromptFamily:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == CHOSEN:
        raise StudyError(f"{place} must be named in small letters, digits and _, such as 'my_prompts'.")
    if not isinstance(keys, dict):
        raise StudyError(f"{place} must hold present, absent, normal and abnormal, each a list of sentences.")
    unknown = [key for key in keys if key not in _KEYS]
    if unknown:
        raise StudyError(f"{place} has an unknown key {reprlib.repr(unknown[0])}: it takes {', '.join(_KEYS)}.")
    casing, candidate, own = keys.get("casing", "as_written"), keys.get("candidate", True), keys.get("findings", {})
    if casing not in CASINGS:
        raise StudyError(f"{place}: casing must be one of {', '.join(CASINGS)}, not {reprlib.repr(casing)}.")
    if not isinstance(candidate, bool):
        raise StudyError(f"{place}: candidate must be true or false, not {reprlib.repr(candidate)}.")
    if not isinstance(own, dict) or not all(
        isinstance(one, dict) and set(one) <= set(_SIDES[:2]) for one in own.values()
    ):
        raise StudyError(f"{place}: findings must hold, for each finding, `present` and `absent`.")
    sides = {side: _read_sentences(f"{place}, {side}", keys.get(side)) for side in _SIDES}
    for side in _SIDES[:2]:
        _check_templates(f"{place}, {side}", sides[side], needs_name=side == "present")
    by_finding = {
        str(finding).replace("_", " "): tuple(
            _read_sentences(f"{place}, {finding}, {side}", one.get(side)) for side in _SIDES[:2]
        )
        for finding, one in own.items()
    }
    family = PromptFamily(name=name, **sides, casing=casing, candidate=candidate, by_finding=by_finding)
    pairs = {"present and absent": family.prompts("X"), "normal and abnormal": (family.normal, family.abnormal)}
    for what, (first, second) in (pairs | {f"{one}, both sides": by_finding[one] for one in by_finding}).items():
        if set(first) == set(second):
            raise StudyError(f"{place}: {what} are the same sentences, so nothing tells them apart: change one.")
    return family


def _read_sentences(place: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise StudyError(f"{place} must be a list of at least one sentence.")
    # YAML reads an unquoted no, on or 1 as something else than a text.
    wrong = [one for one in value if not isinstance(one, str) or not one.strip()]
    if wrong:
        raise StudyError(f"{place} holds {reprlib.repr(wrong[0])}, which is no sentence: put it in quotes.")
    return tuple(value)


def _check_templates(place: str, templates: tuple[str, ...], needs_name: bool) -> None:
    for template in templates:
        rest = template.replace("{}", "")
        if "{" in rest or "}" in rest:
            raise StudyError(f"{place}: {reprlib.repr(template)} may hold no braces but {{}}, the finding's name.")
        if needs_name and rest == template:
            raise StudyError(f"{place}: {reprlib.repr(template)} lacks {{}}, the place of the finding's name.")


FAMILIES = read_prompt_families(_FILE)
PUBLISHED, CLINICAL, CONTRAST_NORMAL = (FAMILIES[name] for name in ("published", "clinical", "contrast_normal"))


def choose_prompts(scores: Mapping[str, np.ndarray], labels: np.ndarray) -> str:
    """The family with the highest macro AUROC, of equal ones the first; the published one where none can be judged.

    Scores are ``(images, findings)`` of the validation split by family, labels of the same shape: a choice on the test
    split inflates it.
    """
    macro = {name: float(macro_mean(auroc(labels, of_family))) for name, of_family in scores.items()}
    return PUBLISHED.name if np.isnan(list(macro.values())).all() else max(macro, key=macro.get)
