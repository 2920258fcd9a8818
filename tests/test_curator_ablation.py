from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from kept_sets import draw_features, list_rows, write_features

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.errors import StudyError
from chexstudy.experiments import curator_ablation as ablation
from chexstudy.experiments.curator_ablation import (
    JACCARD,
    REFERENCE,
    KeptMeasure,
    average_seeds,
    change_constants,
    choose_measures,
    curate_features,
    describe_ranking,
    describe_reference,
    list_results,
    list_settings,
    mark_kept,
    measure_settings,
    rank_factors,
    subtract_reference,
    summarise_settings,
    tabulate_settings,
    take_reference,
)
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.results import OVER_SEEDS, validate_results
from chexstudy.runs import Run

PAIRS = 240
REFERENCE_CONFIG = take_reference(
    PretrainingConfig.from_dict({"super_batch": 60, "prototypes": 3, "central_cap": 4, "budget": 0.25})
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features():
    return draw_features(PAIRS, 3)


@pytest.fixture(scope="module")
def training():
    numbers = np.arange(PAIRS)
    return pd.DataFrame(
        {
            "image_id": [f"t/{number}" for number in numbers],
            "patient_id": [f"p{number // 2}" for number in numbers],
            "Edema": pd.array((numbers % 4 == 0).astype(int), dtype="Int8"),
            "Hernia": pd.array((numbers % 60 < 2).astype(int), dtype="Int8"),
        }
    )


# --- what is varied --------------------------------------------------------------------------------------------------


def test_the_reference_is_published_but_for_the_studys_sizes():
    study = {"rule": "budgeted", "outlier_policy": "keep", "sampler": "random", "decay": 0.5, "warm_up_order": "random"}
    sizes = {"prototypes": 4, "central_cap": 7, "budget": 0.4}
    config = PretrainingConfig.from_dict(
        study | sizes | {"super_batch": 99, "curation_epochs": 3, "curation_learning_rate": 1e-4, "batch_size": 17}
    )
    reference = take_reference(config)
    assert reference.curator == CuratorConfig(**sizes)
    assert (reference.curation_epochs, reference.curation_learning_rate) == (1, 0.0)
    assert (reference.super_batch, reference.batch_size) == (99, 17)
    words = describe_reference(reference)
    assert all(number in words for number in ("4", "7", "99"))


def test_every_factor_holds_the_reference_once_and_each_setting_changes_what_it_says():
    reference = take_reference(PretrainingConfig())
    settings = list_settings(reference, pairs=10_000)
    by_factor = pd.Series([one.name == REFERENCE for one in settings]).groupby([one.factor for one in settings])
    assert (by_factor.sum() == 1).all()
    assert len({(one.factor, one.value) for one in settings}) == len(settings)
    before = reference.to_dict() | reference.to_dict()["curator"]
    for setting in settings:
        after = setting.apply(reference).to_dict()
        after |= after["curator"]
        changed = {name for name in after if name != "curator" and after[name] != before[name]}
        assert changed == set(setting.changes)
        assert all(f"{name}={after[name]}" in setting.name for name in changed)
    with pytest.raises(StudyError, match="unknown constant"):
        change_constants(reference, {"prototype": 4})
    names = [one.name for one in settings]
    for expected in ("prototypes=48", "super_batch=1920", "decay=1.0", "central_cap=20", "curation_epochs=3"):
        assert names.count(expected) == 1


def test_settings_that_a_small_cohort_cannot_have_are_left_out(features):
    settings = list_settings(REFERENCE_CONFIG, PAIRS)
    batches = [one.apply(REFERENCE_CONFIG).super_batch for one in settings if one.factor == "Super-batch, B"]
    assert batches == [60, 120]
    values = [one.value for one in settings if one.factor == "First prototypes from"]
    assert values == ["first 200", "first 240", "random 240", "first 240, unit norm"]
    # Every one that is left can be run.
    for setting in {one.name: one for one in settings}.values():
        assert mark_kept(curate_features(features, setting.apply(REFERENCE_CONFIG), 0), PAIRS).any()
    smaller = list_settings(take_reference(PretrainingConfig.from_dict({"super_batch": 20, "prototypes": 5})), pairs=15)
    assert [one.value for one in smaller if one.factor == "Prototypes, K"] == ["2", "5", "6", "12"]
    assert "Super-batch, B" not in {one.factor for one in smaller}


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_order_and_chance_have_seeds_of_their_own(features):
    first = curate_features(features, REFERENCE_CONFIG, 0)
    again = curate_features(features, REFERENCE_CONFIG, 0)
    pd.testing.assert_frame_equal(first, again)
    redrawn = curate_features(features, REFERENCE_CONFIG, 1, order_seed=0)
    assert list(redrawn.row) == list(first.row)
    assert list(redrawn.kept) != list(first.kept)
    reordered = curate_features(features, REFERENCE_CONFIG, 0, order_seed=1)
    assert list(reordered.row) != list(first.row)
    twice = curate_features(features, change_constants(REFERENCE_CONFIG, {"curation_epochs": 2}), 0)
    orders = [list(twice.row[twice.epoch == epoch]) for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(PAIRS))


def test_a_set_is_measured_beside_the_reference(features, training):
    kept, reference = np.arange(PAIRS) % 4 == 0, np.arange(PAIRS) % 2 == 0
    rows = KeptMeasure(training, {"Hernia": "tail"}, None, 20).measure(kept, features, reference).set_index("metric")
    assert rows.value[JACCARD] == 60 / 120
    assert rows.value["keep_ratio"] == 0.25
    # Two of sixty rows in a row have a hernia: 0, 1, 60, 61, ...; half of them are multiples of four.
    assert rows.value["rare_recall"] == 0.5
    assert "Edema" not in set(rows.finding)
    assert set(choose_measures(False)) <= set(rows.index)
    assert set(choose_measures(True)) - set(rows.index) == {"duplicates_removed", "mismatched_kept"}


@pytest.fixture
def study(home, features, training):
    run = Run("tiny")
    write_features(run, features)
    run.write_table("cohort.parquet", training)
    return run


def test_settings_are_measured_once_and_read_again(study, features, training, monkeypatch):
    settings = [one for one in list_settings(REFERENCE_CONFIG, PAIRS) if one.factor in ("Rule", "Central cap")]
    measure = KeptMeasure(training, {"Hernia": "tail"}, None, 20)
    scores = SimpleNamespace(features=features)

    def run_all(measure=measure):
        return measure_settings(study, 0, settings, REFERENCE_CONFIG, scores, measure)

    rows = run_all()
    assert sorted(set(rows.setting)) == sorted({one.name for one in settings})
    assert (rows.seed == 0).all()
    overlap = rows[rows.metric == JACCARD].set_index("setting").value
    assert overlap[REFERENCE] == 1
    assert overlap.drop(REFERENCE).between(0.05, 0.999).all()
    ratio = rows[rows.metric == "keep_ratio"].set_index("setting")
    assert ratio.positives["rule=budgeted"] == PAIRS // 4
    for name in (REFERENCE, "central_cap=20"):
        config = REFERENCE_CONFIG if name == REFERENCE else change_constants(REFERENCE_CONFIG, {"central_cap": 20})
        assert ratio.positives[name] == curate_features(features, config, 0).kept.sum()

    def refuse(*_):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "curate_features", refuse)
        pd.testing.assert_frame_equal(run_all(), rows)
        with pytest.raises(AssertionError, match="measured again"):
            run_all(KeptMeasure(training, {"Hernia": "tail"}, None, 21))


