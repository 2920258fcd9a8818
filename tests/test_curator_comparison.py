"""Methods of curation against each other: kept sets, stability, and zero-shot scores at both kinds of budget."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.image_text.evaluate import evaluate_arms
from chexstudy.evaluation.image_text.zero_shot import ZeroShot
from chexstudy.evaluation.scores import write_scores
from chexstudy.evaluation.task import run_tasks
from chexstudy.experiments import curator_comparison as comparison
from chexstudy.experiments.curator_comparison import (
    DIFFERENCE,
    KEPT,
    P_HOLM,
    P_VALUE,
    ZERO_SHOT,
    compare_methods,
    list_stability,
    measure_methods_kept,
    measure_methods_zero_shot,
    measure_stability,
    plan_same_compute,
    read_choices,
    summarise_seeds,
    tabulate_comparison,
)
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.training.arm_run import pretrain
from chexstudy.results import add_results, validate_results
from chexstudy.runs import Run

_PAIRS = 12


def _cohort(pairs=_PAIRS, split="train"):
    return pd.DataFrame(
        {
            "image_id": [f"mine/{number}" for number in range(pairs)],
            "patient_id": [f"mine/p{number}" for number in range(pairs)],
            "source": "mine",
            "split": split,
            "Mass": [1.0, 0.0] * (pairs // 2),
        }
    )


def _score_by_hand(run, seed, image_ids, angles):
    """Scores of a warm-up as another step would have left them: embeddings on a circle."""
    folder = f"curation/scoring/seed{seed}"
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for side in ("image", "text"):
        run.write_array(f"{folder}/{side}.npy", circle)
    run.write_table(f"{folder}/ids.parquet", pd.DataFrame({"image_id": image_ids}))
    run.write_table(f"{folder}/losses.parquet", pd.DataFrame({"image_id": image_ids, "loss": 1.0}))
    cost = {"flops": 1.0, "seconds": 1.0, "pairs_scored": len(image_ids)}
    run.write_json(f"{folder}/compute.json", cost | {"temperature": 0.1, "batch_size": 4})


def _choose_by_hand(run, method, seed, image_ids, kept):
    scores = pd.DataFrame({"image_id": image_ids, "score": [float(name in kept) for name in image_ids]})
    run.write_table(f"curation/{method}/seed{seed}/scores.parquet", scores)
    # The order of a subset's rows means nothing.
    subset = pd.DataFrame({"image_id": list(kept)[::-1], "weight": 1.0})
    run.write_table(f"curation/{method}/seed{seed}/subset.parquet", subset)


@pytest.fixture
def chosen(home):
    """Two methods, two seeds: ``random`` keeps the same three pairs, ``loss`` shares two of three from seed to seed."""
    run, cohort = Run("mine"), _cohort()
    ids = cohort.image_id.tolist()
    for seed in (0, 1):
        _score_by_hand(run, seed, ids, 2 * np.pi * np.arange(_PAIRS) / _PAIRS)
        _choose_by_hand(run, "random", seed, ids, ids[:3])
        _choose_by_hand(run, "loss", seed, ids, [ids[0], ids[4], ids[8 + seed]])
    return run, cohort


def test_choices_are_read_in_the_order_of_the_pairs(chosen):
    run, cohort = chosen
    choice = read_choices(run, ["loss"], 1, cohort.image_id)["loss"]
    assert list(choice.rows) == [0, 4, 9]
    assert list(np.flatnonzero(choice.scores)) == [0, 4, 9]
    with pytest.raises(StudyError, match="other pairs"):
        read_choices(run, ["loss"], 1, cohort.image_id[:-1])
    with pytest.raises(StudyError, match="08_compare_curators"):
        read_choices(run, ["density"], 1, cohort.image_id)
    _score_by_hand(run, 0, cohort.image_id.tolist()[::-1], np.arange(_PAIRS, dtype=float))
    with pytest.raises(StudyError, match="other pairs"):
        measure_methods_kept(run, cohort, ["random"], [0], resamples=5)


def test_kept_sets_are_measured_for_every_method_and_seed_and_over_seeds(chosen):
    run, cohort = chosen
    rows = validate_results(measure_methods_kept(run, cohort, ["random", "loss"], [0, 1], resamples=20))
    assert set(rows.task) == {KEPT}
    assert set(rows.data_set) == {"mine/train"}
    assert set(zip(rows.arm, rows.seed, strict=True)) == {
        (arm, seed) for arm in ("by_random", "by_loss") for seed in (0, 1, -1)
    }
    at = rows.set_index(["arm", "seed", "metric", "finding"]).value
    assert at["by_random", 0, "keep_ratio", "all"] == 0.25
    # Kept in the corner 0, 30, 60 degrees, the farthest is at 210, 150 away; at 0, 120, 240 none is beyond 60.
    assert at["by_random", 0, "coverage_radius", "all"] == pytest.approx(2 * np.sin(np.radians(75)), abs=1e-5)
    assert at["by_loss", 0, "coverage_radius", "all"] == pytest.approx(2 * np.sin(np.radians(30)), abs=1e-5)
    radius = [at["by_loss", seed, "coverage_radius", "all"] for seed in (0, 1)]
    assert at["by_loss", -1, "coverage_radius", "all"] == pytest.approx(np.mean(radius))
    # Pairs 0 and 2 of the first three have the finding; with 0, 4 and 8 all three do.
    assert at["by_random", 0, "recall", "Mass"] == pytest.approx(2 / 6)
    assert at["by_loss", 0, "recall", "Mass"] == pytest.approx(3 / 6)


def test_a_cohort_without_labels_has_its_geometry_measured(chosen):
    run, cohort = chosen
    rows = measure_methods_kept(run, cohort.drop(columns="Mass"), ["random", "loss"], [0], resamples=5)
    assert {"coverage_radius", "knn_coverage", "redundancy"} <= set(rows.metric)
    assert not {"recall", "rare_recall", "junk_kept"} & set(rows.metric)
    table = tabulate_comparison(add_results(run, rows))
    assert set(table.method) == {"random", "loss"}
    assert set(table.seeds) == {1}
    with pytest.raises(StudyError, match="08_compare_curators"):
        tabulate_comparison(rows.assign(task="curation"))


def test_stability_counts_what_two_seeds_share(chosen):
    run, cohort = chosen
    table = measure_stability(run, cohort, ["random", "loss"], [0, 1])
    assert table.jaccard["random"] == 1
    assert table.jaccard["loss"] == pytest.approx(2 / 4)
    assert table.comparisons["loss"] == 1
    rows = validate_results(list_stability(table, cohort).assign(study="mine"))
    assert rows.set_index("arm").value.to_dict() == {"by_random": 1, "by_loss": 0.5}
    # What two methods share.
    alike = compare_methods(run, cohort, ["random", "loss"], [0, 1])
    np.testing.assert_allclose(alike, [[1, 1 / 5], [1 / 5, 1]])
    none = measure_stability(run, cohort, ["random", "loss"], [0])
    assert none.empty
    assert list_stability(none, cohort).empty


def _kept_rows(metric, values, reach=0.1):
    return pd.DataFrame(
        {"arm": "by_loss", "metric": metric, "finding": "all", "value": values, "n": 10, "positives": 3}
    ).assign(ci_low=lambda rows: rows.value - reach, ci_high=lambda rows: rows.value + reach)


def test_seeds_that_agree_leave_the_interval_of_patients():
    row = summarise_seeds(_kept_rows("junk_kept", [0.4, 0.4, 0.4])).iloc[0]
    assert (row.value, row.ci_low, row.ci_high) == pytest.approx((0.4, 0.3, 0.5))
    assert (row.seed, row.n, row.positives) == (-1, 10, 3)


def test_seeds_that_differ_widen_it_by_their_own():
    values = [0.40, 0.42, 0.44]
    row = summarise_seeds(_kept_rows("junk_kept", values)).iloc[0]
    of_training = student.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert row.ci_high - row.value == pytest.approx(np.hypot(0.1, of_training))
    distance = summarise_seeds(_kept_rows("redundancy", values, np.nan)).iloc[0]
    assert distance.value - distance.ci_low == pytest.approx(of_training)


def test_what_cannot_be_known_has_no_interval():
    assert np.isnan(summarise_seeds(_kept_rows("coverage_radius", [0.4], np.nan)).ci_low[0])
    assert np.isnan(summarise_seeds(_kept_rows("junk_kept", [0.4, 0.5], np.nan)).ci_low[0])
    assert np.isnan(summarise_seeds(_kept_rows("keep_ratio", [0.4, 0.5])).ci_low[0])
    assert np.isnan(summarise_seeds(_kept_rows("junk_kept", [np.nan, np.nan], np.nan)).value[0])
    clipped = summarise_seeds(_kept_rows("junk_kept", [0.95, 0.05])).iloc[0]
    assert (clipped.ci_low, clipped.ci_high) == (0, 1)


def test_the_same_training_is_not_planned_twice():
    costs = pd.DataFrame(
        {
            "arm": ["curated", "curated", "by_random", "by_random", "by_loss", "by_loss", "by_learnability"],
            "flops": [100.0, 102.0, 94.0, 95.0, 99.0, 100.0, 106.0],
        }
    )
    assert plan_same_compute(costs, ["random", "loss", "learnability"]) == {
        "random": "by_random@compute",
        "loss": "by_loss",
        "learnability": "by_learnability@compute",
    }


# --- zero-shot ----------------------------------------------------------------------------------------------------

_ARMS = ("by_random", "by_loss", "by_density", "by_random@compute")


@pytest.fixture
def ranked(home, monkeypatch):
    """Scores of four arms on 120 test images: ``loss`` ranks perfectly, ``density`` as random choice does."""
    run, rng = Run("mine"), np.random.default_rng(3)
    test = _cohort(120, "test").assign(image_id=lambda rows: "test/" + rows.image_id)
    evaluation = Evaluation(run, pd.concat([_cohort(), test], ignore_index=True), None, resamples=200)
    labels = test.Mass.to_numpy()[:, None]
    for seed in (0, 1):
        noise = rng.random((len(test), 1))
        scores = dict.fromkeys(_ARMS, noise) | {"by_loss": labels + 0.1 * noise}
        for arm, values in scores.items():
            place = {"arm": arm, "seed": seed, "task": "zero_shot", "data_set": "mine/test"}
            write_scores(run, values, test.image_id, ["Mass"], **place)
    costs = {"by_random": 1.0, "by_loss": 2.0, "by_density": 2.0, "by_random@compute": 2.0}
    monkeypatch.setattr(comparison, "run_tasks", lambda *_: None)
    monkeypatch.setattr(comparison, "tell_exposure", lambda *_: "held_out")
    monkeypatch.setattr(
        comparison,
        "read_costs",
        lambda _, arms, seeds: pd.DataFrame(
            [{"arm": arm, "seed": seed, "flops": costs[arm], "seconds": 1.0} for arm in arms for seed in seeds]
        ),
    )
    return evaluation


_BUDGETS = {
    "same_data": {"random": "by_random", "loss": "by_loss", "density": "by_density"},
    "same_compute": {"random": "by_random@compute", "loss": "by_loss", "density": "by_density"},
}


def test_differences_from_random_are_paired_and_corrected(ranked):
    rows = validate_results(measure_methods_zero_shot(ranked, _BUDGETS, [0, 1]))
    auroc = rows[(rows.task == ZERO_SHOT) & (rows.metric == "auroc") & (rows.finding == "macro")]
    over = auroc[auroc.seed == -1].set_index(["setting", "arm"]).value
    assert over["same_data", "by_loss"] == 1
    assert over["same_compute", "by_loss"] == 1
    assert set(auroc.seed) == {-1, 0, 1}
    differences = rows[rows.task == DIFFERENCE].set_index(["setting", "arm", "finding", "metric"])
    place = ("same_data", "by_loss", "macro")
    assert differences.value[(*place, "auroc_difference")] == pytest.approx(1 - over["same_data", "by_random"])
    assert differences.ci_low[(*place, "auroc_difference")] > 0
    assert differences.value[(*place, P_VALUE)] < 1e-6
    # Two methods: the smallest p is doubled, and the other stays what it is.
    assert differences.value[(*place, P_HOLM)] == pytest.approx(2 * differences.value[(*place, P_VALUE)])
    even = ("same_data", "by_density", "macro")
    assert differences.value[(*even, "auroc_difference")] == 0
    assert differences.value[(*even, P_HOLM)] == 1
    assert set(differences.reference) == {"by_random"}
    assert set(rows[rows.task == ZERO_SHOT].flops) == {1.0, 2.0}
    assert measure_methods_zero_shot(ranked, {}, [0]).empty


def test_the_p_value_agrees_with_the_interval(ranked):
    # Noise of another draw: a difference at chance, whose p value and interval must say the same.
    rng = np.random.default_rng(8)
    ids = ranked.test_sets()["mine/test"].image_id
    for seed in (0, 1):
        place = {"arm": "by_density", "seed": seed, "task": "zero_shot", "data_set": "mine/test"}
        write_scores(ranked.run, rng.random((len(ids), 1)), ids, ["Mass"], **place)
    rows = measure_methods_zero_shot(ranked, {"same_data": _BUDGETS["same_data"]}, [0, 1])
    row = rows[(rows.arm == "by_density") & (rows.finding == "macro")].set_index("metric")
    spans_zero = row.ci_low["auroc_difference"] < 0 < row.ci_high["auroc_difference"]
    assert spans_zero == (row.value[P_VALUE] > 0.05)


def test_scores_alone_are_those_of_the_whole_evaluation(tiny_study):
    constants = {"image_size": 36, "dim": 16, "max_tokens": 32, "batch_size": 16, "micro_batch": 16}
    constants |= {"warm_up_epochs": 0, "subset_epochs": 0, "precision": "fp32"}
    pretrain(tiny_study, "full", 0, PretrainingConfig.from_dict(constants), "cpu")
    cohort = tiny_study.read_table("cohort.parquet")
    evaluation = Evaluation(tiny_study, cohort, open_pixel_store(tiny_study), resamples=5, probe=False)
    run_tasks(evaluation, [ZeroShot()], ["full"], [0], data_set="tiny/test")
    path = tiny_study.path("evaluation/full/seed0/zero_shot/tiny/test.parquet")
    alone = path.read_bytes()
    path.unlink()
    evaluate_arms(evaluation, ["full"], [0])
    assert path.read_bytes() == alone
