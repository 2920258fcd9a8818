"""Where a self-supervised training begins: at any DINOv2 or DINOv3."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_published_vit import publish
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
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.self_supervision.backbone import fit_positions
from chexstudy.pretraining.training.arm_run import is_trained, pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
_TWO_STEPS = {"batch_size": 40, "subset_epochs": 0}


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
        lambda: _draw_dinov2(patch_size=6, image_size=24),
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
    constants |= _TWO_STEPS | {"drop_path": 0.2}
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


# --- from one resolution to the next ----------------------------------------------------------------------------------


def _train(run, arm, **constants):
    """What an arm of two steps leaves: its folder ``model``."""
    pretrain(run, arm, 0, PretrainingConfig.from_dict(_CONSTANTS | _TWO_STEPS | constants), "cpu")
    return run.path(arm_folder(arm, 0)) / "model"


def _positions(network):
    return network.encoder.model.embeddings.position_embeddings


def _others(network):
    return {name: value for name, value in network.state_dict().items() if "position_embeddings" not in name}


def test_a_stage_takes_over_the_teacher_its_heads_and_its_positions(tiny_study):
    left = _train(tiny_study, "full")
    heads = load_file(left / "heads.safetensors")
    encoder = build_image_encoder(EncoderSpec(str(left / "image_encoder")))
    stage = {"image_encoder": str(left / "image_encoder"), "image_size": 48}
    objective = _objective(tiny_study, **stage)
    for network in (objective.model, objective.teacher):
        own = network.state_dict()
        assert all(own[name].equal(value) for name, value in heads.items())
        assert all(
            own[f"encoder.model.{name}"].equal(value)
            for name, value in encoder.model.state_dict().items()
            if "position" not in name
        )
        assert _positions(network).shape == (1, 1 + 36, network.width)
    # At the new size, the first step sees what the encoder sees there.
    pixels = objective.examples.pixels(np.arange(4))
    with torch.no_grad():
        assert objective.teacher.encoder(pixels).equal(encoder(pixels, 48))
    assert objective.describe()["heads"] == "kept"
    second = _train(tiny_study, "full.px48", **stage)
    again = build_image_encoder(EncoderSpec(str(second / "image_encoder")))
    assert again.image_size == 48
    assert again.model.embeddings.position_embeddings.shape == (1, 1 + 36, again.dim)
    config = PretrainingConfig.from_dict(_CONSTANTS | _TWO_STEPS | stage)
    assert is_trained(tiny_study, "full.px48", 0, config)
    (left / "image_encoder" / "config.json").write_text("{}")
    assert not is_trained(tiny_study, "full.px48", 0, config)
    with pytest.raises(StudyError, match=r"image_size \(32\) is below the 48 pixels at which .* give 48 or more"):
        _objective(tiny_study, image_encoder=str(second / "image_encoder"), image_size=32)


def test_a_published_stage_begins_with_the_student_and_new_positions(tiny_study):
    left = _train(tiny_study, "full", keep_student=True)
    stage = {"image_encoder": str(left / "student" / "image_encoder"), "image_size": 48, "new_positions": True}
    objective = _objective(tiny_study, **stage)
    student = load_file(left / "student" / "image_encoder" / "model.safetensors")
    assert not student["layernorm.weight"].equal(
        load_file(left / "image_encoder" / "model.safetensors")["layernorm.weight"]
    )
    for network in (objective.model, objective.teacher):
        own = network.state_dict()
        assert all(own[f"encoder.model.{name}"].equal(one) for name, one in student.items() if "position" not in name)
        assert all(own[name].equal(one) for name, one in load_file(left / "student" / "heads.safetensors").items())
        assert _positions(network).std().item() == pytest.approx(0.02, rel=0.05)
    # Whatever was learned of the old grid is gone.
    interpolated = _positions(_objective(tiny_study, **stage | {"new_positions": False}).model)
    agreement = torch.corrcoef(torch.stack([interpolated.flatten(), _positions(objective.model).flatten()]))[0, 1]
    assert abs(agreement) < 0.05


@pytest.mark.parametrize("side", [3, 5, 8])
def test_positions_are_interpolated_as_what_changes_evenly_over_the_image(side):
    model = _draw_dinov2()
    along = (torch.arange(4) + 0.5) / 4
    with torch.no_grad():
        positions = model.embeddings.position_embeddings
        positions[0, 1:, 0], positions[0, 1:, 1] = along.repeat_interleave(4), along.repeat(4)
        first = positions[0, 0].clone()
    fit_positions(model, 8 * side)
    fitted = model.embeddings.position_embeddings
    assert fitted.requires_grad
    assert fitted[0, 0].equal(first)
    expected = (torch.arange(side) + 0.5) / side
    inside = (expected > 0.37) & (expected < 0.63)
    assert inside.any()
    rows, columns = fitted[0, 1:, :2].detach().view(side, side, 2).unbind(2)
    torch.testing.assert_close(rows[inside], expected[inside, None].expand(-1, side))
    torch.testing.assert_close(columns[:, inside], expected[None, inside].expand(side, -1))


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constants", [{"keep_heads": False}, {"crop_bottleneck": 8}])
def test_heads_are_new_where_they_are_not_wanted_or_do_not_fit(tiny_study, constants):
    left = _train(tiny_study, "full")
    objective = _objective(tiny_study, image_encoder=str(left / "image_encoder"), **constants)
    fresh = _objective(tiny_study, **constants)
    drawn = {name: value for name, value in fresh.model.state_dict().items() if "head." in name}
    assert all(objective.model.state_dict()[name].equal(value) for name, value in drawn.items())
    assert objective.describe()["heads"] == "new"


def test_new_heads_learn_alone_on_an_encoder_that_is_given(tiny_study, tmp_path):
    given = {"image_encoder": _save(tmp_path / "given", _draw_dinov2()), "heads_only_share": 0.5}
    for constants, waits in ((given, True), ({"heads_only_share": 0.5}, False)):
        objective = _objective(tiny_study, **constants)
        begun = {name: value.clone() for name, value in objective.model.state_dict().items()}
        optimizer = torch.optim.AdamW(objective.parameter_groups(), lr=1e-3)
        objective.plan(4)
        for step in range(3):
            objective.set_constants(optimizer.param_groups, step, 1e-3)
            objective.backward(np.arange(16), step)
            optimizer.step()
            if step:
                moved = {name for name, value in objective.model.state_dict().items() if not value.equal(begun[name])}
                assert any("head." in name for name in moved)
                assert any("encoder." in name for name in moved) == (not waits or step == 2)


def test_published_heads_are_taken_over_with_their_backbone(tiny_study, tmp_path):
    objective = _objective(tiny_study)
    drawn = {name: torch.randn_like(value) for name, value in objective.model.state_dict().items() if "head." in name}
    names = {"crop_head": "dino_head", "patch_head": "ibot_head", "parametrizations.weight.original0": "weight_g"}
    names["parametrizations.weight.original1"] = "weight_v"
    width = objective.model.width
    model = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**_SIZES | {"hidden_size": width, "num_attention_heads": width // 64}, patch_size=8)
    )
    published = {f"teacher.backbone.{name}": value for name, value in publish(model).items()}
    for name, value in drawn.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        published |= {f"teacher.{name}": value, f"student.{name}": torch.zeros_like(value)}
    torch.save({"model": published}, tmp_path / "whole.pth")
    objective = _objective(tiny_study, image_encoder=str(tmp_path / "whole.pth"))
    for network in (objective.model, objective.teacher):
        own = network.state_dict()
        assert all(own[name].equal(value) for name, value in drawn.items())
        assert own["encoder.model.layernorm.weight"].equal(model.state_dict()["layernorm.weight"])


def test_registers_are_left_out_if_asked(tiny_study, tmp_path):
    folder = _save(tmp_path / "given", _draw_dinov2(num_register_tokens=2))
    networks = [_objective(tiny_study, image_encoder=folder, drop_registers=drop).teacher for drop in (False, True)]
    crops = torch.zeros(1, 1, 32, 32)
    assert [network.encoder.see_tokens(crops).shape[1] - 16 for network in networks] == [3, 1]
