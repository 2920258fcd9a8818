"""The test images of CheXpert, with labels by radiologists: those of the CheXlocalize archive, or as released alone.

``test_labels.csv`` has a row an image, ``groundtruth.csv`` a row a study, whose images have its labels. A study of no
label need not be one of No Finding.
"""

import pandas as pd

from chexstudy.cohort.adapters.datasets.chexpert_paths import read_paths, refuse_unclear
from chexstudy.cohort.adapters.layout import Download, is_image
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.table import require_columns
from chexstudy.errors import StudyError


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    table, origin = download.read(), download.table.name
    if "Study" in table:
        table = _spread_studies(table, download)
    require_columns(table, ["Path"], origin)
    return table.join(read_paths(table["Path"], origin)).assign(split="test")


def _spread_studies(table: pd.DataFrame, download: Download) -> pd.DataFrame:
    """A row for each image of the folder that is of a study of the table, by the names of both, never by order."""
    origin = download.table.name
    studies = table["Study"].fillna("").str.extract(r"(patient\d+/study\d+)/?$")[0]
    refuse_unclear(studies.isna(), table["Study"], "test/patient64741/study1", origin)
    files = pd.Series(list(filter(is_image, download.files)), dtype="str")
    files = files.str.extract(r"((patient\d+/study\d+)/(view\d+_(?:frontal|lateral)\.\w+))$").dropna().drop_duplicates()
    images = table.assign(line=table.index, study=studies).merge(files.set_axis(["file", "study", "view"], axis=1))
    if images.empty:
        raise StudyError(f"{download.folder} holds no image of a study of {origin}: put the folder test beside it.")
    images.index = pd.Index(images["line"].astype("str") + " (" + images["view"] + ")", name="line")
    images.attrs["studies_without_image"] = int((~studies.isin(images["study"])).sum())
    return images[[*SPEC.columns["findings"]]].assign(Path="test/" + images["file"])


SPEC = register(__file__, read=_read_table)
