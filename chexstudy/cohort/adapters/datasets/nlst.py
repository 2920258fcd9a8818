"""NLST's chest radiographs: names of files tell person and date, a table of persons deaths and lung cancers.

How they are delivered is not public: names are known to begin with the person's number, ``CR`` and the date, and what
differs is refused. Projections of CT scans are no radiographs.
"""

import pandas as pd

from chexstudy.cohort.adapters.datasets.trial_tables import join_table, tell_age, tell_outcome
from chexstudy.cohort.adapters.layout import Download, is_image
from chexstudy.cohort.adapters.manifest import register
from chexstudy.errors import StudyError

_NAME = r"(?:^|/)(?P<file>(?P<pid>\d{6})_CR_(?P<date>(?P<year>\d{4})-\d\d-\d\d)_[^/]*)$"
# Dates were moved so that each of the three screens has its year (from memory).
_SCREENS = {"1999": "scr_days0", "2000": "scr_days1", "2001": "scr_days2"}
_NUMBERS = ("age", *_SCREENS.values(), "candx_days", "fup_days", "deathstat")
# By how much the last word of the living is older than the end of follow-up, on average in this arm (user guide).
_LAG_DAYS = 58.7590


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    files = pd.Series(list(filter(is_image, download.files)), dtype="str")
    table = files.str.extract(_NAME).dropna().reset_index(drop=True)
    if table.empty:
        raise StudyError(
            f"none of the {len(files)} images of {download.folder} is named like 123456_CR_2000-01-01_….dcm, by which "
            "persons and screens are told: set data_root to the folder that holds the radiographs as delivered."
        )
    if not table["year"].isin(list(_SCREENS)).all():
        raise StudyError(
            f"{download.folder} holds images that by their names are not of {', '.join(_SCREENS)}, the years of the "
            "three screens: times from an image to an outcome cannot be told."
        )
    table = join_table(table, download, "nlst_*_prsn*.csv", ("pid",), (*_NUMBERS, "gender"), _NUMBERS)
    days = sum(table[name].where(table["year"] == year, 0) for year, name in _SCREENS.items())
    died = (table["deathstat"] > 0).astype("float").where(table["deathstat"].notna())
    end = table["fup_days"] - (died == 0) * _LAG_DAYS
    has_cancer = table["candx_days"].notna().astype("float").where(table["fup_days"].notna())
    table = table.assign(
        study=table["pid"] + "_" + table["date"],
        age=tell_age(table["age"], days),
        **tell_outcome("death", died, end, days),
        **tell_outcome("lung_cancer", has_cancer, table["candx_days"].fillna(table["fup_days"]), days),
    )
    table.attrs["images_of_a_screen_that_the_table_lacks"] = int(days.isna().sum())
    return table


SPEC = register(__file__, read=_read_table)
