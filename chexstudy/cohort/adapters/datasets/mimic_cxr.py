"""MIMIC-CXR and MIMIC-CXR-JPG in their official layouts, one on top of the other too: DICOM or JPEG, reports, labels.

Only the table of images is needed. Optional are the official split, the labels, the reports (``files/pNN/pN/sN.txt``,
or ``mimic_cxr_sectioned.csv`` of the official script), and ``patients.csv`` of MIMIC-IV, which alone tells sex and age.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from chexstudy.cohort.adapters.layout import Download, is_image
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.report_tables import read_sectioned
from chexstudy.cohort.table import require_columns
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import normalise_ids
from chexstudy.inputs.tables import name_place
from chexstudy.inputs.yaml_files import read_data_beside
from chexstudy.progress import progress

_DATA = read_data_beside(__file__)["data"]
_RECORD_LIST = "cxr-record-list.csv"  # of MIMIC-CXR, which has no table of views and dates
_DATE = "StudyDate"
VIEW_CODES = ("ViewPosition", "ViewCodeSequence_CodeMeaning")  # the second where the first says nothing
_SPLIT, _PATIENTS = "mimic-cxr-2.0.0-split.csv", "patients.csv"
_READERS, _FILES_AT_ONCE = 16, 500


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    table = download.read(columns=["dicom_id", "subject_id", "study_id"])
    if download.table.name.startswith(_RECORD_LIST):
        table = table.reindex(columns=[*table.columns, *VIEW_CODES, _DATE])
    require_columns(table, [*VIEW_CODES, _DATE], download.table.name)
    table["split"] = _look_up(download, _SPLIT, table["dicom_id"], ["split"])["split"]
    labels = _DATA["labels"][options["labels"]]
    if options["labels"] != SPEC.options["labels"][0]:
        download.require(labels)
    findings = list(SPEC.columns["findings"])
    other = _DATA["other_names"].get(options["labels"], {})
    found = _look_up(download, labels, table["study_id"], [other.get(name, name) for name in findings])
    table = table.join(found.set_axis(findings, axis=1))
    table = table.join(_look_up(download, _PATIENTS, table["subject_id"], ["gender", "anchor_age", "anchor_year"]))
    year, age, then = (pd.to_numeric(table[name], errors="coerce") for name in (_DATE, "anchor_age", "anchor_year"))
    # Dates are moved by one span a patient, and MIMIC-IV tells the age in one of the moved years.
    table["age"] = age + year // 10_000 - then
    return complete_images(table, download)


def _look_up(download: Download, name: str, ids: pd.Series, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of another table of the set for the identifiers of its images, missing where it is not there."""
    path = download.find(name)
    if path is None:
        return pd.DataFrame(index=ids.index, columns=columns, dtype="str")
    other = download.read(name, columns=[ids.name, *columns])
    keys = normalise_ids(other[ids.name])
    if keys.duplicated().any():
        again = name_place(other.index, int(keys.duplicated().argmax()))
        raise StudyError(f"{path.name}: {again} repeats what an earlier one says of its {ids.name}: take one out.")
    other, ids = other.set_axis(keys), normalise_ids(ids)
    if not other.index.isin(ids).any():
        raise StudyError(f"{path.name} names no {ids.name} of the images: give the tables of one release.")
    return other[columns].reindex(ids).set_axis(ids.index)


def complete_images(table: pd.DataFrame, download: Download) -> pd.DataFrame:
    """The table of images with their files, views and studies, and the ``report`` of those whose image is there."""
    table["image"] = table["dicom_id"] + ".jpg"
    table["view"] = table[VIEW_CODES[0]].fillna(table[VIEW_CODES[1]])
    table["study"] = "s" + normalise_ids(table["study_id"])
    there = {os.path.splitext(os.path.basename(name))[0] for name in download.files if is_image(name)}
    wanted = table["study"].where(table["dicom_id"].isin(there)).dropna().unique()
    sections = download.find("mimic_cxr_sectioned.csv")
    reports = _read_files(download, wanted) if sections is None else read_sectioned(sections)
    table["report"] = table["study"].map(reports).astype("str")
    table.attrs["studies_without_a_report_file"] = len(set(wanted) - reports.keys())
    return table


def _read_files(download: Download, studies: Sequence[str]) -> dict[str, str]:
    """Study -> the text of its report file, of those that have one."""
    files = {os.path.basename(name)[:-4]: name for name in download.files if name.endswith(".txt")}
    found = [study for study in studies if study in files]
    batches = [found[start : start + _FILES_AT_ONCE] for start in range(0, len(found), _FILES_AT_ONCE)]

    def read_batch(batch: Iterable[str]) -> list[str]:
        texts = []
        for study in batch:
            with open(os.path.join(download.folder, files[study]), encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
        return texts

    # Many at once, because a disk far away answers each file late.
    with ThreadPoolExecutor(_READERS) as pool:
        texts = [
            text for batch in progress(pool.map(read_batch, batches), len(batches), "reading reports") for text in batch
        ]
    return dict(zip(found, texts, strict=True))


SPEC = register(__file__, read=_read_table)
