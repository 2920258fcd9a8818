"""Plan the phantom cohort: how much of what, who is in which split, and what is planted where.

What is planted lies in the training split alone; the other splits are clean. Splits share no patient.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from chexstudy.cohort.phantom.case import Case
from chexstudy.cohort.phantom.junk import JUNK_KINDS
from chexstudy.cohort.phantom.population import PREVALENCE, permute_prevalence, simulate_cases, simulate_enriched_cases
from chexstudy.errors import StudyError

_BROKEN_KINDS = ("truncated", "page", "empty")
_SPLIT_SHARES = {"validate": 1 / 12, "test": 1 / 6, "test_enriched": 1 / 10}
_SMALLEST_COHORT = 60
# The committed encoders (`chexstudy.encoders.upstream_encoders`) learned from the patients of this seed, in the study
# of this name: no other study may judge on them.
UPSTREAM_SEED, UPSTREAM_STUDY = 1013, "upstream"
# Each purpose has random streams of its own, so that a change in one leaves the others as they are.
_PURPOSES = ("train", "validate", "test", "test_enriched", "planting", "report", "template", "junk", "outcome")


@dataclass(frozen=True)
class PhantomConfig:
    """What the phantom is made of."""

    pairs: int = 8000  # number of image-report pairs in all splits together; about 65 % of them are for training
    size: int = 96  # pixels along a side
    seed: int = 0  # seed of patients, pictures, reports and outcomes
    permutation_seed: int = -1  # of a permutation of which finding has which prevalence; -1 leaves the natural order
    template_share: float = 0.15  # share of the reports that are written from labels by templates
    duplicate_share: float = 0.04  # share of the training pairs that are a second exposure of another one's case
    mismatch_share: float = 0.03  # share of the training pairs that carry the report of another patient
    junk_share: float = 0.015  # share of the training pairs whose image is no frontal radiograph
    broken_files: int = 6  # number of training images that cannot be read
    enriched_positives: int = 0  # of each finding in ``test_enriched``, certain, at the least; 0: one for 20 images
    workers: int = 2  # number of processes; the result does not depend on it

    def __post_init__(self) -> None:
        if self.pairs < _SMALLEST_COHORT:
            raise StudyError(f"the phantom needs at least {_SMALLEST_COHORT} pairs, not {self.pairs}.")
        if self.workers < 1:
            raise StudyError(f"workers must be at least 1, not {self.workers}.")
        shares = (self.template_share, self.duplicate_share, self.mismatch_share, self.junk_share)
        if not all(0 <= share <= 1 for share in shares):
            raise StudyError("the shares of templates, duplicates, mismatches and junk must lie between 0 and 1.")
        if self.broken_files < 0 or sum(self.planted_counts().values()) > 0.4 * self.split_sizes()["train"]:
            raise StudyError(
                "duplicates, mismatches, junk and broken files together must be at most 40 % of the training pairs: "
                "lower their shares or ask for more pairs."
            )

    def split_sizes(self) -> dict[str, int]:
        """Number of pairs in each split."""
        sizes = {split: round(self.pairs * share) for split, share in _SPLIT_SHARES.items()}
        return {"train": self.pairs - sum(sizes.values()), **sizes}

    def planted_counts(self) -> dict[str, int]:
        """Number of training pairs of each planted kind; no pair is of two kinds."""
        train = self.split_sizes()["train"]
        return {
            "duplicate": round(train * self.duplicate_share),
            "mismatched": round(train * self.mismatch_share),
            "junk": round(train * self.junk_share),
            "broken": self.broken_files,
        }

    def prevalence(self) -> dict[str, float]:
        """The prevalence of each finding after the permutation."""
        if self.permutation_seed < 0:
            return dict(PREVALENCE)
        return permute_prevalence(PREVALENCE, np.random.default_rng(self.permutation_seed))


@dataclass(frozen=True)
class Pair:
    """One planned row: what is drawn and what is written."""

    split: str
    case: Case  # what the image shows; the labels are its
    prior: Case | None  # the patient's previous study, or None
    told: int = -1  # position of the pair whose case the report tells, if it is another one; else -1
    duplicate_of: int = -1  # position of the pair whose case is exposed a second time, or -1
    junk: str = ""  # kind of junk, or empty
    broken: str = ""  # kind of broken file, or empty


def derive_seed(seed: int, purpose: str, *rows: int) -> tuple[int, ...]:
    """The seed of one purpose and, with a position, of one row."""
    return (seed, _PURPOSES.index(purpose), *rows)


def stream(seed: int, purpose: str, *rows: int) -> np.random.Generator:
    """The random stream of one purpose and, with a position, of one row."""
    return np.random.default_rng(derive_seed(seed, purpose, *rows))


def plan_pairs(config: PhantomConfig) -> list[Pair]:
    """All rows of the cohort in their order: split by split, the studies of a patient side by side."""
    prevalence, sizes, planted = config.prevalence(), config.split_sizes(), config.planted_counts()
    pairs: list[Pair] = []
    first_patient = 0
    for split, n in sizes.items():
        generator = stream(config.seed, split)
        if split == "test_enriched":
            positives = config.enriched_positives or n // 20
            cases = simulate_enriched_cases(n, prevalence, generator, positives, first_patient=first_patient)
        else:
            # Second exposures are added to the training cases below.
            n -= planted["duplicate"] if split == "train" else 0
            cases = simulate_cases(n, prevalence, generator, first_patient=first_patient)
        first_patient += len({case.patient.patient_id for case in cases})
        # The previous study is one of the same patient.
        former = [
            before if before and before.patient == case.patient else None for before, case in pairwise([None, *cases])
        ]
        rows = [Pair(split, case, prior) for case, prior in zip(cases, former, strict=True)]
        pairs += _plant_nuisances(rows, planted, stream(config.seed, "planting")) if split == "train" else rows
    return pairs


def _plant_nuisances(rows: list[Pair], planted: dict[str, int], generator: np.random.Generator) -> list[Pair]:
    """Plant the known amounts of each kind in the training rows, which grow by the duplicates."""
    order = generator.permutation(len(rows)).tolist()
    originals = [order.pop() for _ in range(planted["duplicate"])]
    mismatched = [order.pop() for _ in range(planted["mismatched"])]
    for number, position in enumerate(order.pop() for _ in range(planted["junk"])):
        rows[position] = replace(rows[position], junk=JUNK_KINDS[number % len(JUNK_KINDS)])
    for number, position in enumerate(order.pop() for _ in range(planted["broken"])):
        rows[position] = replace(rows[position], broken=_BROKEN_KINDS[number % len(_BROKEN_KINDS)])
    for position in mismatched:
        rows[position] = replace(rows[position], told=_find_stranger(rows, position, generator))
    return _insert_duplicates(rows, sorted(originals), generator)


def _find_stranger(rows: list[Pair], position: int, generator: np.random.Generator) -> int:
    """Another patient's row with other findings, so that the swapped report is wrong for the image."""
    case = rows[position].case
    findings = {lesion.finding for lesion in case.lesions}
    for other in generator.permutation(len(rows)).tolist():
        stranger = rows[other].case
        if stranger.patient != case.patient and {lesion.finding for lesion in stranger.lesions} != findings:
            return other
    raise StudyError("no two training cases differ in their findings, so no report can be swapped: ask for more pairs.")


