"""Encoders: each checkpoint class against its transformers model called directly, and the promises of the contract."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoModel,
    BeitConfig,
    BeitModel,
    BertConfig,
    BertForPreTraining,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from chexstudy.devices import autocast_dtype
from chexstudy.encoders import packed_attention
from chexstudy.encoders.build import build_image_encoder, build_text_encoder, compile_blocks
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.encoder import hash_weights
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import NORMALISATIONS, EncoderSpec
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.errors import StudyError

REPORTS = [
    "Small left pleural effusion. No pneumothorax.",
    "Cardiomegaly is mild.",
    "",
    "The lungs are clear and the heart is of normal size, no effusion.",
] * 3
_NEEDS_COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)
each_tiny = pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit", "tiny-bert"])
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def draw_pixels(size, images=3, seed=0):
    """Blots a quarter of the image wide, so that the images differ after any pooling."""
    generator = torch.Generator().manual_seed(seed)
    blots = torch.randint(0, 256, (images, 1, 4, 4), generator=generator).float()
    return functional.interpolate(blots, (size, size), mode="bilinear").to(torch.uint8)


def normalise(pixels, name):
    """The published preprocessing written out: scale to [0, 1], three equal channels, mean and deviation of each."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALISATIONS[name])
    return (pixels.float().div(255).repeat(1, 3, 1, 1) - mean) / std


