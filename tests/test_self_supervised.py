"""The self-supervised objective: one step however it is cut, trained, stopped, gone on with, and used."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_tiny_study
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional

from chexstudy import paths
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.check import check_source
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.models.images import TrainingImages
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.objectives.distillation import Distillation
from chexstudy.pretraining.objectives.self_supervised import SelfSupervisedObjective
from chexstudy.pretraining.self_supervision.collapse import judge_training
from chexstudy.pretraining.self_supervision.crops import draw_views, make_crops
from chexstudy.pretraining.self_supervision.network import Network
from chexstudy.pretraining.training import arm_run
from chexstudy.pretraining.training.arm_run import pretrain
from chexstudy.pseudonyms import show_image_ids
from chexstudy.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")

_CONSTANTS = {
    **{"objective": "self_supervised", "image_encoder": "tiny-dinov2", "precision": "fp32", "image_size": 32},
    **{"local_size": 16, "local_crops": 2, "crop_prototypes": 32, "patch_prototypes": 24, "head_hidden": 32},
    **{"crop_bottleneck": 16, "patch_bottleneck": 16, "warm_up_epochs": 0, "super_batch": 40, "batch_size": 16},
    **{"prototypes": 3, "central_cap": 4, "warm_up_pairs": 30, "learning_rate": 1e-3, "subset_epochs": 1},
}


_ANCHORED = {"gram_weight": 2.0, "gram_scale": 2, "gram_teacher_share": 0.0, "gram_share": 0.0}


def _objective(run, processes=None, **constants):
    config = PretrainingConfig.from_dict(_CONSTANTS | constants)
    cohort = read_cohort(run.path("cohort.parquet"))
    device = torch.device("cpu")
    return SelfSupervisedObjective(run, cohort, config, RandomStreams(0), device, processes or Processes())


def _gradient(objective, rows, **options):
    told = objective.backward(rows, 2, **options)
    return told, torch.cat([weight.grad.flatten() for weight in objective.model.parameters()])


@pytest.mark.parametrize(
    "constants",
    [
        {},
        {"centring": "softmax"},
        {"koleo_neighbours": "process"},
        {"plain_prototypes": True, "clipping": "module"},
        _ANCHORED,
    ],
)
def test_a_step_in_pieces_is_the_step_at_once(tiny_study, constants):
    rows, weights = np.arange(24), np.linspace(0.5, 1.5, 24)
    whole, expected = _gradient(_objective(tiny_study, micro_batch=24, **constants), rows, weights=weights)
    for micro in (12, 6, 5):
        told, found = _gradient(_objective(tiny_study, micro_batch=micro, **constants), rows, weights=weights)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert told == pytest.approx(whole, rel=1e-5)


def test_patches_are_anchored_to_an_earlier_teacher(tiny_study):
    objective = _objective(tiny_study, gram_weight=2.0, gram_teacher_share=0.25, gram_share=0.5)
    objective.plan(8)
    rows, size = np.arange(6), 32
    assert [objective.backward(rows, step)["gram"] for step in (1, 2, 3)] == [0, 0, 0]
    earlier = copy.deepcopy(objective.teacher)
    with torch.no_grad():
        for weight in objective.teacher.parameters():
            weight.mul_(1.5)
    told = objective.backward(rows, 4)
    whole, _, masks = objective._step.draw(6, 4)
    pixels, total = objective.examples.pixels(rows), 0.0
    for crop, views in enumerate(whole):
        _, student = objective.model.see(make_crops(pixels, views, size), torch.from_numpy(masks[:, crop]))
        for image in range(6):
            top, left, height, width = (getattr(views, name)[image] for name in ("top", "left", "height", "width"))
            cut = pixels[image : image + 1, :, top : top + height, left : left + width].float()
            plain = functional.interpolate(cut, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
            _, teacher = earlier.see(plain)
            unit = [functional.normalize(patches, dim=1) for patches in (student[image], teacher[0])]
            total += ((unit[0] @ unit[0].T - unit[1] @ unit[1].T) ** 2).mean().item() / 12
    assert told["gram"] == pytest.approx(total, rel=1e-3)
    own = objective._own
    others = told["crop_loss"] + own.patch_weight * told["patch_loss"] + own.koleo_weight * told["koleo"]
    assert told["loss"] == pytest.approx(others + 2 * told["gram"])


_TWO_PROCESSES = """
import sys
import torch
sys.path.insert(0, TESTS)
from test_self_supervised import _gradient, _objective
import numpy as np
from chexstudy.pretraining.engine.distributed import open_processes
from chexstudy.runs import Run
torch.set_num_threads(1)
with open_processes("cpu") as processes:
    for count, micro in ((23, 5), (3, 24)):
        run, rows = Run("tiny"), np.arange(count)
        alone, expected = _gradient(_objective(run, micro_batch=24), rows)
        told, found = _gradient(_objective(run, processes, micro_batch=micro), rows)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert all(abs(told[name] - alone[name]) <= 1e-4 * abs(alone[name]) for name in alone), (told, alone)
        print("agreed", flush=True)
