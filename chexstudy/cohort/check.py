"""What a study would stumble over, found before any image is read: problems stop a run, remarks do not.

Image files are looked at by name, size and bytes, never decoded.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.cohort.adapters import guess_source, read_source
from chexstudy.cohort.adapters.layout import IMAGES_WITHOUT_ROW
from chexstudy.cohort.adapters.manifest import (
    NO_PATIENT_TOLD,
    NOT_ENGLISH,
    NOT_IN_FOLDER,
    PATIENTS_UNIFIED,
    SPLIT_AT_RANDOM,
    UNUSED,
)
from chexstudy.cohort.copies import find_copies
from chexstudy.cohort.joint import JOINT, OVERLAP, read_joint
from chexstudy.cohort.quality import lacks_report, set_aside_empty_reports
from chexstudy.cohort.table import finding_columns, label_matrix
from chexstudy.inputs.tables import name_place

_NOTES = {
    UNUSED: "{}",
    OVERLAP: "{}",
    NOT_IN_FOLDER: "{} rows name an image that the folder does not hold: they are left out.",
    NOT_ENGLISH: "{} reports are not in English, which most text encoders read: a manifest can name `translations`.",
    NO_PATIENT_TOLD: "no patient is told: each of {} images counts as one, so that splits are by image.",
    PATIENTS_UNIFIED: "{} patients are written in several ways (letter case, zeros in front): each was taken for one.",
}
_TOLD_ELSEWHERE = (IMAGES_WITHOUT_ROW, SPLIT_AT_RANDOM)
_NEEDED_SPLITS = ("train", "validate", "test")
_NAMED = 10


@dataclass(frozen=True)
class CohortCheck:
    """What was found."""

    problems: tuple[str, ...]  # a sentence for each thing that would stop a run
    remarks: tuple[str, ...] = ()  # a sentence for each thing that is probably not meant
    cohort: pd.DataFrame | None = None  # the cohort table, or None if none can be built


def check_source(data_root: str | Path, source: str | None = None) -> CohortCheck:
    """Look at a source's folder, told by what it holds if not given, as a build would, and keep nothing."""
    with tempfile.TemporaryDirectory() as unpacked:
        source = source or (JOINT if str(data_root).endswith((".yaml", ".yml")) else guess_source(data_root))
        report = read_joint(data_root, 0, unpacked) if source == JOINT else read_source(source, data_root, 0, unpacked)
        found = _tell("rows whose image file is not there, which go to quarantine", report.without_image, report.places)
        if report.without_row:
            # Folders may name a patient.
            names = _list([image.name for image in report.without_row])
            found.append(f"images without a row, which take no part: {names}.")
        if report.cohort is None:
            return CohortCheck(report.problems, tuple(found))
        return _check_images(report.cohort, report.places, Path(data_root), found)


def check_table(cohort: pd.DataFrame) -> CohortCheck:
    """Look at a cohort table that keeps the contract for what later steps need."""
    return _check_images(cohort, cohort.index, None, [])


def _check_images(cohort: pd.DataFrame, places: pd.Index, root: Path | None, remarks: list[str]) -> CohortCheck:
    kept, _ = set_aside_empty_reports(cohort)
    is_usable = cohort.index.isin(kept.index)
    remarks += _find_remarks(cohort, places)
    remarks += _tell("rows whose report says nothing, which go to quarantine", np.flatnonzero(~is_usable), places)
    silent = int(lacks_report(cohort).sum())
    if silent:
        remarks.append(
            f"{silent} of {len(cohort)} images have no report: only objective self_supervised learns from them."
        )
    if root is not None:
        files = [root / path for path in cohort["image_path"]]
        sizes = np.array([os.path.getsize(file) if os.path.isfile(file) else -1 for file in files])
        remarks += _tell("rows whose image file is empty, which go to quarantine", np.flatnonzero(sizes == 0), places)
        remarks += _find_copies(files, cohort["split"].to_numpy(), places)
        is_usable = is_usable & (sizes > 0)
    return CohortCheck(tuple(_find_problems(cohort[is_usable])), tuple(remarks), cohort)


def _find_problems(cohort: pd.DataFrame) -> list[str]:
    """What stops a run with these rows, those that a build would keep."""
    if cohort.empty:
        return ["no row has an image file that can be read and a report that says something, or none: mend them."]
    patients = cohort["patient_id"].nunique()
    missing = [split for split in _NEEDED_SPLITS if not (cohort["split"] == split).any()]
    if missing and patients == 1:
        return [
            f"all {len(cohort)} images that can be used are of one patient, whom no split can share: check the column "
            "of patients."
        ]
    problems = []
    if missing:
        problems.append(
            f"no image is in the split {' and '.join(missing)}, which training or evaluation needs: give some "
            "patients that split, or add patients if they are split at random."
        )
    findings = finding_columns(cohort)
    for split in _NEEDED_SPLITS[1:] if findings else ():
        rows = cohort[cohort["split"] == split]
        labels = label_matrix(rows, findings)
        both = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
        if len(rows) and not both.any():
            problems.append(
                f"no finding is both present and absent in the split {split}, so nothing can be measured there: "
                "add patients of the other class, or check what the labels mean."
            )
    return problems


def _find_remarks(cohort: pd.DataFrame, places: pd.Index) -> list[str]:
    notes = {name: note for name, note in cohort.attrs.items() if note and name not in _TOLD_ELSEWHERE}
    remarks = [_NOTES.get(name, f"{name.replace('_', ' ')}: {{}}.").format(note) for name, note in notes.items()]
    images = cohort["patient_id"].value_counts()
    if len(images) > 1 and images.iloc[0] > len(cohort) / 2:
        first = name_place(places, int((cohort["patient_id"] == images.index[0]).to_numpy().argmax()))
        remarks.append(
            f"{images.iloc[0]} of {len(cohort)} images are of one patient, that of {first}: if this identifier stands "
            "for nobody, leave the cell empty and name the patients."
        )
    findings = finding_columns(cohort)
    labels = label_matrix(cohort, findings)
    differ = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    alike = [finding for finding, both in zip(findings, differ, strict=True) if not both]
    if alike and len(alike) < len(findings):
        remarks.append(f"{', '.join(alike)}: not both present and absent anywhere, so not measured.")
    return remarks


def _find_copies(files: Sequence[Path], splits: np.ndarray, places: pd.Index) -> list[str]:
    groups = find_copies(files)
    if not groups:
        return []
    apart = [group for group in groups if len({splits[number] for number in group}) > 1]
    told = (
        f" ({len(apart)} of them in several splits, of which the one nearest to the test keeps them)" if apart else ""
    )
    pairs = [" = ".join(name_place(places, number) for number in group) for group in groups]
    return [f"rows whose image files hold the same bytes{told}: {_list(pairs)}."]


def _tell(what: str, numbers: Sequence[int], places: pd.Index) -> list[str]:
    """One sentence on rows, none if there are none."""
    return [f"{what}: {_list([name_place(places, number) for number in numbers])}."] if len(numbers) else []


def _list(names: Sequence[str]) -> str:
    """The first of the names, and how many there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
