"""RSNA Pneumonia 2018: a row a box, three classes of images, and a file that says which NIH images they are.

``patientId`` names an image, not a patient: with the mapping in the folder patients are those of NIH ChestX-ray14, else
each image counts as one.
"""

import pandas as pd

from chexstudy.cohort.adapters.layout import WHO, Download, read_headers, read_json
from chexstudy.cohort.adapters.manifest import NO_PATIENT_TOLD, PATIENTS_OF, register
from chexstudy.cohort.source_annotations import Box
from chexstudy.errors import StudyError

_IMAGE, _CORNERS = "patientId", ["x", "y", "width", "height"]
_CLASSES, _MAPPING = "stage_2_detailed_class_info.csv", "pneumonia-challenge-dataset-mappings_2018.json"
_PICTURE = (1024, 1024)


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    """One row an image: the target, and no finding where the class says normal."""
    boxes = download.read(columns=[_IMAGE, *_CORNERS, "Target"])
    classes = download.read(_CLASSES, columns=[_IMAGE, "class"]).drop_duplicates(_IMAGE).set_index(_IMAGE)["class"]
    table = boxes.drop_duplicates(_IMAGE)[[_IMAGE, "Target"]].rename(columns={"Target": options["target"]})
    table[next(name for name in SPEC.options["target"] if name != options["target"])] = None
    table["No Finding"] = table[_IMAGE].map(classes).eq("Normal")
    table = table.join(read_headers(download, table[_IMAGE], WHO))
    patients = _read_patients(download)
    table["patient"] = table[_IMAGE].map(patients) if patients else table[_IMAGE]
    if table["patient"].isna().any():
        raise StudyError(
            f"{_MAPPING} lacks {table['patient'].isna().sum()} images of {download.table.name}: fetch it anew."
        )
    table.attrs |= {PATIENTS_OF: "nih"} if patients else {NO_PATIENT_TOLD: len(table)}
    return table


def _read_patients(download: Download) -> dict[str, str]:
    """Image -> number of its patient in NIH ChestX-ray14; empty where the owner's mapping is not there."""
    path = download.find(_MAPPING)
    if path is None:
        return {}
    with read_json(path, "a mapping of RSNA images to NIH images") as told:
        # 00000013_005.png is of patient 13.
        return {one["subset_img_id"]: str(int(one["img_id"].split("_")[0])) for one in told}


def _list_boxes(download: Download) -> list[Box]:
    """Each box under both names of the target."""
    boxes = download.read(columns=[_IMAGE, *_CORNERS]).dropna(subset=_CORNERS)
    corners = boxes[_CORNERS].astype("float64").itertuples(index=False, name=None)
    names = SPEC.options["target"]
    return [
        Box(f"rsna_pneumonia/{image}", name, box, _PICTURE)
        for image, box in zip(boxes[_IMAGE], corners, strict=True)
        for name in names
    ]


SPEC = register(__file__, read=_read_table, list_annotations=_list_boxes)
