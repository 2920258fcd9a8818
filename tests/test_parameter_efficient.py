"""Low-rank updates, frozen towers and bias-only training, against what they say on paper."""

import copy
import pickle
import sys

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.checkpoint import load_checkpoint, save_checkpoint
from chexstudy.pretraining.models.parameter_efficient import (
    add_low_rank_updates,
    bias_only,
    freeze_encoder,
    has_low_rank_updates,
    merge_low_rank_updates,
)

REPORTS = ["the heart is large", "no effusion is seen", "clear lungs"] * 3
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


pytestmark = pytest.mark.usefixtures("one_thread")


def _draw_pixels(size=24, images=3):
    return torch.randint(0, 256, (images, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def vit(tmp_path):
    config = ViTConfig(**SMALL, num_channels=1, image_size=24, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return build_image_encoder(EncoderSpec(str(tmp_path / "vit")))


@pytest.fixture
def bert():
    return build_text_encoder(EncoderSpec("tiny-bert", max_tokens=16), REPORTS, seed=0)


def _draw_updates(encoder, seed=1):
    """Give every update values as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=generator)


def test_update_is_alpha_over_rank_times_the_product(vit):
    plain, pixels = copy.deepcopy(vit), _draw_pixels()
    add_low_rank_updates(vit, rank=3, alpha=6.0, seed=0)
    at_first = plain(pixels)
    assert torch.equal(vit(pixels), at_first), "an update is zero before training"
    _draw_updates(vit)
    state = vit.model.state_dict()
    by_hand = {}
    for name, weight in plain.model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if f"{layer}.lora_A.default.weight" in state and kind == "weight":
            down, up = (state[f"{layer}.lora_{part}.default.weight"] for part in "AB")
            assert down.shape == (3, weight.shape[1])
            assert up.shape == (weight.shape[0], 3)
            weight = weight + 6.0 / 3 * up @ down
        by_hand[name] = weight
    plain.model.load_state_dict(by_hand)
    torch.testing.assert_close(vit(pixels), plain(pixels), rtol=0, atol=1e-6)
    assert (vit(pixels) - at_first).abs().max() > 1e-3


def test_only_updates_are_trained_and_counted(vit):
    add_low_rank_updates(vit, rank=2, alpha=4.0, seed=0)
    trained = {name: value for name, value in vit.named_parameters() if value.requires_grad}
    assert all(".lora_" in name for name in trained)
    # Two blocks: four layers of attention (16 to 16), one up to 24 and one down from it; r * (in + out) each.
    assert sum(value.numel() for value in trained.values()) == 2 * 2 * (4 * (16 + 16) + 2 * (16 + 24))
    _draw_updates(vit)
    vit.train()
    vit(_draw_pixels()).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in trained.values())
    assert all(value.grad is None for name, value in vit.named_parameters() if name not in trained)


def test_projection_behind_the_blocks_has_no_update(tmp_path):
    config = CLIPVisionConfig(**SMALL, image_size=24, patch_size=8, projection_dim=12)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    encoder = build_image_encoder(EncoderSpec(str(tmp_path / "clip"), pooling="projection"))
    add_low_rank_updates(encoder, rank=2, alpha=2.0, seed=0)
    updated = {name.partition(".lora_")[0] for name in encoder.state_dict() if ".lora_" in name}
    assert len(updated) == 2 * 6
    assert not any("visual_projection" in name for name in updated)
    assert not encoder.model.visual_projection.weight.requires_grad


def test_seed_decides_and_global_state_is_untouched(bert):
    encoders = [copy.deepcopy(bert) for _ in range(3)]
    before = torch.get_rng_state()
    for encoder, seed in zip(encoders, (1, 1, 2), strict=True):
        add_low_rank_updates(encoder, rank=2, alpha=2.0, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    same, again, other = (encoder.state_dict() for encoder in encoders)
    assert all(torch.equal(same[name], again[name]) for name in same)
    downs = [name for name in same if ".lora_A." in name]
    assert len(downs) == 2 * 6
    assert not any(torch.equal(same[name], other[name]) for name in downs)


def test_merged_encoder_is_plain_and_gives_the_same_embeddings(vit, bert, tmp_path):
    pixels, tokens = _draw_pixels(), bert.tokenize(["the heart", "no effusion is seen"])
    inputs = {vit: (pixels,), bert: (tokens["input_ids"], tokens["attention_mask"])}
    plain_names = {encoder: list(encoder.model.state_dict()) for encoder in inputs}
    for encoder, load in ((vit, build_image_encoder), (bert, build_text_encoder)):
        at_first = encoder(*inputs[encoder])
        add_low_rank_updates(encoder, rank=4, alpha=8.0, seed=0)
        _draw_updates(encoder)
        expected = encoder(*inputs[encoder])
        assert (expected - at_first).abs().max() > 1e-3
        merge_low_rank_updates(encoder)
        assert not has_low_rank_updates(encoder)
        assert list(encoder.model.state_dict()) == plain_names[encoder]
        assert not any(value.requires_grad for value in encoder.parameters())
        torch.testing.assert_close(encoder(*inputs[encoder]), expected, rtol=0, atol=1e-6)
        saved = save_encoder(encoder, tmp_path / "saved" / type(encoder).__name__)
        loaded = load(EncoderSpec(str(saved)))
        torch.testing.assert_close(loaded(*inputs[encoder]), expected, rtol=0, atol=1e-6)


def test_merge_leaves_an_encoder_without_updates_as_it_is(vit):
    before = copy.deepcopy(vit.state_dict())
    merge_low_rank_updates(vit)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert all(value.requires_grad for value in vit.parameters())


def test_updates_go_through_our_checkpoint(bert, tmp_path):
    fresh = copy.deepcopy(bert)
    add_low_rank_updates(bert, rank=2, alpha=2.0, seed=0)
    _draw_updates(bert)
    save_checkpoint(tmp_path / "checkpoint.pt", "key", {"model": bert.state_dict()})
    add_low_rank_updates(fresh, rank=2, alpha=2.0, seed=9)
    fresh.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt", "key")["model"])
    tokens = bert.tokenize(REPORTS[:2])
    assert torch.equal(fresh(**tokens), bert(**tokens))


def test_updates_that_cannot_be_are_refused(vit, monkeypatch):
    resnet = build_image_encoder(EncoderSpec("tiny-resnet"))
    with pytest.raises(StudyError, match="tiny-resnet has no attention or MLP layers"):
        add_low_rank_updates(resnet, 4, 8.0, 0)
    assert all(value.requires_grad for value in resnet.parameters())
    for rank, alpha in ((0, 1.0), (-1, 1.0), (4, 0.0)):
        with pytest.raises(StudyError, match="rank of at least 1 and a positive alpha"):
            add_low_rank_updates(vit, rank, alpha, 0)
    add_low_rank_updates(vit, 2, 2.0, 0)
    with pytest.raises(StudyError, match="already"):
        add_low_rank_updates(vit, 2, 2.0, 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(StudyError, match="package peft"):
        add_low_rank_updates(resnet, 2, 2.0, 0)


@pytest.fixture
def dropping(tmp_path):
    """A text encoder whose dropout would show."""
    tokenizer = train_wordpiece(REPORTS, max_tokens=16)
    config = BertConfig(**SMALL, vocab_size=len(tokenizer), hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return build_text_encoder(EncoderSpec(str(tmp_path / "bert"), dropout=True))


def test_frozen_encoder_stays_in_evaluation(dropping):
    holder, tokens = torch.nn.ModuleList([dropping]), dropping.tokenize(REPORTS[:3])
    holder.train()
    assert not torch.equal(dropping(**tokens), dropping(**tokens)), "dropout is on before"
    freeze_encoder(dropping)
    expected = dropping(**tokens)
    for told in (holder.train, dropping.train, lambda: holder.train(True), lambda: dropping.eval().train()):
        told()
        assert not any(module.training for module in dropping.modules())
        assert torch.equal(dropping(**tokens), expected)
    assert not expected.requires_grad
    assert holder.training


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copy_of_a_frozen_encoder_is_frozen_itself(vit, copied):
    freeze_encoder(vit)
    other = copied(vit)
    assert other.train() is other
    assert other is not vit
    assert not other.model.training


def test_bias_only_trains_biases_only(vit):
    bias_only(vit)
    trained = {name for name, value in vit.named_parameters() if value.requires_grad}
    assert trained == {name for name, _ in vit.named_parameters() if name.endswith(".bias")}
    # The patch embedding and the last normalisation; in a block two normalisations, four layers of attention, an MLP.
    assert sum(value.numel() for value in vit.parameters() if value.requires_grad) == 2 * 16 + 2 * (7 * 16 + 24)
    vit.train()
    vit(_draw_pixels()).square().sum().backward()
    assert {name for name, value in vit.named_parameters() if value.grad is not None} <= trained
    for module in vit.modules():
        if isinstance(getattr(module, "bias", None), torch.nn.Parameter):
            module.bias = None
    with pytest.raises(StudyError, match="no biases"):
        bias_only(vit)
