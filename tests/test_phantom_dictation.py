"""Reports say what the case holds and nothing else. The vocabulary here is independent of the one that writes them."""

import re

import numpy as np
import pytest

from chexstudy.cohort.phantom.case import Case, Lesion, Patient
from chexstudy.cohort.phantom.dictation import write_report
from chexstudy.cohort.phantom.population import PREVALENCE, simulate_cases, simulate_enriched_cases
from chexstudy.cohort.reports import split_sections

# What a reader would take as a mention of each finding.
MENTIONS = {
    "Support Devices": r"support devices|\btubes?\b|catheter|central line|pacemaker|leads|electrodes|wires",
    "Pleural Effusion": r"effusion|pleural fluid",
    "Lung Opacity": r"opacit",
    "Atelectasis": r"atelecta|volume loss",
    "Cardiomegaly": r"cardiomegaly|enlargement of the (heart|cardiac)|cardiac enlargement"
    r"|(heart|silhouette) is (\w+ly )?enlarged|heart size is (\w+ly )?increased",
    "Edema": r"edema|congestion",
    "Consolidation": r"consolidat|pneumonia",
    "Calcified Granuloma": r"granulom",
    "Nodule": r"nodul",
    "Pneumothorax": r"pneumothora",
    "Emphysema": r"emphysem|hyperinflat",
    "Scoliosis": r"scolio",
    "Mass": r"\bmass\b",
    "Pleural Thickening": r"pleural thickening|thickening of the",
    "Fibrosis": r"fibro|reticul",
    "Rib Fracture": r"fracture",
    "Hilar Enlargement": r"hilar (enlargement|prominence)|enlargement of (the \w+ hilum|both hila)"
    r"|enlarged (\w+ )?(hilum|hila)|hil(um|a) (is|are) (\w+ly )?enlarged",
    "Tuberculosis": r"tubercul",
    "Aortic Enlargement": r"aortic|thoracic aorta|aorta is (\w+ly )?enlarged",
    "Cavity": r"cavit",
    "Bronchiectasis": r"bronchiect",
    "Pneumoperitoneum": r"pneumoperitoneum|free (intraperitoneal )?air",
    "Hernia": r"hernia",
}
HEDGES = r"possibl|questionable|cannot (be )?exclude|may represent|suspicious for|suspected|could reflect"
NEGATION = r"^(no|there is no|clear)\b|\bnot enlarged|without|resol|removed|free of"
BILATERAL = ("Edema", "Emphysema")
MIDLINE = ("Cardiomegaly", "Aortic Enlargement", "Hernia")
ONE_SIDED = ("Support Devices", "Calcified Granuloma", "Nodule", "Mass", "Cavity", "Pneumothorax", "Scoliosis")
ONE_SIDED += ("Rib Fracture",)
ZONED = ("Lung Opacity", "Atelectasis", "Consolidation", "Nodule", "Mass", "Cavity", "Bronchiectasis", "Fibrosis")


def make_case(*lesions, study_number=0, view="PA"):
    patient = Patient("p000001", "F", 60, 0.5, 1)
    return Case(patient, study_number, view, 0.0, 0.8, 0.0, 0.01, "L", tuple(lesions), 1)


def make_lesion(finding, side=None, zone="lower", severity=0.5, certain=True, seed=1):
    side = side or ("bilateral" if finding in BILATERAL else "midline" if finding in MIDLINE else "right")
    zone = "diffuse" if finding in BILATERAL else zone
    return Lesion(finding, side, zone, severity, certain, seed)


def sentences_of(report):
    text = re.sub(r"\b(FINDINGS|IMPRESSION):|\b\d\.(?=\s)", "\n", report)
    return [part.strip().lower() for part in re.split(r"[.\n]", text) if part.strip()]


def mentions(finding, report):
    """The sentences of a report that mention a finding, as (sentence, is it denied)."""
    found = [part for part in sentences_of(report) if re.search(MENTIONS[finding], part)]
    return [(part, bool(re.search(NEGATION, part))) for part in found]


def write_many(case, n=150, prior=None):
    return [write_report(case, np.random.default_rng(seed), prior) for seed in range(n)]


@pytest.mark.parametrize("finding", PREVALENCE)
def test_a_present_finding_is_mentioned_and_never_denied(finding):
    for severity in (0.1, 0.5, 0.95):
        for report in write_many(make_case(make_lesion(finding, severity=severity)), 80):
            stated = mentions(finding, report)
            assert stated, report
            assert not any(denied for _, denied in stated), report
            assert not any(re.search(HEDGES, part) and "malignancy" not in part for part, _ in stated), report


@pytest.mark.parametrize("finding", PREVALENCE)
def test_no_other_finding_is_asserted(finding):
    for side in ("left",) if finding in ONE_SIDED else ("left", "bilateral"):
        for certain in (True, False):
            lesion = make_lesion(finding, side=None if finding in BILATERAL + MIDLINE else side, certain=certain)
            for report in write_many(make_case(lesion), 60):
                for other in set(PREVALENCE) - {finding}:
                    assert all(denied for _, denied in mentions(other, report)), (other, report)


