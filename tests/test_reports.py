import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.reports import split_sections, template_report, training_text
from chexstudy.errors import StudyError

LABELS = {"Mass": 0, "Pleural Effusion": 1, "Nodule": -1, "Hernia": 0, "Fibrosis": None}


def sentences(report):
    return [sentence.strip() for sentence in report.rstrip(".").split(". ")]


def test_one_sentence_for_each_stated_label_in_column_order():
    for image in range(40):
        told = sentences(template_report(LABELS, f"nih/{image}", seed=1))
        assert [
            name for text in told for name in ("mass", "pleural effusion", "nodule", "hernia") if name in text.lower()
        ] == ["mass", "pleural effusion", "nodule", "hernia"]
        assert all(text[0].isupper() and text[1:] == text[1:].lower() for text in told)


def test_each_label_draws_from_all_of_its_own_templates_as_many_as_published():
    for finding, published in {"Mass": (8, 7, 3), "Pleural Other": (2, 2, 2), "Support Devices": (8, 3, 3)}.items():
        drawn = [
            {template_report({finding: label}, f"nih/{image}", seed=1) for image in range(200)} for label in (1, 0, -1)
        ]
        assert tuple(map(len, drawn)) == published
        assert not drawn[0] & drawn[1]
    assert len({template_report({"No Finding": 1}, f"a/{image}", seed=1) for image in range(60)}) == 2


def test_special_labels_have_their_own_wording():
    drawn = {template_report({"Support Devices": 0}, f"a/{image}", seed=1) for image in range(60)}
    assert drawn == {"No lines, tubes or devices.", "The chest is free of hardware.", "No support devices seen."}
    assert "pleural other" not in template_report({"Pleural Other": 1}, "a/1", seed=1).lower()


def test_missing_values_of_every_kind_are_not_stated():
    missing = {"Mass": pd.NA, "Nodule": np.nan, "Hernia": None}
    assert template_report(missing, "a/1", seed=1) == ""
    row = pd.DataFrame({"Mass": [1], "Nodule": [pd.NA]}, dtype="Int8").to_dict("records")[0]
    assert template_report(row, "a/1", seed=1) == template_report({"Mass": 1}, "a/1", seed=1)


def test_no_finding_alone_is_one_of_two_fixed_sentences_and_beside_a_finding_says_nothing():
    drawn = {template_report({"No Finding": 1, "Mass": 0, "Nodule": None}, f"a/{i}", seed=1) for i in range(40)}
    assert len(drawn) == 2
    assert not any("mass" in text.lower() for text in drawn)
    for other in (1, -1):
        for none in (1, 0):
            told = template_report({"No Finding": none, "Mass": other}, "a/1", seed=1)
            assert told == template_report({"Mass": other}, "a/1", seed=1)


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
        ("SUMMARY: Normal chest.", "", "Normal chest."),
        ("SUMMARY: Normal chest.\nIMPRESSION: Effusion.", "", "Effusion."),
        ("bilateral PTB, left pleurisy", "bilateral PTB, left pleurisy", ""),
        ("Clear lungs.\nTechnique: portable", "Clear lungs.", ""),
        ("FINDINGS: LUNGS: clear\nHEART: normal", "LUNGS: clear HEART: normal", ""),
        ("My impression: none of it is a heading", "My impression: none of it is a heading", ""),
        ("", "", ""),
    ],
)
def test_sections(report, findings, impression):
    assert split_sections(report) == {"findings": findings, "impression": impression}


