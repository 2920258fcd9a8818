"""PadChest: Spanish reports, and labels as lists of terms, which physicians gave to a part and a network to the rest.

Only the year of birth is told, so an age may be one too many.
"""

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.adapters.terms import label_terms, read_bracket_lists
from chexstudy.inputs.yaml_files import read_data_beside

DATA = read_data_beside(__file__)["data"]
_COLUMNS = (
    *("ImageID", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection"),
    *("Report", "MethodLabel", "Labels"),
)


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    table = download.read(columns=_COLUMNS)
    terms = read_bracket_lists(table["Labels"])
    is_excluded = table["Projection"].eq("EXCLUDE") | table.index.isin(terms.index[terms == "exclude"])
    if options["labels"] == "physician":
        terms = terms.where(table["MethodLabel"].eq("Physician").reindex(terms.index))
    meant = DATA["terms"] | (DATA["patterns"] if options["infiltration"] == "patterns" else {})
    born, seen = (pd.to_numeric(table[name].str[:4], "coerce") for name in ("PatientBirth", "StudyDate_DICOM"))
    table = table.assign(age=(seen - born).astype("str")).join(label_terms(terms, meant, DATA["saying_nothing"]))[
        ~is_excluded
    ]
    table.attrs["images_that_padchest_itself_excludes"] = int(is_excluded.sum())
    return table


SPEC = register(__file__, read=_read_table)
