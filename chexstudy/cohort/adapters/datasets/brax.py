"""BRAX: the PNG or the DICOM images (those of 1.0.0 without an ending), labels by a labeller, no reports."""

import os

import pandas as pd

from chexstudy.cohort.adapters.layout import Download, is_image
from chexstudy.cohort.adapters.manifest import register
from chexstudy.inputs.identifiers import normalise_ids


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    table = download.read(columns=["PngPath", "PatientID", "AccessionNumber", "PatientAge"])
    # Both trees are alike below their first folder.
    table["file"] = table["PngPath"].str.replace(r"^(?:.*/)?(?=id_[^/]*/)", "", regex=True)
    table["image"] = table["PngPath"].map(lambda path: os.path.splitext(os.path.basename(path))[0], na_action="ignore")
    # The numbers of studies begin anew with each patient.
    table["study"] = normalise_ids(table["PatientID"]) + "_" + normalise_ids(table["AccessionNumber"])
    table.attrs["images_whose_age_is_capped"] = int(table["PatientAge"].str.contains("more", na=False).sum())
    return table


SPEC = register(
    __file__, read=_read_table, is_image=lambda name: is_image(name) or os.path.basename(name).startswith("image-")
)
