import json

import pytest
from test_adapters_reports import rewrite, save_images

from chexstudy.cohort.adapters import build_source, guess_source, list_annotations
from chexstudy.cohort.source_annotations import Box
from chexstudy.errors import StudyError

LISTS = {
    "train": ["health/h0001.png", "sick/s0001.png", "tb/tb0001.png", "tb/tb0002.png"],
    "val": ["tb/tb0003.png", "tb/tb0004.png", "health/h0002.png"],
}
CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
BOXES = {"tb/tb0001.png": (1, 2), "tb/tb0002.png": (3,), "tb/tb0003.png": (2,)}  # image -> categories


def write_tbx11k(folder):
    root = folder / "TBX11K"
    for place in ("lists", "annotations/json"):
        (root / place).mkdir(parents=True)
    categories = [{"id": n, "name": name, "supercategory": "Tuberculosis"} for n, name in enumerate(CATEGORIES, 1)]
    for split, names in LISTS.items():
        images = [{"id": n, "file_name": name, "width": 512, "height": 512} for n, name in enumerate(names)]
        boxes = [
            {"image_id": n, "category_id": category, "bbox": [10 * category, 20, 80, 90.5]}
            for n, name in enumerate(names)
            for category in BOXES.get(name, ())
        ]
        told = json.dumps({"images": images, "annotations": boxes, "categories": categories})
        (root / f"annotations/json/TBX11K_{split}.json").write_text(told)
        (root / f"lists/TBX11K_{split}.txt").write_text("\n".join(names) + "\n")
    (root / "lists/TBX11K_trainval.txt").write_text("\n".join([*LISTS["train"], *LISTS["val"]]))
    (root / "lists/all_train.txt").write_text("extra/m/train/MCUCXR_0001_0.png\n")
    others = ["test/t0001.png", "test/t0002.png", "extra/m/train/MCUCXR_0001_0.png"]
    save_images(root / "imgs", [*LISTS["train"], *LISTS["val"], *others])
    return folder


def test_tbx11k(tmp_path):
    folder = write_tbx11k(tmp_path)
    assert guess_source(folder) == "tbx11k"
    cohort = build_source("tbx11k", folder, 0, val="validate")
    names = [*LISTS["train"], *LISTS["val"]]
    assert list(cohort.image_id) == list(cohort.patient_id) == [f"tbx11k/{name}" for name in names]
    assert list(cohort.split) == ["train"] * 4 + ["validate"] * 3
    assert cohort.report[1].lower().count("disease other than tuberculosis") == 1
    assert set(cohort["view"]) == set(cohort.sex) == {"unknown"}
    assert list(cohort["No Finding"]) == [1, 0, 0, 0, 0, 0, 1]
    assert list(cohort["Sick without Tuberculosis"]) == [0, 1, 0, 0, 0, 0, 0]
    assert list(cohort.Tuberculosis) == [0, 0, 1, 1, 1, 1, 0]
    assert list(cohort["Active Tuberculosis"].fillna(9)) == [0, 0, 1, -1, 0, 9, 0]
    assert list(cohort["Latent Tuberculosis"].fillna(9)) == [0, 0, 1, -1, 1, 9, 0]
    notes = {"images_taken_for_a_patient_each_because_none_is_told": 7}
    notes |= {"extra_images_left_out_as_other_sources_hold_them": 1, "test_images_left_out_as_they_have_no_labels": 2}
    assert notes.items() <= cohort.attrs.items()
    cohort = build_source("tbx11k", folder, 0)
    assert list(cohort.split[4:]) == ["test"] * 3
    assert "test" not in set(cohort.split[:4])


def test_boxes_of_tbx11k(tmp_path):
    boxes = list_annotations("tbx11k", write_tbx11k(tmp_path), {"tbx11k/tb/tb0001.png", "tbx11k/tb/tb0002.png"})
    image, picture = "tbx11k/tb/tb0001.png", (512, 512)
    assert boxes == [
        Box(image, "Active Tuberculosis", (10.0, 20.0, 80.0, 90.5), picture),
        Box(image, "Tuberculosis", (10.0, 20.0, 80.0, 90.5), picture),
        Box(image, "Latent Tuberculosis", (20.0, 20.0, 80.0, 90.5), picture),
        Box(image, "Tuberculosis", (20.0, 20.0, 80.0, 90.5), picture),
        Box("tbx11k/tb/tb0002.png", "Tuberculosis", (30.0, 20.0, 80.0, 90.5), picture),
    ]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "TBX11K_val.txt",
            None,
            None,
            r"has no TBX11K_val\.txt: set data_root to the folder that holds imgs/ and lists/",
        ),
        (
            "TBX11K_val.txt",
            b"tb/tb0003",
            b"tb0003",
            r"^TBX11K_train\.txt or TBX11K_val\.txt lists tb0003\.png: expected",
        ),
        ("TBX11K_val.txt", b"tb0003", b"tb0001", r"hold the same in column 'file'"),
        (
            "TBX11K_train.json",
            b"bbox",
            b"box",
            r"/TBX11K_train\.json is not in the COCO form of TBX11K, or a part of it \(see 'bbox'\): f",
        ),
        ("TBX11K_train.json", b"}]}", b"}]", r"/TBX11K_train\.json is not in the COCO form of TBX11K"),
        (
            "TBX11K_train.json",
            b"ActiveT",
            b"T",
            r"TBX11K, or a part of it \(see 'Tuberculosis'\): fetch it again",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, file, old, new, said):
    rewrite(write_tbx11k(tmp_path), file, old, new)
    with pytest.raises(StudyError, match=said) as error:
        build_source("tbx11k", tmp_path, 0)
    assert "\n" not in str(error.value)
