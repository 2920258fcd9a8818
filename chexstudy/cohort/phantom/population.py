"""Simulated patients: who they are, what they have, how it changes from study to study, how they were exposed.

A multivariate probit model. Every finding has a latent score, standard normal over all studies, of shared causes (age,
heart disease, smoking, infection, critical illness ...) and a part of its own, and is present in the upper tail whose
area is its prevalence; so every prevalence holds by construction while findings occur together. General illness loads
on all of them, so strongly that the wanted share of studies has no finding. Chronic findings stay through a patient's
studies, acute ones come and go. How far a score lies in the tail gives the severity.

``Lung Opacity`` is one without a more specific name, and not implied by consolidation, edema or mass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from chexstudy.cohort.phantom.case import Case, Lesion, Patient
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

MAXIMAL_STUDIES = 5
SUPPORT_DEVICES = "Support Devices"

_SHARE_OF_STUDY_COUNTS = (0.55, 0.20, 0.12, 0.08, 0.05)
_PATIENT_CAUSES = ("age", "heart", "smoking", "tubercle", "tumour", "scarring", "injury")
_STUDY_CAUSES = ("failure", "infection", "critical", "basal")
_CAUSES = (*_PATIENT_CAUSES, *_STUDY_CAUSES)
# How much of a cause or of a finding's own part lasts from one study of a patient to the next.
_PERSISTENCE_OF_CAUSES = 0.6
_PERSISTENCE_OF_FINDINGS = 0.7
# The part of general illness that is constant in a patient, as a share of its variance.
_CONSTANT_ILLNESS = 0.6
_SHARE_OF_AP = 0.38
_AP_LOADINGS = MappingProxyType({"critical": 0.5, "failure": 0.2})
_AP_ILLNESS = 0.5
_PATIENTS_FOR_CALIBRATION = 12_000
_SHARE_WITHOUT_FINDING = 0.6  # of the studies, as far as the prevalence allows
_SHARE_HEDGED = 0.07  # of the lesions, of which the reporting radiologist is not certain


@dataclass(frozen=True)
class _Profile:
    """How a finding behaves: how common it is, what causes it, whether it lasts, and where it lies."""

    prevalence: float
    chronic: bool
    illness: float
    causes: dict[str, float]
    sides: dict[str, float]
    zones: dict[str, float] = field(default_factory=lambda: {"": 1.0})
    beside: str = ""


# What each means is told in ``population.yaml``.
_PROFILES = {name: _Profile(**profile) for name, profile in read_data_beside(__file__).items()}
PREVALENCE = {name: profile.prevalence for name, profile in _PROFILES.items()}


@dataclass(frozen=True)
class _Population:
    """Who has what, one row a study; the details of a patient are drawn from ``patient_seed`` when needed."""

    findings: tuple[str, ...]
    patient: np.ndarray  # (studies,) position of the patient
    study_number: np.ndarray  # (studies,)
    present: np.ndarray  # (studies, findings) bool
    severity: np.ndarray  # (studies, findings) 0 to 1
    certain: np.ndarray  # (studies, findings) bool
    portable: np.ndarray  # (studies,) bool, AP
    age_years: np.ndarray  # (patients,)
    patient_seed: np.ndarray  # (patients,) int64


def simulate_cases(
    n: int, prevalence: Mapping[str, float], generator: np.random.Generator, first_patient: int = 0
) -> list[Case]:
    """Simulate ``n`` studies of patients with 1 to 5 studies each, those of a patient in order and side by side.

    The prevalence of a finding is the share of studies that have it. Patients are numbered from ``first_patient`` on.
    """
    _check_prevalence(prevalence)
    counts = 1 + generator.choice(MAXIMAL_STUDIES, size=max(n, 1), p=_SHARE_OF_STUDY_COUNTS)
    counts = counts[: np.searchsorted(np.cumsum(counts), n) + 1]
    population = _draw_population(counts, prevalence, generator)
    return _build_cases(population, np.arange(n), first_patient)


def simulate_enriched_cases(
    n: int, prevalence: Mapping[str, float], generator: np.random.Generator, positives: int, first_patient: int = 0
) -> list[Case]:
    """Simulate ``n`` studies, one a patient, in which each finding is certainly present at least ``positives`` times.

    A large population is drawn at natural prevalence; the rarest finding takes its studies first, then the next. What
    remains is filled with studies as they come, so co-occurrence and severity within a finding stay natural.
    """
    _check_prevalence(prevalence)
    rarest = min(prevalence.values())
    # Twice what is needed on average, and some more so that chance does not leave a small request short.
    pool = max(2 * n, int((2 * positives + 20) / rarest))
    population = _draw_population(np.ones(pool, dtype=int), prevalence, generator)
    stated = population.present & population.certain
    order = generator.permutation(pool)
    chosen = np.zeros(pool, dtype=bool)
    for column in np.argsort([prevalence[name] for name in population.findings], kind="stable"):
        candidates = order[stated[order, column] & ~chosen[order]]
        chosen[candidates[: max(positives - int(stated[chosen, column].sum()), 0)]] = True
    if chosen.sum() > n:
        raise StudyError(
            f"{n} studies cannot hold {positives} positives of each of {len(prevalence)} findings: "
            "ask for more pairs or fewer positives."
        )
    chosen[order[~chosen[order]][: n - int(chosen.sum())]] = True
    return _build_cases(population, order[chosen[order]], first_patient, renumber=True)


def permute_prevalence(prevalence: Mapping[str, float], generator: np.random.Generator) -> dict[str, float]:
    """Give each finding the prevalence of a random one, so that how rare it is does not go with how visible it is."""
    values = generator.permutation(np.array(list(prevalence.values())))
    return dict(zip(prevalence, values.tolist(), strict=True))


def _check_prevalence(prevalence: Mapping[str, float]) -> None:
    for name, share in prevalence.items():
        if name not in _PROFILES:
            raise StudyError(f"the phantom knows no finding {name!r}; it knows {', '.join(_PROFILES)}.")
        if not 0 < share < 1:
            raise StudyError(f"the prevalence of {name!r} is {share}; it must lie between 0 and 1.")


def _draw_population(
    counts: np.ndarray, prevalence: Mapping[str, float], generator: np.random.Generator
) -> _Population:
    findings = tuple(prevalence)
    thresholds = ndtri(1.0 - np.array(list(prevalence.values())))
    strength = _solve_illness(tuple(prevalence.items()))
    parts = _draw_parts(findings, len(counts), int(counts.max()), generator)
    taken = np.arange(int(counts.max())) < counts[:, None]
    scores = _combine_parts(findings, parts, strength)[taken]

    # Given that a finding is present, its depth in the tail is uniform from 0 to 1.
    depth = np.clip(1.0 - (1.0 - ndtr(scores)) / np.array(list(prevalence.values())), 0.0, 1.0)
    severity = np.clip(0.12 + 0.80 * depth**1.2 + 0.06 * parts["drift"][taken], 0.05, 1.0)
    # Mild findings are hedged more often; nobody is in doubt about a device.
    devices = np.array([name == SUPPORT_DEVICES for name in findings])
    doubtful = 1.0 - sum(prevalence[name] for name in findings if name == SUPPORT_DEVICES) / sum(prevalence.values())
    hedge = np.where(devices, 0.0, 2.0 * _SHARE_HEDGED / max(doubtful, 1e-9) * (1.0 - depth))
    # How likely a study was made at the bedside, standard normal over patients.
    loadings = np.array([_AP_LOADINGS.get(cause, 0.0) for cause in _CAUSES])
    illness = parts["illness"] @ np.array([np.sqrt(_CONSTANT_ILLNESS), np.sqrt(1.0 - _CONSTANT_ILLNESS)])
    remaining = np.sqrt(1.0 - (loadings**2).sum() - _AP_ILLNESS**2) * parts["portable"][..., 0]
    portable = parts["causes"] @ loadings + _AP_ILLNESS * illness + remaining
    patient, study_number = np.nonzero(taken)
    return _Population(
        findings=findings,
        patient=patient,
        study_number=study_number,
        present=scores > thresholds,
        severity=severity,
        certain=generator.random(scores.shape) >= hedge,
        portable=portable[taken] > ndtri(1.0 - _SHARE_OF_AP),
        # Adults, most of them between 40 and 85.
        age_years=np.floor(18 + 78 * beta.ppf(ndtr(parts["causes"][:, 0, _CAUSES.index("age")]), 2.6, 1.9)).astype(int),
        patient_seed=generator.integers(2**62, size=len(counts)),
    )


def _draw_parts(
    findings: tuple[str, ...], patients: int, studies: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Standard normal parts of the scores, each ``(patients, studies, ...)``, correlated along a patient's studies."""

    def draw(width: int, persistence: np.ndarray | float) -> np.ndarray:
        parts = generator.standard_normal((patients, studies, width))
        persistence = np.broadcast_to(persistence, width)
        for study in range(1, studies):
            parts[:, study] = persistence * parts[:, study - 1] + np.sqrt(1 - persistence**2) * parts[:, study]
        return parts

    constant = np.array([1.0] * len(_PATIENT_CAUSES) + [_PERSISTENCE_OF_CAUSES] * len(_STUDY_CAUSES))
    own = np.array([1.0 if _PROFILES[name].chronic else _PERSISTENCE_OF_FINDINGS for name in findings])
    return {
        "causes": draw(len(_CAUSES), constant),
        "own": draw(len(findings), own),
        "illness": draw(2, np.array([1.0, _PERSISTENCE_OF_CAUSES])),
        "portable": draw(1, 0.5),
        "drift": draw(len(findings), 0.5),
    }