def save(model, folder, **preprocessing):
    """Give every weight, buffers included, a value of its own and save the model as the Hub does."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if "running_var" in name else (noise - 0.5) * 0.6)
    model.eval().save_pretrained(folder)
    if preprocessing:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folder of small checkpoints, one of each class, and the models they came from."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = train_wordpiece(REPORTS, min_frequency=1)
    words = {"vocab_size": len(tokenizer), "intermediate_size": 32}
    vision = {**SMALL, "image_size": 32, "patch_size": 8, "intermediate_size": 32}
    dinov2 = {**SMALL, "image_size": 56, "patch_size": 14, "mlp_ratio": 2}
    special = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    text = {**SMALL, **words, **special}
    torch.manual_seed(0)
    models = {
        "dinov2": save(Dinov2Model(Dinov2Config(**dinov2)), folder / "dinov2"),
        "registers": save(
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**dinov2, num_register_tokens=4)), folder / "registers"
        ),
        "dinov3": save(DINOv3ViTModel(DINOv3ViTConfig(**vision, num_register_tokens=4)), folder / "dinov3"),
        "rad-dino": save(
            Dinov2Model(Dinov2Config(**dinov2)),
            folder / "rad-dino",
            image_mean=[0.53] * 3,
            image_std=[0.25] * 3,
            size={"shortest_edge": 42},
            crop_size={"height": 42, "width": 42},
            do_center_crop=True,
        ),
        "vit": save(ViTForImageClassification(ViTConfig(**vision)), folder / "vit"),
        "resnet": save(
            ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
            folder / "resnet",
        ),
        "clip": save(
            CLIPModel(
                CLIPConfig(text_config={**text, "max_position_embeddings": 40}, vision_config=vision, projection_dim=12)
            ),
            folder / "clip",
        ),
        "siglip": save(
            SiglipModel(SiglipConfig(text_config={**text, "max_position_embeddings": 40}, vision_config=vision)),
            folder / "siglip",
        ),
        "bert": save(BertForPreTraining(BertConfig(**SMALL, **words, max_position_embeddings=40)), folder / "bert"),
        "deit": save(DeiTForImageClassification(DeiTConfig(**vision)), folder / "deit"),
        "roberta": save(RobertaForMaskedLM(RobertaConfig(**text, max_position_embeddings=40)), folder / "roberta"),
        "electra": save(
            ElectraModel(ElectraConfig(**text, embedding_size=8, max_position_embeddings=40)), folder / "electra"
        ),
        "distilbert": save(
            DistilBertModel(
                DistilBertConfig(
                    vocab_size=len(tokenizer), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40
                )
            ),
            folder / "distilbert",
        ),
    }
    for name in ("clip", "siglip", "bert", "roberta", "electra", "distilbert"):
        tokenizer.save_pretrained(folder / name)
    return folder, models


def load(hub, name, **options):
    return build_image_encoder(EncoderSpec(str(hub[0] / name), **options))


def load_text(hub, name, **options):
    return build_text_encoder(EncoderSpec(str(hub[0] / name), **options))


# --- images: each class equals its transformers model ----------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "normalisation", "size", "reference"),
    [
        ("dinov2", {}, "imagenet", 56, lambda m, x: m(x).last_hidden_state[:, 0]),
        ("dinov2", {"pooling": "pooler"}, "imagenet", 56, lambda m, x: m(x).pooler_output),
        ("dinov2", {"pooling": "mean"}, "imagenet", 56, lambda m, x: m(x).last_hidden_state[:, 1:].mean(1)),
        ("dinov2", {"normalisation": "clip"}, "clip", 56, lambda m, x: m(x).last_hidden_state[:, 0]),
        ("dinov2", {"image_size": 84}, "imagenet", 84, lambda m, x: m(x).last_hidden_state[:, 0]),
        ("registers", {}, "imagenet", 56, lambda m, x: m(x).last_hidden_state[:, 0]),
        ("registers", {"pooling": "max"}, "imagenet", 56, lambda m, x: m(x).last_hidden_state[:, 5:].amax(1)),
        ("dinov3", {}, "imagenet", 32, lambda m, x: m(x).last_hidden_state[:, 0]),
        ("vit", {}, "half", 32, lambda m, x: m.vit(x).last_hidden_state[:, 0]),
        (
            "vit",
            {"image_size": 48},
            "half",
            48,
            lambda m, x: m.vit(x, interpolate_pos_encoding=True).last_hidden_state[:, 0],
        ),
        ("resnet", {"image_size": 64}, "imagenet", 64, lambda m, x: m.resnet(x).pooler_output.flatten(1)),
        ("resnet", {"image_size": 64, "pooling": "max"}, "imagenet", 64, lambda m, x: m.resnet(x)[0].amax((2, 3))),
        ("clip", {}, "clip", 32, lambda m, x: m.visual_projection(m.vision_model(x).pooler_output)),
        ("clip", {"pooling": "pooler"}, "clip", 32, lambda m, x: m.vision_model(x).pooler_output),
        ("deit", {"pooling": "mean"}, "half", 32, lambda m, x: m.deit(x).last_hidden_state[:, 2:].mean(1)),
        ("siglip", {}, "half", 32, lambda m, x: m.vision_model(x).pooler_output),
        ("siglip", {"pooling": "mean"}, "half", 32, lambda m, x: m.vision_model(x).last_hidden_state.mean(1)),
    ],
)
def test_an_image_checkpoint_embeds_as_its_own_model_does(hub, name, options, normalisation, size, reference):
    encoder, pixels = load(hub, name, **options), draw_pixels(size)
    expected = reference(hub[1][name], normalise(pixels, normalisation))
    embedded = encoder(pixels)
    assert encoder.image_size == size
    assert embedded.shape == (3, encoder.dim)
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(0).mean() > 1e-4


@torch.no_grad()
def test_the_checkpoints_own_preprocessing_is_used(hub):
    encoder, pixels = load(hub, "rad-dino"), draw_pixels(42)
    assert encoder.image_size == 42
    expected = hub[1]["rad-dino"](((pixels / 255 - 0.53) / 0.25).repeat(1, 3, 1, 1)).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_registers_are_dropped_as_published(hub):
    with_registers = hub[1]["registers"]
    config = Dinov2Config(**SMALL, image_size=56, patch_size=14, mlp_ratio=2)
    without = Dinov2Model(config).eval()
    weights = {k: v for k, v in with_registers.state_dict().items() if not k.endswith("register_tokens")}
    without.load_state_dict(weights)
    encoder, pixels = load(hub, "registers", drop_registers=True), draw_pixels(56)
    expected = without(normalise(pixels, "imagenet")).last_hidden_state
    pooled, _, patches = encoder.embed_blocks(pixels, blocks=1)
    torch.testing.assert_close(pooled, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches, expected[:, 1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(pixels), load(hub, "registers")(pixels), atol=1e-3)


@torch.no_grad()
def test_joined_poolings_stand_side_by_side(hub):
    pixels = draw_pixels(56)
    joined = load(hub, "dinov2", pooling="cls+mean")
    assert joined.dim == 32
    parts = [load(hub, "dinov2", pooling=pooling)(pixels) for pooling in ("cls", "mean")]
    torch.testing.assert_close(joined(pixels), torch.cat(parts, 1))


@torch.no_grad()
def test_pixels_of_another_size_are_resized_with_antialiasing_inside_the_8_bit_range(hub):
    encoder = load(hub, "dinov2")
    pixels = draw_pixels(112)
    resized = functional.interpolate(pixels.float(), (56, 56), mode="bicubic", antialias=True).clamp(0, 255)
    expected = hub[1]["dinov2"](normalise(resized, "imagenet")).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-4, atol=1e-5)


# --- images: another size, and fewer patches -------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "normalisation", "size", "reference"),
    [
        ("dinov2", {}, "imagenet", 28, lambda m, x: m(x).last_hidden_state[:, 0]),
        ("dinov2", {"pooling": "mean"}, "imagenet", 84, lambda m, x: m(x).last_hidden_state[:, 1:].mean(1)),
        ("registers", {"pooling": "max"}, "imagenet", 28, lambda m, x: m(x).last_hidden_state[:, 5:].amax(1)),
        ("dinov3", {"pooling": "mean"}, "imagenet", 48, lambda m, x: m(x).last_hidden_state[:, 5:].mean(1)),
        (
            "vit",
            {"pooling": "mean"},
            "half",
            24,
            lambda m, x: m.vit(x, interpolate_pos_encoding=True).last_hidden_state[:, 1:].mean(1),
        ),
        (
            "clip",
            {},
            "clip",
            16,
            lambda m, x: m.visual_projection(m.vision_model(x, interpolate_pos_encoding=True).pooler_output),
        ),
        ("siglip", {}, "half", 48, lambda m, x: m.vision_model(x, interpolate_pos_encoding=True).pooler_output),
        ("resnet", {"image_size": 64}, "imagenet", 48, lambda m, x: m.resnet(x).pooler_output.flatten(1)),
    ],
)
def test_an_encoder_looks_at_another_size_as_its_own_model_does(hub, name, options, normalisation, size, reference):
    encoder, pixels = load(hub, name, **options), draw_pixels(size)
    own = encoder.image_size
    expected = reference(hub[1][name], normalise(pixels, normalisation))
    torch.testing.assert_close(encoder(pixels, size=size), expected, rtol=1e-4, atol=1e-5)
    assert own != size
    assert encoder.image_size == own
    assert not torch.allclose(encoder(pixels), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit"])
def test_a_size_asked_for_once_is_that_of_an_encoder_of_this_size(name, tmp_path):
    encoder, pixels = build_tiny(name), draw_pixels(96)
    other = build_image_encoder(EncoderSpec(str(save_encoder(encoder, tmp_path)), image_size=48))
    assert torch.equal(encoder(pixels, size=48), other(pixels))
    assert torch.equal(encoder(pixels, size=96), encoder(pixels))
    assert not torch.allclose(encoder(pixels, size=48), encoder(pixels), atol=1e-3)


class FixedConfig(ViTConfig):
    model_type = "fixed"


class FixedModel(ViTModel):
    config_class = FixedConfig

    def forward(self, pixel_values):
        return super().forward(pixel_values)


def test_a_size_that_does_not_fit_is_refused_before_training():
    with pytest.raises(StudyError, match="patches of 12 pixels, and 40 is no multiple of it: use 36 or 48"):
        build_tiny("tiny-vit").check_size(40)
    with pytest.raises(StudyError, match="8 is no multiple of it: use 12"):
        build_tiny("tiny-vit").check_size(8)
    with pytest.raises(StudyError, match="0 pixels a side"):
        build_tiny("tiny-resnet").check_size(0)
    build_tiny("tiny-resnet").check_size(41)
    with pytest.raises(StudyError, match="use 84 or 96"):
        build_tiny("tiny-vit")(draw_pixels(96), size=90)
    model = FixedModel(FixedConfig(**SMALL, image_size=32, patch_size=8, intermediate_size=32))
    fixed = ImageEncoder(model, "cls", {"name": "fixed"}, 32, *NORMALISATIONS["half"])
    fixed.check_size(32)
    with pytest.raises(StudyError, match="fixed is a fixed, which cannot look at 48 pixels a side: use 32"):
        fixed.check_size(48)


def gradients_of(encoder, embedded):
    encoder.zero_grad()
    (embedded * torch.linspace(-1, 1, embedded.numel()).view_as(embedded)).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in encoder.parameters() if parameter.grad is not None])


def assert_equal_to(value, expected, relative=1e-6):
    assert torch.linalg.vector_norm(value - expected) <= relative * torch.linalg.vector_norm(expected)


# --- blocks: what the heads on frozen features see ------------------------------------------------------------------


def record_blocks(tower, values):
    """What leaves each transformer block, recorded where it leaves it and not as the model reports it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    left = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: left.append(output))
        for block in tower.modules()
        if isinstance(block, GradientCheckpointingLayer)
    ]
    tower(values)
    for hook in hooks:
        hook.remove()
    return [output[0] if isinstance(output, tuple) else output for output in left]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "normalisation", "norm", "first"),
    [
        ("dinov2", "imagenet", lambda model: model.layernorm, 1),
        ("registers", "imagenet", lambda model: model.layernorm, 5),
        ("dinov3", "imagenet", lambda model: model.norm, 5),
        ("vit", "half", lambda model: model.vit.layernorm, 1),
        ("deit", "half", lambda model: model.deit.layernorm, 2),
        ("clip", "clip", lambda model: model.vision_model.post_layernorm, 1),
        ("siglip", "half", lambda model: model.vision_model.post_layernorm, 0),
    ],
)
def test_blocks_are_those_of_the_model_after_its_final_norm(hub, name, normalisation, norm, first):
    model, encoder = hub[1][name], load(hub, name, pooling="mean")
    pixels = draw_pixels(encoder.image_size)
    tower = {"vit": "vit", "deit": "deit", "clip": "vision_model", "siglip": "vision_model"}.get(name)
    values = normalise(pixels, normalisation)
    left = record_blocks(getattr(model, tower) if tower else model, values)
    expected = torch.cat([norm(model)(state) for state in left], dim=2)
    _, cls, patches = encoder.embed_blocks(pixels, blocks=2)
    torch.testing.assert_close(patches, expected[:, first:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cls, expected[:, 0] if first else expected.mean(1), rtol=1e-4, atol=1e-5)
    assert encoder.block_widths() == (16, 16)
    _, one_cls, one = encoder.embed_blocks(pixels, blocks=1)
    torch.testing.assert_close(one, patches[:, :, 16:])
    torch.testing.assert_close(one_cls, cls[:, 16:])


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2", "registers", "vit", "siglip"])
def test_the_last_block_is_what_the_encoder_itself_gives(hub, name):
    encoder = load(hub, name)
    pixels = draw_pixels(encoder.image_size)
    pooled, cls, _ = encoder.embed_blocks(pixels, blocks=2)
    assert torch.equal(pooled, encoder(pixels))
    if name != "siglip":
        assert encoder.pooling == "cls"
        assert torch.equal(cls[:, -16:], encoder(pixels))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["pooler", "projection"])
