import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.cohort.adapters.manifest import NOT_IN_FOLDER
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

COHEN_HEADER = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,"
    "needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,view,"
    "modality,date,location,folder,filename,doi,url,license,clinical_notes,other_notes,"
)


def cohen_row(patient, finding, filename, view="PA", offset="0", survival="", icu="", modality="X-ray", age="54"):
    return (
        f"{patient},{offset},M,{age},{finding},Unclear,{survival},,,{icu},,,,,,,,,{view},{modality},2020,"
        f'"Hospital, City",{"images" if modality == "X-ray" else "volumes"},{filename},,,CC BY-NC-SA,"A ""note"".",,'
    )


COHEN = (
    cohen_row("900", "Pneumonia/Viral/COVID-19", "x-900.png", survival="Y", icu="N"),
    cohen_row("900", "Pneumonia/Viral/COVID-19", "x-901", "AP Supine", offset="7", survival="N", icu="Unclear"),
    cohen_row("17", "Pneumonia/Bacterial/Klebsiella", "y.jpeg", "L", offset="", age=""),
    cohen_row("18", "No Finding", "z.jpg", "AP Erect"),
    cohen_row("19", "Unknown", "u.png"),
    cohen_row("20", "todo", "t.png"),
    cohen_row("21", "Pneumonia", "scan.nii.gz", "Axial", modality="CT"),
)
TRAIN = (
    "900 COVID-900.png COVID-19 sirm",
    "c1 normal one.png normal rsna",
    "c1 c1.png pneumonia rnsa",
    "17 a b.jpg pneumonia cohen",
    "17 r17.png normal ricord",
)
TEST = ("c2 c2.png pneumonia rsna", "17 t17.png COVID-19 ricord")


def save_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((40, 40), 20 * number, np.uint8)).save(folder / name, format="PNG")


def make_cohen(folder, header=COHEN_HEADER, rows=COHEN):
    folder = folder / "covid-chestxray-dataset-master"
    save_images(folder / "images", ["x-900.png", "x-901.jpg", "y.jpeg", "z.jpg", "u.png", "t.png"])
    (folder / "metadata.csv").write_text("\n".join((header, *rows)) + "\n")
    return folder


def make_covidx(folder, train=TRAIN, test=TEST, release="COVIDx9A", encoding="utf-8"):
    (folder / "labels").mkdir(parents=True)
    for split, lines in {"train": train, "test": test}.items():
        (folder / f"labels/{split}_{release}.txt").write_text("\n".join(lines) + "\n", encoding=encoding)
    save_images(folder / "data/train", ["COVID-900.png", "normal one.png", "c1.png", "a b.jpg", "r17.png"])
    save_images(folder / "data/test", ["c2.png", "t17.png"])
    return folder


def list_labels(cohort, finding):
    return list(cohort[finding].fillna(9))


def test_the_collection_of_cohen(tmp_path):
    folder = make_cohen(tmp_path)
    assert guess_source(folder) == guess_source(tmp_path) == "covid_chestxray"
    cohort = build_source("covid_chestxray", folder, 0)
    assert list(cohort["image_id"]) == [
        f"covid_chestxray/{name}" for name in ("x-900.png", "x-901", "y.jpeg", "z.jpg", "u.png")
    ]
    assert list(cohort["patient_id"]) == [f"covid_chestxray/{number}" for number in (900, 900, 17, 18, 19)]
    assert list(cohort["study_id"][:3]) == ["covid_chestxray/900_0", "covid_chestxray/900_7", "covid_chestxray/17_"]
    assert list(cohort["view"]) == ["PA", "AP", "lateral", "AP", "PA"]
    assert set(cohort["sex"]) == {"M"}
    assert list(cohort["age_years"].fillna(-1)) == [54, 54, -1, 54, 54]
    assert list_labels(cohort, "COVID-19") == [1, 1, 9, 0, 9]
    assert list_labels(cohort, "Pneumonia") == [1, 1, 1, 0, 9]
    assert list_labels(cohort, "No Finding") == [0, 0, 0, 1, 9]
    assert list_labels(cohort, "outcome_survival") == [1, 0, 9, 9, 9]
    assert list_labels(cohort, "outcome_icu") == [0, 9, 9, 9, 9]
    assert cohort["split"].notna().all()
    assert cohort.attrs["scans_and_undescribed_images_left_out"] == 2


