"""Public data sets in their owners' layouts, drawn: what `make cohorts` joins where nothing was downloaded.

    python tests/official_layouts.py FOLDER         a folder a data set, and FOLDER/cohort.yaml, which joins them

The folders are those of the adapters' tests, with a few rows in the official form and every trap, repeated with other
patients. Their images become radiographs of the phantom that show, as far as it can, what the tables say of them.
"""

import gzip
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import test_adapters_brax_chestdr as brax_chestdr
import test_adapters_chexpert as chexpert
import test_adapters_cxr_lt as cxr_lt
import test_adapters_masks as masks
import test_adapters_mimic_cxr as mimic_cxr
import test_adapters_nih as nih
import test_adapters_nlm_tb as nlm_tb
import test_adapters_reports as reports
import test_adapters_rexgradient as rexgradient
import test_adapters_vindr as vindr
import yaml
from PIL import Image
from test_dicom import make_dicom, to_bytes

from chexstudy.cohort.adapters import build_source
from chexstudy.cohort.adapters.manifest import DATASETS
from chexstudy.cohort.phantom.case import Case
from chexstudy.cohort.phantom.drawing import draw_radiograph
from chexstudy.cohort.phantom.population import PREVALENCE, simulate_enriched_cases
from chexstudy.cohort.pseudo_reports import TemplateRules, template_report
from chexstudy.cohort.table import finding_columns
from chexstudy.inputs.yaml_files import read_yaml
from chexstudy.paths import REPOSITORY
from chexstudy.progress import progress

PAPER = REPOSITORY / "data" / "paper_cohort.yaml"
COPIES = 6
_SIDE = 64
_TABLES = (".csv", ".gz", ".json", ".tsv", ".txt", ".xml")


@dataclass(frozen=True)
class Layout:
    """A data set's folder as its adapter's test writes it."""

    write: Callable[[Path], Path]  # into a folder; returns the folder that the adapter reads
    # Patterns in names and tables -> what stands there for the copy ``n``, so that its patients and images are others.
    # Without any there is one copy.
    marks: Mapping[str, str] = field(default_factory=dict)


_OF_CHEXPERT = {r"patient\d{3}(?=\d\d)": "patient{n:03d}"}
_OF_MIMIC = {r"(?<=[15]9)999(?=\d{3})": "{n:03d}", "a1b2c3d(?=-4e5f)": "a1b2{n:03d}"}
_OF_VINDR = {"9a9b9c9d9e9f": "9a9b9c9d{n:04d}"}


def _write_openi(folder: Path) -> Path:
    return reports.save_images(reports.write_openi(folder), [f"NLMCXR_png/{name}.png" for name in reports.OPENI_LABELS])


def _write_cxr_lt(folder: Path) -> Path:
    """With all its images held out, so that its patients meet those that MIMIC-CXR trains on."""
    return cxr_lt.make_folder(folder, {"cxr-lt-2023/test.csv": cxr_lt.list_lines(cxr_lt.ROWS, cxr_lt.OF_2023)})


def _write_rsna(folder: Path) -> Path:
    """With images of a patient whom NIH's has too, by the owner's file that maps the names."""
    mapping = next(masks.make_rsna(folder).glob("*mappings*"))
    mapping.write_text(mapping.read_text().replace("00000014", "00000001"))
    return folder


LAYOUTS = {
    "chexpert_plus": Layout(chexpert.make_plus, _OF_CHEXPERT),
    "mimic_cxr": Layout(mimic_cxr.make_folder, _OF_MIMIC),
    "padchest": Layout(reports.write_padchest, {"_abc(?=.png)": "_{n:03x}", r"(?<=[,S])P(?=\d,)": "P{n}0"}),
    "openi": Layout(_write_openi, {r"CXR(?=\d)": "CXR{n}00", r"(?<=radiology/)(?=\d+\.xml)": "{n}00"}),
    "bimcv_covid19": Layout(reports.write_bimcv, {"(?<=sub-S)09|(?<=ses-E)09": "{n:02d}"}),
    "casia_cxr": Layout(
        reports.write_casia,
        {r"(?<=[an]_)00(?=\d\d\b)": "{n:02d}", r"(?<=,)P(?=\d,)": "P{n}0", r"(?m)^E(?=\d,)": "E{n}0"},
    ),
    "candid_ptx": Layout(reports.write_candid, {r"1\.2\.826\.": "1.2.826.{n}", r"P9(?=\d{3}_)": "P{n}9"}),
    "rexgradient": Layout(rexgradient.make_folder),
    "brax": Layout(brax_chestdr.make_brax, {"(?<=[,_])9(?=[a-d][,/])": "{n}9", r"image-(?=\d)": "image-{n}0"}),
    "chestdr": Layout(brax_chestdr.make_chestdr, {"9E9F": "9E{n:02d}"}),
    "nih": Layout(
        nih.make_folder,
        {r"0{7}(?=\d_)": "{n:05d}00", r"(?<=\.png)(,[^,]*,\d+,)(?=\d,)": r"\g<1>{n}00"},
    ),
    "vindr_cxr": Layout(vindr.make_folder, _OF_VINDR),
    "vindr_pcxr": Layout(vindr.make_children, _OF_VINDR),
    # Judged on, and some of it trained on above.
    "cxr_lt_2023": Layout(_write_cxr_lt),
    "chexpert_5x200": Layout(lambda folder: chexpert.make_5x200(chexpert.make_plus(folder))),
    "rsna_pneumonia": Layout(_write_rsna),
    "nlm_tb": Layout(nlm_tb.make_flat_folder, {"CXR_00(?=0)": "CXR_{n:02d}"}),
}


