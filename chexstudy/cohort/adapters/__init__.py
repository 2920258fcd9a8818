"""Adapters: a public data set, or a folder of one's own, to a cohort table."""

import inspect
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from chexstudy.cohort.adapters.column_mapping import MAPPING_FILE
from chexstudy.cohort.adapters.folder import build_folder
from chexstudy.cohort.adapters.huggingface import SAVED_MARKS, SHARD_NAME, build_huggingface
from chexstudy.cohort.adapters.layout import list_images
from chexstudy.cohort.adapters.nih import TABLES as NIH_TABLES
from chexstudy.cohort.adapters.nih import build_nih, list_boxes
from chexstudy.cohort.adapters.nlm_tb import IMAGE_NAME, build_nlm_tb, list_lung_masks
from chexstudy.cohort.adapters.webdataset import SHARDS, build_webdataset
from chexstudy.cohort.annotations import Box, MaskFile
from chexstudy.cohort.table import validate_cohort
from chexstudy.errors import StudyError
from chexstudy.paths import resolve_user_path

SOURCES: Mapping[str, Callable[..., pd.DataFrame]] = MappingProxyType(
    {
        "nih": build_nih,
        "nlm_tb": build_nlm_tb,
        "folder": build_folder,
        "webdataset": build_webdataset,
        "huggingface": build_huggingface,
    }
)
# Source -> what lists its annotations in a folder; those of the others are not known.
_ANNOTATED = MappingProxyType({"nih": list_boxes, "nlm_tb": list_lung_masks})
# Their images lie within other files and must be unpacked somewhere: the option `unpack_to` says where.
PACKED = ("webdataset", "huggingface")


def guess_source(data_root: str | Path) -> str:
    """The source that a folder is one of, by the names of what it holds: one's own folder if nothing else is told."""
    folder = resolve_user_path(data_root)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    signs = {
        "webdataset": lambda name: name.endswith(SHARDS),
        "nih": lambda name: name in NIH_TABLES,
        "huggingface": lambda name: name in SAVED_MARKS or SHARD_NAME.fullmatch(name.removesuffix(".parquet")),
    }
    told = next((source for source, is_sign in signs.items() if any(map(is_sign, sorted(names)))), None)
    if (
        told is None
        and MAPPING_FILE not in names
        and any(IMAGE_NAME.match(image.stem) for image in list_images(folder))
    ):
        return "nlm_tb"
    return told or "folder"


def list_annotations(name: str, folder: Path, image_ids: Container[str]) -> list[Box | MaskFile]:
    """What the folder of a source holds of where organs and findings are on some images."""
    listed = _ANNOTATED[name](folder) if name in _ANNOTATED else []
    return [one for one in listed if one.image_id in image_ids]


def build_source(
    name: str, data_root: str | Path, seed: int, options: Mapping[str, object] | None = None
) -> pd.DataFrame:
    """A validated cohort table from a source.

    Image files are named, not read: those that are missing or cannot be used are set aside, with a reason, when the
    pixel store is built. ``attrs["images_without_row"]`` is the number of images no table speaks of.

    Args:
        name: one of ``SOURCES``.
        data_root: the data set's folder.
        seed: seed of the split and of template reports.
        options: keyword arguments of the source's own function.
    """
    if name not in SOURCES:
        raise StudyError(f"there is no source named {name!r}: the sources are {', '.join(SOURCES)}.")
    build = SOURCES[name]
    options = dict(options or {})
    known = [
        parameter.name
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind == parameter.KEYWORD_ONLY
    ]
    if name in PACKED and "unpack_to" not in options:
        raise StudyError(f"the source {name!r} needs the option 'unpack_to': the folder its images are unpacked to.")
    unknown = [option for option in options if option not in known]
    if unknown:
        raise StudyError(f"the source {name!r} has no option {unknown[0]!r}: its options are {', '.join(known)}.")
    cohort = build(data_root, seed, **options)
    notes = dict(cohort.attrs)
    cohort = validate_cohort(cohort, f"the cohort from {name}")
    cohort.attrs.update(notes)
    return cohort
