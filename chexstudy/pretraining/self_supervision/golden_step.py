"""Does our self-supervised step give the numbers that the published functions give?"""

import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from chexstudy.encoders.published_vit import translate_name, translate_weights
from chexstudy.pretraining.engine.schedule import Cosine
from chexstudy.pretraining.self_supervision import distillation_losses as losses
from chexstudy.pretraining.self_supervision.backbone import (
    group_parameters,
    interpolate_positions,
    move_teacher,
    use_published_positions,
)
from chexstudy.pretraining.self_supervision.centring import Centre, Logits, balance_by_sinkhorn
from chexstudy.pretraining.self_supervision.head import ProjectionHead
from chexstudy.pretraining.self_supervision.masks import draw_mask

MARK = "dino_teacher_logits"  # an array that no other golden file has
_DRAWS = 400

Arrays = Mapping[str, np.ndarray]
Compared = dict[str, tuple[object, object]]


def compute_self_supervision(golden: Arrays) -> Compared:
    """What is found and what is expected of everything in a golden file but the size of a buffer we do without.

    What the published code makes infinite or no number must be so when computed as published.
    """
    parts = (_centring, _crops, _patches, _spread, _head, _schedules, _backbone, _groups, _gram, _masks)
    return {name: both for compute in parts for name, both in compute(golden).items()}


def _plain_logits(values: np.ndarray) -> Logits:
    """Logits that are given, as products with the unit vectors."""
    return Logits(torch.from_numpy(values), torch.eye(values.shape[1]))


def _every_row(targets) -> Tensor:
    return targets.chunk(slice(None))


def _centring(golden: Arrays) -> Compared:
    temperature = float(golden["teacher_temp"])
    logits, large = _plain_logits(golden["dino_teacher_logits"]), _plain_logits(golden["dino_overflow_logits"])
    compared = {
        "dino_sinkhorn": _every_row(balance_by_sinkhorn(logits, temperature)),
        "dino_sinkhorn_1_iteration": _every_row(balance_by_sinkhorn(logits, temperature, iterations=1)),
        "dino_sinkhorn_overflow_at_0.04": _every_row(balance_by_sinkhorn(large, 0.04, overflows=True)),
        "ibot_sinkhorn": _every_row(balance_by_sinkhorn(_plain_logits(golden["ibot_teacher_logits"]), temperature)),
    }
    found = {name: (value.numpy(), golden[name]) for name, value in compared.items()}
    sums = _every_row(balance_by_sinkhorn(large, 0.04)).sum(dim=1).numpy()
    found["sinkhorn of large logits, rows sum to one"] = (sums, np.ones_like(sums))
    for kind in ("dino", "ibot"):
        batches = golden[f"{kind}_centre_batches"]
        centre, probabilities, centres = Centre(batches.shape[-1]), [], []
        for batch in batches:
            centres.append(centre.value.numpy())
            probabilities.append(_every_row(centre.balance(_plain_logits(batch), temperature)).numpy())
        centres.append(centre.value.numpy())
        found[f"{kind}_centre_probs"] = (np.stack(probabilities), golden[f"{kind}_centre_probs"])
        if kind == "dino":
            name = "dino_centres_used_then_final"
            found[name] = (np.stack(centres), golden[name])
        else:
            found["ibot_centre_after_first"] = (centres[1], golden["ibot_centre_after_first"])
    return found


def _with_gradient(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).requires_grad_()


def _crops(golden: Arrays) -> Compared:
    local, across = (_with_gradient(golden[f"dino_student_{kind}_logits"]) for kind in ("local", "global"))
    targets = torch.from_numpy(golden["dino_sinkhorn"])
    images, count = len(across) // 2, across.shape[1]
    # Rows of the teacher are swapped already: those of the second crops come first.
    by_crop = targets.view(2, images, count).flip(0)
    split = local.view(-1, images, count), across.view(2, images, count)
    terms = [losses.crop_loss(by_crop, split[0], split[1][:0]), losses.crop_loss(by_crop, split[0][:0], split[1])]
    # Alone, each is divided by its own number of terms.
    scale = 2 + 2 * len(split[0])
    both = losses.crop_loss(by_crop, *split)
    both.backward()
    return {
        "dino_local_loss": (terms[0].item(), golden["dino_local_loss"]),
        "dino_global_loss": (terms[1].item() * 2 / scale, golden["dino_global_loss"]),
        "dino_local_grad": (local.grad.numpy(), golden["dino_local_grad"]),
        "dino_global_grad": (across.grad.numpy(), golden["dino_global_grad"]),
    }