# --- over seeds ------------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_with_students_interval():
    table = pd.DataFrame({"name": list("aaabbc"), "value": [1.0, 2, 3, 5, np.nan, 7], "n": [10, 10, 13, 4, 4, 4]})
    means = average_seeds(table, ["name"]).set_index("name")
    # The 97.5 % quantile of Student's t with two degrees of freedom is 4.3027; the standard deviation is 1.
    assert means.ci_high["a"] - 2 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert means.value.to_dict() == {"a": 2, "b": 5, "c": 7}
    assert means.seeds.to_dict() == {"a": 3, "b": 1, "c": 1}
    assert means.n.to_dict() == {"a": 11, "b": 4, "c": 4}
    assert means[["ci_low", "ci_high"]].loc[["b", "c"]].isna().all(axis=None)


def test_intervals_end_where_the_measure_does():
    rows = pd.concat([list_rows({REFERENCE: [0.1, 0.9]}), list_rows({REFERENCE: [0.1, 1.9]}, "enrichment")])
    table = summarise_settings(rows).set_index("metric")
    assert (table.seed == OVER_SEEDS).all()
    assert (table.ci_low == 0).all()
    assert table.ci_high["keep_ratio"] == 1
    assert table.ci_high["enrichment"] > 2


def test_differences_are_paired_by_seed():
    rows = list_rows({REFERENCE: [0.1, 0.3, 0.5], "decay=1.0": [0.2, 0.4, 0.6], "rule=budgeted": [0.2, 0.2, 0.2]})
    table = subtract_reference(rows).set_index("setting")
    assert list(table.index) == ["decay=1.0", "rule=budgeted"]
    assert table.loc["decay=1.0", ["value", "ci_low", "ci_high"]].tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert table.value["rule=budgeted"] == pytest.approx(-0.1)
    assert table.ci_low["rule=budgeted"] == pytest.approx(-0.1 - 4.302653 * 0.2 / np.sqrt(3))
    assert subtract_reference(rows, "decay=1.0").value.tolist() == pytest.approx([-0.1, -0.2])


