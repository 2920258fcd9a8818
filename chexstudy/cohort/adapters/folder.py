"""Your own data: a folder of images and one table (CSV or Parquet), joined by a mapping of columns.

The mapping is given as options or lies in the folder as ``cohort.yaml``::

    table: labels.csv                  # one row an image; need not be said if the folder holds one table
    images: images                     # where the paths in the table start; the folder itself if not said
    source: my_hospital                # the first part of every image_id
    columns:
      image_path: File
      patient_id: Patient              # or the word none: every image is another patient
      report: [Findings, Impression]   # one column or several; without it, reports are written from the labels
      findings: [Mass, Nodule]         # or {Pleural Effusion: effusion_label}
      outcomes: {death: Died, death_years: Followed}   # optional; columns named outcome_... are taken as they are
      split: Split                     # optional, as are study_id, image_id, view, sex and age_years
    values:                            # optional: how words in the table translate
      labels: {"2": -1, unclear: -1}
      outcomes: {alive at last contact: 0}
      view: {frontal: PA}

``check_folder`` says everything that is wrong at once; ``build_folder`` stops at the first of it. What it has in common
with every data set is in ``manifest.py``.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

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


def build_folder(
    data_root: str | Path,
    seed: int,
    *,
    table: str | None = None,
    images: str | None = None,
    source: str | None = None,
    columns: Mapping[str, object] | None = None,
    values: Mapping[str, Mapping] | None = None,
    fractions: Mapping[str, float] | None = None,
    word_budget: int | None = None,
) -> pd.DataFrame:
    """The cohort of your own folder.

    Args:
        data_root: the folder.
        seed: seed of the split and of pseudo-reports.
        table: the table's name in the folder; not needed if it holds one table only.
        images: the subfolder in which the table's paths start; the folder itself if not given.
        source: the name of the cohort's source; ``folder`` if not given.
        columns: contract column -> column of the table; if not given, ``cohort.yaml`` in the folder is read.
        values: ``split``, ``view``, ``sex``, ``labels`` or ``outcomes`` -> word in the table -> value of the contract.
        fractions: split -> share of patients, where the table has no split.
        word_budget: see :func:`chexstudy.cohort.reports.template_report`.
    """
    given = {"table": table, "images": images, "source": source, "columns": columns, "values": values}
    return check_folder(data_root, seed, **given, fractions=fractions, word_budget=word_budget).require_cohort()


def check_folder(data_root: str | Path, seed: int = 0, **options: object) -> ManifestReport:
    """Build the cohort without raising and say everything that is wrong; same arguments as :func:`build_folder`."""
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
