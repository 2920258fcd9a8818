import tarfile
from xml.etree import ElementTree

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
        # Titles that MIMIC-CXR writes where others write "findings"; within findings they are a part of them.
        (f" FINAL REPORT\n INDICATION:  ___F with cough\n\n PA AND LATERAL VIEWS OF THE CHEST:  {BODY}\n", BODY, ""),
        (f" PORTABLE CHEST, ONE VIEW:\n\n {BODY}\n\n IMPRESSION:  Effusion.\n", BODY, "Effusion."),
        ("FINDINGS:\nCHEST: Clear.\nABDOMEN: Gas.", "CHEST: Clear. ABDOMEN: Gas.", ""),
        ("HISTORY OF CHEST PAIN: yes", "HISTORY OF CHEST PAIN: yes", ""),
        # CANDID-PTX: a comment is all that was seen, or what is made of it.
        (f"Medical question: pneumothorax?\nComment: {BODY}", BODY, ""),
        (f"Comments\n{BODY}", BODY, ""),
        (f"Findings: {BODY}\nComment: Heart failure.", BODY, "Heart failure."),
        (f"Comment: {BODY}\nImpression: Heart failure.", BODY, "Heart failure."),
        (f"Findings: {BODY}\nComment: No drain.\nImpression: Effusion.", f"{BODY} No drain.", "Effusion."),
        ("No comment is made: clear lungs.", "No comment is made: clear lungs.", ""),
        # Other languages.
        (
            "INDICATION : toux.\nTECHNIQUE : face.\nRÉSULTATS : poumons clairs.\nCONCLUSION : normal.",
            *("poumons clairs.", "normal."),
        ),
        ("RE\u0301SULTATS : poumons clairs.", "poumons clairs.", ""),
        ("INDICATION\xa0: toux.\n\nPoumons clairs.", "Poumons clairs.", ""),
        ("Befund: Erguss links.\nBeurteilung: Erguss.", "Erguss links.", "Erguss."),
        # Accents are missing where a report is in capitals.
        (
            "RENSEIGNEMENTS CLINIQUES : toux.\nINCIDENCE : face.\nRESULTATS : Coeur normal.\nSYNTHESE : Normal.",
            *("Coeur normal.", "Normal."),
        ),
        (
            "RADIOGRAPHIE DU THORAX\n\nOpacité basale droite. Pas d'épanchement.",
            "Opacité basale droite. Pas d'épanchement.",
            "",
        ),
        (
            "Motivo: tos.\nTécnica: PA y lateral.\nHallazgos: Pulmones claros.\nImpresión diagnóstica: Normal.",
            *("Pulmones claros.", "Normal."),
        ),
        (
            "Rx de tórax PA\n\nDATOS CLINICOS: tos.\n\nPulmones claros.\n\nCONCLUSION: Normal.",
            "Pulmones claros.",
            "Normal.",
        ),
        ("cardiomegali . senos costofrenic libr .", "cardiomegali . senos costofrenic libr .", ""),
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


def test_real_reports_give_the_sections_that_their_authors_marked(real_data):
    given = dict.fromkeys(("findings", "impression"), 0)
    with tarfile.open(real_data / "openi" / "NLMCXR_reports.tgz") as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            marked = {
                one.get("Label"): one.text or ""
                for one in ElementTree.fromstring(archive.extractfile(member).read()).iter("AbstractText")
            }
            sections = split_sections("\n".join(f"{label}: {text}" for label, text in marked.items()))
            for name, text in sections.items():
                official = " ".join(marked[name.upper()].split())
                # Two reports hold tags of web pages, three "end of report", and one another report.
                assert bool(text) == bool(official)
                given[name] += text == official
    assert given == {"findings": 3954, "impression": 3949}
