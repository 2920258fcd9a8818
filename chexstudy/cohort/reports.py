"""Reports: the sections of a written report, and the text a pair is trained on.

The headings lie in ``reports.yaml``.
"""

import re
import unicodedata
from collections.abc import Iterable

from chexstudy.inputs.placeholders import is_placeholder
from chexstudy.inputs.yaml_files import read_data_beside

_WORDS = read_data_beside(__file__)
SECTION_HEADINGS = _WORDS["section_headings"]
# A line that is a name: Jane Doe, M.D., or Dr. Jane Doe.
_DEGREES = r"m\.?d|d\.?o|ph\.?d|mbbs|frcr|frcpc|rra"
_NAME_LINE = rf"(?:dr\.?|prof\.?)?[ \t]*[^\W\d_][\w.,'’ \t-]{{2,50}}?,?[ \t]+(?:{_DEGREES})\.?(?=[ \t]*$)"
_DOCTOR_LINE = r"(?:dr|prof)\.?[ \t]+(?-i:[A-Z])[\w.'’-]*(?:[ \t]+(?-i:[A-Z])[\w.'’-]*){0,3}(?=[ \t]*$)"


def _drop_accents(name: str) -> str:
    return "".join(sign for sign in unicodedata.normalize("NFD", name) if not unicodedata.combining(sign))


_KINDS = {
    **{heading: section for section, headings in SECTION_HEADINGS.items() for heading in headings},
    **dict.fromkeys(_WORDS["body_headings"], "body"),
    **dict.fromkeys(_WORDS["preliminary_headings"], "preliminary"),
    **dict.fromkeys(_WORDS["identity_headings"], "identity"),
}
# In capitals many write no accents.
_KINDS = {_drop_accents(name): kind for name, kind in _KINDS.items()} | _KINDS
_BARE = [name for name, kind in _KINDS.items() if kind != "identity" and name != "report"]


