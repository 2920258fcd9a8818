"""Sources with written reports and terms of a vocabulary: Open-I, PadChest, BIMCV-COVID19+, CASIA-CXR."""

import re
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_dicom import make_dicom, to_bytes

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.cohort.adapters.manifest import NOT_ENGLISH, NOT_IN_FOLDER
from chexstudy.cohort.reports import split_sections
from chexstudy.cohort.table import finding_columns
from chexstudy.errors import StudyError


def save_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def tell_labels(cohort):
    """Image -> what is present; the number of findings that are not stated, where any is."""
    findings = finding_columns(cohort)
    told = {}
    for _, row in cohort.iterrows():
        unstated = int(row[findings].isna().sum())
        told[row["image_id"].split("/")[1]] = unstated or {name for name in findings if row[name] == 1}
    return told


# --- Open-I -----------------------------------------------------------------------------------------------------------

OPENI = {  # number -> findings, impression, MeSH headings, images
    1: ("Heart is normal.", "Normal chest.", ["normal"], ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]),
    2: ("", "Fluid. XXXX.", ["Pleural Effusion/right/small", "Thickening/pleura/apex "], ["CXR2_IM-0652-1001"]),
    5: ("", "", ["Thickening/bronchi", "Catheters, Indwelling/right"], ["CXR5_IM-0017-1001-0001"]),
    8: ("Rotated.", "", ["technical quality of image unsatisfactory "], ["CXR8_IM-0044-84654001"]),
    9: ("Clear.", "Clear.", ["no indexing"], []),
}
OPENI_LABELS = {
    "CXR1_1_IM-0001-3001": {"No Finding"},
    "CXR1_1_IM-0001-4001": {"No Finding"},
    "CXR2_IM-0652-1001": {"Pleural Effusion", "Pleural Thickening"},
    "CXR5_IM-0017-1001-0001": {"Support Devices"},
    "CXR8_IM-0044-84654001": 20,
}


def write_openi(folder):
    (folder / "ecgen-radiology").mkdir(parents=True)
    for number, (findings, impression, headings, images) in OPENI.items():
        majors = "".join(f"<major>{heading}</major>" for heading in headings)
        parents = "".join(
            f'<parentImage id="{image}"><caption>Xray Chest PA and Lateral</caption></parentImage>' for image in images
        )
        sections = {"COMPARISON": "None.", "INDICATION": "XXXX.", "FINDINGS": findings, "IMPRESSION": impression}
        texts = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in sections.items())
        (folder / f"ecgen-radiology/{number}.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/><Abstract>{texts}</Abstract>'
            f"<MeSH>{majors}<automatic>cardiomegaly</automatic></MeSH>{parents}</eCitation>"
        )
    return folder


def test_openi_as_xml_and_pictures(tmp_path):
    folder = save_images(write_openi(tmp_path), [f"NLMCXR_png/{name}.png" for name in OPENI_LABELS])
    assert guess_source(folder) == "openi"
    cohort = build_source("openi", folder, 0)
    assert list(cohort.image_id) == [f"openi/{name}" for name in OPENI_LABELS]
    assert list(cohort.patient_id) == list(cohort.study_id) == [f"openi/CXR{n}" for n in (1, 1, 2, 5, 8)]
    assert set(cohort["view"]) == set(cohort.sex) == {"unknown"}
    assert list(cohort.report[:3]) == ["FINDINGS: Heart is normal.\nIMPRESSION: Normal chest."] * 2 + [
        "IMPRESSION: Fluid. XXXX."
    ]
    assert list(cohort.report_origin) == ["written"] * 3 + ["template", "written"]
    assert tell_labels(cohort) == OPENI_LABELS
    assert cohort.attrs == {"images_without_row": 0, "reports_without_image": 1}


def test_openi_as_dicom_tells_the_view(tmp_path):
    folder = write_openi(tmp_path)
    views = ["PA", "LL", "LATERAL", "", "AP"]
    for name, view in zip(OPENI_LABELS, views, strict=True):
        number = name[3 : name.index("_")]
        (folder / number).mkdir(exist_ok=True)
        dataset = make_dicom(np.zeros((40, 40), np.uint8), ViewPosition=view)
        (folder / number / f"{name.removeprefix('CXR').removeprefix('1_')}.dcm").write_bytes(to_bytes(dataset))
    cohort = build_source("openi", folder, 0)
    assert guess_source(folder) == "openi"
    assert tell_labels(cohort) == OPENI_LABELS
    assert list(cohort["view"]) == ["PA", "lateral", "lateral", "unknown", "AP"]


