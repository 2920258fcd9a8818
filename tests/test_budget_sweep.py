"""Arms at several budgets: their constants, their measures by hand, what is saved, and the figure of it."""

import numpy as np
import pandas as pd
import pytest
from drawn import describe, draw, plot

from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.scores import write_scores
from chexstudy.experiments import budget_sweep as budgets
from chexstudy.experiments.budget_sweep import (
    DIFFERENCE,
    SAVING,
    ZERO_SHOT,
    judge_saving,
    list_differences,
    list_savings,
    measure_budgets,
    state_differences,
    tabulate_budgets,
    train_at_budgets,
    write_ends,
    write_saving,
)
from chexstudy.plots import figures
from chexstudy.plots.costs import select_savings
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.pretraining.arms.budgets import list_budget_arms, name_budget, plan_budgets, read_budget
from chexstudy.pretraining.arms.definitions import name_variant
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.results import OVER_SEEDS, add_results, validate_results
from chexstudy.runs import Run

CONFIG = PretrainingConfig()
VARIANTS = ["keep_50", "keep_10"]
_SIDE = 10
# AUROC in tenths and cost of each arm; the second seed is as good as the first unless it is said otherwise.
_WORTH = {
    "full": (8, 16.0),
    "curated.keep_50": (9, 8.0),
    "curated.keep_10": (7, 2.0),
    "random_same_data.keep_50": (7, 4.0),
    "random_same_data.keep_10": (6, 1.0),
    "random_same_compute.keep_50": (8, 8.0),
    "random_same_compute.keep_10": (8, 2.0),
}


# --- budgets and their arms ------------------------------------------------------------------------------------------


def test_a_budget_has_a_name_that_can_be_read_back_and_other_variants_have_none():
    for share, name in {0.1: "10", 0.227: "22_7", 0.5: "50", 0.005: "0_5", 0.07: "7"}.items():
        assert name_budget(share) == f"keep_{name}"
        assert read_budget(f"keep_{name}") == pytest.approx(share)
    assert read_budget("") == 1, "all pairs are the budget of everything"
    for variant in ("two_epochs", "keep_all"):
        with pytest.raises(StudyError, match="of no budget"):
            read_budget(variant)


def test_budgets_change_the_rule_and_the_budget_alone():
    planned = plan_budgets(CONFIG, [0.1, 0.5, 0.227], 1000)
    assert list(planned) == ["keep_50", "keep_22_7", "keep_10"]
    for share, config in zip((0.5, 0.227, 0.1), planned.values(), strict=True):
        assert (config.curator.rule, config.curator.budget) == ("budgeted", share)
        curator = config.to_dict()["curator"] | {"rule": "published", "budget": CONFIG.curator.budget}
        assert PretrainingConfig.from_dict(config.to_dict() | {"curator": curator}) == CONFIG
    assert plan_budgets(CONFIG, [], 1000) == {}
    assert sorted(list_budget_arms(VARIANTS)) == sorted(_WORTH)
    assert list_budget_arms([]) == []


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        *(([share], "shares above 0 and below 1") for share in (0.0, 1.0, -0.1, 300.0, float("nan"))),
        *(([0.1, other], "both keep 10 of 100 pairs") for other in (0.1, 0.1001)),
    ],
)
def test_what_is_no_budget_is_refused(shares, sentence):
    with pytest.raises(StudyError, match=sentence):
        plan_budgets(CONFIG, shares, 100)


# --- measuring -------------------------------------------------------------------------------------------------------


def _cohort():
    """One case a patient: ten with and ten without Mass, in training and in the test."""
    rows = [(f"mine/{split}{number}", split, number % 2) for split in ("train", "test") for number in range(2 * _SIDE)]
    cohort = pd.DataFrame(rows, columns=["image_id", "split", "Mass"]).astype({"Mass": "Int8"})
    return cohort.assign(patient_id=cohort.image_id, source="mine")


