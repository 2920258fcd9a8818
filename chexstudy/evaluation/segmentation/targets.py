"""What is to be outlined: of which images it is known where a structure is, and its masks.

A structure is a finding if the cohort has labels of that name, and else an organ:

- an organ is known where somebody outlined it, a finding where it was outlined and is labelled present or not at all;
- a finding that is labelled absent and was not outlined is known too: its mask is empty;
- all else is unknown, such as a finding that is present without an outline, or uncertain: it enters neither a loss nor
  a measure, and is counted. Boxes outline nothing.

Lungs are where right and left lung are, if both were outlined; of lungs outlined as one, no side is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.cohort.adapters.manifest import DATASETS
from chexstudy.cohort.annotations import FINDING, Outlines, fit_mask, read_outlines
from chexstudy.cohort.images.decode import read_dimensions
from chexstudy.cohort.images.unreadable import UnreadableImage
from chexstudy.cohort.pixels.turning import UPRIGHT, turn_back
from chexstudy.cohort.quality import resolve_image_paths
from chexstudy.cohort.table import finding_columns
from chexstudy.evaluation.context import Evaluation

ORGAN = "organ"
OUTLINED, EMPTY, UNKNOWN = "outlined", "empty", "unknown"
_SIDES = {name: (f"right {one}", f"left {one}") for name, one in (("lungs", "lung"), ("clavicles", "clavicle"))}


@dataclass(frozen=True)
class Targets:
    """Where structures are on images."""

    rows: pd.DataFrame  # of the cohort
    structures: tuple[str, ...]
    states: np.ndarray  # ``(images, structures)``: outlined, empty or unknown
    outlines: Outlines
    files: Sequence[Path]  # of the original images
    side: int  # of the pixel store's images
    fit: str

    @property
    def image_ids(self) -> list[str]:
        return list(self.rows.image_id)

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each original image, upright, in pixels ``(images, 2)``."""
        return self._frames[0]

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres a pixel of each original image ``(images,)``, NaN where nobody tells."""
        return self._frames[1]

    @cached_property
    def _frames(self) -> tuple[np.ndarray, np.ndarray]:
        return _read_frames(self.outlines, self.rows, self.files, self.side)

    @property
    def known(self) -> np.ndarray:
        """``(images, structures)``; the others are to be left out of a loss."""
        return self.states != UNKNOWN

    @cached_property
    def masks(self) -> np.ndarray:
        """On the pixel store's images, bool ``(images, structures, side, side)``; empty where it is not known."""
        masks, image_ids = np.zeros((*self.states.shape, self.side, self.side), dtype=bool), self.image_ids
        for image, structure in np.argwhere(self.states == OUTLINED):
            parts = _find_parts(self.outlines, image_ids[image], self.structures[structure])
            drawn = self.outlines.draw(image_ids[image], *parts)
            masks[image, structure] = fit_mask(drawn, self.side, self.fit)
        return masks

    def draw(self, image: int) -> dict[str, np.ndarray]:
        """The masks of the structures that are known on an image, bool, of its original size."""
        image_id, size, drawn = self.rows.image_id.iloc[image], tuple(self.sizes[image].tolist()), {}
        for structure, state in zip(self.structures, self.states[image], strict=True):
            if state == OUTLINED:
                drawn[structure] = self.outlines.draw(
                    image_id, *_find_parts(self.outlines, image_id, structure), size=size
                )
            elif state == EMPTY:
                drawn[structure] = np.zeros(size, dtype=bool)
        return drawn

    def count(self) -> pd.DataFrame:
        """How many images are outlined, empty and unknown, a row a structure."""
        counts = {state: (self.states == state).sum(axis=0) for state in (OUTLINED, EMPTY, UNKNOWN)}
        return pd.DataFrame(counts, index=pd.Index(self.structures, name="structure"))


def read_targets(evaluation: Evaluation, rows: pd.DataFrame, structures: Sequence[str]) -> Targets:
    """Where structures are on the images of rows of the cohort, in their order."""
    outlines = read_outlines(evaluation.run, rows.image_id, boxes=False)
    store, files = evaluation.store, resolve_image_paths(rows, evaluation.run.folder)
    states = _tell_states(outlines, rows, structures)
    return Targets(rows, tuple(structures), states, outlines, files, store.size, store.fit)


def choose_structures(evaluation: Evaluation, least: int = 20) -> dict[str, str]:
    """Structures that so many training patients or more have outlines of -> organ or finding; organs come first.

    Lungs as one only where they cannot be learnt as two.
    """
    rows, findings = evaluation.training, evaluation.findings
    outlines = read_outlines(evaluation.run, rows.image_id, boxes=False)
    organs = sorted({structure for _, structure in outlines.rows} - set(findings) | set(_SIDES))
    structures = [*organs, *findings]
    outlined = _tell_states(outlines, rows, structures) == OUTLINED
    enough = [rows.patient_id[of_one].nunique() >= least for of_one in outlined.T]
    chosen = [structure for structure, is_enough in zip(structures, enough, strict=True) if is_enough]
    chosen = [one for one in chosen if not set(_SIDES.get(one, [""])) <= set(chosen)]
    return {structure: FINDING if structure in findings else ORGAN for structure in chosen}


def _find_parts(outlines: Outlines, image_id: str, structure: str) -> tuple[str, ...]:
    """What a structure was outlined as on an image: itself, or its two sides; nothing if it was not."""
    for parts in ((structure,), _SIDES.get(structure, (structure,))):
        if all((image_id, part) in outlines.rows for part in parts):
            return parts
    return ()


def _tell_states(outlines: Outlines, rows: pd.DataFrame, structures: Sequence[str]) -> np.ndarray:
    """``(rows, structures)``, see the module."""
    states = np.full((len(rows), len(structures)), UNKNOWN, dtype=object)
    findings = set(finding_columns(rows))
    for place, structure in enumerate(structures):
        labels = (
            rows[structure].to_numpy("float32", na_value=np.nan)
            if structure in findings
            else np.full(len(rows), np.nan)
        )
        for row, (image_id, label) in enumerate(zip(rows.image_id, labels, strict=True)):
            parts = _find_parts(outlines, image_id, structure)
            if not parts:
                states[row, place] = EMPTY if label == 0 else UNKNOWN
            elif label == 1 or np.isnan(label):
                is_there = any(len(one.runs) > 1 for part in parts for one in outlines.rows[image_id, part])
                states[row, place] = OUTLINED if is_there else UNKNOWN if label == 1 else EMPTY
    return states


def _read_frames(
    outlines: Outlines, rows: pd.DataFrame, files: Sequence[Path], side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes ``(rows, 2)`` of original images, upright, and mm a pixel ``(rows,)``.

    Where a file is gone, its size is that of what was outlined on it, or else that of the pixel store's images.
    """
    drawn = {image_id: (of_one[0].height, of_one[0].width) for (image_id, _), of_one in outlines.rows.items()}
    sizes, spacings = [], []
    for image_id, source, path in zip(rows.image_id, rows.source, files, strict=True):
        try:
            height, width, spacing = read_dimensions(path)
        except UnreadableImage:
            (height, width), spacing = drawn.get(image_id, (side, side)), np.nan
        if np.isnan(spacing) and source in DATASETS:
            spacing = DATASETS[source].width_mm / width
        sizes.append(turn_back(np.broadcast_to(0, (height, width)), outlines.turned.get(image_id, UPRIGHT)).shape)
        spacings.append(spacing)
    return np.array(sizes).reshape(-1, 2), np.array(spacings)
