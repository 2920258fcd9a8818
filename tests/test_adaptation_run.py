"""Heads of a study: fitted without the test split, kept, not fitted twice, measured on the same patients."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation import recipes
from chexstudy.evaluation.adaptation import run as adaptation
from chexstudy.evaluation.adaptation.recipes import (
    FROZEN_KINDS,
    GloriConstants,
    HeadPlan,
    find_glori,
    plan_glori,
    plan_heads,
    plan_study,
    plan_tuning,
    thin_patients,
)
from chexstudy.evaluation.adaptation.run import (
    adapt_arm,
    adapt_arms,
    compare_adaptation,
    load_head,
    measure_adaptation,
    tabulate_costs,
)
from chexstudy.evaluation.adaptation.training import Recipe
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.scores import read_scores
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.models.dual_encoder import build_model, save_model
from chexstudy.results import validate_results
from chexstudy.statistics.ranking import auroc

FINDINGS = ["Mass", "Hernia"]
DATA_SET = "tiny/test"
QUICK = Recipe(learning_rates=(1e-2, 1e-1), epochs=3, batch_size=16)
SMALL = {"width": 16, "heads": 2, "feedforward": 16}
GLORI = GloriConstants(QUICK, SMALL | {"standardise": True})
pytestmark = pytest.mark.usefixtures("one_thread")


def make_arm(run, arm, seed):
    """An arm as the engine leaves it: here its encoders are those it would have started from."""
    cohort = read_cohort(run.path("cohort.parquet"))
    config = PretrainingConfig(image_size=36)
    folder = f"pretraining/{arm}/seed{seed}"
    model = build_model(config, cohort[cohort.split == "train"], seed + 10 * len(arm))
    save_model(run.path(f"{folder}/model"), model, config)
    run.write_json(f"{folder}/compute.json", {"flops": 1.0, "seconds": 2.0, "arm": arm, "seed": seed})
    run.record(f"{folder}/compute.json", {}, ("cohort.parquet",), seed)


@pytest.fixture
def evaluation(tiny_study):
    cohort = read_cohort(tiny_study.path("cohort.parquet"))
    return Evaluation(tiny_study, cohort, open_pixel_store(tiny_study), resamples=40, seed=0)


def test_every_kind_of_head_is_fitted_scored_and_measured(evaluation):
    make_arm(evaluation.run, "full", 0)
    plans = [*plan_heads(FROZEN_KINDS, QUICK, GLORI), *plan_tuning(["bias_only", "full"], epochs=1)]
    adapt_arms(evaluation, ["full"], [0], plans)
    rows = validate_results(measure_adaptation(evaluation, ["full"], [0], plans))
    assert set(rows["head"]) == {*FROZEN_KINDS, "bias_only", "full"}
    assert set(rows.data_set) == {DATA_SET}
    assert set(rows.exposure) == {"held_out"}
    # Brightness tells a mass: a head that learnt anything finds it.
    mass = rows[(rows.finding == "Mass") & (rows.metric == "auroc") & (rows.seed == -1)].set_index("head").value
    assert mass[["logistic", "linear", "full"]].min() > 0.8
    assert list(tabulate_costs(evaluation.run, ["full"], [0], plans).index) == [plan.name for plan in plans]
    again = load_head(evaluation.run, "full", 0, "glori_v1")
    test = evaluation.test_sets()[DATA_SET]
    features = EvaluatedModel(evaluation, "full", 0).freeze(patches=True)
    kept = read_scores(evaluation.run, test, FINDINGS, arm="full", seed=0, task="adaptation_glori_v1")
    np.testing.assert_array_equal(again.score(features, test.image_id.tolist()), kept)


def test_scores_do_not_depend_on_the_labels_of_the_test_split(evaluation):
    make_arm(evaluation.run, "full", 0)
    plan = HeadPlan("logistic")
    place = {"arm": "full", "seed": 0, "task": "adaptation_logistic"}
    test = evaluation.test_sets()[DATA_SET]
    adapt_arm(evaluation, "full", 0, [plan])
    first = read_scores(evaluation.run, test, FINDINGS, **place)
    other = evaluation.cohort.copy()
    in_test = other.split == "test"
    other.loc[in_test, FINDINGS] = 1 - other.loc[in_test, FINDINGS]
    evaluation.run.path(f"evaluation/full/seed0/adaptation_logistic/{DATA_SET}.parquet").unlink()
    adapt_arm(replace(evaluation, cohort=other), "full", 0, [plan])
    np.testing.assert_array_equal(read_scores(evaluation.run, test, FINDINGS, **place), first)


def test_current_scores_are_left_and_a_changed_plan_is_fitted_anew(evaluation, monkeypatch):
    make_arm(evaluation.run, "full", 0)
    fitted = []
    real = adaptation.fit_plan
    monkeypatch.setattr(adaptation, "fit_plan", lambda plan, *rest: fitted.append(plan.name) or real(plan, *rest))
    plans = [HeadPlan("linear", recipe=QUICK), HeadPlan("logistic")]
    adapt_arm(evaluation, "full", 0, plans)
    adapt_arm(evaluation, "full", 0, plans)
    assert fitted == ["linear", "logistic"]
    adapt_arm(evaluation, "full", 0, [HeadPlan("linear", recipe=replace(QUICK, epochs=2)), plans[1]])
    assert fitted == ["linear", "logistic", "linear"]


def test_two_heads_and_two_encoders_are_compared_on_the_same_patients(evaluation):
    for arm in ("full", "curated"):
        for seed in (0, 1):
            make_arm(evaluation.run, arm, seed)
    plans = plan_study(["Mass"], ["linear"], QUICK, GLORI, [0.5], [], 1)
    few, whole = plans.shares
    assert [few.name, whole.name] == ["logistic@50", "logistic"]
    adapt_arms(evaluation, ["full", "curated"], [0, 1], [*plans.heads, *plans.shares])
    pairs = [(("full", whole), ("full", plans.heads[0])), *plans.pair_label_shares(["curated", "full"], 0.5)]
    rows = validate_results(compare_adaptation(evaluation, [0, 1], pairs))
    assert set(zip(rows.arm, rows["head"], rows.setting, rows.reference, strict=True)) == {
        ("full", "logistic", "", "linear"),
        ("curated", "logistic", "0.5", "full"),
    }
    test = evaluation.test_sets()[DATA_SET]
    labels = test[FINDINGS].to_numpy(float)
    by_hand = []
    for seed in (0, 1):
        read = [
            read_scores(evaluation.run, test, FINDINGS, arm="full", seed=seed, task=f"adaptation_{head}")
            for head in ("logistic", "linear")
        ]
        by_hand.append(auroc(labels, read[0])[0] - auroc(labels, read[1])[0])
    row = rows[(rows.arm == "full") & (rows.finding == "Mass") & (rows.metric == "auroc_difference")].iloc[0]
    assert row.value == pytest.approx(np.mean(by_hand), abs=1e-12)
    small = compare_adaptation(evaluation, [0, 1], pairs[:1], ["Mass"])
    value = small[(small.finding == "small lesions") & (small.metric == "auroc_difference")].value
    assert value.tolist() == [row.value]
    assert compare_adaptation(evaluation, [0], []).empty


def test_a_damaged_head_is_one_sentence(evaluation):
    run = evaluation.run
    make_arm(run, "full", 0)
    adapt_arm(evaluation, "full", 0, [HeadPlan("linear", recipe=Recipe((0.01, 1e38), epochs=1))])
    fitted = load_head(run, "full", 0, "linear")
    assert fitted.validation.finite.tolist() == [True, False]
    assert (fitted.learning_rate, fitted.findings) == (0.01, tuple(FINDINGS))
    with pytest.raises(StudyError, match=r"has no heads/full/seed0/none/head\.json yet: run 09_adapt_encoder first"):
        load_head(run, "full", 0, "none")
    record = run.read_json("heads/full/seed0/linear/head.json")
    run.write_json("heads/full/seed0/linear/head.json", record | {"head": {"class": "system", "settings": {}}})
    with pytest.raises(StudyError, match="is damaged: run 09_adapt_encoder again"):
        load_head(run, "full", 0, "linear")


def test_patches_are_kept_of_the_first_encoder_alone(evaluation):
    for arm in ("full", "curated"):
        make_arm(evaluation.run, arm, 0)
    adapt_arms(evaluation, ["full", "curated"], [0], [HeadPlan("glori_v1", options=SMALL, recipe=QUICK)])
    kept = sorted(path.parts[-3] for path in evaluation.run.path("features").glob("*/*/patches.npy"))
    assert kept == ["full"]
    assert evaluation.run.has("features/curated/seed0/pooled.npy")


def test_a_local_head_does_not_see_the_last_block(evaluation):
    make_arm(evaluation.run, "full", 0)
    features = EvaluatedModel(evaluation, "full", 0).freeze(patches=True)
    splits = [evaluation.cohort[evaluation.cohort.split == split] for split in ("train", "validate")]
    plan = find_glori("glori_v1.local", GLORI)
    fitted, score = recipes.fit_plan(plan, features, None, None, *splits, FINDINGS, seed=0)
    assert fitted.head.channels == sum(features.widths[:-1])
    ids = evaluation.test_sets()[DATA_SET].image_id.tolist()
    blind = np.array(features.patches)
    blind[..., -features.widths[-1] :] = 0
    np.testing.assert_array_equal(fitted.score(replace(features, patches=blind), ids), score(ids))
    none = replace(plan, options=plan.options | {"skip_blocks": 4})
    with pytest.raises(StudyError, match="leaves out 4 of 4 blocks"):
        recipes.fit_plan(none, features, None, None, *splits, FINDINGS, seed=0)


def test_shares_of_patients_are_nested_whole_and_drawn_by_seed():
    rows = pd.DataFrame({"patient_id": [f"p{number // 3}" for number in range(300)], "image_id": range(300)})
    some, more = thin_patients(rows, 0.1, 4), thin_patients(rows, 0.4, 4)
    assert (some.patient_id.nunique(), more.patient_id.nunique()) == (10, 40)
    assert set(some.patient_id) < set(more.patient_id)
    assert (some.groupby("patient_id").size() == 3).all()
    assert set(some.patient_id) != set(thin_patients(rows, 0.1, 5).patient_id)
    assert len(thin_patients(rows, 1e-9, 0)) == 3
    assert thin_patients(rows, 1.0, 0) is rows


def test_the_plans_of_a_study_are_named_apart_and_paired_with_their_base():
    plans = plan_study(["Mass"], FROZEN_KINDS, QUICK, GLORI, [0.1, 0.025], ["full"], 2)
    assert [plan.name for plan in plans.shares] == ["logistic@2.5", "logistic@10"], "all labels are among the heads"
    every = [*plans.heads, *plans.shares, *plans.glori_variants, *plans.probe_variants]
    assert len({plan.name for plan in every}) == len(every)
    losses = {plan.recipe.loss for plan in plans.probe_variants}
    assert losses == {"bce", "asymmetric", "class_balanced", "logit_adjusted"}

    def name(pairs):
        return [(first_arm, first.name, second_arm, second.name) for (first_arm, first), (second_arm, second) in pairs]

    glori = name(plans.pair_glori(["a"]))
    assert glori == [("a", f"glori_v{v}", "a", base) for base in ("linear", "logistic") for v in (1, 2)]
    assert name(plans.pair_label_shares(["a", "b"], 0.1)) == [("a", "logistic@10", "b", "logistic")]
    variants = name(plans.pair_glori_variants("a"))
    assert {"glori_v2.no_pyramid", "glori_v1.local", "glori_v1"} <= {first for _, first, *_ in variants}
    assert {second for *_, second in variants} == {"glori_v2"}
    assert {"linear.pooled", "full"} <= {first for _, first, *_ in name(plans.pair_probe_variants("a"))}
    nothing = plan_study([], FROZEN_KINDS, QUICK, GLORI, [0.1], ["full"], 2)
    assert not any((nothing.heads, nothing.shares, nothing.glori_variants, nothing.probe_variants))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: HeadPlan("linear", labelled_share=0), "share of labels"),
        (lambda: plan_heads(["full"], QUICK, GLORI), "on frozen features"),
        (lambda: plan_tuning(["prompt"], 1), "bias_only, low_rank, full"),
        (lambda: find_glori("glori_v3", GLORI), "no head 'glori_v3' that looks at places"),
        (lambda: plan_glori(1, 32, [1e-3], 60, False), "multiple of 16, not 60: use 48"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence(make, sentence):
    with pytest.raises(StudyError, match=sentence):
        make()


def test_what_is_missing_is_said_before_anything_is_fitted(evaluation):
    with pytest.raises(StudyError, match="04_pretrain_curated"):
        adapt_arms(evaluation, ["full"], [0], [HeadPlan("logistic")])
    make_arm(evaluation.run, "full", 0)
    twice = [HeadPlan("linear", recipe=QUICK), HeadPlan("linear", options={"parts": "pooled"}, recipe=QUICK)]
    with pytest.raises(StudyError, match="two heads are named 'linear'"):
        adapt_arms(evaluation, ["full"], [0], twice)
    bare = replace(evaluation, cohort=evaluation.cohort.drop(columns=FINDINGS))
    with pytest.raises(StudyError, match="no labels to adapt to"):
        adapt_arm(bare, "full", 0, [HeadPlan("logistic")])
    with pytest.raises(StudyError, match=r"run 0[59]_"):
        measure_adaptation(evaluation, ["full"], [0], [HeadPlan("linear")])


def test_scores_of_an_arm_trained_anew_are_made_anew(evaluation):
    make_arm(evaluation.run, "full", 0)
    adapt_arm(evaluation, "full", 0, [HeadPlan("logistic")])
    cost = "pretraining/full/seed0/compute.json"
    evaluation.run.write_json(cost, evaluation.run.read_json(cost) | {"flops": 3.0})
    evaluation.run.record(cost, {}, ("cohort.parquet",), 0)
    name = f"evaluation/full/seed0/adaptation_logistic/{DATA_SET}.parquet"
    before = evaluation.run.provenance(name)["key"]
    adapt_arm(evaluation, "full", 0, [HeadPlan("logistic")])
    assert evaluation.run.provenance(name)["key"] != before
