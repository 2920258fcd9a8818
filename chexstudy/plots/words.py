"""Rows of the results table as words: arms, data sets, values with intervals, seeds and n."""

import pandas as pd

from chexstudy.plots.looks import arm_style, order_arms
from chexstudy.plots.measurements import interval, summarise_seeds
from chexstudy.results import OVER_SEEDS, write_interval


def name_setting(setting: str) -> str:
    """A setting as words: prompt families get the word prompts, directions lose their underscores."""
    return {"": "", "published": "published prompts", "chosen": "prompts chosen on validation"}.get(
        setting, setting.replace("_", " ")
    )


def name_data_set(data_set: str) -> str:
    """``phantom/test_enriched`` as words: ``phantom, test enriched``."""
    return data_set.replace("/", ", ").replace("_", " ")


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
