"""Rows of the results table as figures need them: chosen, and seeds put together.

Rows of one seed have ``seed >= 0``; a row over all seeds of an arm has ``seed = -1`` and the interval of all.
"""

import numpy as np
import pandas as pd

from chexstudy.cohort.splits import choose_main_test_set
from chexstudy.errors import StudyError
from chexstudy.results import OVER_SEEDS

_KEYS = [*("arm", "variant", "reference", "head", "setting", "group"), *("task", "data_set", "finding", "metric")]
# Where several prompt settings were measured and only one can be drawn.
_PREFERRED_SETTINGS = ("chosen", "published")


def select_rows(results: pd.DataFrame, task: str, **wanted: object) -> pd.DataFrame:
    """Rows of a task that have a value, with further columns equal to a value or among several."""
    chosen = (results.task == task) & results.value.notna()
    for column, values in wanted.items():
        if values is not None:
            chosen &= results[column].isin([values] if isinstance(values, str | int) else list(values))
    return results[chosen].reset_index(drop=True)


class NothingToDraw(StudyError):
    """What a figure shows was not measured."""


def require_rows(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """The rows, if there are any to draw."""
    if rows.empty:
        raise NothingToDraw(f"there is nothing to draw without {what}")
    return rows


def summarise_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each arm and measurement: the one over all seeds if there is one, else the only seed's.

    Without a row over several seeds, the value is their mean and has no interval: intervals of single seeds cannot be
    put together afterwards.

    Gives what tells measurements apart, ``value, ci_low, ci_high, n, positives, exposure`` and ``seeds``.
    """
    summaries, keys = [], [name for name in _KEYS if name in rows]
    for _, group in rows.groupby(keys, sort=False):
        of_seeds = group[group.seed != OVER_SEEDS]
        over_seeds = group[group.seed == OVER_SEEDS]
        row = (over_seeds if len(over_seeds) else of_seeds).iloc[0].copy()
        if not len(over_seeds) and len(of_seeds) > 1:
            row["value"], row["ci_low"], row["ci_high"] = of_seeds.value.mean(), np.nan, np.nan
        row["seeds"] = of_seeds.seed.nunique()
        summaries.append(row)
    columns = [*keys, "value", "ci_low", "ci_high", "n", "positives", "exposure", "seeds"]
    return pd.DataFrame(summaries, columns=columns).reset_index(drop=True)


def seed_values(rows: pd.DataFrame, **wanted: object) -> np.ndarray:
    """The values of the single seeds among rows, if there are several."""
    chosen = rows.seed != OVER_SEEDS
    for column, value in wanted.items():
        chosen &= rows[column] == value
    values = rows.loc[chosen].sort_values("seed").value.to_numpy(dtype=float)
    return values if len(values) > 1 else values[:0]


def prefer_data_set(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the data set to draw where there is room for one."""
    return rows[rows.data_set == choose_main_test_set(rows.data_set)].reset_index(drop=True) if len(rows) else rows


def prefer_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the prompts to draw where there is room for one: chosen on validation, else published, else the first."""
    settings = sorted(set(rows.setting))
    return rows[rows.setting == next((name for name in (*_PREFERRED_SETTINGS, *settings) if name in settings), "")]


def interval(row, scale: float = 1) -> tuple[float, float, float]:
    """Value and ends of the interval of a row, multiplied by ``scale``, such as 100 for per cent."""
    return scale * row.value, scale * row.ci_low, scale * row.ci_high
