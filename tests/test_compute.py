"""Counted operations: by hand, against direct counts of the same work, and without a trace in the training."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from chexstudy.encoders.build import build_image_encoder, build_text_encoder, compile_blocks
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.pretraining.engine.compute import count_flops, peak_memory_bytes, reset_peak_memory
from chexstudy.pretraining.models.texts import TokenisedTexts, encode_texts
from chexstudy.pretraining.objectives.pair_flops import PairFlopMeter

CPU = torch.device("cpu")
REPORTS = [
    "Small left pleural effusion. No pneumothorax.",
    "Cardiomegaly is mild.",
    "No effusion.",
    "The lungs are clear and the heart is of normal size, no effusion is seen on either side.",
    "Clear lungs.",
] * 3
DIM = 8


class Tower(nn.Module):
    """An encoder and its projection."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.projection = encoder, nn.Linear(encoder.dim, DIM, bias=False)

    def forward(self, *inputs, **options):
        return normalize(self.projection(self.encoder(*inputs, **options)), dim=1)

    def forward_packed(self, input_ids, lengths):
        return normalize(self.projection(self.encoder.forward_packed(input_ids, lengths)), dim=1)


def build(image="tiny-vit", pooling="mean"):
    model = nn.ModuleDict(
        {
            "image": Tower(build_image_encoder(EncoderSpec(image))),
            "text": Tower(build_text_encoder(EncoderSpec("tiny-bert", pooling=pooling), REPORTS)),
        }
    )
    return model, PairFlopMeter(model["image"], model["text"], model)


def draw_pixels(images=3, size=96):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, 1, size, size), generator=generator, dtype=torch.uint8)


def read_texts(model):
    tokens = model["text"].encoder.tokenize(REPORTS)
    return TokenisedTexts(tokens["input_ids"], tokens["attention_mask"])


def count_directly(forward, backward):
    with torch.set_grad_enabled(backward):
        return count_flops(lambda: forward().sum().backward() if backward else forward())


def test_a_linear_layer_costs_what_it_costs_by_hand():
    layer, values = nn.Linear(5, 7), torch.rand(3, 5)
    with torch.no_grad():
        assert count_flops(lambda: layer(values)) == 2 * 3 * 5 * 7
    # Backward to the weights only: another product of the same size.
    assert count_flops(lambda: layer(values).sum().backward()) == 4 * 3 * 5 * 7
    assert PairFlopMeter.loss(10, 4) == 3 * (2 * 10 * 10 * 4)


def test_a_transformer_costs_what_its_products_cost():
    """tiny-vit by hand: 12 width^2 multiply-adds a token and layer, attention, patches and projection."""
    _, meter = build()
    tokens, width, patches = 65, 128, 64
    layer = tokens * 12 * width**2 + 2 * tokens**2 * width
    expected = 2 * (patches * 144 * width + 3 * layer + width * DIM)
    assert meter.images(draw_pixels(4), backward=False) == 4 * expected


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit"])
def test_images_are_counted_at_the_size_they_are_seen_at(name, backward):
    model, meter = build(name)
    pixels, counts = draw_pixels(5), []
    for size in (48, None, 72, 48):
        direct = count_directly(lambda size=size: model["image"](pixels, size=size), backward)
        assert meter.images(pixels, backward, size=size) == direct
        counts.append(direct)
    assert counts[0] < counts[2] < counts[1]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("layout", ["padded", "buckets", "packed"])
@pytest.mark.parametrize("pooling", ["mean", "last", "pooler"])
def test_texts_are_counted_as_they_are_laid_out(layout, backward, pooling):
    model, meter = build(pooling=pooling)
    texts = read_texts(model)
    for rows in (np.arange(15), np.array([3]), np.array([1, 4, 4, 0, 2, 3])):
        batch = texts.batch(rows, CPU, layout)
        direct = count_directly(lambda batch=batch: encode_texts(model["text"], batch), backward)
        assert meter.texts(batch, backward) == direct


def test_packed_texts_cost_least():
    model, meter = build()
    texts, rows = read_texts(model), np.tile(np.arange(15), 20)
    packed, buckets, padded = (
        meter.texts(texts.batch(rows, CPU, layout), True) for layout in ("packed", "buckets", "padded")
    )
    assert packed < buckets < padded


def test_a_shape_is_counted_once(monkeypatch):
    model, meter = build()
    texts, pixels = read_texts(model), draw_pixels()
    batches = [texts.batch(np.arange(first, first + 9), CPU, "packed") for first in range(5)]
    first = meter.texts(batches[0], True), meter.images(pixels, True)
    monkeypatch.setattr(
        "chexstudy.pretraining.engine.compute.count_flops", lambda function: pytest.fail("counted again")
    )
    assert (meter.texts(batches[0], True), meter.images(pixels, True)) == first
    assert meter.texts(batches[4], True) > 0


def test_frozen_parameters_spend_no_backward_pass():
    model, meter = build()
    batch, pixels = read_texts(model).batch(np.arange(6), CPU, "packed"), draw_pixels()
    forward = meter.images(pixels, False), meter.texts(batch, False)
    trained = meter.images(pixels, True), meter.texts(batch, True)
    model.requires_grad_(False)
    frozen = PairFlopMeter(model["image"], model["text"], model)
    assert (frozen.images(pixels, True), frozen.texts(batch, True)) == forward
    for tower in model.values():
        tower.projection.requires_grad_(True)
    projected = PairFlopMeter(model["image"], model["text"], model)
    # The projection's weights get their gradient, and nothing before it does.
    assert projected.images(pixels, True) == forward[0] + len(pixels) * 2 * 128 * DIM
    assert projected.images(pixels, True) < trained[0]


def test_a_count_leaves_the_training_as_it_was():
    model, meter = build()
    batch, pixels = read_texts(model).batch(np.arange(6), CPU, "packed"), draw_pixels()
    (model["image"](pixels).sum() + encode_texts(model["text"], batch).sum()).backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    meter.images(pixels, True)
    meter.texts(batch, True)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_blocks_are_counted_as_they_are_written():
    model, meter = build()
    pixels = draw_pixels()
    expected = meter.images(pixels, True)
    compile_blocks(model["image"].encoder)
    model["image"](pixels).sum().backward()
    assert PairFlopMeter(model["image"], model["text"], model).images(pixels, True) == expected


def test_the_peak_of_memory_follows_what_is_allocated():
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    block = torch.ones(64 * 2**20)
    assert peak_memory_bytes(CPU) > before + 0.9 * block.numel() * 4
