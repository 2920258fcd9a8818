"""What label planning measured, as rows of the results table.

``arm`` is the encoder, ``group`` what labels are counted in (cases or positives); what else a row depends on is said at
each task.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import t as student

from chexstudy.label_planning.accuracy import EVERY
from chexstudy.label_planning.fitting import EXTRAPOLATION
from chexstudy.label_planning.planner import TOO_FEW
from chexstudy.results import OVER_SEEDS
from chexstudy.statistics.bootstrap import CONFIDENCE

CURVE, FORECAST, PLAN, FAMILY = "learning_curve", "label_forecast", "label_plan", "curve_family"


def tabulate_planning(
    curves: pd.DataFrame,
    refused: pd.DataFrame,
    accuracy: pd.DataFrame,
    forecasts: pd.DataFrame,
    plans: pd.DataFrame,
    errors: pd.DataFrame,
    exposures: Mapping[str, str],
) -> pd.DataFrame:
    """Rows of the results table, but for ``study``.

    In order of `measure_curves`, `plan_draws`, `measure_forecasts`, `forecast_plateau`, `plan_labels` and
    `compare_families`; and what each encoder, and ``all``, has seen.
    """
    place = {"data_set": curves.data_set.iloc[0], "group": curves.unit.iloc[0]}
    # A row without a value for each finding that has no curve at all.
    measured = curves[["encoder", "seed", "data_set"]].drop_duplicates()
    nothing = {"task": CURVE, "metric": "auroc", "n": 0, "reason": TOO_FEW}
    left_out = [measured.assign(finding=finding, **nothing) for finding in refused.finding[refused.n < 0]]
    tables = [*_list_curves(curves), *left_out, *_list_forecasts(forecasts)]
    tables += [*_list_plans(plans), _list_families(errors)]
    tables += [table.assign(**place) for table in _list_accuracy(accuracy)]
    names = {"encoder": "arm", "unit": "group"}
    rows = pd.concat([table.rename(columns=names) for table in tables], ignore_index=True)
    whole = {name: rows[name].fillna(other).astype(int) for name, other in (("seed", OVER_SEEDS), ("positives", -1))}
    return rows.assign(**whole, exposure=rows.arm.map(exposures))


def _list_curves(curves: pd.DataFrame) -> list[pd.DataFrame]:
    """Means over draws of AUROC and average precision by label count, the setting.

    The t interval is of that mean, of the draws alone, not of the patients of the test set; ``positives`` is the mean
    number of them in a draw.
    """
    columns = ["encoder", "seed", "data_set", "finding", "unit", "n"]
    tables = []
    for metric in ("auroc", "auprc"):
        table = curves.groupby(columns).agg(
            value=(metric, "mean"), spread=(metric, "std"), draws=(metric, "size"), positives=("positives", "mean")
        )
        table = table.reset_index().assign(task=CURVE, metric=metric)
        reach = student.ppf(0.5 + CONFIDENCE / 2, np.maximum(table.draws - 1, 1)) * table.spread / np.sqrt(table.draws)
        table["ci_low"], table["ci_high"] = (table.value - reach).clip(0), (table.value + reach).clip(upper=1)
        table["positives"] = table.positives.round().astype(int)
        counted = table.n if (table.unit == "cases").all() else table.positives
        tables.append(table.assign(setting=counted.astype(str)).drop(columns=["spread", "draws"]))
    return tables


def _list_forecasts(forecasts: pd.DataFrame) -> list[pd.DataFrame]:
    """``forecast``, ``forecast_error`` and ``plateau`` by the most labels forecast from; reason: its state."""
    shared = forecasts[["encoder", "finding", "data_set", "unit"]].assign(
        task=FORECAST, setting=forecasts.at_most_n.map("{:g}".format), n=forecasts.labels.astype(int)
    )
    tables = []
    for metric, column in (("forecast", "forecast"), ("forecast_error", "error"), ("plateau", "plateau")):
        ends = {"value": column, "ci_low": f"{column}_low", "ci_high": f"{column}_high"}
        values = forecasts.reindex(columns=ends.values()).set_axis([*ends], axis=1).astype(float)
        reason = forecasts.state if metric == "plateau" else ""
        tables.append(shared.assign(metric=metric, **values, reason=reason))
    return tables


def _list_accuracy(accuracy: pd.DataFrame) -> list[pd.DataFrame]:
    """``forecast_mae`` and ``forecast_coverage`` by the most labels forecast from, the method as variant."""
    tables = []
    for metric in ("mae", "coverage"):
        rows = accuracy[accuracy[metric].notna()]
        table = {"encoder": rows.encoder, "variant": rows.method, "setting": rows.at_most_n.map("{:g}".format)}
        table |= {"value": rows[metric], "ci_low": rows[f"{metric}_low"], "ci_high": rows[f"{metric}_high"]}
        tables.append(pd.DataFrame(table | {"metric": f"forecast_{metric}", "n": rows.curves}))
    return [table.assign(task=FORECAST, finding=EVERY) for table in tables]


def _list_plans(plans: pd.DataFrame) -> list[pd.DataFrame]:
    """``labels_more`` and, if it was given, ``label_cost`` for a target (setting); no end is NaN; reason: the state."""
    tables = []
    for metric, name in (("labels_more", "more"), ("label_cost", "cost")):
        if name == "cost" and plans.cost_low.isna().all():
            continue
        table = plans[["encoder", "finding", "data_set", "unit"]].assign(
            task=PLAN, metric=metric, n=plans.have.astype(int), reason=plans.state
        )
        for column, end in (("value", ""), ("ci_low", "_low"), ("ci_high", "_high")):
            table[column] = plans[f"{name}{end}"].where(np.isfinite(plans[f"{name}{end}"]))
        tables.append(table.assign(setting=plans.target.map("{:g}".format)))
    return tables


def _list_families(errors: pd.DataFrame) -> pd.DataFrame:
    """``curve_error`` and ``curve_bias`` of each family (variant), means over findings and left-out points.

    The setting is the most labels fitted to, empty where one between others was left out (interpolation).
    """
    known = errors.dropna(subset=["error"])
    start = known.at_most_n.map("{:g}".format).where(known.split == EXTRAPOLATION, "")
    known = known.assign(setting=start, absolute=known.error.abs())
    place = ["encoder", "data_set", "unit", "family", "setting"]
    table = known.groupby(place).agg(
        curve_error=("absolute", "mean"), curve_bias=("error", "mean"), n=("error", "size")
    )
    rows = table.reset_index().melt([*place, "n"], var_name="metric", value_name="value")
    return rows.rename(columns={"family": "variant"}).assign(task=FAMILY, finding=EVERY)
