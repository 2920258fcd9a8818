"""NIH ChestX-ray14 in its official layout: ``Data_Entry_2017_v2020.csv``, images in ``images*/``, the split lists.

Reports do not exist; pseudo-reports are written from the labels. Source: Wang et al., CVPR 2017 (NIH Clinical Center).
"""

from pathlib import Path

import pandas as pd

from chexstudy.cohort.adapters.manifest import DatasetSpec, register
from chexstudy.cohort.annotations import Box
from chexstudy.cohort.table import NO_FINDING, require_columns
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import normalise_ids
from chexstudy.inputs.tables import name_place, read_text_table

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural Thickening", "Hernia"),
)
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_COLUMNS = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex", "View Position"),
)
_STUDY = "Patient ID and Follow-up #"
_BOXES = "BBox_List_2017.csv"
_PICTURE = (1024, 1024)
_OTHER_NAMES = {"Pleural_Thickening": "Pleural Thickening", "Infiltrate": "Infiltration"}


def _read_table(folder: Path, path: Path) -> pd.DataFrame:
    # Older copies of the table say gender.
    table = read_text_table(path).rename(columns={"Patient Gender": "Patient Sex"})
    require_columns(table, _COLUMNS, path.name)
    table[_STUDY] = normalise_ids(table["Patient ID"]) + "_" + table["Follow-up #"]
    return table.join(_read_labels(table["Finding Labels"], path))


def _read_labels(cells: pd.Series, path: Path) -> pd.DataFrame:
    """``Cardiomegaly|Effusion`` to one column a finding; what is not named was looked for and is absent."""
    named = cells.fillna("").str.split("|").map(lambda labels: {_OTHER_NAMES.get(label, label) for label in labels})
    known = {NO_FINDING, *FINDINGS}
    for row, labels in enumerate(named):
        if not labels <= known:
            raise StudyError(
                f"{path.name}: {name_place(cells.index, row)}, column 'Finding Labels' holds another label: expected "
                f"{NO_FINDING!r} or findings among {', '.join(FINDINGS)}, joined by '|'."
            )
    return pd.DataFrame(
        {name: named.map(lambda labels, name=name: "1" if name in labels else "0") for name in (NO_FINDING, *FINDINGS)}
    )


def _list_boxes(folder: Path) -> list[Box]:
    """The radiologists' boxes, in pixels of the original images; none where their list is not there."""
    if not (folder / _BOXES).is_file():
        return []
    table = read_text_table(folder / _BOXES)
    # The header's "Bbox [x,y,w,h]" holds commas, so it reads as four columns.
    columns = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    require_columns(table, columns, _BOXES)
    images, findings = "nih/" + table["Image Index"], table["Finding Label"].replace(_OTHER_NAMES)
    corners = table[columns[2:]].astype("float32").itertuples(index=False, name=None)
    return [Box(*one, _PICTURE) for one in zip(images, findings, corners, strict=True)]


register(
    DatasetSpec(
        name="nih",
        title="NIH ChestX-ray14",
        address="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="no restriction on use; cite Wang et al., CVPR 2017, and name the NIH Clinical Center",
        holding=f"the NIH images and {_TABLES[0]}",
        columns={
            "image_path": "Image Index",
            "patient_id": "Patient ID",
            "study_id": _STUDY,
            "view": "View Position",
            "sex": "Patient Sex",
            "age_years": "Patient Age",
            "findings": [NO_FINDING, *FINDINGS],
        },
        read=_read_table,
        tables=_TABLES,
        split_lists={"train": "train_val_list.txt", "test": "test_list.txt"},
        list_annotations=_list_boxes,
        exposure="RSNA Pneumonia, SIIM-ACR, ChestX-Det, NIH-CXR-LT and Google's re-labels hold images of it",
    )
)
