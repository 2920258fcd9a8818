"""The two formats of an exported cohort: how a shard is called, and how pairs become its bytes.

WebDataset: ``train-000000.tar`` holds ``KEY.png``, ``KEY.json`` and, with reports, ``KEY.txt``. Hugging Face:
``data/train-00000-of-00003.parquet`` holds an ``Image`` and the fields of the record. Both are the same bytes whenever
and by whomever they are written.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pyarrow
from pyarrow import parquet

from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

FORMATS = ("webdataset", "huggingface")
# How the bytes of a picture begin; anything else among radiographs is DICOM.
_BEGINNINGS = MappingProxyType(
    {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg", b"II*\0": "tif", b"MM\0*": "tif", b"BM": "bmp"}
)
_ROWS_A_GROUP = 100  # a reader of single rows has to decompress a whole group
_READABLE_BY_ALL = 0o644


@dataclass(frozen=True)
class Pair:
    """One image with what is said of it."""

    key: str  # its name within the export
    image: bytes  # the bytes of an image file
    kind: str  # the usual ending of such a file, without the dot
    record: Mapping[str, object]  # fields of the record, JSON-serialisable; ``labels`` is a mapping
    report: str | None  # the report, or None if it does not leave


def name_shard(form: str, split: str, number: int, shards: int) -> str:
    """The place in the folder of one of so many shards of a split."""
    if form == "webdataset":
        return f"{split}-{number:06d}.tar"
    return f"data/{split}-{number:05d}-of-{shards:05d}.parquet"


def make_writer(
    form: str, cohort: pd.DataFrame, reports: bool, patient_ids: bool
) -> Callable[[Path, Iterable[Pair]], None]:
    """What writes pairs of a cohort to a path."""
    return _write_tar if form == "webdataset" else partial(_write_parquet, _make_schema(cohort, reports, patient_ids))


def tell_image_kind(image: bytes) -> str:
    """The usual ending of an image file with these bytes, without the dot: png, jpg, tif, bmp, else dcm."""
    return next((kind for beginning, kind in _BEGINNINGS.items() if image.startswith(beginning)), "dcm")


def _write_tar(path: Path, pairs: Iterable[Pair]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for pair in pairs:
            _add_member(archive, f"{pair.key}.{pair.kind}", pair.image)
            _add_member(archive, f"{pair.key}.json", json.dumps(pair.record, ensure_ascii=False).encode())
            if pair.report is not None:
                _add_member(archive, f"{pair.key}.txt", pair.report.encode())


def _add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    # A fresh member belongs to nobody and to the year 1970: nothing of this machine or moment gets in.
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), _READABLE_BY_ALL
    archive.addfile(member, io.BytesIO(data))


def _make_schema(cohort: pd.DataFrame, reports: bool, patient_ids: bool) -> pyarrow.Schema:
    try:
        from datasets import Features, Image, Value
    except ImportError:
        raise StudyError(
            "an export to huggingface needs the library datasets: run `pip install 'chexstudy[interchange]'`, or "
            "export to webdataset."
        ) from None
    text = Value("string")
    who = (
        {"patient_id": text, "study_id": text} if patient_ids else {"patient": Value("int64"), "study": Value("int64")}
    )
    findings = finding_columns(cohort)
    return Features(
        {
            "image": Image(),
            **dict.fromkeys(("image_id", "source", "split", "view", "sex"), text),
            "age_years": Value("float32"),
            **who,
            **({"report_origin": text, "report": text} if reports else {}),
            **({"labels": {name: Value("int8") for name in findings}} if findings else {}),
        }
    ).arrow_schema


def _write_parquet(schema: pyarrow.Schema, path: Path, pairs: Iterable[Pair]) -> None:
    rows = []
    for pair in pairs:
        image = {"bytes": pair.image, "path": f"{pair.key}.{pair.kind}"}
        rows.append({**pair.record, "image": image, "report": pair.report})
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=_ROWS_A_GROUP)
