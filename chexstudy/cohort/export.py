"""A cohort written for other programs: WebDataset tar shards, or a folder that Hugging Face ``datasets`` loads.

WebDataset: ``train-000000.tar`` holds ``KEY.png``, ``KEY.json`` and, with reports, ``KEY.txt``. Hugging Face:
``data/train-00000-of-00003.parquet`` holds an ``Image`` and the fields of the record.

Outcomes stay at home; so do reports and the identifiers of patients and studies unless asked for. Patients and studies
are numbered anew, so that splits by patient can still be made. Every pair is one record of the same layout in both
formats::

    image_id, source, split, view, sex, age_years, labels {finding: 1, 0, -1 (uncertain) or null (not stated)},
    patient and study (numbers), or patient_id and study_id; with reports also report_origin, and the report

The folder's ``export.json`` says what was written and holds the hash of each shard. Two exports of one cohort give the
same bytes, and one that was killed goes on at the first shard that is missing.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow
from PIL import Image
from pyarrow import parquet

from chexstudy.cohort.images.decode import read_bytes, tell_picture_kind
from chexstudy.cohort.images.unreadable import UnreadableImage
from chexstudy.cohort.pixels.store import COHORT, MANIFEST, PixelStore, hash_cohort, open_pixel_store
from chexstudy.cohort.table import SPLITS, finding_columns, outcome_names, read_cohort
from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.runs import Run, atomic_path, hash_file, hash_values

RECORD = "export.json"
_FORMATS = ("webdataset", "huggingface")
_KEY_DIGITS = 6
_ROWS_A_GROUP = 100  # a reader of single rows has to decompress a whole group
_READABLE_BY_ALL = 0o644
_WORD = re.compile(r"[^\W_]+")
_STORED = "export the stored pixels by leaving out --original-images"
_PNG_EFFORT = 4  # of 9: more takes two to ten times as long and saves two percent of the bytes


@dataclass(frozen=True)
class ExportOptions:
    """What leaves, and in which form."""

    format: str  # ``webdataset`` or ``huggingface``
    shard_images: int = 1000  # pairs a shard, at most
    reports: bool = False  # the reports leave too
    patient_ids: bool = False  # ``patient_id`` and ``study_id`` leave in place of numbers
    original_images: bool = False  # the image files as they are; else the stored pixels as 8-bit grey PNG, without loss

    def __post_init__(self):
        if self.format not in _FORMATS:
            raise StudyError(f"a cohort cannot be exported to {self.format!r}: choose {' or '.join(_FORMATS)}.")
        if self.shard_images < 1:
            raise StudyError(f"a shard must hold at least 1 image, not {self.shard_images}.")


@dataclass(frozen=True)
class Export:
    """What was exported."""

    pairs: int
    shards: int
    written: int  # how many of the shards this call wrote; the others were there
    left_out: str  # one sentence on what did not leave, and on what did though one may not expect it


def export_cohort(run: Run, folder: str | Path, options: ExportOptions) -> Export:
    """Write a study's pairs for other programs, to a new or empty folder, or on where an export stopped."""
    folder = Path(folder)
    cohort = read_cohort(run.require(COHORT))
    store = open_pixel_store(run)
    write_shard = (
        _write_tar if options.format == "webdataset" else partial(_write_parquet, _make_schema(cohort, options))
    )
    # The cohort's own hash keys the numbers of patients and does not leave: who knew it could find them out.
    secret = hash_cohort(cohort)
    key = hash_values("export", secret, hash_file(run.path(MANIFEST)), asdict(options))
    shards = _plan_shards(cohort, options)
    hashes = _open_folder(folder, key)
    record = {
        **asdict(options),
        "key": key,
        "pairs": len(cohort),
        "findings": finding_columns(cohort),
        "image_size": None if options.original_images else store.size,
        "fit": None if options.original_images else store.fit,
    }
    missing = [name for name in shards if not _is_whole(folder / name, hashes.get(name))]
    if missing:
        _write_record(folder, {**record, "shards": {}})
    pairs = _PairReader(run, cohort, store, options, secret)
    for name in progress(missing, len(missing), "writing shards"):
        with atomic_path(folder / name) as temporary:
            write_shard(temporary, pairs.read(shards[name]))
    if missing:
        written = {name: {"pairs": len(rows), "sha256": hash_file(folder / name)} for name, rows in shards.items()}
        _write_record(folder, {**record, "shards": written})
    return Export(len(cohort), len(shards), len(missing), _tell_left_out(cohort, options))


