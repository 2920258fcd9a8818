"""CheXpert 5x200: training images of CheXpert with exactly one of five findings, to be told from each other.

The table names the images; they, and the impressions where the table has none, are those of CheXpert or CheXpert Plus.
"""

import pandas as pd

from chexstudy.cohort.adapters.datasets.chexpert_paths import read_paths
from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.errors import StudyError
from chexstudy.inputs.tables import name_place

_CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_IMPRESSION = "Report Impression"
_REPORTS = "df_chexpert_plus_240401.csv"


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    table, origin = download.read(columns=("Path", *_CLASSES)), download.table.name
    present = table[list(_CLASSES)].apply(pd.to_numeric, errors="coerce") == 1
    wrong = (present.sum(axis=1) != 1).to_numpy()
    if wrong.any():
        place = name_place(table.index, int(wrong.argmax()))
        raise StudyError(f"{origin}: {place} does not hold 1 for exactly one of {', '.join(_CLASSES)}.")
    told = read_paths(table["Path"], origin)
    if _IMPRESSION not in table:
        table[_IMPRESSION] = _find_impressions(download).reindex(told["study"]).to_numpy()
    # A column of this name becomes a section of the report.
    return table.rename(columns={_IMPRESSION: "impression"}).join(told).assign(split="test")


def _find_impressions(download: Download) -> pd.Series:
    """Study -> impression, of CheXpert Plus if it lies in the folder."""
    if download.find(_REPORTS) is None:
        return pd.Series(dtype="str")
    reports = download.read(_REPORTS, columns=("path_to_image", "section_impression"))
    studies = read_paths(reports["path_to_image"], _REPORTS)["study"]
    return reports["section_impression"].set_axis(studies).loc[lambda told: ~told.index.duplicated()]


SPEC = register(__file__, read=_read_table)
