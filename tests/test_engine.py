"""Arms end to end on a tiny cohort: what each is trained on, what it costs, and that nothing is lost when killed."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_arms import assert_same_weights, break_off, read_weights, tiny_config, within

from chexstudy import paths
from chexstudy.curation.records.explain import tell_story
from chexstudy.curation.records.ledger import read_ledger
from chexstudy.devices import choose_device
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import ARMS, arm_folder, require_current_arm
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.engine import checkpoint
from chexstudy.pretraining.engine.stop_requests import StopRequests
from chexstudy.pretraining.models.dual_encoder import ImageTower, load_model
from chexstudy.pretraining.objectives import contrastive
from chexstudy.pretraining.training import arm_run as engine
from chexstudy.pretraining.training.arm_run import _ArmRun, is_trained, pretrain

pytestmark = pytest.mark.usefixtures("one_thread")
_config = partial(tiny_config, warm_up_epochs=2, subset_epochs=2)


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
    of_one_size = ("curated", "filtered", "random_same_data", "oracle_balanced")
    assert len({len(subsets[arm]) for arm in of_one_size}) == 1
    assert len({frozenset(subsets[arm]) for arm in of_one_size}) == len(of_one_size)
    assert subsets["full"] == subsets["random_same_compute"] == set(train.image_id)
    hernias = set(train[train.Hernia == 1].image_id)
    assert len(hernias & subsets["oracle_balanced"]) == min(len(hernias), len(subsets["oracle_balanced"]) // 2)

    compute = {arm: json.loads(run.path(f"{folder}/compute.json").read_text()) for arm, folder in folders.items()}
    assert compute["curated"]["pairs_scored"] == len(train) + 30
    for name in ("pairs_scored", "pairs_trained", "steps"):
        assert compute["filtered"][name] == compute["curated"][name]
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


def test_the_filtered_arm_keeps_as_many_pairs_as_the_curated_one_whatever_the_rule_of_the_study(tiny_study, capsys):
    config = _config(update_timing="after_step", curation_epochs=2)
    for arm in ("warm_up", "curated", "filtered"):
        pretrain(tiny_study, arm, 0, config, "cpu")
    kept = tiny_study.read_table(f"{arm_folder('curated', 0)}/subset.parquet")
    ledger = read_ledger(tiny_study, "filtered", 0)
    assert ledger.groupby("epoch").kept.sum().tolist() == [len(kept)] * 2
    assert "Super-batch 0: The mismatch filter abstains" in capsys.readouterr().out
    pair = ledger[ledger.epoch == ledger.epoch.max()].iloc[0]
    assert f"It was {'kept' if pair.kept else 'dropped'}: " in tell_story(tiny_study, pair.image_id, "filtered")
    pretrain(tiny_study, "curated", 0, replace(config, super_batch=60), "cpu")
    assert not is_trained(tiny_study, "filtered", 0, config), "it kept as many as a curated arm that is gone"


def test_a_budget_may_be_more_pairs_than_a_super_batch_holds(tiny_study):
    config = _config(warm_up_epochs=0, subset_epochs=0, rule="budgeted", budget=50.0)
    pretrain(tiny_study, "curated", 0, config, "cpu")
    assert len(tiny_study.read_table(f"{arm_folder('curated', 0)}/subset.parquet")) == 50 > config.super_batch


def test_the_filter_asks_a_trained_pair_at_a_cost_and_leaves_all_else(tiny_study):
    folder, told = arm_folder("filtered", 0), {}
    for pair in ("", "upstream-pair"):
        config = _config(filter_pair=pair)
        for arm in ("warm_up", "curated", "filtered"):
            pretrain(tiny_study, arm, 0, config, "cpu")
        cost, ledger = tiny_study.read_json(f"{folder}/compute.json"), read_ledger(tiny_study, "filtered", 0)
        told[pair] = cost["flops"], read_weights(tiny_study, "filtered"), ledger.kept
        curated = tiny_study.read_json(f"{arm_folder('curated', 0)}/compute.json")
        assert cost["pairs_trained"] == curated["pairs_trained"]
    # On images of noise both abstain, so that nothing but the second look differs.
    assert told[""][2].equals(told["upstream-pair"][2])
    assert_same_weights(told[""][1], told["upstream-pair"][1])
    assert told["upstream-pair"][0] > told[""][0]
    assert tiny_study.provenance(f"{folder}/compute.json")["parameters"]["begun_with"].keys() == {"upstream-pair"}
    with pytest.raises(StudyError, match=r"there is no trained model in .*nowhere"):
        pretrain(tiny_study, "filtered", 0, _config(filter_pair="nowhere"), "cpu")


def test_long_work_says_how_far_it_is(tiny_study, monkeypatch, capsys):
    monkeypatch.setattr(engine, "_SECONDS_BETWEEN_LINES", 0.0)
    for arm in ("warm_up", "curated"):
        pretrain(tiny_study, arm, 0, _config(), "cpu")
    said = capsys.readouterr().out
    # 72 training pairs: five batches of 16, two super-batches of 40.
    assert re.search(r"warm_up \(seed 0\): warm_up, epoch 0, batch 1 of 5, loss [\d.]+$", said, re.M)
    assert re.search(r"batch 3 of 5, loss [\d.]+, about \d+ s left of this epoch", said)
    assert re.search(r"curated \(seed 0\): curate, epoch 2, batch 2 of 2", said)


def test_loss_falls(tiny_study):
    pretrain(tiny_study, "full", 0, _config(subset_epochs=12), "cpu")
    history = pd.read_parquet(tiny_study.path(f"{arm_folder('full', 0)}/history.parquet"))
    assert history.loss.tail(5).mean() < history.loss.head(5).mean() - 0.3


def test_the_micro_batch_changes_cost_of_memory_only(trained, monkeypatch):
    before = read_weights(trained, "curated")
    pretrain(trained, "warm_up", 0, _config(micro_batch=5), "cpu")
    pretrain(trained, "curated", 0, _config(micro_batch=5), "cpu")
    after = read_weights(trained, "curated")
    for name, value in before.items():
        assert torch.allclose(value, after[name], atol=2e-3), name


def test_a_finished_arm_is_not_trained_again_and_a_changed_one_is(tiny_study, monkeypatch):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    before = read_weights(tiny_study, "full")
    monkeypatch.setattr(engine.Trainer, "train_epoch", lambda *arguments: pytest.fail("trained again"))
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    monkeypatch.undo()
    pretrain(tiny_study, "full", 0, _config(learning_rate=2e-3), "cpu")
    after = read_weights(tiny_study, "full")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("arm", "epoch"), [("curated", 2), ("curated", 3), ("curated", 4), ("random_same_compute", 2)])
def test_a_run_broken_off_ends_with_the_same_weights(tiny_study, monkeypatch, arm, epoch):
    for needed in ("warm_up", "curated", "random_same_compute"):
        pretrain(tiny_study, needed, 0, _config(), "cpu")
    folder = tiny_study.path(arm_folder(arm, 0))
    whole, history = read_weights(tiny_study, arm), pd.read_parquet(folder / "history.parquet")
    (folder / "compute.json").unlink()
    for path in (folder / "model").rglob("*.*"):
        path.unlink()
    break_off(monkeypatch, tiny_study, arm, _config(), within(epoch))
    pretrain(tiny_study, arm, 0, _config(), "cpu")
    assert_same_weights(whole, read_weights(tiny_study, arm))
    again = pd.read_parquet(folder / "history.parquet")
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), again.drop(columns="seconds"))
    assert not list(tiny_study.folder.rglob("*.partial*"))


def test_what_was_lost_is_made_again(tiny_study):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    whole = read_weights(tiny_study, "full")
    tiny_study.path(f"{arm_folder('full', 0)}/model/projections.safetensors").unlink()
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert_same_weights(whole, read_weights(tiny_study, "full"))


def test_an_arm_trained_on_another_cohort_is_not_measured(tiny_study):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert require_current_arm(tiny_study, "full", 0) == arm_folder("full", 0)
    cohort = pd.read_parquet(tiny_study.path("cohort.parquet"))
    swapped = cohort.assign(split=cohort.split.replace({"train": "test", "test": "train"}))
    swapped.to_parquet(tiny_study.path("cohort.parquet"), index=False)
    with pytest.raises(StudyError, match="was trained on another cohort"):
        require_current_arm(tiny_study, "full", 0)


_BROKEN_OFF = """
import os, sys
import torch
from chexstudy.pretraining.training import arm_run as engine
from chexstudy.pretraining.training import curators, trainer as training

