"""Your own data: a folder of images and one table (CSV or Parquet), joined by a mapping of columns.

The mapping is given as options or lies in the folder as ``cohort.yaml``::

    table: labels.csv                  # one row an image; need not be said if the folder holds one table
    images: images                     # where the paths in the table start; the folder itself if not said
    source: my_hospital                # the first part of every image_id
    columns:
      image_path: File
      patient_id: Patient              # or the word none: every image is another patient
      report: [Findings, Impression]   # one column or several; without it, reports are written from the labels, if any
      findings: [Mass, Nodule]         # or {Pleural Effusion: effusion_label}
      outcomes: {death: Died, death_years: Followed}   # optional; columns named outcome_... are taken as they are
      split: Split                     # optional, as are study_id, image_id, view, sex and age_years
    values:                            # optional: how words in the table translate
      labels: {"2": -1, unclear: -1}
      outcomes: {alive at last contact: 0}
      view: {frontal: PA}

What it has in common with every data set is in ``manifest.py``.
"""

from collections.abc import Mapping
from pathlib import Path

from chexstudy.cohort.adapters.column_mapping import (
    MAPPING_FILE,
    REQUIRED,
    ColumnMapping,
    check_mapping,
    read_mapping_file,
)
from chexstudy.cohort.adapters.layout import ImageFinder, require_folder
from chexstudy.cohort.adapters.manifest import ManifestReport, check_manifest
from chexstudy.errors import StudyError
from chexstudy.inputs.tables import is_table, read_text_table

_HOLDING = "the images and their table"


def check_folder(data_root: str | Path, seed: int = 0, **options: object) -> ManifestReport:
    """The cohort of your own folder; everything that is wrong is said at once and not raised.

    Options are entries of the mapping; without ``columns``, ``cohort.yaml`` is read, and they go before what it says.
    """
    try:
        folder = require_folder(data_root, _HOLDING)
        mapping = _read_mapping(folder, options)
        path = _find_table(folder, mapping)
        table = read_text_table(path)
    except StudyError as error:
        return ManifestReport((str(error),))
    return check_manifest(table, mapping, path.name, ImageFinder(folder / mapping.images), seed)


def _read_mapping(folder: Path, options: Mapping[str, object]) -> ColumnMapping:
    options = {name: value for name, value in options.items() if value is not None}
    path = folder / MAPPING_FILE
    if "columns" not in options:
        if not path.is_file():
            raise StudyError(
                f"no columns were given and {folder} has no {MAPPING_FILE}: say which column of the table holds "
                f"{' and which '.join(REQUIRED)}."
            )
        options = read_mapping_file(path) | options
    return check_mapping(options)


def _find_table(folder: Path, mapping: ColumnMapping) -> Path:
    if mapping.table:
        return folder / mapping.table
    tables = sorted(path for path in folder.iterdir() if is_table(path.name) and not path.name.startswith("."))
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise StudyError(f"{folder} must hold one CSV or Parquet table, or 'table' must name it (found: {found}).")
    return tables[0]
