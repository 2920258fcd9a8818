"""BIMCV-COVID19, positive and negative: images named by patient and session, labels and Spanish reports by session.

Ages are those at the first visit, as they are told for a patient and not for an image. CT is left out.
"""

import os
import re

import pandas as pd

from chexstudy.cohort.adapters.datasets.padchest import DATA as PADCHEST
from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.adapters.terms import label_terms, read_bracket_lists
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

_DATA = read_data_beside(__file__)["data"]
_IMAGE_NAME = re.compile(
    r"(?P<patient>sub-S\d+)_(?P<session>ses-E\d+)_(?:.*?_)??"
    r"(?:vp-(?P<view>[a-z]+)_)?(?:dx|cr)(?P<corrected>-corrected)?\.png"
)
_PARTICIPANTS = "participants.tsv"


def _list_images(download: Download, options: dict[str, str]) -> pd.DataFrame:
    """One row an image, with the report and the labels of its session."""
    table = _read_names(download)
    if table.empty:
        raise StudyError(
            f"{download.folder} holds no radiographs (sub-S*_ses-E*_*.png): set data_root to the folder that holds "
            f"{SPEC.holding}."
        )
    people = [name for name in download.files if os.path.basename(name) == _PARTICIPANTS] or [_PARTICIPANTS]
    people = download.read_each(*people, columns=["participant", "age", "gender"]).drop_duplicates("participant")
    people["age"] = people["age"].str.findall(r"\d+").map(lambda ages: min(ages, key=int, default=None), "ignore")
    table = table.join(people.set_index("participant")[["age", "gender"]], on="patient")
    found = [list(filter(download.find, names)) for names in _DATA["labels"]]
    names = [tables[0] for tables in found if tables] or _DATA["labels"][0]
    told = download.read_each(*names, columns=["ReportID", "Report", "Labels", "labelCUIS"]).drop_duplicates("ReportID")
    if not table["session"].isin(told["ReportID"]).any():
        raise StudyError(
            f"{' and '.join(names)}: no cell of 'ReportID' is the session of an image, ses-E and a number as in its "
            "name: take the tables and the images of one iteration."
        )
    labels = label_terms(read_bracket_lists(told["Labels"]), PADCHEST["terms"], PADCHEST["saying_nothing"])
    labels["COVID-19"] = labels["No Finding"].where(labels["No Finding"].isna(), "0")
    for concept, label in (("covid_uncertain", "-1"), ("covid", "1")):
        labels["COVID-19"] = labels["COVID-19"].mask(told["labelCUIS"].str.contains(_DATA[concept], na=False), label)
    told = told[["ReportID", "Report"]].join(labels).set_index("ReportID")
    alone = int((~told.index.isin(table["session"])).sum())
    table = table.join(told, on="session")
    table.attrs["reports_without_image"] = alone
    table.attrs["tables_of_older_iterations_not_read"] = sum(len(tables[1:]) for tables in found)
    return table


def _read_names(download: Download) -> pd.DataFrame:
    """What the images' names tell; of an image and its corrected form only the latter."""
    files = pd.Series([os.path.basename(name) for name in download.files if _is_radiograph(name)], dtype="str")
    table = files.str.extract(_IMAGE_NAME).assign(file=files)
    table["plain"] = files.str.replace("-corrected", "")
    return table.sort_values(["plain", "corrected"]).drop_duplicates("plain")


def _is_radiograph(name: str) -> bool:
    return _IMAGE_NAME.fullmatch(os.path.basename(name)) is not None


SPEC = register(__file__, read=_list_images, is_image=_is_radiograph)
