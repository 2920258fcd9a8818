import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import (
    measure_findings,
    read_scores,
    write_scores,
)
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import bootstrap_patients, interval
from chexstudy.statistics.ranking import auroc

FINDINGS = ["Cardiomegaly", "Nodule", "Hernia", "Mass"]
PLACE = {"arm": "curated", "seed": 0, "task": "zero_shot", "data_set": "phantom/test"}


@pytest.fixture
def cases():
    generator = np.random.default_rng(0)
    labels = (generator.random((120, 4)) < [0.5, 0.3, 0.2, 0.3]).astype(float)
    labels[:, 3] = 0
    labels[:10, 0] = -1
    labels[:5, 1] = np.nan
    scores = np.stack([labels.clip(0) + generator.normal(size=labels.shape) for _ in range(3)])
    return labels, np.nan_to_num(scores), bootstrap_patients(np.arange(120) // 2, 200, generator)


def pick(rows, finding, metric):
    return rows[(rows.finding == finding) & (rows.metric == metric)].iloc[0]


def test_every_finding_keeps_a_row_with_its_n_and_positives(cases):
    labels, scores, weights = cases
    rows = measure_findings([scores[0]], labels, FINDINGS, weights).of_seed(0).assign(setting="published")
    assert set(rows.finding[rows.metric == "auprc"]) == {*FINDINGS, "macro"}
    assert pick(rows, "Cardiomegaly", "auroc").n == 110
    assert pick(rows, "Nodule", "auroc").n == 115
    assert pick(rows, "Nodule", "auroc").positives == (labels[:, 1] == 1).sum()
    mass = pick(rows, "Mass", "auroc")
    assert np.isnan([mass.value, mass.ci_low, mass.ci_high]).all()
    assert (mass.n, mass.positives) == (120, 0)
    count = pick(rows, "macro", "evaluable_findings")
    assert (count.value, count.n) == (3, 4)


def test_the_macro_interval_comes_from_the_same_resamples(cases):
    labels, scores, weights = cases
    rows = measure_findings([scores[0]], labels, FINDINGS, weights).of_seed(0)
    sick = len(np.unique((np.arange(120) // 2)[(labels == 1).any(axis=1)]))
    low, high = interval(auroc(labels, scores[0], weights)[:, :3].mean(axis=1), patients=sick)
    macro = pick(rows, "macro", "auroc")
    assert macro.value == pytest.approx(auroc(labels, scores[0])[:3].mean())
    assert (macro.ci_low, macro.ci_high) == (pytest.approx(low), pytest.approx(high))


def test_a_finding_of_four_patients_has_a_value_without_an_interval_and_one_of_five_has_both(cases):
    _, scores, weights = cases
    labels = np.zeros((120, 4))
    labels[:8, 0], labels[:10, 1], labels[:110, 2] = 1, 1, 1
    labels[112:, 2] = np.nan
    rows = measure_findings([scores[0]], labels, FINDINGS, weights).of_seed(0)
    four, five, one_healthy = (pick(rows, finding, "auroc") for finding in FINDINGS[:3])
    assert np.isfinite([four.value, five.value, five.ci_low, five.ci_high, one_healthy.value]).all()
    assert np.isnan([four.ci_low, four.ci_high, one_healthy.ci_low, one_healthy.ci_high]).all()


def test_a_tier_is_the_mean_of_its_findings(cases):
    labels, scores, weights = cases
    tiers = {"Cardiomegaly": "head", "Nodule": "tail", "Hernia": "tail"}
    rows = measure_findings([scores[0]], labels, FINDINGS, weights, tiers).of_seed(0)
    assert pick(rows, "tail", "auroc").value == pytest.approx(auroc(labels, scores[0])[1:3].mean())
    assert pick(rows, "head", "auroc").value == pick(rows, "Cardiomegaly", "auroc").value
    assert "medium" not in set(rows.finding)
    with pytest.raises(StudyError, match="head, medium, tail"):
        measure_findings([scores[0]], labels, FINDINGS, weights, {"Nodule": "rare"}).of_seed(0)


def test_over_seeds_the_value_is_the_mean_and_the_interval_holds_their_spread(cases):
    labels, _, weights = cases
    generator = np.random.default_rng(1)
    present = np.nan_to_num(labels.clip(0))
    scores = [strength * present + generator.normal(size=labels.shape) for strength in (0.0, 1.0, 3.0)]
    rows = measure_findings(scores, labels, FINDINGS, weights).over_seeds(np.random.default_rng(0))
    macro = pick(rows, "macro", "auroc")
    assert macro.value == pytest.approx(np.mean([auroc(labels, one)[:3].mean() for one in scores]))
    one = pick(measure_findings([scores[1]], labels, FINDINGS, weights).of_seed(0), "macro", "auroc")
    assert macro.ci_high - macro.ci_low > 1.5 * (one.ci_high - one.ci_low)


def test_single_seeds_and_all_of_them_come_from_the_same_resamples(cases):
    labels, scores, weights = cases
    rows = measure_findings(scores, labels, FINDINGS, weights).each_seed((4, 7, 9), np.random.default_rng(1))
    columns = [name for name in rows if name != "seed"]
    for seed, one in zip((4, 7, 9), scores, strict=True):
        alone = measure_findings([one], labels, FINDINGS, weights).of_seed(0)
        pd.testing.assert_frame_equal(rows[rows.seed == seed][columns].reset_index(drop=True), alone)
    together = measure_findings(scores, labels, FINDINGS, weights).over_seeds(np.random.default_rng(1))
    pd.testing.assert_frame_equal(rows[rows.seed == -1][columns].reset_index(drop=True), together)
    mass = rows[(rows.finding == "Mass") & (rows.metric == "auroc")]
    assert (len(mass), mass.value.isna().all()) == (4, True)


def test_a_better_arm_is_seen_an_equal_one_is_not_and_seeds_must_pair(cases):
    labels, scores, weights = cases
    better = list(scores + 2 * np.nan_to_num(labels.clip(0)))
    good, plain = (measure_findings(one, labels, FINDINGS, weights) for one in (better, scores))
    macro = pick(good.minus(plain, np.random.default_rng(0)), "macro", "auroc_difference")
    assert 0 < macro.ci_low < macro.value < macro.ci_high
    assert (plain.minus(plain, np.random.default_rng(0)).value.dropna() == 0).all()
    with pytest.raises(StudyError, match="same seeds"):
        good.minus(measure_findings(scores[:2], labels, FINDINGS, weights), np.random.default_rng(0))


def test_scores_come_back_in_the_order_asked_for_from_several_sources(home):
    run, scores = Run("test"), np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype="float32")
    rows = pd.DataFrame({"image_id": list("cab"), "source": ["phantom", "phantom", "nih"], "split": "test"})
    name = write_scores(run, scores[:2], ["a", "c"], FINDINGS[:2], **PLACE)
    assert name == "evaluation/curated/seed0/zero_shot/phantom/test.parquet"
    write_scores(run, scores[2:], ["b"], FINDINGS[:2], **PLACE | {"data_set": "nih/test"})
    place = {"arm": "curated", "seed": 0, "task": "zero_shot"}
    read = read_scores(run, rows, ["Nodule", "Cardiomegaly"], **place)
    np.testing.assert_array_equal(read, scores[[1, 0, 2]][:, ::-1])
    assert read.dtype == scores.dtype
    assert read_scores(run, rows[:0], ["Nodule"], **place).shape == (0, 1)
    for asked, finding, other, sentence in (
        (rows.assign(image_id=list("adb")), "Nodule", {}, "lacks 1 of the images"),
        (rows, "Hernia", {}, "lacks the finding 'Hernia'"),
        (rows, "Nodule", {"seed": 5}, "05_compare_arms first"),
    ):
        with pytest.raises(StudyError, match=sentence):
            read_scores(run, asked, [finding], **place | other)


def test_an_image_is_scored_once(home):
    with pytest.raises(StudyError, match="the image of row 1 is scored twice"):
        write_scores(Run("test"), np.zeros((2, 1)), ["a", "a"], ["Nodule"], **PLACE)
    with pytest.raises(StudyError, match="pass a row an image"):
        write_scores(Run("test"), np.zeros((2, 1)), ["a"], ["Nodule"], **PLACE)