def _join_names(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


_COLON = r"(?:[ \t\xa0\u202f]*[*_]{0,3}[:：][*_]{0,3}|[ \t]+[-–](?=[ \t]))"
_LINE_START = r"^[ \t>#*]*"
_TITLE_WORDS = _join_names(map(str.upper, _WORDS["title_words"]))
_MARKS = re.compile(
    # At the start of a line, or after the end of a sentence in it; capitals anywhere but behind an empty heading.
    rf"(?:{_LINE_START}|(?<=[.!?])[ \t]+)(?P<headed>{_join_names(_KINDS)}){_COLON}"
    rf"|(?<=:)[ \t]+(?P<passing>{_join_names(SECTION_HEADINGS['aside'])}){_COLON}"
    rf"|(?<![:：]\s)(?<![:：]\s\s)(?<=\s)(?P<capitals>(?-i:{_join_names(map(str.upper, _BARE))})){_COLON}"
    rf"|{_LINE_START}(?P<title>(?-i:(?:(?:{_TITLE_WORDS}|\d)\b[ \t,()/&]*){{1,12}})){_COLON}(?!\d)"
    # Alone on a line, with a capital: a small letter would be the last word of a sentence.
    rf"|{_LINE_START}(?-i:(?=[A-ZÀ-Þ]))(?P<bare>{_join_names(_BARE)})(?: version[^\n]*)?[*_ \t]*$"
    rf"|(?:{_LINE_START}|(?<=[.!?])[ \t]+)(?P<signature>{'|'.join(_WORDS['signatures'])})"
    rf"|^[ \t]*(?P<name>{_NAME_LINE}|{_DOCTOR_LINE})",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERS = re.compile(r"\d+")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b\d\.) ")
_RULE = re.compile(r"^[ \t]*[_=*-]{3,}[ \t]*$", re.MULTILINE)
_BREAK = re.compile(r"\\n|<br ?/?>|</?(?:p|div|li)>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|u|em|strong|span|h[1-6]|ul|ol)>", re.IGNORECASE)
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
_LINE_END = re.compile(r"[.!?][ \t]*\n|\n[ \t]*\n")
# Where something said in passing ends: with its sentence, its paragraph, or a line that the next sentence follows.
_ASIDE_END = re.compile(r"[.!?](?=\s)|\n(?=[ \t]*[A-ZÀ-Þ])|\n[ \t]*\n")
_TITLE = re.compile(
    r"[^.!?]*\b(?:chest|views?|radiogra(?:phs?|phie|f[ií]a)|rx|x-?rays?|portable|lateral|th?[oó]rax)\b[^.!?]*", re.I
)
_HALF_DAY = re.compile(r"\b[ap]\.m\.", re.IGNORECASE)
_CODE = re.compile(r"\d\s*-\s*[A-Z]")  # of CheXpert Plus: what is to be done, not what is seen
_TIME_OF_READING = re.compile(r"^[\s_\d/:.,-]*(?:[ap]\.?m\.?\b)?[\s_]*", re.IGNORECASE)


def split_sections(report: str) -> dict[str, str]:
    """The ``findings`` and the ``impression`` of a report, each as one line; a section that is not there is empty.

    The last section of a name wins: earlier ones are drafts. Findings without a heading are the paragraphs behind
    another section's own, or all of a report without headings. A comment, and a preliminary reading, count where there
    is nothing else. Signatures, identifiers and words for nothing (``nan``, ``___``) are no part of any section.
    """
    parts: dict[str, list[str]] = {
        name: [] for name in ("findings", "impression", "summary", "comment", "preliminary", "body")
    }
    # Line ends that were written as signs, or as tags of a web page.
    report = _RULE.sub("", _TAG.sub("", _BREAK.sub("\n", unicodedata.normalize("NFC", report))))
    marks = list(_MARKS.finditer(report))
    bounds = [mark.start() for mark in marks] + [len(report)]
    preface, within = report[: bounds[0]], ""
    for mark, end in zip(marks, bounds[1:], strict=True):
        heading = mark["headed"] or mark["passing"] or mark["capitals"] or mark["bare"]
        kind = _KINDS[heading.lower()] if heading else "title" if mark["title"] else "identity"
        text = report[mark.end() : end]
        if kind in ("comment", "title") and not within:
            kind = "body"
        if kind == "title":
            parts[within][-1] += report[mark.start() : end]
        elif kind == "aside" and within:
            parts[within][-1] += _skip(text, _ASIDE_END)
        elif kind in ("aside", "other"):
            parts["body"].append(_skip(text.lstrip(), _LINE_END if kind == "aside" else _PARAGRAPH_END))
            within = ""
        elif kind == "identity":
            within = ""
        else:
            parts[kind].append(text)
            within = kind if kind in ("findings", "impression") else ""
    findings, impression = (_last(parts[name]) for name in ("findings", "impression"))
    impression = impression or _last([text for text in parts["summary"] if not _CODE.match(text.strip())])
    if comment := _last(parts["comment"]):
        findings, impression = (f"{findings} {comment}".strip(), impression) if impression else (findings, comment)
    findings = findings or _join_body([preface, *parts["body"]], bool(impression))
    if not findings and not impression:
        findings = _last([_TIME_OF_READING.sub("", text) for text in parts["preliminary"]])
    return {"findings": findings, "impression": impression}


def _skip(text: str, end: re.Pattern) -> str:
    found = end.search(text)
    return text[found.end() :] if found else ""


def _last(texts: list[str]) -> str:
    """The last of the texts that says something, in one line."""
    return next((text for text in (_clean(text) for text in reversed(texts)) if text), "")


def _join_body(texts: list[str], is_optional: bool) -> str:
    """Paragraphs without those that only name the examination, unless there is nothing else."""
    paragraphs = [_clean(paragraph) for text in texts for paragraph in _PARAGRAPH_END.split(text)]
    told = " ".join(one for one in paragraphs if one and not _TITLE.fullmatch(_HALF_DAY.sub("", one)))
    return told if told or is_optional else " ".join(filter(None, paragraphs))


def _clean(text: str) -> str:
    return "" if says_nothing(text) else " ".join(text.split())


def says_nothing(report: str) -> bool:
    """Whether a text holds no word but those for nothing: ``nan``, ``N/A``, ``___``, ``XXXX``, numbers."""
    return is_placeholder(_NUMBERS.sub(" ", report))


def training_text(report: str) -> str:
    """The text a pair is trained on: findings, then impression, in one line; empty if the report says nothing."""
    sections = split_sections(report)
    return f"{sections['findings']} {sections['impression']}".strip()


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in one line; the number of an item, as in ``2. No effusion.``, begins its sentence."""
    return _SENTENCE_END.split(" ".join(text.split())) if text.strip() else []
