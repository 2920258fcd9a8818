import numpy as np
import pytest
from PIL import Image
from test_adapters_mimic_cxr import make_folder as make_mimic_cxr

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.cohort.adapters.datasets import cxr_lt_2023, cxr_lt_2024
from chexstudy.cohort.adapters.manifest import NOT_IN_FOLDER
from chexstudy.cohort.joint import read_joint
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

DICOM = [f"{number}a1b2c3d-4e5f6071-8293a4b5-c6d7e8f9-0a1b2c3d" for number in range(5)]
# Image, patient, study, ViewPosition, ViewCodeSequence_CodeMeaning.
ROWS = [
    (DICOM[0], 19999901, 59999901, "PA", "postero-anterior"),
    (DICOM[1], 19999901, 59999901, "", "lateral"),
    (DICOM[2], 19999902, 59999902, "AP", "antero-posterior"),
    (DICOM[3], 19999903, 59999903, "", ""),
    (DICOM[4], 19999904, 59999904, "LL", ""),
]
OF_2023 = list(cxr_lt_2023.SPEC.columns["findings"])
OF_2024 = list(cxr_lt_2024.SPEC.columns["findings"])
UNSEEN = ["Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis"]
TASK_1 = [name for name in OF_2024 if name not in UNSEEN]
# Normal stands before Nodule, where the tables of 2023 have No Finding.
TASK_2 = [{"No Finding": "Normal"}.get(name, name) for name in OF_2023]


def list_lines(rows, labels, path="path"):
    """A table of the challenge; the first image has the first finding, the second the second and so on."""
    lines = [",".join(("dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning", path, *labels))]
    for row in rows:
        image, patient, study, *views = row
        file = f"files/p19/p{patient}/s{study}/{image}.jpg"
        cells = [int(number == ROWS.index(row)) for number in range(len(labels))]
        lines.append(",".join(map(str, (image, patient, study, *views, file, *cells))))
    return lines


def make_folder(folder, tables):
    for number, (image, patient, study, *_) in enumerate(ROWS):
        place = folder / f"mimic-cxr-jpg/files/p19/p{patient}/s{study}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(place / f"{image}.jpg")
    for name, lines in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


TABLES_2023 = {
    f"cxr-lt-iccv-workshop-cvamd/1.1.0/{name}.csv": list_lines(rows, OF_2023)
    for name, rows in {"train": ROWS[:2], "development": ROWS[2:3], "test": ROWS[3:]}.items()
}
TABLES_2024 = {
    f"cxr-lt-2024/{name}.csv": list_lines(rows, labels, "fpath")
    for name, rows, labels in (
        ("train_labeled", ROWS[:2], TASK_1),
        ("development_labeled_task1", ROWS[2:3], TASK_1),
        ("test_labeled_task1", ROWS[3:], TASK_1),
        ("development_labeled_task2", ROWS[2:3], TASK_2),
        ("test_labeled_task2", ROWS[4:], TASK_2),
        ("development_task3", ROWS[2:3], []),
        ("test_labeled_task3", ROWS[3:], UNSEEN),
    )
}


def list_present(cohort):
    return [[name for name in finding_columns(cohort) if row[name] == 1] for _, row in cohort.iterrows()]


def test_cxr_lt_2023_is_mimic_cxr_split_anew(tmp_path):
    folder = make_folder(tmp_path, TABLES_2023)
    (folder / "mimic-cxr-jpg/files/p19/p19999902/s59999902.txt").write_text("FINDINGS: Clear.\nIMPRESSION: Normal.\n")
    assert guess_source(folder) == "cxr_lt_2023"
    cohort = build_source("cxr_lt_2023", folder, 0)
    assert list(cohort.image_id) == [f"cxr_lt_2023/{name}" for name in DICOM]
    assert list(cohort.patient_id) == [f"mimic_cxr/{patient}" for _, patient, *_ in ROWS]
    assert list(cohort.study_id) == [f"cxr_lt_2023/s{study}" for _, _, study, *_ in ROWS]
    assert list(cohort.split) == ["train", "train", "validate", "test", "test"]
    assert list(cohort["view"]) == ["PA", "lateral", "AP", "unknown", "lateral"]
    assert list(cohort.report) == ["", "", "FINDINGS: Clear.\nIMPRESSION: Normal.\n", "", ""]
    assert list(cohort.report_origin) == ["none", "none", "written", "none", "none"]
    assert finding_columns(cohort) == OF_2023
    assert list_present(cohort) == [[name] for name in OF_2023[:5]]
    assert cohort[OF_2023].notna().all(axis=None)


