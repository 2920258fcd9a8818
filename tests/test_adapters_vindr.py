import numpy as np
import pytest
from PIL import Image
from test_dicom import make_dicom, to_bytes

from chexstudy.cohort.adapters import build_source, guess_source, list_annotations
from chexstudy.cohort.adapters.datasets import vindr_cxr, vindr_pcxr
from chexstudy.cohort.adapters.manifest import NO_PATIENT_TOLD, NOT_IN_FOLDER
from chexstudy.cohort.source_annotations import Box
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError

FINDINGS = list(vindr_cxr.SPEC.columns["findings"])
OF_CHILDREN = list(vindr_pcxr.SPEC.columns["findings"])
IMAGES = [f"9a9b9c9d9e9f0011223344556677889{number}" for number in range(4)]
# What each of the three readers of an image sees; the test has one row, of all its readers.
READINGS = {
    IMAGES[0]: [{"Cardiomegaly", "Nodule/Mass"}, {"Cardiomegaly"}, {"Cardiomegaly", "Other diseases"}],
    IMAGES[1]: [{"No finding"}] * 3,
    IMAGES[2]: [{"Pulmonary fibrosis"}, {"No finding"}, {"No finding"}],
}
CONSENSUS = {IMAGES[3]: {"Enlarged PA"}}
TAGS = [{"PatientSex": "M", "PatientAge": "058Y"}, {"PatientSex": "O", "PatientAge": "000Y"}, {}, {"PatientSex": "F"}]
BOXES = (
    "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
    f"{IMAGES[0]},R8,Cardiomegaly,7.0,13.5,16.0,18.5",
    f"{IMAGES[0]},R9,Nodule/Mass,1,2,3,4",
    f"{IMAGES[1]},R9,No finding,,,,",
)


def tabulate(findings, seen, readers=()):
    rows = [",".join((*("image_id", "rad_id")[: 1 + bool(readers)], *findings))]
    for image, readings in seen.items():
        for number, reading in enumerate(readings if readers else [readings]):
            rows.append(
                ",".join((image, *readers[number : number + 1], *(str(int(one in reading)) for one in findings)))
            )
    return rows


TRAIN, TEST = "annotations/image_labels_train.csv", "annotations/image_labels_test.csv"
TABLES = {
    TRAIN: tabulate(FINDINGS, READINGS, ("R8", "R9", "R10")),
    TEST: [line.replace("Other diseases", "Other disease") for line in tabulate(FINDINGS, CONSENSUS)],
    "annotations/annotations_train.csv": BOXES,
}


def draw_pixels(number):
    return np.random.default_rng(number).integers(0, 4096, (40, 50), np.uint16)


def make_folder(folder, tables=TABLES, images=IMAGES):
    for number, image in enumerate(images):
        path = folder / ("test" if image in CONSENSUS else "train") / f"{image}.dicom"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(make_dicom(draw_pixels(number), **TAGS[number])))
    for name, lines in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


def list_present(cohort):
    return [{name for name in finding_columns(cohort) if row[name] == 1} for _, row in cohort.iterrows()]


def test_what_any_reader_sees_is_present(tmp_path):
    folder = make_folder(tmp_path)
    assert guess_source(folder) == "vindr_cxr"
    cohort = build_source("vindr_cxr", folder, 0)
    assert list(cohort.image_id) == list(cohort.patient_id) == [f"vindr_cxr/{image}" for image in IMAGES]
    assert set(cohort.split[:3]) <= {"train", "validate"}
    assert cohort.split[3] == "test"
    assert set(cohort["view"]) == {"PA"}
    assert list(cohort.sex) == ["M", "unknown", "unknown", "F"]
    assert list(cohort.age_years.fillna(-1)) == [58, -1, -1, -1]
    seen = [{"Cardiomegaly", "Nodule/Mass", "Other Disease"}, {"No Finding"}, {"Fibrosis"}, {"Enlarged PA"}]
    assert list_present(cohort) == seen
    # Of one image alone is it said that there is nothing; another reader saw something in the other.
    assert cohort.attrs["images_called_no_finding_by_one_reader_and_not_by_another"] == 1
    assert cohort.attrs[NO_PATIENT_TOLD] == 4
    assert cohort[finding_columns(cohort)].isin([0, 1]).all(axis=None)
    # 27 findings but for seven absent ones, and for those present a name that says what it is.
    assert [report.count(".") for report in cohort.report] == [20, 1, 20, 20]
    assert "enlarged pulmonary artery" in cohort.report[3].lower()


@pytest.mark.parametrize(
    ("readers", "seen"),
    [
        ("majority", [{"Cardiomegaly"}, {"No Finding"}, {"No Finding"}]),
        ("all", [{"Cardiomegaly"}, {"No Finding"}, set()]),
    ],
)
def test_more_readers_may_be_asked_to_agree(tmp_path, readers, seen):
    cohort = build_source("vindr_cxr", make_folder(tmp_path), 0, readers=readers)
    assert list_present(cohort) == [*seen, {"Enlarged PA"}]
    assert cohort.attrs["images_called_no_finding_by_one_reader_and_not_by_another"] == 0


