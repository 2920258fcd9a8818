import pytest

from chexstudy.cohort.reports import split_sections, training_text


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