def _combine_parts(findings: tuple[str, ...], parts: dict[str, np.ndarray], strength: float) -> np.ndarray:
    """The latent scores ``(patients, studies, findings)``, each standard normal over patients."""
    loadings = _loading_matrix(findings)
    illness = strength * np.array([_PROFILES[name].illness for name in findings])
    chronic = np.array([_PROFILES[name].chronic for name in findings])
    constant, changing = parts["illness"][..., :1], parts["illness"][..., 1:]
    mixed = np.sqrt(_CONSTANT_ILLNESS) * constant + np.sqrt(1.0 - _CONSTANT_ILLNESS) * changing
    remaining = np.sqrt(1.0 - (loadings**2).sum(axis=1) - illness**2)
    return parts["causes"] @ loadings.T + illness * np.where(chronic, constant, mixed) + remaining * parts["own"]


def _loading_matrix(findings: tuple[str, ...]) -> np.ndarray:
    return np.array([[_PROFILES[name].causes.get(cause, 0.0) for cause in _CAUSES] for name in findings])


@lru_cache(maxsize=32)
def _solve_illness(prevalence: tuple[tuple[str, float], ...]) -> float:
    """The strength of general illness with which the wanted share has no finding, or the nearest."""
    findings = tuple(name for name, _ in prevalence)
    thresholds = ndtri(1.0 - np.array([share for _, share in prevalence]))
    # The strength belongs to the model, not to a sample: it must not depend on the caller's generator.
    parts = _draw_parts(findings, _PATIENTS_FOR_CALIBRATION, 1, np.random.default_rng(0))
    explained = (_loading_matrix(findings) ** 2).sum(axis=1)
    weights = np.array([_PROFILES[name].illness for name in findings])
    low, high = 0.0, float(np.min(np.sqrt(0.98 - explained) / weights))
    for _ in range(12):
        middle = (low + high) / 2
        without = (_combine_parts(findings, parts, middle) <= thresholds).all(axis=-1).mean()
        low, high = (middle, high) if without < _SHARE_WITHOUT_FINDING else (low, middle)
    return (low + high) / 2


