"""Label planning of a study: its numbers as rows of the results table, and one whose findings have too few labels."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from learning_curves import LABELS, measure_table
from scipy.stats import t as student

from chexstudy.label_planning.accuracy import measure_forecasts
from chexstudy.label_planning.costs import ReadingCost, tabulate_readings
from chexstudy.label_planning.curves import CurveDesign
from chexstudy.label_planning.fitting import compare_families
from chexstudy.label_planning.observations import list_curves
from chexstudy.label_planning.planner import (
    NEEDED,
    NOT_YET,
    REACHED,
    UNREACHABLE,
    forecast_plateau,
    plan_labels,
    state_plans,
)
from chexstudy.label_planning.study_planning import LabelPlanning
from chexstudy.label_planning.tabulation import tabulate_planning
from chexstudy.results import validate_results


@pytest.fixture(scope="module")
def table():
    return measure_table(("Effusion", "Mass"), labels=LABELS[:6], draws=3)


@pytest.fixture(scope="module")
def rows(table):
    curves = list_curves(table)
    forecasts = forecast_plateau(curves, [20, 50])
    accuracy = measure_forecasts(forecasts, np.random.default_rng(0), 20)
    refused = pd.DataFrame({"finding": ["Hernia", "Mass"], "n": [-1, 2000], "reason": "too few"})
    parts = table, refused, accuracy, forecasts, plan_labels(curves, 0.8, cost=2), compare_families(curves)
    listed = tabulate_planning(*parts, {"curated": "held_out", "all": "unknown"})
    return validate_results(listed.assign(study="s"))


def choose(rows, **wanted):
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
    row = choose(rows, task="learning_curve", finding="Mass", metric="auroc", setting="50").iloc[0]
    draws = table[(table.finding == "Mass") & (table.n == 50)].auroc
    reach = student.ppf(0.975, 2) * draws.std() / np.sqrt(3)
    assert (row.value, row.ci_high) == pytest.approx((draws.mean(), draws.mean() + reach))
    assert (row.n, row.positives) == (50, 5)
    left_out = choose(rows, task="learning_curve", finding="Hernia")
    assert (len(left_out), left_out.reason.iloc[0], left_out.n.iloc[0]) == (1, "not evaluable", 0)


def test_forecasts_plans_and_families_say_what_they_depend_on(rows):
    few = choose(rows, metric="forecast", setting="20")
    assert len(few) == 2
    assert few.value.isna().all()
    assert set(choose(rows, metric="plateau", setting="20").reason) == {"not evaluable"}
    of_methods = choose(rows, metric="forecast_mae", setting="50", arm="curated")
    assert set(of_methods.variant) == {"posterior", "least_squares", "last"}
    plans = choose(rows, task="label_plan")
    assert set(plans.metric) == {"labels_more", "label_cost"}
    assert set(plans.setting) == {"0.8"}
    assert set(plans.reason) <= {REACHED, NEEDED, UNREACHABLE, NOT_YET}
    families = choose(rows, task="curve_family", metric="curve_error", variant="power3")
    assert set(families.setting) == {"", "50", "100", "200"}


def test_without_labels_every_step_is_nothing_and_one_sentence_says_so(capsys):
    cohort = pd.DataFrame({"image_id": list("abcd"), "patient_id": list("abcd"), "source": "mine", "view": "PA"})
    cohort = cohort.assign(split=["train", "train", "validate", "test"], report="", report_origin="none")
    evaluation = SimpleNamespace(run=None, cohort=cohort, resamples=10)
    planning = LabelPlanning(evaluation, ["curated"], CurveDesign((10, "all"), 2), True, 10, [10])
    assert capsys.readouterr().out == (
        "No finding has labels enough for a learning curve: there is nothing to plan from.\n"
    )
    steps = ("table", "settings", "curves", "bands", "families", "forecasts", "accuracy", "correlations")
    assert [getattr(planning, step) for step in steps] == [None] * len(steps)
    assert "no curve" in planning.claim
    plans, priced = planning.plan(0.85, ReadingCost(2.0), pd.DataFrame(), population=False)
    assert (plans, priced, state_plans(plans)) == (None, None, [])
    assert tabulate_readings(priced, "EUR").empty
    assert planning.list_rows(plans).empty
