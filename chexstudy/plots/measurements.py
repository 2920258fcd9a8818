"""Rows of the results table as figures need them: chosen, seeds put together, and said in words.

Rows of one seed have ``seed >= 0``; a row over all seeds of an arm has ``seed = -1`` and the interval of all.
"""

import numpy as np
import pandas as pd

from chexstudy.cohort.splits import choose_main_test_set
from chexstudy.errors import StudyError
from chexstudy.plots.style import arm_style, order_arms
from chexstudy.results import OVER_SEEDS, write_interval

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

    Returns:
        What tells measurements apart, ``value, ci_low, ci_high, n, positives, exposure`` and ``seeds``.
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


def name_setting(setting: str) -> str:
    """A setting as words: prompt families get the word prompts, directions lose their underscores."""
    return {"": "", "published": "published prompts", "chosen": "prompts chosen on validation"}.get(
        setting, setting.replace("_", " ")
    )


def name_data_set(data_set: str) -> str:
    """``phantom/test_enriched`` as words: ``phantom, test enriched``."""
    return data_set.replace("/", ", ").replace("_", " ")


def interval(row, scale: float = 1) -> tuple[float, float, float]:
    """Value and ends of the interval of a row, multiplied by ``scale``, such as 100 for per cent."""
    return scale * row.value, scale * row.ci_low, scale * row.ci_high


def write_row(row, number_format: str = ".3f", scale: float = 1) -> str:
    """``0.81 [0.79, 0.83]`` of a row."""
    return write_interval(*interval(row, scale), number_format)


def state_arms(rows: pd.DataFrame, number_format: str = ".3f", scale: float = 1) -> str:
    """``curated 0.81 [0.79, 0.83]; all pairs 0.82 [0.80, 0.84]``: each arm's value over seeds, in the usual order.

    The rows are those of one data set, finding, metric and setting.
    """
    summary = summarise_seeds(rows).set_index("arm")
    words = (
        f"{short_name(arm)} {write_row(summary.loc[arm], number_format, scale)}" for arm in order_arms(summary.index)
    )
    return "; ".join(words)


def short_name(arm: str) -> str:
    """An arm within a sentence, without what stands in brackets."""
    name = arm_style(arm).name.partition(" (")[0]
    return name[:1].lower() + name[1:]


def describe_interval(rows: pd.DataFrame) -> str:
    """One or two sentences on seeds, intervals and n of the rows a figure shows."""
    numbers = sorted(set(rows.seed[rows.seed != OVER_SEEDS]))
    over_seeds, several = (rows.seed == OVER_SEEDS).any(), len(numbers) > 1
    seeds = f"One seed ({numbers[0]}). " if numbers and not over_seeds else ""
    if several:
        seeds = f"Large marks are means over {len(numbers)} seeds, small ones single seeds. "
    if rows.ci_low.isna().all():
        words = "No interval could be computed. "
    elif over_seeds:
        words = "Bars are 95 % intervals, seeds and patients resampled (hierarchical bootstrap). "
    elif several:
        words = "No interval over seeds was computed. "
    else:
        words = "Bars are 95 % intervals, patients resampled (clustered bootstrap). "
    return seeds + words + describe_n(rows)


def describe_sample(table: pd.DataFrame, word: str) -> str:
    """``n = 3,885 pairs, 3 seeds``, with what the columns ``n`` and ``seeds`` know; ``word`` is what n counts."""
    parts = []
    for column in ("n", "seeds"):
        if column in table and table[column].notna().any():
            low, high = int(table[column].min()), int(table[column].max())
            number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            parts.append(f"n = {number} {word}" if column == "n" else f"{number} seed{'s' * (high != 1)}")
    return ", ".join(parts)


def describe_n(rows: pd.DataFrame) -> str:
    """How many images or pairs each data set has, and which the model may have seen."""
    parts = []
    for data_set, group in rows.groupby("data_set", sort=True):
        low, high = int(group.n.min()), int(group.n.max())
        count = f"{high:,}" if low == high else f"{low:,} to {high:,}"
        parts.append(f"n = {count} ({name_data_set(data_set)}{name_exposure(group)})")
    return "; ".join(parts) + "."


def name_exposure(rows: pd.DataFrame) -> str:
    """What is to be said of a data set that the model may have seen: nothing if it was held out."""
    exposure = {"seen": ", may have been seen in training", "unknown": ", exposure unknown"}
    return next((words for state, words in exposure.items() if (rows.exposure == state).any()), "")


def name_place(row) -> str:
    """Data set and setting of a row as words."""
    return ", ".join(part for part in (name_data_set(row.data_set), name_setting(row.setting)) if part)
