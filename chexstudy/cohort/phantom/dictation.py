"""Written reports of phantom cases: findings and impression, as a radiologist would dictate them.

Every lesion is mentioned with side, zone and severity, and hedged where the radiologist is not certain; what is called
absent or normal is so. Few negatives are mentioned, as in practice. The words are in ``dictation.yaml``.
"""

import re
from collections.abc import Sequence

import numpy as np

from chexstudy.cohort.phantom.case import Case, Lesion
from chexstudy.cohort.phantom.drawn_devices import place_devices
from chexstudy.inputs.yaml_files import read_data_beside

SUPPORT_DEVICES = "Support Devices"
_WORDS = read_data_beside(__file__)
_FINDINGS = _WORDS["findings"]
# The smallest change of severity that a reader notices.
_PROGRESS = 0.10
_ARTICLE = re.compile(r"\[a\] +(\w)", re.IGNORECASE)


def write_report(case: Case, generator: np.random.Generator, prior: Case | None = None) -> str:
    """``FINDINGS: ... IMPRESSION: ...`` of a case in one line, and what is new since a ``prior`` study."""
    # Size and place of a lesion are called the same in both sections.
    terms = {lesion.finding: _choose_terms(lesion, generator) for lesion in case.lesions}
    findings = _write_findings(case, prior, terms, generator)
    impression = _write_impression(case, prior, terms, generator)
    return f"FINDINGS: {' '.join(findings)} IMPRESSION: {impression}"


def _write_findings(
    case: Case, prior: Case | None, terms: dict[str, dict[str, str]], generator: np.random.Generator
) -> list[str]:
    present = {lesion.finding for lesion in case.lesions}
    sentences: list[tuple[str, str]] = []
    for lesion in case.lesions:
        change = _describe_change(lesion, prior, generator)
        text = _write_sentence(lesion, terms[lesion.finding], change, generator)
        sentences.append((_FINDINGS[lesion.finding]["region"], text))
    resolved = _write_resolved(case, prior, generator)
    # What has just been said to be gone is not denied again.
    unsaid = present | {finding for finding, _, _ in resolved}
    sentences += [(region, text) for _, region, text in resolved]
    sentences += _write_negatives(unsaid, bool(case.lesions), generator)
    if generator.random() < 0.35:
        generator.shuffle(sentences)
    else:
        # Devices come first or, as often, last.
        regions = _WORDS["regions"] if generator.random() < 0.5 else (*_WORDS["regions"][1:], _WORDS["regions"][0])
        sentences.sort(key=lambda sentence: regions.index(sentence[0]))
    return _write_technique(case, generator) + [sentence for _, sentence in sentences]


def _write_technique(case: Case, generator: np.random.Generator) -> list[str]:
    sentences = []
    if generator.random() < (0.3 if case.view == "AP" else 0.12):
        sentences.append(_pick(_WORDS["technique"][case.view], generator))
    if case.inspiration < 0.4 and generator.random() < 0.6:
        sentences.append(_pick(_WORDS["low_volumes"], generator))
    if abs(case.rotation_degrees) > 4.0 and generator.random() < 0.5:
        sentences.append(_pick(_WORDS["rotated"], generator))
    return sentences


def _write_negatives(present: set[str], beside: bool, generator: np.random.Generator) -> list[tuple[str, str]]:
    """At most one true sentence a region about what is normal or absent."""
    sentences = []
    for region, chance in _WORDS["mention_beside" if beside else "mention_normal"].items():
        true = [text for text, absent in _WORDS["negatives"][region].items() if not _name_findings(absent) & present]
        if true and generator.random() < chance:
            sentences.append((region, _pick(true, generator)))
    return sentences


def _name_findings(absent: list[str]) -> set[str]:
    """Findings, and those of the regions among the names."""
    return {name for name, words in _FINDINGS.items() if name in absent or words["region"] in absent}


def _write_resolved(case: Case, prior: Case | None, generator: np.random.Generator) -> list[tuple[str, str, str]]:
    """Findings of the prior study that are gone: finding, region, sentence."""
    if prior is None:
        return []
    present = {lesion.finding for lesion in case.lesions}
    sentences = []
    for finding in (lesion.finding for lesion in prior.lesions if lesion.certain):
        if finding not in present and generator.random() < 0.5:
            words = _FINDINGS[finding]
            text = _pick(_WORDS["devices_gone" if finding == SUPPORT_DEVICES else "resolved"], generator)
            sentences.append((finding, words["region"], text.format(plain=words["plain"])))
    return sentences


def _write_impression(
    case: Case, prior: Case | None, terms: dict[str, dict[str, str]], generator: np.random.Generator
) -> str:
    if not case.lesions:
        follow_up = prior is not None and not prior.lesions and generator.random() < 0.4
        return _pick(_WORDS["normal_follow_ups"] if follow_up else _WORDS["normal_impressions"], generator)
    # Devices and incidental findings come last and are left out where there is enough else to say.
    minor = {name for name, words in _FINDINGS.items() if name == SUPPORT_DEVICES or words.get("incidental")}
    ranked = sorted(case.lesions, key=lambda lesion: (lesion.finding in minor, -lesion.severity))
    told = ranked[: int(generator.integers(2, 5))]
    items = [_write_item(lesion, terms[lesion.finding], generator) for lesion in told]
    if all(lesion.finding in minor for lesion in case.lesions) and generator.random() < 0.6:
        items.append(_pick(_WORDS["nothing_acute"], generator).rstrip("."))
    if len(items) == 1:
        return items[0] + "."
    if len(items) == 2 and all(lesion.certain for lesion in told) and len(told) == 2 and generator.random() < 0.5:
        second = items[1] if items[1][1:2].isupper() else items[1][:1].lower() + items[1][1:]
        return f"{items[0]} {_pick(('and', 'with'), generator)} {second}."
    if generator.random() < 0.5:
        return " ".join(f"{number}. {item}." for number, item in enumerate(items, start=1))
    return " ".join(f"{item}." for item in items)


