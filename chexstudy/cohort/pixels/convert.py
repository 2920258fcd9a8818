"""Pixel stores on demand: of a study at another size, or of any cohort table anywhere, with an estimate first."""

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from chexstudy.cohort.pixels.shards import name_shard
from chexstudy.cohort.pixels.store import (
    COHORT,
    FOLDER,
    MANIFEST,
    REQUESTED,
    PixelStore,
    StorePlan,
    check_workers,
    count_remarks,
    write_pixel_store,
)
from chexstudy.cohort.quality import check_image
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run

_TIMED_IMAGES = 8
_ROOM_TO_SPARE = 1.02  # the index, the records and the tables beside the pixels


class StoreFolder(Run):
    """A folder anywhere that holds a pixel store and its cohort; it has the shape of a study."""

    def __init__(self, folder: Path):
        if folder.is_file():
            raise StudyError(f"{folder} is a file: name a folder for the pixel store.")
        self._open(folder.name, folder)


@dataclass(frozen=True)
class Estimate:
    """What a conversion will cost."""

    images: int  # still to be read
    finished: int  # already in finished shards
    seconds: float | None  # of wall clock; None if too few images could be timed
    bytes: int  # that will be written

    def __str__(self) -> str:
        text = f"{self.images:,} images to read, {self.bytes / 1e9:.3g} GB to write"
        if self.seconds is not None:
            text += f", about {_name_duration(self.seconds)}"
        return text + (f" ({self.finished:,} images are in finished shards)." if self.finished else ".")


def read_requested_cohort(run: Run) -> pd.DataFrame:
    """A study's cohort as its source gave it, so that a conversion looks again at what is in quarantine."""
    return read_cohort(run.path(REQUESTED) if run.has(REQUESTED) else run.require(COHORT))


def estimate_conversion(plan: StorePlan, workers: int) -> Estimate:
    """Read a few images, spread over the cohort, and say what the rest will cost."""
    files, size, fit = plan.files_left(), plan.parameters["size"], plan.parameters["fit"]
    finished = sum(len(record) for record in plan.finished.values())
    chosen = files[:: max(1, len(files) // _TIMED_IMAGES)][:_TIMED_IMAGES]
    seconds = None
    if chosen:
        # Untimed first: loading compiled code is paid once.
        check_image(chosen[0], size, fit)
        start = time.perf_counter()
        for file in chosen:
            check_image(file, size, fit)
        seconds = (time.perf_counter() - start) / len(chosen) * len(files) / workers
    return Estimate(len(files), finished, seconds, len(files) * size**2)


def check_room(folder: Path, needed: int) -> None:
    """Raise a StudyError if a disk has less room than ``needed`` bytes, before hours of work and not after."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed * _ROOM_TO_SPARE:
        raise StudyError(
            f"the pixel store needs {needed / 1e9:.3g} GB and the disk of {folder} has {free / 1e9:.3g} GB free: free "
            "some space, choose another folder or a smaller size."
        )


def convert_cohort(run: Run, plan: StorePlan, workers: int | None = None) -> PixelStore:
    """Make the store of a plan: say what it costs, go on where it stopped, count what was set aside."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    check_workers(workers)
    if plan.is_current:
        print(f"{run.path(MANIFEST)} is current: nothing to do.")
    else:
        estimate = estimate_conversion(plan, workers)
        print(estimate, flush=True)
        # An earlier store's shards make way for those of this one.
        replaced = [run.path(f"{FOLDER}/{name_shard(number)}") for number in plan.unfinished()]
        check_room(run.folder, estimate.bytes - sum(path.stat().st_size for path in replaced if path.exists()))
    store = write_pixel_store(run, plan, workers)
    lost = run.read_json(MANIFEST)["quarantined"]
    reasons = ", ".join(f"{row['images']} {row['reason']} ({row['source']})" for row in lost)
    print(
        f"{len(store):,} images of {store.size} pixels in {plan.shards} shard{'s' * (plan.shards > 1)}, "
        f"{sum(row['images'] for row in lost):,} in quarantine{f': {reasons}' if lost else ''}."
    )
    for note, number in count_remarks(run).items():
        print(f"{note}: {number}")
    return store


def _name_duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
