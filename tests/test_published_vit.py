"""Checkpoints of DINOv2's and CheXFound's own code: the same features as the transformers model they describe."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError

_SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "",
    "encoder.layer": "blocks",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.down_proj": "mlp.w3",
    "layernorm": "norm",
}
_PARTS = {"attn.qkv": ("q_proj", "k_proj", "v_proj"), "mlp.w12": ("gate_proj", "up_proj")}


def _draw(**options):
    torch.manual_seed(0)
    if registers := options.pop("registers", 4):
        options["num_register_tokens"] = registers
    config = (Dinov2WithRegistersConfig if registers else Dinov2Config)(**_SIZES, **options)
    model = (Dinov2WithRegistersModel if registers else Dinov2Model)(config).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return model


def publish(model, chunked=False):
    """The weights of a model under the names of the published code, layers that it joins put together."""
    published, weights = {}, dict(model.state_dict())
    for name in list(weights):
        for joined, parts in _PARTS.items():
            first = re.fullmatch(rf"(.*)\.(attention|mlp)\.{parts[0]}\.(weight|bias)", name)
            if first:
                pieces = [weights.pop(f"{first[1]}.{first[2]}.{part}.{first[3]}") for part in parts]
                published[f"{first[1]}.{joined}.{first[3]}"] = torch.cat(pieces)
    renamed = {}
    for name, weight in (published | weights).items():
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
        # Two chunks of two blocks each.
        name = (
            re.sub(r"^blocks\.(\d)", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}", name) if chunked else name
        )
        renamed[name] = weight
    return renamed


def _prefix(prefix, weights):
    return {prefix + name: weight for name, weight in weights.items()}


def _beside(weights):
    """As a whole training leaves it: a student, heads, an optimiser."""
    heads = {"teacher.dino_head.mlp.0.weight": torch.ones(2, 2)}
    student = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    model = _prefix("student.backbone.", student) | _prefix("teacher.backbone.", weights) | heads
    return {"model": model, "optimizer": {"state": {}}, "iteration": 3}


@pytest.mark.parametrize(
    ("options", "wrap"),
    [
        ({}, lambda weights: weights),
        ({"use_swiglu_ffn": True}, lambda weights: {"teacher": _prefix("backbone.", weights)}),
        ({"registers": 0}, lambda weights: _prefix("backbone.", weights)),
        ({"registers": 0, "use_swiglu_ffn": True, "num_channels": 1}, _beside),
        ({"mlp_ratio": 2, "qkv_bias": False}, _beside),
    ],
    ids=["alone", "teacher", "prefixed", "beside", "other_shapes"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_published_checkpoint_gives_the_features_of_its_model(tmp_path, options, wrap, chunked):
    model = _draw(**options)
    torch.save(wrap(publish(model, chunked)), tmp_path / "vit.pth")
    encoder = build_image_encoder(EncoderSpec(str(tmp_path / "vit.pth"), normalisation="half"))
    pixels = torch.randint(0, 256, (3, 1, 24, 24), dtype=torch.uint8)
    values = (pixels.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = model(values.expand(-1, model.config.num_channels, -1, -1)).last_hidden_state[:, 0]
        torch.testing.assert_close(encoder(pixels), expected, rtol=1e-5, atol=1e-6)
        again = build_image_encoder(EncoderSpec(str(save_encoder(encoder, tmp_path / "folder"))))
        assert again(pixels).equal(encoder(pixels))
    assert encoder.image_size == 24


def test_half_precision_and_safetensors_are_read(tmp_path):
    published = {name: weight.half().contiguous() for name, weight in publish(_draw()).items()}
    save_file(published, tmp_path / "vit.safetensors")
    torch.save(published, tmp_path / "vit.pth")
    pixels = torch.randint(0, 256, (3, 1, 24, 24), dtype=torch.uint8)
    with torch.no_grad():
        first, second = (
            build_image_encoder(EncoderSpec(str(tmp_path / name)))(pixels) for name in ("vit.safetensors", "vit.pth")
        )
    assert first.dtype == torch.float32
    assert first.equal(second)


class _Code:
    pass


def _without(name):
    published = publish(_draw())
    del published[name]
    return published


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        (lambda: _draw().state_dict(), "do not bear the names that DINOv2's own code gives"),
        (lambda: [1, 2], "do not bear the names that DINOv2's own code gives"),
        (lambda: _without("blocks.3.norm2.bias"), "they lack encoder.layer.3.norm2.bias; give a checkpoint"),
        (lambda: publish(_draw()) | {"blocks.0.gate": torch.ones(1)}, "they hold the unknown encoder.layer.0.gate"),
        (lambda: publish(_draw()) | {"norm.weight": torch.ones(64)}, "have another shape in layernorm.weight"),
        (
            lambda: publish(_draw()) | {"patch_embed.proj.weight": torch.ones(100, 3, 8, 8)},
            "are 100 wide, and a ViT of DINOv2's own code has heads of 64",
        ),
        (lambda: _without("blocks.0.mlp.fc1.weight"), "its files are damaged or do not belong together"),
        (_Code, "does not load as tensors alone"),
    ],
)
def test_what_is_no_published_checkpoint_is_one_sentence(tmp_path, saved, sentence):
    torch.save(saved(), tmp_path / "vit.pth")
    with pytest.raises(StudyError, match=sentence):
        build_image_encoder(EncoderSpec(str(tmp_path / "vit.pth")))


def test_a_file_that_is_none_of_them_is_one_sentence(tmp_path):
    for name in ("vit.pth", "vit.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(StudyError, match="does not load as tensors alone"):
            build_image_encoder(EncoderSpec(str(tmp_path / name)))
