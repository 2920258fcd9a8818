"""The simulated patients: prevalence, co-occurrence, course over studies, enrichment."""

import numpy as np
import pytest

from chexstudy.cohort.phantom.population import (
    MAXIMAL_STUDIES,
    PREVALENCE,
    permute_prevalence,
    simulate_cases,
    simulate_enriched_cases,
)
from chexstudy.errors import StudyError

FINDINGS = list(PREVALENCE)
CHRONIC = ("Cardiomegaly", "Emphysema", "Scoliosis", "Hernia", "Fibrosis", "Calcified Granuloma", "Aortic Enlargement")


def presence(cases):
    return np.array([[name in {lesion.finding for lesion in case.lesions} for name in FINDINGS] for case in cases])


def patients_of(cases):
    by_patient = {}
    for case in cases:
        by_patient.setdefault(case.patient.patient_id, []).append(case)
    return by_patient


@pytest.fixture(scope="module")
def cases():
    return simulate_cases(15_000, PREVALENCE, np.random.default_rng(11))


def test_marginal_prevalence_is_met_within_sampling_error(cases):
    seen = presence(cases)
    groups = np.unique([case.patient.patient_id for case in cases], return_inverse=True)[1]
    for column, (name, wanted) in enumerate(PREVALENCE.items()):
        # The patient is the unit of sampling: the variance of the total is that of the patients' totals.
        totals = np.bincount(groups, weights=seen[:, column] - wanted)
        error = np.sqrt((totals**2).sum()) / len(cases)
        assert abs(seen[:, column].mean() - wanted) < 4 * error, name


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_in_five_studies_have_no_finding_however_prevalence_is_permuted(seed):
    prevalence = permute_prevalence(PREVALENCE, np.random.default_rng(seed)) if seed else PREVALENCE
    cases = simulate_cases(5_000, prevalence, np.random.default_rng(seed))
    assert 0.56 < np.mean([not case.lesions for case in cases]) < 0.64


@pytest.mark.parametrize(
    ("first", "second", "times"),
    [
        ("Edema", "Cardiomegaly", 2),
        ("Edema", "Pleural Effusion", 2),
        ("Consolidation", "Pleural Effusion", 2),
        ("Atelectasis", "Pleural Effusion", 2),
        ("Rib Fracture", "Pneumothorax", 3),
        ("Cavity", "Tuberculosis", 5),
    ],
)
def test_findings_with_a_shared_cause_occur_together(cases, first, second, times):
    seen = presence(cases)
    a, b = seen[:, FINDINGS.index(first)], seen[:, FINDINGS.index(second)]
    assert (a & b).mean() > times * a.mean() * b.mean()


def test_the_sick_lie_in_bed_and_carry_devices(cases):
    portable = np.array([case.view == "AP" for case in cases])
    sick = np.array([bool(case.lesions) for case in cases])
    devices = presence(cases)[:, FINDINGS.index("Support Devices")]
    assert portable[sick].mean() > 1.5 * portable[~sick].mean()
    assert devices[portable].mean() > 3 * devices[~portable].mean()


def test_age_goes_with_what_comes_with_age(cases):
    ages = np.array([case.patient.age_years for case in cases])
    seen = presence(cases)
    assert ages.min() >= 18
    assert ages.max() <= 95
    for name in ("Hernia", "Emphysema", "Aortic Enlargement"):
        assert ages[seen[:, FINDINGS.index(name)]].mean() > ages.mean() + 5, name


def test_about_seven_in_a_hundred_lesions_are_hedged_and_never_a_device(cases):
    lesions = [lesion for case in cases for lesion in case.lesions]
    assert 0.055 < np.mean([not lesion.certain for lesion in lesions]) < 0.085
    assert all(lesion.certain for lesion in lesions if lesion.finding == "Support Devices")
    assert {lesion.side for lesion in lesions} == {"left", "right", "bilateral", "midline"}
    assert {lesion.zone for lesion in lesions} == {"upper", "middle", "lower", "diffuse", ""}
    assert all(0 <= lesion.severity <= 1 for lesion in lesions)


def test_studies_of_a_patient_are_numbered_and_share_the_patient(cases):
    for studies in patients_of(cases).values():
        assert [case.study_number for case in studies] == list(range(len(studies)))
        assert len(studies) <= MAXIMAL_STUDIES
        assert len({case.patient for case in studies}) == 1
        assert len({case.seed for case in studies}) == len(studies)


def test_chronic_findings_stay_in_place_and_acute_ones_come_and_go(cases):
    several = [studies for studies in patients_of(cases).values() if len(studies) > 1]
    changed = 0
    for studies in several:
        for name in CHRONIC:
            places = [{(x.side, x.zone, x.seed) for x in case.lesions if x.finding == name} for case in studies]
            assert len({frozenset(place) for place in places}) == 1, name
        effusion = ["Pleural Effusion" in {x.finding for x in case.lesions} for case in studies]
        changed += len(set(effusion)) == 2
    assert changed > 100


def test_severity_drifts_within_a_patient_less_than_it_varies_between_patients(cases):
    hearts = [
        [lesion.severity for case in studies for lesion in case.lesions if lesion.finding == "Cardiomegaly"]
        for studies in patients_of(cases).values()
    ]
    steps = np.concatenate([np.diff(values) for values in hearts if len(values) > 1])
    between = np.std([values[0] for values in hearts if values])
    assert 0.01 < np.abs(steps).mean() < 0.5 * between


def test_a_fracture_lies_on_the_side_of_the_pneumothorax(cases):
    same = [
        sides["Rib Fracture"] == sides["Pneumothorax"]
        for case in cases
        for sides in [{lesion.finding: lesion.side for lesion in case.lesions}]
        if {"Rib Fracture", "Pneumothorax"} <= set(sides)
    ]
    assert len(same) > 10
    assert np.mean(same) > 0.75


def test_the_same_seed_gives_the_same_cases_and_another_one_others():
    once, again, other = (simulate_cases(300, PREVALENCE, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert once == again
    assert once != other
    assert len(once) == 300


def test_enriched_cases_hold_enough_certain_positives_of_each_finding():
    cases = simulate_enriched_cases(600, PREVALENCE, np.random.default_rng(2), positives=30, first_patient=9000)
    assert len(cases) == 600
    assert len({case.patient.patient_id for case in cases}) == 600
    assert min(int(case.patient.patient_id[1:]) for case in cases) == 9000
    certain = [lesion.finding for case in cases for lesion in case.lesions if lesion.certain]
    assert min(certain.count(name) for name in FINDINGS) >= 30
    assert any(not case.lesions for case in cases)


@pytest.mark.parametrize(
    ("prevalence", "message"), [({"Gout": 0.1}, "no finding 'Gout'"), ({"Edema": 1.2}, "between 0 and 1")]
)
def test_what_cannot_be_simulated_is_refused(prevalence, message):
    with pytest.raises(StudyError, match=message):
        simulate_cases(10, prevalence, np.random.default_rng(0))
    with pytest.raises(StudyError, match="cannot hold 50 positives"):
        simulate_enriched_cases(100, PREVALENCE, np.random.default_rng(2), positives=50)