def _patches(golden: Arrays) -> Compared:
    masks = golden["ibot_masks"]
    crops, indices = len(masks), np.flatnonzero(masks)
    weights = (1 / masks.sum(axis=1, keepdims=True).clip(1)).repeat(masks.shape[1], axis=1).ravel()[indices]
    logits, targets = (torch.from_numpy(golden[f"ibot_{of}"]) for of in ("student_logits", "sinkhorn"))
    loss, gradient = losses.patch_losses(targets, logits, torch.from_numpy(weights.astype(np.float32) / crops))
    return {
        "ibot_mask_indices": (indices, golden["ibot_mask_indices"]),
        "ibot_mask_weights": (weights, golden["ibot_mask_weights"]),
        "ibot_loss": (loss.item(), golden["ibot_loss"]),
        "ibot_loss_as_logged": (loss.item() / 2, golden["ibot_loss_as_logged"]),
        "ibot_grad": (gradient.numpy(), golden["ibot_grad"]),
    }


def _spread(golden: Arrays) -> Compared:
    features = _with_gradient(golden["koleo_input"])
    loss = losses.koleo_loss(features)
    loss.backward()
    unit = torch.nn.functional.normalize(features.detach(), dim=1)
    equal = features.detach().clone()
    equal[1] = equal[0]
    of_equal = {kind: losses.koleo_loss(equal.to(dtype)) for kind, dtype in (("32", torch.float32), ("16", torch.half))}
    return {
        "koleo_loss": (loss.item(), golden["koleo_loss"]),
        "koleo_grad": (features.grad.numpy(), golden["koleo_grad"]),
        "koleo_neighbours": (losses.find_neighbours(unit).numpy(), golden["koleo_neighbours"]),
        "koleo_loss_one_row": (losses.koleo_loss(features[:1]).item(), golden["koleo_loss_one_row"]),
    } | {
        f"koleo_loss_two_equal_rows_fp{kind}": (value.item(), golden[f"koleo_loss_two_equal_rows_fp{kind}"])
        for kind, value in of_equal.items()
    }


