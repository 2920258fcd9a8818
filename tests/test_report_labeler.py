"""Labels read from reports, against sentences that a radiologist would read in one way."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from chexstudy.cohort import finding_names
from chexstudy.cohort.adapters.datasets.nlm_tb import FINDING_WORDS, label_reading
from chexstudy.cohort.phantom import dictation
from chexstudy.cohort.phantom.population import PREVALENCE, simulate_cases, simulate_enriched_cases
from chexstudy.cohort.pseudo_reports import template_report
from chexstudy.errors import StudyError
from chexstudy.evaluation.report_generation.labeler import can_label, label_reports
from chexstudy.inputs.tables import read_text_table
from chexstudy.inputs.yaml_files import read_data_beside

CHEXPERT = [
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
]
OTHERS = [
    *("Granuloma", "Nodule", "Emphysema", "Scoliosis", "Mass", "Pleural Thickening", "Fibrosis", "Rib Fracture"),
    *("Hilar Enlargement", "Tuberculosis", "Aortic Enlargement", "Cavity", "Bronchiectasis", "Pneumoperitoneum"),
    *("Hernia", "Infiltration"),
]
_SENTENCES = yaml.safe_load((Path(__file__).parent / "report_sentences.yaml").read_text(encoding="utf-8"))
_NAMES = read_data_beside(finding_names.__file__)


def read(text, findings=(*CHEXPERT, *OTHERS)):
    labels = label_reports([text], findings)[0]
    return {finding: int(label) for finding, label in zip(findings, labels, strict=True) if not np.isnan(label)}


@pytest.mark.parametrize(
    ("text", "told"), [(text, told) for group in _SENTENCES.values() for text, told in group.items()]
)
def test_a_sentence_is_read_as_a_radiologist_reads_it(text, told):
    said = read(text)
    free = {"No Finding", "Infiltration"} - told.keys()
    assert {name: label for name, label in said.items() if name in told or (label and name not in free)} == told


def test_a_report_names_what_it_says_most_surely_of_each_finding():
    doubted, denied, told = "Possible edema. ", "No edema. ", "Mild edema. "
    assert [read(text)["Edema"] for text in (denied + doubted, doubted + told + denied, denied * 2)] == [-1, 1, 0]


def test_no_finding_is_of_the_findings_that_are_asked_for():
    text = "Scoliosis. Possible nodule. Pacemaker in place. No effusion."
    assert read(text, ["Scoliosis", "No Finding"])["No Finding"] == 0
    assert read(text, ["Nodule", "No Finding", "Support Devices"])["No Finding"] == -1
    assert read(text, ["Pleural Effusion", "No Finding", "Support Devices"])["No Finding"] == 1


def test_labels_stand_in_the_order_of_texts_and_findings_however_these_are_written():
    labels = label_reports(["No edema.", "", "Small effusion."], ["pulmonary_edema", "Effusion", "Calcified Granuloma"])
    np.testing.assert_array_equal(labels, [[0, np.nan, np.nan], [np.nan] * 3, [np.nan, 1, np.nan]])


def test_every_finding_that_data_sets_name_can_be_read():
    assert [name for name in _NAMES if not can_label(name)] == []
    phantom = read_data_beside(dictation.__file__)["findings"]
    assert [name for name in (*phantom, *FINDING_WORDS) if not can_label(name)] == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "   ", "\x00\x07", "nan", "___", "INDICATION: rule out pneumonia.", "The patient is rotated."),
        "Derrame pleural derecho pequeño. Silueta cardíaca normal. No se observa neumotórax.",
        "Pas d'épanchement pleural. La silhouette cardiaque est normale. Absence de pneumothorax.",
        "Kein Pneumothorax. Das Herz ist normal groß, keine Infiltrate.",
        "Sem derrame pleural. O coração não está aumentado.",
        "双肺未见明显异常。心影不大。",
    ],
)
def test_what_is_not_understood_is_unlabelled_and_never_without_findings(text):
    assert np.isnan(label_reports([text], [*CHEXPERT, *OTHERS])).all()


def test_control_characters_between_words_are_blanks():
    assert read("No\x00pleural\teffusion,\x1fpneumothorax\u200b.", ["Effusion", "Pneumothorax"]) == {
        "Effusion": 0,
        "Pneumothorax": 0,
    }


@pytest.mark.parametrize("sentence", ["No pleural effusion or pneumothorax. ", "no effusion and small mass or edema, "])
def test_ten_thousand_words_take_less_than_a_second(sentence):
    text = sentence * (10_000 // len(sentence.split()))
    start = time.process_time()
    assert not np.isnan(label_reports([text], ["Pleural Effusion"])).any()
    assert time.process_time() - start < 1


def test_a_finding_without_rules_is_refused_by_name():
    with pytest.raises(StudyError, match="no rule reads 'Unicorn' from a report"):
        label_reports(["No edema."], ["Edema", "Unicorn"])


@pytest.mark.parametrize("finding", [name for name in _NAMES if name != "No Finding"])
@pytest.mark.parametrize("label", [1, 0, -1])
def test_a_pseudo_report_is_read_as_the_label_it_was_made_of(finding, label):
    texts = {template_report({finding: label}, str(number), seed=0) for number in range(60)}
    assert {text: read(text, [finding]).get(finding) for text in texts} == dict.fromkeys(texts, label)


def test_phantom_reports_are_read_as_the_case_they_were_dictated_for():
    cases = simulate_enriched_cases(1000, PREVALENCE, np.random.default_rng(1), positives=25)
    follow_ups = simulate_cases(1000, PREVALENCE, np.random.default_rng(2))
    pairs = pairwise(follow_ups)
    priors = [None] * 1001 + [before if before.patient == case.patient else None for before, case in pairs]
    findings, cases = list(PREVALENCE), cases + follow_ups
    texts = [
        dictation.write_report(case, np.random.default_rng(number), prior)
        for number, (case, prior) in enumerate(zip(cases, priors, strict=True))
    ]
    states = [{lesion.finding: 1 if lesion.certain else -1 for lesion in case.lesions} for case in cases]
    truth = np.array([[state.get(finding, 0) for finding in findings] for state in states])
    said = np.nan_to_num(label_reports(texts, findings))
    for state in (1, 0, -1):
        cases_of = (truth == state).sum(axis=0)
        right = ((said == state) & (truth == state)).sum(axis=0)
        assert (cases_of[cases_of >= 8] > 0).sum() >= 5
        assert {findings[one] for one in np.flatnonzero((cases_of >= 8) & (right < 0.98 * cases_of))} == set()


@pytest.mark.requires_dataset
def test_readings_of_the_nlm_are_read_as_its_adapter_reads_them(real_data):
    readings = read_text_table(real_data / "nlm_tb" / "readings.csv")["findings"].fillna("")
    findings = list(FINDING_WORDS)
    stated = np.array([[label_reading(text)[finding] for finding in findings] for text in readings], dtype=float)
    said = label_reports(list(readings), findings)
    assert (stated == 1).sum() > 10
    np.testing.assert_array_equal(said[stated == 1], 1)
    assert not (said[np.isnan(stated)] == 1).any()