def test_clips_normalised_class_token_is_what_it_pools(hub, pooling):
    encoder = load(hub, "clip", pooling=pooling)
    pixels = draw_pixels(encoder.image_size)
    pooled, cls, _ = encoder.embed_blocks(pixels, blocks=1)
    expected = cls if pooling == "pooler" else encoder.model.visual_projection(cls)
    torch.testing.assert_close(pooled, expected)


@torch.no_grad()
def test_the_stages_of_a_resnet_come_on_the_grid_of_the_second_finest():
    encoder = build_tiny("tiny-resnet")
    pixels = draw_pixels(96)
    stages = []
    hooks = [
        stage.register_forward_hook(lambda *call: stages.append(call[2])) for stage in encoder.model.encoder.stages
    ]
    encoder(pixels)
    for hook in hooks:
        hook.remove()
    assert [stage.shape[-1] for stage in stages] == [24, 12, 6, 3]
    _, cls, patches = encoder.embed_blocks(pixels)
    assert encoder.block_widths() == (16, 32, 64, 128)
    assert patches.shape == (3, 144, 240)
    torch.testing.assert_close(cls, torch.cat([stage.mean((2, 3)) for stage in stages], dim=1))
    grid = patches.transpose(1, 2).unflatten(2, (12, 12))
    torch.testing.assert_close(grid[:, :16], stages[0].unflatten(2, (12, 2)).unflatten(4, (12, 2)).mean((3, 5)))
    torch.testing.assert_close(grid[:, 16:48], stages[1])
    # Half a pixel in from the corner there is nothing to interpolate towards; one further in, a quarter of the way.
    torch.testing.assert_close(grid[:, 48:112, 0, 0], stages[2][:, :, 0, 0])
    torch.testing.assert_close(grid[:, 48:112, 0, 1], 0.75 * stages[2][:, :, 0, 0] + 0.25 * stages[2][:, :, 0, 1])
    _, last_cls, last = encoder.embed_blocks(pixels, blocks=1)
    torch.testing.assert_close(last, patches[:, :, -128:])
    torch.testing.assert_close(last_cls, cls[:, -128:])