def _weights(golden: Arrays, prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Arrays of a prefix under the names that their underscores stand for."""
    return {name: torch.from_numpy(golden[f"{prefix}_{array}"]) for name, array in names.items()}


def _underscored(name: str) -> str:
    return name.replace(".", "_")


@torch.no_grad()
def _head(golden: Arrays) -> Compared:
    directions = golden["head_last_layer_weight_v"]
    hidden, dim = golden["head_mlp_0_weight"].shape
    head = ProjectionHead(dim, len(directions), hidden, directions.shape[1])
    layers = {name: _underscored(f"mlp.{name}") for name in head.mlp.state_dict()}
    head.mlp.load_state_dict(_weights(golden, "head", layers))
    learned = head.last_layer.parametrizations.weight
    learned.original0.copy_(torch.from_numpy(golden["head_last_layer_weight_g"]))
    learned.original1.copy_(torch.from_numpy(directions))
    output = head(torch.from_numpy(golden["head_input"]))
    teacher, student = nn.Module(), nn.Module()
    teacher.weight, student.weight = (
        nn.Parameter(torch.from_numpy(golden[f"ema_{who}"])) for who in ("teacher", "student")
    )
    move_teacher(teacher, student, 0.994)
    return {
        "head_output": (output.numpy(), golden["head_output"]),
        "ema_result_0.994": (teacher.weight.numpy(), golden["ema_result_0.994"]),
    }


def _schedules(golden: Arrays) -> Compared:
    epochs, length, ramp, warming = (int(value) for value in golden["schedule_epochs_length_warmup_tempepochs"])
    found = {}
    for prefix, steps, epoch, ramps, peak in (
        ("schedule", range(epochs * length), length, (ramp * length, warming * length), 1.2e-3),
        ("paper", golden["paper_steps"], 2500, (25_000, 75_000), 2e-4 * (304 / 1024) ** 0.5),
    ):
        whole = epochs * length if prefix == "schedule" else 250_000
        rate = Cosine(peak, 1e-6, whole, ramps[0])
        values = {
            "lr": [rate.at(int(step)) for step in steps],
            "wd": [Cosine(0.04, 0.2, whole).at(int(step)) for step in steps],
            "momentum": [Cosine(0.994, 1.0, whole).at(int(step)) for step in steps],
        }
        values["teacher_temp"] = [
            Cosine(0.07, 0.07, whole, ramps[1], 0.04).at(int(step))
            for step in (range(whole + 3) if prefix == "schedule" else steps)
        ]
        if prefix == "schedule":
            values["last_layer_lr"] = [rate.at(step) * (step >= epoch) for step in steps]
        found |= {f"{prefix}_{name}": (np.array(one), golden[f"{prefix}_{name}"]) for name, one in values.items()}
    return found


def _build_backbone(golden: Arrays) -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    width, depth, heads, patch, image, registers, _ = (
        int(value) for value in golden["vit_dims_width_depth_heads_patch_image_registers_local"]
    )
    config = Dinov2WithRegistersConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        mlp_ratio=4,
        patch_size=patch,
        image_size=image,
        num_register_tokens=registers,
        use_swiglu_ffn=True,
    )
    model = Dinov2WithRegistersModel(config).eval()
    published = map(str, golden["groups_name"][golden["groups_module"] == "backbone"])
    names = {name: _underscored(name) for name in dict.fromkeys(published)}
    model.load_state_dict(translate_weights(_weights(golden, "vit", names)))
    use_published_positions(model)
    return model


@torch.no_grad()
def _backbone(golden: Arrays) -> Compared:
    model = _build_backbone(golden)
    tokens = model(torch.from_numpy(golden["vit_input"]), bool_masked_pos=torch.from_numpy(golden["vit_mask"]))
    tokens, first = tokens.last_hidden_state, 1 + model.config.num_register_tokens
    local = model(torch.from_numpy(golden["vit_local_input"])).last_hidden_state
    positions, side = model.embeddings.position_embeddings, golden["vit_local_input"].shape[-1]
    side //= model.config.patch_size
    found = {
        "vit_cls_masked": tokens[:, 0],
        "vit_registers_masked": tokens[:, 1:first],
        "vit_patches_masked": tokens[:, first:],
        "vit_local_cls": local[:, 0],
        "vit_local_pos_embed": interpolate_positions(positions, side, offset=True),
        "vit_local_pos_embed_offset0": interpolate_positions(positions, side),
    }
    hidden = model.encoder.layer[0].mlp.down_proj.in_features
    return {name: (value.numpy(), golden[name]) for name, value in found.items()} | {
        "vit_swiglu_hidden": (hidden, golden["vit_swiglu_hidden"])
    }


def _groups(golden: Arrays) -> Compared:
    depth = int(golden["vit_dims_width_depth_heads_patch_image_registers_local"][1])
    names, found = [str(name) for name in golden["groups_name"]], []
    for decay in dict.fromkeys(golden["groups_layer_decay"]):
        of_decay = [name for name, own in zip(names, golden["groups_layer_decay"], strict=True) if own == decay]
        found += group_parameters([(translate_name(name), nn.Parameter()) for name in of_decay], depth, float(decay))
    columns = {"lr_multiplier": "rate", "wd_multiplier": "decay", "is_last_layer": "is_prototype"}
    return {
        f"groups_{array}": (np.array([group[column] for group in found]), golden[f"groups_{array}"])
        for array, column in columns.items()
    }


def _gram(golden: Arrays) -> Compared:
    student, teacher = (torch.from_numpy(golden[f"gram_{who}"]) for who in ("student", "teacher"))
    kinds: dict[str, Callable[[], Tensor]] = {
        "image_level": lambda: losses.gram_loss(student, teacher),
        "batch_level": lambda: losses.gram_loss(student, teacher, of_batch=True),
        "image_level_no_negatives": lambda: losses.gram_loss(student, teacher, keep_negative=False),
    }
    return {f"gram_loss_{kind}": (loss().item(), golden[f"gram_loss_{kind}"]) for kind, loss in kinds.items()}


def _masks(golden: Arrays) -> Compared:
    examples = golden["mask_examples"]
    generator = random.Random(int(golden["mask_seed"]))
    drawn = [draw_mask(int(n), examples.shape[1], generator, exact=False) for n in golden["mask_examples_wanted"]]
    found = {"mask_examples": (np.stack(drawn), examples)}
    for side, _, wanted, mean, deviation, *_ in golden["mask_statistics"]:
        sizes = [draw_mask(int(wanted), int(side), generator, exact=False).sum() for _ in range(_DRAWS)]
        # Two means of as many draws each differ by more than five standard errors once in two million.
        agrees = abs(np.mean(sizes) - mean) <= 5 * deviation * (2 / _DRAWS) ** 0.5 and max(sizes) <= wanted
        found[f"mean size of {wanted:g} patches on {side:g} x {side:g}"] = (agrees, np.bool_(True))
    return found
