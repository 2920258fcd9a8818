import re

import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, list_annotations
from chexstudy.cohort.adapters.datasets.nlm_tb import label_reading
from chexstudy.cohort.adapters.manifest import SPLIT_AT_RANDOM
from chexstudy.cohort.annotations import decode_mask
from chexstudy.errors import StudyError


def save_image(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)).save(path)


def save_mask(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((40, 40), np.uint8)
    mask[:, columns] = 255
    Image.fromarray(mask).save(path)


def make_flat_folder(folder):
    for name in ("CHNCXR_0001_0", "CHNCXR_0002_1", "CHNCXR_0003_1", "MCUCXR_0004_0", "MCUCXR_0005_1"):
        save_image(folder / f"images/{name}.png")
    save_mask(folder / "masks/CHNCXR_0001_0_mask.png", slice(0, 10))
    (folder / "readings.csv").write_text(
        "study_id,sex,age,findings\nCHNCXR_0001_0.png,Male,45,normal\n"
        'CHNCXR_0002_1.png,Female,2,"left PTB,  left pleurisy?"\n'
        "CHNCXR_0009_1.png,Female,2,STB\n"
    )
    return folder


def test_the_flat_layout(tmp_path):
    cohort = build_source("nlm_tb", make_flat_folder(tmp_path), seed=0).set_index("image_id")
    assert list(cohort["Tuberculosis"]) == [0, 1, 1, 0, 1]
    assert list(cohort["No Finding"]) == [1, 0, 0, 1, 0]
    assert list(cohort["report_origin"]) == ["written", "written", "template", "template", "template"]
    assert cohort.loc["nlm_tb/CHNCXR_0002_1.png", "report"] == "left PTB, left pleurisy?"
    assert "tuberculosis" in cohort.loc["nlm_tb/MCUCXR_0005_1.png", "report"].lower()
    assert list(cohort["sex"]) == ["M", "F", "unknown", "unknown", "unknown"]
    assert list(cohort["age_years"].fillna(-1)) == [45, 2, -1, -1, -1]
    assert list(cohort["view"]) == ["unknown", "unknown", "unknown", "PA", "PA"]
    assert cohort["patient_id"].is_unique
    assert cohort.attrs["readings_without_image"] == 1
    assert cohort.attrs["images_without_row"] == 0
    # Other findings are stated by a reading or not at all.
    assert list(cohort["Pleural Effusion"].fillna(9)) == [0, -1, 9, 0, 9]
    assert list(cohort["Cavity"].fillna(9)) == [0, 9, 9, 0, 9]


def test_the_original_archives(tmp_path):
    save_image(tmp_path / "ChinaSet_AllFiles/CXR_png/CHNCXR_0327_1.png")
    readings = tmp_path / "ChinaSet_AllFiles/ClinicalReadings"
    readings.mkdir()
    (readings / "CHNCXR_0327_1.txt").write_text("male 37yrs\nright upper PTB with cavitation\n")
    montgomery = tmp_path / "MontgomerySet"
    save_image(montgomery / "CXR_png/MCUCXR_0001_0.png")
    (montgomery / "ClinicalReadings").mkdir()
    (montgomery / "ClinicalReadings/MCUCXR_0001_0.txt").write_text("Patient's Sex: F\nPatient's Age: 027Y\nnormal\n")
    save_mask(montgomery / "ManualMask/leftMask/MCUCXR_0001_0.png", slice(30, 40))
    save_mask(montgomery / "ManualMask/rightMask/MCUCXR_0001_0.png", slice(0, 10))
    cohort = build_source("nlm_tb", tmp_path, seed=0)
    assert list(cohort["image_id"]) == ["nlm_tb/CHNCXR_0327_1.png", "nlm_tb/MCUCXR_0001_0.png"]
    assert list(cohort["report"]) == ["right upper PTB with cavitation", "normal"]
    assert list(cohort["sex"]) == ["M", "F"]
    assert list(cohort["age_years"]) == [37, 27]
    assert list(cohort["Cavity"]) == [1, 0]
    masks = list_annotations("nlm_tb", tmp_path, set(cohort["image_id"]))
    assert {(mask.image_id, mask.structure) for mask in masks} == {
        ("nlm_tb/MCUCXR_0001_0.png", "left lung"),
        ("nlm_tb/MCUCXR_0001_0.png", "right lung"),
    }
    assert decode_mask(masks[0].read()[5], 40, 40)[0].tolist() == [False] * 30 + [True] * 10


@pytest.mark.parametrize(
    ("reading", "stated"),
    [
        ("right PTB", {}),
        ("left PTB,left pleurisy", {"Pleural Effusion": 1}),
        ("bilateral PTB, with left pleural effussion", {"Pleural Effusion": 1}),
        ("STB, pleural effusion?", {"Pleural Effusion": -1}),
        ("? pleural effusion", {"Pleural Effusion": -1}),
        ("possible cavity, right pneumothorax", {"Cavity": -1, "Pneumothorax": 1}),
        ("PTB without cavity", {"Cavity": 0}),
        ("no cavity; cavities in left upper field", {"Cavity": 1}),
        ("right upper PTB with fibrous changes", {"Fibrosis": 1}),
        ("bilateral acute hematogenous disseminated PTB", {"Miliary Tuberculosis": 1}),
        (
            "1.secondary PTB  with upper atelectasis;2.right pleural adhesions",
            {"Atelectasis": 1, "Pleural Thickening": 1},
        ),
    ],
)
def test_readings_are_labelled_by_what_they_say(reading, stated):
    assert {finding: label for finding, label in label_reading(reading).items() if label is not None} == stated


def test_what_is_wrong_with_the_folder_is_one_sentence(tmp_path):
    holding = "the folder that holds the Shenzhen (CHNCXR_*.png) and Montgomery (MCUCXR_*.png) images."
    for folder, said in (("", "no data folder was given"), (tmp_path, f"{tmp_path} holds no radiographs")):
        with pytest.raises(StudyError, match=f"^{re.escape(f'{said}: set data_root to {holding}')}$"):
            build_source("nlm_tb", folder, seed=0)
    folder = make_flat_folder(tmp_path)
    (folder / "readings.csv").write_text("study_id,sex,age,text\nCHNCXR_0001_0.png,Male,45,normal\n")
    with pytest.raises(
        StudyError, match=r"^readings\.csv lacks the column 'findings'; it has 'study_id', 'sex', 'age', 'text'"
    ):
        build_source("nlm_tb", folder, seed=0)


def test_the_real_radiographs(real_data):
    cohort = build_source("nlm_tb", real_data / "nlm_tb", seed=0)
    assert len(cohort) == 468
    assert (cohort["report_origin"] == "written").sum() == 386
    assert cohort.attrs == {"images_without_row": 0, "readings_without_image": 0, SPLIT_AT_RANDOM: 468}
    assert (cohort["Tuberculosis"] + cohort["No Finding"] == 1).all()
