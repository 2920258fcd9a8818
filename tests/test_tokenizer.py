"""WordPiece training: what the vocabulary must hold, and that it is the same everywhere."""

import json
import os
import subprocess
import sys

import pytest

from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.errors import StudyError

REPORTS = [
    "Small left pleural effusion. No pneumothorax.",
    "Cardiomegaly is mild; no pleural effusion.",
    "The lungs are clear. Heart size normal.",
    "Right apical pneumothorax, small.",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(REPORTS)


def test_frequent_words_are_whole_tokens_whatever_their_case_and_others_are_spelled(tokenizer):
    assert tokenizer.tokenize("SMALL Pleural effusion") == ["small", "pleural", "effusion"]
    pieces = tokenizer.tokenize("pneumomediastinum")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "pneumomediastinum"
    assert "[UNK]" not in pieces


def test_texts_stand_between_class_and_separator_and_are_padded_on_the_right(tokenizer):
    ids = tokenizer(["small", "the lungs are clear"], padding=True)["input_ids"]
    names = [tokenizer.convert_ids_to_tokens(row) for row in ids]
    assert names[0] == ["[CLS]", "small", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert names[1] == ["[CLS]", "the", "lungs", "are", "clear", "[SEP]"]
    ids = train_wordpiece(REPORTS, max_tokens=5)(REPORTS[0], truncation=True)["input_ids"]
    assert len(ids) == 5


def test_the_vocabulary_is_bounded_but_keeps_every_character():
    characters = {c for text in REPORTS for c in text.lower() if c != " "}
    smallest = train_wordpiece(REPORTS, vocabulary_size=1)
    assert len(smallest) == 5 + 2 * len(characters)
    assert len(train_wordpiece(REPORTS, vocabulary_size=80)) == 80


def test_rare_pieces_are_not_merged():
    assert train_wordpiece(["hernia"], min_frequency=2).tokenize("hernia") == ["h", "##e", "##r", "##n", "##i", "##a"]
    assert train_wordpiece(["hernia"], min_frequency=1).tokenize("hernia") == ["hernia"]


def test_another_process_and_another_order_give_the_same_ids(tokenizer):
    code = (
        "import json, sys; from chexstudy.encoders.tokenizer import train_wordpiece;"
        "print(json.dumps(train_wordpiece(json.loads(sys.argv[1])).get_vocab(), sort_keys=True))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, json.dumps(REPORTS[::-1])],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    ).stdout
    assert json.loads(printed.splitlines()[-1]) == tokenizer.get_vocab()


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_reports_without_a_word_are_refused(texts):
    with pytest.raises(StudyError, match="every training report is empty"):
        train_wordpiece(texts)
