"""Sources with written reports and terms of a vocabulary: Open-I, PadChest, BIMCV-COVID19+, CASIA-CXR, CANDID-PTX."""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from test_dicom import make_dicom, to_bytes

from chexstudy.cohort.adapters import build_source, guess_source, list_annotations
from chexstudy.cohort.adapters.manifest import NOT_ENGLISH, NOT_IN_FOLDER
from chexstudy.cohort.annotations import decode_mask
from chexstudy.cohort.check import check_source
from chexstudy.cohort.images.decode import decode_radiograph
from chexstudy.cohort.joint import read_joint
from chexstudy.cohort.reports import split_sections, training_text
from chexstudy.cohort.source_annotations import RunLengths
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
    "CXR8_IM-0044-84654001": 22,
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
    assert list(cohort.report_origin) == ["written"] * 3 + ["none", "written"]
    assert tell_labels(cohort) == OPENI_LABELS
    assert cohort.attrs["reports_without_image"] == 1


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
    assert cohort.attrs["reports_without_image"] == 1


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
    counts = {"No Finding": 1379, "Cardiomegaly": 345, "Pleural Effusion": 150, "Pneumothorax": 26}
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
    ("P4", "1890.0", "", "COSTAL", "", "RNN_model", "['unchanged', ' suboptimal study']"),
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


# --- BIMCV-COVID19 ----------------------------------------------------------------------------------------------------

BIMCV_IMAGES = {  # image -> view; of one and its corrected form the latter counts
    "sub-S09001_ses-E09001_run-1_bp-chest_vp-pa_dx.png": "PA",
    "sub-S09001_ses-E09001_run-2_bp-chest_vp-ll_cr.png": "lateral",
    "sub-S09001_ses-E09002_acq-1_run-1_bp-chest_vp-ap_dx-corrected.png": "AP",
    "sub-S09002_ses-E09003_run-1_cr.png": "unknown",
    "sub-S09003_ses-E09004_run-1_bp-chest_vp-lateral_dx.png": "lateral",
}
BIMCV_LABELS = "covid19_posi/derivatives/labels/Labels_covid_123.tsv"
BIMCV_ROWS = (
    ("ses-E09001", "infiltr lobul inferior .", "['infiltrates', ' COVID 19']", "['C0235896' 'C5203670']"),
    ("ses-E09002", "posibl covid .", "['COVID 19 uncertain', ' normal']", "['C5203671']"),
    ("ses-E09003", "derram pleural .", "['loculated pleural effusion']", "['C0747635']"),
    ("ses-E09009", "sin imag .", "['normal']", "[]"),
)


def write_tsv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def write_bimcv(folder):
    for name in (*BIMCV_IMAGES, "sub-S09001_ses-E09002_acq-1_run-1_bp-chest_vp-ap_dx.png"):
        patient, session = name.split("_")[:2]
        which = "neg" if patient == "sub-S09002" else "posi"
        save_images(folder, [f"covid19_{which}/{patient}/{session}/mod-rx/{name}"])
        (folder / f"covid19_{which}/{patient}/{session}/mod-rx/{name[:-4]}.json").write_text("{}")
    (folder / "covid19_posi/sub-S09001/ses-E09001/mod-ct").mkdir()
    (folder / "covid19_posi/sub-S09001/ses-E09001/mod-ct/sub-S09001_ses-E09001_ct.nii.gz").touch()
    header = ("participant", "modality_dicom", "body_parts", "age", "gender")
    write_tsv(folder / "covid19_posi/participants.tsv", header, ("sub-S09001", "['CR']", "[]", "['68', '67']", "F"))
    write_tsv(folder / "covid19_neg/participants.tsv", header, ("sub-S09002", "['DX']", "[]", "[]", "None"))
    header = ("PatientID", "ReportID", "Report", "Labels", "Localizations", "LabelsLocalizationsBySentence")
    header += ("labelCUIS", "LocalizationsCUIS")
    rows = [("sub", session, text, labels, "[]", "[]", cuis, "[]") for session, text, labels, cuis in BIMCV_ROWS]
    write_tsv(folder / BIMCV_LABELS, header, *rows[:2], rows[3])
    write_tsv(folder / "covid19_neg/derivatives/labels/Labels_covid_NEG_JAN21.tsv", header, rows[2])
    return folder


