import numpy as np
import pytest
import torch

from chexstudy.evaluation.adaptation.losses import LOSSES, make_loss

# Four training images and two findings: 1 of 4 present, and 2 of 3 known.
TRAINING = np.array([[1, 1], [0, 1], [0, 0], [0, np.nan]])


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def entropy(logit, label):
    return np.log1p(np.exp(-logit)) if label else np.log1p(np.exp(logit))


def test_cross_entropy_is_the_sum_over_findings_and_images():
    loss = make_loss("bce", TRAINING)(tensor([[0.0, 2.0], [-1.0, 3.0]]), tensor([[1, 0], [0, 1]]))
    by_hand = np.log(2) + entropy(2, 0) + entropy(-1, 0) + entropy(3, 1)
    assert loss.item() == pytest.approx(by_hand, abs=1e-12)


def test_asymmetric_loss_by_hand():
    # Logits of probability 3/4, 1/4 and 0.04: the last lies under the clip and costs nothing when absent.
    logits = tensor([[np.log(3), -np.log(3)], [np.log(0.04 / 0.96), np.log(3)]])
    loss = make_loss("asymmetric", TRAINING)(logits, tensor([[1, 1], [0, 0]]))
    by_hand = -(0.25 * np.log(0.75) + 0.75 * np.log(0.25) + 0.70**4 * np.log(0.30))
    assert loss.item() == pytest.approx(by_hand, abs=1e-12)


def test_class_balanced_weights_by_effective_number():
    # With beta 0.999, one case counts as 1, two as 1.999, three as 2.997001.
    loss = make_loss("class_balanced", TRAINING)
    one, two, three = 1, 1.999, 2.997001
    present, absent = 2 * three / (one + three), 2 * one / (one + three)
    assert loss(tensor([[0.0, 0.0]]), tensor([[1, np.nan]])).item() == pytest.approx(present * np.log(2), abs=1e-10)
    assert loss(tensor([[0.0, 0.0]]), tensor([[0, np.nan]])).item() == pytest.approx(absent * np.log(2), abs=1e-10)
    # The second finding has two present and one absent.
    weighted = 2 * one / (one + two) * np.log(2)
    assert loss(tensor([[0.0, 0.0]]), tensor([[-1, 1]])).item() == pytest.approx(weighted, abs=1e-10)


def test_logit_adjustment_adds_the_log_odds_of_the_prevalence_in_training():
    loss = make_loss("logit_adjusted", TRAINING)
    by_hand = entropy(0.3 + np.log(1 / 3), 1) + entropy(-0.2 + np.log(2), 0)
    assert loss(tensor([[0.3, -0.2]]), tensor([[1, 0]])).item() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_labels_give_exactly_no_loss_and_no_gradient(name):
    logits = torch.tensor([[0.7, -3.0], [200.0, 1.5]], requires_grad=True)
    labels = torch.tensor([[-1.0, 1.0], [float("nan"), 0.0]])
    loss = make_loss(name, TRAINING)(logits, labels)
    loss.backward()
    assert torch.equal(logits.grad[:, 0], torch.zeros(2))
    assert (logits.grad[:, 1] != 0).all()
    alone = make_loss(name, TRAINING)(logits, torch.full((2, 2), float("nan")))
    assert alone.item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_and_one_sided_findings_give_finite_losses_and_gradients(name):
    values = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])
    for training in ([[1.0], [0.0]], [[0.0], [0.0]], [[1.0], [1.0]], [[-1.0], [np.nan]]):
        for label in (0.0, 1.0):
            logits = values.clone()[:, None].requires_grad_()
            loss = make_loss(name, np.array(training))(logits, torch.full((7, 1), label))
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_loss(name):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 2, generator=generator, dtype=torch.float64).requires_grad_()
    labels = tensor([[1, 0], [0, 1], [-1, 0], [1, np.nan], [0, 0]])
    assert torch.autograd.gradcheck(lambda one: make_loss(name, TRAINING)(one, labels), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_heads_side_by_side_cost_the_sum_of_each(name):
    loss = make_loss(name, TRAINING)
    logits = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = tensor(TRAINING)
    assert loss(logits, labels).item() == pytest.approx(sum(loss(one, labels).item() for one in logits), abs=1e-12)
