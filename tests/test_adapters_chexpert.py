import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.cohort.adapters.datasets.chexpert import SPEC
from chexstudy.cohort.adapters.manifest import NOT_IN_FOLDER
from chexstudy.cohort.joint import read_joint
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

FINDINGS = SPEC.columns["findings"]
LABELS = ",".join(FINDINGS)
HEADER = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{LABELS}"
TRAIN = (
    "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Female,61,Frontal,AP,,,1.0,,,-1.0,,,0.0,,,,,1.0",
    "CheXpert-v1.0/train/patient00001/study1/view2_lateral.jpg,Female,61,Lateral,,,,1.0,,,-1.0,,,0.0,,,,,1.0",
    "CheXpert-v1.0/train/patient00002/study3/view1_frontal.jpg,Unknown,0,Frontal,PA,1.0,,,,,,,,,,,,,",
    "CheXpert-v1.0/train/patient00003/study1/view1_frontal.jpg,Male,90,Frontal,RL,,,,,,,,,,,0.0,,,",
)
VALID = (f"CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP{',0.0' * 13},1.0",)
PLUS_HEADER = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)


def plus_row(image, side, projection, findings, impression, report, age, sex, split):
    dicom, patient = image.replace(".jpg", ".dcm"), image.split("/")[1]
    return (
        f'{image},{dicom},{side},{projection},{patient},2,"{report}",,,,,,,{findings},{impression},,,77,'
        f"{age},{sex},White,Unknown,No,Private,24.5,No,{split}"
    )


IMAGES = [
    *("train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1/view2_lateral.jpg"),
    *("train/patient00002/study3/view1_frontal.jpg", "valid/patient64541/study1/view1_frontal.jpg"),
]
PLUS = (
    plus_row(IMAGES[0], "Frontal", "AP", "Clear lungs.", '"1. No acute\nprocess."', "NARRATIVE", 61, "Female", "train"),
    plus_row(IMAGES[1], "Lateral", "", "", "Large heart.", "-", 61, "Female", "train"),
    plus_row(IMAGES[2], "Frontal", "PA", "", "", "NARRATIVE: Large heart.", 0, "Unknown", "train"),
    plus_row(IMAGES[3], "Frontal", "LL", "", "Tubes.", "-", 73, "Male", "valid"),
)  # fmt: skip
IMPRESSIONS = (
    {"path_to_image": IMAGES[0], "No Finding": 1.0, "Edema": None, "Pneumonia": -1.0},
    {"path_to_image": IMAGES[1], "Edema": 0.0},
    {"path_to_image": IMAGES[3], "Edema": 1.0},
)


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (40, 40), np.uint8)).save(path)


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((header, *rows)) + "\n")


def write_labels(path, labels=IMPRESSIONS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(dict.fromkeys(FINDINGS) | row) for row in labels))


def make_chexpert(folder, header=HEADER, train=TRAIN, valid=VALID):
    """The archives of Stanford AIMI, whose training images lie in parts without a folder of the split."""
    tables = folder / "CheXpert-v1.0 batch 1 (validate & csv)"
    write_table(tables / "train.csv", header, train)
    write_table(tables / "valid.csv", header, valid)
    for row in (*TRAIN, *VALID):
        image = row.split(",")[0].removeprefix("CheXpert-v1.0/")
        part = image.replace("train", "CheXpert-v1.0 batch 2 (train 1)").replace("valid", f"{tables.name}/valid")
        save_image(folder / part)
    return folder


def make_plus(folder, header=PLUS_HEADER, rows=PLUS, labels=IMPRESSIONS):
    write_table(folder / "df_chexpert_plus_240401.csv", header, rows)
    write_labels(folder / "chexbert_labels/impression_fixed.json", labels)
    write_labels(folder / "chexbert_labels/report_fixed.json", labels[:1])
    for row in PLUS:
        save_image(folder / "PNG/PNG" / row.split(",")[0].replace(".jpg", ".png"))
    (folder / "PNG/.azDownload-1-view1_frontal.png").write_bytes(b"half")
    return folder


def make_test(folder, prefix="test/patient64741/study1/"):
    row = f"{prefix}view1_frontal.jpg{',0.0' * 13},1.0", f"{prefix}view2_lateral.jpg{',0.0' * 13},1.0"
    write_table(folder / "CheXpert/test_labels.csv", f"Path,{LABELS}", row)
    write_released_images(folder)
    return folder


