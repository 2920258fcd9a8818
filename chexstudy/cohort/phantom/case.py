"""What is on one simulated radiograph: the patient, the exposure and the lesions. Drawing and reports read it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patient:
    """A simulated patient. The anatomy is the same in all studies of the patient."""

    patient_id: str  # name of the patient within the phantom
    sex: str  # ``F`` or ``M``
    age_years: int  # age at the first study
    habitus: float  # body size, 0 (thin) to 1 (large); wider soft tissue, less penetration
    anatomy_seed: int  # seed of the individual shape (rib spacing, heart axis, lung outline ...)


@dataclass(frozen=True)
class Lesion:
    """One finding at one place."""

    finding: str  # its name in the field, a column of the cohort table
    side: str  # ``left``, ``right`` (the patient's), ``bilateral`` or ``midline``
    zone: str  # ``upper``, ``middle``, ``lower``, ``diffuse`` or empty where the finding has no zone
    severity: float  # 0 (barely visible) to 1 (gross)
    certain: bool  # False if the reporting radiologist hedges; the label is then -1
    seed: int  # seed of its individual shape


@dataclass(frozen=True)
class Case:
    """One study with one frontal image."""

    patient: Patient  # who
    study_number: int  # 0 for the patient's first study
    view: str  # ``PA`` or ``AP`` (AP: larger heart shadow, scapulae over the lungs, lower inspiration)
    rotation_degrees: float  # in-plane tilt of the patient on the detector
    inspiration: float  # 0 (expiration, high diaphragm) to 1 (full)
    exposure: float  # -1 (under) to 1 (over-exposed)
    noise: float  # standard deviation of the quantum noise as a fraction of full scale, 0.005 to 0.05
    side_marker: str  # ``L``, ``R`` or empty: the lead letter on the film
    lesions: tuple[Lesion, ...]  # what is wrong, support devices included; empty if there is no finding
    seed: int  # seed of what is particular to this exposure (noise, vessel jitter)
