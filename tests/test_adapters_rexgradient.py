import json

import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.cohort.adapters.manifest import NOT_IN_FOLDER
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError


def make_study(number, patient, images, views, **told):
    place = f"../deid_png/{patient}/GRDA{number}/studies/1.{number}/series/1.{number}.0/instances"
    return {
        "PatientID": patient,
        "AccessionNumber": f"GRDA{number}",
        "StudyInstanceUid": f"1.{number}",
        "StudyDate": "20150102",
        "PatientSex": "F",
        "PatientAge": "064Y",
        "Indication": "cough",
        "Comparison": "None",
        "Findings": "Clear lungs.",
        "Impression": "No acute disease.",
        "ImagePath": [f"{place}/1.{number}.0.{image}.png" for image in range(images)],
        "ImageViewPosition": views,
        **told,
    }


STUDIES = {
    "train": [
        make_study(1, "GRDN9001", 3, ["PA", "LATERAL", "KUB"]),
        make_study(2, "GRDN9001", 2, ["ANTERO_POSTERIOR"], Findings="None", PatientAge="007Y"),
        make_study(3, "GRDN9002", 1, ["PICC LINE"], Impression="None", PatientSex="M", PatientAge="002D"),
    ],
    "valid": [make_study(4, "GRDN9003", 1, ["UNKNOWN"], PatientSex="", PatientAge=None)],
    "test": [make_study(5, "GRDN9004", 1, ["POSTERO_ANTERIOR"], Findings="None", Impression="None")],
}
IMAGES = ["1.1.0.0", "1.1.0.1", "1.2.0.0", "1.2.0.1", "1.3.0.0", "1.4.0.0", "1.5.0.0"]


def make_folder(folder, studies=STUDIES, name="{}_metadata_view_position.json"):
    for one in [one for split in STUDIES.values() for one in split]:
        for file in one["ImagePath"]:
            path = folder / file.removeprefix("../")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(list(file.encode())).integers(0, 255, (40, 40), np.uint8)
            Image.fromarray(pixels).save(path)
    (folder / "metadata").mkdir()
    for split, listed in studies.items():
        told = {f"{one['PatientID']}_{one['AccessionNumber']}": one for one in listed}
        (folder / "metadata" / name.format(split)).write_text(json.dumps(told))
    return folder


def test_each_image_has_its_view_and_the_report_of_its_study(tmp_path):
    folder = make_folder(tmp_path)
    assert guess_source(folder) == "rexgradient"
    cohort = build_source("rexgradient", folder, 0)
    assert list(cohort.image_id) == [f"rexgradient/{image}" for image in IMAGES]
    assert list(cohort.patient_id) == [f"rexgradient/GRDN900{number}" for number in (1, 1, 1, 1, 2, 3, 4)]
    assert list(cohort.study_id) == [f"rexgradient/{image[:3]}" for image in IMAGES]
    assert list(cohort.split) == ["train"] * 5 + ["validate", "test"]
    # The list of views may be the shorter one, and most of its words are no direction.
    assert list(cohort["view"]) == ["PA", "lateral", "AP", "unknown", "unknown", "unknown", "PA"]
    assert list(cohort.sex) == ["F", "F", "F", "F", "M", "unknown", "F"]
    assert list(cohort.age_years.fillna(-1).round(4)) == [64, 64, 7, 7, np.float32(0.0055), -1, 64]
    both = "FINDINGS: Clear lungs.\nIMPRESSION: No acute disease."
    assert list(cohort.report[[0, 2, 4, 6]]) == [both, both.split("\n")[1], both.split("\n")[0], ""]
    assert list(cohort.report_origin) == ["written"] * 6 + ["none"]
    assert finding_columns(cohort) == []
    assert (cohort.attrs["images_of_the_abdomen_left_out"], cohort.attrs["images_without_row"]) == (1, 1)


def test_part_of_the_images_and_metadata_without_views_are_enough(tmp_path):
    studies = {split: [dict(one) for one in listed] for split, listed in STUDIES.items()}
    for listed in studies.values():
        for one in listed:
            del one["ImageViewPosition"]
    folder = make_folder(tmp_path, studies, "{}_metadata.json")
    # As some unpack it.
    (folder / "deid_png").rename(folder / "images")
    next(folder.rglob("1.4.0.0.png")).unlink()
    cohort = build_source("rexgradient", folder, 0)
    assert set(cohort["view"]) == {"unknown"}
    assert (len(cohort), cohort.attrs[NOT_IN_FOLDER]) == (7, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"has no train_metadata_view_position\.json or train_metadata\.json or valid_"),
        (
            '{"GRDN9001_GRDA1": {"PatientID": "GRDN9',
            r"is not a JSON file of studies by their ids, or a part of it \(see .*\): fetch",
        ),
        (
            '[{"PatientID": "GRDN9001"}]',
            r"is not a JSON file of studies by their ids, or a part of it \(see .*\): fetch it again\.$",
        ),
        (
            '{"GRDN9001_GRDA1": {"PatientID": "GRDN9001", "StudyUID": "1.1"}}',
            r"^train_metadata\.json lacks the columns 'StudyInstanceUid', .*; it has 'PatientID', 'StudyUID'\.$",
        ),
        ("é", r"is not a JSON file of studies by their ids, or a part of it \(see .*\): fetch it again\.$"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, said):
    folder = make_folder(tmp_path, {})
    if text is not None:
        (folder / "train_metadata.json").write_text(text, encoding="latin-1")
    with pytest.raises(StudyError, match=said):
        build_source("rexgradient", folder, 0)