def test_bimcv_covid19(tmp_path):
    folder = write_bimcv(tmp_path)
    assert guess_source(folder) == "bimcv_covid19"
    cohort = build_source("bimcv_covid19", folder, 0)
    assert list(cohort.image_id) == [f"bimcv_covid19/{name}" for name in BIMCV_IMAGES]
    assert list(cohort.patient_id) == [f"bimcv_covid19/sub-S0900{number}" for number in (1, 1, 1, 2, 3)]
    assert list(cohort.study_id) == [f"bimcv_covid19/ses-E0900{number}" for number in (1, 1, 2, 3, 4)]
    assert list(cohort["view"]) == list(BIMCV_IMAGES.values())
    assert list(cohort.sex) == ["F", "F", "F", "unknown", "unknown"]
    assert list(cohort.age_years.fillna(-1)) == [67, 67, 67, -1, -1]
    assert cohort.report[0] == cohort.report[1] == "infiltr lobul inferior ."
    assert list(cohort.report_origin) == ["written"] * 4 + ["none"]
    assert list(cohort["COVID-19"].fillna(9)) == [1, 1, -1, 0, 9]
    assert list(tell_labels(cohort).values()) == [
        *[{"COVID-19", "Infiltration"}] * 2,
        {"No Finding"},
        {"Pleural Effusion"},
        len(finding_columns(cohort)),
    ]
    assert (cohort.attrs["reports_without_image"], cohort.attrs[NOT_ENGLISH], len(cohort)) == (1, 4, 5)


def test_bimcv_covid19_of_the_first_iteration(tmp_path):
    labels = write_bimcv(tmp_path) / BIMCV_LABELS
    (labels.parent / "labels_covid_posi.tsv").write_text("an older one")
    assert build_source("bimcv_covid19", tmp_path, 0).attrs["tables_of_older_iterations_not_read"] == 1
    (labels.parent / "labels_covid_posi.tsv").unlink()
    shutil.rmtree(tmp_path / "covid19_neg")
    labels.rename(tmp_path / "covid19_posi/labels_covid19_posi.tsv")
    assert guess_source(tmp_path / "covid19_posi") == "bimcv_covid19"
    assert list(build_source("bimcv_covid19", tmp_path / "covid19_posi", 0)["COVID-19"].fillna(9)) == [1, 1, -1, 9]
    for image in tmp_path.rglob("*.png"):
        image.unlink()
    with pytest.raises(
        StudyError, match=r" holds no radiographs \(sub-S\*_ses-E\*_\*\.png\): set data_root to the fold"
    ):
        build_source("bimcv_covid19", tmp_path, 0)


# --- CASIA-CXR --------------------------------------------------------------------------------------------------------

CASIA_HEADER = (
    "ExamID,ImageID,PatientID,ImageDir,StudyDate,PatientAge,PatientGender,PatientPosition,PositionView,Projection,"
    "ProjectionMethod,ImageWidth,ImageHeight,ReportID,Findings,Indication,Comparison,Impression,EndHere,,"
)
CASIA_ROWS = (  # class, exam, number, patient, age, sex, projection, findings, impression
    ("Pneumonia", "E1", 1, "P1", "57 ans", "F", "PA", "Opacité basale droite./ Pas d'épanchement.", "Pneumonie."),
    ("Pneumonia", "E1", 2, "P1", "057Y", "F", "Profil", "Opacité.", ""),
    ("Pneumonia", "", 3, "P9", "40", "M", "PA", "Sans examen.", ""),
    ("PleuralEffusion", "E2", 1, "P2", "12 jours", "?", "AP", "", "Épanchement."),
    ("PleuralEffusion", "E3", 2, "P3", "30", "M", "AP", "Sans image.", ""),
)


