"""SIIM-ACR Pneumothorax: a row a mask, told by gaps and lengths of runs down the columns; no patient is told.

Where the images are DICOM, view, sex and age come from their headers.
"""

import pandas as pd

from chexstudy.cohort.adapters.layout import Download, read_headers
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import RunLengths
from chexstudy.inputs.tables import name_place

_IMAGE, _RUNS, _NO_MASK = "ImageId", "EncodedPixels", "-1"
_PICTURE = (1024, 1024)


def _read_rows(download: Download) -> pd.DataFrame:
    """A row a mask; the official header has a blank before its second name, and cells have some too."""
    masks = download.read(columns=[_IMAGE, _RUNS])
    return masks.assign(**{_RUNS: masks[_RUNS].str.strip()})


def _keep_masks(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows[_RUNS].notna() & rows[_RUNS].ne(_NO_MASK)]


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    masks = _read_rows(download)
    table = masks[[_IMAGE]].drop_duplicates()
    table = table.assign(Pneumothorax=table[_IMAGE].isin(_keep_masks(masks)[_IMAGE]).map({True: "1", False: "0"}))
    told = read_headers(download, table[_IMAGE], ("ViewPosition", "PatientSex", "PatientAge"))
    return table.join(pd.DataFrame(told, table.index, ["view", "sex", "age"], dtype="str"))


def _list_masks(download: Download) -> list[RunLengths]:
    masks = _keep_masks(_read_rows(download))
    listed = [
        RunLengths(
            f"siim_acr/{image}",
            "Pneumothorax",
            runs,
            _PICTURE,
            f"{download.table.name}, {name_place(masks.index, number)}",
        )
        for number, (image, runs) in enumerate(zip(masks[_IMAGE], masks[_RUNS], strict=True))
    ]
    return sorted(listed, key=lambda mask: mask.image_id)


register(__file__, read=_read_table, list_annotations=_list_masks)
