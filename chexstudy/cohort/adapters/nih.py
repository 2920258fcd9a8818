"""NIH ChestX-ray14 in its official layout: ``Data_Entry_2017_v2020.csv``, images in ``images*/``, the split lists.

Reports do not exist; pseudo-reports are written from the labels. Source: Wang et al., CVPR 2017 (NIH Clinical Center).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.cohort.adapters.layout import (
    IMAGES_WITHOUT_ROW,
    list_images,
    parse_years,
    require_columns,
    require_folder,
)
from chexstudy.cohort.annotations import Box
from chexstudy.cohort.reports import template_report
from chexstudy.cohort.splits import DEFAULT_FRACTIONS, carve_validation, split_patients
from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import normalise_ids, unify_patients
from chexstudy.inputs.tables import name_place, read_text_table

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural Thickening",
    "Hernia",
)
OLDEST_YEARS = 120  # some rows say 411 years and the like
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
_BOXES = "BBox_List_2017.csv"
_PICTURE = (1024, 1024)
_TRAIN_LIST, _TEST_LIST = "train_val_list.txt", "test_list.txt"
_HOLDING = f"the NIH images and {TABLES[0]}"
_OTHER_NAMES = {"Pleural_Thickening": "Pleural Thickening", "Infiltrate": "Infiltration"}


def build_nih(
    data_root: str | Path, seed: int, *, validate_share: float = 0.1, word_budget: int | None = None
) -> pd.DataFrame:
    """The cohort of the NIH images.

    Where ``test_list.txt`` or ``train_val_list.txt`` lies beside the table, it makes the test split; else patients are
    split 70/10/20. Validation patients come out of the training ones. Images that the table names and the folder lacks
    stay in the cohort and go to quarantine when pixels are read.

    Args:
        data_root: the official folder, or one with the same names in it.
        seed: seed of the split and of the pseudo-reports.
        validate_share: share of the training patients that become ``validate`` where an official list is used.
        word_budget: see :func:`chexstudy.cohort.reports.template_report`.
    """
    folder = require_folder(data_root, _HOLDING)
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise StudyError(f"{folder} has no {' or '.join(TABLES)}: set data_root to the folder that holds {_HOLDING}.")
    table = read_text_table(path)
    require_columns(table, _COLUMNS, path)
    names, patients = normalise_ids(table["Image Index"]), normalise_ids(table["Patient ID"])
    for cells in (names, patients):
        if cells.isna().any():
            place = name_place(table.index, int(cells.isna().argmax()))
            raise StudyError(f"{path.name}: {place}, column {cells.name!r} is empty: fill it in.")
    files = {image.name: image for image in list_images(folder)}
    image_ids = "nih/" + names
    labels = _read_labels(table["Finding Labels"], path)
    age = parse_years(table["Patient Age"])
    cohort = pd.DataFrame(
        {
            "image_id": image_ids,
            "patient_id": unify_patients("nih/" + patients)[0],
            "study_id": "nih/" + patients + "_" + table["Follow-up #"],
            "source": "nih",
            "split": _read_official_split(folder, names),
            "view": table["View Position"].where(table["View Position"].isin(["PA", "AP"]), "unknown"),
            "sex": table["Patient Gender"].where(table["Patient Gender"].isin(["F", "M"]), "unknown"),
            "age_years": age.where(age <= OLDEST_YEARS),
            "image_path": [str(files.get(name, folder / "images" / name)) for name in names],
            "report": [
                template_report(row, image_id, seed, word_budget)
                for row, image_id in zip(labels.to_dict("records"), image_ids, strict=True)
            ],
            "report_origin": "template",
        }
    ).join(labels)
    if cohort["split"].isna().all():
        cohort = split_patients(cohort, DEFAULT_FRACTIONS, seed)
    else:
        cohort = carve_validation(cohort, validate_share, seed)
    cohort.attrs[IMAGES_WITHOUT_ROW] = len(files.keys() - set(names))
    return cohort


def list_boxes(folder: Path) -> list[Box]:
    """The radiologists' boxes, in pixels of the original 1024 x 1024 images; none where their list is not there."""
    if not (folder / _BOXES).is_file():
        return []
    table = read_text_table(folder / _BOXES)
    # The header's "Bbox [x,y,w,h]" holds commas, so it reads as four columns.
    columns = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    require_columns(table, columns, folder / _BOXES)
    images, findings = "nih/" + table["Image Index"], table["Finding Label"].replace(_OTHER_NAMES)
    corners = table[columns[2:]].astype("float32").itertuples(index=False, name=None)
    return [Box(*one, _PICTURE) for one in zip(images, findings, corners, strict=True)]


def _read_labels(cells: pd.Series, path: Path) -> pd.DataFrame:
    """``Cardiomegaly|Effusion`` to one Int8 column a finding; what is not named was looked for and is absent."""
    named = cells.fillna("").str.split("|").map(lambda labels: {_OTHER_NAMES.get(label, label) for label in labels})
    known = {NO_FINDING, *FINDINGS}
    for row, labels in enumerate(named):
        if not labels <= known:
            raise StudyError(
                f"{path.name}: {name_place(cells.index, row)}, column 'Finding Labels' holds another label: expected "
                f"{NO_FINDING!r} or findings among {', '.join(FINDINGS)}, joined by '|'."
            )
    return pd.DataFrame(
        {
            finding: named.map(lambda labels, f=finding: int(f in labels)).astype("Int8")
            for finding in (NO_FINDING, *FINDINGS)
        }
    )


def _read_official_split(folder: Path, names: pd.Series) -> pd.Series:
    """``train`` or ``test`` by the official lists; null everywhere if there are none."""
    train, test = (
        set(path.read_text().split()) if (path := folder / name).is_file() else None
        for name in (_TRAIN_LIST, _TEST_LIST)
    )
    if train is None and test is None:
        return pd.Series(None, index=names.index, dtype="str")
    in_test = names.isin(test) if test is not None else ~names.isin(train)
    in_train = names.isin(train) if train is not None else ~in_test
    wrong = names[in_test == in_train]
    if len(wrong):
        raise StudyError(
            f"{len(wrong)} images (the first is that of {name_place(wrong.index, 0)}) are in neither or in both of "
            f"{_TRAIN_LIST} and {_TEST_LIST}: mend the lists, or take both away to split patients at random."
        )
    return pd.Series(np.where(in_test, "test", "train"), index=names.index, dtype="str")