def test_the_tasks_of_cxr_lt_2024(tmp_path):
    folder = make_folder(tmp_path, TABLES_2024)
    assert guess_source(folder) == "cxr_lt_2024"
    assert (len(OF_2024), len(TASK_1), len(TASK_2)) == (45, 40, 26)
    cohort = build_source("cxr_lt_2024", folder, 0)
    spelt = {"Normal": "No Finding", "Round(ed) Atelectasis": "Round Atelectasis"}
    canonical = [spelt.get(name, name) for name in TASK_1]
    assert finding_columns(cohort) == canonical
    assert list_present(cohort) == [[name] for name in canonical[:5]]
    assert list(cohort.split) == ["train", "train", "validate", "test", "test"]
    assert set(cohort.patient_id) == {f"mimic_cxr/{patient}" for _, patient, *_ in ROWS}
    second = build_source("cxr_lt_2024", folder, 0, task="task2")
    assert set(finding_columns(second)) == set(OF_2023)
    assert list(second.image_id) == [f"cxr_lt_2024/{DICOM[number]}" for number in (0, 1, 2, 4)]
    assert list_present(second.iloc[2:]) == [[OF_2023[2]], [OF_2023[4]]]
    # Five findings that no training image has labels for; those of development are not published.
    third = build_source("cxr_lt_2024", folder, 0, task="task3")
    assert finding_columns(third) == UNSEEN
    assert list(third.split) == ["validate", "test", "test"]
    assert third.loc[0, UNSEEN].isna().all()
    assert list_present(third.iloc[1:]) == [["Osteopenia"], ["Scoliosis"]]


def test_part_of_the_images_and_of_the_tables_is_enough(tmp_path):
    folder = make_folder(tmp_path, dict(list(TABLES_2023.items())[1:]))
    next(folder.rglob(f"{DICOM[3]}.jpg")).unlink()
    cohort = build_source("cxr_lt_2023", folder, 0)
    assert list(cohort.split) == ["validate", "test"]
    assert cohort.attrs[NOT_IN_FOLDER] == 1


def test_a_patient_of_mimic_cxr_who_is_tested_here_is_not_trained_on_there(tmp_path):
    make_mimic_cxr(tmp_path / "mimic_cxr")
    make_folder(
        tmp_path / "cxr_lt_2023",
        {"train.csv": list_lines(ROWS[2:], OF_2023), "test.csv": list_lines(ROWS[:2], OF_2023)},
    )
    sources = "sources:\n  - {source: mimic_cxr, role: pretrain}\n  - {source: cxr_lt_2023, role: evaluate}\n"
    (tmp_path / "cohort.yaml").write_text(sources)
    cohort = read_joint(tmp_path / "cohort.yaml", 0, tmp_path / "unpacked").require_cohort()
    assert set(cohort.patient_id[cohort.split == "test"]) == {"mimic_cxr/19999901"}
    assert set(cohort.patient_id[cohort.source == "mimic_cxr"]) == {"mimic_cxr/19999902"}


TRAIN = next(iter(TABLES_2023))


@pytest.mark.parametrize(
    ("source", "tables", "said"),
    [
        (
            "cxr_lt_2023",
            {},
            r"has no train\.csv or development\.csv or test\.csv: set data_root to the folder that hold",
        ),
        ("cxr_lt_2024", TABLES_2023, r"has no train_labeled\.csv or development_labeled_task1\.csv or "),
        (
            "cxr_lt_2023",
            {TRAIN: [line.replace("Hernia", "Hiatus") for line in TABLES_2023[TRAIN]]},
            r"^train\.csv lacks the column 'Hernia'; it has",
        ),
        (
            "cxr_lt_2023",
            {TRAIN: [line.replace("study_id", "study") for line in TABLES_2023[TRAIN]]},
            r"^train\.csv lacks the column 'study_id'; it has",
        ),
        (
            "cxr_lt_2023",
            {TRAIN: [line.replace("jpg,1,", "jpg,2,") for line in TABLES_2023[TRAIN]]},
            r"^train\.csv: line 2 of train\.csv, column 'Atelectasis' holds '2'; a label is 1",
        ),
        (
            "cxr_lt_2023",
            {**TABLES_2023, TRAIN.replace("train", "test"): list_lines(ROWS[1:], OF_2023)},
            r"^train\.csv: line 3 of train\.csv and line 2 of test\.csv hold the same in column 'image'",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, source, tables, said):
    with pytest.raises(StudyError, match=said):
        build_source(source, make_folder(tmp_path, tables), 0)