def write_layouts(root: Path, copies: int = COPIES) -> Path:
    """Write every data set of `LAYOUTS` under a folder; returns the manifest that joins them."""
    entries = read_yaml(PAPER, "the manifest")["sources"]
    # Official test images of a set that is trained on are judged on too.
    judged = [
        {"source": source, "role": "evaluate"} for source in LAYOUTS if source not in {e["source"] for e in entries}
    ]
    entries = [entry | ({"role": "both"} if entry["source"] == "vindr_cxr" else {}) for entry in entries] + judged
    cases = simulate_enriched_cases(2000, PREVALENCE, np.random.default_rng(0), positives=20)
    drawn: dict[str, np.ndarray] = {}
    for entry in progress(entries, label="data sets"):
        source = entry["source"]
        shutil.rmtree(root / source, ignore_errors=True)
        write_copies(LAYOUTS[source], root / source, copies)
        cohort = build_source(source, root / source, 0)
        _draw_images(cohort, cases, drawn)
        if DATASETS[source].language != "en":
            entry["translations"] = f"{source}_in_english.csv"
            _write_translations(cohort, root / entry["translations"])
    manifest = root / "cohort.yaml"
    manifest.write_text(yaml.safe_dump({"sources": entries}, sort_keys=False))
    return manifest


def write_copies(layout: Layout, folder: Path, copies: int) -> None:
    """Write a data set with each row and image so many times, each time of other patients; tables become longer."""
    for number in range(copies if layout.marks else 1):
        with tempfile.TemporaryDirectory() as place:
            start = layout.write(Path(place))
            for file in filter(Path.is_file, start.rglob("*")):
                target = folder / _rename(str(file.relative_to(start)), layout.marks, number)
                target.parent.mkdir(parents=True, exist_ok=True)
                if file.suffix in _TABLES:
                    has_header = target.exists() and file.suffix != ".json"
                    open_table = gzip.open if file.suffix == ".gz" else open
                    with open_table(file, "rt", encoding="utf-8") as lines:
                        table = _rename(lines.read(), layout.marks, number)
                    with open_table(target, "at", encoding="utf-8") as lines:
                        lines.write(table.partition("\n")[2] if has_header else table)
                        lines.write("" if table.endswith("\n") else "\n")
                else:
                    shutil.copyfile(file, target)


def _rename(text: str, marks: Mapping[str, str], number: int) -> str:
    for pattern, new in marks.items() if number else ():
        text = re.sub(pattern, new.format(n=number), text)
    return text


def _draw_images(cohort: pd.DataFrame, cases: list[Case], drawn: dict[str, np.ndarray]) -> None:
    """Draw for each study the case that comes nearest to its labels; one image of two data sets is one radiograph."""
    shown: dict[str, Case] = {}
    owners = cohort.patient_id.str.partition("/")[0]
    names = owners + "/" + cohort.image_id.str.partition("/")[2].str.removesuffix(".jpg")
    findings = [name for name in finding_columns(cohort) if name in PREVALENCE]
    images = zip(names, cohort.study_id, cohort.image_path, cohort[findings].iterrows(), strict=True)
    for name, study, path, (_, row) in images:
        if study not in shown:
            present = set(row.index[row.eq(1).fillna(False)])
            nearest = min(cases, key=lambda case: len(present ^ {lesion.finding for lesion in case.lesions}))
            cases.remove(nearest)
            shown[study] = nearest
        if name not in drawn:
            drawn[name] = draw_radiograph(replace(shown[study], seed=len(drawn)), _SIDE).pixels
        _replace_pixels(path, drawn[name])


def _replace_pixels(path: str, pixels: np.ndarray) -> None:
    if pydicom.misc.is_dicom(path):
        told = pydicom.dcmread(path)
        tags = {name: told[name].value for name in ("PatientSex", "PatientAge", "ViewPosition") if name in told}
        Path(path).write_bytes(to_bytes(make_dicom(pixels, **tags)))
    else:
        with Image.open(path) as image:
            ending = image.format
        Image.fromarray(pixels).save(path, ending)


def _write_translations(cohort: pd.DataFrame, path: Path) -> None:
    """A table such as a user brings; its texts are written from the labels."""
    written = cohort[cohort.report_origin == "written"]
    labels = written[finding_columns(cohort)].to_dict("records")
    texts = [template_report(row, name, 0, TemplateRules()) for row, name in zip(labels, written.image_id, strict=True)]
    pd.DataFrame({"id": written.image_id, "text": texts}).to_csv(path, index=False)


if __name__ == "__main__":
    print(write_layouts(Path(sys.argv[1])))