@torch.no_grad()
@pytest.mark.parametrize(("name", "most"), [("tiny-resnet", 4), ("tiny-vit", 3)])
def test_more_blocks_than_there_are_is_one_sentence(name, most):
    encoder = build_tiny(name)
    for blocks in (0, most + 1):
        with pytest.raises(StudyError, match=f"{name} has {most} blocks, not {blocks}: ask for 1 to {most}"):
            encoder.embed_blocks(draw_pixels(96), blocks)


@torch.no_grad()
def test_an_architecture_not_listed_shows_its_blocks_or_says_why_not(tmp_path):
    beit = BeitModel(BeitConfig(**SMALL, image_size=32, patch_size=8, intermediate_size=32), add_pooling_layer=False)
    save(beit, tmp_path / "beit")
    encoder = build_image_encoder(EncoderSpec(str(tmp_path / "beit"), pooling="mean"))
    pixels = draw_pixels(32)
    _, cls, patches = encoder.embed_blocks(pixels, blocks=2)
    assert encoder.block_widths() == (16, 16)
    left = record_blocks(beit, normalise(pixels, "half"))
    torch.testing.assert_close(patches, torch.cat(left, dim=2)[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cls, torch.cat(left, dim=2)[:, 0], rtol=1e-4, atol=1e-5)
    swin = SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1] * 3, num_heads=[1] * 3, window_size=2)
    save(SwinModel(swin, add_pooling_layer=False), tmp_path / "swin")
    encoder = build_image_encoder(EncoderSpec(str(tmp_path / "swin"), pooling="mean"))
    with pytest.raises(StudyError, match="is a swin, whose blocks cannot be seen on one grid: use a ViT"):
        encoder.block_widths()


def test_four_blocks_of_a_large_vit_have_4096_channels():
    config = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=28)
    with torch.device("meta"):
        model = Dinov2Model(config)
    encoder = ImageEncoder(model, "cls", {"name": "vit-l", "revision": ""}, 28, (0.5,) * 3, (0.5,) * 3)
    assert sum(encoder.block_widths()[-4:]) == 4096


