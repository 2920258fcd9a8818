"""SIIM-ACR Pneumothorax: a row a mask, told by gaps and lengths of runs down the columns; no patient is told.

Where the images are DICOM, view, sex and age come from their headers.
"""

import pandas as pd

from chexstudy.cohort.adapters.layout import WHO, Download, read_headers
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import RunLengths, list_runs

_IMAGE, _RUNS, _NO_MASK = "ImageId", "EncodedPixels", "-1"


def _read_rows(download: Download) -> pd.DataFrame:
    """A row a mask; the official header has a blank before its second name, and cells have some too."""
    masks = download.read(columns=[_IMAGE, _RUNS])
    return masks.assign(**{_RUNS: masks[_RUNS].str.strip()})


def _keep_masks(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows[_RUNS].notna() & rows[_RUNS].ne(_NO_MASK)]


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    masks = _read_rows(download)
    table = masks[[_IMAGE]].drop_duplicates()
    table = table.assign(Pneumothorax=table[_IMAGE].isin(_keep_masks(masks)[_IMAGE]))
    return table.join(read_headers(download, table[_IMAGE], WHO))


def _list_masks(download: Download) -> list[RunLengths]:
    masks = _keep_masks(_read_rows(download))
    listed = list_runs("siim_acr/" + masks[_IMAGE], "Pneumothorax", masks[_RUNS], download.table.name)
    return sorted(listed, key=lambda mask: mask.image_id)


register(__file__, read=_read_table, list_annotations=_list_masks)
