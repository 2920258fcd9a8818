"""CANDID-PTX: DICOM files without endings, free reports, and a row a mask of pneumothorax, chest tube and rib fracture.

An image that the table gives to several patients is left out: no split could keep it apart.
"""

import os
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexstudy.cohort.adapters.layout import Download, is_image
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import RunLengths, list_runs
from chexstudy.cohort.table import require_columns
from chexstudy.inputs.yaml_files import read_data_beside

_MASKS = read_data_beside(__file__)["data"]["masks"]
_IMAGE, _RUNS, _NO_MASK = "SOPInstanceUID", "EncodedPixels", "-1"
_UID = re.compile(r"\d+(?:\.\d+)+")


def _read_tables(download: Download, options: dict[str, str]) -> pd.DataFrame:
    """One row an image: present is what has a mask, absent what has none where the tables would hold it."""
    rows = download.read(columns=[_IMAGE, _RUNS, "Report", "StudyInstanceUID", "filename"])
    # P123_a is of patient 123.
    rows["patient"] = rows["filename"].str.extract(r"^P?([^_]+)", expand=False)
    masks = rows[_RUNS].str.strip()
    rows["Pneumothorax"] = masks.ne(_NO_MASK).where(masks.notna())
    same = rows.groupby(_IMAGE)
    of_one, is_first = same["patient"].transform("nunique") <= 1, ~rows[_IMAGE].duplicated()
    rows = rows.assign(Report=same["Report"].transform("first"), Pneumothorax=same["Pneumothorax"].transform("max"))
    table = rows[of_one & is_first].copy()
    for finding, names in _MASKS.items():
        masks = _read_masks(download, names)
        table[finding] = None if masks is None else table[_IMAGE].isin(masks[_IMAGE])
    table.attrs["images_under_several_patients_left_out"] = int((~of_one & is_first).sum())
    return table


def _read_masks(download: Download, names: Sequence[str]) -> pd.DataFrame | None:
    """The images and masks of a table whose columns go by several names; None if it is not there."""
    if download.find(*names) is None:
        return None
    masks = download.read(*names)
    image = next((name for name in masks if "sop" in name.lower()), "anon_SOPUID")
    runs = next((name for name in masks if "rle" in name.lower() or "pixels" in name.lower()), "mask_rle")
    require_columns(masks, [image, runs], names[0])
    return masks.rename(columns={image: _IMAGE, runs: _RUNS})


def _list_masks(download: Download) -> list[RunLengths]:
    """The masks of all three findings, those of an image side by side."""
    listed = []
    for finding, names in {"Pneumothorax": SPEC.tables, **_MASKS}.items():
        masks = _read_masks(download, names)
        if masks is None:
            continue
        masks = masks[masks[_RUNS].notna() & masks[_RUNS].str.strip().ne(_NO_MASK)]
        listed += list_runs("candid_ptx/" + masks[_IMAGE], finding, masks[_RUNS].map(_tell_gaps), names[0])
    return sorted(listed, key=lambda mask: mask.image_id)


def _tell_gaps(runs: str) -> str:
    """Runs by the gaps before them; which tables tell starts instead is not documented, but no gap is that long."""
    numbers = np.array([int(word) if word.isdecimal() else -1 for word in runs.split()])
    starts, lengths = numbers[: len(numbers) // 2 * 2 : 2], numbers[1::2]
    gaps = starts - np.append(0, starts + lengths)[:-1]
    is_gaps = len(numbers) % 2 or (gaps < 0).any()
    return runs if is_gaps else " ".join(map(str, np.stack([gaps, lengths], axis=1).ravel()))


def _is_radiograph(name: str) -> bool:
    return is_image(name) or _UID.fullmatch(os.path.basename(name)) is not None


SPEC = register(__file__, read=_read_tables, is_image=_is_radiograph, list_annotations=_list_masks)