def _build_cases(population: _Population, rows: np.ndarray, first_patient: int, renumber: bool = False) -> list[Case]:
    """The cases of the given rows; each patient's details depend on the patient's seed alone."""
    studies = np.flatnonzero(np.r_[True, np.diff(population.patient) != 0])
    ends = np.r_[studies[1:], len(population.patient)]
    cases: list[Case] = []
    built: dict[int, list[Case]] = {}
    for row in rows:
        position = int(population.patient[row])
        if position not in built:
            number = first_patient + (len(built) if renumber else position)
            built[position] = _build_patient(population, position, number, range(studies[position], ends[position]))
        cases.append(built[position][population.study_number[row]])
    return cases


def _build_patient(population: _Population, position: int, number: int, rows: range) -> list[Case]:
    generator = np.random.default_rng(int(population.patient_seed[position]))
    patient = Patient(
        patient_id=f"p{number:06d}",
        sex="M" if generator.random() < 0.53 else "F",
        age_years=int(population.age_years[position]),
        habitus=float(generator.beta(2.2, 2.2)),
        anatomy_seed=int(generator.integers(2**31)),
    )
    ever = [name for column, name in enumerate(population.findings) if population.present[rows, column].any()]
    places = _place_findings(ever, generator)
    return [_expose_patient(patient, population, row, places, generator) for row in rows]


