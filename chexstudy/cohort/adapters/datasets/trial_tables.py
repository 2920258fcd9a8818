"""What screening trials tell in tables of persons and screens: ages and outcomes, in days since a person was enrolled.

Their tables come from SAS: ``.``, ``.N`` and the like say why a value is missing, and are none.
"""

from collections.abc import Container, Sequence

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.table import OUTCOME_PREFIX, YEARS_SUFFIX, tell_first
from chexstudy.errors import StudyError
from chexstudy.inputs.tables import name_place

_DAYS_A_YEAR = 365.25
_MISSING = r"\s*\.[A-Za-z_]?\s*"


def join_table(
    table: pd.DataFrame,
    download: Download,
    name: str,
    keys: Sequence[str],
    columns: Sequence[str],
    numbers: Container[str],
    further_keys: Sequence[str] = (),
) -> pd.DataFrame:
    """The table with columns of another, ``numbers`` as such, by unique keys and the further ones both have."""
    other, origin = download.read(name, columns=[*keys, *columns]), download.require(name).name
    keys = [*keys, *(key for key in further_keys if key in table and key in other)]
    other = other[[*keys, *columns]]
    other = other.mask(other.apply(lambda cells: cells.str.fullmatch(_MISSING, na=False)))
    other = other.apply(lambda cells: _read_numbers(cells, origin) if cells.name in numbers else cells)
    told = f"column{'s' * (len(keys) > 1)} {', '.join(map(repr, keys))}"
    repeated = other.duplicated(keys).to_numpy()
    if repeated.any():
        place = name_place(other.index, int(repeated.argmax()))
        raise StudyError(f"{origin}: {place} repeats what another row holds in {told}: give each its own row.")
    joined = table.merge(other.assign(**{origin: True}), "left", on=keys).set_axis(table.index)
    if joined.pop(origin).isna().all():
        raise StudyError(f"{origin} has no row of any image by {told}: check that the tables are of one delivery.")
    return joined


def _read_numbers(cells: pd.Series, origin: str) -> pd.Series:
    numbers = pd.to_numeric(cells, errors="coerce")
    for problem in tell_first(cells.notna() & numbers.isna(), cells, origin, "; expected a number."):
        raise StudyError(problem)
    return numbers


def tell_age(age: pd.Series, days: pd.Series) -> pd.Series:
    """The age at the image, from that at enrolment and the days since."""
    return (age + days / _DAYS_A_YEAR).astype("str")


def tell_outcome(name: str, happened: pd.Series, end: pd.Series, image: pd.Series) -> dict[str, pd.Series]:
    """The columns of an outcome: whether it happened, and the years from image to event or end of observation.

    ``happened`` is 1, 0 or NaN, ``end`` and ``image`` days since enrolment; what came before the image is unknown.
    """
    years = (end - image) / _DAYS_A_YEAR
    known = happened.notna() & (years > 0)
    event = f"{OUTCOME_PREFIX}{name}"
    told = {event: happened.astype("Int8"), f"{event}{YEARS_SUFFIX}": years}
    return {column: cells.astype("str").where(known) for column, cells in told.items()}