"""


def test_two_processes_take_the_step_of_one(home):
    make_tiny_study()
    script = home / "two.py"
    script.write_text(_TWO_PROCESSES.replace("TESTS", repr(str(paths.REPOSITORY / "tests"))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CHEXSTUDY_HOME": str(home)}
    environment["PYTHONPATH"] = str(paths.REPOSITORY)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreed") == 4


def test_operations_are_counted_as_they_are_spent(tiny_study):
    objective, rows = _objective(tiny_study, micro_batch=24), np.arange(24)
    objective.backward(rows, 0)
    # Masks are drawn, and counted beforehand by their mean.
    assert objective.flops == pytest.approx(objective.count_step(rows), rel=0.01)
    pieces = _objective(tiny_study, micro_batch=12)
    pieces.backward(rows, 0)
    assert pieces.flops > objective.flops
    before = objective.flops
    (features,) = objective.embed(rows)
    assert 0 < objective.flops - before < before / 8
    assert features.shape == (24, 128)
    assert objective.join((features,)).norm(dim=1).allclose(torch.ones(24))


def test_constants_change_over_the_steps_that_were_planned(tiny_study):
    objective = _objective(tiny_study, frozen_share=0.1, weight_decay=0.04)
    objective.plan(100)
    groups = objective.parameter_groups()
    assert sum(len(group["params"]) for group in groups) == len(list(objective.model.parameters()))
    early = objective.set_constants(groups, 5, 7.0)
    prototypes = [group for group in groups if group["is_prototype"]]
    assert early < 1e-3
    assert {group["lr"] for group in prototypes} == {0.0}
    peak = objective.set_constants(groups, 10, 7.0)
    assert peak == pytest.approx(1e-3)
    assert {group["lr"] for group in prototypes} == {peak}
    assert {round(group["lr"] / peak, 6) for group in groups} == {0.2, 1.0}
    assert objective.set_constants(groups, 100, 7.0) == pytest.approx(1e-5)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}


@pytest.mark.parametrize("arm", ["full", "curated"])
def test_images_alone_are_trained_on_and_a_broken_training_ends_in_the_same_bits(tiny_study, monkeypatch, capsys, arm):
    config = PretrainingConfig.from_dict(
        _CONSTANTS
        | {"checkpoint_minutes": 0.0, "centring": "softmax", "drop_path": 0.2}
        | {"gram_weight": 2.0, "gram_teacher_share": 0.1, "gram_share": 0.2}
    )
    cost = pretrain(tiny_study, arm, 0, config, "cpu")
    folder = tiny_study.path(arm_folder(arm, 0))
    weights = {
        name: load_file(folder / "model" / name) for name in ("heads.safetensors", "image_encoder/model.safetensors")
    }
    history = pd.read_parquet(folder / "history.parquet")
    assert history[["crop_loss", "patch_loss", "koleo"]].notna().all().all()
    assert cost["flops"] > 0
    said = capsys.readouterr().out
    assert f"seed 0): {judge_training(history, 0.3, len(history))} Student and teacher are " in said
    auroc = history.knn_auroc.dropna()
    assert f"Nearest neighbours on validation: AUROC {auroc.iloc[0]:.3f} of [CLS], " in said
    assert list(auroc.index) == [len(history) - 1]
    assert auroc.iloc[0] == pytest.approx(_neighbours_auroc(tiny_study, folder / "model" / "image_encoder"), abs=1e-3)
    (folder / "compute.json").unlink()
    step = arm_run.Trainer._train_step

    def break_off(trainer, *arguments, **named):
        if trainer.step == 2:
            raise KeyboardInterrupt
        step(trainer, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(arm_run.Trainer, "_train_step", break_off)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny_study, arm, 0, config, "cpu")
    pretrain(tiny_study, arm, 0, config, "cpu")
    for name, before in weights.items():
        after = load_file(folder / "model" / name)
        assert all(torch.equal(after[one], before[one]) for one in before)
    columns = [name for name in history if name != "seconds"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "history.parquet")[columns], history[columns])
    assert json.loads((folder / "model" / "pretraining.json").read_text())["objective"] == "self_supervised"
    # What was trained is an encoder like any other.
    encoder = build_image_encoder(EncoderSpec(str(folder / "model" / "image_encoder")))
    assert encoder(torch.zeros(2, 1, 36, 36, dtype=torch.uint8)).shape == (2, 128)
    if arm == "curated":
        assert np.load(folder / "features.npy").shape[1] == 128


def _neighbours_auroc(run, encoder):
    """What scikit-learn's neighbours make of [CLS] on validation."""
    encoder, cohort = build_image_encoder(EncoderSpec(str(encoder), image_size=32)), run.read_table("cohort.parquet")
    parts = [cohort[cohort.split == split] for split in ("train", "validate")]
    pixels = (torch.from_numpy(open_pixel_store(run).read(part.image_id))[:, None] for part in parts)
    references, queries = (encoder.embed_blocks(one, 1)[1].detach().double().numpy() for one in pixels)
    neighbours = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    found = []
    for finding in ("Mass", "Hernia"):
        votes = neighbours.fit(references, parts[0][finding].to_numpy(int)).predict_proba(queries)[:, 1]
        if parts[1][finding].nunique() == 2:
            found.append(roc_auc_score(parts[1][finding].to_numpy(int), votes))
    return np.mean(found)


