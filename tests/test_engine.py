"""Arms end to end on a tiny cohort: what each is trained on, what it costs, and that nothing is lost when killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from chexstudy import runs
from chexstudy.errors import StudyError
from chexstudy.pretraining import engine
from chexstudy.pretraining.arms import ARMS, arm_folder, require_current_arm, train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine import pretrain
from chexstudy.pretraining.model import load_model

_CONSTANTS = {
    **{"image_size": 36, "dim": 16, "max_tokens": 32, "batch_size": 16, "micro_batch": 16, "super_batch": 40},
    **{"warm_up_epochs": 2, "subset_epochs": 2, "ramp_steps": 2, "precision": "fp32"},
    **{"prototypes": 3, "central_cap": 4, "warm_up_pairs": 30},
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _config(**changes):
    return PretrainingConfig.from_dict(_CONSTANTS | changes)


def _weights(run, arm, seed=0):
    folder = run.path(f"{arm_folder(arm, seed)}/model")
    files = [folder / "projections.safetensors", *folder.glob("*_encoder/model.safetensors")]
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def _assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def trained(tiny_study):
    for arm in ARMS:
        pretrain(tiny_study, arm, 0, _config(), "cpu")
    return tiny_study


def test_arms_train_on_what_they_say(trained):
    run, folders = trained, {arm: arm_folder(arm, 0) for arm in ARMS}
    train = pd.read_parquet(run.path("cohort.parquet")).query("split == 'train'")
    ledger = pd.read_parquet(run.path(f"{folders['curated']}/ledger.parquet"))
    assert sorted(ledger.image_id) == sorted(train.image_id), "every pair is scored once, the last batch included"
    subsets = {
        arm: set(pd.read_parquet(run.path(f"{folders[arm]}/subset.parquet")).image_id)
        for arm in ARMS
        if arm != "warm_up"
    }
    assert subsets["curated"] == set(ledger[ledger.kept].image_id)
    assert len(subsets["curated"]) == len(subsets["random_same_data"]) == len(subsets["oracle_balanced"])
    assert subsets["random_same_data"] != subsets["curated"]
    assert subsets["full"] == subsets["random_same_compute"] == set(train.image_id)
    hernias = set(train[train.Hernia == 1].image_id)
    assert len(hernias & subsets["oracle_balanced"]) == min(len(hernias), len(subsets["oracle_balanced"]) // 2)

    compute = {arm: json.loads(run.path(f"{folder}/compute.json").read_text()) for arm, folder in folders.items()}
    assert compute["curated"]["pairs_scored"] == len(train) + 30
    assert compute["random_same_data"]["pairs_scored"] == 0
    assert compute["random_same_data"]["pairs_trained"] == compute["curated"]["pairs_trained"]
    assert compute["full"]["pairs_trained"] == 5 * len(train)
    assert compute["warm_up"]["flops"] < compute["random_same_data"]["flops"] < compute["curated"]["flops"]
    assert compute["curated"]["flops"] < compute["full"]["flops"]
    one_step = compute["full"]["flops"] / compute["full"]["steps"]
    assert abs(compute["random_same_compute"]["flops"] - compute["curated"]["flops"]) < 1.5 * one_step

    history = pd.read_parquet(run.path(f"{folders['curated']}/history.parquet"))
    assert list(history.phase.unique()) == ["warm_up", "curate", "subset"]
    assert history.flops.is_monotonic_increasing
    prototypes = np.load(run.path(f"{folders['curated']}/prototypes.npy"))
    assert prototypes.shape == (1 + (history.phase == "curate").sum(), 3, 32)
    assert np.load(run.path(f"{folders['curated']}/features.npy")).shape == (len(train), 32)
    assert load_model(run.path(f"{folders['full']}/model")).dim == 16


def test_loss_falls(tiny_study):
    pretrain(tiny_study, "full", 0, _config(subset_epochs=12), "cpu")
    history = pd.read_parquet(tiny_study.path(f"{arm_folder('full', 0)}/history.parquet"))
    assert history.loss.tail(5).mean() < history.loss.head(5).mean() - 0.3


def test_the_micro_batch_changes_cost_of_memory_only(trained, monkeypatch):
    before = _weights(trained, "curated")
    pretrain(trained, "warm_up", 0, _config(micro_batch=5), "cpu")
    pretrain(trained, "curated", 0, _config(micro_batch=5), "cpu")
    after = _weights(trained, "curated")
    for name, value in before.items():
        assert torch.allclose(value, after[name], atol=2e-3), name


def test_a_finished_arm_is_not_trained_again_and_a_changed_one_is(tiny_study, monkeypatch):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    before = _weights(tiny_study, "full")
    monkeypatch.setattr(engine.Trainer, "train_epoch", lambda *arguments: pytest.fail("trained again"))
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    monkeypatch.undo()
    pretrain(tiny_study, "full", 0, _config(learning_rate=2e-3), "cpu")
    after = _weights(tiny_study, "full")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("arm", "epoch"), [("curated", 2), ("curated", 3), ("curated", 4), ("random_same_compute", 2)])
def test_a_run_broken_off_ends_with_the_same_weights(tiny_study, monkeypatch, arm, epoch):
    for needed in ("warm_up", "curated", "random_same_compute"):
        pretrain(tiny_study, needed, 0, _config(), "cpu")
    folder = tiny_study.path(arm_folder(arm, 0))
    whole, history = _weights(tiny_study, arm), pd.read_parquet(folder / "history.parquet")
    (folder / "compute.json").unlink()
    for path in (folder / "model").rglob("*.*"):
        path.unlink()
    step = engine.Trainer._train_step

    def break_off(trainer, *arguments, **named):
        if trainer.epoch == epoch and trainer.history[-1]["epoch"] == epoch:
            raise KeyboardInterrupt
        step(trainer, *arguments, **named)

    monkeypatch.setattr(engine.Trainer, "_train_step", break_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny_study, arm, 0, _config(), "cpu")
    monkeypatch.undo()
    pretrain(tiny_study, arm, 0, _config(), "cpu")
    _assert_same_weights(whole, _weights(tiny_study, arm))
    again = pd.read_parquet(folder / "history.parquet")
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), again.drop(columns="seconds"))
    assert not list(tiny_study.folder.rglob("*.partial*"))


def test_what_was_lost_is_made_again(tiny_study):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    whole = _weights(tiny_study, "full")
    tiny_study.path(f"{arm_folder('full', 0)}/model/projections.safetensors").unlink()
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    _assert_same_weights(whole, _weights(tiny_study, "full"))


def test_an_arm_trained_on_another_cohort_is_not_measured(tiny_study):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert require_current_arm(tiny_study, "full", 0) == arm_folder("full", 0)
    cohort = pd.read_parquet(tiny_study.path("cohort.parquet"))
    swapped = cohort.assign(split=cohort.split.replace({"train": "test", "test": "train"}))
    swapped.to_parquet(tiny_study.path("cohort.parquet"), index=False)
    with pytest.raises(StudyError, match="was trained on another cohort"):
        require_current_arm(tiny_study, "full", 0)


_SIGNALLED = """
import os, sys
import torch
from chexstudy import runs
from chexstudy.pretraining import engine