def _insert_duplicates(rows: list[Pair], originals: list[int], generator: np.random.Generator) -> list[Pair]:
    """Put a second exposure behind each original, as a repeated film stands in a real archive."""
    moved = np.arange(len(rows)) + np.searchsorted(originals, np.arange(len(rows)), side="left")
    longer: list[Pair] = []
    for position, row in enumerate(rows):
        longer.append(row if row.told < 0 else replace(row, told=int(moved[row.told])))
        if position in originals:
            duplicate_of = len(longer) - 1
            longer.append(replace(row, case=_expose_again(row.case, generator), duplicate_of=duplicate_of))
    return longer


def _expose_again(case: Case, generator: np.random.Generator) -> Case:
    """The same patient a moment later: the same lesions, hardly another position, exposure and noise."""
    return replace(
        case,
        seed=int(generator.integers(2**31)),
        rotation_degrees=case.rotation_degrees + float(generator.normal(0.0, 0.4)),
        exposure=float(np.clip(case.exposure + generator.normal(0.0, 0.12), -1.0, 1.0)),
        noise=float(np.clip(case.noise * np.exp(generator.normal(0.0, 0.15)), 0.005, 0.05)),
        inspiration=float(np.clip(case.inspiration + generator.normal(0.0, 0.02), 0.0, 1.0)),
    )
