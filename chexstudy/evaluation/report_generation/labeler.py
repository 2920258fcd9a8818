"""Labels of findings, read from the text of an English report by rules.

A finding is mentioned by one of its names, or by a place and a quality ("the cardiac silhouette is enlarged"). A
mention is present unless a trigger in its clause denies it, doubts it or says that it is no observation (a history, a
question). In a report present goes before uncertain, and uncertain before absent. The words are in ``labeler.yaml``.

Source: the schemes of NegEx (Chapman et al. 2001) and of CheXpert's labels (Irvin et al. 2019); the rules are ours.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby, pairwise, product
from typing import NamedTuple

import numpy as np

from chexstudy.cohort.finding_names import canonical_name
from chexstudy.cohort.pseudo_reports import ABSENT, PRESENT, UNCERTAIN
from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

SUPPORT_DEVICES = "Support Devices"
_WORDS = read_data_beside(__file__)
_FINDINGS = _WORDS["findings"]
_STATES = {"present": PRESENT, "uncertain": UNCERTAIN}
_ORDER = (ABSENT, UNCERTAIN, PRESENT)
# A trigger reaches so many words to the next mention, and from there on to the one after it, so many mentions in all.
_REACH, _MOST = 12, 15
# Or where a line began, before the lines of a section were joined.
_SENTENCE_END = re.compile(
    r"[;!\n]|\.(?=\s|$)|(?<=\?)\s|(?<=[a-z]) (?=(?:No|There|The|Heart|Lungs|Small|Mild|Stable|Normal) )"
)
_TOKEN = re.compile(r"[^\W_]+(?:'[a-z]+)?|[,:?]")


class _Part(NamedTuple):
    """A phrase of the lists where it stands in a sentence."""

    start: int
    end: int
    meanings: dict[str, tuple]


def can_label(finding: str) -> bool:
    """Whether there are rules for a finding, however it is written."""
    return canonical_name(finding) in _FINDINGS


def label_reports(texts: Sequence[str], findings: Sequence[str]) -> np.ndarray:
    """What each report says of each finding ``(texts, findings)``: 1, 0, -1 (uncertain) or NaN (not mentioned).

    Of a report in sections the findings and the impression are read. ``No Finding`` is 0 where one of the other
    ``findings`` but Support Devices is present, -1 where one is uncertain, and 1 where the report says anything else
    that is understood. A text that is empty or in another language is NaN throughout: it is unlabelled, not normal.
    """
    columns = [canonical_name(finding) for finding in findings]
    if unknown := [finding for finding in findings if not can_label(finding)]:
        raise StudyError(f"no rule reads {unknown[0]!r} from a report: leave it out, or add its words to labeler.yaml.")
    others = [place for place, name in enumerate(columns) if name not in (NO_FINDING, SUPPORT_DEVICES)]
    labels = np.full((len(texts), len(columns)), np.nan)
    for row, text in zip(labels, texts, strict=True):
        said = _read_report(text)
        row[:] = [said.get(name, np.nan) for name in columns]
        if said and NO_FINDING in columns:
            row[columns.index(NO_FINDING)] = 0 if PRESENT in row[others] else -1 if UNCERTAIN in row[others] else 1
    return labels


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English: by its commonest words, or by its letters."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    foreign, english = (sum(word in kind for word in words) for kind in (_FOREIGN, _ENGLISH))
    return foreign > english or (bool(words) and not re.search("[a-z]", text.lower()))


@lru_cache(maxsize=20_000)  # the references of all that write are the same
def _read_report(text: str) -> dict[str, int]:
    """Finding -> state, of what a report says; empty if it says nothing that is understood."""
    text = training_text(text)
    if is_foreign(text):
        return {}
    said: dict[bool, dict[str, int]] = {False: {}, True: {}}
    for sentence in _SENTENCE_END.split(text):
        for finding, state, is_implied in _read_sentence(sentence.strip().lower()):
            said[is_implied][finding] = max(state, said[is_implied].get(finding, state), key=_ORDER.index)
    return said[True] | said[False]


@lru_cache(maxsize=50_000)  # reports repeat their sentences
def _read_sentence(sentence: str) -> tuple[tuple[str, int, bool], ...]:
    """What a sentence says: finding, state, and whether it is implied only."""
    words = [_singular(word) for word in _TOKEN.findall(sentence)]
    parts = _find_parts(words)
    said = [(NO_FINDING, PRESENT, True) for part in parts if "overall" in part.meanings]
    for clause in _split(parts, {part.start for part in parts if "ends" in part.meanings}):
        described = _describe(words, clause)
        for part in _split(clause, _find_openings(words, clause[0].start, clause[-1].end)):
            said += _judge(words, part, described)
    return tuple(said)


def _find_parts(words: list[str]) -> list[_Part]:
    """The longest phrase at each place, from left to right."""
    parts: list[_Part] = []
    place = 0
    while place < len(words):
        for phrase, meanings in _PHRASES.get(words[place], ()):
            if words[place : place + len(phrase)] == phrase:
                parts.append(_Part(place, place + len(phrase), meanings))
                place = parts[-1].end
                break
        else:
            place += 1
    return parts


def _find_openings(words: list[str], first: int, end: int) -> set[int]:
    """Where a part of a clause begins that triggers before it do not govern: "no edema, small effusion"."""
    alternatives = [place for place in range(first, end) if words[place] in ("or", "nor")]
    listed = max(alternatives, default=first)  # "no edema, small effusion, or pneumothorax"
    opened = {
        place for place in range(listed + 1, end) if words[place - 1] in (",", "and", ":") and words[place] in _OPENING
    }
    return opened | {place for place in range(first, end - 1) if words[place + 1] == ":"}


def _split(parts: list[_Part], starts: set[int]) -> list[list[_Part]]:
    """The parts before, between and after these words."""
    ordered = sorted(starts)
    return [list(group) for _, group in groupby(parts, key=lambda part: bisect_right(ordered, part.start))]


def _describe(words: list[str], clause: list[_Part]) -> dict[int, list[tuple[str, str]]]:
    """Where a quality stands -> place and quality, for each place that it describes."""
    free: list[_Part] = []
    described = {}
    for number, part in enumerate(clause):
        if "place" in part.meanings:
            free.append(part)
        qualities = part.meanings.get("quality", ())
        if not qualities:
            continue
        ahead = _list_ahead(words, part, clause[number + 1 :])
        is_attribute = bool(ahead) and words[part.start - 1 : part.start] in _BEFORE_ATTRIBUTES
        places = ahead if is_attribute else free or ahead
        described[part.start] = [
            (place, quality) for one in places for place in one.meanings["place"] for quality in qualities
        ]
        free = [] if places is free else free
    return described


def _list_ahead(words: list[str], quality: _Part, parts: list[_Part]) -> list[_Part]:
    """The places behind a quality that it may describe: next to it, or joined by "of"."""
    ahead: list[_Part] = []
    end, reach = quality.end, _REACH if words[quality.end : quality.end + 1] in (["of"], ["in"]) else 2
    for part in parts:
        if "quality" in part.meanings or part.start - end > reach:
            break
        if "place" in part.meanings:
            ahead.append(part)
            end, reach = part.end, 3
    return ahead


def _judge(words: list[str], parts: list[_Part], described: dict) -> Iterator[tuple[str, int, bool]]:
    mentions = [part for part in parts if part.start in described or _MENTIONING & part.meanings.keys()]
    governed = _govern(words, parts, mentions)
    for mention in mentions:
        kinds = governed[mention.start]
        if "denied" not in kinds and "unsaid" in kinds:
            continue
        state = ABSENT if "denied" in kinds else UNCERTAIN if "doubted" in kinds else PRESENT
        for name in mention.meanings.get("name", ()):
            yield name, state, False
        for name, own in mention.meanings.get("implied", ()):
            yield name, own if state == PRESENT else state, True
        for place, quality in described.get(mention.start, ()):
            for name in _DESCRIBED[place, quality]:
                yield name, state, False
            if (quality, state) in (("normal", PRESENT), ("abnormal", ABSENT)):
                for name in _DENIED_BY[place]:
                    yield name, ABSENT, True


def _govern(words: list[str], parts: list[_Part], mentions: list[_Part]) -> dict[int, set[str]]:
    """Start of a mention -> kinds of the triggers that govern it."""
    governed = defaultdict(set)
    for part in parts:
        for kind, direction in part.meanings.get("trigger", ()):
            if "quality" in part.meanings:
                governed[part.start].add(kind)
            behind = list(_reach_behind(words, part, mentions)) if direction != "before" else []
            before = list(_reach_before(words, part, mentions)) if direction != "behind" and not behind else []
            for mention in behind + before:
                governed[mention.start].add(kind)
    if any("still" in part.meanings for part in parts):
        return governed
    for first, second in pairwise(mentions):
        between = words[first.end : second.start]
        if len(between) <= _REACH and "," not in between and _ALTERNATIVES & set(between):
            governed[first.start].add("doubted")
            governed[second.start].add("doubted")
    return governed


def _reach_behind(words: list[str], trigger: _Part, mentions: list[_Part]) -> Iterator[_Part]:
    end = trigger.end
    first = bisect_left(mentions, end, key=lambda part: part.start)
    for mention in mentions[first : first + _MOST]:
        between = words[end : mention.start]
        if len(between) > _REACH or (end != trigger.end and _JOINING & set(between)):
            return
        yield mention
        end = mention.end


def _reach_before(words: list[str], trigger: _Part, mentions: list[_Part]) -> Iterator[_Part]:
    start = trigger.start
    last = bisect_right(mentions, start, key=lambda part: part.end)
    for mention in reversed(mentions[max(0, last - _MOST) : last]):
        between = words[mention.end : start]
        is_apart = "," in between and not {"and", "or"} & set(words[mention.end : trigger.start])
        if len(between) > _REACH or is_apart or (start != trigger.start and _JOINING & set(between)):
            return
        yield mention
        start = mention.start


@cache
def _singular(word: str) -> str:
    if len(word) < 4 or word.endswith(("ss", "us", "is")) or not word.endswith("s"):
        return word
    return re.sub("(?:ie|(?<=ss)e|)s$", lambda end: "y" if end[0] == "ies" else "", word)


def _list_phrases() -> Iterator[tuple[str, str, object]]:
    """Phrase, kind of meaning, meaning."""
    for finding, entry in _FINDINGS.items():
        wholes = [whole for whole, other in _FINDINGS.items() if finding in _list_parts(other)]
        for name in entry.get("names", ()):
            yield from ((name, "name", one) for one in (finding, *wholes))
        for state, phrases in entry.get("implied", {}).items():
            yield from ((phrase, "implied", (finding, _STATES[state])) for phrase in phrases)
    for kind, groups in (("place", _WORDS["places"]), ("quality", _WORDS["qualities"])):
        yield from ((phrase, kind, group) for group, phrases in groups.items() for phrase in phrases)
    for trigger, directions in _WORDS["triggers"].items():
        for direction, phrases in directions.items():
            yield from ((phrase, "trigger", (trigger, direction)) for phrase in phrases)
    for kind in ("overall", "ends", "unlabelled", "passed_over", "still"):
        yield from ((phrase, kind, None) for phrase in _WORDS[kind])


def _list_parts(entry: dict) -> list[str]:
    return [one for part in entry.get("parts", ()) for one in (part, *_list_parts(_FINDINGS[part]))]


def _gather_phrases() -> dict[str, list[tuple[list[str], dict[str, tuple]]]]:
    """First word -> the phrases that begin with it, longest first, and their meanings by kind."""
    meanings = defaultdict(lambda: defaultdict(tuple))
    for phrase, kind, meaning in _list_phrases():
        own = meanings[tuple(_singular(word) for word in _TOKEN.findall(phrase))]
        own[kind] += () if meaning in own[kind] else (meaning,)
    by_first = defaultdict(list)
    for phrase in sorted(meanings, key=len, reverse=True):
        by_first[phrase[0]].append((list(phrase), dict(meanings[phrase])))
    return dict(by_first)


_PHRASES = _gather_phrases()
# (place, quality) -> the findings that it is; place -> the findings that it denies where it is normal.
_DESCRIBED = {
    (place, quality): [
        name for name, entry in _FINDINGS.items() if quality in entry.get("described", {}).get(place, ())
    ]
    for place, quality in product(_WORDS["places"], _WORDS["qualities"])
}
_DENIED_BY = {
    place: [name for name, entry in _FINDINGS.items() if place in entry.get("denied_by", ())]
    for place in _WORDS["places"]
}
_OPENING, _JOINING, _ENGLISH, _FOREIGN = (
    frozenset(_WORDS[kind]) for kind in ("opening", "joining", "english", "foreign")
)
_MENTIONING = {"name", "implied", "unlabelled"}
_ALTERNATIVES = {"or", "versus", "vs"}
# What stands before a quality that is an attribute of the place behind it.
_BEFORE_ATTRIBUTES = ([], [","], ["and"], ["with"], ["a"], ["an"], ["the"], ["no"], ["or"], [":"])