def test_an_image_is_read_once_a_step_and_once_to_tell_its_copies(tiny_study):
    objective, rows, read = _objective(tiny_study, micro_batch=24), np.arange(24), []
    stored = objective.examples.pixels

    def pixels(rows, pin_memory=False):
        read.extend(rows)
        found = stored(rows, pin_memory)
        found[rows % 3 == 0] = 7
        return found

    objective.examples.pixels = pixels
    assert objective.examples.tell_copies(np.array([3, 1, 0, 2])).tolist() == [0, 1, 0, 2]
    objective.backward(rows, 0)
    assert sorted(read) == sorted([*rows, *rows])
    objective.backward(rows, 1)
    assert sorted(read) == sorted([*rows, *rows, *rows])


def _spoil(network, crops, masks=None, wanted=None):
    cls, patches = _SEE(network, crops, masks, wanted)
    return cls * float("nan"), patches


_SEE = Network.see


def test_a_step_without_a_finite_gradient_is_not_taken_and_the_teacher_waits(tiny_study, monkeypatch):
    for waits in (True, False):
        objective = _objective(tiny_study, watch_every=1, teacher_waits=waits, teacher_momentum=0.5)
        weights = list(objective.model.parameters())
        before = [[one.clone() for one in network.parameters()] for network in (objective.model, objective.teacher)]
        for weight in objective.teacher.parameters():
            weight.data += 1
        with monkeypatch.context() as patch:
            patch.setattr(Network, "see", _spoil)
            told = objective.backward(np.arange(8), 0)
        assert told["skipped"]
        assert np.isnan([told["loss"], told["gradient_norm"], told["gradient_norm_encoder"]]).all()
        torch.optim.AdamW(weights).step()
        assert all(torch.equal(one, old) for one, old in zip(weights, before[0], strict=True))
        objective.finish_step(0)
        moved = [
            not torch.equal(one, old + 1) for one, old in zip(objective.teacher.parameters(), before[1], strict=True)
        ]
        assert any(moved) == (not waits)
        told = objective.backward(np.arange(8), 1)
        assert not told["skipped"]
        parts = [told[f"gradient_norm_{name}"] for name in ("encoder", "crop_head", "patch_head")]
        assert told["gradient_norm"] == pytest.approx(np.linalg.norm(parts))
        assert told["teacher_distance"] > 0


