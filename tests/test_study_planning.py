"""Label planning of a study whose findings have too few labels: every step is nothing, and one sentence says so."""

from types import SimpleNamespace

import pandas as pd

from chexstudy.label_planning.costs import ReadingCost, tabulate_readings
from chexstudy.label_planning.curves import CurveDesign
from chexstudy.label_planning.planner import state_plans
from chexstudy.label_planning.study_planning import LabelPlanning


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