def write_released_images(folder):
    for name in ("study1/view1_frontal.jpg", "study1/view2_lateral.jpg"):
        save_image(folder / "CheXpert/test/patient64741" / name)


def make_released(folder, header=f"Study,{LABELS}", study="CheXpert-v1.0/test/patient64741/study1", label=1):
    # The order of the studies is not that of the images.
    rows = f"CheXpert-v1.0/test/patient64742/study1{',0' * 14}", f"{study}{',0' * 13},{label}"
    write_table(folder / "groundtruth.csv", header, rows)
    write_released_images(folder)
    return folder


def make_5x200(folder, edema="0.0", impression=",1. Low volumes."):
    head = f"Path{',Report Impression' * bool(impression)},{LABELS}"
    row = f"CheXpert-v1.0/{IMAGES[0]}{impression}{',0.0' * 5},{edema},0.0,,1.0{',0.0' * 5}"
    write_table(folder / "chexpert_5x200.csv", head, [row])
    return folder


def list_labels(cohort, finding):
    # A finding of which no table says anything has no column.
    return list(cohort.get(finding, pd.Series([None] * len(cohort), dtype="Int8")).fillna(9))


def test_chexpert(tmp_path):
    folder = make_chexpert(tmp_path)
    assert guess_source(folder) == "chexpert"
    cohort = build_source("chexpert", folder, 0)
    images = [row.split(",")[0].removeprefix("CheXpert-v1.0/") for row in (*TRAIN, *VALID)]
    assert list(cohort["image_id"]) == [f"chexpert/{image}" for image in images]
    assert list(cohort["patient_id"]) == [f"chexpert/{image.split('/')[1]}" for image in images]
    assert list(cohort["study_id"]) == ["chexpert/" + "/".join(image.split("/")[1:3]) for image in images]
    assert list(cohort["split"]) == ["train"] * 4 + ["validate"]
    assert list(cohort["view"]) == ["AP", "lateral", "PA", "lateral", "AP"]
    assert list(cohort["sex"]) == ["F", "F", "unknown", "M", "M"]
    assert list(cohort["age_years"].fillna(-1)) == [61, 61, -1, 90, 73]
    assert list_labels(cohort, "Edema") == [-1, -1, 9, 9, 0]
    assert list_labels(cohort, "No Finding") == [9, 9, 1, 9, 0]
    assert list_labels(cohort, "Support Devices") == [1, 1, 9, 9, 1]


def test_one_table_of_the_small_copy_is_enough_and_the_folder_may_be_its_own(tmp_path):
    folder = tmp_path / "CheXpert-v1.0-small"
    write_table(folder / "valid.csv", HEADER, [VALID[0].replace("v1.0/", "v1.0-small/")])
    save_image(folder / "valid/patient64541/study1/view1_frontal.jpg")
    assert guess_source(folder) == "chexpert"
    assert list(build_source("chexpert", folder, 0)["image_id"]) == [
        "chexpert/valid/patient64541/study1/view1_frontal.jpg"
    ]


def test_chexpert_plus(tmp_path):
    folder = make_plus(tmp_path)
    assert guess_source(folder) == "chexpert_plus"
    cohort = build_source("chexpert_plus", folder, 0)
    images = [image.removesuffix(".jpg") for image in IMAGES]
    assert list(cohort["image_id"]) == [f"chexpert_plus/{image}" for image in images]
    # A joint cohort sees one patient in this set and in CheXpert.
    assert list(cohort["patient_id"]) == [f"chexpert/{image.split('/')[1]}" for image in images]
    assert list(cohort["study_id"]) == ["chexpert_plus/" + "/".join(image.split("/")[1:3]) for image in images]
    assert list(cohort["split"]) == ["train"] * 3 + ["validate"]
    assert list(cohort["view"]) == ["AP", "lateral", "PA", "lateral"]
    assert list(cohort["sex"]) == ["F", "F", "unknown", "M"]
    assert list(cohort["age_years"].fillna(-1)) == [61, 61, -1, 73]
    assert list(cohort["report"]) == [
        "FINDINGS: Clear lungs.\nIMPRESSION: 1. No acute\nprocess.",
        "IMPRESSION: Large heart.",
        "NARRATIVE: Large heart.",
        "IMPRESSION: Tubes.",
    ]
    assert set(cohort["report_origin"]) == {"written"}
    assert list_labels(cohort, "Edema") == [9, 0, 9, 1]
    assert list_labels(cohort, "Pneumonia") == [-1, 9, 9, 9]
    assert cohort.attrs["images_without_labels"] == 1
    assert all(path.endswith(".png") for path in cohort["image_path"])