_GOES_ON = r".*, or set patience to 0 to train on; the last checkpoint is intact\.$"


@pytest.mark.parametrize("patience", [50, 0])
def test_a_training_that_takes_no_step_is_stopped(tiny_study, monkeypatch, patience):
    monkeypatch.setattr(Network, "see", _spoil)
    config = PretrainingConfig.from_dict(_CONSTANTS | {"subset_epochs": 4, "patience": patience})
    if patience:
        with pytest.raises(StudyError, match=r"of the last 2 steps none was taken, because the loss is nan" + _GOES_ON):
            pretrain(tiny_study, "full", 0, config, "cpu")
    else:
        pretrain(tiny_study, "full", 0, config, "cpu")
        assert pd.read_parquet(tiny_study.path(f"{arm_folder('full', 0)}/history.parquet")).skipped.all()


def test_a_training_that_fails_for_copies_is_stopped_and_names_them(tiny_study, monkeypatch):
    stored = TrainingImages.pixels

    def all_equal(images, rows, pin_memory=False):
        return torch.full_like(stored(images, rows, pin_memory), 9)

    def first_are_equal(images, rows, pin_memory=False):
        found = stored(images, rows, pin_memory)
        found[rows < 4] = 9
        return found

    config = PretrainingConfig.from_dict(_CONSTANTS | {"watch_every": 1})
    monkeypatch.setattr(TrainingImages, "pixels", all_equal)
    names = r"\(image-\w{10}, .*image-\w{10}, \.\.\.\)"
    with pytest.raises(StudyError, match=rf"71 of 72 images are copies of others {names}: keep one of each" + _GOES_ON):
        pretrain(tiny_study, "full", 0, config, "cpu")
    # In half precision, as published (S4, S5); without its crops' chances, copies look the same.
    monkeypatch.setattr(TrainingImages, "pixels", first_are_equal)
    objective = _objective(
        tiny_study, **{"koleo_neighbours": "process", "koleo_precision": "compute", "drop_path": 0.0}
    )
    objective.plan(10)
    objective._step.autocast = torch.float16
    monkeypatch.setattr(Distillation, "draw", lambda *_: _same_views(objective))
    told = objective.backward(np.arange(8), 0)
    assert told["koleo"] == np.inf
    assert told["skipped"]
    fault = objective.find_fault([told | {"step": 0}])
    names = ", ".join(show_image_ids(tiny_study, [f"tiny/{number:04d}" for number in (1, 2, 3)]))
    assert fault.startswith(f"3 of 72 images are copies of others ({names}), and KoLeo is infinite: keep one of each")


def _same_views(objective):
    views = draw_views(1, objective.examples.side, (1.0, 1.0), np.random.default_rng(0))
    same = views[np.zeros(8, dtype=int)]
    return [same, same], [same, same], np.zeros((8, 2, 16), dtype=bool)


def _make_folder_study(home, **columns):
    """A study of sixty images of a folder, whose table has these columns beside paths, patients and splits."""
    folder, numbers = home / "images", range(60)
    folder.mkdir()
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 255, (36, 36), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    splits = ["train"] * 40 + ["validate"] * 10 + ["test"] * 10
    table = {"File": [f"{number}.png" for number in numbers], "Patient": [f"P{number}" for number in numbers]}
    pd.DataFrame(table | {"Set": splits} | columns).to_csv(folder / "labels.csv", index=False)
    mapped = {"image_path": "File", "patient_id": "Patient", "split": "Set"} | {name: name for name in columns}
    (folder / "cohort.yaml").write_text(json.dumps({"columns": mapped}))
    run = Run("mine")
    _, notes = build_cohort(run, "folder", str(folder), 36, "crop", 0, PhantomConfig(60, 36), workers=1)
    return run, folder, notes


