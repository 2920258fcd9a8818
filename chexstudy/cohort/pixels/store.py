"""The pixel store: every image of a cohort read once, checked, resized, and kept as ``uint8`` shards on disk.

``pixels/shard-00000.npy`` and so on are ``(images, size, size)``, mapped into memory. ``index.parquet`` says which
shard and row is which image, the hash of its file, a remark if it was not read as its header says, and how it lies if
it is turned back; ``manifest.json`` how the pixels were made and the hash of each shard; ``requested.parquet`` is the
cohort that was asked for, kept in ``cohort.parquet`` or set aside in ``quarantine.parquet``. A build that was killed
goes on at the first shard that is not finished, to the same bytes.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.cohort.copies import refuse_shared_files
from chexstudy.cohort.images.decode import check_fit
from chexstudy.cohort.pixels.shards import (
    ShardedImages,
    name_shard,
    open_shard,
    read_record,
    remove_shards,
    write_shard,
)
from chexstudy.cohort.quality import (
    COPY,
    NEAR_DUPLICATE,
    QUARANTINE_COLUMNS,
    count_quarantine,
    read_checked,
    resolve_image_paths,
    set_aside_copies,
    set_aside_empty_reports,
    split_by_reason,
)
from chexstudy.cohort.table import read_cohort, validate_cohort, write_cohort
from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.runs import Run, forget_artifact
from chexstudy.steps import find_step

FOLDER = "pixels"
INDEX = "pixels/index.parquet"
MANIFEST = "pixels/manifest.json"
REQUESTED = "pixels/requested.parquet"
COHORT = "cohort.parquet"
QUARANTINE = "quarantine.parquet"
TURNED = "turned"
WITHHELD = "withheld"
_BYTES_A_SHARD = 2**28
_NONE_WITHHELD = pd.DataFrame(columns=QUARANTINE_COLUMNS, dtype=str)


@dataclass(frozen=True)
class PixelStore:
    """The pixels of a cohort."""

    images: ShardedImages  # ``uint8 (images, size, size)``, grey levels, mapped from disk and read-only
    image_ids: pd.Index  # the image in each row
    fit: str  # how images were made square: ``crop`` or ``pad``

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, image_ids: Iterable[str]) -> np.ndarray:
        """Where images lie in the store, ``int64 (n,)``, in the order asked for."""
        image_ids = list(image_ids)
        rows = self.image_ids.get_indexer(image_ids)
        if (rows < 0).any():
            raise StudyError(
                f"{(rows < 0).sum()} of {len(rows)} images are not in the pixel store (the first is number "
                f"{int((rows < 0).argmax())} of those asked for, counted from 0): they are in quarantine or of another "
                f"cohort; run {find_step(INDEX)} again for this one."
            )
        return rows.astype(np.int64)

    def take(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The pixels in rows of the store, ``uint8 (n, size, size)``, in the order asked for."""
        return self.images.take(rows, out)

    def read(self, image_ids: Iterable[str]) -> np.ndarray:
        """The pixels of images, ``uint8 (n, size, size)``, in the order asked for."""
        return self.take(self.rows(image_ids))


def open_pixel_store(run: Run, as_filed: bool = False) -> PixelStore:
    """The pixel store of a study; ``as_filed`` shows all that was read as its file does, turned or withheld or not."""
    manifest = run.read_json(MANIFEST)
    index = run.read_table(INDEX)
    shards = [
        open_shard(run.path(f"{FOLDER}/{shard['file']}"), shard["images"], manifest["size"], shard["sha256"])
        for shard in progress(manifest["shards"], label="checking shards")
    ]
    turned = {} if as_filed or TURNED not in index else index.loc[index[TURNED] != "", TURNED].to_dict()
    if as_filed or WITHHELD not in index:
        return PixelStore(ShardedImages(shards, turned), pd.Index(index["image_id"]), manifest["fit"])
    shown = index.index[~index[WITHHELD]]
    images = ShardedImages(shards, turned, shown.to_numpy())
    return PixelStore(images, pd.Index(index["image_id"][shown]), manifest["fit"])


