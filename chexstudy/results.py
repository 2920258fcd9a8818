"""The results of a study: every number of a figure or of the README is a row of them.

One parquet a task, ``results/<task>.parquet``, written by the one step that measures the task; together they are one
table (``pandas.read_parquet("runs/demo/results")``). What a number is of stands in columns, never joined in a name;
texts are empty where there is nothing to say:

- ``study``; ``arm``, a training; ``variant``, which version of it: ``keep_10``, ``same_compute``, a setting of the
  curator, a part of a head;
- ``reference``: of a difference (first minus second) what the second has in place of the arm, head, variant or group;
- ``head``: what was put on the encoder, such as ``linear_probe`` or ``glori_v2``;
- ``setting``: prompt family, direction of retrieval, threshold rule, method of recalibration, what subgroups are
  grouped by, share or number of labels, covariates of an outcome and the like;
- ``group``: a subgroup, which negatives, a shift of labels, what labels are counted in, where attention should be;
- ``seed`` (-1: over all seeds), ``task`` (below), ``data_set`` (source and split, ``phantom/test_enriched``),
  ``finding`` (a finding, ``macro``, a tier such as ``tail``, an outcome, or ``all``) and ``metric``;
- ``value``, ``ci_low``, ``ci_high`` (95 %, NaN where none can be had), ``n``, ``positives`` (-1: has no meaning);
- ``exposure`` (``held_out`` | ``seen`` | ``unknown``: may the model have seen the data?), ``reason``, why there is no
  value, and ``signature``: which package, version and constants a metric of texts was computed with;
- ``flops`` and ``seconds`` of the arm's training, scoring and warm-up included; NaN where nothing was trained.

Tasks, by what writes them:

- evaluation of arms: zero_shot, retrieval, linear_probe, zero_shot_difference, retrieval_difference; prompt_family,
  spectrum (of the negatives), operating_point (thresholds carried from validation), calibration
- long tail: curation, audit, mismatch_detection, gain, gain_trend, subgroup, subgroup_gap, retrieval_choice
- several budgets: budget_zero_shot, budget_zero_shot_difference, budget_saving
- ablation: ablation_curation, ablation_zero_shot, ablation_zero_shot_difference
- methods of curation: method_curation, method_zero_shot, method_zero_shot_difference
- images alone: self_supervision, self_supervision_difference, self_supervision_resolution, self_supervision_source,
  self_supervision_source_difference; self_supervision_gain, self_supervision_attention (by lesion size)
- adaptation: adaptation, adaptation_difference, outcome; attention
- segmentation: segmentation, segmentation_difference (``finding`` is a structure)
- reports: report_generation, report_generation_difference (``head`` writes, shown the images or the control in
  ``variant``; ``setting`` is which text), report_label_agreement
- label budget: learning_curve, curve_family, label_forecast, label_plan
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import pandera.pandas as pa

from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.steps import find_step

FOLDER = "results"
OVER_SEEDS = -1
# The worst last: of several, that one counts.
EXPOSURES = ("held_out", "unknown", "seen")
_IDENTITY = [
    *("study", "arm", "variant", "reference", "head", "setting", "group"),
    *("seed", "task", "data_set", "finding", "metric"),
]
_OPTIONAL_TEXTS = ("variant", "reference", "head", "setting", "group", "reason", "signature")
_SCHEMA = pa.DataFrameSchema(
    {
        **{name: pa.Column("int64" if name == "seed" else str) for name in _IDENTITY},
        **{name: pa.Column("float64", nullable=True) for name in ("value", "ci_low", "ci_high")},
        **{name: pa.Column("int64") for name in ("n", "positives")},
        "exposure": pa.Column(str, pa.Check.isin(EXPOSURES)),
        **{name: pa.Column(str) for name in ("reason", "signature")},
        **{name: pa.Column("float64", nullable=True) for name in ("flops", "seconds")},
    },
    strict=True,
    unique=_IDENTITY,
    coerce=True,
)
COLUMNS = list(_SCHEMA.columns)


def results_artifact(task: str) -> str:
    """Where the rows of a task lie within a run."""
    return f"{FOLDER}/{task}.parquet"


def worst_exposure(exposures: Iterable[str]) -> str:
    """What is to be said of what has several exposures."""
    return max(exposures, key=EXPOSURES.index)


def validate_results(results: pd.DataFrame) -> pd.DataFrame:
    """Check rows against the contract; absent texts become empty, absent ``flops`` and ``seconds`` NaN."""
    defaults = {"flops": float("nan"), "seconds": float("nan"), **dict.fromkeys(_OPTIONAL_TEXTS, "")}
    results = results.assign(**{name: value for name, value in defaults.items() if name not in results})
    wrong = [f"lacks {name!r}" for name in COLUMNS if name not in results]
    wrong += [f"has an unknown column {name!r}" for name in results.columns if name not in COLUMNS]
    if wrong:
        raise StudyError(f"the results table breaks its contract: it {wrong[0]}; its columns are {', '.join(COLUMNS)}.")
    # Tables with and without such a text are often put together before they are written.
    results = results.fillna(dict.fromkeys(_OPTIONAL_TEXTS, "")).reset_index(drop=True)
    try:
        return _SCHEMA.validate(results)[COLUMNS]
    except (pa.errors.SchemaError, pa.errors.SchemaErrors) as error:
        raise StudyError(f"the results table breaks its contract: {str(error).splitlines()[0]}") from None


def join_rows(*tables: pd.DataFrame) -> pd.DataFrame:
    """Rows of several measurements as one table; what measured nothing adds none."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def add_results(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Write rows into the files of their tasks, in place of all that these held, and return them.

    A study measured with fewer seeds or on another cohort keeps none of the old rows. Steps that write different tasks
    can run at once. Where nothing was measured, nothing is written.
    """
    if rows.empty:
        return rows
    rows = validate_results(rows.assign(study=run.study)).sort_values(_IDENTITY, ignore_index=True)
    for task, of_task in rows.groupby("task"):
        run.write_table(results_artifact(task), of_task)
    return rows


def read_results(run: Run, tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """The study's results, of some tasks or of all that were measured."""
    if tasks is None:
        tasks = sorted(path.stem for path in run.path(FOLDER).glob("[!.]*.parquet"))
        if not tasks:
            raise StudyError(
                f"study {run.study!r} has no {FOLDER} yet: run {find_step(results_artifact('zero_shot'))} first."
            )
    tables = [run.read_table(results_artifact(task)) for task in tasks]
    return validate_results(pd.concat(tables).sort_values(_IDENTITY))


def write_interval(value: float, low: float, high: float, number_format: str = ".3f") -> str:
    """``0.812 [0.790, 0.833]``, with a true minus sign."""
    text = f"{value:{number_format}}"
    if np.isfinite(low) and np.isfinite(high):
        bounds = number_format.removeprefix("+")
        text += f" [{low:{bounds}}, {high:{bounds}}]"
    return text.replace("-", "\N{MINUS SIGN}")
