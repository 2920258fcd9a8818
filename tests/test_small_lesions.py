"""Heads that look at places against probes, by the size of lesions."""

import numpy as np
import pytest
import torch
from test_adaptation_run import DATA_SET, GLORI, QUICK, make_arm

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.source_annotations import Box, build_annotations
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.recipes import HeadPlan, fit_plan
from chexstudy.evaluation.adaptation.run import compare_adaptation
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.experiments.small_lesions import ATTENTION, GAIN, compare_by_lesion_size, plan_place_heads
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.self_supervision import self_supervised_lesions
from chexstudy.results import validate_results

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def evaluation(tiny_study):
    """Masses take a third of the image, hernias sixteen of its 1,296 pixels."""
    cohort = read_cohort(tiny_study.path("cohort.parquet"))
    places = {"Mass": (0, 0, 36, 12), "Hernia": (4, 30, 4, 4)}
    boxes = [
        Box(row.image_id, finding, place, (36, 36))
        for row in cohort.itertuples()
        for finding, place in places.items()
        if getattr(row, finding) == 1
    ]
    build_annotations(tiny_study, boxes)
    make_arm(tiny_study, "full", 0)
    return Evaluation(tiny_study, cohort, open_pixel_store(tiny_study), resamples=40, seed=0)


def test_a_head_is_held_against_probes_apart_for_small_and_for_larger_lesions(evaluation):
    heads = plan_place_heads(["glori_v1.middle"], GLORI)
    rows = validate_results(compare_by_lesion_size(evaluation, ["full"], 0, heads, QUICK, 0.025).assign(study="tiny"))
    gains = rows[(rows.task == GAIN) & (rows.metric == "auroc_difference")].set_index(["finding", "reference"])
    by_finding = compare_adaptation(evaluation, [0], [(("full", heads[0]), ("full", HeadPlan("linear", recipe=QUICK)))])
    by_finding = by_finding[by_finding.metric == "auroc_difference"].set_index("finding").value
    assert gains.value["small lesions", "linear"] == pytest.approx(by_finding["Hernia"])
    assert gains.value["larger lesions", "linear"] == pytest.approx(by_finding["Mass"])
    assert ("small lesions", "logistic") in gains.index
    seen = rows[(rows.task == ATTENTION) & (rows.metric == "area_inside")].set_index("finding")
    test = evaluation.test_sets()[DATA_SET]
    assert seen.value["small lesions"] == pytest.approx(16 / 36**2)
    assert seen.value["larger lesions"] == pytest.approx(1 / 3)
    assert seen.n.to_dict() == {"small lesions": test.Hernia.sum(), "larger lesions": test.Mass.sum()}
    assert set(rows.setting) == {"middle"}
    assert self_supervised_lesions.plot(*self_supervised_lesions.choose(rows))
    larger = self_supervised_lesions.choose(rows[rows.finding == "larger lesions"])
    assert "no finding has small ones here" in self_supervised_lesions.conclude(*larger)
    assert [
        text.get_text() for text in self_supervised_lesions.plot(*larger).axes[0].texts if "lesions" in text.get_text()
    ] == ["Image and text: all pairs: larger lesions"]


def test_without_known_sizes_there_is_nothing_to_compare(evaluation):
    build_annotations(evaluation.run, [])
    rows = compare_by_lesion_size(evaluation, ["full"], 0, plan_place_heads(["glori_v2"], GLORI), QUICK, 0.025)
    with pytest.raises(NothingToDraw, match="lesions of known size"):
        self_supervised_lesions.choose(rows)
    with pytest.raises(
        StudyError, match=r"no head 'glori_v3' to compare by lesion size: use glori_v2, glori_v1.middle"
    ):
        plan_place_heads(["glori_v3"], GLORI)


@pytest.mark.parametrize(("name", "block"), [("glori_v1.middle", 1), ("glori_v1.last", 3)])
def test_a_head_of_one_block_sees_no_other(evaluation, name, block):
    features = EvaluatedModel(evaluation, "full", 0).freeze(patches=True)
    (plan,) = plan_place_heads([name], GLORI)
    parts = evaluation.training, evaluation.validation, evaluation.findings
    fitted, _ = fit_plan(plan, features, None, evaluation.store, *parts, 0)
    batch = features.read_batch(np.arange(4))
    bounds = np.cumsum([0, *features.widths])
    for one in range(len(features.widths)):
        changed = batch.patches.clone()
        changed[..., bounds[one] : bounds[one + 1]] += 1
        with torch.no_grad():
            same = torch.equal(
                fitted.head(batch), fitted.head(type(batch)(batch.pooled, batch.cls, batch.mean, changed))
            )
        assert same == (one != block)
