"""The parts of the self-supervised step: targets, losses, views, masks, the encoder as it is trained."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.published_vit import translate_name, translate_weights
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.golden import check_golden
from chexstudy.pretraining.engine.schedule import Cosine
from chexstudy.pretraining.self_supervision import centring
from chexstudy.pretraining.self_supervision.backbone import drop_paths, group_parameters, move_teacher
from chexstudy.pretraining.self_supervision.centring import Centre, Logits, Targets, balance_by_sinkhorn
from chexstudy.pretraining.self_supervision.collapse import (
    COLLAPSING,
    EXPLODING,
    HEALTHY,
    NOT_TRAINING,
    find_end,
    judge_training,
    measure_features,
    measure_targets,
)
from chexstudy.pretraining.self_supervision.configuration import PUBLISHED, SelfSupervisionConfig
from chexstudy.pretraining.self_supervision.crops import (
    blurring_matrices,
    draw_views,
    make_crops,
    resizing_matrices,
)
from chexstudy.pretraining.self_supervision.distillation_losses import crop_loss, koleo_loss, patch_losses
from chexstudy.pretraining.self_supervision.head import ProjectionHead
from chexstudy.pretraining.self_supervision.masks import draw_mask, draw_masks
from chexstudy.pretraining.self_supervision.neighbour_probe import NeighbourProbe
from chexstudy.pretraining.self_supervision.network import Network

_GOLDEN = Path(__file__).parent / "golden" / "ssl.npz"


def _draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- published numbers ------------------------------------------------------------------------------------------------


def test_every_published_array_is_met():
    cases = check_golden(_GOLDEN)
    assert len(cases) >= 70
    assert cases.passed.all(), cases[~cases.passed]


@pytest.mark.parametrize(
    ("array", "case"),
    [("dino_sinkhorn", "dino_sinkhorn"), ("koleo_grad", "koleo_grad"), ("mask_examples", "mask_examples")],
)
def test_a_changed_array_fails_its_check(tmp_path, array, case):
    with np.load(_GOLDEN) as archive:
        arrays = dict(archive)
    spoilt = arrays[array]
    arrays[array] = ~spoilt if spoilt.dtype == bool else spoilt * 1.001
    np.savez(tmp_path / "spoilt.npz", **arrays)
    assert not check_golden(tmp_path / "spoilt.npz").set_index("case").passed[case]


def test_a_file_without_an_array_is_refused(tmp_path):
    with np.load(_GOLDEN) as archive:
        np.savez(tmp_path / "less.npz", **{name: archive[name] for name in archive.files if name != "gram_student"})
    with pytest.raises(StudyError, match="lacks the array 'gram_student'"):
        check_golden(tmp_path / "less.npz")


# --- targets ----------------------------------------------------------------------------------------------------------


def _balance_as_written(logits, temperature, iterations):
    """Sinkhorn-Knopp on the whole matrix, in float64."""
    matrix = np.exp(logits.double().numpy() / temperature)
    rows, count = matrix.shape
    for _ in range(iterations):
        matrix = matrix / matrix.sum(axis=0) / count
        matrix = matrix / matrix.sum(axis=1, keepdims=True) / rows
    return matrix * rows


def test_sinkhorn_is_that_of_the_whole_matrix_however_it_is_cut(monkeypatch):
    logits = Logits(_draw(37, 6), _draw(11, 6, seed=1))
    whole = _balance_as_written(logits.features @ logits.prototypes.T, 0.5, 3)
    assert torch.from_numpy(whole).float().allclose(balance_by_sinkhorn(logits, 0.5).chunk(slice(None)), atol=1e-6)
    for held, chunk in ((0, 11), (0, 55), (10**9, 22)):
        monkeypatch.setattr(centring, "_HELD_ELEMENTS", held)
        monkeypatch.setattr(centring, "_CHUNK_ELEMENTS", chunk)
        targets = balance_by_sinkhorn(Logits(logits.features, logits.prototypes), 0.5)
        found = torch.cat([targets.chunk(rows) for rows in targets.logits.chunks()])
        assert torch.from_numpy(whole).float().allclose(found, atol=1e-6)
        assert found.sum(dim=1).allclose(torch.ones(37))


def test_targets_balanced_by_parts_are_others():
    logits = Logits(_draw(32, 6), _draw(11, 6, seed=1))
    half = Logits(logits.features[:16], logits.prototypes)
    whole, part = (balance_by_sinkhorn(one, 0.1).chunk(slice(0, 16)) for one in (logits, half))
    assert (whole - part).abs().max() > 0.05


def test_large_logits_overflow_only_as_published():
    logits = Logits(torch.tensor([[6.0, 0.0], [0.0, 1.0]]), torch.eye(2))
    assert balance_by_sinkhorn(logits, 0.04).chunk(slice(None)).isfinite().all()
    assert balance_by_sinkhorn(logits, 0.04, overflows=True).chunk(slice(None)).isnan().all()


def test_a_centre_counts_from_the_next_step_on():
    centre, logits = Centre(2), Logits(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.eye(2))
    first = centre.balance(logits, 1.0).chunk(slice(None))
    assert first.allclose(torch.tensor([[1.0, 0.0], [3.0, 0.0]]).softmax(dim=1))
    assert centre.value.allclose(torch.tensor([0.2, 0.0]))
    second = centre.balance(logits, 1.0).chunk(slice(None))
    assert second.allclose(torch.tensor([[0.8, 0.0], [2.8, 0.0]]).softmax(dim=1))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_crop_loss_is_the_mean_over_all_pairs_of_different_crops():
    targets = _draw(2, 3, 5).softmax(dim=2)
    local, across = _draw(4, 3, 5, seed=1), _draw(2, 3, 5, seed=2)
    terms = []
    for teacher in range(2):
        students = [*local, across[1 - teacher]]
        for logits in students:
            terms.append(-(targets[teacher] * (logits / 0.1).log_softmax(dim=1)).sum(dim=1))
    assert crop_loss(targets, local, across).allclose(torch.stack(terms).mean())
    weights = torch.tensor([2.0, 0.0, 1.0])
    assert crop_loss(targets, local, across, weights).allclose((torch.stack(terms) * weights).mean())


def test_a_patch_weighs_by_what_is_masked_in_its_crop():
    targets, logits = _draw(3, 4).softmax(dim=1), _draw(3, 4, seed=1).requires_grad_()
    each = -(targets * (logits / 0.1).log_softmax(dim=1)).sum(dim=1)
    expected = each[:2].mean() + each[2]
    expected.backward()
    loss, gradient = patch_losses(targets, logits.detach(), torch.tensor([0.5, 0.5, 1.0]))
    assert loss.allclose(expected)
    assert gradient.allclose(logits.grad, atol=1e-6)


def test_koleo_leaves_copies_out():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Both copies are nearest to the third row, at the square root of two; it is nearest to one of them.
    assert koleo_loss(features, torch.tensor([0, 0, 1])).item() == pytest.approx(-0.5 * np.log(2), abs=1e-6)
    assert koleo_loss(features).item() > 5
    alone = features[:2].clone().requires_grad_()
    loss = koleo_loss(alone, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert (alone.grad == 0).all()


# --- views and masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 24, 40])
def test_a_crop_is_resized_as_torch_resizes_it(size):
    pixels = torch.randint(0, 256, (3, 1, 33, 33), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    views = draw_views(3, 33, (0.05, 1.0), np.random.default_rng(0))
    for image in range(3):
        top, left, height, width = (getattr(views, name)[image] for name in ("top", "left", "height", "width"))
        cut = pixels[image : image + 1, :, top : top + height, left : left + width].double()
        expected = functional.interpolate(cut, (size, size), mode="bicubic", antialias=True)[0, 0]
        rows, columns = (
            resizing_matrices(torch.tensor([start]), torch.tensor([length]), 33, size)[0]
            for start, length in ((top, height), (left, width))
        )
        assert (rows @ pixels[image, 0].float() @ columns.T).double().allclose(expected, atol=2e-3)


def test_blurring_is_a_convolution_mirrored_at_the_ends():
    image = _draw(16, 16).abs()
    kernel = torch.exp(-0.5 * (torch.arange(-4, 5) / 1.5) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(image[None, None], (4, 4, 4, 4), mode="reflect")
    expected = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 9, 1)), kernel.view(1, 1, 1, 9))[0, 0]
    sharp, blurred = blurring_matrices(torch.tensor([0.0, 1.5]), 16)
    assert (blurred @ image @ blurred.T).allclose(expected, atol=1e-5)
    assert sharp.equal(torch.eye(16))


def test_views_are_drawn_as_asked():
    views = draw_views(4000, 96, (0.05, 0.32), np.random.default_rng(0), blur=0.5, flip=True, solarise=True)
    area, aspect = views.height * views.width / 96**2, views.width / views.height
    assert 0.045 < area.min() < 0.06
    assert 0.3 < area.max() < 0.33
    assert 0.6 < aspect.min() < 0.8 < 1.2 < aspect.max() < 1.5
    assert ((views.top >= 0) & (views.top + views.height <= 96)).all()
    assert abs((views.sigma > 0).mean() - 0.5) < 0.03
    assert abs(views.flipped.mean() - 0.5) < 0.03
    assert abs(views.solarised.mean() - 0.2) < 0.03
    assert abs((views.brightness != 1).mean() - 0.8) < 0.03
    plain = draw_views(10, 96, (1.0, 1.0), np.random.default_rng(0))
    assert not (plain.flipped | plain.solarised | (plain.sigma > 0)).any()


def test_a_flipped_crop_is_the_mirror_image():
    pixels = torch.randint(0, 256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one = np.ones(1)
    views = draw_views(1, 8, (1.0, 1.0), np.random.default_rng(0))
    views = type(views)(
        **{name: one * 0 for name in ("top", "left", "sigma")},
        **{name: one * 8 for name in ("height", "width")},
        **{name: one for name in ("brightness", "contrast")},
        **{name: one > 2 for name in ("contrast_first", "solarised")},
        flipped=one > 0,
    )
    assert make_crops(pixels, views, 8)[0, 0].allclose(pixels[0, 0].float().flip(1), atol=1e-3)


def test_masks_have_the_sizes_they_were_drawn_for():
    masks = draw_masks(16, 14, random.Random(0))
    sizes = np.sort(masks.sum(axis=(1, 2)))
    assert (sizes[:8] == 0).all()
    edges = 196 * np.linspace(0.1, 0.5, 9)
    assert all(int(low) <= size <= high for size, low, high in zip(sizes[8:], edges[:-1], edges[1:], strict=True))
    assert draw_mask(98, 14, random.Random(0)).sum() == 98
    short = [draw_mask(98, 14, random.Random(seed), exact=False).sum() for seed in range(200)]
    assert max(short) <= 98
    assert 0.01 < np.mean(np.array(short) < 98) < 0.2


# --- collapse ---------------------------------------------------------------------------------------------------------


def test_rank_and_entropies_are_those_of_known_cases():
    features = torch.eye(4).repeat(2, 1)
    told = measure_features(features)
    assert told["effective_rank"] == pytest.approx(4)
    assert told["mean_cosine"] == pytest.approx(8 / 56)
    assert measure_features(torch.ones(5, 3))["effective_rank"] == pytest.approx(1, abs=1e-3)
    sure = measure_targets(Targets(Logits(torch.eye(4)[:2] * 1000, torch.eye(4)), 1.0, torch.zeros(4)))
    assert sure["row_entropy"] == pytest.approx(0, abs=1e-6)
    assert sure["mean_entropy"] == pytest.approx(0.5)
    assert sure["prototypes_used"] == 1
    flat = measure_targets(Targets(Logits(torch.zeros(6, 4), torch.eye(4)), 1.0, torch.zeros(4)))
    assert [flat["row_entropy"], flat["mean_entropy"]] == pytest.approx([1, 1])
    assert flat["prototypes_used"] == 0.25


_USUAL = {
    **{"loss": 5.0, "gradient_norm": 2.0, "skipped": False, "row_entropy": 0.7},
    **{"effective_rank": 30.0, "mean_cosine": 0.2, "prototypes_used": 0.6},
}


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({}, HEALTHY),
        ({"effective_rank": 1.4}, COLLAPSING),
        ({"prototypes_used": 0.001}, COLLAPSING),
        ({"row_entropy": 0.999}, NOT_TRAINING),
        ({"gradient_norm": 1e4}, EXPLODING),
        ({"loss": float("inf"), "skipped": True}, EXPLODING),
        ({"effective_rank": float("nan")}, NOT_TRAINING),
    ],
)
def test_how_a_training_stands_is_said_in_words(last, state):
    rows = [_USUAL | {"step": step} for step in range(50)]
    rows[-1] |= last
    verdict = judge_training(pd.DataFrame(rows), 0.3, 50)
    assert verdict.state == state
    assert str(verdict).startswith(f"{state}: ")
    early = pd.DataFrame(rows[:5]).assign(row_entropy=0.999)
    assert judge_training(early, 0.3, 50).state == HEALTHY


@pytest.mark.parametrize(
    ("changed", "first", "last", "state"),
    [
        ({"skipped": True}, 0, 6, EXPLODING),
        ({"skipped": True}, 0, 5, None),
        # A tenth of the run, once the temperature has risen for three.
        ({"effective_rank": 1.4}, 30, 40, COLLAPSING),
        ({"row_entropy": 0.999}, 30, 40, NOT_TRAINING),
        ({"row_entropy": 0.999}, 0, 39, None),
        ({"row_entropy": 0.999}, 31, 40, None),
        ({"effective_rank": float("nan")}, 0, 40, None),
    ],
)
def test_a_training_is_stopped_where_it_stays_bad_and_not_before(changed, first, last, state):
    rows = [_USUAL | {"step": step} | (changed if step >= first else {}) for step in range(last + 1)]
    end = find_end(rows, 0.3, 100, patience=7)
    assert (end and end.state) == state


def test_neighbours_vote_where_both_parts_know_a_finding():
    cohort = pd.DataFrame(
        {
            "image_id": list("abcdef"),
            "split": ["train"] * 3 + ["validate"] * 2 + ["test"],
            "Mass": pd.array([1, 0, None, 1, 0, 1], dtype="Int8"),
            "Hernia": pd.array([1, 0, None, 1, 1, 0], dtype="Int8"),
            "Nodule": pd.array([None, None, None, 1, 0, 1], dtype="Int8"),
        }
    )
    probe = NeighbourProbe(cohort)
    # Images without a label answer nothing; only Mass has references and both answers.
    assert list(probe.image_ids) == ["a", "b", "d", "e"]
    features = np.array([[1, 0], [0, 1], [0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    assert probe.measure(features) == 1
    assert probe.measure(features[[0, 1, 3, 2]]) == 0
    for unlabelled in (cohort.drop(columns=["Mass"]), cohort[["image_id", "split"]], cohort[cohort.split == "train"]):
        assert not len(NeighbourProbe(unlabelled).image_ids)


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_chunked_and_plain_block_names_are_read_alike():
    assert translate_name("blocks.0.3.ls1.gamma") == translate_name("blocks.3.ls1.gamma")
    joined = {"blocks.1.attn.qkv.weight": torch.arange(12.0).view(6, 2)}
    parts = translate_weights(joined)
    assert [name.split(".")[-2] for name in parts] == ["q_proj", "k_proj", "v_proj"]
    assert parts["encoder.layer.1.attention.k_proj.weight"].tolist() == [[4, 5], [6, 7]]


def _build(**constants):
    encoder = build_image_encoder(EncoderSpec("tiny-dinov2", image_size=24))
    return Network(encoder, SelfSupervisionConfig(**constants), seed=0)


def test_masked_patches_are_not_seen():
    network = _build().eval()
    crops, mask = 255 * _draw(2, 1, 24, 24).sigmoid(), torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 4] = True
    changed = crops.clone()
    changed[:, :, 8:16, 8:16] = 0
    with torch.no_grad():
        for one, other in zip(network.see(crops, mask), network.see(changed, mask), strict=True):
            assert one.equal(other)
        assert not network.see(crops)[0].equal(network.see(changed)[0])


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_tokens_that_are_asked_for_are_those_of_all(drop_path):
    network, crops = _build(drop_path=drop_path).train(), 255 * _draw(3, 1, 24, 24).sigmoid()
    wanted = torch.zeros(3, 9, dtype=torch.bool)
    wanted[0, 2:5], wanted[2, 8] = True, True
    found = []
    for asked in (None, wanted):
        torch.manual_seed(0)
        cls, patches = network.see(crops, wanted, asked)
        patches = patches[wanted] if asked is None else patches
        network.zero_grad()
        # Not the squares, whose sum the last normalisation holds fixed.
        (cls.sigmoid().sum() + patches.sigmoid().sum()).backward()
        gradients = (weight.grad for weight in network.encoder.parameters() if weight.grad is not None)
        found.append([cls, patches, *gradients])
    for whole, some in zip(*found, strict=True):
        # A key's bias moves no attention: its gradient is nothing but rounding.
        assert some.allclose(whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item() + 1e-7)


@pytest.mark.parametrize("of_batch", [True, False])
def test_dropped_branches_keep_the_mean(of_batch):
    model = build_image_encoder(EncoderSpec("tiny-dinov2", image_size=24)).model
    block = model.encoder.layer[0]
    rows = _draw(1600, 1, 128)
    with torch.no_grad():
        whole = block.eval()(rows)
        drop_paths(model, 0.4, of_batch)
        assert block.eval()(rows).allclose(whole, atol=1e-6)
        torch.manual_seed(0)
        dropped = block.train()(rows)
    untouched = (dropped == rows).all(dim=(1, 2)).float().mean()
    # Both branches of an image are left out.
    assert abs(untouched - 0.16) < 0.06
    change = (dropped - rows).mean(dim=0) - (whole - rows).mean(dim=0)
    assert change.norm() < 0.3 * (whole - rows).mean(dim=0).norm()


def test_weights_learn_at_their_own_rates():
    network = _build()
    groups = group_parameters(network.named_parameters(), 4, 0.5)
    of_name = {name: group for (name, _), group in zip(network.named_parameters(), groups, strict=True)}
    patch = of_name["encoder.model.embeddings.patch_embeddings.projection.weight"]
    assert (patch["rate"], patch["decay"]) == (0.2 * 0.5**5, 1)
    assert of_name["encoder.model.encoder.layer.3.mlp.fc1.bias"]["decay"] == 0
    assert of_name["encoder.model.encoder.layer.3.mlp.fc1.weight"]["rate"] == 0.5
    assert of_name["encoder.model.embeddings.cls_token"]["decay"] == 1
    lengths = of_name["crop_head.last_layer.parametrizations.weight.original0"]
    assert (lengths["is_prototype"], lengths["decay"], lengths["rate"]) == (True, 1, 1)


def test_the_teacher_follows_the_student():
    teacher, student = ProjectionHead(4, 3, 5, 2), ProjectionHead(4, 3, 5, 2)
    before = teacher.mlp[0].weight.clone()
    move_teacher(teacher, student, 0.75)
    assert teacher.mlp[0].weight.allclose(0.75 * before + 0.25 * student.mlp[0].weight)


def test_a_schedule_holds_its_end():
    schedule = Cosine(2.0, 1.0, 10, ramp_steps=3)
    assert [schedule.at(step) for step in (0, 1, 2, 3)] == [0, 1, 2, 2]
    assert schedule.at(9) > 1
    assert schedule.at(10) == schedule.at(99) == 1


def test_what_cannot_be_is_refused():
    with pytest.raises(StudyError, match="no token for a masked one: use tiny-dinov2"):
        Network(build_image_encoder(EncoderSpec("tiny-resnet", image_size=24)), SelfSupervisionConfig(), 0)
    for constants, sentence in (
        ({"blur": "some"}, "blur must be one of none, intended, published, not 'some'"),
        ({"local_crops": 0}, "local_crops must be at least 1, not 0"),
        ({"frozen_share": 1.0}, "frozen_share must be at least 0 and below 1"),
        ({"koleo_weight": -1.0}, "koleo_weight must not be negative"),
        ({"least_global_area": 0.0}, "least_global_area must be above 0 and at most 1, not 0"),
        ({"least_local_area": 0.6}, "least_local_area .0.6. must be above 0 and at most most_local_area .0.5."),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be above 0"),
        ({"crop_prototypes": 1}, "crop_prototypes must be at least 2"),
        ({"gram_share": 0.1}, r"gram_share \(0.1\) must be at least gram_teacher_share \(0.25\)"),
        ({"teacher_momentum": 1.5}, "teacher_momentum must lie between 0 and 1"),
    ):
        with pytest.raises(StudyError, match=sentence):
            SelfSupervisionConfig(**constants)
    assert SelfSupervisionConfig(**PUBLISHED).drop_path == 0.4
