"""Adapters: a public data set, each one file that registers itself, or a folder of one's own, to a cohort table."""

import fnmatch
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from chexstudy.cohort.adapters import datasets  # noqa: F401
from chexstudy.cohort.adapters.column_mapping import MAPPING_FILE, ColumnMapping
from chexstudy.cohort.adapters.folder import check_folder
from chexstudy.cohort.adapters.huggingface import SAVED_MARKS, SHARD_NAME, build_huggingface
from chexstudy.cohort.adapters.layout import list_files
from chexstudy.cohort.adapters.manifest import DATASETS, ManifestReport, check_dataset
from chexstudy.cohort.adapters.webdataset import SHARDS, build_webdataset
from chexstudy.cohort.finding_names import canonical_name
from chexstudy.cohort.overlaps import describe_exposure
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError, suggest
from chexstudy.paths import resolve_user_path

# Their images lie within other files and must be unpacked somewhere: the option `unpack_to` says where.
_PACKED: Mapping[str, Callable[..., pd.DataFrame]] = MappingProxyType(
    {"webdataset": build_webdataset, "huggingface": build_huggingface}
)
SOURCES = (*DATASETS, "folder", *_PACKED)
_FORMATS = {
    "folder": "images of your own, a table, and cohort.yaml, which says what its columns mean",
    "webdataset": "tar shards of images with what is said of each",
    "huggingface": "parquet files with images, or what datasets.save_to_disk wrote",
}


def guess_source(data_root: str | Path) -> str:
    """The source that a folder is one of, by the names of what it holds: one's own folder if nothing else is told."""
    folder = resolve_user_path(data_root)
    files = list_files(folder) if folder.is_dir() else [folder.name]
    paths = [f"{folder.name}/{name}".removesuffix(".gz").split("/") for name in files]
    ends = {"/".join(path[-parts:]) for path in paths for parts in range(1, 4)}

    def is_there(sign: str) -> bool:
        return bool(fnmatch.filter(ends, sign)) if "*" in sign else sign.removesuffix(".gz") in ends

    signs = {spec.name: spec.told_by or spec.tables for spec in DATASETS.values()}
    seen = {source: list(filter(is_there, names)) for source, names in signs.items()}
    # A sign that says in which folder a file lies goes before that of a set with a file of the same name.
    placed = {name.rpartition("/")[2] for names in seen.values() for name in names if "/" in name}
    told = [source for source, names in seen.items() if not placed.issuperset(names)]
    if len(told) > 1:
        raise StudyError(f"{folder} may be {' or '.join(told)}: say which with --source, or give the folder of one.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    # The archives of a data set may lie beside what was in them.
    if not told and any(name.endswith(SHARDS) for name in names):
        return "webdataset"
    if not told and any(name in SAVED_MARKS or SHARD_NAME.fullmatch(name.removesuffix(".parquet")) for name in names):
        return "huggingface"
    if not told and MAPPING_FILE not in names:
        stems = [os.path.splitext(os.path.basename(name))[0] for name in files]
        told = [source for source, spec in DATASETS.items() if any(map(spec.is_own_name, stems))]
    return told[0] if told else "folder"


def list_annotations(name: str, folder: Path, image_ids: Container[str]) -> list:
    """What the folder of a source holds of where organs and findings are on some images."""
    listed = DATASETS[name].list_annotations(DATASETS[name].open(folder)) if name in DATASETS else []
    return [replace(one, structure=canonical_name(one.structure)) for one in listed if one.image_id in image_ids]


def tabulate_sources() -> pd.DataFrame:
    """Every source: its name, what it is and holds, its terms, where it is had, and what would be no test for it."""
    sets = sorted(DATASETS.items())
    rows = [(name, spec.title, spec.size, spec.licence, spec.address, describe_exposure(name)) for name, spec in sets]
    rows += [(name, title, *("",) * 4) for name, title in _FORMATS.items()]
    return pd.DataFrame(rows, columns=["source", "what it is", "size", "terms", "address", "exposure"])


def describe_source(name: str) -> dict[str, str]:
    """What `tabulate_sources` says of a source; of a data set also its folder, options and language of reports."""
    require_source(name)
    told = tabulate_sources().set_index("source").loc[name].to_dict()
    if name not in DATASETS:
        return told
    spec = DATASETS[name]
    options = "; ".join(f"{option}: {' | '.join(choices)}" for option, choices in spec.options.items())
    language = spec.language if spec.language != "en" else ""
    return {**told, "its folder holds": spec.holding, "options": options, "language of reports": language}


def tabulate_crosswalk(cohort: pd.DataFrame) -> pd.DataFrame:
    """What each source calls the findings it states, empty where it does not; those that most sources state first."""
    called = {}
    for source, rows in cohort.groupby("source", sort=False):
        own = ColumnMapping(columns=DATASETS[source].columns).findings() if source in DATASETS else {}
        official = {canonical_name(name): column for name, column in own.items()}
        stated = rows[finding_columns(cohort)].notna().any()
        called[source] = {finding: official.get(finding, finding) for finding in stated.index[stated]}
    table = pd.DataFrame(called, dtype="str").rename_axis("finding")
    common_first = table.notna().sum(axis=1).sort_values(ascending=False, kind="stable")
    return table.loc[common_first.index].fillna("")


def require_source(name: str) -> None:
    """Raise a StudyError unless a cohort can be built from a source of this name."""
    if name not in SOURCES:
        guess = suggest(name, SOURCES, "choose one")
        raise StudyError(f"there is no source named {name!r}: {guess}; `chexstudy cohort sources` lists them.")


def read_source(
    name: str, data_root: str | Path, seed: int, unpack_to: str | Path | None = None, **options
) -> ManifestReport:
    """What a source's folder gives and what is wrong with it; only what can be said of no data set is raised.

    Image files are named, not read; those within other files are unpacked to a folder, once. Options are those of a
    data set (`DatasetSpec.options`), or for other sources those of `chexstudy.cohort.adapters.folder.check_folder`.
    """
    require_source(name)
    if name in DATASETS:
        return check_dataset(DATASETS[name], data_root, seed, options)
    if name == "folder":
        return check_folder(data_root, seed, **options)
    if unpack_to is None:
        raise StudyError(f"the source {name!r} needs unpack_to, the folder its images are unpacked to.")
    try:
        cohort = _PACKED[name](data_root, seed, unpack_to=unpack_to, **options)
    except StudyError as error:
        return ManifestReport((str(error),))
    absent = [number for number, file in enumerate(cohort["image_path"]) if not os.path.isfile(file)]
    return ManifestReport((), cohort.index, tuple(absent), (), cohort)


def build_source(
    name: str, data_root: str | Path, seed: int, unpack_to: str | Path | None = None, **options
) -> pd.DataFrame:
    """The validated cohort table of a source; see `read_source`."""
    return read_source(name, data_root, seed, unpack_to, **options).require_cohort()
