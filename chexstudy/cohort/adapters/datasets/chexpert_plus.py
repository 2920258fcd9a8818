"""CheXpert Plus: the images of CheXpert as DICOM or PNG, with their reports and labels that were read from these.

The labels of the impression alone are the most, and the default: those of the whole report tell what the findings say
too.
"""

import pandas as pd

from chexstudy.cohort.adapters.datasets.chexpert_paths import read_paths, tell_ages, tell_views
from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.table import require_columns
from chexstudy.errors import StudyError

_PATH = "path_to_image"
_COLUMNS = (_PATH, "ap_pa", "age", "report", "section_findings", "section_impression")


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    # Columns of these names become sections of the report; the whole one is taken where both are silent.
    table = download.read(columns=_COLUMNS).rename(columns=lambda name: name.removeprefix("section_"))
    told = read_paths(table[_PATH], download.table.name)
    is_silent = table["findings"].isna() & table["impression"].isna()
    table = table.assign(
        report=table["report"].where(is_silent), age=tell_ages(table["age"]), ap_pa=tell_views(table["ap_pa"], told)
    ).join(told.assign(image=told["image"].str.rpartition(".")[0]))
    findings = SPEC.columns["findings"]
    if options["labels"] == "none":
        return table.reindex(columns=[*table, *findings])
    labels = _read_labels(download, f"{options['labels']}_fixed.json").reindex(table["image"])
    table = table.join(labels.set_axis(table.index))
    table.attrs["images_without_labels"] = int(labels.isna().all(axis=1).sum())
    return table


def _read_labels(download: Download, name: str) -> pd.DataFrame:
    """The labels of the images, one JSON object a line, by their names."""
    path = download.find(name)
    if path is None:
        raise StudyError(
            f"{download.folder} has no {name}, which holds the labels: fetch it, or choose the option labels none."
        )
    try:
        table = pd.read_json(path, lines=True)
    except (ValueError, OSError, EOFError):
        raise StudyError(f"{path} is not one JSON object a line, or is cut short: fetch it again.") from None
    table.index = pd.RangeIndex(1, len(table) + 1, name="line")
    require_columns(table, (_PATH, *SPEC.columns["findings"]), path.name)
    images = read_paths(table[_PATH], path.name)["image"].str.rpartition(".")[0]
    if images.duplicated().any():
        raise StudyError(f"{path.name}: line {images.duplicated().idxmax()} is of an image that has one already.")
    return table.set_index(images)[SPEC.columns["findings"]]


SPEC = register(__file__, read=_read_table)
