"""Data sets of masks and boxes in their official form: SIIM, RSNA, JSRT and SCR, RibCXR, CheXmask, CheXlocalize."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from chexstudy.cohort.adapters import build_source, guess_source, list_annotations, read_source
from chexstudy.cohort.annotations import decode_mask
from chexstudy.cohort.images.decode import decode_radiograph
from chexstudy.cohort.source_annotations import Box, Polygon, RunLengths
from chexstudy.errors import StudyError

UID = "1.2.276.0.9.{}"


def save_dicom(path, sex="F", age="058Y", view="PA"):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.PatientSex, image.PatientAge, image.ViewPosition = sex, age, view
    image.save_as(path, enforce_file_format=False)


def save_image(path, size=(40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, size, np.uint8)).save(path)


def read_mask(one):
    row = one.read()
    return decode_mask(row[5], row[3], row[4])


def make_siim(folder):
    for number, (sex, age, view) in enumerate((("F", "058Y", "PA"), ("M", "155Y", "AP"), ("", "", "")), start=1):
        save_dicom(folder / f"dicom-images-train/9.{number}/8.{number}/{UID.format(number)}.dcm", sex, age, view)
    rows = [
        f"{UID.format(1)}, -1",
        f"{UID.format(2)},0 2 1022 3",
        f"{UID.format(2)}, 1048570 6",
        f"{UID.format(4)}, -1",
    ]
    # The official header has a blank before its second name.
    (folder / "train-rle.csv").write_text("\n".join(["ImageId, EncodedPixels", *rows]) + "\n")
    return folder


def test_siim_acr(tmp_path):
    folder = make_siim(tmp_path)
    assert guess_source(folder) == "siim_acr"
    cohort = build_source("siim_acr", folder, 0)
    assert list(cohort.image_id) == [f"siim_acr/{UID.format(number)}" for number in (1, 2)]
    assert list(cohort.patient_id) == list(cohort.image_id)
    assert list(cohort.Pneumothorax) == [0, 1]
    assert [list(cohort[name].fillna(-1)) for name in ("view", "sex", "age_years")] == [
        ["PA", "AP"],
        ["F", "M"],
        [58, -1],
    ]
    first, second = list_annotations("siim_acr", folder, set(cohort.image_id))
    mask = np.zeros((1024, 1024), bool)
    mask[0:2, 0] = mask[0:3, 1] = True
    assert (read_mask(first) == mask).all()
    assert np.argwhere(read_mask(second)).tolist() == [[row, 1023] for row in range(1018, 1024)]


RSNA_BOXES = ["9a0b1c2d,,,,,0", "9a0b1c2e,300.0,410.0,150.0,220.0,1", "9a0b1c2e,600,400,10,20,1", "9a0b1c2f,,,,,0"]
RSNA_CLASSES = ["9a0b1c2d,No Lung Opacity / Not Normal", *["9a0b1c2e,Lung Opacity"] * 2, "9a0b1c2f,Normal"]


def make_rsna(folder, boxes=RSNA_BOXES, mapping=True):
    for row in boxes:
        save_dicom(folder / f"stage_2_train_images/{row.split(',')[0]}.dcm")
    (folder / "stage_2_train_labels.csv").write_text("\n".join(["patientId,x,y,width,height,Target", *boxes]))
    (folder / "stage_2_detailed_class_info.csv").write_text("\n".join(["patientId,class", *RSNA_CLASSES]))
    if mapping:
        names = {"9a0b1c2d": "00000013_005.png", "9a0b1c2e": "00000013_006.png", "9a0b1c2f": "00000014_000.png"}
        told = [{"img_id": nih, "subset_img_id": own, "SOPInstanceUID": "1.2"} for own, nih in names.items()]
        (folder / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(told))
    return folder


def test_rsna_pneumonia(tmp_path):
    folder = make_rsna(tmp_path)
    assert guess_source(folder) == "rsna_pneumonia"
    cohort = build_source("rsna_pneumonia", folder, 0)
    assert list(cohort.image_id) == [f"rsna_pneumonia/9a0b1c2{letter}" for letter in "def"]
    # Its patients are those of NIH, two images of one of them here.
    assert list(cohort.patient_id) == ["nih/13", "nih/13", "nih/14"]
    assert list(cohort["Lung Opacity"]) == [0, 1, 0]
    assert list(cohort["No Finding"]) == [0, 0, 1]
    assert "Pneumonia" not in cohort
    named_otherwise = build_source("rsna_pneumonia", folder, 0, target="Pneumonia")
    assert list(named_otherwise["Pneumonia"]) == [0, 1, 0]
    boxes = list_annotations("rsna_pneumonia", folder, set(cohort.image_id))
    assert [(box.structure, box.box) for box in boxes[:2]] == [
        ("Lung Opacity", (300, 410, 150, 220)),
        ("Pneumonia", (300, 410, 150, 220)),
    ]
    next(folder.glob("*mappings*")).unlink()
    alone = build_source("rsna_pneumonia", folder, 0)
    assert list(alone.patient_id) == list(alone.image_id)


def make_jsrt(folder):
    for name in ("JPCLN001.IMG", "JPCLN002.IMG", "JPCNN001.IMG"):
        path = folder / "All247images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Air, around the body and in the lungs, has the highest values.
        values = np.full((2048, 2048), 3600, ">u2")
        values[300:1800, 300:1700] = np.linspace(200, 1500, 1500, dtype=">u2")[:, None]
        path.write_bytes(values.tobytes())
    clinical = folder / "Clinical_Information"
    clinical.mkdir()
    # Two records that run together, and an age that nobody knows.
    (clinical / "CLNDAT_EN.txt").write_text(
        "JPCLN001.IMG\t4\t14\t60\tfemale\t1200\t900\tbenign\tr.upper lobe\thamartoma"
        "JPCLN002.IMG\t1\t7\t?\tmale\t500\t600\tmalignant\tl.lower\tlung cancer\n"
    )
    (clinical / "CNNDAT_EN.TXT").write_text("JPCNN001.IMG\t57\tfemale\tnon-nodule\n")
    return folder


def test_jsrt_and_scr(tmp_path):
    folder = make_jsrt(tmp_path / "jsrt")
    assert guess_source(folder) == "jsrt"
    cohort = build_source("jsrt", folder, 0)
    assert list(cohort.image_id) == ["jsrt/JPCLN001", "jsrt/JPCLN002", "jsrt/JPCNN001"]
    assert cohort[["No Finding", "Nodule", "Malignant Nodule"]].to_numpy().tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert list(cohort.sex) == ["F", "M", "F"]
    assert list(cohort.age_years.fillna(-1)) == [60, -1, 57]
    assert set(cohort["view"]) == {"PA"}
    image = decode_radiograph((folder / "All247images/JPCLN001.IMG").read_bytes())
    assert image[0, 0] < image[1700, 1000] < image[400, 1000]
    boxes = list_annotations("jsrt", folder, set(cohort.image_id))
    assert boxes[0] == Box("jsrt/JPCLN001", "Nodule", (1160, 860, 80, 80), (2048, 2048))
    masks = tmp_path / "scr/fold1/masks"
    for structure in ("heart", "left lung"):
        (masks / structure).mkdir(parents=True)
        Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(masks / structure / "JPCLN001.gif")
    assert guess_source(tmp_path / "scr") == "scr"
    found = list_annotations("scr", tmp_path / "scr", set(cohort.image_id))
    assert [(mask.image_id, mask.structure) for mask in found] == [
        ("jsrt/JPCLN001", "heart"),
        ("jsrt/JPCLN001", "left lung"),
    ]
    assert (read_mask(found[0]) == np.eye(32, dtype=bool)).all()


def make_ribs(folder):
    ribs = [f"{side}{number}" for side in "RL" for number in range(1, 11)]
    square = [{"x": 5.0, "y": 5.0}, {"x": 20.0, "y": 5.0}, {"x": 20.0, "y": 30.0}, {"x": 5.0, "y": 30.0}]
    for split, part in (("train", "train"), ("val", "val")):
        told = {rib: {"0": square if rib == "R2" else None} for rib in ribs}
        told["img"] = {"0": f"data/{part}/img/VinDr_RibCXR_{part}_000.png"}
        save_image(folder / f"Data/{part}/img/VinDr_RibCXR_{part}_000.png", (60, 50))
        place = folder / f"Annotations/{split}/Vindr_RibCXR_{split}_mask.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(told))
    return folder


def test_vindr_ribcxr(tmp_path):
    folder = make_ribs(tmp_path)
    assert guess_source(folder) == "vindr_ribcxr"
    cohort = build_source("vindr_ribcxr", folder, 0)
    assert list(cohort.image_id) == ["vindr_ribcxr/VinDr_RibCXR_train_000", "vindr_ribcxr/VinDr_RibCXR_val_000"]
    assert list(cohort.split) == ["train", "validate"]
    assert set(cohort.report_origin) == {"none"}
    first, _ = list_annotations("vindr_ribcxr", folder, set(cohort.image_id))
    assert (first.structure, first.picture) == ("right rib 2", (60, 50))
    mask = np.zeros((60, 50), bool)
    mask[5:31, 5:21] = True
    assert (read_mask(first) == mask).all()


CHEXMASK = ["Image Index", "Dice RCA (Mean)", "Dice RCA (Max)", "Landmarks", "Left Lung", "Right Lung", "Heart"]


def make_chexmask(folder, columns=CHEXMASK):
    rows = [
        ("90000001_000.png", 0.91, 0.95, "[[512 300] [1 2]]", "1 2 10 3", "21 1", "30 1", 5, 6),
        # Mean and maximum are swapped in some releases; nothing is drawn of the right lung.
        ("90000002_000.png", 0.95, 0.6, "[]", "1 2", "", "3 1", 5, 6),
        ("90000003_000.png", 0.8, 0.8, "[]", "1 2", "", "3 1", 5, 6),
    ]
    place = folder / "OriginalResolution/ChestX-Ray8.csv"
    place.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=[*columns, "Height", "Width"]).to_csv(place, index=False)
    return folder


def test_chexmask(tmp_path):
    folder = make_chexmask(tmp_path)
    assert guess_source(folder) == "chexmask"
    masks = list_annotations("chexmask", folder, {f"nih/9000000{number}_000.png" for number in (1, 2, 3)})
    assert [(mask.image_id[-9:-8], mask.structure) for mask in masks] == [
        *(("1", "left lung"), ("1", "right lung"), ("1", "heart")),
        *(("3", "left lung"), ("3", "heart")),
    ]
    flat = np.zeros(30, bool)
    flat[0:2] = flat[9:12] = True
    assert (read_mask(masks[0]) == flat.reshape(5, 6)).all()
    assert list_annotations("chexmask", folder, {"nih/other.png"}) == []
    problem = "^chexmask holds masks of other sources' images and none of its own: list it beside them in a manifest"
    with pytest.raises(StudyError, match=problem):
        build_source("chexmask", folder, 0)


def test_chexlocalize(tmp_path):
    # Packed by COCO's own tools: a rectangle of 3 x 3 and the last pixel of a picture of 6 x 8.
    packed = {"Airspace Opacity": {"size": [6, 8], "counts": "=33000`0N"}}
    for name, patient in (("val", "patient64622"), ("test", "patient98001")):
        told = {f"{patient}_study1_view1_frontal": packed}
        (tmp_path / f"gt_segmentations_{name}.json").write_text(json.dumps(told))
    assert guess_source(tmp_path) == "chexlocalize"
    ids = [
        "chexpert/valid/patient64622/study1/view1_frontal.jpg",
        "chexpert_test/test/patient98001/study1/view1_frontal.jpg",
    ]
    masks = list_annotations("chexlocalize", tmp_path, set(ids))
    assert [mask.image_id for mask in masks] == ids
    assert {mask.structure for mask in masks} == {"Lung Opacity"}
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = expected[5, 7] = True
    assert (read_mask(masks[0]) == expected).all()
    # The same tools, where runs shrink: three rectangles on 12 x 10.
    expected = np.zeros((12, 10), bool)
    expected[1:9, 1:4] = expected[10:12, 5:9] = expected[0, 9] = True
    assert (read_mask(RunLengths("a/1", "b", "=84000e0JA000011", (12, 10), "here", "coco")) == expected).all()


def test_a_polygon_is_cut_at_the_edge():
    mask = read_mask(Polygon("a/1", "b", (((-5.0, -5.0), (3.0, -5.0), (3.0, 2.0), (-5.0, 2.0)),), (4, 6)))
    assert mask[:3, :4].all()
    assert mask.sum() == 12


@pytest.mark.parametrize(
    ("runs", "way"),
    [
        *(("5 4 3", "gaps"), ("1 2 x 3", "gaps"), ("29 2", "gaps"), ("0 5", "starts"), ("4 3 5 2", "starts")),
        *(("29 3", "starts"), ("1 2 3", "starts"), ("n", "coco"), ("é1", "coco"), ("PPPP", "coco")),
    ],
)
def test_runs_of_another_way_are_one_sentence(runs, way):
    with pytest.raises(
        StudyError, match=r"^masks\.csv, line 7: the mask is not told by (gaps|starts|runs) .* 5 x 6 pix"
    ):
        RunLengths("a/1", "b", runs, (5, 6), "masks.csv, line 7", way).read()


def spoil_rsna(folder):
    (make_rsna(folder) / "pneumonia-challenge-dataset-mappings_2018.json").write_text('[{"img_id": "a.png"}]')


def lose_classes(folder):
    (make_rsna(folder) / "stage_2_detailed_class_info.csv").unlink()


def rename_siim(folder):
    table = make_siim(folder) / "train-rle.csv"
    table.write_text(table.read_text().replace("EncodedPixels", "rle"))


def spoil_jsrt(folder):
    (make_jsrt(folder) / "Clinical_Information/CNNDAT_EN.TXT").write_text("57\tfemale\n")


def spoil_ribs(folder):
    (make_ribs(folder) / "Annotations/train/Vindr_RibCXR_train_mask.json").write_text('{"img": {}}')


@pytest.mark.parametrize(
    ("source", "spoil", "said"),
    [
        ("rsna_pneumonia", spoil_rsna, r"mappings_2018\.json is not a mapping of RSNA images to NIH images"),
        ("rsna_pneumonia", lose_classes, r"has no stage_2_detailed_class_info\.csv: set data_root to the folder"),
        ("siim_acr", rename_siim, r"^train-rle\.csv lacks the column 'EncodedPixels'; it has 'ImageId', 'rle'\.$"),
        ("jsrt", spoil_jsrt, r"^CNNDAT_EN\.TXT: record 1 does not begin with the name of an image and 2 words on it"),
        (
            "vindr_ribcxr",
            spoil_ribs,
            r"train_mask\.json is not a table of columns img, R1 to R10 and L1 to L10, or a part",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, source, spoil, said):
    spoil(tmp_path)
    (problem,) = read_source(source, tmp_path, 0).problems
    with pytest.raises(StudyError, match=said):
        raise StudyError(problem)


def test_a_table_of_masks_with_another_column_is_one_sentence(tmp_path):
    make_chexmask(tmp_path, [*CHEXMASK[:5], "RightLung", "Heart"])
    with pytest.raises(StudyError, match=r"^ChestX-Ray8\.csv lacks the column 'Right Lung'; it has 'Image Index', "):
        list_annotations("chexmask", tmp_path, {"nih/90000001_000.png"})