def _scores(tenths):
    """Scores whose AUROC is ``tenths / 10``: all positives lie above so many of the ten negatives."""
    return np.array([[tenths - 0.5 if number % 2 else number // 2] for number in range(2 * _SIDE)], dtype=float)


@pytest.fixture
def measure(home, monkeypatch):
    """Call `measure_budgets` on arms whose worth is given, for some seeds; gives rows and costs."""
    run, cohort = Run("mine"), _cohort()
    ids = cohort.image_id[cohort.split == "test"].tolist()
    monkeypatch.setattr(budgets, "run_tasks", lambda *_: None)
    monkeypatch.setattr(budgets, "tell_exposure", lambda *_: "held_out")

    def call(worth=_WORTH, seeds=(0, 1), shift=None, variants=VARIANTS):
        costs = []
        for arm, (tenths, cost) in worth.items():
            for seed in seeds:
                scores = _scores(tenths + (shift or {}).get((arm, seed), 0))
                write_scores(run, scores, ids, ["Mass"], arm=arm, seed=seed, task="zero_shot", data_set="mine/test")
                spent = {"flops": cost * 1e12, "pairs_trained": int(1000 * cost), "seconds": 1.0 + seed}
                costs.append({"arm": arm, "seed": seed} | spent)
        costs = pd.DataFrame(costs)
        monkeypatch.setattr(budgets, "read_costs", lambda run, arms, seeds: costs[costs.arm.isin(arms)])
        evaluation = Evaluation(run, cohort, None, 200, 0, False)
        return measure_budgets(evaluation, variants, list(seeds)), costs

    return call


def test_every_arm_is_measured_by_seed_and_over_seeds(measure):
    rows, _ = measure(shift={("curated.keep_10", 1): 1})
    rows = validate_results(rows)
    trainings = [
        name_variant(arm, variant) if variant else arm for arm, variant in zip(rows.arm, rows.variant, strict=True)
    ]
    of_arms = rows.assign(arm=trainings)[rows.task == ZERO_SHOT].set_index(["arm", "seed", "finding"])
    assert set(of_arms.index) == {
        (arm, seed, one) for arm in _WORTH for seed in (0, 1, -1) for one in ("macro", "head")
    }
    for arm, (tenths, cost) in _WORTH.items():
        assert of_arms.value[arm, 0, "macro"] == pytest.approx(tenths / 10)
        assert of_arms.flops[arm, OVER_SEEDS, "macro"] == cost * 1e12
    assert of_arms.seconds["full", 1, "macro"] == 2
    assert of_arms.seconds["full", OVER_SEEDS, "macro"] == 1.5
    curated = of_arms.loc["curated.keep_10"]
    assert curated.value[1, "head"] == pytest.approx(0.8)
    assert curated.value[OVER_SEEDS, "head"] == pytest.approx(0.75)
    assert (of_arms.ci_low < of_arms.value).all()
    assert ((of_arms.ci_high > of_arms.value) & (of_arms.ci_high <= 1)).all()
    assert (rows.n == 2 * _SIDE).all()


def test_differences_are_paired_by_patient_and_seed(measure):
    # The second seed is worse in both arms alike: the difference does not see it.
    lower = {(arm, 1): -2 for arm in ("curated.keep_50", "random_same_compute.keep_50")}
    rows, _ = measure(_WORTH | {"curated.keep_10": _WORTH["random_same_data.keep_10"]}, shift=lower)
    at = rows[rows.task == DIFFERENCE].set_index(["arm", "variant", "reference", "finding"])
    assert len(at) == 2 * 2 * 3
    assert at.value["curated", "keep_50", "random_same_compute", "macro"] == pytest.approx(0.1)
    assert at.value["curated", "keep_50", "full", "macro"] == pytest.approx(0.0)
    same = at.loc[("curated", "keep_10", "random_same_data", "macro")]
    assert (same.value, same.ci_low, same.ci_high) == (0, 0, 0)
    width = (at.ci_high - at.ci_low).xs("macro", level="finding")
    assert width["curated", "keep_50", "random_same_compute"] < width["curated", "keep_50", "full"]


def test_savings_are_read_off_the_curves_of_random_training_and_of_curated(measure):
    rows, _ = measure()
    at = rows[(rows.task == SAVING) & (rows.finding == "macro")].set_index(["arm", "variant", "reference", "metric"])
    # Random pairs are as good as 10 % curated (0.7, at 2) at 4.
    saved = at.loc[("curated", "keep_10", "random_same_data", "flops_saved")]
    assert (saved.value, saved.setting) == (pytest.approx(0.5), "reached")
    assert at.value["curated", "keep_10", "random_same_data", "pairs_saved"] == pytest.approx(0.5)
    # Nothing random is as good as 50 % curated (0.9, at 8), not even all pairs at 16.
    never = at.loc[("curated", "keep_50", "random_same_data", "flops_saved")]
    assert (never.value, never.setting) == (pytest.approx(0.5), "at_least")
    # Random batches were better than 10 % curated at the least that was tried.
    less = at.loc[("curated", "keep_10", "random_same_compute", "flops_saved")]
    assert (less.value, less.setting) == (pytest.approx(0.0), "at_most")
    # Curated training has 0.7 at 2 and 0.9 at 8, so 0.8, which all pairs have at 16, at 4.
    curve = at.loc[("curated", "", "full", "flops_saved")]
    assert (curve.value, curve.setting) == (pytest.approx(0.75), "reached")
    assert len(at) == 2 * (2 * 2 + 1)


def test_one_budget_and_one_seed_are_enough(measure):
    rows, costs = measure({arm: worth for arm, worth in _WORTH.items() if "50" not in arm}, (0,), variants=["keep_10"])
    saving = rows[(rows.task == SAVING) & (rows.finding == "macro") & (rows.metric == "flops_saved")]
    state = saving.set_index(["arm", "variant", "reference"]).setting
    assert state["curated", "", "full"] == "at_most"
    assert state["curated", "keep_10", "random_same_data"] == "reached"
    assert plot(figures.budgets, rows, costs).axes


def test_what_cannot_be_measured_is_said(measure, home):
    assert measure(variants=[])[0].empty
    bare = Evaluation(Run("mine"), _cohort().drop(columns="Mass"), None)
    assert train_at_budgets(bare.run, bare.cohort, CONFIG, [0.5], [0]) == {}
    with pytest.raises(StudyError, match="has none"):
        measure_budgets(bare, VARIANTS, [0])


def test_the_table_and_the_words(measure):
    rows, costs = measure()
    results = add_results(Run("mine"), rows)
    table = tabulate_budgets(results, costs)
    assert table.index.tolist() == [
        *((kept, arm) for kept in ("10.0%", "50.0%") for arm in ("curated", "random_same_data", "random_same_compute")),
        ("100.0%", "full"),
    ]
    assert list(table.columns) == ["macro", "head", "pairs_trained", "flops", "compute"]
    assert table.macro["50.0%", "curated"].startswith("0.900 [")
    assert table.compute["10.0%", "random_same_data"] == "6.2%"
    assert table.pairs_trained["100.0%", "full"] == 16000
    assert len(list_differences(results)) == 12
    assert len(state_differences(results)) == 6
    savings = list_savings(results).set_index(["arm", "variant", "reference", "cost"])
    assert savings.saved["curated", "keep_50", "random_same_data", "flops"] == "at least 50 %"
    assert savings.saved["curated", "", "full", "pairs_trained"] == "75 %"


def test_savings_in_words():
    assert [write_saving(0.324, state) for state in ("reached", "at_least", "at_most")] == [
        *("32 %", "at least 32 %", "at most 32 %")
    ]
    assert write_saving(-0.1, "reached") == "\N{MINUS SIGN}10 %"
    assert write_saving(-0.001, "reached") == "0 %"
    nan = float("nan")
    assert write_ends(0.1, 0.45) == "10 to 45 %"
    assert (write_ends(0.1, nan), write_ends(nan, 0.45), write_ends(nan, nan)) == (
        *("10 % or more", "45 % or less", "not bounded"),
    )
    for ends, verdict in {(0.1, nan): "saved", (nan, -0.1): "lost", (nan, 0.4): "cannot be told"}.items():
        assert judge_saving(*ends) == verdict
    assert judge_saving(-0.1, 0.4) == "cannot be told"


# --- the figure ------------------------------------------------------------------------------------------------------


def _told(rows, pair, value, low, high, state="reached"):
    """The rows with one saving that can be told, in both costs and for all findings."""
    own = (rows.task == SAVING) & (rows[["arm", "variant", "reference"]] == pair).all(axis=1)
    ends = {"value": value, "ci_low": low, "ci_high": high, "setting": state}
    others = rows.task == SAVING
    rows = rows.assign(ci_low=rows.ci_low.mask(others), ci_high=rows.ci_high.mask(others))
    return rows.assign(**{name: rows[name].mask(own, end) for name, end in ends.items()})


def _texts(axes, gid):
    return [text.get_text() for text in axes.texts if text.get_gid() == gid]


def test_the_figure_shows_every_arm_against_both_costs(measure):
    rows, costs = measure()
    figure = plot(figures.budgets, rows, costs)
    assert len(figure.axes) == 2
    for axes, cost in zip(figure.axes, ([2, 8], [2000, 8000]), strict=True):
        lines = {line.get_gid(): line for line in axes.lines}
        assert lines["curated"].get_xdata().tolist() == cost
        assert lines["curated"].get_ydata().tolist() == pytest.approx([0.7, 0.9])
        assert {"random_same_data", "random_same_compute", "interval", "estimate"} <= set(lines)
        assert _texts(axes, "kept") == ["10 %", "50 %"]
        assert axes.get_xscale() == "log"
    points = figures.budgets.choose(rows, costs)[0]
    shares = points.groupby("arm").kept.agg(list)
    assert shares["full"] == [1.0]
    assert all(shares[arm] == [0.1, 0.5] for arm in ("curated", "random_same_data", "random_same_compute"))
    assert points.pairs_trained[points.arm == "full"].item() == 16000


_WHOLE, _AT_10 = ("curated", "", "full"), ("curated", "keep_10", "random_same_data")


@pytest.mark.parametrize(
    ("saving", "brackets", "said"),
    [
        ((("curated", "", "no such arm"), 0, 0, 0), ([], []), "cannot be told for any of 5 comparisons"),
        ((_AT_10, 0.5, 0.2, 0.6), ([], ["50 % saved"]), "50 % (20 to 60 %) by keeping 10 % against random, same data."),
        ((_AT_10, 0.5, 0.2, 0.6), ([], ["50 % saved"]), "for 4 of 5 comparisons"),
        (
            (_WHOLE, 0.75, 0.5, np.nan, "at_least"),
            (["at least 75 % saved"],) * 2,
            "at least 75 % (50 % or more) by curation against all pairs",
        ),
        ((_WHOLE, -0.5, -0.9, -0.2), ([], []), "\N{MINUS SIGN}50 % (\N{MINUS SIGN}90 to \N{MINUS SIGN}20 %)"),
    ],
)
def test_a_saving_is_drawn_where_it_can_be_told_and_only_there(measure, saving, brackets, said):
    rows, costs = measure()
    drawn = draw(figures.budgets, _told(rows, *saving), costs)
    assert [_texts(axes, "saving") for axes in drawn.axes] == list(brackets)
    assert said in drawn.caption


def test_the_caption_says_what_was_compared(measure):
    rows, costs = measure()
    caption = describe(figures.budgets, rows, costs)
    for words in ("mine, test", "exactly 10, 50 % of the pairs", "2 seeds", "n = 20", "no points of a curve"):
        assert words in caption
    single, costs = measure(seeds=(0,))
    assert "patients resampled; 1 seed." in describe(figures.budgets, single, costs)
    assert select_savings(rows).reference.iloc[0] == "full"
    with pytest.raises(NothingToDraw, match="without arms at budgets, macro"):
        figures.budgets.choose(rows[rows.task != ZERO_SHOT], costs)
