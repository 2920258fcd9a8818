"""The results table: every number of a figure or of the README is a row of it.

Columns: ``study``, ``arm``, ``seed`` (-1: over all seeds of the arm), ``task`` (below), ``data_set`` (source and split,
for example ``phantom/test_enriched``), ``finding`` (a finding, ``macro``, a tier such as ``tail``, an outcome, or
``all``), ``metric``, ``setting`` (prompt family, head, direction and the like; empty if there is none), ``value``,
``ci_low``, ``ci_high`` (95 %, NaN where none can be had), ``n``, ``positives`` (-1 where it has no meaning),
``exposure`` (``held_out`` | ``seen`` | ``unknown``: may the model have seen the data?), ``flops`` and ``seconds`` (of
the arm's training, scoring and warm-up included; NaN where nothing was trained). A comparison of two arms or settings
is written ``first - second``.

Tasks, by what writes them:

- evaluation of arms (5): zero_shot, retrieval, linear_probe, zero_shot_difference, retrieval_difference; prompt_family,
  spectrum (of the negatives), operating_point (thresholds carried from validation), calibration
- long tail (6): curation, audit, doubt, gain, gain_trend, subgroup, subgroup_gap, retrieval_choice
- several budgets (4): budget_zero_shot, budget_zero_shot_difference, budget_saving (its state as setting)
- ablation (7): ablation_curation, ablation_zero_shot, ablation_zero_shot_difference
- methods of curation (8): method_curation, method_zero_shot, method_zero_shot_difference (same_data or same_compute as
  setting)
- adaptation (9): adaptation, adaptation_difference, outcome
- attention (10): attention
- label budget (11): learning_curve, curve_family, label_forecast, label_plan
"""

import pandas as pd
import pandera.pandas as pa

from chexstudy.errors import StudyError
from chexstudy.runs import Run

RESULTS = "results.parquet"
_MADE_BY = "`chexstudy run all`"
OVER_SEEDS = -1
EXPOSURES = ("held_out", "seen", "unknown")
_IDENTITY = ["study", "arm", "seed", "task", "data_set", "finding", "metric", "setting"]
_SCHEMA = pa.DataFrameSchema(
    {
        **{name: pa.Column(str) for name in ("study", "arm")},
        "seed": pa.Column("int64"),
        **{name: pa.Column(str) for name in ("task", "data_set", "finding", "metric", "setting")},
        **{name: pa.Column("float64", nullable=True) for name in ("value", "ci_low", "ci_high")},
        **{name: pa.Column("int64") for name in ("n", "positives")},
        "exposure": pa.Column(str, pa.Check.isin(EXPOSURES)),
        **{name: pa.Column("float64", nullable=True) for name in ("flops", "seconds")},
    },
    strict=True,
    unique=_IDENTITY,
    coerce=True,
)
COLUMNS = list(_SCHEMA.columns)


def validate_results(results: pd.DataFrame) -> pd.DataFrame:
    """Check a results table against the contract; absent ``flops`` and ``seconds`` become NaN, ``setting`` empty."""
    defaults = {"flops": float("nan"), "seconds": float("nan"), "setting": ""}
    results = results.assign(**{name: value for name, value in defaults.items() if name not in results})
    wrong = [f"lacks {name!r}" for name in COLUMNS if name not in results]
    wrong += [f"has an unknown column {name!r}" for name in results.columns if name not in COLUMNS]
    if wrong:
        raise StudyError(f"the results table breaks its contract: it {wrong[0]}; its columns are {', '.join(COLUMNS)}.")
    # Tables with and without a setting are often put together before they are written.
    results = results.assign(setting=results.setting.fillna("")).reset_index(drop=True)
    try:
        return _SCHEMA.validate(results)[COLUMNS]
    except (pa.errors.SchemaError, pa.errors.SchemaErrors) as error:
        raise StudyError(f"the results table breaks its contract: {str(error).splitlines()[0]}") from None


def add_results(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Put rows into the study's results table and return the whole table.

    They replace all rows of their tasks: a study measured with fewer seeds or on another cohort keeps none of the old.
    Of a damaged table no row is kept.
    """
    rows = validate_results(rows.assign(study=run.study))
    damage = run.find_damage(RESULTS) if run.has(RESULTS) else ""
    if damage:
        print(f"{RESULTS} of study {run.study!r} {damage}: run {_MADE_BY}, for every notebook makes its rows anew.")
    elif run.has(RESULTS):
        old = read_results(run)
        rows = pd.concat([old[~old.task.isin(set(rows.task))], rows], ignore_index=True)
    rows = validate_results(rows.sort_values(_IDENTITY))
    run.write_table(RESULTS, rows, _MADE_BY)
    return rows


def read_results(run: Run) -> pd.DataFrame:
    """The study's results table."""
    return validate_results(run.read_table(RESULTS, "05_compare_arms"))
