"""A vocabulary holds no word of few patients, unless nobody can be named in it."""

import pandas as pd
import pytest

from chexstudy.cohort.reports import training_text
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.pretraining.models.vocabulary import LEAST_PATIENTS, find_rare_tokens, texts_to_learn_from

COMMON = ["The lungs are clear.", "Small left effusion.", "No pneumothorax is seen."] * 5
NAMED = "Told to Dr. Featherstonehaugh, 5558675309. No pneumothorax."


def make_training(reports, patients=None, source="mercy", origin="written"):
    patients = [f"p{number}" for number in range(len(reports))] if patients is None else patients
    return pd.DataFrame({"report": reports, "patient_id": patients, "source": source, "report_origin": origin})


def vocabulary(training):
    return set(train_wordpiece(texts_to_learn_from(training)).get_vocab())


def naive_holders(token, training):
    """Patients with a word that begins with the token, or holds it further in; by looking at every word."""
    piece = token.removeprefix("##")
    inside = token != piece
    return {
        patient
        for patient, report in zip(training.patient_id, training.report, strict=True)
        for word in report.lower().replace(".", " ").replace(",", " ").split()
        if (piece in word[1:] if inside else word.startswith(piece))
    }


def test_a_name_and_a_number_of_two_patients_are_no_tokens():
    training = make_training([*COMMON, NAMED, NAMED])
    tokens = vocabulary(training)
    pieces = {token.removeprefix("##") for token in tokens if len(token.removeprefix("##")) > 1}
    assert not [piece for piece in pieces if piece in "featherstonehaugh" and piece not in "pneumothorax thelungseff"]
    assert not [piece for piece in pieces if piece.isdigit()]
    assert {"the", "pneumothorax", "no"} <= tokens
    assert find_rare_tokens(tokens, training).empty
    assert "[UNK]" not in train_wordpiece(texts_to_learn_from(training)).tokenize(NAMED), "spelled, not lost"


def test_what_a_vocabulary_learned_from_all_words_gives_away_is_found():
    training = make_training([*COMMON, NAMED, NAMED])
    learned = train_wordpiece([training_text(report) for report in training.report]).get_vocab()
    rare = find_rare_tokens(learned, training)
    assert rare["featherstonehaugh"] == rare["5558675309"] == 2
    tokens = [token for token in learned if len(token.removeprefix("##")) > 1 and not token.startswith("[")]
    expected = {token: len(naive_holders(token, training)) for token in tokens}
    assert rare.to_dict() == {token: count for token, count in expected.items() if 0 < count < LEAST_PATIENTS}


@pytest.mark.parametrize(("patients", "is_token"), [(LEAST_PATIENTS - 1, False), (LEAST_PATIENTS, True)])
def test_patients_count_and_not_reports(patients, is_token):
    reports = ["Adenocarcinoma."] * 20
    training = make_training(COMMON + reports, [f"q{n}" for n in range(15)] + [f"p{n % patients}" for n in range(20)])
    assert ("adenocarcinoma" in vocabulary(training)) == is_token


@pytest.mark.parametrize("harmless", [{"source": "phantom"}, {"origin": "template"}])
def test_reports_that_name_nobody_are_learned_from_as_they_are(harmless):
    training = make_training([*COMMON, NAMED, NAMED], **harmless)
    assert texts_to_learn_from(training) == [training_text(report) for report in training.report]
    assert find_rare_tokens(vocabulary(training), training).empty
    assert texts_to_learn_from(training[["report"]]) == texts_to_learn_from(training)


def test_words_of_drawn_reports_stand_beside_those_of_real_ones():
    drawn = make_training([NAMED] * 5, [f"d{n}" for n in range(5)], origin="template")
    training = pd.concat([drawn, make_training([*COMMON, NAMED])], ignore_index=True)
    assert "featherstonehaugh" in vocabulary(training), "five patients have it"
    assert find_rare_tokens(vocabulary(training), training).empty