# --- texts -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("pooling", "reference"),
    [
        ("", lambda o, mask: torch.stack([row[m.sum() - 1] for row, m in zip(o, mask, strict=True)])),
        ("last", lambda o, mask: torch.stack([row[m.sum() - 1] for row, m in zip(o, mask, strict=True)])),
        ("first", lambda o, mask: o[:, 0]),
        ("mean", lambda o, mask: torch.stack([row[m.bool()].mean(0) for row, m in zip(o, mask, strict=True)])),
    ],
)
def test_a_bert_checkpoint_embeds_as_its_own_model_does(hub, pooling, reference):
    encoder = load_text(hub, "bert", pooling=pooling)
    tokens = encoder.tokenize(REPORTS[:4])
    last = encoder.tokenizer.sep_token_id
    assert [int(row[m.sum() - 1]) for row, m in zip(*tokens.values(), strict=True)] == [last] * 4
    expected = reference(hub[1]["bert"].bert(**tokens).last_hidden_state, tokens["attention_mask"])
    torch.testing.assert_close(encoder(**tokens), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_berts_pooler_is_loaded_when_asked_for(hub):
    encoder = load_text(hub, "bert", pooling="pooler")
    tokens = encoder.tokenize(REPORTS[:4])
    torch.testing.assert_close(encoder(**tokens), hub[1]["bert"].bert(**tokens).pooler_output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_clip_texts_land_in_the_pairs_shared_space(hub):
    encoder, model = load_text(hub, "clip"), hub[1]["clip"]
    tokens = encoder.tokenize(REPORTS[:4])
    expected = model.text_projection(model.text_model(**tokens).pooler_output)
    assert encoder.dim == load(hub, "clip").dim == 12
    torch.testing.assert_close(encoder(**tokens), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_siglip_texts_are_padded_to_full_length_without_a_mask(hub):
    encoder, model = load_text(hub, "siglip"), hub[1]["siglip"]
    tokens = encoder.tokenize(REPORTS[:4])
    assert tokens["input_ids"].shape == (4, 40)
    expected = model.text_model(input_ids=tokens["input_ids"]).pooler_output
    torch.testing.assert_close(encoder(**tokens), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_architecture_not_listed_is_used_by_its_named_pooling(hub):
    encoder = load_text(hub, "roberta", pooling="first")
    tokens = encoder.tokenize(["effusion " * 60])
    assert tokens["input_ids"].shape == (1, 39)
    expected = hub[1]["roberta"].roberta(**tokens).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder(**tokens), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(StudyError, match="name a pooling, one of last, first, mean, pooler, projection"):
        load_text(hub, "roberta")


def test_siglips_compiled_tokenizer_is_read_without_sentencepiece(hub, tmp_path):
    shutil.copytree(hub[0] / "siglip", tmp_path / "siglip")
    path = tmp_path / "siglip" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "SiglipTokenizer"}))
    tokens = build_text_encoder(EncoderSpec(str(tmp_path / "siglip"))).tokenize(REPORTS)
    assert torch.equal(tokens["input_ids"], load_text(hub, "siglip").tokenize(REPORTS)["input_ids"])


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
def test_the_amount_of_padding_does_not_change_an_embedding(pooling):
    encoder = build_text_encoder(EncoderSpec("tiny-bert", pooling=pooling), REPORTS)
    tokens = encoder.tokenize(REPORTS[:3])
    padded = {name: functional.pad(value, (0, 17)) for name, value in tokens.items()}
    torch.testing.assert_close(encoder(**padded), encoder(**tokens), rtol=0, atol=1e-6)
    alone = torch.cat([encoder(**encoder.tokenize([text])) for text in REPORTS[:3]])
    torch.testing.assert_close(alone, encoder(**tokens), rtol=0, atol=1e-6)


def test_texts_are_cut_at_max_tokens_and_at_what_the_model_can_read(hub):
    long = ["effusion " * 500]
    assert load_text(hub, "bert", max_tokens=9).tokenize(long)["input_ids"].shape == (1, 9)
    assert load_text(hub, "bert", max_tokens=256).tokenize(long)["input_ids"].shape == (1, 40)


def test_bert_loads_from_a_vocabulary_and_a_torch_file_of_tensors(hub, tmp_path):
    """As Bio_ClinicalBERT lies on the Hub: config.json, vocab.txt and pytorch_model.bin."""
    folder = tmp_path / "clinical"
    folder.mkdir()
    shutil.copy(hub[0] / "bert" / "config.json", folder)
    torch.save(hub[1]["bert"].state_dict(), folder / "pytorch_model.bin")
    vocabulary = sorted(load_text(hub, "bert").tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary) + "\n")
    encoder, reference = build_text_encoder(EncoderSpec(str(folder))), load_text(hub, "bert")
    assert hash_weights(encoder.model) == hash_weights(reference.model)
    assert torch.equal(encoder.tokenize(REPORTS)["input_ids"], reference.tokenize(REPORTS)["input_ids"])


# --- the small ones --------------------------------------------------------------------------------------------------


def build_tiny(name, seed=0, **options):
    if name == "tiny-bert":
        return build_text_encoder(EncoderSpec(name, **options), REPORTS, seed)
    return build_image_encoder(EncoderSpec(name, **options), seed)


def embed_something(encoder):
    if hasattr(encoder, "tokenize"):
        return encoder(**encoder.tokenize(REPORTS[:3]))
    return encoder(draw_pixels(96))


@each_tiny
def test_a_seed_decides_every_weight_and_leaves_the_global_state_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_tiny(name, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert hash_weights(first) == hash_weights(build_tiny(name, 3))
    assert hash_weights(first) != hash_weights(build_tiny(name, 4))


@each_tiny
def test_a_saved_encoder_comes_back_as_it_was(name, tmp_path):
    encoder = build_tiny(name, 3)
    save_encoder(encoder, tmp_path / "encoder")
    build = build_text_encoder if name == "tiny-bert" else build_image_encoder
    loaded = build(EncoderSpec(str(tmp_path / "encoder")))
    assert torch.equal(embed_something(loaded), embed_something(encoder))
    assert loaded.describe() == encoder.describe()
    assert not [path for path in (tmp_path / "encoder").iterdir() if path.is_dir() or "partial" in path.name]


@torch.no_grad()
def test_a_saved_tower_keeps_size_pooling_normalisation_and_length(hub, tmp_path):
    options = {"image_size": 84, "pooling": "cls+mean", "normalisation": "clip", "drop_registers": True}
    image = load(hub, "registers", **options)
    save_encoder(image, tmp_path / "image")
    assert torch.equal(
        build_image_encoder(EncoderSpec(str(tmp_path / "image")))(draw_pixels(96)), image(draw_pixels(96))
    )
    text = load_text(hub, "clip", max_tokens=7)
    save_encoder(text, tmp_path / "text")
    loaded = build_text_encoder(EncoderSpec(str(tmp_path / "text")))
    assert loaded.max_tokens == 7
    assert torch.equal(loaded(**loaded.tokenize(REPORTS)), text(**text.tokenize(REPORTS)))
    assert BertModel.from_pretrained(save_encoder(load_text(hub, "bert"), tmp_path / "bert")).config.hidden_size == 16


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit", "tiny-bert", "resnet"])
def test_an_embedding_does_not_depend_on_the_rest_of_the_batch_while_training(hub, name):
    encoder = load(hub, name, image_size=64) if name == "resnet" else build_tiny(name)
    encoder.train()
    whole = embed_something(encoder)
    single = encoder(**encoder.tokenize(REPORTS[1:2])) if name == "tiny-bert" else encoder(draw_pixels(96)[1:2])
    torch.testing.assert_close(single, whole[1:2], rtol=1e-5, atol=1e-5)
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    embed_something(encoder)
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


@each_tiny
def test_every_weight_of_a_small_encoder_is_trained(name):
    encoder = build_tiny(name).train()
    embed_something(encoder).square().sum().backward()
    idle = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_dropout_is_off_unless_asked_for(hub):
    tokens = load_text(hub, "bert").tokenize(REPORTS[:4])
    silent, noisy = load_text(hub, "bert").train(), load_text(hub, "bert", dropout=True).train()
    assert torch.equal(silent(**tokens), silent(**tokens))
    assert not torch.equal(noisy(**tokens), noisy(**tokens))


def test_an_architecture_can_start_from_scratch(hub, tmp_path):
    (tmp_path / "config.json").write_text((hub[0] / "resnet" / "config.json").read_text())
    scratch = build_image_encoder(EncoderSpec(str(tmp_path), pretrained=False, image_size=64), seed=1)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in scratch.modules())
    save_encoder(scratch, tmp_path / "saved")
    assert torch.equal(
        build_image_encoder(EncoderSpec(str(tmp_path / "saved")))(draw_pixels(64)), scratch(draw_pixels(64))
    )


