"""Identifiers in one spelling, whoever wrote them: of images, patients and studies, in every table that is read.

Two rules. An identifier's *spelling* is cleaned of what nobody sees or means (`normalise_ids`): blanks around it,
no-break and zero-width ones too, another Unicode form of the same letters, the ``.0`` of a number that passed through a
spreadsheet. What still differs only in letter case or in zeros in front may name one patient or two; patients are taken
for one (`unify_patients`), because two spellings of one in two splits make results too good and nobody sees it.
"""

import re
import unicodedata
from collections.abc import Iterable

import pandas as pd

from chexstudy.inputs.placeholders import is_placeholder

# Whatever makes a spelling worth a second look: blanks, signs beyond ASCII, a whole number with decimals, quotes.
_ODD = re.compile(r"[^!-~]|^\d+\.0+$|^[='\"-]")
# How spreadsheets are told that a number is a text.
_GUARDED = re.compile(r"""="(.*)"|"(.*)"|'(.*?)'?""")
_BELOW_ZERO = re.compile(r"-\d+(\.0+)?")
_DECIMALS = re.compile(r"\.0+$")
_ZEROS_IN_FRONT = re.compile(r"(?<![\d.])0+(?=\d)")
_ROUNDED = re.compile(r"\d\.\d+[eE]\+\d{2,}")


def clean_text(text: str) -> str:
    """The text in Unicode's composed form, without what cannot be seen, its blanks single and none around it."""
    text = unicodedata.normalize("NFC", text)
    seen = (sign for sign in text if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf"))
    return " ".join("".join(seen).split())


def normalise_ids(ids: pd.Series) -> pd.Series:
    """Identifiers, texts or numbers, as texts in one spelling; missing where a cell is empty or a word for nothing.

    ``17.0`` is ``17``, but ``0017`` stays.
    """
    known = {value: _normalise(value) for value in ids.dropna().unique()}
    return ids.map(known).astype("str")


def show_id(ids: Iterable[str]) -> str:
    """How the identifiers of images are written, by the first of them; folders, which may name a patient, left out."""
    name = next(iter(ids), "")
    return repr(f"{'…/' * ('/' in name)}{name.rpartition('/')[2]}")


def is_rounded(identifier: str) -> bool:
    """Whether a spreadsheet has rounded a long number, as in ``1.23457E+15``: what it named cannot be told any more."""
    return _ROUNDED.fullmatch(identifier) is not None


def unify_patients(patients: pd.Series) -> tuple[pd.Series, int]:
    """Give patients that differ in letter case, width of letters or zeros in front alone one spelling.

    Takes identifiers of `normalise_ids`, none missing; gives the first in order of the alphabet for all spellings of
    one, and how many patients had several.
    """
    spellings = pd.Series(sorted(patients.unique()), dtype="str")
    keys = spellings.map(patient_key)
    one = dict(zip(spellings, spellings.groupby(keys).transform("first"), strict=True))
    return patients.map(one).astype("str"), int((keys.value_counts() > 1).sum())


def patient_key(patient: str) -> str:
    """What all spellings of one patient have in common."""
    return _ZEROS_IN_FRONT.sub("", unicodedata.normalize("NFKC", patient).casefold())


def _normalise(value: object) -> str | None:
    text = str(value)
    if _ODD.search(text):
        text = clean_text(text)
        guarded = _GUARDED.fullmatch(text)
        text = next(filter(None, guarded.groups()), "") if guarded else text
        text = _DECIMALS.sub("", text) if text.replace(".", "", 1).isdecimal() else text
    # Numbers below zero stand for nothing, as -1 and -999 do; no identifier is one.
    return None if is_placeholder(text) or _BELOW_ZERO.fullmatch(text) else text
