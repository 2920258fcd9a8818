"""Which images a labelling budget buys: repeated, stratified, patient-wise draws from the training split.

A draw of n is the beginning of a sequence in which every beginning is stratified. The next image is of the patient who
was drawn least so far, in random order among equals: all images are of distinct patients as long as there are any, and
a patient gives a second image only when no other is left. Patients with many images are therefore not favoured.

Lists, balance and repetitions behind the published curves are not in the paper (A3), so that all are parameters here.
Each draw has a random stream of its own, made of seed, finding, n and draw: it does not change when the grid does, and
all encoders are compared on the same draws.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.table import label_matrix
from chexstudy.errors import StudyError
from chexstudy.statistics.ranking import known_labels

UNITS = ("cases", "positives")
BALANCES = ("natural", "equal")
ALL = "all"


@dataclass(frozen=True)
class LabelPool:
    """The images that a finding's labels can be drawn from: those where it is known to be present or absent."""

    finding: str  # its name
    rows: np.ndarray  # int64 ``(images,)``, positions in the table the pool was made of
    present: np.ndarray  # bool ``(images,)``
    patients: np.ndarray  # int64 ``(images,)``, a number for each patient

    @property
    def prevalence(self) -> float:
        return float(self.present.mean())

    def count(self, unit: str) -> int:
        """The largest draw there can be."""
        return int(self.present.sum()) if unit == "positives" else len(self.rows)


@dataclass(frozen=True)
class LabelDraw:
    """Images drawn for labelling."""

    rows: np.ndarray  # int64 ``(images,)``, positions in the pool's table, in the order drawn
    positives: int  # how many have the finding
    patients: int  # how many patients they are of


def make_pool(cohort: pd.DataFrame, finding: str) -> LabelPool:
    """The pool of one finding in rows of the cohort table, as a rule those of the training split."""
    labels = label_matrix(cohort, [finding])[:, 0]
    rows = np.flatnonzero(known_labels(labels))
    present = labels[rows] == 1
    for wanted, word in ((present, "no positive"), (~present, "no negative")):
        if not wanted.any():
            raise StudyError(
                f"{finding} has {word} among the {len(rows):,} images with a known label in the training split: leave "
                "it out, or add images."
            )
    patients = pd.factorize(cohort.patient_id.to_numpy())[0][rows]
    return LabelPool(finding, rows, present, patients.astype(np.int64))


def count_classes(pool: LabelPool, n: int, unit: str = "cases", balance: str = "natural") -> tuple[int, int]:
    """How many positives and negatives a draw of n holds.

    In ``cases`` it is n images at the pool's prevalence, rounded, but at least one positive and one negative. In
    ``positives`` it is n of them and, for each, as many negatives as in the pool (``natural``) or one (``equal``).
    """
    return tuple(int(steps[-1]) for steps in _count_steps(pool, n, unit, balance))


def _count_steps(pool: LabelPool, n: int, unit: str, balance: str) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives of every draw from the smallest up to n; both only rise, so that draws can be nested."""
    if unit not in UNITS or balance not in BALANCES:
        wrong, known = (unit, UNITS) if unit not in UNITS else (balance, BALANCES)
        raise StudyError(f"labels are not drawn by {wrong!r}: use {' or '.join(known)}.")
    least = 2 if unit == "cases" else 1
    if n < least:
        raise StudyError(f"{n} labels of {pool.finding} hold no two classes: draw {least} or more.")
    there = pool.count(unit)
    if n > there:
        kind = "images with the finding" if unit == "positives" else "images with a known label"
        raise StudyError(f"{n:,} of {pool.finding} cannot be drawn: the training split has {there:,} {kind}.")
    steps = np.arange(least, n + 1)
    if unit == "cases":
        positives = np.clip(np.floor(steps * pool.prevalence + 0.5).astype(int), 1, steps - 1)
        return positives, steps - positives
    ratio = (1 - pool.prevalence) / pool.prevalence if balance == "natural" else 1.0
    negatives = np.maximum(np.floor(steps * ratio + 0.5).astype(int), 1)
    if negatives[-1] > (~pool.present).sum():
        raise StudyError(
            f"{n:,} positives of {pool.finding} need {negatives[-1]:,} negatives: the training split has "
            f"{(~pool.present).sum():,}."
        )
    return steps, negatives


def draw_labels(
    pool: LabelPool,
    n: int,
    draw: int,
    seed: int,
    *,
    unit: str = "cases",
    balance: str = "natural",
    nested: bool = False,
) -> LabelDraw:
    """Draw n labelled images, stratified by the finding (`count_classes`), for the repetition of number ``draw``.

    Nested, a draw holds every smaller draw of the same number; else draws of different n are independent.
    """
    positives, negatives = _count_steps(pool, n, unit, balance)
    stream = [seed, zlib.crc32(pool.finding.encode()), 0 if nested else n, draw]
    generator = np.random.default_rng(stream)
    used = [0] * (int(pool.patients.max()) + 1)
    present, absent = (_Stratum(pool, label, used, generator) for label in (True, False))
    rows: list[int] = []
    for step in np.diff([positives, negatives], prepend=0, axis=1).T.tolist():
        for stratum, more in zip((present, absent), step, strict=True):
            rows += [stratum.take() for _ in range(more)]
    return LabelDraw(np.array(rows), int(positives[-1]), sum(count > 0 for count in used))


class _Stratum:
    """The images of one class, handed out one by one: those of the patients drawn least so far first.

    ``used`` counts the images each patient has given so far and is shared by both classes. It only grows, so a patient
    once passed over at a level never falls back to it, and one scan for each level finds the least used.
    """

    def __init__(self, pool: LabelPool, present: bool, used: list[int], generator: np.random.Generator):
        rows, patients = pool.rows[pool.present == present], pool.patients[pool.present == present]
        # Ordered by a random key within the patient: which image of a patient comes first is chance.
        order = np.lexsort((generator.random(len(rows)), patients))
        rows, patients = rows[order], patients[order]
        starts = np.flatnonzero(np.diff(patients, prepend=-1))
        self._rows = rows.tolist()
        self._ends = dict(zip(patients[starts].tolist(), [*starts[1:].tolist(), len(rows)], strict=True))
        self._next = dict(zip(patients[starts].tolist(), starts.tolist(), strict=True))
        self._queue = generator.permutation(patients[starts]).tolist()
        self._used = used
        self._place, self._level = 0, 0

    def take(self) -> int:
        """The position of the next image."""
        while True:
            while self._place < len(self._queue):
                patient = self._queue[self._place]
                self._place += 1
                if self._used[patient] == self._level and self._next[patient] < self._ends[patient]:
                    row = self._rows[self._next[patient]]
                    self._next[patient] += 1
                    self._used[patient] += 1
                    return row
            # The next scan is of the patients who still have an image to give.
            self._level, self._place = self._level + 1, 0
            self._queue = [patient for patient in self._queue if self._next[patient] < self._ends[patient]]


def resolve_grid(pool: LabelPool, grid: Sequence[int | str], unit: str = "cases") -> list[int]:
    """The label counts of a grid for one finding, ascending: ``all`` is as many as the pool has."""
    counts = set()
    for step in grid:
        if step != ALL and not str(step).isdigit():
            raise StudyError(f"a grid of label counts holds whole numbers and {ALL!r}, not {step!r}.")
        counts.add(pool.count(unit) if step == ALL else int(step))
    return sorted(counts)
