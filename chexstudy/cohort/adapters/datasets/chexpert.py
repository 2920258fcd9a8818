"""CheXpert v1.0, its training and validation images: JPEG files, and labels of reports that are not part of it."""

import re

import pandas as pd

from chexstudy.cohort.adapters.datasets.chexpert_paths import read_paths, tell_ages, tell_views
from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register


def _read_tables(download: Download, options: dict[str, str]) -> pd.DataFrame:
    table = download.read_each("train.csv", "valid.csv", columns=("Path", "Age", "AP/PA"))
    told = read_paths(table["Path"], download.folder.name)
    return table.assign(Age=tell_ages(table["Age"]), view=tell_views(table["AP/PA"], told), **told)


SPEC = register(
    __file__, read=_read_tables, is_own_name=lambda name: re.fullmatch(r"view\d+_(frontal|lateral)", name) is not None
)