def write_openi_copy(folder):
    reports = ["uid,MeSH,Problems,image,indication,comparison,findings,impression"]
    images = ["uid,filename,projection"]
    for number, (findings, impression, headings, names) in OPENI.items():
        mesh = ";".join(headings)
        reports.append(f'{number},"{mesh}","{mesh}",Xray Chest PA and Lateral,XXXX,None.,{findings},{impression}')
        files = [f"{name.removeprefix('CXR').removeprefix('1_')}.dcm.png" for name in names]
        images += [f"{number},{file},{'Lateral' if '4001' in file else 'Frontal'}" for file in files]
        save_images(folder / "images/images_normalized", files)
    (folder / "indiana_reports.csv").write_text("\n".join(reports) + "\n")
    (folder / "indiana_projections.csv").write_text("\n".join(images) + "\n")
    return folder


def test_openi_as_the_kaggle_copy(tmp_path):
    write_openi_copy(tmp_path)
    assert guess_source(tmp_path) == "openi"
    cohort = build_source("openi", tmp_path, 0)
    assert tell_labels(cohort) == OPENI_LABELS
    assert list(cohort["view"]) == ["unknown", "lateral", "unknown", "unknown", "lateral"]
    assert list(cohort.patient_id) == [f"openi/CXR{n}" for n in (1, 1, 2, 5, 8)]
    assert cohort.attrs == {"images_without_row": 0, "reports_without_image": 1}


