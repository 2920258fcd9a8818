"""Build the phantom cohort on disk: radiographs, reports, labels, and beside them the truth no real cohort has.

In the folder of the study::

    phantom/cohort.parquet    the cohort table; image paths are relative to ``phantom/``
    phantom/images/*.png      8-bit grey radiographs
    truth.parquet             one row an image: what was planted (duplicate, mismatch, junk, broken file), exposure
    truth_lesions.parquet     one row a lesion: side, zone, severity, certain
    truth_outcomes.parquet    one row an image and outcome with a time: true log hazard, true risk
    annotations.parquet       outlines of the organs and findings of each image (``cohort/annotations.py``)

Labels are the truth of the image, so every finding is stated for every image: 1, 0, or -1 where the radiologist hedges.
They stay those of the case where the report (mismatched) or the image (junk) was exchanged, and so do the outcomes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from chexstudy.children import work_in_order
from chexstudy.cohort.annotations import ANNOTATIONS, Annotation, make_outline, write_annotations
from chexstudy.cohort.phantom.case import Case
from chexstudy.cohort.phantom.dictation import write_report
from chexstudy.cohort.phantom.drawing import draw_radiograph
from chexstudy.cohort.phantom.drawn_outcomes import simulate_outcomes
from chexstudy.cohort.phantom.junk import DRAWERS, spoil_radiograph
from chexstudy.cohort.phantom.plan import Pair, PhantomConfig, derive_seed, plan_pairs, stream
from chexstudy.cohort.phantom.population import PREVALENCE
from chexstudy.cohort.pseudo_reports import TemplateRules, template_report
from chexstudy.cohort.table import NO_FINDING, PHANTOM, read_cohort, write_cohort
from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.runs import Run, artifact_path, seal_artifact

_TEMPLATES = TemplateRules(word_budget=45)
_FILMS_PER_TASK = 32
_ERROR_PAGE = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Access denied.</body></html>\n"


@dataclass(frozen=True)
class _Film:
    """What a worker needs to make one image."""

    image_id: str  # its name in the cohort table
    path: Path  # where the file goes
    pair: Pair  # what is on it, or wrong with it
    size: int  # pixels along a side
    seed: tuple[int, ...]  # seed of the junk


def build_phantom(run_or_folder: Run | str | Path, config: PhantomConfig) -> pd.DataFrame:
    """Make the phantom anew in a study's folder and return its table, which is written last."""
    folder = run_or_folder.folder if isinstance(run_or_folder, Run) else Path(run_or_folder)
    pairs = plan_pairs(config)
    ids = [f"{PHANTOM}/{number:06d}" for number in range(len(pairs))]
    outcomes, outcome_truth = simulate_outcomes(pairs, ids, config.seed)
    cohort = pd.concat([_tabulate_pairs(pairs, ids, config), outcomes], axis=1)
    home = folder / "phantom"
    _clear_folder(home, set(cohort.image_path))
    films = [
        _Film(image_id, home / path, pair, config.size, derive_seed(config.seed, "junk", position))
        for position, (image_id, path, pair) in enumerate(zip(ids, cohort.image_path, pairs, strict=True))
    ]
    made = map(_make_film, films)
    if config.workers > 1:
        made = work_in_order(_make_film, films, config.workers, _FILMS_PER_TASK)
    try:
        outlines = [row for rows in progress(made, len(films), "drawing radiographs") for row in rows]
    except BaseException:
        # Among the images of a build that was broken off, by a full disk say, half ones look like whole ones.
        _clear_folder(home, set())
        raise
    seal_artifact(home / "images")
    write_annotations(outlines, folder / ANNOTATIONS)
    _write_table(_tabulate_lesions(pairs, ids), folder / "truth_lesions.parquet")
    _write_table(_tabulate_truth(pairs, ids), folder / "truth.parquet")
    _write_table(outcome_truth, folder / "truth_outcomes.parquet")
    return read_cohort(write_cohort(cohort, home / "cohort.parquet"))


