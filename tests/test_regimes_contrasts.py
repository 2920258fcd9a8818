"""What a method gains over random, by tables worked out by hand and by drawn ones whose truth is known."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.experiments.regimes import contrasts
from chexstudy.experiments.regimes.design import Cell, Design, Question

CENTRE = Cell(16000, 2000, 0.04, 0.04, "trained", "scratch", 64)
AUROC, MAIN = contrasts.MAIN_METRIC, contrasts.MAIN_METHOD


def make_row(method, seed, value, choice=0, training=0, cell=CENTRE, **others):
    where = {"method": method, "seed": seed, "choice": choice, "training": training}
    return asdict(cell) | where | {AUROC: value} | others


def make_rows(values, cell=CENTRE):
    """One row for each method and pool: ``{method: [value of pool 0, ...]}``."""
    return [
        make_row(method, seed, value, cell=cell) for method, own in values.items() for seed, value in enumerate(own)
    ]


def test_a_gain_is_the_mean_over_pools_with_students_interval():
    outcomes = pd.DataFrame(make_rows({"random": [0.5, 0.6], "bands": [0.6, 0.65]}))
    (gain,) = contrasts.measure_gains(outcomes, [AUROC]).itertuples()
    assert (gain.method, gain.pools, gain.pool, gain.start) == ("bands", 2, 16000, "scratch")
    assert (gain.value, gain.reference, gain.gain) == pytest.approx((0.625, 0.55, 0.075))
    # Gains 0.10 and 0.05: standard error 0.025, t = 3 with one degree of freedom, whose quantile is tan(0.475 pi).
    reach = 0.025 * np.tan(0.475 * np.pi)
    assert (gain.ci_low, gain.ci_high) == pytest.approx((0.075 - reach, 0.075 + reach))
    assert gain.p == pytest.approx(1 - 2 * np.arctan(3) / np.pi)


def test_choices_and_trainings_of_a_pool_count_as_one():
    rows = [
        make_row("random", seed, 0.5, choice, training) for seed in (0, 1) for choice in (0, 1) for training in (0, 1)
    ]
    rows += [make_row("bands", 0, 0.5 + gain, 0, training) for training, gain in enumerate((0.1, 0.3))]
    rows += [make_row("bands", 1, 0.6)]
    (gain,) = contrasts.measure_gains(pd.DataFrame(rows), [AUROC]).itertuples()
    assert gain.pools == 2
    assert gain.gain == pytest.approx((0.2 + 0.1) / 2)


def test_what_has_no_partner_at_its_cell_is_left_out_and_one_pool_has_no_interval():
    other = replace(CENTRE, wrong=0.12)
    rows = make_rows({"random": [0.5], "bands": [0.6, 0.9]}) + make_rows({"bands": [0.7]}, other)
    gains = contrasts.measure_gains(pd.DataFrame(rows), [AUROC])
    assert gains[["wrong", "gain", "pools"]].to_numpy().tolist() == [[0.04, pytest.approx(0.1), 1]]
    assert gains[["ci_low", "ci_high", "p"]].isna().all(axis=None)


def test_gains_that_do_not_vary_are_certain():
    same = pd.DataFrame(make_rows({"random": [0.5, 0.5], "bands": [0.5, 0.5], "d4": [0.75, 0.75]}))
    gains = contrasts.measure_gains(same, [AUROC]).set_index("method")
    assert gains.p.to_dict() == {"bands": 1.0, "d4": 0.0}


def test_another_reference_takes_the_place_of_random():
    outcomes = pd.DataFrame(make_rows({"random": [0.5, 0.6], "bands": [0.6, 0.65], "d4": [0.7, 0.7]}))
    gains = contrasts.measure_gains(outcomes, [AUROC], reference="bands").set_index("method")
    assert gains.gain.to_dict() == pytest.approx({"random": -0.075, "d4": 0.075})


def test_holm_corrects_within_a_metric_and_counts_only_what_was_tested():
    gains = pd.DataFrame({"metric": ["a"] * 4 + ["b"], "p": [0.01, 0.04, 0.03, np.nan, 0.02]})
    corrected = contrasts.correct_gains(gains).p_holm
    assert corrected.tolist() == pytest.approx([0.03, 0.06, 0.06, np.nan, 0.02], nan_ok=True)


@pytest.fixture
def design():
    questions = {
        "wrong": Question("wrong", "?", (CENTRE, replace(CENTRE, wrong=0.12)), ("random", "bands"), 2),
        "size": Question("size", "?", (replace(CENTRE, budget=500),), ("random", "d4"), 2),
    }
    return Design({"random": {}, "bands": {}, "d4": {}}, questions)


def test_a_question_is_answered_by_its_cells_and_methods_alone(design):
    rows = make_rows({"random": [0.5, 0.5], "bands": [0.6, 0.65], "d4": [0.9, 0.8]})
    rows += make_rows({"random": [0.5, 0.5], "bands": [0.5, 0.52]}, replace(CENTRE, wrong=0.12))
    rows += make_rows({"random": [0.5, 0.5], "d4": [0.6, 0.7]}, replace(CENTRE, budget=500))
    answers = contrasts.answer_questions(pd.DataFrame(rows), design, [AUROC])
    told = answers[["question", "method", "wrong", "budget"]].to_numpy().tolist()
    assert told == [["wrong", "bands", 0.04, 2000], ["wrong", "bands", 0.12, 2000], ["size", "d4", 0.04, 500]]
    # Two tests in the first family, one in the second.
    smaller = answers.p[:2].min()
    assert answers.p_holm[:2].min() == pytest.approx(min(1, 2 * smaller))
    assert answers.p_holm[2] == answers.p[2]


def test_outcomes_that_answer_nothing_are_refused(design):
    with pytest.raises(StudyError, match="no method was trained beside a random choice"):
        contrasts.answer_questions(pd.DataFrame(make_rows({"random": [0.5]})), design, [AUROC])


def test_the_half_width_is_that_of_the_worst_cell_of_the_main_contrast():
    gains = pd.DataFrame(
        {"method": [MAIN, MAIN, "bands"], "metric": AUROC, "ci_low": [0.01, 0.0, -1], "ci_high": [0.03, 0.06, 1]}
    )
    assert contrasts.half_width(gains) == pytest.approx(0.03)
    assert contrasts.half_width(gains.assign(ci_low=[np.nan, 0, 0])) == np.inf
    assert contrasts.half_width(gains[gains.method == "bands"]) == np.inf


def nest(gains):
    """Outcomes whose gains are those of an array ``(pools, choices, trainings)``."""
    rows = []
    for (seed, choice, training), gain in np.ndenumerate(gains):
        rows += [make_row("random", seed, 0.5, choice, training), make_row(MAIN, seed, 0.5 + gain, choice, training)]
    return pd.DataFrame(rows)


def test_variance_is_split_as_by_hand():
    # Trainings differ by 2, choices by 4, pools by 10: mean squares 2, 16 and 200.
    outcomes = nest(np.array([[[0.0, 2], [4, 6]], [[10, 12], [14, 16]]]))
    told = contrasts.split_variance(outcomes).set_index("source")
    assert told.variance.to_dict() == pytest.approx({"pool": (200 - 16) / 4, "choice": (16 - 2) / 2, "training": 2})
    assert told.deviation.pow(2).tolist() == pytest.approx(told.variance.tolist())


def test_variance_is_that_which_was_drawn():
    generator, (pools, choices, trainings) = np.random.default_rng(0), (1000, 2, 2)
    gains = 0.04 * generator.normal(size=(pools, 1, 1)) + 0.03 * generator.normal(size=(pools, choices, 1))
    gains = gains + 0.02 * generator.normal(size=(pools, choices, trainings))
    told = contrasts.split_variance(nest(gains)).set_index("source").deviation
    # Four standard errors of the estimate for choices, whose variance is known to one in twenty.
    assert told.to_dict() == pytest.approx({"pool": 0.04, "choice": 0.03, "training": 0.02}, rel=0.1)


def test_pools_of_one_training_are_left_out_of_the_split_and_they_alone_are_refused():
    gains = np.array([[[0.0, 2], [4, 6]], [[10, 12], [14, 16]]])
    single = [make_row(method, 7, 0.5) for method in ("random", MAIN)]
    mixed = pd.concat([nest(gains), pd.DataFrame(single)])
    pd.testing.assert_frame_equal(contrasts.split_variance(mixed), contrasts.split_variance(nest(gains)))
    for too_few in (nest(gains[:1]), nest(gains[:, :1]), nest(gains[:, :, :1]), pd.DataFrame(single)):
        with pytest.raises(StudyError, match="two pools or more with two choices and trainings"):
            contrasts.split_variance(too_few)


def test_negative_estimates_of_variance_are_zero():
    told = contrasts.split_variance(nest(np.array([[[0.0, 2], [0, 2]], [[0, 2], [0, 2]]]))).set_index("source")
    assert told.variance.to_dict() == {"pool": 0, "choice": 0, "training": pytest.approx(2)}


def test_a_random_choice_alone_gains_nothing_and_breaks_nothing():
    outcomes = pd.DataFrame(make_rows({"random": [0.5, 0.6]}))
    gains = contrasts.correct_gains(contrasts.measure_gains(outcomes, [AUROC]))
    assert gains.empty
    assert {"gain", "p_holm"} <= set(gains)
    assert contrasts.half_width(gains) == np.inf