def read_filed(run: Run) -> tuple[PixelStore, pd.DataFrame, list[str]]:
    """All that a study's store holds as the files show it, its rows of the cohort, and the hashes of the shards."""
    store = open_pixel_store(run, as_filed=True)
    cohort = read_cohort(run.path(REQUESTED)).set_index("image_id").loc[store.image_ids].reset_index()
    return store, cohort, [shard["sha256"] for shard in run.read_json(MANIFEST)["shards"]]


def verify_pixel_store(run: Run) -> int:
    """Read every shard of a store and compare its hash with the manifest's; return their number."""
    open_pixel_store(run)
    return len(run.read_json(MANIFEST)["shards"])


@dataclass(frozen=True)
class StorePlan:
    """What a build has to do."""

    cohort: pd.DataFrame  # the cohort asked for, image paths as they are written down
    parameters: dict  # what the store depends on
    key: str  # hash of these and of the code
    is_current: bool  # whether the study has this very store already
    # the rows with a report whose image is no copy of one in another split; their images are read
    readable: pd.DataFrame
    set_aside: pd.DataFrame  # the others, as rows of the quarantine
    files: list[Path]  # the images' files in the order of ``readable``
    finished: dict[int, pd.DataFrame]  # records of the finished shards by number

    @property
    def images_a_shard(self) -> int:
        return self.parameters["images_a_shard"]

    @property
    def shards(self) -> int:
        """How many shards the store has."""
        return max(1, -(-len(self.files) // self.images_a_shard))

    def unfinished(self) -> list[int]:
        """Numbers of the shards still to be made."""
        return [number for number in range(self.shards) if number not in self.finished]

    def files_of(self, number: int) -> list[Path]:
        """The files of a shard's images."""
        return self.files[number * self.images_a_shard : (number + 1) * self.images_a_shard]

    def files_left(self) -> list[Path]:
        """The files still to be read."""
        return [file for number in self.unfinished() for file in self.files_of(number)]


def build_pixel_store(
    run: Run, cohort: pd.DataFrame, size: int, fit: str = "crop", workers: int = 2, root: str | Path | None = None
) -> PixelStore:
    """Check and resize every image of a cohort, and write the store, the kept cohort and the quarantine list.

    A store that is current (cohort, source files by size and time, size, fit, code) is reused; of another its finished
    shards are. ``workers`` processes read images, whatever their number to the same bytes. Relative paths start from
    ``root``, or else from the run's folder.
    """
    return write_pixel_store(run, plan_pixel_store(run, cohort, size, fit, root), workers)


def plan_pixel_store(
    run: Run,
    cohort: pd.DataFrame,
    size: int,
    fit: str = "crop",
    root: str | Path | None = None,
    images_a_shard: int | None = None,
) -> StorePlan:
    """What is there of a store and what has to be made, see `build_pixel_store`; shards of about 256 MB if not said."""
    check_fit(size, fit)
    images_a_shard = max(1, _BYTES_A_SHARD // size**2) if images_a_shard is None else images_a_shard
    if images_a_shard < 1:
        raise StudyError(f"a shard of the pixel store must hold 1 or more images, not {images_a_shard}.")
    cohort = validate_cohort(cohort)
    files = resolve_image_paths(cohort, root or run.folder)
    refuse_shared_files(files)
    # Relative if the file lies in the study's folder, so that the folder can be moved.
    whole = [path.resolve() for path in files]
    cohort["image_path"] = [
        path.relative_to(run.folder).as_posix() if path.is_relative_to(run.folder) else str(path) for path in whole
    ]
    parameters = {
        "size": size,
        "fit": fit,
        "images_a_shard": images_a_shard,
        "cohort": hash_cohort(cohort),
        "files": _fingerprint(files),
    }
    key = run.key(parameters)
    readable, empty = set_aside_empty_reports(cohort)
    readable, copies = set_aside_copies(readable, resolve_image_paths(readable, run.folder))
    files = resolve_image_paths(readable, run.folder)
    plan = StorePlan(cohort, parameters, key, _is_current(run, key), readable, pd.concat([empty, copies]), files, {})
    if not plan.is_current:
        for number in range(plan.shards):
            record = read_record(run.path(f"{FOLDER}/{name_shard(number)}"), key, size)
            if record is not None:
                plan.finished[number] = record
    return plan


def check_workers(workers: int) -> None:
    """Raise a StudyError unless at least one process may read images."""
    if workers < 1:
        raise StudyError(f"the number of processes that read images must be 1 or more, not {workers}.")


def write_pixel_store(run: Run, plan: StorePlan, workers: int = 2) -> PixelStore:
    """Carry out a plan of `plan_pixel_store`; see `build_pixel_store`."""
    check_workers(workers)
    if plan.is_current:
        return open_pixel_store(run)
    turned, withheld = {}, _NONE_WITHHELD
    with suppress(StudyError):  # a damaged table says nothing
        turned, withheld = read_turned(run), _read_withheld(run)
    # Without its manifest a half-rebuilt store counts as none.
    forget_artifact(run.path(MANIFEST))
    records = _make_shards(run, plan, workers)
    outcomes = pd.concat([record.assign(shard=number) for number, record in enumerate(records)], ignore_index=True)
    kept, quarantine = split_by_reason(plan.readable, outcomes[["reason", "detail"]], plan.set_aside, plan.cohort)
    if kept.empty:
        run.write_table(QUARANTINE, quarantine)
        counts = count_quarantine(quarantine)
        remove_shards(run.path(FOLDER))
        raise StudyError(
            f"none of the {len(plan.cohort)} images can be used (the most frequent reason: {counts['reason'][0]}): "
            f"see {run.path(QUARANTINE)} and mend the files or the path to them."
        )
    stored = outcomes[outcomes["reason"] == ""].reset_index(drop=True)
    row = stored.groupby("shard").cumcount()
    index = {"image_id": kept["image_id"], "shard": stored["shard"], "row": row, "sha256": stored["sha256"]}
    write_cohort(plan.cohort, run.path(REQUESTED))
    remove_shards(run.path(FOLDER), after=plan.shards)
    shards = [
        {"file": name_shard(number), "images": record.attrs["images"], "sha256": record.attrs["sha256"]}
        for number, record in enumerate(records)
    ]
    index = pd.DataFrame({**index, "remark": stored["detail"]})
    index, counts = _write_without(run, withheld, index, kept, quarantine)
    _write_index(run, index, turned, {**plan.parameters, **counts, "shards": shards}, plan.parameters)
    return open_pixel_store(run)


def turn_pixels(run: Run, turned: dict[str, str]) -> None:
    """From now on show those images upright that lie as ``turned`` says (image -> kind), and no other; shards stay."""
    if read_turned(run) == turned:
        return
    manifest, parameters = run.read_json(MANIFEST), run.provenance(MANIFEST)["parameters"]
    manifest.pop(TURNED, None)
    index = run.read_table(INDEX).drop(columns=TURNED, errors="ignore")
    # Without its manifest a half-written store counts as none, and is put together again of its shards.
    forget_artifact(run.path(MANIFEST))
    _write_index(run, index, turned, manifest, parameters)


def read_turned(run: Run) -> dict[str, str]:
    """Which images of a study are turned back, and how each lies in its file: image -> kind."""
    index = run.read_table(INDEX) if run.has(INDEX) else pd.DataFrame()
    return index[index[TURNED] != ""].set_index("image_id")[TURNED].to_dict() if TURNED in index else {}


def withhold_images(run: Run, withheld: pd.DataFrame) -> None:
    """From now on leave out of a study's cohort these rows of the quarantine, and no other; their pixels stay."""
    if _read_withheld(run)["image_id"].tolist() == withheld["image_id"].tolist():
        return
    manifest, parameters = run.read_json(MANIFEST), run.provenance(MANIFEST)["parameters"]
    index, quarantine = run.read_table(INDEX).drop(columns=WITHHELD, errors="ignore"), run.read_table(QUARANTINE)
    requested, turned = read_cohort(run.path(REQUESTED)), read_turned(run)
    stored = requested.set_index("image_id").loc[index["image_id"]].reset_index()
    forget_artifact(run.path(MANIFEST))
    index, counts = _write_without(run, withheld, index, stored, quarantine[quarantine["reason"] != NEAR_DUPLICATE])
    _write_index(run, index.drop(columns=TURNED, errors="ignore"), turned, manifest | counts, parameters)


def _read_withheld(run: Run) -> pd.DataFrame:
    quarantine = run.read_table(QUARANTINE) if run.has(QUARANTINE) else _NONE_WITHHELD
    return quarantine[quarantine["reason"] == NEAR_DUPLICATE]


def _write_without(
    run: Run, withheld: pd.DataFrame, index: pd.DataFrame, stored: pd.DataFrame, quarantine: pd.DataFrame
) -> tuple[pd.DataFrame, dict]:
    """Write cohort and quarantine, some images withheld; return the index that says so and counts for the manifest."""
    leaves = stored["image_id"].isin(withheld["image_id"]).to_numpy()
    withheld = withheld[withheld["image_id"].isin(stored["image_id"])]
    quarantine = pd.concat([quarantine, withheld] if leaves.any() else [quarantine], ignore_index=True).astype("str")
    run.write_table(QUARANTINE, quarantine)
    write_cohort(stored[~leaves], run.path(COHORT))
    counts = {"images": int((~leaves).sum()), "quarantined": count_quarantine(quarantine).to_dict("records")}
    return (index.assign(**{WITHHELD: leaves}) if leaves.any() else index), counts


def _write_index(run: Run, index: pd.DataFrame, turned: dict[str, str], manifest: dict, parameters: dict) -> None:
    if turned:
        index = index.assign(**{TURNED: index["image_id"].map(turned).fillna("").astype(str)})
        manifest = manifest | {TURNED: int(index[TURNED].ne("").sum())}
    run.write_table(INDEX, index)
    run.write_json(MANIFEST, manifest)
    run.record(MANIFEST, parameters, files=(INDEX, COHORT, QUARANTINE, REQUESTED))


def count_remarks(run: Run) -> dict[str, int]:
    """What a user should know of a study's images beside the quarantine's reasons, and of how many, such as copies."""
    index = run.read_table(INDEX)
    index = index[~index[WITHHELD]] if WITHHELD in index else index
    counts = {
        "copies set aside for another split": run.read_table(QUARANTINE)["reason"].eq(COPY).sum(),
        "copies kept within a split": index["sha256"].duplicated().sum(),
        **index.loc[index["remark"] != "", "remark"].value_counts(),
    }
    return {name: int(count) for name, count in counts.items() if count}


def hash_cohort(cohort: pd.DataFrame) -> str:
    """Hash of a cohort table's columns and rows, in their order, 64 hex digits."""
    digest = hashlib.sha256("\0".join(cohort.columns).encode())
    digest.update(pd.util.hash_pandas_object(cohort, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _make_shards(run: Run, plan: StorePlan, workers: int) -> list[pd.DataFrame]:
    """Make the shards that are missing, in order; return the records of all."""
    size, left = plan.parameters["size"], plan.files_left()
    checked = progress(read_checked(left, size, plan.parameters["fit"], workers), len(left), "reading images")
    records = dict(plan.finished)
    for number in plan.unfinished():
        path = run.path(f"{FOLDER}/{name_shard(number)}")
        records[number] = write_shard(path, islice(checked, len(plan.files_of(number))), size, plan.key)
    return [records[number] for number in range(plan.shards)]


def _is_current(run: Run, key: str) -> bool:
    """Whether the study has a whole pixel store that was made under this key."""
    if not run.is_current(MANIFEST, key):
        return False
    try:
        open_pixel_store(run)
    except StudyError as error:
        print(error, flush=True)
        return False
    return True


def _fingerprint(files: list[Path]) -> str:
    """Hash of the files' sizes and times of change: a replaced image makes the store stale."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            digest.update(b"missing\0")
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
