"""Decoders: the published numbers, every kind on every encoder, and blocks that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.evaluation.segmentation.decoders import (
    DECODERS,
    PUBLISHED,
    LinearDecoder,
    UNetDecoder,
    make_decoder,
    split_blocks,
)
from chexstudy.golden import check_golden

_GOLDEN = Path(__file__).parent / "golden" / "segmentation.npz"
_ON_BLOCKS = [kind for kind in DECODERS if kind != "pixel_unet"]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _draw_blocks(widths, grid=5, batch=3):
    return [torch.randn(batch, width, grid, grid, generator=_generator(width)) for width in widths]


def _count(module):
    return sum(weight.numel() for weight in module.parameters())


def test_the_published_decoders_are_met():
    cases = check_golden(_GOLDEN)
    assert len(cases) == 5
    assert cases.passed.all(), cases


@pytest.mark.parametrize(
    ("array", "case"),
    [
        ("unet_eval_resized_plain", "unet_eval_resized_plain"),
        ("unet_up4_conv_1_running_mean", "unet_eval_before_resize"),
        ("unet_up1_upconv_weight", "unet_train_before_resize"),
        ("linear_bias", "linear_output"),
    ],
)
def test_a_changed_number_of_the_published_decoders_fails_its_check(tmp_path, array, case):
    with np.load(_GOLDEN) as archive:
        arrays = dict(archive)
    arrays[array] = arrays[array] + 0.01
    np.savez(tmp_path / "spoilt.npz", **arrays)
    assert not check_golden(tmp_path / "spoilt.npz").set_index("case").passed[case]


@pytest.mark.parametrize(
    ("classes", "steps", "whole", "linear"),
    [
        (2, (6_490_752, 2_286_912, 903_840, 14_678), 9_696_182, 1_538),
        (20, (6_490_752, 2_286_912, 903_840, 153_260), 9_834_764, 15_380),
    ],
)
def test_decoders_of_a_base_sized_transformer_have_as_many_weights_as_the_published_ones(classes, steps, whole, linear):
    with torch.device("meta"):
        unet, one = UNetDecoder([768] * 5, classes, **PUBLISHED), LinearDecoder([768] * 5, classes)
    assert tuple(_count(step) for step in unet.children()) == steps
    assert (_count(unet), _count(one)) == (whole, linear)


def test_only_the_published_end_bounds_the_logits():
    blocks, lowest = _draw_blocks([16] * 5), {}
    for kind in ("unet", "published_unet"):
        decoder = make_decoder(kind, [16] * 5, 2, _generator())
        torch.nn.init.normal_(list(decoder.parameters())[-2], 0.0, 1.0, generator=_generator())
        lowest[kind] = decoder(blocks, 80).min().item()
    assert -0.1701 <= lowest["published_unet"] < 0
    assert lowest["unet"] < -0.5


@pytest.mark.parametrize(
    "widths", [(16,) * 5, (8, 12, 20, 28), (9, 7)], ids=["transformer", "convolutional", "two blocks"]
)
@pytest.mark.parametrize("kind", _ON_BLOCKS)
def test_every_decoder_takes_every_encoder(kind, widths):
    blocks, before = _draw_blocks(widths), torch.get_rng_state()
    decoder, again, other = (make_decoder(kind, widths, 4, _generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    equal = [torch.equal(*pair) for pair in zip(decoder.parameters(), again.parameters(), strict=True)]
    assert all(equal)
    assert any(not torch.equal(*pair) for pair in zip(decoder.parameters(), other.parameters(), strict=True))
    for one_image in (False, True):  # a last batch may hold one
        logits = decoder([block[:1] if one_image else block for block in blocks], 33)
        assert logits.shape == (1 if one_image else 3, 4, 33, 33)
        decoder.zero_grad()
        logits.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in decoder.parameters())


def test_steps_of_the_unet_follow_the_blocks():
    for widths in ((16,) * 5, (8, 16, 32, 64), (8, 8)):
        decoder = make_decoder("unet", widths, 3, _generator())
        assert decoder.decode(_draw_blocks(widths)).shape[-1] == 5 * 2 ** (len(widths) - 1)


@pytest.mark.parametrize("kind", ["linear", "upernet", "normalised_linear_4"])
def test_a_single_block_is_enough_but_for_a_unet(kind):
    assert make_decoder(kind, (8,), 2, _generator())(_draw_blocks((8,)), 20).shape == (3, 2, 20, 20)


def test_the_small_unet_takes_pixels_of_any_size():
    decoder = make_decoder("pixel_unet", (1,), 3, _generator())
    assert 300_000 < _count(decoder) < 500_000
    for side in (5, 48, 61):
        pixels = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8, generator=_generator())
        assert decoder([pixels], side).shape == (2, 3, side, side)


@pytest.mark.parametrize("kind", list(DECODERS))
def test_a_decoder_learns_to_outline_what_its_blocks_show(kind, one_thread):
    generator = _generator(1)
    masks = torch.zeros(12, 1, 32, 32)
    for mask, (top, left) in zip(masks, torch.randint(0, 4, (12, 2), generator=generator).tolist(), strict=True):
        mask[:, 4 * top : 4 * top + 16, 4 * left : 4 * left + 16] = 1
    if kind == "pixel_unet":
        blocks = [(60 + 120 * masks).to(torch.uint8)]
    else:
        seen = torch.nn.functional.avg_pool2d(masks, 4)
        blocks = [seen * torch.randn(width, generator=generator).view(1, -1, 1, 1) for width in (16, 16, 16, 16)]
    decoder = make_decoder(kind, [block.shape[1] for block in blocks], 1, generator)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    published = kind == "published_unet"
    for _ in range(60):
        # Logits that cannot be low are learnt against zero and one, not as log odds.
        logits = decoder(blocks, 32)
        loss = (logits - masks).square().mean() if published else torch.nn.BCEWithLogitsLoss()(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = decoder(blocks, 32) > (0.5 if published else 0)
    assert 2 * (found * masks).sum() / (found.sum() + masks.sum()) > 0.9


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit"])
def test_tokens_of_an_encoder_become_its_blocks(name):
    encoder = build_image_encoder(EncoderSpec(name)).eval()
    pixels = torch.randint(0, 256, (2, 1, 96, 96), dtype=torch.uint8, generator=_generator())
    widths = encoder.block_widths()[-4:]
    with torch.no_grad():
        tokens = encoder.at_size(96).embed_blocks(pixels, len(widths))[2]
    blocks = split_blocks(tokens, widths)
    grid = blocks[0].shape[-1]
    assert [block.shape[1:] for block in blocks] == [(width, grid, grid) for width in widths]
    # Row by row: the token after the first row's end begins the second row.
    assert torch.equal(blocks[-1][:, :, 1, 0], tokens[:, grid, -widths[-1] :])
    assert make_decoder("unet", widths, 2, _generator())(blocks, 96).shape == (2, 2, 96, 96)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: make_decoder("unett", (8, 8), 2, _generator()), "no decoder 'unett': did you mean 'unet'"),
        (lambda: make_decoder("transformer", (8, 8), 2, _generator()), "name one of unet, published_unet, linear"),
        (lambda: make_decoder("unet", (8,), 2, _generator()), "joins blocks, and there is one"),
        (lambda: _linear()(_draw_blocks((8, 9)), 20), r"blocks of \(8, 8\) channels, not \(8, 9\)"),
        (lambda: _linear()(_draw_blocks((8,)), 20), r"blocks of \(8, 8\) channels, not \(8,\)"),
        (lambda: _linear()([torch.zeros(2, 8, 4, 5)] * 2, 20), r"one square grid, not \(2, 8, 4, 5\)"),
        (lambda: _linear()([torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 5, 5)], 20), r"4, 4\) and \(2, 8, 5, 5\)"),
        (lambda: split_blocks(torch.zeros(2, 17, 16), (8, 8)), "17 tokens are no square grid"),
        (lambda: split_blocks(torch.zeros(2, 16, 15), (8, 8)), r"15 channels, and blocks of \(8, 8\) have 16"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(ask, sentence):
    with pytest.raises(StudyError, match=sentence):
        ask()


def _linear():
    return make_decoder("linear", (8, 8), 2, _generator())
