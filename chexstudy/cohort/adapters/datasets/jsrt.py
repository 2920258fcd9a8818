"""JSRT: raw 12-bit radiographs, and lists without a header whose records sometimes run together."""

import re

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import Box
from chexstudy.errors import StudyError

_WITH_NODULE, _WITHOUT = "CLNDAT_EN.txt", "CNNDAT_EN.TXT"
_RECORD = re.compile(r"(?=JPC[LN]N\d{3}\.IMG)", re.IGNORECASE)
_IMAGE = re.compile(r"(?:.*/)?JPC[LN]N\d{3}\.\w+", re.IGNORECASE)
_SIDE = 2048  # pixels


def _read_records(download: Download, name: str, words: int) -> list[list[str]]:
    """The words of each record: name of the image, then what is told of it."""
    path = download.require(name)
    records = [record.split() for record in _RECORD.split(path.read_text(encoding="latin-1")) if record.strip()]
    for number, record in enumerate(records):
        if len(record) < words or not _IMAGE.fullmatch(record[0]):
            raise StudyError(
                f"{path.name}: record {number + 1} does not begin with the name of an image and {words - 1} words on "
                "it: take the list as the JSRT ships it."
            )
    return records


def _read_lists(download: Download, options: dict[str, str]) -> pd.DataFrame:
    rows = [
        (image[:8].upper(), age, sex, "0", "1", str(int("malignant" in [word.lower() for word in rest])))
        for image, _, _, age, sex, _, _, *rest in _read_records(download, _WITH_NODULE, 8)
    ]
    rows += [
        (image[:8].upper(), age, sex, "1", "0", "0") for image, age, sex, *_ in _read_records(download, _WITHOUT, 3)
    ]
    table = pd.DataFrame(rows, columns=["image", "age", "sex", *SPEC.columns["findings"]], dtype="str")
    table.index.name = "record"
    return table.assign(view="PA")


def _list_nodules(download: Download) -> list[Box]:
    """The square about each nodule's circle, of its diameter in millimetres."""
    boxes = []
    for image, _, diameter, _, _, x, y, *_ in _read_records(download, _WITH_NODULE, 8):
        side = float(diameter) * _SIDE / SPEC.width_mm
        box = (float(x) - side / 2, float(y) - side / 2, side, side)
        boxes.append(Box(f"jsrt/{image[:8].upper()}", "Nodule", box, (_SIDE, _SIDE)))
    return boxes


SPEC = register(
    __file__, read=_read_lists, is_image=lambda name: bool(_IMAGE.fullmatch(name)), list_annotations=_list_nodules
)