def test_labels_of_chexpert_plus_are_those_asked_for(tmp_path):
    folder = make_plus(tmp_path)
    assert list_labels(build_source("chexpert_plus", folder, 0, labels="report"), "Edema") == [9, 9, 9, 9]
    assert finding_columns(build_source("chexpert_plus", folder, 0, labels="none")) == []


def test_the_test_set_by_image_and_by_study_is_the_same(tmp_path):
    cohorts = []
    for folder in (make_test(tmp_path / "localize"), make_released(tmp_path / "released")):
        assert guess_source(folder) == "chexpert_test"
        cohort = build_source("chexpert_test", folder, 0)
        assert list(cohort["image_id"]) == [
            f"chexpert_test/test/patient64741/study1/{view}.jpg" for view in ("view1_frontal", "view2_lateral")
        ]
        assert set(cohort["patient_id"]) == {"chexpert/patient64741"}
        assert list(cohort["view"]) == ["unknown", "lateral"]
        assert set(cohort["split"]) == {"test"}
        assert list_labels(cohort, "Support Devices") == [1, 1]
        # Nothing found is not the same as No Finding.
        assert list_labels(cohort, "No Finding") == [0, 0]
        cohorts.append(cohort)
    assert cohorts[1].attrs["studies_without_image"] == 1
    assert cohorts[0].drop(columns="image_path").equals(cohorts[1].drop(columns="image_path"))


@pytest.mark.parametrize("impression", [",1. Low volumes.", ""])
def test_5x200_takes_the_images_and_where_needed_the_reports_of_chexpert_plus(tmp_path, impression):
    folder = make_5x200(make_plus(tmp_path), impression=impression)
    with pytest.raises(StudyError, match=r"may be chexpert_5x200 or chexpert_plus: say which with --source"):
        guess_source(folder)
    (row,) = build_source("chexpert_5x200", folder, 0).to_dict("records")
    assert row["image_id"] == "chexpert_5x200/train/patient00001/study1/view1_frontal.jpg"
    assert (row["patient_id"], row["split"], row["Atelectasis"]) == ("chexpert/patient00001", "test", 1)
    assert row["report"] == ("IMPRESSION: 1. Low volumes." if impression else "IMPRESSION: 1. No acute\nprocess.")


def test_rows_without_image_are_counted(tmp_path):
    folder = make_chexpert(tmp_path)
    next(folder.rglob("patient00003")).rename(tmp_path.parent / "elsewhere")
    cohort = build_source("chexpert", folder, 0)
    assert (len(cohort), cohort.attrs[NOT_IN_FOLDER]) == (4, 1)


def without_labels(folder):
    make_plus(folder)
    (folder / "chexbert_labels/impression_fixed.json").unlink()
    return folder


def cut_short(folder):
    make_plus(folder)
    file = folder / "chexbert_labels/impression_fixed.json"
    file.write_text(file.read_text()[:-10])
    return folder


def other_encoding(folder):
    make_plus(folder)
    file = folder / "df_chexpert_plus_240401.csv"
    file.write_bytes(file.read_bytes().replace(b"Clear", b"Cl\xe9ar"))
    return folder


