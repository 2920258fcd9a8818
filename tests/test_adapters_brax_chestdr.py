import numpy as np
import pytest
from PIL import Image
from test_dicom import make_dicom, to_bytes

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.cohort.adapters.datasets.brax import SPEC
from chexstudy.cohort.adapters.manifest import DATASETS, NO_PATIENT_TOLD, NOT_IN_FOLDER
from chexstudy.cohort.images.decode import decode_radiograph
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

FINDINGS = list(SPEC.columns["findings"])
# Patient, sex, age, accession number, labels, view.
BRAX = (
    ("9a", "M", "85 or more", 1, {"No Finding": "1.0", "Support Devices": "0.0"}, "PA"),
    ("9a", "M", "85 or more", 2, {"Pleural Other": "-1.0", "Support Devices": "1.0"}, "L"),
    ("9b", "O", "", 1, {}, "RLO"),
    ("9c", "F", "35", 1, {"Edema": "1.0"}, "AP LLD"),
    ("9d", "", "40", 1, {"Edema": "0.0"}, ""),
)


def place(number):
    return f"id_{BRAX[number][0]}/Study_1.{number}/Series_1.{number}.1/image-{number}-1-{number}"


def make_brax(folder, table="master_spreadsheet_update.csv", renamed=("", ""), images="images", ending=".png"):
    leading = ",DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate"
    lines = [f"{leading},{','.join(FINDINGS)},ViewPosition,Rows,Columns,Manufacturer".replace(*renamed)]
    for number, (patient, sex, age, accession, labels, view) in enumerate(BRAX):
        cells = ",".join(labels.get(name, "") for name in FINDINGS)
        paths = f"Anonymized_DICOMs/{place(number)}.dcm,images/{place(number)}.png"
        lines.append(f"{number},{paths},{patient},{sex},{age},{accession},20090304,{cells},{view},2836,2336,X")
        path = folder / images / f"{place(number)}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        if ending == ".png":
            Image.fromarray(pixels).save(path)
        else:
            path.write_bytes(to_bytes(make_dicom(pixels)))
    (folder / table).write_text("\n".join(lines) + "\n")
    return folder


def test_brax(tmp_path):
    folder = make_brax(tmp_path)
    assert guess_source(folder) == "brax"
    cohort = build_source("brax", folder, 0)
    assert list(cohort.image_id) == [f"brax/image-{number}-1-{number}" for number in range(5)]
    assert list(cohort.patient_id) == ["brax/9a", "brax/9a", "brax/9b", "brax/9c", "brax/9d"]
    assert list(cohort.study_id) == ["brax/9a_1", "brax/9a_2", "brax/9b_1", "brax/9c_1", "brax/9d_1"]
    assert list(cohort["view"]) == ["PA", "lateral", "unknown", "AP", "unknown"]
    assert list(cohort.sex) == ["M", "M", "unknown", "F", "unknown"]
    assert list(cohort.age_years.fillna(-1)) == [85, 85, -1, 35, 40]
    assert cohort.attrs["images_whose_age_is_capped"] == 2
    # Findings that no row states have no column.
    stated = [row.dropna().to_dict() for _, row in cohort[finding_columns(cohort)].iterrows()]
    assert stated[:3] == [{"No Finding": 1, "Support Devices": 0}, {"Pleural Other": -1, "Support Devices": 1}, {}]
    assert list(cohort.report_origin) == ["template", "template", "none", "template", "template"]
    assert cohort.report[0].count(".") == 1
    assert "pleural" in cohort.report[1]


def test_the_dicom_images_of_brax_may_have_no_ending(tmp_path):
    folder = make_brax(tmp_path, "master_spreadsheet.csv", images="Anonymized_DICOMs", ending="")
    cohort = build_source("brax", folder, 0)
    assert len(cohort) == 5
    with open(cohort.image_path[0], "rb") as file:
        assert decode_radiograph(file.read()).shape == (40, 40)
    assert cohort.attrs["images_without_row"] == 0


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            {"table": "labels.csv"},
            r"has no master_spreadsheet_update\.csv or master_spreadsheet\.csv: set data_root to",
        ),
        (
            {"renamed": ("PngPath", "Png")},
            r"^master_spreadsheet_update\.csv lacks the column 'PngPath'; it has 'DicomPa",
        ),
        (
            {"renamed": ("Lung Lesion", "Lesion")},
            r"^master_spreadsheet_update\.csv has no column 'Lung Lesion' for the finding 'Lung Lesion'; it has",
        ),
        (
            {"ending": ".txt"},
            r"^none of the 5 files named in column 'file' of master_spreadsheet_update\.csv exists in",
        ),
    ],
)
def test_what_is_wrong_with_brax_is_one_sentence(tmp_path, made, said):
    with pytest.raises(StudyError, match=said):
        build_source("brax", make_brax(tmp_path, **made), 0)


OF_CHESTDR = DATASETS["chestdr"].columns["findings"]
CHESTDR = {
    "9A9B9C9D9E9F001.png": {"TB", "fracture_old"},
    "9A9B9C9D9E9F002.png": set(),
    "9A9B9C9D9E9F003.png": {"nodule"},
}


def make_chestdr(folder, table="MedFMC_trainval_annotation/chestdr_published_19d.csv", renamed=("", "")):
    lines = [f"id,img_id,{','.join(OF_CHESTDR)}".replace(*renamed)]
    for number, (image, present) in enumerate(CHESTDR.items()):
        lines.append(",".join((str(number), image, *(str(int(name in present)) for name in OF_CHESTDR))))
        path = folder / ("MedFMC_train", "MedFMC_val")[number % 2] / "chest/images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)).save(path)
    (folder / table).parent.mkdir(exist_ok=True)
    (folder / table).write_text("\n".join(lines) + "\n")
    return folder


def test_chestdr(tmp_path):
    folder = make_chestdr(tmp_path)
    assert guess_source(folder) == "chestdr"
    cohort = build_source("chestdr", folder, 0)
    assert list(cohort.image_id) == list(cohort.patient_id) == [f"chestdr/{image}" for image in CHESTDR]
    assert (set(cohort["view"]), set(cohort.sex)) == ({"unknown"}, {"unknown"})
    assert cohort.attrs[NO_PATIENT_TOLD] == 3
    present = [{name for name in finding_columns(cohort) if row[name] == 1} for _, row in cohort.iterrows()]
    assert present == [{"Tuberculosis", "Old Fracture"}, set(), {"Nodule"}]
    assert cohort[finding_columns(cohort)].notna().all(axis=None)
    # An image of no finding gets a sentence for each, too, and no name is one of a column.
    assert [report.count(".") for report in cohort.report] == [19, 19, 19]
    assert "_" not in "".join(cohort.report)
    next(folder.rglob("9A9B9C9D9E9F002.png")).unlink()
    assert build_source("chestdr", folder, 0).attrs[NOT_IN_FOLDER] == 1


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            {"table": "chestdr.csv"},
            r"has no chestdr_published_19d\.csv: set data_root to the folder that holds chestdr_",
        ),
        (
            {"renamed": ("img_id", "image")},
            r"^chestdr_published_19d\.csv has no column 'img_id' for image_",
        ),
        (
            {"renamed": ("thickened_pleura", "pleura")},
            r"^chestdr_published_19d\.csv has no column 'thickened_pleura' for",
        ),
    ],
)
def test_what_is_wrong_with_chestdr_is_one_sentence(tmp_path, made, said):
    with pytest.raises(StudyError, match=said):
        build_source("chestdr", make_chestdr(tmp_path, **made), 0)
