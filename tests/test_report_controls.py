"""Reports that look at no image, and which text of a report is compared."""

import re

import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.report_generation.controls import commonest_report, flip_polarity, random_reports
from chexstudy.evaluation.report_generation.variants import prepare_texts

FINDINGS = ["Edema", "Pleural Effusion", "Cardiomegaly"]
_WORDS = {"Edema": "edema", "Pleural Effusion": "effusion", "Cardiomegaly": "cardiomegaly"}


def label(texts, findings):
    """A labeler for sentences that name a finding by one word and deny it by ``no``, ``not`` or ``clear``."""
    labels = np.full((len(texts), len(findings)), np.nan)
    for row, text in enumerate(texts):
        for sentence in re.split(r"(?<=[.])\s", text.lower()):
            for column, finding in enumerate(findings):
                if _WORDS.get(finding, finding.lower()) in sentence:
                    labels[row, column] = not re.search(r"\b(no|not|clear|without)\b", sentence)
    return labels


def test_the_commonest_report_is_the_first_of_those_written_most_often():
    assert commonest_report(["b", "", "a  c", "", "a c", "", "b", "d"]) == "b"
    with pytest.raises(StudyError, match="all reference reports are empty"):
        commonest_report(["", " "])


def test_a_random_report_is_of_another_patient():
    patients = ["p0"] * 5 + ["p1"] * 3 + ["p2"]
    reports = [f"of {patient}" for patient in patients]
    drawn = random_reports(patients * 30, reports, patients, np.random.default_rng(0))
    assert all(report != f"of {patient}" for report, patient in zip(drawn, patients * 30, strict=True))
    assert set(drawn) == set(reports)
    with pytest.raises(StudyError, match="at least two patients"):
        random_reports(["a"], ["x", "y"], ["a", "a"], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("report", "flipped"),
    [
        ("Heart normal. No pleural effusion.", "Heart normal. Pleural effusion."),
        ("There is no edema.", "There is edema."),
        ("There is a left effusion.", "There is no left effusion."),
        ("Small left effusion.", "No small left effusion."),
        ("1. Effusion. 2. Edema.", "1. No effusion. 2. Edema."),
        ("No edema or effusion. Cardiomegaly.", "No edema or effusion. No cardiomegaly."),  # the fewest findings
        ("Lungs are clear of edema.", "Lungs show edema."),
        ("Heart normal without evidence of edema.", "Heart normal with evidence of edema."),
        ("Edema is seen.", "Edema is not seen."),
        ("Bones intact.", "Bones intact."),  # nothing to turn
        ("", ""),
    ],
)
def test_one_finding_of_a_report_is_turned_into_its_opposite(report, flipped):
    assert flip_polarity([report, "Edema."], label, FINDINGS) == [flipped, "No edema."]


def test_texts_are_findings_alone_or_with_the_impression_and_may_lose_what_compares():
    reports = [
        "FINDINGS: Stable cardiomegaly. New effusion. Heart size is unchanged. IMPRESSION: Interval effusion.",
        "Sternotomy. No edema.",
        "IMPRESSION: Compared to the prior study, no edema.",
    ]
    whole, counts = prepare_texts(reports)
    assert whole == ["Stable cardiomegaly. New effusion. Heart size is unchanged.", "Sternotomy. No edema.", ""]
    assert counts == {"empty": 1, "sentences": 5, "comparisons": 2, "comparing": 1}
    stripped, counts = prepare_texts(reports, "findings+impression", strip_comparisons=True)
    assert stripped == ["New effusion.", "Sternotomy. No edema.", ""]
    assert counts == {"empty": 1, "sentences": 7, "comparisons": 4, "comparing": 2}
    long = "FINDINGS: " + "No edema here. " * 2500
    assert prepare_texts([long])[0][0].split() == long.split()[1:]  # never cut
    with pytest.raises(StudyError, match=r"findings or findings\+impression, not 'impression'"):
        prepare_texts(reports, "impression")