BODY = "There is a small left effusion and the heart is large."


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        # MIMIC-CXR: banner lines, and a body that no heading opens.
        (f" FINAL REPORT\n EXAMINATION:  CHEST\n\n INDICATION:  cough.\n\n COMPARISON:  None.\n\n {BODY}\n", BODY, ""),
        (f" FINAL REPORT\n HISTORY:  Fall.\n\n {BODY}\n", BODY, ""),
        (f" WET READ: ___ 9:12 PM\n Draft.\n ____________\n FINAL REPORT\n INDICATION: cough.\n\n {BODY}\n", BODY, ""),
        (f" WET READ VERSION #1 ___ 9:12 PM\n {BODY}\n", BODY, ""),
        (f"WET READ: ___ 9:12 PM\n {BODY}", BODY, ""),
        (f" FINAL REPORT\n INDICATION: cough\n\n FINDINGS\n {BODY}\n\n IMPRESSION\n Effusion.\n", BODY, "Effusion."),
        (f"INDICATION: cough\n\n{BODY}\n\nIMPRESSION: Effusion.", BODY, "Effusion."),
        (f"{BODY}\nIMPRESSION: Effusion.", BODY, "Effusion."),
        ("NARRATIVE:\nCHEST 1 VIEW\n\nIMPRESSION:\n\nEffusion.", "", "Effusion."),
        (f"NARRATIVE: {BODY}", BODY, ""),
        # In one line, as data sets on the Hub have them.
        (f"EXAM: CHEST INDICATION: cough FINDINGS: {BODY} IMPRESSION: Effusion", BODY, "Effusion"),
        (f"**Findings:** {BODY}\n**Impression:** Effusion.", BODY, "Effusion."),
        ("FINDINGS: Clear lungs.\nComparison: May 2019\nEffusion is new.", "Clear lungs. Effusion is new.", ""),
        ("FINDINGS: Clear lungs. Comparison: None. Effusion is new.", "Clear lungs. Effusion is new.", ""),
        (f"FINDINGS: Comparison: None. {BODY}", BODY, ""),
        ("No acute\nfindings\nare seen.", "No acute findings are seen.", ""),
        # Other languages.
        (
            "INDICATION : toux.\nTECHNIQUE : face.\nRÉSULTATS : poumons clairs.\nCONCLUSION : normal.",
            *("poumons clairs.", "normal."),
        ),
        ("INDICATION\xa0: toux.\n\nPoumons clairs.", "Poumons clairs.", ""),
        ("Befund: Erguss links.\nBeurteilung: Erguss.", "Erguss links.", "Erguss."),
        ("检查所见：双肺清晰。\n印象：正常", "双肺清晰。", "正常"),
    ],
)
def test_a_body_is_found_with_and_without_a_heading(report, findings, impression):
    assert split_sections(report) == {"findings": findings, "impression": impression}


@pytest.mark.parametrize(
    "block",
    [
        "SUMMARY: 2-ABNORMAL, PREVIOUSLY REPORTED\nI have personally reviewed the images. By: Doe, Jane on: 1/1/01\n\n"
        "ACCESSION NUMBER:\n00000",
        "END OF IMPRESSION:\n\nSUMMARY: 1-NO SIGNIFICANT ABNORMALITIES\n\nACCESSION NUMBER:\n00000",
        "Dictated by Jane Doe on 1/1/01",
        "Electronically signed by:\n\nJane Doe\n\n1/1/01",
        "I, the attending physician Jane Doe, have reviewed this.",
        "This report was dictated by Doe, Jane.",
        "Jane Doe, M.D.",
        "MRN: 00000\nPatient name: Doe, Jane",
        "Accession # 00000",
    ],
)
@pytest.mark.parametrize(
    "before", ["FINDINGS: Blunt angle.\n\nIMPRESSION:\n\nEffusion.\n\n", "Blunt angle. Effusion.\n\n"]
)
def test_signatures_and_numbers_of_a_report_are_never_trained_on(before, block):
    assert training_text(before + block) == "Blunt angle. Effusion."


@pytest.mark.parametrize(
    "report",
    [
        *("nan", "NA", "None", "NULL", "___", "XXXX", "N/A", "-", ".", "n.a.", "#N/A", "<NA>", "unknown", "XXXX XXXX."),
        *("nan nan", "FINDINGS: ___\nIMPRESSION: ___", "FINDINGS: nan IMPRESSION: nan", "REDACTED", "12", "no report"),
    ],
)
def test_words_for_nothing_are_no_report(report):
    assert training_text(report) == ""


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ("IMPRESSION:\n Normal\nchest.\nFINDINGS: Clear  lungs.", "Clear lungs. Normal chest."),
        *(("INDICATION: cough", ""), (" \n ", ""), ("None seen.", "None seen.")),
        ("XXXX-year-old with XXXX opacity.", "XXXX-year-old with XXXX opacity."),
        # The text of a pair of the default study: what was measured on it stays comparable.
        ("FINDINGS:  IMPRESSION: Normal study.", "IMPRESSION: Normal study."),
        ("INDICATION: cough.\nCOMPARISON: None.\nSmall effusion.", "Small effusion."),
        ("Technique : face.\nPas d'épanchement.\nConclusion : normal.", "Pas d'épanchement. normal."),
        ("AP CHEST, 9:12 A.M. ON ___\n\nHISTORY: cough.\n\nIMPRESSION: Clear.", "Clear."),
        ("FINDINGS / IMPRESSION: Clear.", "Clear."),
        ("Findings - Clear.\nImpression - Normal.", "Clear. Normal."),
        ("<b>FINDINGS:</b> Clear.<br><b>IMPRESSION:</b> Normal, <5 mm.", "Clear. Normal, <5 mm."),
        ("FINDINGS: Clear.\\nIMPRESSION: Normal.", "Clear. Normal."),
        ("FINDINGS: Clear. Report verified by Jane Doe.", "Clear."),
        ("IMPRESSION: Normal.\nDr. Jane Doe", "Normal."),
    ],
)
def test_the_training_text_is_findings_then_impression(report, text):
    assert training_text(report) == text