def _place_findings(findings: list[str], generator: np.random.Generator) -> dict[str, tuple[str, str, int]]:
    """Side, zone and seed of shape of each finding; they stay the same in all studies of a patient."""
    places: dict[str, tuple[str, str, int]] = {}
    # A finding that lies beside another one is placed after it.
    for name in sorted(findings, key=lambda name: (_PROFILES[name].beside in findings, name)):
        profile = _PROFILES[name]
        side, zone = _choose(profile.sides, generator), _choose(profile.zones, generator)
        neighbour = places.get(profile.beside)
        if neighbour is not None and neighbour[0] in profile.sides and generator.random() < 0.9:
            side = neighbour[0]
        places[name] = (side, zone, int(generator.integers(2**31)))
    return places


def _choose(shares: dict[str, float], generator: np.random.Generator) -> str:
    return list(shares)[int(np.searchsorted(np.cumsum(list(shares.values())), generator.random()))]


def _expose_patient(
    patient: Patient,
    population: _Population,
    row: int,
    places: dict[str, tuple[str, str, int]],
    generator: np.random.Generator,
) -> Case:
    """One study: a bedside (AP) film is more tilted, less inspired and noisier than an upright (PA) one."""
    portable = bool(population.portable[row])
    lesions = []
    for column in np.flatnonzero(population.present[row]):
        name = population.findings[column]
        (side, zone, seed), severity = places[name], float(population.severity[row, column])
        lesions.append(Lesion(name, side, zone, severity, bool(population.certain[row, column]), seed))
    noise = (0.022 if portable else 0.013) * np.exp(0.3 * generator.standard_normal() + 0.3 * (patient.habitus - 0.5))
    return Case(
        patient=patient,
        study_number=int(population.study_number[row]),
        view="AP" if portable else "PA",
        rotation_degrees=float(np.clip(generator.normal(0.0, 2.5 if portable else 1.0), -8.0, 8.0)),
        inspiration=float(np.clip(generator.normal(0.55 if portable else 0.80, 0.13), 0.1, 1.0)),
        exposure=float(np.clip(generator.normal(0.0, 0.35 if portable else 0.25), -1.0, 1.0)),
        noise=float(np.clip(noise, 0.005, 0.05)),
        side_marker=str(generator.choice(["L", "R", ""], p=[0.5, 0.35, 0.15])),
        lesions=tuple(lesions),
        seed=int(generator.integers(2**31)),
    )
