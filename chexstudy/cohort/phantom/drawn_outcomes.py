"""What becomes of the simulated patients: outcomes whose true hazard is known.

Death from any cause and a first cardiovascular event have proportional hazards, constant in time, by the first study:
log hazard a year = base + age (decades from 65) + male sex + the sum over findings of coefficient times severity. Given
these they are independent; death, loss to follow-up at random, and the end 8 to 12 years after the first study end
observation.

A patient has one date of each; later studies fall at random in the first year of observation, and times count from
their own dates. Who had the event before a study has no outcome of that study. ``tube_malposition`` has no time, and is
unknown without an endotracheal tube or central catheter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.phantom.case import Case
from chexstudy.cohort.phantom.drawn_devices import find_malposition
from chexstudy.cohort.phantom.plan import Pair, stream
from chexstudy.cohort.phantom.population import MAXIMAL_STUDIES, SUPPORT_DEVICES
from chexstudy.cohort.table import OUTCOME_PREFIX, YEARS_SUFFIX
from chexstudy.inputs.yaml_files import read_data_beside

DEATH, CVD_EVENT, TUBE_MALPOSITION = "death", "cvd_event", "tube_malposition"
TRUE_RISK_YEARS = 5.0

_CLOSING_YEARS = (8.0, 12.0)
_LOST_PER_YEAR = 0.015
_YEARS_OF_STUDIES = 1.0
_DAYS_PER_YEAR = 365.25


@dataclass(frozen=True)
class Hazard:
    """A constant hazard and the logarithms of its ratios."""

    per_year: float  # of a woman of 65 without any finding
    per_decade: float  # log ratio of ten years of age
    male: float  # log ratio of men to women
    findings: Mapping[str, float]  # log ratio of a finding of full severity to none, by finding; others do not matter

    def log_of(self, case: Case) -> float:
        """The logarithm of the hazard a year of a patient with this study."""
        severity = sum(self.findings.get(lesion.finding, 0.0) * lesion.severity for lesion in case.lesions)
        age = self.per_decade * (case.patient.age_years - 65) / 10
        return float(np.log(self.per_year) + age + self.male * (case.patient.sex == "M") + severity)


HAZARDS = {outcome: Hazard(**hazard) for outcome, hazard in read_data_beside(__file__).items()}


def simulate_outcomes(pairs: list[Pair], ids: list[str], seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The outcome columns of a planned cohort, one row a pair, and their truth.

    The truth has ``image_id``, ``outcome``, ``log_hazard`` (a year, natural logarithm) and ``risk_5_years``, that of
    the event as if nothing else could end observation. Each patient has a random stream.
    """
    of_patient: dict[str, list[Case]] = {}
    for pair in pairs:
        of_patient.setdefault(pair.case.patient.patient_id, []).append(pair.case)
    patients = {}
    for number, (patient_id, cases) in enumerate(of_patient.items()):
        first = min(cases, key=lambda case: case.study_number)
        patients[patient_id] = _Course(first, stream(seed, "outcome", number))
    columns = {name: [] for outcome in HAZARDS for name in (outcome, f"{outcome}{YEARS_SUFFIX}")}
    columns[TUBE_MALPOSITION] = []
    truth = []
    for image_id, pair in zip(ids, pairs, strict=True):
        course = patients[pair.case.patient.patient_id]
        for outcome, log_hazard in course.log_hazards.items():
            happened, years = course.tell(outcome, pair.case.study_number)
            columns[outcome].append(happened)
            columns[f"{outcome}{YEARS_SUFFIX}"].append(years)
            truth.append((image_id, outcome, log_hazard, -np.expm1(-TRUE_RISK_YEARS * np.exp(log_hazard))))
        devices = (lesion for lesion in pair.case.lesions if lesion.finding == SUPPORT_DEVICES)
        found = [wrong for wrong in map(find_malposition, devices) if wrong is not None]
        columns[TUBE_MALPOSITION].append(int(any(found)) if found else None)
    table = pd.DataFrame({f"{OUTCOME_PREFIX}{name}": values for name, values in columns.items()})
    kinds = {name: "float32" if name.endswith(YEARS_SUFFIX) else "Int8" for name in table}
    return table.astype(kinds), pd.DataFrame(truth, columns=["image_id", "outcome", "log_hazard", "risk_5_years"])


class _Course:
    """The dates of one patient, in years from the first study."""

    def __init__(self, first: Case, generator: np.random.Generator):
        self.log_hazards = {outcome: hazard.log_of(first) for outcome, hazard in HAZARDS.items()}
        self._happens = {
            outcome: float(generator.exponential() / np.exp(log_hazard))
            for outcome, log_hazard in self.log_hazards.items()
        }
        lost = generator.exponential() / _LOST_PER_YEAR
        self._end = float(min(self._happens[DEATH], lost, generator.uniform(*_CLOSING_YEARS)))
        later = np.sort(generator.random(MAXIMAL_STUDIES - 1))
        self._dates = [0.0, *(later * min(_YEARS_OF_STUDIES, self._end)).tolist()]

    def tell(self, outcome: str, study_number: int) -> tuple[int | None, float]:
        """Whether the outcome happened while a study's patient was observed, and when, in years from the study."""
        date, happens = self._dates[study_number], self._happens[outcome]
        if happens <= date:
            return None, float("nan")
        days = np.ceil((min(happens, self._end) - date) * _DAYS_PER_YEAR)
        return int(happens <= self._end), float(max(days, 1.0) / _DAYS_PER_YEAR)
