import gzip

import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.cohort.adapters.datasets.mimic_cxr import SPEC
from chexstudy.cohort.adapters.manifest import NOT_IN_FOLDER
from chexstudy.cohort.check import check_source
from chexstudy.cohort.reports import split_sections
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

LABELS = "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity"
LABELS += ",No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
GOLD = "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Lesion,Airspace Opacity,Edema,Consolidation,Pneumonia"
GOLD += ",Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
DICOM = [f"{number}a1b2c3d-4e5f6071-8293a4b5-c6d7e8f9-0a1b2c3d" for number in range(6)]
# Image, patient, study, ViewPosition, ViewCodeSequence_CodeMeaning, StudyDate, split.
ROWS = (
    (DICOM[0], 19999901, 59999901, "PA", "postero-anterior", 21800506, "train"),
    (DICOM[1], 19999901, 59999901, "", "lateral", 21800506, "train"),
    (DICOM[2], 19999901, 59999902, "AP", "antero-posterior", 21851231, "train"),
    (DICOM[3], 19999902, 59999903, "", "antero-posterior", 21100101, "validate"),
    (DICOM[4], 19999903, 59999904, "LAO", "", 21500101, "test"),
    (DICOM[5], 19999903, 59999905, "LL", "left lateral", 21500101, "test"),
)
REPORT = "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n FINDINGS: \n \n"
REPORT += " The heart is enlarged.\n\n IMPRESSION: \n \n Cardiomegaly.\n"
TABLES = {
    "mimic-cxr-2.0.0-metadata.csv": [
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning",
        *(
            f"{image},{patient},{study},CHEST,{view},3056,2544,{date},213014.531,CHEST (PA AND LAT),{code},Erect"
            for image, patient, study, view, code, date, _ in ROWS
        ),
    ],
    "mimic-cxr-2.0.0-split.csv": [
        "dicom_id,study_id,subject_id,split",
        *(f"{image},{study},{patient},{split}" for image, patient, study, *_, split in ROWS[::-1]),
    ],
    # The last study has no row, as eight of the real ones.
    "mimic-cxr-2.0.0-chexpert.csv": [
        f"subject_id,study_id,{LABELS}",
        "19999901,59999901,,1.0,,-1.0,,,,,,0.0,,,,",
        "19999901,59999902,0.0,,0.0,,0.0,0.0,0.0,0.0,1.0,,0.0,0.0,0.0,1.0",
        "19999902,59999903,,,,,,,,,1.0,,,,,",
        "19999903,59999904,,,,,,,,1.0,,,,,,",
    ],
    "mimic-cxr-2.0.0-negbio.csv": [f"subject_id,study_id,{LABELS}", "19999902,59999903,1.0,,,,,,,,,,,,,"],
    "mimic-cxr-2.1.0-test-set-labeled.csv": [f"study_id,{GOLD}", "59999904,,,,,1.0,,,-1.0,,,,,,0.0"],
    "patients.csv": [
        "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
        "19999901,F,52,2180,2014 - 2016,",
        "19999902,M,91,2109,2014 - 2016,2111-02-03",
    ],
}


def save_jpeg(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)).save(path, "jpeg")


def place(image, patient, study, *_):
    return f"files/p{patient // 10**6}/p{patient}/s{study}/{image}"


