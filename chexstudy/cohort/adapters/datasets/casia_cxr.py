"""CASIA-CXR: a folder a finding, with French reports; the finding of the folder is present, the others not told."""

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.table import tell_first
from chexstudy.errors import StudyError

_COLUMNS = ("ExamID", "ImageID", "PatientID", "PatientAge", "PatientGender", "Projection", "Findings", "Impression")


def _read_tables(download: Download, options: dict[str, str]) -> pd.DataFrame:
    rows = download.read_each(*SPEC.told_by, columns=_COLUMNS)
    table = rows[rows["ExamID"].notna()]
    findings = SPEC.columns["findings"]
    folders = table["ImageID"].str.extract(r"^CASIA-CXR_([A-Za-z]+)_\d+$", expand=False)
    told = f" names no image of a folder: expected CASIA-CXR_CLASS_0001, of a class among {', '.join(findings)}."
    for problem in tell_first(~folders.isin(findings), table["ImageID"], "CASIA-CXR", told, ""):
        raise StudyError(problem)
    texts = {name: table[name].str.replace("./", ".", regex=False) for name in ("Findings", "Impression")}
    table = table.assign(**texts, **{finding: folders.eq(finding).map({True: "1"}) for finding in findings})
    table.attrs["rows_without_exam_left_out"] = len(rows) - len(table)
    return table


SPEC = register(__file__, read=_read_tables)