def write_casia(folder):
    for kind in ("Pneumonia", "PleuralEffusion"):
        lines, place = [CASIA_HEADER], folder / f"CASIA-CXR_{kind}"
        for name, exam, number, patient, age, sex, projection, findings, impression in CASIA_ROWS:
            image = f"CASIA-CXR_{name}_{number:04d}"
            start = (exam, image, patient, f"CASIA-CXR_{name}_Images", "3/14/2019", age, sex, "Debout", "Face")
            end = (projection, "DR", "2372", "3000", "R1", f'"{findings}"', "Toux", "", f'"{impression}"', "#", "", "")
            if name == kind:
                lines.append(",".join((*start, *end)))
                if findings != "Sans image.":
                    save_images(place / f"CASIA-CXR_{kind}_Images", [f"{image}.jpg"])
        (place / f"CASIA-CXR_{kind}_Reports.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


def test_casia_cxr(tmp_path):
    folder = write_casia(tmp_path)
    assert guess_source(folder) == "casia_cxr"
    cohort = build_source("casia_cxr", folder, 0)
    names = [f"CASIA-CXR_{name}" for name in ("PleuralEffusion_0001", "Pneumonia_0001", "Pneumonia_0002")]
    assert list(cohort.image_id) == [f"casia_cxr/{name}" for name in names]
    assert list(cohort.patient_id) == [f"casia_cxr/P{number}" for number in (2, 1, 1)]
    assert list(cohort.study_id) == [f"casia_cxr/E{number}" for number in (2, 1, 1)]
    assert list(cohort["view"]) == ["AP", "PA", "unknown"]
    assert list(cohort.sex) == ["unknown", "F", "F"]
    assert list(cohort.age_years) == pytest.approx([12 / 365.25, 57, 57])
    assert cohort.report[1] == "FINDINGS: Opacité basale droite. Pas d'épanchement.\nIMPRESSION: Pneumonie."
    # Whoever has one finding may have the others too.
    assert list(cohort["Pleural Effusion"].fillna(9)) == [1, 9, 9]
    assert list(cohort["Pneumonia"].fillna(9)) == [9, 1, 1]
    assert finding_columns(cohort) == ["Pleural Effusion", "Pneumonia"]
    remarks = check_source(folder).remarks
    assert any(one.startswith("3 reports are not in English, ") for one in remarks)
    notes = {"rows_without_exam_left_out": 1, NOT_IN_FOLDER: 1, NOT_ENGLISH: 3}
    assert notes.items() <= cohort.attrs.items()


# --- CANDID-PTX -------------------------------------------------------------------------------------------------------

CANDID_ROWS = (  # image, mask, report, file; two masks of one image, one image of two patients, and one not looked at
    ("1.2.826.9.1.1", "-1", "Comment: clear lungs. !PERSONALNAME!", "P9001_a"),
    ("1.2.826.9.2.1", "300200 12 1012 14", "Impression: small right pneumothorax.", "P9002_a"),
    ("1.2.826.9.2.1", "400 5", "Impression: small right pneumothorax.", "P9002_a"),
    ("1.2.826.9.3.1", "-1", "Findings: clear.", "P9003_a"),
    ("1.2.826.9.3.1", "-1", "Findings: clear.", "P9004_b"),
    ("1.2.826.9.5.1", "", "", "P9002_c"),
)


def write_candid(folder):
    lines = ["SOPInstanceUID,EncodedPixels,Report,StudyInstanceUID,filename"]
    (folder / "dataset1/dataset").mkdir(parents=True)
    for image, mask, report, file in CANDID_ROWS:
        lines.append(f'{image},{mask},"{report}",{image[:-2]},{file}')
        (folder / "dataset1/dataset" / image).write_bytes(to_bytes(make_dicom(np.zeros((40, 40), np.uint8))))
    (folder / "Pneumothorax_reports.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    (folder / "chest_tube.csv").write_text("anon_SOPUID,annotation ref,mask_rle\n1.2.826.9.2.1,a1,40000 3 41024 4\n")
    return folder


def test_candid_ptx(tmp_path):
    folder = write_candid(tmp_path)
    assert guess_source(folder) == "candid_ptx"
    cohort = build_source("candid_ptx", folder, 0)
    assert list(cohort.image_id) == [f"candid_ptx/1.2.826.9.{number}.1" for number in (1, 2, 5)]
    assert list(cohort.study_id) == [f"candid_ptx/1.2.826.9.{number}" for number in (1, 2, 5)]
    assert list(cohort.patient_id) == [f"candid_ptx/{number}" for number in (9001, 9002, 9002)]
    assert decode_radiograph(Path(cohort.image_path[0]).read_bytes()).shape == (40, 40)
    assert set(cohort["view"]) == set(cohort.sex) == {"unknown"}
    assert cohort.report[1] == "Impression: small right pneumothorax."
    assert training_text(cohort.report[0]).startswith("clear lungs.")
    assert list(cohort.report_origin) == ["written", "written", "none"]
    assert list(cohort.Pneumothorax.fillna(9)) == [0, 1, 9]
    assert list(cohort["Chest Tube"]) == [0, 1, 0]
    assert "Rib Fracture" not in cohort
    assert cohort.attrs["images_under_several_patients_left_out"] == 1
    (folder / "Rib_fracture_mask_rle.csv").write_text("SOP,ref,rle\n1.2.826.9.5.1,a1,5 3\n")
    assert list(build_source("candid_ptx", folder, 0)["Rib Fracture"]) == [0, 0, 1]


def test_the_masks_of_candid_ptx(tmp_path):
    masks = list_annotations("candid_ptx", write_candid(tmp_path), {"candid_ptx/1.2.826.9.2.1"})
    assert [mask.structure for mask in masks] == ["Pneumothorax", "Pneumothorax", "Chest Tube"]
    # Pixels are counted down the columns, and a gap from the end of the run before.
    inside = np.zeros(1024 * 1024, bool)
    inside[300200:300212] = inside[301224:301238] = True
    np.testing.assert_array_equal(decode_mask(masks[0].read()[5], 1024, 1024), inside.reshape(1024, 1024).T)
    # The table of tubes tells where runs start.
    inside[:] = False
    inside[40000:40003] = inside[41024:41028] = True
    np.testing.assert_array_equal(decode_mask(masks[2].read()[5], 1024, 1024), inside.reshape(1024, 1024).T)


# --- languages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "reports", "foreign"),
    [
        ({}, 5, 4),
        ({"languages": ["es"]}, 5, 4),
        ({"languages": ["en"]}, 1, 0),
        ({"translations": "english.csv"}, 5, 1),
        ({"translations": "english.csv", "languages": ["en"]}, 4, 0),
    ],
)
def test_a_joint_cohort_takes_reports_of_a_language_or_their_translations(tmp_path, entry, reports, foreign):
    write_padchest(tmp_path / "padchest")
    save_images(write_openi(tmp_path / "openi"), [f"{name}.png" for name in OPENI_LABELS])
    (tmp_path / "english.csv").write_text(
        "id,text\n900_abc.png,Large heart.\npadchest/902_abc.png,Normal.\nR3,A mass.\n"
    )
    sources = [{"source": "padchest"} | entry, {"source": "openi", "languages": ["en"]}]
    (tmp_path / "cohort.yaml").write_text(yaml.safe_dump({"sources": sources}))
    cohort = read_joint(tmp_path / "cohort.yaml", 0, tmp_path).require_cohort()
    assert cohort.source.value_counts().to_dict() == {"openi": 5, "padchest": reports}
    assert cohort.attrs.get(f"padchest: {NOT_ENGLISH}", 0) == foreign
    assert ("Large heart." in set(cohort.report)) == ("translations" in entry)


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
COVID = ("bimcv_covid19", write_bimcv)
POSITIVE = ("bimcv_covid19", lambda folder: write_bimcv(folder) / "covid19_posi")
CANDID = ("candid_ptx", write_candid)
FRENCH = ("casia_cxr", write_casia, "CASIA-CXR_Pneumonia_Reports.csv")


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
        (*COVID, "Labels_covid_123.tsv", b"ReportID", b"Study", r"^Labels_covid_123\.tsv lacks the column 'ReportID'"),
        (*COVID, "covid19_neg/participants.tsv", b"age", b"ages", r"^participants\.tsv lacks the column 'age'; it has"),
        (*POSITIVE, "Labels_covid_123.tsv", b"ses-E", b"E", r"^Labels_covid_123\.tsv: no cell of 'ReportID' is the s"),
        (
            *CANDID,
            "Pneumothorax_reports.csv",
            b",filename",
            b",file",
            r"^Pneumothorax_reports\.csv lacks the column 'f",
        ),
        (*CANDID, "chest_tube.csv", b"anon_SOPUID", b"image", r"^chest_tube\.csv lacks the column 'anon_SOPUID'; it h"),
        (*FRENCH, b"Projection,P", b"View,P", r"^CASIA-CXR_Pneumonia_Reports\.csv lacks the column 'Projection'; it"),
        (*FRENCH, "é".encode(), b"\xe9", r"/CASIA-CXR_Pneumonia_Reports\.csv is not UTF-8 text: save it again as CSV"),
        (
            *FRENCH,
            b",CASIA-CXR_Pneumonia_0002",
            b",2",
            r"^CASIA-CXR: line 3 of CASIA-CXR_Pneumonia_Reports\.csv, column 'ImageI",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, source, write, file, old, new, said):
    folder = write(tmp_path)
    rewrite(folder, file, old, new)
    with pytest.raises(StudyError, match=said) as error:
        build_source(source, folder, 0)
    assert str(error.value).count("\n") == 0


def test_images_that_are_not_there_are_left_out_and_counted(tmp_path):
    folder = save_images(write_openi(tmp_path), [f"{name}.png" for name in list(OPENI_LABELS)[1:]])
    cohort = build_source("openi", folder, 0)
    assert (len(cohort), cohort.attrs[NOT_IN_FOLDER]) == (4, 1)
    for image in folder.glob("*.png"):
        image.unlink()
    told = r"^none of the 5 files named in column 'file' of \S+ exists in \S+: set data_root to the folder that h"
    with pytest.raises(StudyError, match=told):
        build_source("openi", folder, 0)


@pytest.mark.parametrize("runs", ["3 4 5", "1 2.5", "-1 4", "10 20 4000 50"])
def test_masks_of_another_convention_are_refused(runs):
    mask = RunLengths("a/1", "Pneumothorax", runs, (64, 60), "masks.csv, line 7")
    with pytest.raises(
        StudyError, match=r"^masks\.csv, line 7: the mask is not told by gaps and lengths of runs down c"
    ):
        mask.read()
