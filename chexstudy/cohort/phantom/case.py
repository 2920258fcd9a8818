"""What is on one simulated radiograph: the patient, the exposure and the lesions. Drawing and reports read it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patient:
    """A simulated patient. The anatomy is the same in all studies of the patient.

    Attributes:
        patient_id: name of the patient within the phantom.
        sex: ``F`` or ``M``.
        age_years: age at the first study.
        habitus: body size, 0 (thin) to 1 (large); wider soft tissue, less penetration.
        anatomy_seed: seed of the individual shape (rib spacing, heart axis, lung outline ...).
    """

    patient_id: str
    sex: str
    age_years: int
    habitus: float
    anatomy_seed: int


@dataclass(frozen=True)
class Lesion:
    """One finding at one place.

    Attributes:
        finding: its name in the field, a column of the cohort table.
        side: ``left``, ``right`` (the patient's), ``bilateral`` or ``midline``.
        zone: ``upper``, ``middle``, ``lower``, ``diffuse`` or empty where the finding has no zone.
        severity: 0 (barely visible) to 1 (gross).
        certain: False if the reporting radiologist hedges; the label is then -1.
        seed: seed of its individual shape.
    """

    finding: str
    side: str
    zone: str
    severity: float
    certain: bool
    seed: int


@dataclass(frozen=True)
class Case:
    """One study with one frontal image.

    Attributes:
        patient: who.
        study_number: 0 for the patient's first study.
        view: ``PA`` or ``AP`` (AP: larger heart shadow, scapulae over the lungs, lower inspiration).
        rotation_degrees: in-plane tilt of the patient on the detector.
        inspiration: 0 (expiration, high diaphragm) to 1 (full).
        exposure: -1 (under) to 1 (over-exposed).
        noise: standard deviation of the quantum noise as a fraction of full scale, 0.005 to 0.05.
        side_marker: ``L``, ``R`` or empty: the lead letter on the film.
        lesions: what is wrong, support devices included; empty if there is no finding.
        seed: seed of what is particular to this exposure (noise, vessel jitter).
    """

    patient: Patient
    study_number: int
    view: str
    rotation_degrees: float
    inspiration: float
    exposure: float
    noise: float
    side_marker: str
    lesions: tuple[Lesion, ...]
    seed: int