def make_folder(folder, tables=TABLES, rows=ROWS, ending=".jpg", reports=(59999901, 59999902, 59999903, 59999904)):
    for number, row in enumerate(rows):
        save_jpeg(folder / f"{place(*row)}{ending}", number)
    for name, lines in tables.items():
        with gzip.open(folder / f"{name}.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    for _, patient, study, *_ in rows:
        if study in reports:
            (folder / f"files/p19/p{patient}/s{study}.txt").write_text(REPORT.replace("The", f"({study}) The"))
    return folder


def change(name, old, new):
    return {**TABLES, name: [line.replace(old, new) for line in TABLES[name]]}


def test_the_jpeg_release_with_reports_becomes_a_cohort(tmp_path):
    folder = make_folder(tmp_path / "physionet.org/files/mimic-cxr-jpg/2.1.0").parents[3]
    assert guess_source(folder) == "mimic_cxr"
    cohort = build_source("mimic_cxr", folder, 0)
    assert list(cohort.image_id) == [f"mimic_cxr/{name}" for name in DICOM]
    assert list(cohort.patient_id) == [f"mimic_cxr/{patient}" for _, patient, *_ in ROWS]
    assert list(cohort.study_id) == [f"mimic_cxr/s{study}" for _, _, study, *_ in ROWS]
    assert list(cohort.split) == ["train", "train", "train", "validate", "test", "test"]
    # A blank is looked up in the code; what is neither PA, AP nor lateral stays unknown.
    assert list(cohort["view"]) == ["PA", "lateral", "AP", "AP", "unknown", "lateral"]
    assert list(cohort.sex) == ["F", "F", "F", "M", "unknown", "unknown"]
    assert list(cohort.age_years.fillna(-1)) == [52, 52, 57, 92, -1, -1]
    assert [split_sections(text)["findings"] for text in cohort.report[:2]] == ["(59999901) The heart is enlarged."] * 2
    assert list(cohort.report_origin) == ["written"] * 5 + ["none"]
    assert cohort.attrs["studies_without_a_report_file"] == 1
    assert "studies without a report file: 1." in check_source(folder).remarks
    # The order of the table of labels is another one than ours.
    assert finding_columns(cohort) == list(SPEC.columns["findings"])
    stated = [row.dropna().to_dict() for _, row in cohort[finding_columns(cohort)].iterrows()]
    assert stated[0] == stated[1] == {"Cardiomegaly": 1, "Edema": -1, "Pleural Effusion": 0}
    silent = ("Cardiomegaly", "Edema", "Pleural Effusion")
    present = {"No Finding", "Support Devices"}
    assert stated[2] == {name: int(name in present) for name in SPEC.columns["findings"] if name not in silent}
    assert stated[3:] == [{"No Finding": 1}, {"Lung Opacity": 1}, {}]


def test_the_dicom_release_alone_has_neither_labels_nor_splits(tmp_path):
    records = [f"{patient},{study},{image},{place(image, patient, study)}.dcm" for image, patient, study, *_ in ROWS]
    tables = {"cxr-record-list.csv": ["subject_id,study_id,dicom_id,path", *records]}
    cohort = build_source("mimic_cxr", make_folder(tmp_path, tables, ending=".dcm"), 0)
    assert cohort.image_path.str.endswith(".dcm").all()
    assert finding_columns(cohort) == []
    assert set(cohort["view"]) == {"unknown"}
    assert cohort.groupby("patient_id").split.nunique().max() == 1
    assert list(cohort.report_origin) == ["written"] * 5 + ["none"]
    # Both releases in one folder: the JPEG is meant, and where it was not fetched, the DICOM.
    make_folder(tmp_path, rows=ROWS[:2])
    cohort = build_source("mimic_cxr", tmp_path, 0)
    assert [path[-4:] for path in cohort.image_path] == [".jpg"] * 2 + [".dcm"] * 4
    assert cohort.attrs["images_without_row"] == 0


@pytest.mark.parametrize(
    ("labels", "row", "stated"),
    [
        ("negbio", 3, {"Atelectasis": 1}),
        ("gold", 4, {"Lung Opacity": 1, "Pneumonia": -1, "Support Devices": 0}),
    ],
)
def test_other_labels_are_an_option(tmp_path, labels, row, stated):
    cohort = build_source("mimic_cxr", make_folder(tmp_path), 0, labels=labels)
    assert cohort[finding_columns(cohort)].loc[row].dropna().to_dict() == stated
    assert cohort[finding_columns(cohort)].notna().sum(axis=None) == len(stated)


def test_the_sections_of_the_official_script_go_before_the_files(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "mimic_cxr_sectioned.csv").write_text(
        "study,impression,findings,last_paragraph,comparison\n"
        's59999901,Normal.,"Lungs, clear.\n All of them.",,None.\n'
        "s59999902,,,A last paragraph.,\n"
        "s59999903,Effusion.,,,\n"
    )
    cohort = build_source("mimic_cxr", tmp_path, 0)
    sections = [tuple(split_sections(text).values()) for text in cohort.report]
    assert sections[1:4] == [("Lungs, clear. All of them.", "Normal."), ("A last paragraph.", ""), ("", "Effusion.")]
    assert cohort.attrs["studies_without_a_report_file"] == 2


def test_half_a_download_is_a_cohort_of_what_is_there(tmp_path):
    folder = make_folder(tmp_path, rows=ROWS[2:5])
    save_jpeg(folder / "files/p19/p19999909/s59999909/unlisted.jpg", 9)
    cohort = build_source("mimic_cxr", folder, 0)
    assert list(cohort.image_id) == [f"mimic_cxr/{name}" for name in DICOM[2:5]]
    assert cohort.attrs[NOT_IN_FOLDER] == 3
    assert cohort.attrs["images_without_row"] == 1
    assert cohort.attrs["studies_without_a_report_file"] == 0


def test_numbers_that_passed_through_a_spreadsheet_are_the_same_patients_and_studies(tmp_path):
    tables = {
        name: [line.replace("01,F", "01.0,F").replace("01,,1.0", "01.0,,1.0") for line in TABLES[name]]
        for name in TABLES
    }
    assert tables != TABLES
    cohort = build_source("mimic_cxr", make_folder(tmp_path, tables), 0)
    assert list(cohort.sex[:3]) == ["F"] * 3
    assert cohort.Cardiomegaly[0] == 1


METADATA, SPLIT, CHEXPERT = list(TABLES)[:3]


@pytest.mark.parametrize(
    ("tables", "options", "said"),
    [
        ({}, {}, r"has no mimic-cxr-2\.0\.0-metadata\.csv or cxr-record-list\.csv: set data_root to the folder"),
        (
            change(METADATA, "dicom_id", "dicom"),
            {},
            r"metadata\.csv\.gz lacks the column 'dicom_id'; it has 'dicom', '",
        ),
        (change(METADATA, "ViewPosition", "View"), {}, r"metadata\.csv\.gz lacks the column 'ViewPosition'; it has"),
        (change(SPLIT, "0a1b2c3d-4e5f", "0a1b2c3d-0000"), {}, r"line 2, column 'split' is empty; expected one of"),
        (change(SPLIT, "a1b2c3d-", "b1b2c3d-"), {}, r"split\.csv\.gz names no dicom_id of the images: give the tables"),
        (change(CHEXPERT, "Fracture", "Fractures"), {}, r"chexpert\.csv\.gz lacks the column 'Fracture'; it has"),
        (
            change(CHEXPERT, "59999902", "59999901"),
            {},
            r"chexpert\.csv\.gz: line 3 repeats what an earlier one says of",
        ),
        (change(CHEXPERT, ",-1.0,", ",maybe,"), {}, r"line 2, column 'Edema' holds 'maybe'; a label is 1 \(present\)"),
        (
            change(METADATA, "19999901", "1.99E+07"),
            {},
            r"column 'subject_id' holds a number that a spreadsheet has roun",
        ),
        (
            {METADATA: TABLES[METADATA]},
            {"labels": "gold"},
            r"has no mimic-cxr-2\.1\.0-test-set-labeled\.csv: set data_",
        ),
        (
            TABLES,
            {"labels": "chexbert"},
            r"the option 'labels' of the source mimic_cxr cannot be 'chexbert': choose chex",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, tables, options, said):
    with pytest.raises(StudyError, match=said):
        build_source("mimic_cxr", make_folder(tmp_path, tables), 0, **options)


def test_tables_that_are_no_text_or_lie_there_twice_are_refused(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "2.0.0" / f"{CHEXPERT}.gz"
    path.parent.mkdir()
    (tmp_path / path.name).rename(path)
    (tmp_path / "2.1.0").mkdir()
    (tmp_path / "2.1.0" / CHEXPERT).write_bytes(b"study_id,\xe9\n")
    path.rename(path.with_suffix(""))
    with pytest.raises(StudyError, match=r"holds 2\.0\.0/\S+ and 2\.1\.0/\S+: set data_root to the folder that hold"):
        build_source("mimic_cxr", tmp_path, 0)
    path.with_suffix("").unlink()
    with pytest.raises(StudyError, match=r"chexpert\.csv is not UTF-8 text: save it again as CSV"):
        build_source("mimic_cxr", tmp_path, 0)
