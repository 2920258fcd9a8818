"""Where a self-supervised training begins: at any DINOv2 or DINOv3."""

import numpy as np
import pytest
import torch
from test_self_supervised import _CONSTANTS, _gradient, _objective
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.hub import quiet_transformers
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.training.arm_run import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24}


def _save(folder, model):
    with quiet_transformers():
        model.save_pretrained(folder)
    return str(folder)


def _draw_dinov2(**options):
    torch.manual_seed(0)
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**{"patch_size": 8} | _SIZES | options))


def _draw_dinov3(**options):
    torch.manual_seed(0)
    return DINOv3ViTModel(DINOv3ViTConfig(**_SIZES, patch_size=8, intermediate_size=64, **options))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: Dinov2Model(Dinov2Config(**_SIZES, patch_size=8)),
        lambda: Dinov2Model(Dinov2Config(**_SIZES, patch_size=8, use_mask_token=False, use_swiglu_ffn=True)),
        lambda: _draw_dinov2(num_channels=1),
        lambda: _draw_dinov2(patch_size=6),
        lambda: _draw_dinov3(num_channels=1, num_register_tokens=4),
        lambda: _draw_dinov3(use_gated_mlp=True),
    ],
    ids=["dinov2", "dinov2_without_mask_token", "registers", "patches_of_6", "dinov3", "dinov3_gated"],
)
def test_a_training_begins_with_a_given_encoder_and_leaves_one(tiny_study, tmp_path, draw):
    model = draw()
    given, folder = model.state_dict(), _save(tmp_path / "given", model)
    patch = model.config.patch_size
    constants = {"image_encoder": folder, "image_size": 4 * patch, "local_size": 2 * patch}
    constants |= {"batch_size": 40, "drop_path": 0.2, "subset_epochs": 0}
    objective = _objective(tiny_study, **constants)
    for network in (objective.model, objective.teacher):
        begun = network.encoder.model.state_dict()
        assert all(begun[name].equal(weight) for name, weight in given.items())
    pretrain(tiny_study, "full", 0, PretrainingConfig.from_dict(_CONSTANTS | constants), "cpu")
    left = tiny_study.path(arm_folder("full", 0)) / "model" / "image_encoder"
    encoder = build_image_encoder(EncoderSpec(str(left)))
    trained = encoder.model.state_dict()
    assert encoder.image_size == 4 * patch
    assert not any(trained[name].equal(weight) for name, weight in given.items() if "weight" in name)


def test_a_dinov3_knows_places_and_sees_no_masked_patch(tiny_study, tmp_path):
    objective = _objective(tiny_study, image_encoder=_save(tmp_path / "given", _draw_dinov3()))
    network, crops = objective.teacher, torch.zeros(2, 1, 32, 32)
    crops[0, :, :8, :8] = crops[1, :, 24:, 24:] = 255
    with torch.no_grad():
        cls, _ = network.see(crops)
        assert not cls[0].allclose(cls[1], atol=1e-4)
        masks = torch.zeros(2, 16, dtype=torch.bool)
        masks[0, 0] = masks[1, 15] = True
        blank, _ = network.see(torch.zeros(2, 1, 32, 32), masks)
        assert network.see(crops, masks)[0].equal(blank)


def test_positions_that_are_jittered_are_drawn_from_the_step(tiny_study, tmp_path):
    folder = _save(tmp_path / "given", _draw_dinov3())
    rows = np.arange(8)
    first, again = (_gradient(_objective(tiny_study, image_encoder=folder), rows)[1] for _ in range(2))
    assert first.equal(again)
