"""CXR-LT 2023: MIMIC-CXR split anew, with labels of more findings, each stated; reports where MIMIC-CXR's lie there."""

from collections.abc import Mapping, Sequence

import pandas as pd

from chexstudy.cohort.adapters.datasets.mimic_cxr import VIEW_CODES, complete_images
from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.table import require_columns


def read_challenge(
    download: Download, tables: Mapping[str, Sequence[str]], labels: Sequence[str], renamed: Mapping[str, str]
) -> pd.DataFrame:
    """The images of those tables that are there, one a split; a table may be without labels, not without some."""
    parts = []
    for split, names in tables.items():
        if (path := download.find(*names)) is not None:
            part = download.read_each(path.name, columns=["dicom_id", "subject_id", "study_id", *VIEW_CODES])
            part = part.rename(columns=renamed)
            stated = labels if set(labels) & set(part.columns) else []
            require_columns(part, stated, path.name)
            parts.append(part[["dicom_id", "subject_id", "study_id", *VIEW_CODES, *stated]].assign(split=split))
    if not parts:
        download.require(*(name for names in tables.values() for name in names))
    return complete_images(pd.concat(parts), download)


def _read_tables(download: Download, options: dict[str, str]) -> pd.DataFrame:
    tables = zip(("train", "validate", "test"), SPEC.tables, strict=True)
    return read_challenge(download, {split: [name] for split, name in tables}, SPEC.columns["findings"], {})


SPEC = register(__file__, read=_read_tables)
