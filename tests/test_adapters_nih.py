import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, list_annotations
from chexstudy.cohort.adapters.datasets.nih import SPEC
from chexstudy.cohort.adapters.manifest import NOT_IN_FOLDER
from chexstudy.cohort.finding_names import canonical_name
from chexstudy.cohort.source_annotations import Box
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

FINDINGS = [canonical_name(name) for name in SPEC.columns["findings"][1:]]
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
ROWS = (
    "00000001_000.png,Cardiomegaly|Pleural_Thickening,0,1,58,M,PA",
    "00000001_001.png,No Finding,1,1,58,M,AP",
    "00000002_000.png,No Finding,0,2,411,F,PA",
    "00000003_000.png,Hernia,0,3,5,F,PA",
)


def make_folder(tmp_path, rows=ROWS, table="Data_Entry_2017_v2020.csv", header=HEADER):
    folder = tmp_path / "nih"
    for number, row in enumerate(rows):
        images = folder / f"images_00{number % 2 + 1}/images"
        images.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(images / row.split(",")[0])
    (folder / table).write_text("\n".join((header, *rows)) + "\n")
    return folder


def test_the_official_layout_becomes_a_cohort(tmp_path):
    cohort = build_source("nih", make_folder(tmp_path), seed=0)
    assert list(cohort["image_id"]) == ["nih/" + row.split(",")[0] for row in ROWS]
    assert list(cohort["patient_id"]) == ["nih/1", "nih/1", "nih/2", "nih/3"]
    assert list(cohort["study_id"]) == ["nih/1_0", "nih/1_1", "nih/2_0", "nih/3_0"]
    assert list(cohort["view"]) == ["PA", "AP", "PA", "PA"]
    assert list(cohort["sex"]) == ["M", "M", "F", "F"]
    assert cohort["image_path"].map(lambda path: Image.open(path).size == (40, 40)).all()
    assert cohort.attrs["images_without_row"] == 0
    # Impossible ages are unknown, and children stay.
    assert list(cohort["age_years"].fillna(-1)) == [58, 58, -1, 5]
    assert finding_columns(cohort) == ["No Finding", *FINDINGS]
    assert len(FINDINGS) == 14
    present = [{finding for finding in finding_columns(cohort) if row[finding] == 1} for _, row in cohort.iterrows()]
    assert present == [{"Cardiomegaly", "Pleural Thickening"}, {"No Finding"}, {"No Finding"}, {"Hernia"}]
    assert cohort[list(FINDINGS)].isin([0, 1]).all(axis=None)


def test_older_and_newer_tables_are_read_too(tmp_path):
    newer = make_folder(tmp_path / "newer", header=HEADER.replace("Gender", "Sex"))
    assert list(build_source("nih", newer, seed=0)["sex"]) == ["M", "M", "F", "F"]
    rows = tuple(row.replace(",58,", ",058Y,").replace(",5,F", ",012M,F") + "," for row in ROWS)
    folder = make_folder(tmp_path, rows, "Data_Entry_2017.csv", HEADER + ",")
    assert list(build_source("nih", folder, seed=0)["age_years"].fillna(-1)) == [58, 58, -1, 1]


def test_reports_are_written_from_labels_whatever_the_order(tmp_path):
    cohort = build_source("nih", make_folder(tmp_path), seed=0)
    assert (cohort["report_origin"] == "template").all()
    assert "pleural thickening" in cohort["report"][0].lower()
    assert cohort["report"][1].count(".") == 1
    again = build_source("nih", make_folder(tmp_path / "b", ROWS[::-1]), seed=0)
    pd.testing.assert_series_equal(
        cohort.set_index("image_id")["report"], again.set_index("image_id")["report"].loc[cohort["image_id"]]
    )


def test_the_official_lists_make_the_test_split_and_validation_comes_out_of_training(tmp_path):
    rows = tuple(f"{patient:08d}_000.png,No Finding,0,{patient},40,M,PA" for patient in range(1, 41))
    folder = make_folder(tmp_path, rows)
    names = [row.split(",")[0] for row in rows]
    (folder / "test_list.txt").write_text("\n".join(names[:10]))
    (folder / "train_val_list.txt").write_text("\r\n".join(names[10:]))
    cohort = build_source("nih", folder, seed=0)
    assert set(cohort.loc[cohort["split"] == "test", "image_id"]) == {f"nih/{name}" for name in names[:10]}
    assert cohort["split"].value_counts().to_dict() == {"train": 27, "test": 10, "validate": 3}
    (folder / "train_val_list.txt").write_text("\n".join(names[11:]))
    with pytest.raises(StudyError, match=r"^1 images \(the first is that of line 12\) are in neither or in both of"):
        build_source("nih", folder, seed=0)


def test_images_and_rows_without_the_other_are_counted(tmp_path):
    folder = make_folder(tmp_path)
    next(folder.rglob("00000003_000.png")).unlink()
    Image.new("L", (40, 40)).save(folder / "images_001/images/00000009_000.png")
    cohort = build_source("nih", folder, seed=0)
    assert (len(cohort), cohort.attrs["images_without_row"], cohort.attrs[NOT_IN_FOLDER]) == (3, 1, 1)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ({"header": HEADER.replace("Patient ID", "Patient")}, "lacks the column 'Patient ID'; it has 'Image Index'"),
        (
            {"rows": [ROWS[0].replace("Cardiomegaly", "Big heart")]},
            ": line 2, column 'Finding Labels' holds another label: expected 'No Finding' or findings among Atelectas",
        ),
        ({"rows": (*ROWS, ROWS[0])}, ": line 2 and line 6 hold the same in column 'Image Index'"),
    ],
)
def test_what_is_wrong_with_the_table_is_one_sentence(tmp_path, folder, said):
    with pytest.raises(StudyError, match=rf"^Data_Entry_2017_v2020\.csv ?{said}"):
        build_source("nih", make_folder(tmp_path, **folder), seed=0)


def test_what_is_wrong_with_the_folder_is_one_sentence(tmp_path):
    absent = rf"^there is no folder {tmp_path}/absent: set data_root to the folder that holds the NIH images and Data_E"
    with pytest.raises(StudyError, match=absent):
        build_source("nih", tmp_path / "absent", seed=0)
    with pytest.raises(StudyError, match=r"has no Data_Entry_2017_v2020\.csv or Data_Entry_2017\.csv: set data_root"):
        build_source("nih", tmp_path, seed=0)
    with pytest.raises(
        StudyError, match=r"^there is no source named 'hospital': choose one; .chexstudy cohort sources. lists them"
    ):
        build_source("hospital", tmp_path, seed=0)


def test_boxes_carry_the_same_names_as_the_cohort(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],Unnamed: 6,Unnamed: 7,Unnamed: 8\n"
        "00000001_000.png,Infiltrate,10.5,20,30,40,,,\n"
    )
    box = Box("nih/00000001_000.png", "Infiltration", (10.5, 20, 30, 40), (1024, 1024))
    assert list_annotations("nih", folder, {box.image_id}) == [box]
    assert list_annotations("nih", folder, ()) == []


def test_the_real_radiographs(real_data):
    cohort = build_source("nih", real_data / "nih", seed=0)
    assert len(cohort) == 614
    assert cohort["patient_id"].nunique() == 418
    assert cohort["No Finding"].sum() == 314
    assert cohort["Pneumonia"].sum() == 300
    assert cohort["Hernia"].sum() == 3
    assert set(cohort["split"]) == {"train", "validate", "test"}
