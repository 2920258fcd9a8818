"""The COVID-19 image collection of Cohen et al.: cases from publications, with a path of a finding and some outcomes.

A finding such as ``Pneumonia/Viral/COVID-19`` states itself and what it is a kind of, and nothing of other kinds; only
no finding denies the others.
"""

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.table import NO_FINDING

_COLUMNS = ("patientid", "offset", "finding", "survival", "went_icu", "modality", "folder", "filename")
# Finding -> the paths that state it.
_PATHS = {"Pneumonia": r"^Pneumonia(?:/|$)", "COVID-19": r"(?:^|/)COVID-19(?:/|$)"}


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    table = download.read(columns=_COLUMNS)
    # Scans and volumes are no radiographs, and what is yet to be described says nothing.
    is_used = (table["modality"] == "X-ray") & (table["folder"] == "images") & (table["finding"] != "todo")
    table = table[is_used]
    finding = table["finding"].where(table["finding"] != "Unknown")
    is_normal = finding == NO_FINDING
    labels = {NO_FINDING: is_normal.where(finding.notna())}
    for name, path in _PATHS.items():
        is_named = finding.str.contains(path, na=False)
        labels[name] = is_named.where(is_named | is_normal)
    outcomes = table[["survival", "went_icu"]].where(table[["survival", "went_icu"]].isin(["Y", "N"]))
    study = table["patientid"] + "_" + table["offset"].fillna("")
    table = table.assign(study=study, **outcomes, **labels)
    table.attrs["scans_and_undescribed_images_left_out"] = int((~is_used).sum())
    return table


SPEC = register(__file__, read=_read_table)
