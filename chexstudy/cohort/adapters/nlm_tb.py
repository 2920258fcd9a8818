"""NLM tuberculosis radiographs: Shenzhen (``CHNCXR_*``) and Montgomery (``MCUCXR_*``), readings as reports, lung masks.

The last digit of a name says normal (0) or tuberculosis (1). Files are found by their official names wherever they lie
under the folder, so the original archives, unpacked side by side, and flat copies work alike. Readings come from
``ClinicalReadings/*.txt`` or from a table ``study_id, sex, age, findings``; an image without a reading gets a
pseudo-report. Source: Jaeger et al. 2014, Candemir et al. 2014 (U.S. National Library of Medicine).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from chexstudy.cohort.adapters.layout import IMAGES_WITHOUT_ROW, list_images, parse_years, require_folder
from chexstudy.cohort.annotations import MaskFile
from chexstudy.cohort.reports import says_nothing, template_report
from chexstudy.cohort.splits import DEFAULT_FRACTIONS, split_patients
from chexstudy.cohort.table import NO_FINDING
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import clean_text
from chexstudy.inputs.tables import read_text_table

TUBERCULOSIS = "Tuberculosis"
# Finding -> how the readings word it, their spelling mistakes included. Only what is said is a label.
FINDING_WORDS = MappingProxyType(
    {
        "Pleural Effusion": r"pleural\W+ef+us+ions?|ef+us+ions?|pleuri[st][yi]s?|hydrothorax|pleural fluid",
        "Pleural Thickening": r"pleural\W+(?:thic?kening|adh?esions?|hypertrophy)|thick\w*\W+pleura\w*",
        "Pneumothorax": r"pneumo\W?thora(?:x|ces)|hydropneumothorax",
        "Atelectasis": r"at+ele?ctas[ie]s|collapsed? lung",
        "Consolidation": r"consolidations?",
        "Infiltration": r"infiltrat\w*",
        "Pneumonia": r"(?:broncho)?pneumonia",
        "Fibrosis": r"fibro(?:sis|us|tic)",
        "Cavity": r"cavit\w*|cavern\w*",
        "Emphysema": r"emphysema\w*",
        "Nodule": r"nodul\w*",
        "Calcification": r"calcif\w*|calcium",
        "Miliary Tuberculosis": r"miliary|ha?ematogenous(?:ly)? dis+eminated",
    }
)
_DOUBT = re.compile(
    r"\?|\b(?:possib\w*|probab\w*|suspe\w*|suspic\w*|question\w*|may|might|cannot|likely)\b", re.IGNORECASE
)
_DENIAL = re.compile(r"\b(?:no|not|without|absen\w*|free of|negative)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;.\n]|\bwith\b", re.IGNORECASE)

IMAGE_NAME = re.compile(r"^(?:CHNCXR|MCUCXR)_\d{4}_[01]$")
_READING_COLUMNS = {"study_id", "findings"}
_HOLDING = "the Shenzhen (CHNCXR_*.png) and Montgomery (MCUCXR_*.png) images"
_MASK_ENDING = "_mask"
_HALF_MASK_FOLDERS = {"leftMask": "left lung", "rightMask": "right lung"}


def build_nlm_tb(data_root: str | Path, seed: int) -> pd.DataFrame:
    """The cohort of both sets, split by patient (each image is one patient) 70/10/20.

    ``Tuberculosis`` and ``No Finding`` come from the names. The other findings are what a reading states: present,
    absent, or uncertain where it doubts; null where it does not speak of them; all absent in a normal radiograph.
    """
    folder = require_folder(data_root, _HOLDING)
    files = [path for path in list_images(folder) if not _is_mask(path)]
    images = {path.stem: path for path in files if IMAGE_NAME.match(path.stem)}
    if not images:
        raise StudyError(f"{folder} holds no radiographs: set data_root to the folder that holds {_HOLDING}.")
    readings = _read_readings(folder)
    rows = [_describe_image(stem, path, readings.get(stem, {}), seed) for stem, path in sorted(images.items())]
    cohort = pd.DataFrame(rows)
    cohort["age_years"] = parse_years(cohort["age_years"])
    findings = [NO_FINDING, TUBERCULOSIS, *FINDING_WORDS]
    cohort = cohort.astype({finding: "Int8" for finding in findings})
    cohort = split_patients(cohort, DEFAULT_FRACTIONS, seed)
    cohort.attrs[IMAGES_WITHOUT_ROW] = len(files) - len(images)
    cohort.attrs["readings_without_image"] = len(readings.keys() - images.keys())
    return cohort


def label_reading(reading: str) -> dict[str, int | None]:
    """What a reading states of each finding: 1, 0, -1 (doubted) or None (not stated).

    Doubt and denial count within their clause; a finding that is stated somewhere as present is present.
    """
    labels: dict[str, int | None] = dict.fromkeys(FINDING_WORDS)
    for clause in _CLAUSE.split(reading):
        for finding, words in FINDING_WORDS.items():
            if re.search(rf"\b(?:{words})", clause, re.IGNORECASE):
                stated = -1 if _DOUBT.search(clause) else 0 if _DENIAL.search(clause) else 1
                labels[finding] = 1 if labels[finding] == 1 else stated
    return labels


def list_lung_masks(folder: Path) -> list[MaskFile]:
    """The lung masks: one picture for both lungs, or one a side, those of an image side by side."""
    masks = []
    for path in list_images(folder):
        stem = path.stem.removesuffix(_MASK_ENDING)
        if _is_mask(path) and IMAGE_NAME.match(stem):
            masks.append(MaskFile(_image_id(stem), _HALF_MASK_FOLDERS.get(path.parent.name, "lungs"), path))
    return sorted(masks, key=lambda mask: mask.image_id)


def _describe_image(stem: str, path: Path, reading: dict[str, str], seed: int) -> dict[str, object]:
    image_id = _image_id(stem)
    has_tuberculosis = int(stem.endswith("_1"))
    text = " ".join(reading.get("findings", "").split())
    text = "" if says_nothing(text) else text
    labels = {NO_FINDING: 1 - has_tuberculosis, TUBERCULOSIS: has_tuberculosis}
    stated = label_reading(text) if has_tuberculosis else dict.fromkeys(FINDING_WORDS, 0)
    return {
        "image_id": image_id,
        "patient_id": f"nlm_tb/{stem.rsplit('_', 1)[0]}",
        "study_id": f"nlm_tb/{stem}",
        "source": "nlm_tb",
        # Montgomery is all PA; Shenzhen is frontal and does not say which way for each image.
        "view": "PA" if stem.startswith("MCUCXR") else "unknown",
        "sex": {"m": "M", "f": "F"}.get(reading.get("sex", "")[:1].lower(), "unknown"),
        "age_years": reading.get("age", ""),
        "image_path": str(path),
        "report": text or template_report(labels, image_id, seed),
        "report_origin": "written" if text else "template",
        **labels,
        **stated,
    }


def _image_id(stem: str) -> str:
    return f"nlm_tb/{stem}.png"


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(_MASK_ENDING) or path.parent.name in _HALF_MASK_FOLDERS


def _read_readings(folder: Path) -> dict[str, dict[str, str]]:
    """Stem of the image -> sex, age and findings; a table goes before a text file."""
    readings = {path.stem: _read_reading_file(path) for path in _find_reading_files(folder)}
    for path in sorted(folder.rglob("*.csv")):
        table = read_text_table(path).rename(columns={"gender": "sex"})
        if "study_id" not in table:
            continue
        missing = _READING_COLUMNS - set(table.columns)
        if missing:
            raise StudyError(f"{path.name} lacks the column {missing.pop()!r}; it has {', '.join(table.columns)}.")
        for row in table.fillna("").to_dict("records"):
            stem = Path(clean_text(row["study_id"])).stem
            readings[stem] = {name: row.get(name, "").strip() for name in ("sex", "age", "findings")}
    return readings


def _find_reading_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.txt")) if IMAGE_NAME.match(path.stem))


def _read_reading_file(path: Path) -> dict[str, str]:
    """Shenzhen writes ``male 45yrs``, Montgomery ``Patient's Sex: F`` and ``Patient's Age: 027Y``; then the reading."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    sex = re.search(r"\b(?:sex\W+)?(male|female|[mf])\b", text, re.IGNORECASE)
    age = re.search(r"\b(\d{1,3}\s*(?:y|m|d|w)[a-z]*)", text, re.IGNORECASE)
    is_heading = re.compile(r"^\s*(?:patient'?s\s+(?:sex|age)\b.*|(?:fe)?male\b.*\d.*)$", re.IGNORECASE)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not is_heading.match(line)]
    return {"sex": sex[1] if sex else "", "age": age[1] if age else "", "findings": " ".join(lines)}
