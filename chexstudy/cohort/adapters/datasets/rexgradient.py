"""ReXGradient-160K: a JSON file a split, with a report and several images a study, no labels."""

import os
from pathlib import Path

import pandas as pd

from chexstudy.cohort.adapters.layout import Download, read_json
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.table import require_columns

_STUDY = ("PatientID", "StudyInstanceUid", "PatientSex", "PatientAge", "Findings", "Impression", "ImagePath")
_VIEWS = "ImageViewPosition"
_SPLITS = {"train": "train", "validate": "valid", "test": "test"}


def _list_images(download: Download, options: dict[str, str]) -> pd.DataFrame:
    """One row an image, with what is said of its study."""
    parts = []
    for split, name in _SPLITS.items():
        path = download.find(f"{name}_metadata_view_position.json", f"{name}_metadata.json")
        if path is not None:
            parts.append(_read_studies(path).assign(split=split))
    if not parts:
        download.require(*SPEC.tables)
    table = pd.concat(parts, ignore_index=True)
    table = table.explode(["file", "view"]).dropna(subset="file").reset_index(drop=True).rename_axis("row")
    # The names of files are unique, and what lies above them depends on where they were unpacked.
    table["file"] = table["file"].map(os.path.basename, na_action="ignore")
    table["image"] = table["file"].str.removesuffix(".png")
    abdomen = table["view"] == "KUB"
    table = table[~abdomen]
    table.attrs["images_of_the_abdomen_left_out"] = int(abdomen.sum())
    return table


def _read_studies(path: Path) -> pd.DataFrame:
    """One row a study, with lists of the files and of the views of its images."""
    with read_json(path, "a JSON file of studies by their ids") as told:
        studies = pd.DataFrame(list(told.values()))
    require_columns(studies, _STUDY, path.name)
    files = studies["ImagePath"].map(lambda files: files if isinstance(files, list) else [files])
    told = studies[_VIEWS] if _VIEWS in studies else pd.Series([[]] * len(studies))
    # The list of views may be shorter than that of the files, or longer.
    views = [
        [*(view if isinstance(view, list) else []), *[None] * len(file)][: len(file)]
        for file, view in zip(files, told, strict=True)
    ]
    return studies[list(_STUDY[:-1])].astype("str").assign(file=files, view=views)


SPEC = register(__file__, read=_list_images)