def _make_film(film: _Film) -> list[Annotation]:
    """Draw, spoil if so planned, and write one image; return the outlines of what is on it."""
    generator = np.random.default_rng(film.seed)
    masks: dict[str, np.ndarray] = {}
    if film.pair.junk in DRAWERS:
        pixels = DRAWERS[film.pair.junk](film.size, generator)
    else:
        drawing = draw_radiograph(film.pair.case, film.size)
        pixels, masks = drawing.pixels, drawing.masks
        if film.pair.junk:
            pixels, masks = spoil_radiograph(film.pair.junk, pixels, masks, generator)
    try:
        Image.fromarray(pixels).save(film.path, compress_level=1)
        if film.pair.broken:
            # What an interrupted or refused download leaves behind.
            whole = film.path.read_bytes()
            left = {"truncated": whole[: len(whole) // 2], "page": _ERROR_PAGE, "empty": b""}
            film.path.write_bytes(left[film.pair.broken])
    except OSError as error:
        raise StudyError(f"could not write {film.path}: {error.strerror or error}; free some space.") from None
    if film.pair.broken:
        return []
    return [make_outline(film.image_id, structure, mask) for structure, mask in masks.items()]


def _clear_folder(home: Path, wanted: set[str]) -> None:
    """Make the image folder; take away what an earlier, larger phantom left in it."""
    try:
        (home / "images").mkdir(parents=True, exist_ok=True)
        (home / "cohort.parquet").unlink(missing_ok=True)
        for path in (home / "images").glob("*.png"):
            if f"images/{path.name}" not in wanted:
                path.unlink()
    except OSError as error:
        raise StudyError(f"could not write {home}: {error.strerror or error}; choose another folder.") from None


def _label_case(case: Case) -> dict[str, int]:
    labels = dict.fromkeys(PREVALENCE, 0)
    for lesion in case.lesions:
        labels[lesion.finding] = 1 if lesion.certain else -1
    stated = set(labels.values())
    return {NO_FINDING: 0 if 1 in stated else -1 if -1 in stated else 1, **labels}


def _tabulate_pairs(pairs: list[Pair], ids: list[str], config: PhantomConfig) -> pd.DataFrame:
    labels = pd.DataFrame([_label_case(pair.case) for pair in pairs]).astype("Int8")
    templates = stream(config.seed, "template").permutation(len(pairs)) < round(config.template_share * len(pairs))
    reports = [_write_text(pairs, ids, position, bool(templates[position]), config) for position in range(len(pairs))]
    table = pd.DataFrame(
        {
            "image_id": ids,
            "patient_id": [f"{PHANTOM}/{pair.case.patient.patient_id}" for pair in pairs],
            "study_id": [f"{PHANTOM}/{pair.case.patient.patient_id}-{pair.case.study_number}" for pair in pairs],
            "source": PHANTOM,
            "split": [pair.split for pair in pairs],
            "view": [pair.case.view for pair in pairs],
            "sex": [pair.case.patient.sex for pair in pairs],
            "age_years": np.array([pair.case.patient.age_years for pair in pairs], dtype="float32"),
            "image_path": [f"images/{image_id.rpartition('/')[2]}.png" for image_id in ids],
            "report": reports,
            "report_origin": np.where(templates, "template", "written"),
        }
    )
    return pd.concat([table, labels], axis=1)


def _write_text(pairs: list[Pair], ids: list[str], position: int, template: bool, config: PhantomConfig) -> str:
    """The report of a pair: of its own case or, if mismatched, of another one. No two generators are alike."""
    pair = pairs[position]
    told = pairs[pair.told] if pair.told >= 0 else pair
    if template:
        labels = {NO_FINDING: int(not told.case.lesions), **_label_case(told.case)}
        return template_report(labels, ids[position], config.seed, _TEMPLATES)
    return write_report(told.case, stream(config.seed, "report", position), told.prior)


def _tabulate_truth(pairs: list[Pair], ids: list[str]) -> pd.DataFrame:
    def name(position: int) -> str:
        return ids[position] if position >= 0 else ""

    cases = [pair.case for pair in pairs]
    return pd.DataFrame(
        {
            "image_id": ids,
            "duplicate_of": [name(pair.duplicate_of) for pair in pairs],
            "mismatched": [pair.told >= 0 for pair in pairs],
            "report_of": [name(pair.told) for pair in pairs],
            "junk": [pair.junk != "" for pair in pairs],
            "junk_kind": [pair.junk for pair in pairs],
            "broken_kind": [pair.broken for pair in pairs],
            "findings": np.array([len(case.lesions) for case in cases], dtype="int8"),
            "severity": np.array([max((lesion.severity for lesion in case.lesions), default=0.0) for case in cases]),
            "study_number": np.array([case.study_number for case in cases], dtype="int8"),
            "rotation_degrees": [case.rotation_degrees for case in cases],
            "inspiration": [case.inspiration for case in cases],
            "exposure": [case.exposure for case in cases],
            "noise": [case.noise for case in cases],
            "habitus": [case.patient.habitus for case in cases],
        }
    )


def _tabulate_lesions(pairs: list[Pair], ids: list[str]) -> pd.DataFrame:
    rows = [
        (image_id, lesion.finding, lesion.side, lesion.zone, lesion.severity, lesion.certain)
        for image_id, pair in zip(ids, pairs, strict=True)
        for lesion in pair.case.lesions
    ]
    return pd.DataFrame(rows, columns=["image_id", "finding", "side", "zone", "severity", "certain"])


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with artifact_path(path) as temporary:
        table.to_parquet(temporary, index=False)
