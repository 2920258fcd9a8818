"""Methods that choose by agreement, loss or learnability rather than by place."""

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS
from chexstudy.errors import StudyError

NONE = np.zeros((6, 1), dtype=np.float32)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_circle(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_agreement_is_the_cosine_of_image_and_text_of_any_length():
    image, text = on_circle([0, 0, 90, 30, 10, 5]), 3 * on_circle([180, 60, 90, 40, 80, 5])
    choice = METHODS["agreement"].choose(NONE, 3, draw(), image=image, text=text)
    np.testing.assert_allclose(choice.scores, np.cos(np.deg2rad([180, 60, 0, 10, 70, 0])), atol=1e-6)
    assert choice.rows.tolist() == [2, 3, 5]


def test_loss_takes_the_highest_and_learnability_what_the_reference_finds_easier():
    loss = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    reference = np.array([5.0, 1.0, 2.5, 0.0, 0.9, 0.1])
    assert METHODS["loss"].choose(NONE, 2, draw(), loss=loss).rows.tolist() == [0, 1]
    learnable = METHODS["learnability"].choose(NONE, 2, draw(), loss=loss, reference_loss=reference)
    assert learnable.rows.tolist() == [1, 3]
    np.testing.assert_allclose(learnable.scores, [0, 3, 0.5, 2, 0.1, -0.1])


def test_errors_of_two_orthogonal_pairs():
    image = text = np.eye(2, dtype=np.float32)
    right = np.e / (np.e + 1)
    scores = METHODS["el2n"].choose(NONE[:2], 1, draw(), image=image, text=text, temperature=1.0).scores
    np.testing.assert_allclose(scores, np.sqrt(2) * (1 - right), rtol=1e-6)


def test_an_exchanged_report_has_the_longest_error():
    image = np.eye(8, dtype=np.float32)
    text = image[[0, 1, 2, 3, 5, 4, 6, 7]]
    choice = METHODS["el2n"].choose(NONE, 2, draw(), image=image, text=text)
    assert choice.rows.tolist() == [4, 5]


LOSS = np.array([0.0, 0.0, 0.0, 0.0, 10.0, 10.0])


@pytest.mark.parametrize(
    ("budget", "weights"),
    [(6, [1] * 6), (5, [4 / 3] * 3 + [1] * 2), (4, [2] * 2 + [1] * 2), (3, [4, 1, 1]), (1, [6])],
)
def test_soft_pruning_rescales_the_drawn_so_that_weights_sum_to_all_pairs(budget, weights):
    choice = METHODS["infobatch"].choose(NONE, budget, draw(), loss=LOSS)
    np.testing.assert_allclose(choice.weights, weights)
    assert choice.weights.sum() == pytest.approx(6)
    if budget >= 3:
        assert {4, 5} <= set(choice.rows)


def test_soft_pruning_below_what_the_mean_allows_raises_the_threshold():
    loss = np.arange(100.0)
    choice = METHODS["infobatch"].choose(np.zeros((100, 1)), 23, draw(), loss=loss)
    # 77 of the lowest 86 losses are pruned, 90 %; the highest 14 stay.
    assert set(range(86, 100)) <= set(choice.rows)
    assert choice.weights[:9].tolist() == [86 / 9] * 9
    assert choice.weights.sum() == pytest.approx(100)
    with pytest.raises(StudyError, match=r"from 0\.01 to 0\.99"):
        METHODS["infobatch"].choose(NONE, 2, draw(), loss=LOSS, highest_ratio=1.0)


def test_the_rescaled_sum_of_a_pruned_set_is_that_of_the_whole_on_average():
    loss = np.random.default_rng(0).exponential(size=200)
    gradient = np.random.default_rng(1).normal(size=200) + 3
    sums = []
    for seed in range(400):
        choice = METHODS["infobatch"].choose(np.zeros((200, 1)), 120, draw(seed), loss=loss)
        sums.append((choice.weights * gradient[choice.rows]).sum())
    assert np.mean(sums) == pytest.approx(gradient.sum(), rel=0.01)
