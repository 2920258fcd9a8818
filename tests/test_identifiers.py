"""Identifiers: what is one is one however it is spelt, and what names nobody is nobody."""

import unicodedata

import pandas as pd
import pytest

from chexstudy.inputs.identifiers import is_rounded, normalise_ids, patient_key, show_id, unify_patients
from chexstudy.inputs.placeholders import is_placeholder

SPELT = ("P 17", " P 17", "P 17 ", "P\u00a017", "P  17", "P\t17", "\ufeffP 17", "P 1\u200b7", "P 17\0")


@pytest.mark.parametrize(
    ("spelt", "meant"),
    [
        *((one, "P 17") for one in SPELT),
        *((one, "17") for one in (17, 17.0, "17", "17.0", "17.00", " 17.0 ")),
        *((one, "0017") for one in ("0017", " 0017", '="0017"', "'0017", '"0017"')),
        *((unicodedata.normalize(form, "é1"), "é1") for form in ("NFC", "NFD")),
        *((one, one) for one in ("1.2.840.0", "17.5", "a.0", "2024.01.02", "x")),
    ],
)
def test_a_spelling_is_cleaned_of_what_nobody_means(spelt, meant):
    assert normalise_ids(pd.Series([spelt])).tolist() == [meant]


NOTHING = ("nan", "NA", "N/A", "Unknown", "none", "NULL", "<NA>", "-", "--", "?", " ", "", "XXXX", "___", "-1")


@pytest.mark.parametrize("word", [*NOTHING, "-999.0", None, float("nan"), -1])
def test_words_for_nothing_name_nobody(word):
    assert normalise_ids(pd.Series(["P1", word], dtype="object")).isna().tolist() == [False, True]


@pytest.mark.parametrize("word", ["0", "x", "NA12", "Nana", "None-1", "P0", "unknown7"])
def test_what_only_looks_like_a_word_for_nothing_is_kept(word):
    assert normalise_ids(pd.Series([word])).tolist() == [word]
    assert not is_placeholder(word)


@pytest.mark.parametrize(
    "spellings",
    [("P17", "p17"), ("0017", "17"), ("P017", "P17"), ("Ｐ１７", "P17"), ("Müller", "MÜLLER"), ("a/017", "A/17")],
)
def test_spellings_of_one_patient_are_one(spellings):
    unified, several = unify_patients(pd.Series([*spellings, "other"]))
    assert unified.nunique() == 2
    assert unified[0] == unified[1] == min(spellings)
    assert several == 1
    assert unify_patients(pd.Series([*reversed(spellings)]))[0][0] == min(spellings)


@pytest.mark.parametrize("others", [("P1", "P10"), ("1.2.03", "1.2.3"), ("P-1", "P1"), ("a0b", "ab"), ("100", "1")])
def test_other_patients_stay_others(others):
    assert patient_key(others[0]) != patient_key(others[1])
    unified, several = unify_patients(pd.Series(others))
    assert (unified.tolist(), several) == (list(others), 0)


def test_numbers_that_lost_their_end_are_known():
    assert is_rounded("1.23457E+15")
    assert not is_rounded("123457")
    assert not is_rounded("5E10")


def test_an_example_of_an_id_shows_no_folder():
    assert show_id(["p10/p10000032/s50/a.jpg", "b"]) == "'…/a.jpg'"
    assert show_id(pd.Index(["img0.png"])) == "'img0.png'"
    assert show_id([]) == "''"
