"""PLCO's chest radiographs: images, screens and persons in three tables, deaths and lung cancers with their times."""

import pandas as pd

from chexstudy.cohort.adapters.datasets.trial_tables import join_table, tell_age, tell_outcome
from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.table import require_columns

_PERSON, _YEAR, _VISIT, _FILE = "plco_id", "study_yr", "visnum", "image_file_name"
_SCREEN_TIME, _QUALITY = "xry_days", "xry_result"
_INADEQUATE = 4
_PERSON_NUMBERS = ("age", "lung_cancer", "lung_cancer_diagdays", "mortality_exitdays", "mortality_exitstat")
_DIED = 1  # of mortality_exitstat


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    # The table of links and that of images name the screen in two ways.
    table = download.read().rename(columns={"assoc_visit_syr": _YEAR, "assoc_visit_visnum": _VISIT})
    require_columns(table, (_PERSON, _YEAR, _FILE), download.table.name)
    # Letter case differs between tables and files.
    table = table.filter((_PERSON, _YEAR, _VISIT, _FILE)).assign(**{_FILE: table[_FILE].str.lower()})
    numbers = (_SCREEN_TIME, _QUALITY)
    columns = (*numbers, *SPEC.columns["findings"].values())
    table = join_table(table, download, "lung_screen_data_*.csv", (_PERSON, _YEAR), columns, numbers, (_VISIT,))
    columns = (*_PERSON_NUMBERS, "sex")
    table = join_table(table, download, "lung_data_*.csv", (_PERSON,), columns, _PERSON_NUMBERS)
    is_adequate = table[_QUALITY] != _INADEQUATE
    table = table[is_adequate]
    image, end, cancer = table[_SCREEN_TIME], table["mortality_exitdays"], table["lung_cancer"]
    died = (table["mortality_exitstat"] == _DIED).astype("float").where(table["mortality_exitstat"].notna())
    table = table.assign(
        study=table[_PERSON] + "_" + table[_YEAR],
        age=tell_age(table["age"], image),
        **tell_outcome("death", died, end, image),
        **tell_outcome("lung_cancer", cancer, end.where(cancer != 1, table["lung_cancer_diagdays"]), image),
    )
    table.attrs["inadequate_images_left_out"] = int((~is_adequate).sum())
    return table


SPEC = register(__file__, read=_read_table)