def test_the_real_reports_of_openi(tmp_path, real_data):
    """All 3,955 of them; of images, which are not at hand, one stands for each name."""
    with tarfile.open(real_data / "openi/NLMCXR_reports.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    names = re.findall(r'<parentImage id="([^"]+)"', "".join(path.read_text() for path in tmp_path.rglob("*.xml")))
    for name in names:
        (tmp_path / f"{name}.png").touch()
    cohort = build_source("openi", tmp_path, 0)
    assert (len(cohort), cohort.patient_id.nunique(), cohort.attrs["reports_without_image"]) == (7470, 3851, 104)
    assert guess_source(tmp_path) == "openi"
    studies = cohort.drop_duplicates("study_id").set_index("study_id")
    written = studies[studies.report_origin == "written"].report
    sections = pd.DataFrame(list(written.map(split_sections)), written.index)
    assert (len(written), *(sections != "").sum()) == (3826, 3337, 3820)
    assert studies["No Finding"].isna().sum() == 98
    counts = {"No Finding": 1379, "Cardiomegaly": 345, "Pleural Effusion": 149, "Pneumothorax": 22}
    assert (studies[list(counts)] == 1).sum().to_dict() == counts
    assert sections.loc["openi/CXR1", "impression"] == "Normal chest x-XXXX."
    assert studies.loc["openi/CXR1", "No Finding"] == 1


# --- PadChest ---------------------------------------------------------------------------------------------------------

PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
PADCHEST_ROWS = (  # patient, year of birth, sex, projection, report, method, labels
    (
        "P1",
        "1930.0",
        "F",
        "PA",
        "cardiomegali . senos libr .",
        "Physician",
        "['cardiomegaly', ' laminar atelectasis ']",
    ),
    ("P1", "1930.0", "F", "L", "cardiomegali . senos libr .", "Physician", "['cardiomegaly', 'cardiomegaly']"),
    ("P2", "2013.0", "M", "AP_horizontal", "sin hallazg .", "RNN_model", "['normal']"),
    (
        "P3",
        "",
        "O",
        "AP",
        "mas mediastin .",
        "RNN_model",
        "['mediastinal mass', \"drain's tube\", ' alveolar pattern']",
    ),
    ("P4", "1890.0", "", "COSTAL", "", "RNN_model", ""),
    ("P5", "1950.0", "M", "EXCLUDE", "rodill .", "Physician", "['exclude']"),
    ("P6", "1950.0", "M", "PA", "no valor .", "Physician", "['exclude', ' pneumonia']"),
)


def write_padchest(folder):
    lines = [PADCHEST_HEADER]
    for number, (patient, born, sex, projection, report, method, labels) in enumerate(PADCHEST_ROWS):
        start = [
            number,
            f"90{number}_abc.png",
            number % 2,
            20140101,
            f"S{patient}",
            patient,
            born,
            sex,
            "POSTEROANTERIOR",
        ]
        labels = labels.replace('"', '""')
        end = [projection, "Manual review of DICOM fields", "No", "CR", *[""] * 15, f"R{number}", report, method]
        cells = [*start, *end, f'"{labels}"', "\"['loc cardiac']\"", '"[[]]"', "['C0018800' 'C0004144']", "[]"]
        lines.append(",".join(map(str, cells)))
        save_images(folder, [f"{number % 2}/90{number}_abc.png"])
    (folder / PADCHEST).write_text("\n".join(lines) + "\n")
    return folder


def test_padchest(tmp_path):
    folder = write_padchest(tmp_path)
    assert guess_source(folder) == "padchest"
    cohort = build_source("padchest", folder, 0)
    assert list(cohort.image_id) == [f"padchest/90{number}_abc.png" for number in range(5)]
    assert list(cohort.patient_id) == [f"padchest/P{number}" for number in (1, 1, 2, 3, 4)]
    assert list(cohort.study_id) == [f"padchest/SP{number}" for number in (1, 1, 2, 3, 4)]
    assert list(cohort["view"]) == ["PA", "lateral", "AP", "AP", "unknown"]
    assert list(cohort.sex) == ["F", "F", "M", "unknown", "unknown"]
    assert list(cohort.age_years.fillna(-1)) == [84, 84, 1, -1, -1]
    assert cohort.report[0] == "cardiomegali . senos libr ."
    assert list(cohort.report_origin) == ["written"] * 4 + ["none"]
    assert tell_labels(cohort) == {
        "900_abc.png": {"Cardiomegaly", "Atelectasis"},
        "901_abc.png": {"Cardiomegaly"},
        "902_abc.png": {"No Finding"},
        "903_abc.png": set(),
        "904_abc.png": len(finding_columns(cohort)),
    }
    assert cohort.attrs["images_that_padchest_itself_excludes"] == 2
    assert cohort.attrs[NOT_ENGLISH] == 4


def test_padchest_by_physicians_alone_and_with_patterns_as_infiltration(tmp_path):
    cohort = build_source("padchest", write_padchest(tmp_path), 0, labels="physician", infiltration="patterns")
    assert list(cohort.Cardiomegaly.fillna(9)) == [1, 1, 9, 9, 9]
    assert list(cohort.report_origin) == ["written"] * 4 + ["none"]
    cohort = build_source("padchest", tmp_path, 0, infiltration="patterns")
    assert list(cohort.Infiltration.fillna(9)) == [0, 0, 0, 1, 9]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def rewrite(folder, name, old, new):
    """Put other bytes into a file of the fixture; no longer there if they are None."""
    path = next(folder.rglob(name))
    data = path.read_bytes()
    path.unlink()
    if new is not None:
        assert old in data
        path.write_bytes(data.replace(old, new))


XML = ("openi", write_openi, "2.xml")
COPY = ("openi", write_openi_copy)
SPANISH = ("padchest", write_padchest, PADCHEST)


@pytest.mark.parametrize(
    ("source", "write", "file", "old", "new", "said"),
    [
        (*XML, b"</eCitation>", b"", r"/2\.xml is no report of Open-I, or a damaged one: unpack"),
        (*XML, b"parentImage id", b"parentImage name", r"/2\.xml is no report of Open-I, or"),
        (
            *COPY,
            "indiana_reports.csv",
            b"MeSH",
            b"Terms",
            r"^indiana_reports\.csv lacks the column 'MeSH'; it has 'uid'",
        ),
        (
            *COPY,
            "indiana_projections.csv",
            None,
            None,
            r"has no indiana_projections\.csv: set data_root to the folder th",
        ),
        (
            *SPANISH,
            b"PatientBirth",
            b"Birth",
            r"_01\.02\.19\.csv lacks the column 'PatientBirth'; it has 'ImageID', 'Im",
        ),
        (
            *SPANISH,
            b",P4,",
            b",9.00001E+35,",
            r"csv: line 6, column 'PatientID' holds a number that a spreadsheet has rou",
        ),
        (*SPANISH, b"hallazg", b"r\xf3tul", r"csv is not UTF-8 text: save it again .*line 4"),
        (*SPANISH, b",Physician,", b"", r"csv: line 2 has 35 cells where the header"),
        (*SPANISH, None, None, r"has no PADCHEST_\S+\.csv: set data_root to the folder that"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, source, write, file, old, new, said):
    rewrite(write(tmp_path), file, old, new)
    with pytest.raises(StudyError, match=said) as error:
        build_source(source, tmp_path, 0)
    assert str(error.value).count("\n") == 0


def test_images_that_are_not_there_are_left_out_and_counted(tmp_path):
    folder = save_images(write_openi(tmp_path), [f"{name}.png" for name in list(OPENI_LABELS)[1:]])
    cohort = build_source("openi", folder, 0)
    assert (len(cohort), cohort.attrs[NOT_IN_FOLDER]) == (4, 1)
