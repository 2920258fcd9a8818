"""Methods that choose by agreement, loss or learnability rather than by place."""

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS
from chexstudy.curation.methods.difficulty import measure_losses
from chexstudy.curation.methods.infobatch import draw_epoch
from chexstudy.curation.methods.learnability import choose_learnable_batches, gather_jointly
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


def test_errors_and_losses_of_two_orthogonal_pairs():
    image = text = np.eye(2, dtype=np.float32)
    right = np.e / (np.e + 1)
    scores = METHODS["el2n"].choose(NONE[:2], 1, draw(), image=image, text=text, temperature=1.0).scores
    np.testing.assert_allclose(scores, np.sqrt(2) * (1 - right), rtol=1e-6)
    np.testing.assert_allclose(measure_losses(image, text, draw(), temperature=1.0), -np.log(right), rtol=1e-6)


def test_an_exchanged_report_has_the_longest_error_and_the_highest_loss():
    image = np.eye(8, dtype=np.float32)
    text = image[[0, 1, 2, 3, 5, 4, 6, 7]]
    choice = METHODS["el2n"].choose(NONE, 2, draw(), image=image, text=text)
    assert choice.rows.tolist() == [4, 5]
    assert np.argsort(-measure_losses(image, text, draw()))[:2].tolist() in ([4, 5], [5, 4])
    # In batches of one pair there is nothing to confuse it with.
    assert (measure_losses(image, text, draw(), batch=1) == 0).all()


def test_losses_of_two_models_are_measured_on_the_same_batches():
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(100, 8)) for _ in range(2))
    first = measure_losses(image, text, draw(4), batch=30)
    assert (first == measure_losses(2 * image, text, draw(4), batch=30)).all()
    assert (first != measure_losses(image, text, draw(5), batch=30)).any()


def test_a_batch_is_gathered_jointly_and_not_one_by_one():
    # Alone, rows 4 and 5 are more learnable than 1 to 3; together with row 0, the latter are.
    learnability = torch.zeros(6, 6)
    learnability[:4, :4] = 40.0
    learnability.diagonal().copy_(torch.tensor([500.0, 0, 0, 0, 60.0, 60.0]))
    assert gather_jointly(learnability, 4, 4, draw()).tolist()[0] == 0
    assert set(gather_jointly(learnability, 4, 4, draw()).tolist()) == {0, 1, 2, 3}
    assert set(gather_jointly(learnability, 3, 1, draw()).tolist()) == {0, 4, 5}


def test_rows_are_drawn_without_replacement_in_proportion_to_their_weights():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().diag()
    first = np.bincount([int(gather_jointly(weights, 1, 1, draw(seed))[0]) for seed in range(4000)]) / 4000
    np.testing.assert_allclose(first, [0.1, 0.2, 0.3, 0.4], atol=0.03)
    assert sorted(gather_jointly(weights, 4, 3, draw()).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("budget", [1, 41, 100, 203])
def test_learnable_batches_meet_the_budget_evenly_over_super_batches(budget):
    rng = np.random.default_rng(0)
    image, text, reference = (rng.normal(size=(203, 8)).astype(np.float32) for _ in range(3))
    choice = choose_learnable_batches(image, text, reference, reference, budget, draw(), super_batch=50, chunks=4)
    again = choose_learnable_batches(image, text, reference, reference, budget, draw(), super_batch=50, chunks=4)
    assert len(np.unique(choice.rows)) == budget
    assert choice.rows.tobytes() == again.rows.tobytes()
    assert (choice.scores[choice.rows] > 0).all()
    assert (np.delete(choice.scores, choice.rows) == -1).all()


def test_a_reference_that_knows_what_the_learner_does_not_decides_what_is_learnable():
    # Of the learner's wrong pairs, 0 to 9, the reference matches the first five.
    image, wrong = np.eye(40, dtype=np.float32), np.eye(40, dtype=np.float32)
    wrong[:10] = np.roll(wrong[:10], 1, axis=0)
    reference = np.eye(40, dtype=np.float32)
    reference[5:10] = np.roll(reference[5:10], 1, axis=0)
    choice = choose_learnable_batches(image, wrong, image, reference, 5, draw(), chunks=1, scale=60.0)
    assert choice.rows.tolist() == [0, 1, 2, 3, 4]


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


def test_an_epoch_prunes_half_of_the_well_learnt_and_the_last_epochs_none():
    loss = np.array([1.0] * 8 + [9.0] * 2 + [np.inf])
    epochs = [draw_epoch(loss, epoch, 8, draw(epoch)) for epoch in range(8)]
    for epoch in epochs[:7]:
        assert len(epoch.rows) == 7
        assert set(epoch.rows[-3:]) == {8, 9, 10}
        assert epoch.weights.tolist() == [2, 2, 2, 2, 1, 1, 1]
    assert len({tuple(epoch.rows) for epoch in epochs[:7]}) > 1
    assert epochs[7].rows.tolist() == list(range(11))
    assert (epochs[7].weights == 1).all()
    unseen = draw_epoch(np.full(4, np.inf), 0, 8, draw())
    assert unseen.rows.tolist() == [0, 1, 2, 3]