calls = []

def count_to_the_end(original, number, *arguments, **named):
    calls.append(1)
    if len(calls) == number:
        BREAK
    return original(*arguments, **named)

original = OBJECT
OBJECT = lambda *arguments, **named: count_to_the_end(original, NUMBER, *arguments, **named)
sys.exit(engine.main(sys.argv[1:]))
"""
_HALF_A_FILE = "arguments[1].write(b'half a checkpoint'); arguments[1].flush(); "


def _break_off(home, arm, config, where, number, how):
    """Train an arm in a process that does ``how`` at the given call of a function."""
    settings = home / "config.json"
    settings.write_text(json.dumps(config.to_dict()))
    code = _BROKEN_OFF.replace("OBJECT", where).replace("NUMBER", str(number)).replace("BREAK", how)
    command = [sys.executable, "-c", code, "--study", "tiny", "--arm", arm, "--config", str(settings)]
    environment = {**os.environ, "CHEXSTUDY_HOME": str(home), "PYTHONPATH": str(paths.PACKAGE.parent)}
    return subprocess.run([*command, "--device", "cpu"], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("sent", "code", "left"), [("SIGKILL", -9, 1), ("SIGINT", 75, 0), ("SIGTERM", 75, 0)])
def test_killed_while_writing_a_checkpoint_it_goes_on_to_the_same_weights(tiny_study, home, capsys, sent, code, left):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    whole, folder = read_weights(tiny_study, "full"), tiny_study.path(arm_folder("full", 0))
    shutil.rmtree(folder)
    how = f"{_HALF_A_FILE}import signal; os.kill(os.getpid(), signal.{sent})"
    killed = _break_off(home, "full", _config(), "torch.save", 4, how)
    assert killed.returncode == code, killed.stderr
    assert len(list(folder.glob("checkpoints/.*.partial.pt"))) == left
    # Asked to stop, it finishes the file and one more step; killed, it has the file before.
    steps = (10, 15) if sent == "SIGKILL" else (15, 16)
    assert sorted(path.stem for path in folder.glob("checkpoints/step-*.pt")) == [
        f"step-{step:08d}" for step in ((5, 10) if sent == "SIGKILL" else steps)
    ]
    if code == 75:
        assert killed.stderr.strip().endswith("was asked to stop after step 16: the same command goes on from there.")
    capsys.readouterr()
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert f"goes on after step {10 if sent == 'SIGKILL' else 16}" in capsys.readouterr().out
    assert_same_weights(whole, read_weights(tiny_study, "full"))
    assert not (folder / "checkpoints").exists()


def test_a_signal_asks_and_the_same_one_again_ends_at_once():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        requests = StopRequests()
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        assert not requests.asked, "nothing is trained: there is nothing to save"
        requests.training = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert requests.asked
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("where", "number", "step"),
    [
        ("engine.Trainer._train_step", 2, 11),
        ("training.ledger_rows", 2, 11),
        ("curators.LedgerWriter.finish", 1, 12),
        ("engine.Trainer._train_step", 5, 14),
    ],
)
def test_killed_at_any_step_of_curation_it_keeps_the_same_pairs_and_weights(
    tiny_study, home, capsys, where, number, step
):
    config = _config(checkpoint_minutes=0.0, rule="budgeted", budget=0.4)
    for arm in ("warm_up", "curated"):
        pretrain(tiny_study, arm, 0, config, "cpu")
    folder = tiny_study.path(arm_folder("curated", 0))
    whole = read_weights(tiny_study, "curated")
    tables = [pd.read_parquet(folder / f"{name}.parquet") for name in ("ledger", "subset", "history")]
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("features", "prototypes")}
    shutil.rmtree(folder)
    killed = _break_off(home, "curated", config, where, number, "os.kill(os.getpid(), 9)")
    assert killed.returncode == -9, killed.stderr
    capsys.readouterr()
    pretrain(tiny_study, "curated", 0, config, "cpu")
    assert f"goes on after step {step}" in capsys.readouterr().out
    assert_same_weights(whole, read_weights(tiny_study, "curated"))
    for name, before in zip(("ledger", "subset", "history"), tables, strict=True):
        after = pd.read_parquet(folder / f"{name}.parquet")
        pd.testing.assert_frame_equal(*(table.drop(columns="seconds", errors="ignore") for table in (before, after)))
    for name, before in arrays.items():
        assert np.array_equal(before, np.load(folder / f"{name}.npy"))


def test_other_code_elsewhere_keeps_arms_and_a_stopped_training_goes_on_to_the_same_bits(
    tiny_study, home, checkout, capsys
):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    whole, folder = read_weights(tiny_study, "full"), tiny_study.path(arm_folder("full", 0))
    capsys.readouterr()
    checkout("evaluation/scores.py", "_LATER = 1")
    checkout("pretraining/objectives/contrastive_loss.py", "# Why it is so.")
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert capsys.readouterr().out == "", "current, and not trained again"
    shutil.rmtree(folder)
    assert _break_off(home, "full", _config(), "torch.save", 4, "os.kill(os.getpid(), 9)").returncode == -9
    later = checkout("pretraining/objectives/contrastive_loss.py", "_LATER = 1")
    command = [sys.executable, "-m", "chexstudy.pretraining.training.arm_run", "--study", "tiny", "--arm", "full"]
    environment = {**os.environ, "PYTHONPATH": str(later)}
    command += ["--config", str(home / "config.json"), "--device", "cpu"]
    resumed = subprocess.run(command, cwd=later, env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "full (seed 0): goes on after step 10" in resumed.stdout
    assert re.search(r"full \(seed 0\): was begun with other code: revision \S+, now \w+\n", resumed.stdout)
    assert_same_weights(whole, read_weights(tiny_study, "full"))
    assert _ArmRun(tiny_study, ARMS["full"], 0, _config(), torch.device("cpu")).done, "the key is that of the new code"
    checkout("pretraining/objectives/contrastive_loss.py", "_LAST = 1")
    assert not _ArmRun(tiny_study, ARMS["full"], 0, _config(), torch.device("cpu")).done


@pytest.mark.parametrize(
    ("writer", "number", "named", "goes_on"),
    [("save_checkpoint", 4, "step-00000015.pt", 10), ("save_model", 1, "model.safetensors", 25)],
)
def test_a_disk_that_fills_up_costs_one_epoch_and_leaves_nothing_half_written(
    tiny_study, full_disk, monkeypatch, capsys, writer, number, named, goes_on
):
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    whole, folder = read_weights(tiny_study, "full"), tiny_study.path(arm_folder("full", 0))
    shutil.rmtree(folder)
    module = checkpoint if writer == "save_checkpoint" else contrastive
    write, calls = getattr(module, writer), []

    def write_on_full_disk(*arguments):
        calls.append(arguments)
        with full_disk(20_000) if len(calls) == number else nullcontext():
            write(*arguments)

    monkeypatch.setattr(module, writer, write_on_full_disk)
    with pytest.raises(StudyError, match=f"could not write .*{named}: File too large; free some space or set CHEXS"):
        pretrain(tiny_study, "full", 0, _config(), "cpu")
    monkeypatch.undo()
    assert not list(folder.rglob("*.partial*"))
    assert not (folder / "compute.json").exists()
    capsys.readouterr()
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert f"goes on after step {goes_on}" in capsys.readouterr().out
    assert_same_weights(whole, read_weights(tiny_study, "full"))


def test_a_full_disk_in_a_worker_is_the_same_sentence(tiny_study, monkeypatch):
    path = tiny_study.path("path")
    path.mkdir()
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    (path / "sitecustomize.py").write_text(limit)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path), str(paths.PACKAGE.parent)]))
    with pytest.raises(StudyError, match=r"^could not write .*step-00000000\.pt: File too large; free some space"):
        train_arms(tiny_study, ["full"], [0], _config(), "cpu")
    left = [path.name for path in tiny_study.path("pretraining").rglob("*") if path.is_file()]
    assert set(left) <= {".lock"}


def test_a_loss_that_is_no_number_leaves_a_checkpoint_to_go_on_from(tiny_study, capsys):
    with pytest.raises(StudyError, match=r"became nan at step 1: lower learning_rate .* the last checkpoint is intact"):
        pretrain(tiny_study, "full", 0, _config(learning_rate=1e18, checkpoint_minutes=0.0), "cpu")
    state, _ = _ArmRun(tiny_study, ARMS["full"], 0, _config(learning_rate=1e18), torch.device("cpu")).checkpoints.load()
    assert state["trainer"]["position"][2] == 1


def _out_of_memory_above(pairs):
    forward = ImageTower.forward

    def refuse(tower, pixels, *arguments):
        if len(pixels) > pairs:
            raise torch.OutOfMemoryError("out of memory")
        return forward(tower, pixels, *arguments)

    return refuse


def test_where_memory_ends_smaller_micro_batches_go_on_and_the_result_is_the_same(tiny_study, monkeypatch, capsys):
    for arm in ("warm_up", "curated"):
        pretrain(tiny_study, arm, 0, _config(), "cpu")
    whole, kept = (
        read_weights(tiny_study, "curated"),
        pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/subset.parquet")),
    )
    shutil.rmtree(tiny_study.path(arm_folder("curated", 0)))
    capsys.readouterr()
    monkeypatch.setattr(ImageTower, "forward", _out_of_memory_above(5))
    cost = pretrain(tiny_study, "curated", 0, _config(), "cpu")
    said = capsys.readouterr().out
    assert "memory does not suffice: 8 pairs at once" in said
    assert "memory does not suffice: 4 pairs at once" in said
    assert cost["micro_batch"] == 4
    again = pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/subset.parquet"))
    pd.testing.assert_frame_equal(kept, again)
    for name, value in read_weights(tiny_study, "curated").items():
        assert torch.allclose(value, whole[name], atol=2e-3), name


def test_where_memory_does_not_hold_one_pair_it_says_so_and_leaves_a_checkpoint(tiny_study, monkeypatch):
    monkeypatch.setattr(ImageTower, "forward", _out_of_memory_above(0))
    with pytest.raises(
        StudyError, match="memory of cpu does not suffice for one pair at a time: use a smaller encoder"
    ):
        pretrain(tiny_study, "full", 0, _config(), "cpu")
    state, _ = _ArmRun(tiny_study, ARMS["full"], 0, _config(), torch.device("cpu")).checkpoints.load()
    assert state["trainer"]["position"][2] == 0


def test_arms_run_side_by_side_in_processes_and_bring_what_they_need(tiny_study):
    train_arms(tiny_study, ["random_same_compute", "oracle_balanced"], [0, 1], _config(), "cpu", workers=2)
    for seed in (0, 1):
        assert tiny_study.has(f"{arm_folder('curated', seed)}/compute.json")
        assert tiny_study.has(f"{arm_folder('oracle_balanced', seed)}/compute.json")
    first, second = (read_weights(tiny_study, "curated", seed)["model/logit_scale"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_published_constants_train_without_a_warm_up(tiny_study):
    config = _config(warm_up_epochs=0, schedule="published", logit_scale_max=0.0, text_pooling="last", dropout=True)
    pretrain(tiny_study, "curated", 0, config, "cpu")
    history = pd.read_parquet(tiny_study.path(f"{arm_folder('curated', 0)}/history.parquet"))
    assert list(history.phase.unique()) == ["curate", "subset"]


def test_what_is_wrong_is_said_in_one_sentence(tiny_study, home, monkeypatch):
    with pytest.raises(StudyError, match="unknown arm 'curate'"):
        pretrain(tiny_study, "curate", 0, _config())
    with pytest.raises(StudyError, match=r"seed0/subset.parquet yet: run 04_pretrain_curated first"):
        pretrain(tiny_study, "random_same_data", 0, _config(warm_up_epochs=0))
    for odd in ("meta", "xpu:7"):
        with pytest.raises(StudyError, match=f"unknown device '{odd}': use auto, cpu or cuda"):
            choose_device(odd)
    with pytest.raises(StudyError, match="unknown device 'gpu0'"):
        pretrain(tiny_study, "full", 0, _config(), "gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(StudyError, match="sees no CUDA device"):
            pretrain(tiny_study, "full", 0, _config(), "cuda")
    with pytest.raises(StudyError, match="unknown arm"):
        train_arms(tiny_study, ["nonsense"], [0], _config())


def test_a_damaged_checkpoint_is_not_trusted(tiny_study, capsys):
    damaged = tiny_study.path(f"{arm_folder('full', 0)}/checkpoints/step-00000003.pt")
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half a file")
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    said = capsys.readouterr().out
    assert "step-00000003.pt is damaged or incomplete" in said
    assert "starts anew" in said
    assert not damaged.exists()


def test_a_checkpoint_of_another_configuration_is_passed_over_and_it_is_said(tiny_study, monkeypatch, capsys):
    break_off(monkeypatch, tiny_study, "full", _config(), lambda trainer: trainer.epoch == 1)
    capsys.readouterr()
    pretrain(tiny_study, "full", 0, _config(learning_rate=2e-3), "cpu")
    assert "belongs to another configuration" in capsys.readouterr().out


def test_an_arm_has_one_writer(tiny_study):
    folder = tiny_study.path(arm_folder("full", 0))
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StudyError) as caught:
            pretrain(tiny_study, "full", 0, _config(), "cpu")
    assert str(caught.value) == (
        "the arm 'full' (seed 0) of study 'tiny' is in training by another process: wait until that has ended, then "
        "the same command goes on from there."
    )
    pretrain(tiny_study, "full", 0, _config(), "cpu")
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pretrain(tiny_study, "full", 0, _config(), "cpu")


@pytest.mark.parametrize("kind", ["pipe", "device", "deep", "list", "absent"])
def test_a_file_of_constants_that_is_none_is_one_sentence(tmp_path, kind):
    path = tmp_path / "arm.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind in ("deep", "list"):
        path.write_text('{"a": ' * 100_000 if kind == "deep" else "[1]")
    with pytest.raises(StudyError, match=r"JSON file of constants|no constants by name") as refused:
        engine._read_values(path)
    assert "\n" not in str(refused.value)
