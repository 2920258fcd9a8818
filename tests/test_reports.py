import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort import reports
from chexstudy.cohort.reports import retrieval_text, split_sections, template_report, training_text
from chexstudy.errors import StudyError

LABELS = {"Mass": 0, "Pleural Effusion": 1, "Nodule": -1, "Hernia": 0, "Fibrosis": None}


def sentences(report):
    return [sentence.strip() for sentence in report.rstrip(".").split(". ")]


def test_there_are_as_many_templates_as_published():
    assert [len(set(reports.TEMPLATES[label])) for label in (1, 0, -1)] == [8, 7, 3]
    assert len(reports.NO_FINDING_SENTENCES) == 2
    assert [len(reports.SPECIAL_TEMPLATES["pleural other"][label]) for label in (1, 0, -1)] == [2, 2, 2]
    assert len(reports.SPECIAL_TEMPLATES["support devices"][0]) == 3


def test_one_sentence_for_each_stated_label_in_column_order():
    for image in range(40):
        told = sentences(template_report(LABELS, f"nih/{image}", seed=1))
        assert [
            name for text in told for name in ("mass", "pleural effusion", "nodule", "hernia") if name in text.lower()
        ] == [
            "mass",
            "pleural effusion",
            "nodule",
            "hernia",
        ]
        assert all(text[0].isupper() and text[1:] == text[1:].lower() for text in told)


def test_each_label_draws_from_all_of_its_own_templates():
    for label, templates in reports.TEMPLATES.items():
        drawn = {template_report({"Mass": label}, f"nih/{image}", seed=1).lower() for image in range(200)}
        assert drawn == {template.format(finding="mass") + "." for template in templates}


def test_special_labels_have_their_own_wording():
    drawn = {template_report({"Support Devices": 0}, f"a/{image}", seed=1) for image in range(60)}
    assert drawn == {"No lines, tubes or devices.", "The chest is free of hardware.", "No support devices seen."}
    assert "pleural other" not in template_report({"Pleural Other": 1}, "a/1", seed=1).lower()


def test_missing_values_of_every_kind_are_not_stated():
    missing = {"Mass": pd.NA, "Nodule": np.nan, "Hernia": None}
    assert template_report(missing, "a/1", seed=1) == ""
    row = pd.DataFrame({"Mass": [1], "Nodule": [pd.NA]}, dtype="Int8").to_dict("records")[0]
    assert template_report(row, "a/1", seed=1) == template_report({"Mass": 1}, "a/1", seed=1)


def test_no_finding_alone_is_one_of_two_fixed_sentences():
    drawn = {template_report({"No Finding": 1, "Mass": 0, "Nodule": None}, f"a/{i}", seed=1) for i in range(40)}
    assert len(drawn) == 2
    assert not any("mass" in text.lower() for text in drawn)


@pytest.mark.parametrize("other", [1, -1])
def test_no_finding_beside_a_finding_says_nothing(other):
    assert template_report({"No Finding": 1, "Mass": other}, "a/1", seed=1) == template_report(
        {"Mass": other}, "a/1", seed=1
    )
    assert template_report({"No Finding": 0, "Mass": other}, "a/1", seed=1) == template_report(
        {"Mass": other}, "a/1", seed=1
    )


def test_wording_depends_on_image_and_seed_but_not_on_order_or_other_labels():
    images = [f"nih/{image}" for image in range(30)]
    forward = [template_report(LABELS, image, seed=1) for image in images]
    backward = [template_report(LABELS, image, seed=1) for image in reversed(images)]
    assert forward == backward[::-1]
    assert forward != [template_report(LABELS, image, seed=2) for image in images]
    assert len(set(forward)) > 20
    with_more = template_report({**LABELS, "Emphysema": 1}, images[0], seed=1)
    assert with_more.startswith(forward[0])


def test_a_word_budget_leaves_out_random_absent_findings_only():
    labels = {f"Finding{i}": 0 for i in range(20)} | {"Mass": 1, "Nodule": -1}
    full = template_report(labels, "a/1", seed=1)
    short = template_report(labels, "a/1", seed=1, word_budget=30)
    assert len(full.split()) > 30 >= len(short.split())
    assert set(sentences(short)) < set(sentences(full))
    assert len(short.split()) > 20
    kept = {f: template_report(labels, f, seed=1, word_budget=30) for f in ("a/1", "a/2", "a/3")}
    left = [tuple(i for i in range(20) if f"finding{i}" in text.replace(".", "").split()) for text in kept.values()]
    assert len(set(left)) == 3
    tiny = template_report(labels, "a/1", seed=1, word_budget=1).lower()
    assert "mass" in tiny
    assert "nodule" in tiny
    assert "finding" not in tiny


def test_a_label_outside_the_contract_is_one_sentence():
    with pytest.raises(StudyError, match=r"^a label of 'Mass' is 2; a label is 1, 0, -1 or empty\.$"):
        template_report({"Mass": 2}, "a/1", seed=1)


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        ("FINDINGS: Lungs\n  are clear.\n\nIMPRESSION:\nNormal.", "Lungs are clear.", "Normal."),
        ("Findings: Heart: normal. Impression: No disease.", "Heart: normal.", "No disease."),
        (" IMPRESSION:  Left effusion.\n FINDINGS:  Blunt angle.", "Blunt angle.", "Left effusion."),
        ("INDICATION: cough\nFINDINGS: Clear.\nRECOMMENDATION: none", "Clear.", ""),
        ("IMPRESSION: wet.\nIMPRESSION: final.", "", "final."),
        ("IMPRESSION: kept.\nIMPRESSION:\n", "", "kept."),
        ("CONCLUSION: Nodule.\nADDENDUM: phoned", "", "Nodule."),
        ("bilateral PTB, left pleurisy", "bilateral PTB, left pleurisy", ""),
        ("Clear lungs.\nTechnique: portable", "Clear lungs.", ""),
        ("FINDINGS: LUNGS: clear\nHEART: normal", "LUNGS: clear HEART: normal", ""),
        ("My impression: none of it is a heading", "My impression: none of it is a heading", ""),
        ("", "", ""),
    ],
)
def test_sections(report, findings, impression):
    assert split_sections(report) == {"findings": findings, "impression": impression}


def test_training_text_is_findings_then_impression_and_retrieval_text_the_other_way():
    report = "IMPRESSION:\n Normal\nchest.\nFINDINGS: Clear  lungs."
    assert training_text(report) == "Clear lungs. Normal chest."
    assert retrieval_text(report) == "Normal chest. Clear lungs."
    assert training_text("INDICATION: cough") == ""
    assert training_text(" \n ") == ""
