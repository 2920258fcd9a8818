"""The gradient of a batch in pieces is the gradient of the whole batch."""

import numpy as np
import pandas as pd
import pytest
import torch

from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.compute import count_flops
from chexstudy.pretraining.models.dual_encoder import build_model, load_model, save_model
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder

_WORDS = ("heart", "lungs", "clear", "left", "right", "small", "effusion", "no", "pneumothorax", "mild")
_PAIRS = 23


class _Store:
    """Pixels in memory."""

    def __init__(self, images):
        self.images = images
        self.size = images.shape[1]

    def rows(self, image_ids):
        return np.arange(len(image_ids))

    def take(self, rows, out=None):
        return np.take(self.images, rows, axis=0, out=out)


def _pairs(texts, tokenize):
    images = np.random.default_rng(0).integers(0, 256, (len(texts), 36, 36), dtype=np.uint8)
    ids = [f"s/{number}" for number in range(len(texts))]
    cohort = pd.DataFrame({"image_id": ids, "split": "train", "report": texts})
    return TrainingPairs(cohort, _Store(images), tokenize)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(_WORDS, rng.integers(3, 20))) for _ in range(_PAIRS)]


def _encoder(texts, micro_batch, **constants):
    config = PretrainingConfig(image_size=36, dim=16, precision="fp32", **constants)
    model = build_model(config, pd.DataFrame({"report": texts}), seed=3)
    encoder = PairEncoder(model, _pairs(texts, model.text_tower.tokenize), torch.device("cpu"), micro_batch)
    if config.dropout:
        model.train()
        encoder.dropout_seed = lambda piece: 1000 + piece
    return encoder


def _gradient(encoder, **arguments):
    rows = np.arange(_PAIRS)
    encoder.model.zero_grad(set_to_none=True)
    told = encoder.backward(rows, **arguments)
    return told, torch.cat([parameter.grad.flatten() for parameter in encoder.model.parameters()])


@pytest.mark.parametrize("micro_batch", [7, _PAIRS])
def test_a_counted_step_costs_what_it_was_said_to(texts, micro_batch):
    encoder = _encoder(texts, micro_batch)
    expected = encoder.count_step(np.arange(_PAIRS))
    assert encoder.flops == 0
    encoder.backward(np.arange(_PAIRS))
    assert encoder.flops == pytest.approx(expected)


@pytest.mark.parametrize("image_encoder", ["tiny-resnet", "tiny-vit"])
@pytest.mark.parametrize("micro_batch", [4, 7, 22])
def test_gradient_in_pieces_equals_the_gradient_of_the_whole(texts, image_encoder, micro_batch):
    whole, expected = _gradient(_encoder(texts, _PAIRS, image_encoder=image_encoder))
    pieces, gradient = _gradient(_encoder(texts, micro_batch, image_encoder=image_encoder))
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert pieces["matched_cosine"] == pytest.approx(whole["matched_cosine"], abs=1e-6)
    assert float((gradient - expected).norm() / expected.norm()) <= 1e-6


def test_embeddings_from_scoring_spare_the_first_pass_and_change_nothing(texts):
    encoder = _encoder(texts, 6)
    _, expected = _gradient(encoder)
    spent = encoder.flops
    with torch.no_grad():
        embedded = encoder.embed(np.arange(_PAIRS))
    scoring = encoder.flops - spent
    before = encoder.flops
    _, gradient = _gradient(encoder, embedded=embedded)
    assert float((gradient - expected).norm() / expected.norm()) <= 1e-6
    assert encoder.flops - before == pytest.approx(spent - scoring)


@pytest.mark.parametrize("layout", ["padded", "buckets", "packed"])
def test_every_layout_puts_every_text_in_its_place(texts, layout):
    encoder = _encoder(texts, _PAIRS)
    encoder.text_layout = layout
    rows = np.random.default_rng(2).permutation(_PAIRS)[:17]
    with torch.no_grad():
        _, found = encoder.encode(rows, 0, backward=False)
        padded = encoder.model.text_tower(**encoder.model.text_tower.tokenize([texts[row] for row in rows]))
    assert torch.allclose(found, padded, atol=1e-6)


def test_dropout_is_replayed_so_that_pieces_still_agree_with_autograd(texts):
    encoder = _encoder(texts, 6, text_encoder="tiny-bert", dropout=True)
    _, gradient = _gradient(encoder)
    rows, parts = np.arange(_PAIRS), encoder.pieces(np.arange(_PAIRS))
    outputs = [encoder.encode(part, piece, backward=True) for piece, part in enumerate(parts)]
    image, text = (torch.cat(side) for side in zip(*outputs, strict=True))
    encoder.model.zero_grad(set_to_none=True)
    contrastive_loss(image, text, encoder.model.bounded_logit_scale()).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in encoder.model.parameters()])
    assert len(rows) == sum(len(part) for part in parts)
    assert float((gradient - expected).norm() / expected.norm()) <= 1e-6


def test_counted_operations_are_those_of_a_real_step(texts):
    encoder = _encoder(texts, _PAIRS)
    rows = np.arange(_PAIRS)
    spent = encoder.flops
    encoder.backward(rows)
    metered = encoder.flops - spent
    pixels, batch = encoder.pairs.pixels(rows), encoder.pairs.texts.batch(rows, torch.device("cpu"), "buckets")

    def step():
        texts = torch.cat([encoder.model.text_tower(part.input_ids, part.mask) for part in batch.parts])
        contrastive_loss(encoder.model.image_tower(pixels), texts, encoder.model.logit_scale).backward()

    assert metered == pytest.approx(count_flops(step), rel=1e-3)


def test_saved_model_embeds_as_before(texts, tmp_path):
    encoder = _encoder(texts, _PAIRS)
    config = PretrainingConfig(image_size=36, dim=16, precision="fp32")
    save_model(tmp_path / "model", encoder.model, config)
    loaded = load_model(tmp_path / "model")
    rows = np.arange(_PAIRS)
    with torch.no_grad():
        assert torch.equal(
            loaded.image_tower(encoder.pairs.pixels(rows)), encoder.model.image_tower(encoder.pairs.pixels(rows))
        )
        tokens = encoder.model.text_tower.tokenize(texts)
        again = loaded.text_tower.tokenize(texts)
        assert torch.equal(again["input_ids"], tokens["input_ids"])
        assert torch.equal(loaded.text_tower(**again), encoder.model.text_tower(**tokens))
    assert torch.equal(loaded.logit_scale, encoder.model.logit_scale)
