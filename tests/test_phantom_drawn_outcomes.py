"""The phantom's outcomes: one course a patient, the hazard that was planted, and what is unknown left empty."""

from dataclasses import replace

import numpy as np
import pytest

from chexstudy.cohort.phantom.case import Case, Lesion, Patient
from chexstudy.cohort.phantom.drawn_devices import find_malposition, place_devices
from chexstudy.cohort.phantom.drawn_outcomes import HAZARDS, simulate_outcomes
from chexstudy.cohort.phantom.plan import Pair, PhantomConfig, plan_pairs


def make_case(number, study_number=0, age=65, sex="F", lesions=()):
    patient = Patient(f"p{number}", sex, age, 0.5, number)
    return Case(patient, study_number, "PA", 0.0, 0.8, 0.0, 0.01, "", tuple(lesions), number)


def simulate(cases, seed=0):
    return simulate_outcomes([Pair("test", case, None) for case in cases], [f"a/{k}" for k in range(len(cases))], seed)


def test_the_true_hazard_is_the_written_formula():
    edema, mass = Lesion("Edema", "bilateral", "diffuse", 0.5, True, 1), Lesion("Mass", "left", "upper", 1.0, False, 1)
    cases = [make_case(0), make_case(1, age=85, sex="M", lesions=[edema, mass])]
    truth = simulate(cases)[1].set_index(["image_id", "outcome"])
    hazard = HAZARDS["death"]
    assert truth.log_hazard["a/0", "death"] == pytest.approx(np.log(hazard.per_year))
    expected = np.log(hazard.per_year) + 2 * hazard.per_decade + hazard.male
    expected += 0.5 * hazard.findings["Edema"] + hazard.findings["Mass"]
    assert truth.log_hazard["a/1", "death"] == pytest.approx(expected)
    assert truth.risk_5_years["a/1", "death"] == pytest.approx(1 - np.exp(-5 * np.exp(expected)))


def test_events_come_at_the_planted_rate():
    """With constant hazards the events divided by the years watched estimate the hazard."""
    cases = [make_case(number) for number in range(20_000)]
    table, _ = simulate(cases)
    for outcome in ("death", "cvd_event"):
        happened, years = table[f"outcome_{outcome}"], table[f"outcome_{outcome}_years"]
        rate = happened.sum() / years.sum()
        # The rate of k events has a standard error of rate / sqrt(k).
        assert rate == pytest.approx(HAZARDS[outcome].per_year, rel=4 / np.sqrt(happened.sum()))
        assert 0 < years.min() <= years.max() <= 12.01


def test_a_patient_dies_once_and_studies_follow_one_another():
    cases = [make_case(number, study_number) for number in range(400) for study_number in range(4)]
    table, truth = simulate(cases)
    death = table.outcome_death.to_numpy(dtype=float).reshape(400, 4)
    years = table.outcome_death_years.to_numpy(dtype=float).reshape(400, 4)
    assert (death == death[:, :1]).all()
    # Whole days are counted, so two studies of one day may have the same time.
    assert (np.diff(years, axis=1) <= 0).all()
    assert (years[:, 0] - years[:, -1]).max() <= 1.01
    assert (years[:, 0] - years[:, -1]).min() < 0.2
    hazards = truth[truth.outcome == "death"].log_hazard.to_numpy().reshape(400, 4)
    assert (hazards == hazards[:, :1]).all()
    # An event before a later study leaves that study's outcome unknown, and those after it too.
    unknown = table.outcome_cvd_event.isna().to_numpy().reshape(400, 4)
    assert unknown.any()
    assert not unknown[:, 0].any()
    assert (np.diff(unknown.astype(int), axis=1) >= 0).all()
    assert (table.outcome_cvd_event_years.isna() == table.outcome_cvd_event.isna()).all()


def test_an_event_ends_with_death():
    cases = [make_case(number, age=90, sex="M") for number in range(2000)]
    table, _ = simulate(cases)
    assert table.equals(simulate(cases)[0])
    assert not table.equals(simulate(cases, seed=1)[0])
    assert (table.outcome_cvd_event_years <= table.outcome_death_years).all()
    died_first = (table.outcome_death == 1) & (table.outcome_cvd_event == 0)
    assert (table.outcome_cvd_event_years[died_first] == table.outcome_death_years[died_first]).all()


def test_the_default_cohort_has_events_enough():
    config = PhantomConfig()
    pairs = plan_pairs(config)
    table, _ = simulate_outcomes(pairs, [str(k) for k in range(len(pairs))], config.seed)
    for split in ("train", "validate", "test"):
        rows = [pair.split == split for pair in pairs]
        for outcome in ("death", "cvd_event"):
            assert 0.17 < table.loc[rows, f"outcome_{outcome}"].mean() < 0.30
        tubes = table.loc[rows, "outcome_tube_malposition"]
        assert 0.05 < tubes.notna().mean() < 0.15
        assert 0.2 < tubes.mean() < 0.6


def test_a_second_exposure_has_the_outcome_of_the_first():
    pairs = plan_pairs(PhantomConfig(pairs=300, duplicate_share=0.2))
    table, _ = simulate_outcomes(pairs, [str(k) for k in range(len(pairs))], 0)
    copies = [k for k, pair in enumerate(pairs) if pair.duplicate_of >= 0]
    originals = [pairs[k].duplicate_of for k in copies]
    assert len(copies) > 10
    assert table.iloc[copies].reset_index(drop=True).equals(table.iloc[originals].reset_index(drop=True))


def test_a_tubes_place_is_wrong_where_its_tip_is():
    devices = [Lesion("Support Devices", "right", "", 0.5, True, seed) for seed in range(600)]
    found = {None: 0, True: 0, False: 0}
    for lesion in devices:
        places = place_devices(lesion)
        tube, line = places.get("endotracheal tube"), places.get("central venous catheter")
        # A board unit is 19.7 cm; the catheter is placed from the base of the heart, 0.12 units under the carina.
        wrong = [tube["above_carina"] * 19.7 < 3] if tube else []
        wrong += [(line["below_base"] + 0.12) * 19.7 > 4] if line else []
        expected = any(wrong) if wrong else None
        assert find_malposition(lesion) is expected
        found[expected] += 1
    assert min(found.values()) > 50


def test_no_tube_is_unknown_not_right():
    lesion = Lesion("Support Devices", "right", "", 0.5, True, 0)
    seeds = {find_malposition(replace(lesion, seed=seed)): seed for seed in range(100)}
    cases = [make_case(0), *(make_case(1, lesions=[replace(lesion, seed=seeds[kind])]) for kind in (None, True, False))]
    tubes = simulate(cases)[0].outcome_tube_malposition
    assert tubes.isna().tolist() == [True, True, False, False]
    assert tubes[2:].tolist() == [1, 0]