runs.source_hash = lambda: "as it is"
save, calls = torch.save, []

def save_until_signalled(content, file):
    calls.append(file)
    if len(calls) == 3:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), SIGNAL)
    save(content, file)

torch.save = save_until_signalled
sys.exit(engine.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("sent", "code", "left"), [(signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 0)])
def test_killed_while_writing_a_checkpoint_it_goes_on_to_the_same_weights(
    tiny_study, home, monkeypatch, capsys, sent, code, left
):
    # Somebody who edits the package while this test runs does not make the checkpoint stale.
    monkeypatch.setattr(runs, "source_hash", lambda: "as it is")
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    whole, folder = _weights(tiny_study, "full"), tiny_study.path(arm_folder("full", 0))
    shutil.rmtree(folder)
    settings = home / "config.json"
    settings.write_text(json.dumps(_config().to_dict()))
    command = [sys.executable, "-c", _SIGNALLED.replace("SIGNAL", str(int(sent))), "--study", "tiny", "--arm", "full"]
    command += ["--config", str(settings), "--device", "cpu"]
    killed = subprocess.run(command, env={**os.environ, "CHEXSTUDY_HOME": str(home)}, capture_output=True, text=True)
    assert killed.returncode == code, killed.stderr
    assert (folder / "checkpoint.pt").exists()
    assert len(list(folder.glob(".checkpoint.*.partial.pt"))) == left
    capsys.readouterr()
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert "goes on after epoch 2" in capsys.readouterr().out
    _assert_same_weights(whole, _weights(tiny_study, "full"))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("writer", "number", "named", "goes_on"),
    [("save_checkpoint", 3, "checkpoint.pt", 2), ("save_model", 1, "model.safetensors", 5)],
)
def test_a_disk_that_fills_up_costs_one_epoch_and_leaves_nothing_half_written(
    tiny_study, full_disk, monkeypatch, capsys, writer, number, named, goes_on
):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    whole, folder = _weights(tiny_study, "full"), tiny_study.path(arm_folder("full", 0))
    shutil.rmtree(folder)
    write, calls = getattr(engine, writer), []

    def write_on_full_disk(*arguments):
        calls.append(arguments)
        with full_disk(20_000) if len(calls) == number else nullcontext():
            write(*arguments)

    monkeypatch.setattr(engine, writer, write_on_full_disk)
    with pytest.raises(StudyError, match=f"could not write .*{named}: File too large; free some space or set CHEXS"):
        pretrain(tiny_study, "full", 0, _config(), "cpu")
    monkeypatch.undo()
    assert not list(folder.rglob("*.partial*"))
    assert not (folder / "compute.json").exists()
    capsys.readouterr()
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert f"goes on after epoch {goes_on}" in capsys.readouterr().out
    _assert_same_weights(whole, _weights(tiny_study, "full"))