def test_nothing_is_asserted_in_a_normal_report():
    for report in write_many(make_case(), 300):
        for finding in PREVALENCE:
            assert all(denied for _, denied in mentions(finding, report)), (finding, report)


@pytest.mark.parametrize("finding", sorted(set(PREVALENCE) - {"Support Devices"}))
def test_an_uncertain_finding_is_hedged_wherever_it_is_mentioned(finding):
    for report in write_many(make_case(make_lesion(finding, certain=False))):
        stated = mentions(finding, report)
        assert stated, report
        for part, _ in stated:
            assert re.search(HEDGES, part), report


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("finding", sorted(set(PREVALENCE) - {"Support Devices", *BILATERAL, *MIDLINE}))
def test_the_side_is_told_and_is_the_right_one(finding, side):
    other = {"left": "right", "right": "left"}[side]
    for report in write_many(make_case(make_lesion(finding, side=side)), 80):
        assert re.search(rf"\b{side}", report.lower()), report
        assert not re.search(rf"\b{other}", report.lower()), report
        assert "bilateral" not in report.lower()


@pytest.mark.parametrize("zone", ["upper", "middle", "lower"])
@pytest.mark.parametrize("finding", ZONED)
def test_the_zone_is_told_and_is_the_right_one(finding, zone):
    words = {"upper": r"\bupper\b", "middle": r"\bmid\b", "lower": r"\blower\b|\bbases?\b"}
    for side in ("left",) if finding in ONE_SIDED else ("left", "bilateral"):
        for report in write_many(make_case(make_lesion(finding, side=side, zone=zone)), 60):
            assert re.search(words[zone], report), report
            for other in set(words) - {zone}:
                assert not re.search(words[other], report), report


@pytest.mark.parametrize("finding", sorted(set(PREVALENCE) - {"Support Devices"}))
def test_severity_is_told_by_other_words_when_it_is_gross(finding):
    mild = " ".join(write_many(make_case(make_lesion(finding, severity=0.1)), 80)).lower().split()
    gross = " ".join(write_many(make_case(make_lesion(finding, severity=0.95)), 80)).lower().split()
    only_gross = {word.strip(".,:") for word in gross} - {word.strip(".,:") for word in mild}
    marks = "large large-volume massive severe severely marked markedly extensive dense bulky frank coarse dominant"
    assert only_gross & {*marks.split(), "displaced", "advanced", "thick-walled"}


@pytest.mark.parametrize("finding", PREVALENCE)
def test_each_finding_has_at_least_four_phrasings(finding):
    phrasings = {
        re.split(r" in | at ", part)[0]
        for report in write_many(make_case(make_lesion(finding)))
        for part, _ in mentions(finding, split_sections(report)["findings"])
    }
    assert len(phrasings) >= 4


def test_reports_have_both_sections_and_a_usual_length():
    cases = simulate_cases(1500, PREVALENCE, np.random.default_rng(3))
    reports = [write_report(case, np.random.default_rng(number)) for number, case in enumerate(cases)]
    assert all(all(split_sections(report).values()) for report in reports)
    assert 25 <= np.mean([len(report.split()) for report in reports]) <= 40
    normal = [report for report, case in zip(reports, cases, strict=True) if not case.lesions]
    assert len(set(normal)) > 0.9 * len(normal)
    everything = " ".join(reports)
    assert not re.search(r"[\[\]{}]|  | ,| \.|\.\.", everything)
    assert not re.search(r"\ba [aeio]|\ban [bcdfgjklmnpqrstvwxz]", everything)


def test_crowded_cases_name_every_lesion():
    for case in simulate_enriched_cases(200, PREVALENCE, np.random.default_rng(1), positives=8):
        report = write_report(case, np.random.default_rng(case.seed))
        findings = split_sections(report)["findings"]
        for lesion in case.lesions:
            assert mentions(lesion.finding, findings), (lesion, report)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (0.2, 0.8, r"increased|worse|progressed"),
        (0.8, 0.2, r"decreased|improved|less marked"),
        (0.5, 0.52, r"unchanged|stable|similar"),
    ],
)
def test_a_follow_up_tells_the_true_change(before, now, words):
    prior = make_case(make_lesion("Pleural Effusion", severity=before))
    case = make_case(make_lesion("Pleural Effusion", severity=now), study_number=1)
    changes = r"increased|worse|progressed|decreased|improved|less marked|unchanged|stable|similar|new |resol"
    told = [re.search(changes, report) for report in write_many(case, prior=prior)]
    assert sum(found is not None for found in told) > 50
    assert all(re.fullmatch(words, found.group().strip()) for found in told if found)
    assert not any(re.search(changes, report) for report in write_many(case))


def test_a_finding_that_came_or_went_is_new_or_resolved():
    sick, well = make_case(make_lesion("Edema")), make_case()
    assert sum(", new" in report for report in write_many(sick, prior=well)) > 50
    gone = write_many(well, prior=sick)
    assert sum("resol" in report for report in gone) > 30
    assert all(denied for report in gone for _, denied in mentions("Edema", report))


def test_the_same_generator_state_gives_the_same_report():
    case = make_case(make_lesion("Mass"), make_lesion("Edema"))
    assert write_many(case, 20) == write_many(case, 20)