def test_covidx(tmp_path):
    folder = make_covidx(tmp_path)
    assert guess_source(folder) == "covidx"
    cohort = build_source("covidx", folder, 0)
    assert list(cohort["image_id"]) == [
        f"covidx/{name}" for name in ("COVID-900.png", "normal one.png", "c1.png", "a b.jpg", "c2.png", "t17.png")
    ]
    # Each set has numbers of its own, and rnsa is a slip for rsna.
    assert list(cohort["patient_id"]) == [
        f"covidx/{name}" for name in ("sirm_900", "rsna_c1", "rsna_c1", "cohen_17", "rsna_c2", "ricord_17")
    ]
    assert list(cohort["split"][4:]) == ["test", "test"]
    assert set(cohort["split"][:4]) <= {"train", "validate"}
    assert list_labels(cohort, "COVID-19") == [1, 0, 0, 0, 0, 1]
    assert list_labels(cohort, "Pneumonia") == [9, 0, 1, 1, 1, 9]
    assert list_labels(cohort, "No Finding") == [0, 1, 0, 0, 0, 0]
    # A patient of the test set is taken out of training.
    assert cohort.attrs["images_left_out_because_their_patient_is_held_out_more"] == 1


def test_the_copy_of_kaggle_and_the_oldest_lists(tmp_path):
    folder = tmp_path / "covidx-cxr2"
    save_images(folder / "train", ["a.png", "b.png"])
    save_images(folder / "test", ["c.png"])
    lists = {
        "train": "1 a.png positive cohen",
        "val": "2 b.png negative rsna\n3 absent.png positive rsna",
        "test": "4 c.png negative",
    }
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text(lines)
    assert guess_source(folder) == "covidx"
    cohort = build_source("covidx", folder, 0)
    assert list(cohort["split"]) == ["train", "validate", "test"]
    assert list(cohort["patient_id"]) == ["covidx/cohen_1", "covidx/rsna_2", "covidx/any_4"]
    assert list_labels(cohort, "COVID-19") == [1, 0, 0]
    assert finding_columns(cohort) == ["COVID-19"]
    assert cohort.attrs[NOT_IN_FOLDER] == 1


def test_of_several_releases_one_is_chosen(tmp_path):
    folder = make_covidx(tmp_path)
    (folder / "labels/train_COVIDx9B.txt").write_text("900 COVID-900.png positive sirm\n")
    with pytest.raises(StudyError, match=r"holds labels/train_COVIDx9A\.txt and labels/train_COVIDx9B\.txt: set "):
        build_source("covidx", folder, 0)
    assert len(build_source("covidx", folder, 0, release="9A")) == 6
    assert len(build_source("covidx", folder, 0, release="9B")) == 1


@pytest.mark.parametrize(
    ("source", "make", "said"),
    [
        ("covid_chestxray", lambda folder: make_cohen(folder, COHEN_HEADER.replace("finding", "diagnosis")),
         r"^metadata\.csv lacks the column 'finding'; it has 'patientid'"),
        ("covid_chestxray", lambda folder: make_cohen(folder, rows=COHEN[-2:]), r"^metadata\.csv has no rows\.$"),
        ("covid_chestxray", lambda folder: make_cohen(folder, rows=(*COHEN, COHEN[0])),
         r"^metadata\.csv: line 2 and line 9 hold the same in column 'filename'"),
        ("covidx", make_cohen, r"has no train_COVIDx\*\.txt or train\.txt or test_COVIDx\*\.txt or test\.txt: set"),
        ("covidx", lambda folder: make_covidx(folder, [*TRAIN, "17 a.png tuberculosis cohen"]),
         r"^train_COVIDx9A\.txt: line 6 is not patient, file, class \(normal, pneumonia, "),
        ("covidx", lambda folder: make_covidx(folder, ["1 \xe9.png normal rsna"], encoding="latin-1"),
         r"train_COVIDx9A\.txt is not UTF-8 text: save it again"),
        ("covidx", lambda folder: make_covidx(folder, ["1 gone.png normal rsna"], ["2 lost.png normal rsna"]),
         r"^none of the 2 files named in column 'file' of "),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path, source, make, said):
    with pytest.raises(StudyError, match=said):
        build_source(source, make(tmp_path), 0)