def test_bfloat16_is_advised_only_where_the_processor_has_it(monkeypatch):
    for has, advice in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert autocast_dtype("cpu") is advice
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, has=has: (9 if has else 7, 0))
        assert autocast_dtype("cuda") is advice
    assert autocast_dtype("meta") is None


# --- texts without padding -------------------------------------------------------------------------------------------


def pack(tokens):
    mask = tokens["attention_mask"]
    return tokens["input_ids"][mask.bool()], mask.sum(1)


def build_packable(hub, name, pooling):
    return (
        build_text_encoder(EncoderSpec("tiny-bert", pooling=pooling), REPORTS)
        if name == "tiny-bert"
        else load_text(hub, name, pooling=pooling)
    )


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        *(("tiny-bert", pooling) for pooling in ("last", "first", "mean", "pooler")),
        *(("bert", pooling) for pooling in ("last", "first", "mean", "pooler")),
        *((name, "mean") for name in ("roberta", "electra", "distilbert")),
    ],
)
def test_packed_texts_embed_as_padded_ones_do(hub, name, pooling):
    encoder = build_packable(hub, name, pooling)
    tokens = encoder.tokenize(REPORTS[:5])
    padded, packed = encoder(**tokens), encoder.forward_packed(*pack(tokens))
    assert len(set(tokens["attention_mask"].sum(1).tolist())) == 4
    assert_equal_to(gradients_of(encoder, packed), gradients_of(encoder, padded), 2e-6)
    assert_equal_to(packed, padded)
    # Padded texts are still embedded by the very same operations.
    assert torch.equal(encoder(**tokens), padded)


@torch.no_grad()
def test_packing_works_in_bfloat16(hub):
    encoder = load_text(hub, "bert", pooling="mean")
    tokens = encoder.tokenize(REPORTS[:4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed = encoder.forward_packed(*pack(tokens))
    assert_equal_to(packed.float(), encoder(**tokens), 3e-2)


@torch.no_grad()
def test_one_encoder_serves_padded_and_packed_texts_in_several_threads(hub):
    encoder, fresh = (load_text(hub, "bert", pooling="mean") for _ in range(2))
    batches = [encoder.tokenize(REPORTS[first : first + 3]) for first in range(4)] * 3
    expected = [fresh(**tokens) for tokens in batches]

    def embed(number):
        tokens = batches[number]
        return encoder.forward_packed(*pack(tokens)) if number % 2 else encoder(**tokens)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, range(len(batches))))
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert_equal_to(value, reference) if number % 2 else torch.testing.assert_close(
            value, reference, rtol=0, atol=0
        )


@torch.no_grad()
def test_an_encoder_that_packed_is_saved_as_any_other(hub, tmp_path):
    encoder = load_text(hub, "bert", pooling="mean")
    tokens = encoder.tokenize(REPORTS[:4])
    before, expected = encoder.describe(), encoder(**tokens)
    encoder.forward_packed(*pack(tokens))
    assert encoder.describe() == before
    save_encoder(encoder, tmp_path)
    assert "packable" not in (tmp_path / "config.json").read_text()
    assert torch.equal(build_text_encoder(EncoderSpec(str(tmp_path)))(**tokens), expected)
    plain = AutoModel.from_pretrained(tmp_path)
    assert plain.config._attn_implementation in ("sdpa", "eager")


