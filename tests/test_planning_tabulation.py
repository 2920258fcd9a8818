"""What label planning measured, as rows of the results table."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from chexstudy.label_planning.accuracy import measure_forecasts
from chexstudy.label_planning.families import POWER3
from chexstudy.label_planning.fitting import compare_families
from chexstudy.label_planning.observations import list_curves
from chexstudy.label_planning.planner import NEEDED, NOT_YET, REACHED, UNREACHABLE, forecast_plateau, plan_labels
from chexstudy.label_planning.tabulation import tabulate_planning
from chexstudy.results import validate_results

LABELS = np.array([10, 20, 50, 100, 200, 500.0])


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    rows = [
        {"finding": finding, "n": int(n), "draw": draw, "auroc": mean + 0.02 * generator.standard_normal()}
        for finding, truth in {"Effusion": (0.92, 0.5, 0.45), "Mass": (0.72, 0.4, 0.45)}.items()
        for n, mean in zip(LABELS, POWER3.evaluate(LABELS, truth), strict=True)
        for draw in range(3)
    ]
    place = {"encoder": "curated", "seed": 0, "unit": "cases", "data_set": "t/test"}
    return pd.DataFrame(rows).assign(**place, positives=lambda one: one.n // 10, auprc=lambda one: one.auroc / 2)


@pytest.fixture(scope="module")
def rows(table):
    curves = list_curves(table)
    forecasts = forecast_plateau(curves, [20, 50])
    accuracy = measure_forecasts(forecasts, np.random.default_rng(0), 20)
    refused = pd.DataFrame({"finding": ["Hernia", "Mass"], "n": [-1, 2000], "reason": "too few"})
    parts = table, refused, accuracy, forecasts, plan_labels(curves, 0.8, cost=2), compare_families(curves)
    listed = tabulate_planning(*parts, {"curated": "held_out", "all": "unknown"})
    return validate_results(listed.assign(study="s"))


def pick(rows, **wanted):
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    return rows


def test_every_task_has_rows_of_its_own_with_exposure(rows):
    assert set(rows.task) == {"learning_curve", "label_forecast", "label_plan", "curve_family"}
    assert set(rows.group) == {"cases", ""}
    assert (rows.exposure == rows.arm.map({"curated": "held_out", "all": "unknown"})).all()
    assert set(rows.seed[rows.task == "learning_curve"]) == {0}
    assert set(rows.seed[rows.task != "learning_curve"]) == {-1}


def test_curves_have_the_t_interval_of_their_mean(rows, table):
    row = pick(rows, task="learning_curve", finding="Mass", metric="auroc", setting="50").iloc[0]
    draws = table[(table.finding == "Mass") & (table.n == 50)].auroc
    reach = student.ppf(0.975, 2) * draws.std() / np.sqrt(3)
    assert (row.value, row.ci_high) == pytest.approx((draws.mean(), draws.mean() + reach))
    assert (row.n, row.positives) == (50, 5)
    left_out = pick(rows, task="learning_curve", finding="Hernia")
    assert (len(left_out), left_out.reason.iloc[0], left_out.n.iloc[0]) == (1, "not evaluable", 0)


def test_forecasts_plans_and_families_say_what_they_depend_on(rows):
    few = pick(rows, metric="forecast", setting="20")
    assert len(few) == 2
    assert few.value.isna().all()
    assert set(pick(rows, metric="plateau", setting="20").reason) == {"not evaluable"}
    of_methods = pick(rows, metric="forecast_mae", setting="50", arm="curated")
    assert set(of_methods.variant) == {"posterior", "least_squares", "last"}
    plans = pick(rows, task="label_plan")
    assert set(plans.metric) == {"labels_more", "label_cost"}
    assert set(plans.setting) == {"0.8"}
    assert set(plans.reason) <= {REACHED, NEEDED, UNREACHABLE, NOT_YET}
    families = pick(rows, task="curve_family", metric="curve_error", variant="power3")
    assert set(families.setting) == {"", "50", "100", "200"}