def test_the_table_for_the_figure_repeats_the_reference_in_every_factor():
    settings = [one for one in list_settings(REFERENCE_CONFIG, PAIRS) if one.factor in ("Rule", "Outliers")]
    names = {one.name for one in settings}
    rows = [list_rows({name: [0.2, 0.4] for name in names})]
    rows.append(list_rows({name: [np.nan, np.nan] for name in names}, "rare_recall", "tail"))
    metrics = {"keep_ratio": "all", "rare_recall": "tail", "junk_kept": "all"}
    table = tabulate_settings(summarise_settings(pd.concat(rows)), settings, metrics, PAIRS)
    assert list(zip(table.factor, table.value, table.published, strict=True)) == [
        ("Outliers", "drop", True),
        ("Outliers", "keep", False),
        ("Rule", "published", True),
        ("Rule", "budgeted", False),
    ]
    assert set(table.metric) == {"keep_ratio"}
    assert (table.n == PAIRS).all()
    assert table.measure.tolist() == pytest.approx([0.3] * 4)


def test_factors_are_ranked_by_how_far_they_move_a_measure():
    table = pd.DataFrame(
        {
            "factor": ["K", "K", "Cap", "Cap", "Rule", "Rule"],
            "metric": "keep_ratio",
            "measure": [0.1, 0.5, 0.2, 0.3, 0.2, 0.2],
        }
    )
    ranks = rank_factors(table)
    assert ranks.keep_ratio.to_dict() == pytest.approx({"K": 0.4, "Cap": 0.1, "Rule": 0})
    said = describe_ranking(ranks)
    assert said.startswith("The keep ratio is moved most by K (40.0 points); Cap (10.0 points)")
    assert said.endswith("Rule (0.0 points).")


# --- into the results table ------------------------------------------------------------------------------------------


def test_rows_keep_the_contract_of_the_results_table():
    stream = list_rows({REFERENCE: [0.1, 0.2], "rule=budgeted": [0.3, 0.3]})
    trained = list_rows({REFERENCE: [0.1, 0.3], "two_epochs": [0.3, 0.3]})
    law = pd.DataFrame(
        {"prototypes": 6, "central_cap": 10, "super_batch": [120, 120], "measure": [0.5, 0.6], "n": 480, "seed": [0, 1]}
    )
    stability = pd.DataFrame(
        {
            "rule": "published",
            "varied": ["order", "seed"],
            "seed": [0, OVER_SEEDS],
            "first": ["one order", "seed 0"],
            "second": ["another", "seed 1"],
            "n": 480,
            "jaccard": [0.3, 0.2],
        }
    )
    rows = validate_results(list_results(stream, trained, law, stability, "tiny/train").assign(study="tiny"))
    assert set(rows.task) == {"ablation_curation"}
    means = rows[(rows.seed == OVER_SEEDS) & (rows.metric == "keep_ratio")].set_index(["variant", "setting"]).value
    assert means.to_dict() == pytest.approx(
        {("", REFERENCE): 0.15, ("", "rule=budgeted"): 0.3, (REFERENCE, ""): 0.2, ("two_epochs", ""): 0.3}
    )
    law_rows = rows[rows.metric == "full_batch_keep_ratio"]
    place = ("prototypes=6", "central_cap=10", "super_batch=120")
    assert set(law_rows[["setting", "variant", "group"]].itertuples(index=False, name=None)) == {place}
    assert law_rows.value[law_rows.seed == OVER_SEEDS].tolist() == pytest.approx([0.55])
    stable = rows.loc[rows.metric == "stability", ["variant", "setting", "group", "reference"]]
    assert set(stable.itertuples(index=False, name=None)) == {
        ("published", "order", "one order", "another"),
        ("published", "seed", "seed 0", "seed 1"),
    }
