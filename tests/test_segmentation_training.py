"""Decoders as they are trained: what is learnt, what takes no part, and what two runs have in common."""

import math

import numpy as np
import pytest
import torch

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.encoder import hash_weights
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.fine_tuning import FineTuning
from chexstudy.evaluation.segmentation import decoder_training
from chexstudy.evaluation.segmentation.decoder_training import (
    DecoderRecipe,
    Examples,
    augment,
    average_masks,
    fit_decoder,
    measure_loss,
)

SIDE = 36
pytestmark = pytest.mark.usefixtures("one_thread")


def draw_squares(count, seed):
    """Images with a bright square in a dark, noisy field, and where it is; a second structure is nowhere known."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 60, (count, SIDE, SIDE), dtype=np.uint8)
    masks = np.zeros((count, 2, SIDE, SIDE), dtype=bool)
    for number in range(count):
        top, left = generator.integers(1, 18, 2)
        masks[number, 0, top : top + 12, left : left + 12] = True
    pixels[masks[:, 0]] += 150
    return Examples(pixels, masks, np.tile([True, False], (count, 1)))


def make_encoder(name="tiny-resnet", size=SIDE):
    return build_image_encoder(EncoderSpec(name, image_size=size), 1)


def measure_dice(model, examples):
    marked = np.stack(list(model.predict(examples.pixels)))[:, 0] > 0
    truth = examples.masks[:, 0]
    return float((2 * (marked & truth).sum((1, 2)) / (marked.sum((1, 2)) + truth.sum((1, 2)))).mean())


@pytest.mark.parametrize(
    ("kind", "encoder", "recipe", "least"),
    [
        ("pixel_unet", None, DecoderRecipe(epochs=5, least_steps=60, learning_rate=3e-3), 0.95),
        ("unet", "tiny-resnet", DecoderRecipe(epochs=5, least_steps=100, learning_rate=3e-3), 0.85),
    ],
)
def test_a_bright_square_is_learnt(kind, encoder, recipe, least):
    train, validation, test = (draw_squares(count, seed) for seed, count in enumerate((24, 8, 8)))
    encoder = make_encoder() if encoder else None
    before = encoder and hash_weights(encoder)
    model, table = fit_decoder(kind, encoder, train, validation, recipe, 0)
    assert measure_dice(model, test) > least
    assert not any(part.training for part in model.modules())
    assert table.steps.tolist() == [recipe.least_steps // 5 * epoch for epoch in range(1, 6)]
    assert encoder is None or hash_weights(encoder) == before, "a frozen encoder stays as it was"


def test_the_same_seed_gives_the_same_bits_and_another_other_ones():
    train, validation = draw_squares(9, 0), draw_squares(4, 1)
    recipe = DecoderRecipe(epochs=2, least_steps=4, batch_size=4, augment=True)
    weights = [
        hash_weights(fit_decoder("unet", make_encoder(), train, validation, recipe, seed)[0].decoder)
        for seed in (3, 3, 4)
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(("method", "name"), [("full", "tiny-resnet"), ("low_rank", "tiny-vit")])
def test_a_tuned_encoder_is_a_plain_copy_that_was_trained(method, name):
    train, validation, encoder = draw_squares(8, 0), draw_squares(4, 1), make_encoder(name)
    before = hash_weights(encoder.model)
    recipe = DecoderRecipe(epochs=1, least_steps=2, tuning=FineTuning(method, rank=2))
    model, _ = fit_decoder("linear", encoder, train, validation, recipe, 0)
    assert hash_weights(encoder.model) == before != hash_weights(model.encoder.model)
    assert {name for name in model.list_weights() if name.startswith("encoder.model.")} == {
        f"encoder.model.{name}" for name in encoder.model.state_dict()
    }


def test_the_best_epoch_on_validation_is_kept(monkeypatch):
    judged, states = iter([0.3, 0.9, 0.5]), []

    def judge(model, *_):
        states.append(hash_weights(model.decoder))
        return next(judged)

    monkeypatch.setattr(decoder_training, "_judge", judge)
    recipe = DecoderRecipe(epochs=3, least_steps=3)
    model, table = fit_decoder("linear", make_encoder(), draw_squares(4, 0), draw_squares(2, 1), recipe, 0)
    assert hash_weights(model.decoder) == states[1]
    assert table.dice.tolist() == [0.3, 0.9, 0.5]


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_two_pixels_by_hand():
    logits = torch.tensor([[[[math.log(3.0), 0.0]]]])  # probabilities 3/4 and 1/2
    masks = torch.tensor([[[[1.0, 0.0]]]])
    dice = (2 * 0.75 + 1e-5) / (1.25 + 1 + 1e-5)
    entropy = (-math.log(0.75) - math.log(0.5)) / 2
    found = measure_loss(logits, masks, torch.tensor([[True]]))
    assert found.item() == pytest.approx(1 - dice + entropy, abs=1e-6)


def test_what_is_not_known_gives_no_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, generator=generator, requires_grad=True)
    masks = (torch.rand(2, 2, 4, 4, generator=generator) < 0.3).float()
    measure_loss(logits, masks, torch.tensor([[True, True], [True, False]])).backward()
    moved = logits.grad.abs().amax((2, 3)) > 0
    assert moved.tolist() == [[True, True], [True, False]]
    assert measure_loss(logits, masks, torch.zeros(2, 2, dtype=torch.bool)).item() == 0


def test_the_mean_mask_is_that_of_the_images_that_are_known():
    masks = np.zeros((3, 1, 1, 2), dtype=bool)
    masks[:2, 0, 0, 0] = masks[0, 0, 0, 1] = masks[2, 0, 0, 1] = True
    mean = average_masks(Examples(np.zeros((3, 1, 2), np.uint8), masks, np.array([[True], [True], [False]])))
    np.testing.assert_allclose(mean, [[[0.5, 0.0]]])
    assert (mean > 0).tolist() == [[[True, False]]], "half of the images are no majority"


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_masks_move_with_their_images():
    examples = draw_squares(16, 0)
    masks, generator = torch.from_numpy(examples.masks).float(), torch.Generator().manual_seed(0)
    pixels, moved = augment(torch.from_numpy(examples.pixels), masks, generator)
    bright = pixels > 105
    overlap = (bright & (moved[:, 0] > 0)).sum((1, 2)) * 2 / (bright.sum((1, 2)) + moved[:, 0].sum((1, 2)))
    assert overlap.min() > 0.9
    assert (moved[:, 0] != masks[:, 0]).any((1, 2)).all()
    assert not moved[:, 1].any()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DecoderRecipe(epochs=0), "1 epoch or more"),
        (lambda: DecoderRecipe(learning_rate=-1.0), "0 or more"),
        (
            lambda: fit_decoder(
                "linear",
                make_encoder(),
                draw_squares(4, 0),
                draw_squares(2, 1),
                DecoderRecipe(2, 4, learning_rate=1e30),
                0,
            ),
            "a loss that is no number: use a smaller one",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(make, sentence):
    with pytest.raises(StudyError, match=sentence):
        make()