def test_images_without_report_or_label_are_checked_built_and_trained_on(home):
    run, folder, notes = _make_folder_study(home)
    assert notes["images without a report, for objective self_supervised alone"] == 60
    found = check_source(folder, "folder")
    assert found.problems == ()
    assert found.remarks == ("60 of 60 images have no report: only objective self_supervised learns from them.",)
    pretrain(run, "curated", 0, PretrainingConfig.from_dict(_CONSTANTS), "cpu")
    history = pd.read_parquet(run.path(f"{arm_folder('curated', 0)}/history.parquet"))
    assert "knn_auroc" not in history
    assert history.loc[history.phase == "curate", "pairs_scored"].sum() == 40
    with pytest.raises(StudyError, match=r"^no training image has a report to learn from: build the cohort with"):
        pretrain(run, "full", 0, PretrainingConfig(), "cpu")


def test_contrastive_training_takes_the_images_with_a_report_and_self_supervision_all(home):
    reports = ["Clear lungs." if number % 4 else "" for number in range(60)]
    run, _, notes = _make_folder_study(home, report=reports)
    assert notes["images without a report, for objective self_supervised alone"] == 15
    cohort, store = read_cohort(run.path("cohort.parquet")), open_pixel_store(run)
    tokenize = RecordedTokens()
    pairs = TrainingPairs(cohort, store, tokenize)
    assert tokenize.texts == ["Clear lungs."] * 30
    assert list(pairs.image_ids) == [f"folder/{number}.png" for number in range(40) if number % 4]
    assert len(TrainingImages(cohort, store)) == 40


class RecordedTokens:
    def __call__(self, texts):
        self.texts = texts
        return dict.fromkeys(("input_ids", "attention_mask"), torch.ones(len(texts), 3, dtype=torch.long))


def test_one_image_and_equal_images_are_trained_on(tiny_study):
    objective = _objective(tiny_study)
    told, gradient = _gradient(objective, np.arange(1))
    assert told["koleo"] == 0
    assert gradient.isfinite().all()
    objective = _objective(tiny_study)
    objective.examples.pixels = lambda rows, pin_memory=False: torch.full((len(rows), 1, 36, 36), 9, dtype=torch.uint8)
    told, gradient = _gradient(objective, np.arange(8))
    assert told["koleo"] == 0
    assert gradient.isfinite().all()


def _end_memory_above(crops):
    def see(network, pixels, masks=None, wanted=None):
        if len(pixels) > crops:
            raise torch.OutOfMemoryError("out of memory")
        return _SEE(network, pixels, masks, wanted)

    return see


def test_where_memory_ends_smaller_pieces_take_the_same_step(tiny_study, monkeypatch, capsys):
    rows = np.arange(24)
    # With dropped paths a step in pieces is that of the same pieces from the start.
    for drop_path, micro in ((0.0, 24), (0.3, 6)):
        _, expected = _gradient(_objective(tiny_study, micro_batch=micro, drop_path=drop_path), rows)
        objective = _objective(tiny_study, micro_batch=24, drop_path=drop_path)
        with monkeypatch.context() as patch:
            patch.setattr(Network, "see", _end_memory_above(12))
            _, found = _gradient(objective, rows)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert objective.describe()["micro_batch"] == 6
    assert "memory does not suffice: 12 images at once from here on" in capsys.readouterr().out
    monkeypatch.setattr(Network, "see", _end_memory_above(0))
    with pytest.raises(
        StudyError, match="memory of cpu does not suffice for one image at a time: use a smaller encoder"
    ):
        objective.backward(rows, 0)


def test_stored_images_may_be_smaller_than_crops(tiny_study):
    told, gradient = _gradient(_objective(tiny_study, image_size=64, local_size=40), np.arange(4))
    assert np.isfinite(told["loss"])
    assert gradient.isfinite().all()


def test_sizes_that_do_not_fit_are_one_sentence(tiny_study):
    # 7 x 16 numbers a prototype of the weights, and 16 of an image's logits.
    with pytest.raises(
        StudyError, match=r"^1,000,000,000 crop_prototypes and 24 patch_prototypes need about 476\.\d GiB"
    ):
        _objective(tiny_study, crop_prototypes=10**9)
    with pytest.raises(StudyError, match=r"local_size \(32\) must be below image_size \(32\)"):
        PretrainingConfig.from_dict(_CONSTANTS | {"local_size": 32})
    with pytest.raises(StudyError, match="patches of 8 pixels, and 15 is no multiple of it"):
        _objective(tiny_study, local_size=15)