def _plan_shards(cohort: pd.DataFrame, options: ExportOptions) -> dict[str, list[int]]:
    shards = {}
    for split in SPLITS:
        rows = [int(row) for row in (cohort["split"] == split).to_numpy().nonzero()[0]]
        starts = range(0, len(rows), options.shard_images)
        for number, start in enumerate(starts):
            name = f"{split}-{number:06d}.tar"
            if options.format == "huggingface":
                name = f"data/{split}-{number:05d}-of-{len(starts):05d}.parquet"
            shards[name] = rows[start : start + options.shard_images]
    return shards


def _open_folder(folder: Path, key: str) -> dict[str, str]:
    """Hashes of the shards that an earlier export wrote down; none if it was killed or the folder is new."""
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file: name a folder to export to.")
    path = folder / RECORD
    if not path.is_file():
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise StudyError(f"{folder} is not empty and holds no export: name a new or an empty folder.")
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same, hashes = record["key"] == key, {name: shard["sha256"] for name, shard in record["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StudyError(f"{path} is no record of an export: name a new or an empty folder.") from None
    if not same:
        raise StudyError(
            f"{folder} holds an export of another cohort, of this one before it changed, or with other options: "
            "name a new or an empty folder, or delete that one."
        )
    return hashes


def _is_whole(path: Path, expected: str | None) -> bool:
    # Shards come into place whole; a hash is known of those of a finished export only.
    return path.is_file() and (expected is None or hash_file(path) == expected)


def _write_record(folder: Path, record: dict) -> None:
    with atomic_path(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Pair:
    name: str  # of the image's file
    image: bytes  # of that file
    record: Mapping[str, object]  # fields of the record, JSON-serialisable; ``labels`` is a mapping
    report: str | None  # None if it does not leave

    @property
    def key(self) -> str:
        return self.name.partition(".")[0]


class _PairReader:
    def __init__(self, run: Run, cohort: pd.DataFrame, store: PixelStore, options: ExportOptions, secret: str):
        self._run, self._cohort, self._store, self._options = run, cohort, store, options
        self._findings = finding_columns(cohort)
        self._patients = _number_anew(cohort["patient_id"], secret)
        self._studies = _number_anew(cohort["study_id"], secret)
        self._digits = max(_KEY_DIGITS, len(str(len(cohort) - 1)))

    def read(self, rows: list[int]) -> Iterator[_Pair]:
        for row, values in zip(rows, self._cohort.iloc[rows].to_dict("records"), strict=True):
            image = self._read_original(row, values) if self._options.original_images else self._encode_stored(values)
            name = f"{str(row).zfill(self._digits)}.{tell_picture_kind(image) or 'dcm'}"
            yield _Pair(name, image, self._describe(values), values["report"] if self._options.reports else None)

    def _describe(self, values: dict) -> dict[str, object]:
        if self._options.patient_ids:
            who = {"patient_id": values["patient_id"], "study_id": values["study_id"]}
        else:
            who = {"patient": self._patients[values["patient_id"]], "study": self._studies[values["study_id"]]}
        return {
            **{name: values[name] for name in ("image_id", "source", "split", "view", "sex")},
            "age_years": None if pd.isna(values["age_years"]) else float(values["age_years"]),
            **who,
            **({"report_origin": values["report_origin"]} if self._options.reports else {}),
            "labels": {name: None if pd.isna(values[name]) else int(values[name]) for name in self._findings},
        }

    def _encode_stored(self, values: dict) -> bytes:
        file = io.BytesIO()
        pixels = self._store.read([values["image_id"]])[0]
        Image.fromarray(pixels).save(file, "PNG", compress_level=_PNG_EFFORT)
        return file.getvalue()

    def _read_original(self, row: int, values: dict) -> bytes:
        which = f"the original image in row {row} of the cohort"
        try:
            image = read_bytes(self._run.folder / values["image_path"])
        except UnreadableImage as error:
            raise StudyError(f"{which} is {error.reason}: bring it back, or {_STORED}.") from None
        if not tell_picture_kind(image) and not self._options.patient_ids:
            raise StudyError(
                f"{which} is DICOM, whose header may name the patient: {_STORED}, or add --with-patient-ids if it may "
                "leave."
            )
        if not tell_picture_kind(image) and self._options.format == "huggingface":
            raise StudyError(
                f"{which} is DICOM, which Hugging Face images cannot be: {_STORED}, or export to webdataset."
            )
        return image


def _number_anew(identifiers: Iterable[str], secret: str) -> dict[str, int]:
    """Identifier -> number, in an order that nobody finds out who does not have the cohort."""
    order = sorted(set(identifiers), key=lambda name: hashlib.sha256(f"{secret}\0{name}".encode()).digest())
    return {name: number for number, name in enumerate(order)}


def _write_tar(path: Path, pairs: Iterable[_Pair]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for pair in pairs:
            _add_member(archive, pair.name, pair.image)
            _add_member(archive, f"{pair.key}.json", json.dumps(pair.record, ensure_ascii=False).encode())
            if pair.report is not None:
                _add_member(archive, f"{pair.key}.txt", pair.report.encode())


def _add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    # A fresh member belongs to nobody and to the year 1970: nothing of this machine or moment gets in.
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), _READABLE_BY_ALL
    archive.addfile(member, io.BytesIO(data))


def _make_schema(cohort: pd.DataFrame, options: ExportOptions) -> pyarrow.Schema:
    try:
        import datasets
    except ImportError:
        raise StudyError(
            "an export to huggingface needs the library datasets: run `pip install 'chexstudy[interchange]'`, or "
            "export to webdataset."
        ) from None
    text = datasets.Value("string")
    who = dict.fromkeys(("patient", "study"), datasets.Value("int64"))
    if options.patient_ids:
        who = dict.fromkeys(("patient_id", "study_id"), text)
    findings = dict.fromkeys(finding_columns(cohort), datasets.Value("int8"))
    return datasets.Features(
        {
            "image": datasets.Image(),
            **dict.fromkeys(("image_id", "source", "split", "view", "sex"), text),
            "age_years": datasets.Value("float32"),
            **who,
            **({"report_origin": text, "report": text} if options.reports else {}),
            **({"labels": findings} if findings else {}),
        }
    ).arrow_schema


def _write_parquet(schema: pyarrow.Schema, path: Path, pairs: Iterable[_Pair]) -> None:
    rows = [{**pair.record, "image": {"bytes": pair.image, "path": pair.name}, "report": pair.report} for pair in pairs]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=_ROWS_A_GROUP)


def _tell_left_out(cohort: pd.DataFrame, options: ExportOptions) -> str:
    left_out = [] if options.reports else ["reports (--with-reports)"]
    if outcome_names(cohort):
        left_out.append("outcomes")
    if not options.patient_ids:
        left_out.append("patient and study ids (--with-patient-ids), numbered anew instead")
    told = f"Left out: {'; '.join(left_out)}." if left_out else ""
    if options.reports and options.patient_ids:
        told = f"{told} Reports and patient ids have left with the images.".lstrip()
    telling = 0 if options.patient_ids else sum(map(_tells_patient, cohort["image_id"], cohort["patient_id"]))
    if telling:
        told += f" The image_id of {telling} of {len(cohort)} pairs still contains the patient's identifier."
    if options.original_images:
        told += " What the original files say in their own headers has left too."
    return told


def _tells_patient(image_id: str, patient_id: str) -> bool:
    """Whether a patient's identifier stands in an image's as words of its own, zeros in front left out."""
    names = (_WORD.findall(name.split("/", 1)[-1]) for name in (image_id, patient_id))
    image, patient = (f"_{'_'.join(word.lstrip('0') or '0' for word in words)}_" for words in names)
    return patient in image