@torch.no_grad()
def test_flash_attention_gets_the_texts_by_their_ends(hub, monkeypatch):
    """The GPU path with its kernel replaced: the kernel's arguments, and what is done with its result."""
    encoder = load_text(hub, "bert", pooling="mean")
    tokens = encoder.tokenize(REPORTS[:4])
    input_ids, lengths = pack(tokens)
    expected = encoder.forward_packed(input_ids, lengths)
    calls = []

    def kernel(query, key, value, ends_q, ends_k, longest_q, longest_k, *, scale):
        assert query.shape == key.shape == value.shape == (len(input_ids), 2, 8)
        assert ends_q.dtype == torch.int32
        assert ends_q.tolist() == ends_k.tolist() == [0, *lengths.cumsum(0).tolist()]
        assert longest_q == longest_k == int(lengths.max())
        calls.append(scale)
        attended = torch.empty_like(query)
        for first, last in pairwise(ends_q.tolist()):
            scores = torch.einsum("qhd,khd->hqk", query[first:last], key[first:last]) * scale
            attended[first:last] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[first:last])
        return attended

    monkeypatch.setattr(packed_attention, "varlen_attn", kernel)
    monkeypatch.setattr(packed_attention, "_has_flash", lambda query, dropout: True)
    assert_equal_to(encoder.forward_packed(input_ids, lengths), expected)
    assert calls == [8**-0.5] * 2


def test_texts_that_cannot_be_packed_are_refused(hub):
    for name, pooling in (("siglip", ""), ("clip", ""), ("clip", "mean")):
        encoder = load_text(hub, name, pooling=pooling)
        with pytest.raises(StudyError, match=r"cannot be packed .* lay them out in buckets or padded"):
            encoder.forward_packed(*pack(encoder.tokenize(REPORTS[:2])))


# --- compiled blocks -------------------------------------------------------------------------------------------------


def graphs_compiled():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@_NEEDS_COMPILER
def test_compiled_blocks_embed_alike_and_compile_a_shape_once():
    torch._dynamo.reset()
    encoder, pixels = build_tiny("tiny-vit").train(), draw_pixels(96)
    expected = encoder(pixels)
    reference = gradients_of(encoder, expected)
    names = list(encoder.state_dict())
    assert compile_blocks(encoder) == 3
    before = graphs_compiled()
    embedded = encoder(pixels)
    assert graphs_compiled() > before
    assert_equal_to(gradients_of(encoder, embedded), reference, 1e-5)
    assert_equal_to(embedded, expected, 1e-5)
    assert list(encoder.state_dict()) == names
    compiled = graphs_compiled()
    gradients_of(encoder, encoder(draw_pixels(96, seed=1)))
    assert graphs_compiled() == compiled


@pytest.mark.slow
@_NEEDS_COMPILER
def test_compiled_text_blocks_take_every_length_and_layout():
    torch._dynamo.reset()
    encoder = build_text_encoder(EncoderSpec("tiny-bert"), REPORTS)
    batches = [encoder.tokenize(REPORTS[first : first + texts]) for first, texts in ((0, 4), (1, 5), (0, 2), (3, 6))]
    expected = [encoder(**tokens) for tokens in batches]
    assert compile_blocks(encoder) == 2
    for number, (tokens, reference) in enumerate(zip(batches, expected, strict=True)):
        assert_equal_to(encoder(**tokens), reference, 1e-5)
        assert_equal_to(encoder.forward_packed(*pack(tokens)), reference, 1e-5)
        if number == 1:
            compiled = graphs_compiled()
    assert graphs_compiled() == compiled


@pytest.mark.slow
@_NEEDS_COMPILER
def test_the_stages_of_a_resnet_are_compiled():
    torch._dynamo.reset()
    encoder, pixels = build_tiny("tiny-resnet"), draw_pixels(96)
    expected = encoder(pixels)
    assert compile_blocks(encoder) == 4
    assert_equal_to(encoder(pixels), expected, 1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": "tiny-vit", "normalisation": "z-score"}, "unknown normalisation 'z-score'"),
        ({"name": "tiny-vit", "image_size": 0}, "image_size of tiny-vit is 0"),
        ({"name": "tiny-vit", "max_tokens": 2}, "max_tokens of tiny-vit is 2"),
        ({"name": "tiny-convnet"}, "there is no image encoder 'tiny-convnet'"),
        ({"name": "tiny-bert"}, "there is no image encoder 'tiny-bert'"),
        ({"name": "tiny-vit", "image_size": 100}, "no multiple of it: use 96 or 108"),
        ({"name": "tiny-resnet", "pooling": "cls"}, "has no cls"),
        ({"name": "tiny-vit", "pooling": "projection"}, "has no projection"),
        ({"name": "tiny-vit", "pooling": "last"}, "unknown pooling 'last'"),
        ({"name": "tiny-vit", "pooling": "cls+pooler"}, "unknown pooling 'cls\\+pooler'"),
        ({"name": "tiny-vit", "drop_registers": True}, "has no registers"),
        ({"name": "./nowhere"}, "there is no folder .*nowhere"),
    ],
)
def test_a_spec_that_cannot_be_is_one_sentence(options, message):
    with pytest.raises(StudyError, match=message) as raised:
        build_image_encoder(EncoderSpec(**options))
    assert "\n" not in str(raised.value)


