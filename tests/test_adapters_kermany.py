import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.errors import StudyError

KAGGLE = {
    "test/NORMAL/IM-0001-0001.jpeg": "test/NORMAL/IM-0001",
    "test/PNEUMONIA/person1_virus_6.jpeg": "test/PNEUMONIA/person1",
    "train/NORMAL/IM-0115-0001-0002.jpeg": "train/NORMAL/IM-0115",
    "train/NORMAL/NORMAL2-IM-0115-0001.jpeg": "train/NORMAL/NORMAL2-IM-0115",
    "train/PNEUMONIA/person1_bacteria_1.jpeg": "train/PNEUMONIA/person1",
    "train/PNEUMONIA/person1_bacteria_2.jpeg": "train/PNEUMONIA/person1",
    "val/PNEUMONIA/person1946_bacteria_4874.jpeg": "val/PNEUMONIA/person1946",
}


def save_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        mode = "RGB" if number == 1 else "L"
        Image.fromarray(np.full((40, 40), 20 * number, np.uint8)).convert(mode).save(folder / name)
    return folder


def test_the_copy_of_kaggle(tmp_path):
    # It holds everything twice, and what a Mac leaves behind.
    save_images(tmp_path / "chest_xray/chest_xray", KAGGLE)
    save_images(tmp_path / "chest_xray/__MACOSX/chest_xray", list(KAGGLE)[:2])
    folder = save_images(tmp_path / "chest_xray", KAGGLE)
    (folder / "train/.DS_Store").write_bytes(b"")
    assert guess_source(tmp_path) == "kermany"
    cohort = build_source("kermany", tmp_path, 0)
    assert list(cohort["image_id"]) == [f"kermany/{name}" for name in KAGGLE]
    # Numbers start anew in each split.
    assert list(cohort["patient_id"]) == [f"kermany/{child}" for child in KAGGLE.values()]
    assert list(cohort["split"]) == ["test"] * 2 + ["train"] * 4 + ["validate"]
    assert set(cohort["view"]) == {"AP"}
    assert list(cohort["Pneumonia"]) == [0, 1, 0, 0, 1, 1, 1]
    assert list(cohort["No Finding"]) == [1, 0, 1, 1, 0, 0, 0]
    assert list(cohort["Viral Pneumonia"]) == [0, 1, 0, 0, 0, 0, 0]
    assert list(cohort["Bacterial Pneumonia"]) == [0, 0, 0, 0, 1, 1, 1]


def test_the_copy_of_mendeley(tmp_path):
    names = [
        *("test/NORMAL/NORMAL-1003233-0001.jpeg", "train/PNEUMONIA/BACTERIA-1008087-0001.jpeg"),
        *("train/PNEUMONIA/VIRUS-1008087-0001.jpeg", "train/PNEUMONIA/other.jpeg"),
    ]
    folder = save_images(tmp_path / "ChestXRay2017/chest_xray", names)
    assert guess_source(tmp_path) == "kermany"
    cohort = build_source("kermany", folder, 0)
    assert list(cohort["patient_id"]) == [
        "kermany/test/NORMAL/NORMAL-1003233",
        "kermany/train/PNEUMONIA/BACTERIA-1008087",
        "kermany/train/PNEUMONIA/VIRUS-1008087",
        "kermany/train/PNEUMONIA/other.jpeg",
    ]
    assert list(cohort["Bacterial Pneumonia"].fillna(9)) == [0, 1, 0, 9]
    assert set(cohort["split"][1:]) <= {"train", "validate"}


def test_another_folder_is_refused(tmp_path):
    save_images(tmp_path, ["train/COVID/person1_virus_6.jpeg"])
    with pytest.raises(StudyError, match=r" has no images in folders train/NORMAL, train/PNEUMONIA, test/NORM"):
        build_source("kermany", tmp_path, 0)