def _write_item(lesion: Lesion, terms: dict[str, str], generator: np.random.Generator) -> str:
    phrases = _phrases(lesion)
    phrase = _fill(_pick(phrases[:2], generator), terms)
    frame = "{bare}" if lesion.certain else _pick(_WORDS["hedged_impressions"], generator)
    return _capitalise(frame.format(bare=_strip_mark(phrase)))


def _write_sentence(lesion: Lesion, terms: dict[str, str], change: str, generator: np.random.Generator) -> str:
    words = _FINDINGS[lesion.finding]
    signs = words.get("signs_both" if lesion.side == "bilateral" else "signs", ())
    if lesion.finding == SUPPORT_DEVICES and not change and generator.random() < 0.5:
        return " ".join(_pick(_WORDS["devices"][device]["sentences"], generator) for device in place_devices(lesion))
    if lesion.certain and not change and signs and generator.random() < 0.3:
        return _capitalise(_set_articles(_fill(_pick(signs, generator), terms)))
    phrase = _fill(_pick(_phrases(lesion), generator), terms)
    frame = _pick(_WORDS["certain_frames"] if lesion.certain else _WORDS["hedged_frames"], generator)
    verb = "are" if phrase.startswith("[p]") or " and " in terms["devices"] else "is"
    text = frame.format(phrase=_set_articles(phrase), bare=_strip_mark(phrase), change=change, verb=verb)
    return _capitalise(text)


def _describe_change(lesion: Lesion, prior: Case | None, generator: np.random.Generator) -> str:
    if prior is None or not lesion.certain or generator.random() < 0.3:
        return ""
    before = {former.finding: former for former in prior.lesions}.get(lesion.finding)
    if before is None:
        return _pick(_WORDS["changes"]["new"], generator)
    if not before.certain:
        return ""
    if lesion.finding == SUPPORT_DEVICES and list(place_devices(lesion)) != list(place_devices(before)):
        return ""
    difference = lesion.severity - before.severity
    if lesion.finding in _WORDS["structural"] or abs(difference) < _PROGRESS:
        return _pick(_WORDS["changes"]["same"], generator)
    return _pick(_WORDS["changes"]["worse" if difference > 0 else "better"], generator)


def _phrases(lesion: Lesion) -> list[str]:
    words = _FINDINGS[lesion.finding]
    return words["both" if lesion.side == "bilateral" else "one"]


def _choose_terms(lesion: Lesion, generator: np.random.Generator) -> dict[str, str]:
    """What fills the marks of a phrase: severity, side and place of a lesion."""
    sizes = _FINDINGS[lesion.finding]["sizes"]
    grade = min(int(lesion.severity * len(sizes)), len(sizes) - 1)
    size = _pick(sizes[grade], generator)
    # Nearly every certain lesion is graded, a doubtful one seldom and then as mild.
    if generator.random() < (0.12 if lesion.certain else 0.7) or not (lesion.certain or grade == 0):
        size = ""
    one, several = _pick(_WORDS["zones"][lesion.zone], generator)
    if lesion.side == "bilateral":
        place, lobe = f"both {several}", "diffuse bilateral" if lesion.zone == "diffuse" else f"bilateral {one}"
    else:
        place, lobe = f"the {lesion.side} {one}", f"{lesion.side} {one}"
    preposition = "throughout" if lesion.zone == "diffuse" else "at" if one.endswith("base") else "in"
    return {
        "size": size,
        "sizely": _WORDS["adverbs"].get(size, ""),
        "side": lesion.side,
        "place": place,
        "where": f"{preposition} {place}",
        "lobe": lobe,
        "height": _WORDS["heights"].get(lesion.zone, ""),
        "apical": _WORDS["pleural_heights"].get(lesion.zone, ""),
        "devices": _name_devices(lesion, generator) if lesion.finding == SUPPORT_DEVICES else "",
    }


def _name_devices(lesion: Lesion, generator: np.random.Generator) -> str:
    """The devices as a list in words; the mark of the first one stays."""
    names = [_pick(_WORDS["devices"][device]["names"], generator) for device in place_devices(lesion)]
    names[1:] = [_set_articles(name) for name in names[1:]]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _fill(text: str, terms: dict[str, str]) -> str:
    """Put the terms into a phrase; the article mark stays."""
    return " ".join(text.format(**terms).split())


def _set_articles(text: str) -> str:
    """Replace the marks: ``[a]`` by a or an, ``[p]`` by nothing."""
    text = _ARTICLE.sub(lambda match: f"{'an' if match[1] in 'aeiouE' else 'a'} {match[1]}", text)
    return text.replace("[p] ", "")


def _strip_mark(text: str) -> str:
    """The phrase without its leading article, as it stands in a telegraphic line."""
    return _set_articles(text.removeprefix("[a] ").removeprefix("[p] "))


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pick(choices: Sequence, generator: np.random.Generator):
    return choices[int(generator.integers(len(choices)))]
