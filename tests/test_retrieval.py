from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.image_text.retrieval import (
    METRICS,
    POLICIES,
    expected_rank,
    expected_recall,
    measure_chance,
    measure_ranks,
    measure_retrieval,
    rank_pairs,
)
from chexstudy.results import add_results
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import bootstrap_patients


def measure(images, described, texts, patients, resamples, policy="collapse"):
    """Rows of both directions, one seed."""
    weights = bootstrap_patients(patients, resamples, np.random.default_rng(0))
    ranks = rank_pairs(images, described, texts, policy)
    return pd.concat([part.of_seed(0) for part in measure_retrieval([ranks], weights, policy)], ignore_index=True)


def on_circle(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_ranks_worked_by_hand():
    # Images at 0, 10, 50 degrees; their texts at 12, 40, 44.
    ranks = rank_pairs(on_circle(0, 10, 50), on_circle(12, 40, 44), ["a", "b", "c"])
    assert list(ranks.image_to_text_better) == [0, 1, 0]
    # Nearest image first: the text at 12 sees 10, 0, 50; at 40 sees 50, 10, 0; at 44 sees 50, 10, 0.
    assert list(ranks.text_to_image_better) == [1, 1, 0]
    np.testing.assert_allclose(measure_ranks(ranks, "image_to_text"), [2 / 3, 1, 1, 1, 4 / 3])
    np.testing.assert_allclose(measure_ranks(ranks, "text_to_image"), [1 / 3, 1, 1, 2, 5 / 3])


def test_identical_texts_are_one_candidate_and_any_of_their_images_is_right():
    images = on_circle(0, 90, 180)
    texts = ["Normal chest.", "Mass.", " Normal  chest. "]
    # The text "normal" lies at the third image; the first image is nearer to it than the mass is, but both are right.
    ranks = rank_pairs(images, on_circle(180, 90, 180), texts)
    assert list(ranks.text) == [0, 1, 0]
    np.testing.assert_allclose(ranks.share, [1 / 2, 1, 1 / 2])
    assert list(ranks.text_to_image_better) == [0, 0, 0]
    # The first image is opposite its text: of two candidates the mass is nearer.
    assert list(ranks.image_to_text_better) == [1, 0, 0]
    assert measure_ranks(ranks, "text_to_image")[0] == 1
    assert measure_ranks(ranks, "image_to_text")[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("better", "tied", "right"), [(0, 3, 1), (1, 3, 2), (2, 0, 1), (0, 2, 3), (4, 1, 1)])
def test_ties_are_expectations_over_all_orders(better, tied, right):
    orders = list(permutations([True] * right + [False] * tied))
    first = [better + 1 + order.index(True) for order in orders]
    arguments = [np.array([float(value)]) for value in (better, tied, right)]
    assert expected_rank(*arguments)[0] == pytest.approx(np.mean(first))
    for cutoff in (1, 2, 3, 5, 10):
        assert expected_recall(*arguments, cutoff)[0] == pytest.approx(np.mean(np.array(first) <= cutoff))


def test_equal_cosines_are_ties_whatever_their_last_bits():
    generator = np.random.default_rng(6)
    # A matrix product of this size rounds differently at its edges.
    images, described = np.tile(generator.normal(size=129), (203, 1)), np.tile(generator.normal(size=129), (203, 1))
    ranks = rank_pairs(images, described, [str(number) for number in range(203)])
    assert (ranks.image_to_text_tied == 202).all()


def test_weights_repeat_queries_and_share_a_text_among_its_images():
    generator = np.random.default_rng(0)
    texts = [f"report {number % 9}" for number in range(15)]
    images, described = generator.normal(size=(15, 4)), generator.normal(size=(9, 4))[np.arange(15) % 9]
    ranks = rank_pairs(images, described, texts)
    np.testing.assert_allclose(
        measure_ranks(ranks, "image_to_text", np.ones((1, 15), int))[0], measure_ranks(ranks, "image_to_text")
    )
    weights = generator.integers(0, 4, size=(6, 15))
    measured = measure_ranks(ranks, "image_to_text", weights)
    rank = expected_rank(*(ranks[f"image_to_text_{name}"].to_numpy() for name in ("better", "tied", "right")))
    for row, weight in zip(measured, weights, strict=True):
        repeated = np.repeat(rank, weight)
        np.testing.assert_allclose(
            row, [*((repeated <= k).mean() for k in (1, 5, 10)), np.median(repeated), repeated.mean()]
        )
    rank = expected_rank(*(ranks[f"text_to_image_{name}"].to_numpy() for name in ("better", "tied", "right")))
    share = weights * ranks.share.to_numpy()
    np.testing.assert_allclose(
        measure_ranks(ranks, "text_to_image", weights)[:, -1], (share * rank).sum(axis=1) / share.sum(axis=1)
    )


def test_blocks_of_queries_leave_no_seam(monkeypatch):
    generator = np.random.default_rng(1)
    images, texts = generator.normal(size=(50, 3)), [str(number % 31) for number in range(50)]
    described = generator.normal(size=(31, 3))[np.arange(50) % 31]
    whole = rank_pairs(images, described, texts)
    monkeypatch.setattr("chexstudy.evaluation.image_text.retrieval._ROWS_AT_ONCE", 7)
    assert rank_pairs(images, described, texts).equals(whole)


def test_rows_say_what_was_asked_and_fit_the_results_table(home):
    generator = np.random.default_rng(2)
    texts = ["normal", "normal", "", *[f"report {number}" for number in range(37)]]
    described = generator.normal(size=(40, 6))
    described[1] = described[0]
    images = described + 0.2 * generator.normal(size=(40, 6))
    rows = measure(images, described, texts, np.arange(40) // 2, 200)
    by_image = rows[(rows.setting == "image_to_text") & (rows.group == "collapse")]
    assert list(by_image.metric[:5]) == list(METRICS)
    assert (by_image.n == 39).all()
    recall = by_image[by_image.metric == "recall@1"].iloc[0]
    assert recall.ci_low < recall.value < recall.ci_high or recall.value == 1
    chance = by_image[by_image.metric == "recall@5 by chance"].iloc[0]
    assert chance.value == pytest.approx(5 / 38)
    by_text = rows[rows.setting == "text_to_image"]
    assert (by_text.n == 38).all()
    place = {"arm": "full", "seed": 0, "task": "retrieval", "data_set": "phantom/test", "exposure": "held_out"}
    assert len(add_results(Run("test"), rows.assign(**place))) == len(rows) == 20
    assert measure(images, described, texts, np.arange(40) // 2, 200).equals(rows)


def test_what_cannot_be_ranked_is_named():
    with pytest.raises(StudyError, match="all of these are empty"):
        rank_pairs(np.ones((2, 3)), np.ones((2, 3)), ["", " "])


def test_a_resample_without_any_text_counts_as_not_evaluable():
    ranks = rank_pairs(np.eye(3), np.eye(3), ["a", "", ""])
    weights = np.array([[0, 2, 1], [1, 1, 1]])
    measured = measure_ranks(ranks, "image_to_text", weights)
    assert np.isnan(measured[0, [0, 1, 2, 4]]).all()
    assert measured[1, 0] == 1


def test_policies_for_identical_texts_worked_by_hand():
    # Texts: two normals at 0 degrees and a mass at 90. Images: at 10 (normal), 80 (normal), 60 (mass).
    images, described, texts = on_circle(10, 80, 60), on_circle(0, 0, 90), ["normal", "normal", "mass"]
    collapse, any_match, strict = (rank_pairs(images, described, texts, policy) for policy in POLICIES)
    # Two candidates: the second image is nearer to the mass than to its own text, the third is not.
    assert list(collapse.image_to_text_better) == [0, 1, 0]
    assert list(collapse.image_to_text_tied) == [0, 0, 0]
    # Three candidates: both normals are right for a normal image.
    assert list(any_match.image_to_text_better) == [0, 1, 0]
    assert list(any_match.image_to_text_right) == [2, 2, 1]
    assert list(any_match.image_to_text_tied) == [0, 0, 0]
    # Only its own is right: the other normal ties, a coin decides.
    assert list(strict.image_to_text_tied) == [1, 1, 0]
    assert list(strict.image_to_text_right) == [1, 1, 1]
    np.testing.assert_allclose(measure_ranks(strict, "image_to_text"), [1 / 2, 1, 1, 1.5, (1.5 + 2.5 + 1) / 3])
    # Texts as queries see the images at 10, 60, 80 from 0 degrees, and 80, 60, 10 from 90.
    assert list(collapse.text_to_image_better) == list(any_match.text_to_image_better) == [0, 0, 1]
    assert list(strict.text_to_image_better) == [0, 2, 1]
    np.testing.assert_allclose(measure_ranks(collapse, "text_to_image")[[0, 4]], [1 / 2, 3 / 2])
    np.testing.assert_allclose(measure_ranks(any_match, "text_to_image")[[0, 4]], [2 / 3, 4 / 3])
    np.testing.assert_allclose(measure_ranks(strict, "text_to_image")[[0, 4]], [1 / 3, 2])


def test_a_tie_between_a_right_and_a_wrong_answer_is_half_a_hit_in_both_directions():
    # The images at 20 and -20 degrees are equally near to the text at 0, and the texts to the image.
    ranks = rank_pairs(on_circle(20, -20), on_circle(0, 180), ["a", "b"])
    assert list(ranks.text_to_image_tied) == [1, 1]
    assert measure_ranks(ranks, "text_to_image")[0] == 0.5
    assert measure_ranks(ranks, "text_to_image")[-1] == 1.5
    ranks = rank_pairs(on_circle(0, 180), on_circle(20, -20), ["a", "b"])
    assert list(ranks.image_to_text_tied) == [1, 1]
    assert measure_ranks(ranks, "image_to_text")[0] == 0.5


@pytest.mark.parametrize("policy", POLICIES)
def test_a_collapsed_model_gets_the_chance_of_every_policy(policy, home):
    texts = [f"report {number % 8}" for number in range(19)] + [""]
    ranks = rank_pairs(np.ones((20, 5)), np.ones((20, 5)), texts, policy)
    for direction in ("image_to_text", "text_to_image"):
        np.testing.assert_allclose(measure_ranks(ranks, direction), measure_chance(ranks, direction, policy))
    chance = {"collapse": 1 / 8, "any_match": (3 * 9 + 5 * 4) / 19 / 19, "strict": 1 / 19}[policy]
    assert measure_chance(ranks, "image_to_text", policy)[0] == pytest.approx(chance)
    # Three texts have three images, five have two; the image without a text stays a candidate.
    chance = {"collapse": 19 / 20 / 8, "any_match": (3 * 9 + 5 * 4) / 20 / 19, "strict": 1 / 20}[policy]
    assert measure_chance(ranks, "text_to_image", policy)[0] == pytest.approx(chance)
    rows = measure(np.ones((20, 5)), np.ones((20, 5)), texts, np.arange(20), 20, policy)
    by_text = rows[rows.setting == "text_to_image"]
    assert (by_text.n == (8 if policy == "collapse" else 19)).all()
    assert (rows.group == policy).all()
