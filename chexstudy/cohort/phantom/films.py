"""Make the phantom's image files and true outlines, in several processes with the same result as in one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from chexstudy.children import work_in_order
from chexstudy.cohort.annotations import Annotation, make_outline
from chexstudy.cohort.phantom.drawing import draw_radiograph
from chexstudy.cohort.phantom.junk import DRAWERS, spoil_radiograph
from chexstudy.cohort.phantom.plan import Pair
from chexstudy.errors import StudyError
from chexstudy.progress import progress

_FILMS_PER_TASK = 32
_ERROR_PAGE = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Access denied.</body></html>\n"


@dataclass(frozen=True)
class Film:
    """What a worker needs to make one image."""

    image_id: str  # its name in the cohort table
    path: Path  # where the file goes
    pair: Pair  # what is on it, or wrong with it
    size: int  # pixels along a side
    seed: tuple[int, ...]  # seed of the junk


def make_films(films: list[Film], workers: int) -> Iterator[list[Annotation]]:
    """Make all images; the outlines on each come in their order."""
    made = map(_make_film, films) if workers == 1 else work_in_order(_make_film, films, workers, _FILMS_PER_TASK)
    return progress(made, len(films), "drawing radiographs")


def _make_film(film: Film) -> list[Annotation]:
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