def test_a_full_disk_in_a_worker_is_the_same_sentence(tiny_study, monkeypatch):
    path = tiny_study.path("path")
    path.mkdir()
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    (path / "sitecustomize.py").write_text(limit)
    monkeypatch.setenv("PYTHONPATH", str(path))
    with pytest.raises(StudyError, match=r"^could not write .*checkpoint\.pt: File too large; free some space"):
        train_arms(tiny_study, ["full"], [0], _config(), "cpu")
    assert not [path for path in tiny_study.path("pretraining").rglob("*") if path.is_file()]


def test_arms_run_side_by_side_in_processes_and_bring_what_they_need(tiny_study):
    train_arms(tiny_study, ["random_same_compute", "oracle_balanced"], [0, 1], _config(), "cpu", workers=2)
    for seed in (0, 1):
        assert tiny_study.has(f"{arm_folder('curated', seed)}/compute.json")
        assert tiny_study.has(f"{arm_folder('oracle_balanced', seed)}/compute.json")
    assert not torch.equal(
        _weights(tiny_study, "curated", 0)["model/logit_scale"], _weights(tiny_study, "curated", 1)["model/logit_scale"]
    )


def test_published_constants_train_without_a_warm_up(tiny_study):
    config = _config(warm_up_epochs=0, schedule="published", logit_scale_max=0.0, text_pooling="last", dropout=True)
    pretrain(tiny_study, "curated", 0, config, "cpu")
    history = pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/history.parquet"))
    assert list(history.phase.unique()) == ["curate", "subset"]


def test_what_is_wrong_is_said_in_one_sentence(tiny_study, home, monkeypatch):
    with pytest.raises(StudyError, match="unknown arm 'curate'"):
        pretrain(tiny_study, "curate", 0, _config())
    with pytest.raises(StudyError, match=r"run the arm 'curated' \(04_pretrain_curated\) first"):
        pretrain(tiny_study, "random_same_data", 0, _config(warm_up_epochs=0))
    with pytest.raises(StudyError, match="unknown device 'gpu0'"):
        pretrain(tiny_study, "full", 0, _config(), "gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(StudyError, match="sees no CUDA device"):
            pretrain(tiny_study, "full", 0, _config(), "cuda")
    with pytest.raises(StudyError, match="unknown arm"):
        train_arms(tiny_study, ["nonsense"], [0], _config())
    with pytest.raises(StudyError, match="became nan"):
        pretrain(tiny_study, "full", 0, _config(learning_rate=1e30), "cpu")


def test_a_damaged_checkpoint_is_not_trusted(tiny_study, capsys):
    checkpoint = tiny_study.path(f"{arm_folder('full', 0)}/checkpoint.pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a file")
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert "starts anew" in capsys.readouterr().out
    assert not checkpoint.exists()