def test_a_missing_model_offline_says_what_how_and_where(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StudyError) as raised:
        build_image_encoder(EncoderSpec("microsoft/rad-dino", revision="abc123"))
    for part in (
        "'microsoft/rad-dino'",
        "revision 'abc123'",
        "hf download microsoft/rad-dino --revision abc123",
        "folder",
    ):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_in_the_cache_needs_no_network(hub, monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--dino"
    shutil.copytree(hub[0] / "dinov2", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    cached = huggingface_hub.snapshot_download
    calls = []

    def download(*args, **options):
        calls.append(options["local_files_only"])
        return cached(*args, cache_dir=tmp_path, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    encoder = build_image_encoder(EncoderSpec("someone/dino"))
    assert set(calls) == {True}
    assert encoder.describe()["revision"] == commit
    assert hash_weights(encoder.model) == hash_weights(hub[1]["dinov2"])


def test_a_pickle_that_could_run_code_is_refused(hub, tmp_path):
    folder = tmp_path / "unsafe"
    folder.mkdir()
    shutil.copy(hub[0] / "dinov2" / "config.json", folder)
    torch.save({"weights": build_image_encoder}, folder / "pytorch_model.bin")
    with pytest.raises(StudyError, match="could run code"):
        build_image_encoder(EncoderSpec(str(folder)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("layernorm.weight"), "they lack layernorm.weight"),
        (lambda weights: weights.update({"adapter.weight": torch.ones(2)}), "they hold the unknown adapter.weight"),
        (lambda weights: weights.update({"layernorm.weight": torch.ones(3)}), "another shape in layernorm.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(hub, tmp_path, change, message):
    shutil.copytree(hub[0] / "dinov2", tmp_path / "changed")
    path = tmp_path / "changed" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(StudyError, match=message):
        build_image_encoder(EncoderSpec(str(tmp_path / "changed")))


def demand_code(folder):
    config = {"model_type": "novel", "auto_map": {"AutoConfig": "novel.Config", "AutoModel": "novel.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "novel.py").write_text("raise SystemExit('this code must not run')")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors or pytorch_model.bin"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"<html>"), "do not load"),
        (lambda folder: (folder / "config.json").write_text("{}"), "not one transformers can use"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "not valid JSON"),
        (demand_code, "code that a model brings along is never run"),
    ],
)
def test_a_damaged_folder_is_named(hub, tmp_path, spoil, message):
    shutil.copytree(hub[0] / "dinov2", tmp_path / "damaged")
    spoil(tmp_path / "damaged")
    with pytest.raises(StudyError, match=message):
        build_image_encoder(EncoderSpec(str(tmp_path / "damaged")))


def write_into(name, **values):
    def write(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return write


def spoil_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layernorm.weight"))
    save_file(
        weights | {name: torch.full_like(weights[name], torch.nan)}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write_into("config.json", num_attention_heads=0), r"is no checkpoint that can be used \(ZeroDivisionError\)"),
        (write_into("config.json", num_attention_heads=-1), r"is no checkpoint that can be used"),
        (write_into("config.json", num_attention_heads="x"), r"is no checkpoint that can be used"),
        (write_into("config.json", hidden_size=10**30), r"is damaged, its hidden_size cannot be 1000"),
        (write_into("config.json", num_hidden_layers=10**7), r"is damaged, its num_hidden_layers cannot be 10000000"),
        (write_into("config.json", patch_size=0), r"is no checkpoint that can be used"),
        (write_into("config.json", layer_norm_eps=float("nan")), r"is damaged, its layer_norm_eps cannot be nan"),
        (write_into("config.json", hidden_act="nosuch"), r"is no checkpoint that can be used \(KeyError\)"),
        (write_into("config.json", chexstudy=[]), r"is no checkpoint that can be used"),
        (write_into("preprocessor_config.json", image_mean=[float("nan")]), "gives embeddings that are not numbers"),
        (write_into("preprocessor_config.json", image_std=[0.0]), "the image_std of .* must be above 0"),
        (write_into("preprocessor_config.json", image_std=[-1.0]), "the image_std of .* must be above 0"),
        (write_into("preprocessor_config.json", image_mean="x"), r"is no checkpoint that can be used"),
        (spoil_a_weight, "gives embeddings that are not numbers"),
    ],
)
def test_an_odd_checkpoint_is_one_sentence(tmp_path, spoil, message):
    folder = save_encoder(build_image_encoder(EncoderSpec("tiny-vit", image_size=24)), tmp_path / "odd")
    spoil(folder)
    with pytest.raises(StudyError, match=message):
        build_image_encoder(EncoderSpec(str(folder), image_size=24))


def test_texts_need_a_vocabulary_that_fits(hub, tmp_path):
    with pytest.raises(StudyError, match="tiny-bert has no vocabulary"):
        build_text_encoder(EncoderSpec("tiny-bert"))
    with pytest.raises(StudyError, match="has no tokenizer files"):
        load_text(hub, "dinov2")
    larger = train_wordpiece(["".join(map(chr, range(97, 123)))] * 2 + [text + " zigzag quux" for text in REPORTS])
    with pytest.raises(StudyError, match="give the tokenizer that belongs to it"):
        build_text_encoder(EncoderSpec(str(hub[0] / "bert")), larger)


def test_pixels_that_are_not_square_bytes_are_refused():
    encoder = build_tiny("tiny-resnet")
    for wrong in (
        draw_pixels(96).float(),
        draw_pixels(96)[:, 0],
        draw_pixels(96).repeat(1, 3, 1, 1),
        draw_pixels(96)[:, :, 1:],
    ):
        with pytest.raises(StudyError, match="square uint8 pixels"):
            encoder(wrong)


def test_loading_prints_nothing(hub, capfd):
    load(hub, "vit")
    load_text(hub, "bert")
    load(hub, "clip")
    assert capfd.readouterr() == ("", "")


def test_importing_the_module_leaves_transformers_out():
    code = "import sys, chexstudy.encoders.build; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
