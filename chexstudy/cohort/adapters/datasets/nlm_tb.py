"""NLM tuberculosis radiographs: Shenzhen (``CHNCXR_*``) and Montgomery (``MCUCXR_*``), readings as reports, lung masks.

The last digit of a name says normal (0) or tuberculosis (1). Files are found by these names wherever they lie. Readings
come from ``ClinicalReadings/*.txt`` or a table ``study_id, sex, age, findings``; an image without one gets a
pseudo-report.
"""

import re
from pathlib import Path

import pandas as pd

from chexstudy.cohort.adapters.layout import Download, is_image
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.reports import says_nothing
from chexstudy.cohort.source_annotations import MaskFile
from chexstudy.cohort.table import NO_FINDING, require_columns
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import clean_text
from chexstudy.inputs.tables import read_text_table
from chexstudy.inputs.yaml_files import read_data_beside

TUBERCULOSIS = "Tuberculosis"
# Finding -> how the readings word it; only what is said is a label.
FINDING_WORDS = read_data_beside(__file__)["data"]
_DOUBT = re.compile(
    r"\?|\b(?:possib\w*|probab\w*|suspe\w*|suspic\w*|question\w*|may|might|cannot|likely)\b", re.IGNORECASE
)
_DENIAL = re.compile(r"\b(?:no|not|without|absen\w*|free of|negative)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;.\n]|\bwith\b", re.IGNORECASE)

_IMAGE_NAME = re.compile(r"^(?:CHNCXR|MCUCXR)_\d{4}_[01]$")
_MASK_ENDING = "_mask"
_HALF_MASK_FOLDERS = {"leftMask": "left lung", "rightMask": "right lung"}


def _list_radiographs(download: Download, options: dict[str, str]) -> pd.DataFrame:
    """One row an image: tuberculosis by its name, other findings by its reading; in a normal one all are absent."""
    images = {path.stem: path for path in map(Path, download.files) if _is_radiograph(path)}
    if not images:
        raise StudyError(
            f"{download.folder} holds no radiographs: set data_root to the folder that holds {SPEC.holding}."
        )
    readings = _read_readings(download)
    table = pd.DataFrame(
        [_describe_image(stem, path.name, readings.get(stem, {})) for stem, path in sorted(images.items())], dtype="str"
    )
    table.attrs["readings_without_image"] = len(readings.keys() - images.keys())
    return table


def _describe_image(stem: str, file: str, reading: dict[str, str]) -> dict[str, str | None]:
    has_tuberculosis = stem.endswith("_1")
    text = " ".join(reading.get("findings", "").split())
    text = "" if says_nothing(text) else text
    stated = label_reading(text) if has_tuberculosis else dict.fromkeys(FINDING_WORDS, 0)
    labels = {NO_FINDING: int(not has_tuberculosis), TUBERCULOSIS: int(has_tuberculosis), **stated}
    return {
        "file": file,
        "image": f"{stem}.png",
        "patient": stem.rsplit("_", 1)[0],
        "study": stem,
        # Montgomery is all PA; Shenzhen is frontal and does not say which way for each image.
        "view": "PA" if stem.startswith("MCUCXR") else None,
        "sex": reading.get("sex", "")[:1],
        "age": reading.get("age", ""),
        "reading": text,
        **{finding: None if label is None else str(label) for finding, label in labels.items()},
    }


def label_reading(reading: str) -> dict[str, int | None]:
    """What a reading states of each finding: 1, 0, -1 (doubted) or None; doubt and denial count within their clause."""
    labels: dict[str, int | None] = dict.fromkeys(FINDING_WORDS)
    for clause in _CLAUSE.split(reading):
        for finding, words in FINDING_WORDS.items():
            if re.search(rf"\b(?:{words})", clause, re.IGNORECASE):
                stated = -1 if _DOUBT.search(clause) else 0 if _DENIAL.search(clause) else 1
                labels[finding] = 1 if labels[finding] == 1 else stated
    return labels


def _list_lung_masks(download: Download) -> list[MaskFile]:
    """The lung masks: one picture for both lungs, or one a side, those of an image side by side."""
    masks = []
    for path in map(Path, filter(is_image, download.files)):
        stem = path.stem.removesuffix(_MASK_ENDING)
        if not _is_radiograph(path) and _IMAGE_NAME.match(stem):
            masks.append(
                MaskFile(
                    f"nlm_tb/{stem}.png", _HALF_MASK_FOLDERS.get(path.parent.name, "lungs"), download.folder / path
                )
            )
    return sorted(masks, key=lambda mask: mask.image_id)


def _is_radiograph(path: Path) -> bool:
    is_named_so = is_image(path.name) and _IMAGE_NAME.match(path.stem)
    return bool(is_named_so) and not path.stem.endswith(_MASK_ENDING) and path.parent.name not in _HALF_MASK_FOLDERS


def _read_readings(download: Download) -> dict[str, dict[str, str]]:
    """Stem of the image -> sex, age and findings; a table goes before a text file."""
    paths = [download.folder / name for name in download.files]
    files = (path for path in paths if path.suffix == ".txt" and _IMAGE_NAME.match(path.stem))
    readings = {path.stem: _read_reading_file(path) for path in files}
    for path in (path for path in paths if path.suffix == ".csv"):
        table = read_text_table(path).rename(columns={"gender": "sex"})
        if "study_id" not in table:
            continue
        require_columns(table, ["findings"], path.name)
        for row in table.fillna("").to_dict("records"):
            stem = Path(clean_text(row["study_id"])).stem
            readings[stem] = {name: row.get(name, "").strip() for name in ("sex", "age", "findings")}
    return readings


def _read_reading_file(path: Path) -> dict[str, str]:
    """Shenzhen writes ``male 45yrs``, Montgomery ``Patient's Sex: F`` and ``Patient's Age: 027Y``; then the reading."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    sex = re.search(r"\b(?:sex\W+)?(male|female|[mf])\b", text, re.IGNORECASE)
    age = re.search(r"\b(\d{1,3}\s*(?:y|m|d|w)[a-z]*)", text, re.IGNORECASE)
    is_heading = re.compile(r"^\s*(?:patient'?s\s+(?:sex|age)\b.*|(?:fe)?male\b.*\d.*)$", re.IGNORECASE)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not is_heading.match(line)]
    return {"sex": sex[1] if sex else "", "age": age[1] if age else "", "findings": " ".join(lines)}


SPEC = register(
    __file__,
    read=_list_radiographs,
    is_image=lambda name: _is_radiograph(Path(name)),
    is_own_name=lambda name: _IMAGE_NAME.match(name) is not None,
    list_annotations=_list_lung_masks,
)
