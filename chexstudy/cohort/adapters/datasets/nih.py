"""NIH ChestX-ray14 in its official layout: labels joined in one cell, the split lists, the radiologists' boxes.

Reports do not exist; pseudo-reports are written from the labels.
"""

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import Box
from chexstudy.cohort.table import NO_FINDING, require_columns
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import normalise_ids
from chexstudy.inputs.tables import name_place

_COLUMNS = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex", "View Position"),
)
_BOXES = "BBox_List_2017.csv"
_PICTURE = (1024, 1024)
_OTHER_NAMES = {"Pleural_Thickening": "Pleural Thickening", "Infiltrate": "Infiltration"}


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    # Older copies of the table say gender.
    table = download.read().rename(columns={"Patient Gender": "Patient Sex"})
    require_columns(table, _COLUMNS, download.table.name)
    table[SPEC.columns["study_id"]] = normalise_ids(table["Patient ID"]) + "_" + table["Follow-up #"]
    return table.join(_read_labels(table["Finding Labels"], download.table.name))


def _read_labels(cells: pd.Series, origin: str) -> pd.DataFrame:
    """``Cardiomegaly|Effusion`` to one column a finding; what is not named was looked for and is absent."""
    named = cells.fillna("").str.split("|").map(lambda labels: {_OTHER_NAMES.get(label, label) for label in labels})
    findings = SPEC.columns["findings"]
    for row, labels in enumerate(named):
        if not labels <= set(findings):
            raise StudyError(
                f"{origin}: {name_place(cells.index, row)}, column 'Finding Labels' holds another label: expected "
                f"{NO_FINDING!r} or findings among {', '.join(findings[1:])}, joined by '|'."
            )
    return pd.DataFrame({name: named.map(lambda labels, name=name: str(int(name in labels))) for name in findings})


def _list_boxes(download: Download) -> list[Box]:
    """The radiologists' boxes, in pixels of the original images; none where their list is not there."""
    if download.find(_BOXES) is None:
        return []
    # The header's "Bbox [x,y,w,h]" holds commas, so it reads as four columns.
    columns = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    table = download.read(_BOXES, columns=columns)
    images, findings = "nih/" + table["Image Index"], table["Finding Label"].replace(_OTHER_NAMES)
    corners = table[columns[2:]].astype("float32").itertuples(index=False, name=None)
    return [Box(*one, _PICTURE) for one in zip(images, findings, corners, strict=True)]


SPEC = register(__file__, read=_read_table, list_annotations=_list_boxes)