@pytest.mark.parametrize(
    ("source", "make", "said"),
    [
        ("chexpert", lambda folder: make_chexpert(folder, HEADER.replace("AP/PA", "View")),
         r"^train\.csv lacks the column 'AP/PA'; it has 'Path', 'Sex'"),
        ("chexpert", lambda folder: make_chexpert(folder, HEADER.replace("Edema", "Oedema")),
         r" has no column 'Edema' for the finding 'Edema'; it has 'Path'"),
        ("chexpert", lambda folder: make_chexpert(folder, valid=[VALID[0].replace("patient64541/", "")]),
         r": line 2 of valid\.csv, column 'Path' does not end in a path such as train/patient00001/study1/view1_fro"),
        ("chexpert", lambda folder: make_chexpert(folder, train=[TRAIN[0].replace("-1.0", "3")]),
         r": line 2 of train\.csv, column 'Edema' holds '3'; a label is 1 \(present\)"),
        ("chexpert", lambda folder: make_chexpert(folder, train=[row.replace("t0000", "t") for row in TRAIN], valid=()),
         r"^none of the 4 files named in column 'file' of .* exists in "),
        ("chexpert", make_plus, r"has no train\.csv or valid\.csv: set data_root to the folder that holds"),
        ("chexpert_plus", make_chexpert, r"has no df_chexpert_plus_240401\.csv: set data_root to the folder that"),
        ("chexpert_plus", lambda folder: make_plus(folder, PLUS_HEADER.replace("section_findings", "findings_section")),
         r"^df_chexpert_plus_240401\.csv lacks the column 'section_findings'; it has 'path_to_image'"),
        ("chexpert_plus", without_labels,
         r"has no impression_fixed\.json, which holds the labels: fetch it, or choose the option labels none\.$"),
        ("chexpert_plus", cut_short, r"impression_fixed\.json is not one JSON object a line, or is cut short: fetch"),
        ("chexpert_plus", other_encoding, r"df_chexpert_plus_240401\.csv is not UTF-8 text: save it again as CSV in"),
        ("chexpert_plus", lambda folder: make_plus(folder, labels=[*IMPRESSIONS, IMPRESSIONS[0]]),
         r"^impression_fixed\.json: line 4 is of an image that has one already\.$"),
        ("chexpert_plus", lambda folder: make_plus(folder, labels=[{"path_to_image": "patient1/a.jpg"}]),
         r"^impression_fixed\.json: line 1, column 'path_to_image' does not end in a path such as train/patient0"),
        ("chexpert_test", lambda folder: make_released(folder, study="patient64741"),
         r"^groundtruth\.csv: line 3, column 'Study' does not end in a path such as test/patient64741/study1\.$"),
        ("chexpert_test", lambda folder: make_released(folder, study="test/patient1/study1"),
         r"holds no image of a study of groundtruth\.csv: put the folder test beside it\.$"),
        ("chexpert_test", lambda folder: make_released(folder, header=f"Examination,{LABELS}"),
         r"^groundtruth\.csv lacks the column 'Path'; it has 'Examination'"),
        ("chexpert_test", lambda folder: make_released(folder, label=7),
         r"^groundtruth\.csv: line 3 \(view1_frontal\.jpg\), column 'Support Devices' holds '7'; a label is 1"),
        ("chexpert_5x200", lambda folder: make_5x200(make_plus(folder), edema="1.0"),
         r"^chexpert_5x200\.csv: line 2 does not hold 1 for exactly one of Atelectasis, Cardiomegaly, Conso"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path, source, make, said):
    with pytest.raises(StudyError, match=said):
        build_source(source, make(tmp_path), 0)


def test_in_a_joint_cohort_a_patient_of_several_of_the_sets_is_on_one_side(tmp_path):
    make_chexpert(tmp_path / "chexpert")
    make_5x200(make_plus(tmp_path / "chexpert_plus"))
    (tmp_path / "cohort.yaml").write_text(
        "sources:\n- {source: chexpert_plus, role: pretrain, options: {labels: none}}\n- source: chexpert\n"
        "- {source: chexpert_5x200, folder: chexpert_plus, role: evaluate}\n"
    )
    cohort = read_joint(tmp_path / "cohort.yaml", 0, tmp_path / "unpacked").require_cohort()
    assert list(cohort["source"] + " " + cohort["patient_id"] + " " + cohort["split"]) == [
        "chexpert_plus chexpert/patient00002 train",
        "chexpert_plus chexpert/patient64541 validate",
        "chexpert chexpert/patient00003 train",
        "chexpert_5x200 chexpert/patient00001 test",
    ]
    # One image is a JPEG file in one of the sets and a PNG file in the other.
    assert cohort.attrs["images of two sources kept once"] == 2
    assert cohort.attrs["overlap"].startswith("taken out of training: 4 images of chexpert_plus, chexpert that")
