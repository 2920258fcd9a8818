"""Performance against pretraining pairs and parameters: the study's encoders, and published ones as others report them.

Published numbers lie in ``scale.yaml``, each with its source. They are of other data and tasks of other difficulty.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.encoders import is_arm
from chexstudy.inputs.yaml_files import read_data_beside
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import draw_estimate, spread_arms
from chexstudy.plots.looks import GREY, arm_styles
from chexstudy.plots.measurements import interval, prefer_data_set, require_rows, select_rows
from chexstudy.plots.style import add_legend, new_figure, scale_log, title_panel
from chexstudy.plots.words import name_data_set, short_name, write_row
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.results import OVER_SEEDS

PUBLISHED = pd.DataFrame(read_data_beside(__file__))
# Task -> what its panel shows, metric and finding, and heads or settings, of which the first that was measured counts.
_TASKS = {
    "zero_shot": ("Zero-shot, AUROC", ("auroc", "macro"), ("chosen", "published")),
    "adaptation": ("Heads, AUROC", ("auroc", "macro"), ("glori_v1", "logistic", "linear")),
    "segmentation": ("Segmentation, Dice", ("dice", "macro"), ("unet", "linear")),
    "report_generation": ("Reports, F1 of findings", ("macro_f1", "all"), ("language_model", "nearest_image")),
}


def tabulate_scale(evaluation: Evaluation, names: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Distinct pairs that each model was trained on in the study, mean over seeds, and parameters of its encoder.

    Columns ``arm, pairs, parameters``; encoders that are no arm were trained on none here.
    """
    rows = []
    for name in names:
        subsets = [f"{arm_folder(name, seed)}/subset.parquet" for seed in seeds if is_arm(name)]
        pairs = np.mean([len(evaluation.run.read_table(subset)) for subset in subsets]) if subsets else 0.0
        encoder = EvaluatedModel(evaluation, name, seeds[0]).encoder
        rows.append((name, pairs, sum(weight.numel() for weight in encoder.parameters())))
    return pd.DataFrame(rows, columns=["arm", "pairs", "parameters"])


def _select(results: pd.DataFrame, scale: pd.DataFrame) -> tuple:
    """The study's encoders in each task that was measured, on its preferred test set, and the scale of each encoder.

    With them the published numbers of these tasks.
    """
    tables = [results.iloc[:0]]
    for task, (_, (metric, finding), kinds) in _TASKS.items():
        rows = select_rows(results, task, metric=metric, finding=finding, seed=OVER_SEEDS, arm=list(scale.arm))
        rows = rows[(rows.variant == "") & rows.group.isin(["", "report"])]
        kind = "setting" if task == "zero_shot" else "head"
        found = next((one for one in kinds if (rows[kind] == one).any()), None)
        rows = rows[(rows[kind] == found) & ((rows.setting == "") | (task not in ("adaptation", "segmentation")))]
        tables.append(prefer_data_set(rows))
    rows = pd.concat([table for table in tables if len(table)] or tables, ignore_index=True).merge(scale, on="arm")
    rows = require_rows(rows, "encoders measured on a task")
    return rows, PUBLISHED[PUBLISHED.task.isin(rows.task)]


def _plot(rows: pd.DataFrame, published: pd.DataFrame) -> Drawing:
    """A panel a task: performance by pretraining pairs, published encoders apart in grey."""
    tasks, looks = [task for task in _TASKS if (rows.task == task).any()], arm_styles(rows.arm)
    figure = new_figure(height_mm=74)
    pairs = [*rows.pairs[rows.pairs > 0], *published.pairs]
    aside = dict(zip(looks, 10 ** spread_arms(len(looks), 0.25), strict=True))
    least = min(pairs, default=1.0) / 4  # where encoders stand that were trained on nothing here
    for axes, letter, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], "abcd", tasks, strict=False):
        of_task, others = rows[rows.task == task], published[published.task == task]
        for row in of_task.itertuples():
            # Those of as many pairs stand beside each other.
            draw_estimate(axes, max(row.pairs, least) * aside[row.arm], interval(row), looks[row.arm], vertical=True)
        axes.plot(others.pairs, others.value, "o", color=GREY, markerfacecolor="white", markersize=5, gid="published")
        for number, row in enumerate(others.itertuples(), 1):
            axes.annotate(
                f"{number}", (row.pairs, row.value), textcoords="offset points", xytext=(4, 2), fontsize=5.5, color=GREY
            )
        scale_log(axes, parts=(1,))
        axes.set_xlim(least / 2, 3 * max(pairs, default=1.0))
        axes.grid(axis="y")
        axes.set_xlabel("Pretraining pairs (log)")
        title_panel(axes, letter, _TASKS[task][0])
    sizes = rows.groupby("arm").parameters.first()
    handles = [
        Line2D(
            [], [], marker=style.marker, color=style.colour, linestyle="none",
            label=f"{style.name} ({_write_size(sizes[arm])})",
        )
        for arm, style in looks.items()
    ]  # fmt: skip
    if len(published):
        models = published.drop_duplicates("model")
        told = ", ".join(f"{row.model} ({_write_size(row.parameters)})" for row in models.itertuples())
        handles.append(
            Line2D([], [], marker="o", color=GREY, markerfacecolor="white", linestyle="none",
                   label=f"Published, not measured here: {told}")
        )  # fmt: skip
    add_legend(figure, handles, min(3, len(handles)))
    return figure


def _write_size(parameters: float) -> str:
    return f"{parameters / 1e6:.2g} M" if parameters < 1e8 else f"{parameters / 1e6:.0f} M"


def _describe(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    ours = [
        f"{_TASKS[task][0]} ({_name_way(own.iloc[0])}): {name_data_set(own.data_set.iloc[0])}, n = {own.n.iloc[0]:,}"
        for task, own in rows.groupby("task", sort=False)
    ]
    theirs = [
        f"{_name_task(task)} {number}: {row.model} ({row.encoder}), {row.of} {row.value:g} ({row.source})"
        for task, own in published.groupby("task", sort=False)
        for number, row in enumerate(own.itertuples(), 1)
    ]
    alone = [_name_task(task).lower() for task in dict.fromkeys(rows.task) if not (published.task == task).any()]
    lacks = f" No number that could honestly stand beside is at hand of {' and '.join(alone)}." if alone else ""
    return (
        "Performance against pretraining pairs, in brackets the parameters of the image encoder; encoders at the left "
        f"end were trained on no pair here. {'; '.join(ours)}. Bars are 95 % intervals, seeds and patients resampled. "
        "Published numbers are of other test sets, as their sources give them, and were not measured here: "
        f"{'; '.join(theirs) or 'none'}.{lacks}"
    )


def _name_way(row: pd.Series) -> str:
    """The head, decoder or generator, or else the prompts, by which encoders are compared."""
    return row["head"].replace("_", " ") or f"{row.setting} prompts"


def _name_task(task: str) -> str:
    return _TASKS[task][0].partition(",")[0]


def _conclude(rows: pd.DataFrame, _: pd.DataFrame) -> str:
    best = [own.loc[own.value.idxmax()] for _, own in rows.groupby("task", sort=False)]
    told = [f"{_TASKS[row.task][0]} {short_name(row.arm)} ({row.pairs:,.0f} pairs) {write_row(row)}" for row in best]
    return f"Best of this study's encoders: {'; '.join(told)}."


performance_by_scale = Figure("performance_by_scale", _select, _plot, _describe, _conclude)
