"""VinDr-CXR: DICOM images, a row for each reader of an image, and the boxes of all readers; no patient is told.

Sex and age come from the header of an image, which often has neither, and so does the size of the picture on which
boxes were drawn: images that were turned into PNG have no boxes.
"""

import pandas as pd

from chexstudy.cohort.adapters.layout import WHO, Download, read_headers
from chexstudy.cohort.adapters.manifest import DatasetSpec, register
from chexstudy.cohort.source_annotations import Box
from chexstudy.cohort.table import require_columns, tell_first
from chexstudy.errors import StudyError

# What share of an image's readers must be exceeded.
_SHARES = {"union": 0.0, "majority": 0.5, "all": 0.999}
_BOXES = ("annotations_train.csv", "annotations_test.csv")
_CORNERS = ["x_min", "y_min", "x_max", "y_max"]
_BOX = ["image_id", "class_name", *_CORNERS, "height", "width"]


def read_readings(spec: DatasetSpec, download: Download, readers: str, view: str = "") -> pd.DataFrame:
    """One row an image: what its readers found together, its split, and what the header of its file tells.

    All are of the view, if there is one. No finding is taken back, and counted, where a finding stands beside it.
    """
    findings, parts = list(spec.columns["findings"]), []
    for name in spec.tables:
        if (path := download.find(name)) is not None:
            readings = download.read_each(name)
            if "Other diseases" in findings:
                # The test table of VinDr-CXR has the name in the singular.
                readings = readings.rename(columns={"Other disease": "Other diseases"})
            parts.append(_join_readers(readings, findings, _SHARES[readers], path.name))
            parts[-1]["split"] = "test" if name.endswith("_test.csv") else "train"
    if not parts:
        download.require(*spec.tables)
    table = pd.concat(parts)
    nothing = next(name for name in findings if name.lower() == "no finding")
    disputed = table[nothing] & table[findings].drop(columns=nothing).any(axis=1)
    table[nothing] &= ~disputed
    table[list(WHO)] = read_headers(download, table["image_id"], WHO)
    table["view"] = view or table["view"]
    table["age"] = table["age"].where(table["age"] != "000Y")
    table.attrs["images_called_no_finding_by_one_reader_and_not_by_another"] = int(disputed.sum())
    return table


def _join_readers(readings: pd.DataFrame, findings: list[str], share: float, origin: str) -> pd.DataFrame:
    """``image_id`` and whether more than this share of its readers see each finding; a row an image, in order."""
    require_columns(readings, ["image_id", *findings], origin)
    seen = readings[findings].apply(pd.to_numeric, errors="coerce")
    for finding in findings:
        wrong, told = ~seen[finding].isin([0, 1]), ": expected 1, seen by the reader, or 0."
        for problem in tell_first(wrong, readings[finding], origin, told):
            raise StudyError(problem)
    joined = seen.groupby(readings["image_id"], dropna=False).mean() > share
    return readings[["image_id"]].drop_duplicates().join(joined, on="image_id")


def list_boxes(name: str, download: Download) -> list[Box]:
    """The boxes of all readers, in pixels of the original images; none where their tables are not there."""
    if not any(map(download.find, _BOXES)):
        return []
    table = download.read_each(*_BOXES, columns=["image_id", "class_name", *_CORNERS])
    table[_CORNERS] = table[_CORNERS].apply(pd.to_numeric, errors="coerce")
    table = table.dropna(subset=_CORNERS)
    images = table["image_id"].drop_duplicates()
    sizes = read_headers(download, images, {"height": "Rows", "width": "Columns"}).set_index(images)
    rows = table.join(sizes[(sizes != "").all(axis=1)].astype(int), on="image_id", how="inner")
    return [
        Box(f"{name}/{image}", finding, (left, top, right - left, bottom - top), (height, width))
        for image, finding, left, top, right, bottom, height, width in rows[_BOX].itertuples(index=False)
    ]


SPEC = register(
    __file__,
    read=lambda download, options: read_readings(SPEC, download, options["readers"], "PA"),
    list_annotations=lambda download: list_boxes(SPEC.name, download),
)