def test_boxes_are_in_pixels_of_the_original_image(tmp_path):
    folder = make_folder(tmp_path)
    boxes = list_annotations("vindr_cxr", folder, {f"vindr_cxr/{image}" for image in IMAGES})
    first = f"vindr_cxr/{IMAGES[0]}"
    assert boxes == [
        Box(first, "Cardiomegaly", (7.0, 13.5, 9.0, 5.0), (40, 50)),
        Box(first, "Nodule/Mass", (1.0, 2.0, 2.0, 2.0), (40, 50)),
    ]
    # The size of a picture that was made from the original says nothing about its pixels.
    (folder / f"train/{IMAGES[0]}.dicom").unlink()
    Image.new("L", (40, 40)).save(folder / f"train/{IMAGES[0]}.png")
    assert list_annotations("vindr_cxr", folder, {first}) == []
    assert len(build_source("vindr_cxr", folder, 0)) == 4


def test_part_of_the_set_is_enough(tmp_path):
    folder = make_folder(tmp_path, {TRAIN: TABLES[TRAIN]}, IMAGES[1:])
    cohort = build_source("vindr_cxr", folder, 0)
    assert list(cohort.image_id) == [f"vindr_cxr/{image}" for image in IMAGES[1:3]]
    assert (cohort.attrs[NOT_IN_FOLDER], cohort.attrs["images_without_row"]) == (1, 1)
    assert list_annotations("vindr_cxr", folder, set(cohort.image_id)) == []


def make_children(folder):
    seen = {IMAGES[0]: [{"Brocho-pneumonia", "Diagphramatic hernia"}], IMAGES[1]: [{"No finding"}]}
    table = [line.replace("rad_id", "rad_ID") for line in tabulate(OF_CHILDREN, seen, ("R1",))]
    boxes = [BOXES[0].replace("rad_id", "rad_ID"), f"{IMAGES[0]},R1,Diffuse aveolar opacity,1,2,11,22"]
    tables = {"image_labels_train.csv": table, "annotations_train.csv": boxes}
    make_folder(folder, tables, IMAGES[:2])
    dicom = make_dicom(np.ones((40, 40), np.uint8), PatientAge="003M", ViewPosition="AP")
    (folder / f"train/{IMAGES[1]}.dicom").write_bytes(to_bytes(dicom))
    return folder


def test_children(tmp_path):
    folder = make_children(tmp_path)
    assert guess_source(folder) == "vindr_pcxr"
    cohort = build_source("vindr_pcxr", folder, 0)
    assert list_present(cohort) == [{"Bronchopneumonia", "Diaphragmatic Hernia"}, {"No Finding"}]
    assert list(cohort.age_years) == [58, 0.25]
    assert list(cohort["view"]) == ["unknown", "AP"]
    assert "brocho" not in cohort.report[0].lower()
    assert cohort.report[1].count(".") == 1
    (box,) = list_annotations("vindr_pcxr", folder, set(cohort.image_id))
    assert (box.structure, box.box) == ("Diffuse Alveolar Opacity", (1, 2, 10, 20))


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            {},
            r"has no image_labels_train\.csv or image_labels_test\.csv: set data_root to the folder that holds",
        ),
        (
            {TRAIN: tabulate(OF_CHILDREN, {IMAGES[0]: [set()]}, ("R1",))},
            r"^image_labels_train\.csv lacks the columns 'Aortic enlargement', .*; it has 'image_id', 'rad_id'",
        ),
        (
            {TRAIN: [line.replace("Lung cyst", "Cyst") for line in TABLES[TRAIN]]},
            r"^image_labels_train\.csv lacks the column 'Lung cyst'; it has",
        ),
        (
            {TRAIN: [*TABLES[TRAIN][:-1], TABLES[TRAIN][-1].replace(",1", ",2")]},
            r"^image_labels_train\.csv: line 10 of image_labels_train\.csv, column 'No finding' holds '2': expected 1",
        ),
        (
            {TRAIN: [*TABLES[TRAIN], "é"]},
            r"image_labels_train\.csv is not UTF-8 text: save it again as CSV in UTF-8 or",
        ),
        (
            {TRAIN: TABLES[TRAIN], TEST: tabulate(FINDINGS, {IMAGES[0]: set()})},
            r"line 2 of image_labels_train\.csv and line 2 of image_labels_test\.csv hold the same in",
        ),
        (
            {**TABLES, TRAIN.replace("annotations", "old"): TABLES[TRAIN]},
            r"holds annotations/\S+ and old/\S+: set data_",
        ),
        (
            {TRAIN: [line.replace("9a9b9c9d9e9f00", "") for line in TABLES[TRAIN]]},
            r"^none of the 3 files named in column 'image_id' of image_labels_train\.csv exists in ",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, tables, said):
    with pytest.raises(StudyError, match=said):
        build_source("vindr_cxr", make_folder(tmp_path, tables), 0)
