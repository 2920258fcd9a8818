"""Open-I (Indiana University): an XML file a report with its images and MeSH headings, or the Kaggle copy's tables.

The PNG and the DICOM archive and the copy name images each in their own way. Each report counts as a patient.
"""

import os
import re
from xml.etree import ElementTree

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.adapters.terms import label_terms, split_terms
from chexstudy.cohort.images.dicom import read_tags
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

_DATA = read_data_beside(__file__)["data"]
_REPORTS, _PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
_REPORT_FILE = re.compile(r"(?:.*/)?\d+\.xml")
_IMAGE_NAME = re.compile(r"(?:CXR)?\d+_(?:\d+_)?IM-\d{4}-[\d-]+(?:\.dcm)?")


def _list_images(download: Download, options: dict[str, str]) -> pd.DataFrame:
    """One row an image, with the report that it shares with the others of its study."""
    reports = [name for name in download.files if _REPORT_FILE.fullmatch(name)]
    table, alone = _read_reports(download, reports) if reports else _read_copy(download)
    terms = split_terms(table["MeSH"], ";")
    headings = pd.concat([terms.str.extract(rf"^({parts})", expand=False) for parts in ("[^/]+", "[^/]+/[^/]+")])
    table = table.join(label_terms(headings, _DATA["headings"], _DATA["saying_nothing"]))
    files = {os.path.basename(name): download.folder / name for name in download.files}
    table["file"] = table["image"]
    if not any(name.startswith("CXR") for name in files):
        table["file"] = table["image"].str.replace(r"^CXR(\d+)_(?:\1_)?", r"\1_", regex=True) + ".dcm"
        views = {name: read_tags(path, ["ViewPosition"])[0] for name, path in files.items() if name.endswith(".dcm")}
        table["view"] = table["file"].map(views) if views else table["view"]
    table.attrs["reports_without_image"] = alone
    return table


def _read_reports(download: Download, files: list[str]) -> tuple[pd.DataFrame, int]:
    """One row an image, and how many reports have none."""
    rows, alone = [], 0
    for name in files:
        try:
            report = ElementTree.parse(download.folder / name).getroot()
            told = {text.attrib["Label"].lower(): text.text for text in report.iter("AbstractText")}
            told["uid"] = report.find("uId").attrib["id"]
            images = [image.attrib["id"] for image in report.iter("parentImage")]
        except (ElementTree.ParseError, AttributeError, KeyError):
            raise StudyError(
                f"{download.folder / name} is no report of Open-I, or a damaged one: unpack NLMCXR_reports.tgz again, "
                "or take the file away."
            ) from None
        told["MeSH"] = ";".join(heading.text or "" for heading in report.iter("major"))
        rows += [{"image": image, **told} for image in images]
        alone += not images
    table = pd.DataFrame(rows, columns=["image", "uid", "findings", "impression", "MeSH", "view"], dtype="str")
    return table, alone


def _read_copy(download: Download) -> tuple[pd.DataFrame, int]:
    """As `_read_reports`, of the Kaggle copy."""
    reports = download.read(_REPORTS, columns=["uid", "MeSH", "findings", "impression"])
    images = download.read(_PROJECTIONS, columns=["uid", "filename", "projection"])
    table = images.rename(columns={"projection": "view"}).join(reports.set_index("uid"), on="uid")
    # The first report's images alone have its number twice in their names.
    names = table["filename"].str.removesuffix(".dcm.png").str.replace(r"^1_", "1_1_", regex=True)
    alone = int((~reports["uid"].isin(images["uid"])).sum())
    return table.assign(uid="CXR" + table["uid"], image="CXR" + names), alone


SPEC = register(__file__, read=_list_images, is_own_name=lambda name: _IMAGE_NAME.fullmatch(name) is not None)
