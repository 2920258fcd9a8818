"""Several processes train as one: the same choices, the same loss, the same gradient."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_tiny_study
from safetensors.torch import load_file
from tiny_arms import tiny_config

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.engine.distributed import Processes, open_processes
from chexstudy.pretraining.training.arm_run import START_AGAIN, pretrain

_CONSTANTS = {"micro_batch": 5, "rule": "budgeted", "budget": 0.4}

_GRADIENTS = """
import sys
import numpy as np, pandas as pd, torch
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes, open_processes
from chexstudy.pretraining.models.dual_encoder import build_model
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder

torch.set_num_threads(1)
words = ("heart", "lungs", "clear", "left", "right", "small", "effusion", "no", "mild")
rng = np.random.default_rng(0)
texts = [" ".join(rng.choice(words, rng.integers(3, 20))) for _ in range(23)]

class Store:
    images = rng.integers(0, 256, (23, 36, 36), dtype=np.uint8)
    def rows(self, ids): return np.arange(len(ids))
    size = 36
    def take(self, rows, out=None): return np.take(self.images, rows, axis=0, out=out)

def measure(processes, micro_batch, count):
    config = PretrainingConfig(image_encoder="tiny-vit", image_size=36, dim=16, precision="fp32")
    model = build_model(config, pd.DataFrame({"report": texts}), seed=3)
    cohort = pd.DataFrame({"image_id": [str(n) for n in range(23)], "split": "train", "report": texts})
    pairs = TrainingPairs(cohort, Store(), model.text_tower.tokenize)
    encoder = PairEncoder(model, pairs, torch.device("cpu"), micro_batch, processes=processes)
    rows = np.arange(count)
    told = encoder.backward(rows, weights=torch.linspace(0.5, 2, count))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    (flops,) = processes.add_up([encoder.flops])
    return {"loss": told["loss"], "gradients": gradients, "flops": flops}

with open_processes("cpu") as processes:
    for micro_batch, count in CASES:
        found = measure(processes, micro_batch, count)
        alone = measure(Processes(), 64, count)
        assert found["gradients"].keys() == alone["gradients"].keys()
        difference = torch.cat([(found["gradients"][n] - g).flatten() for n, g in alone["gradients"].items()]).norm()
        scale = torch.cat([g.flatten() for g in alone["gradients"].values()]).norm()
        assert difference <= 1e-6 * scale, (micro_batch, count, float(difference / scale))
        assert abs(found["loss"] - alone["loss"]) <= 1e-6 * abs(alone["loss"])
        if processes.first:
            print(f"agreed {processes.size} {micro_batch} {count}", flush=True)
"""
_ENGINE = ["-m", "chexstudy.pretraining.training.arm_run", "--study", "tiny", "--device", "cpu"]
_CASES = "((64, 23), (3, 23), (64, 2))"


def _start_torchrun(processes, arguments, home):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.PACKAGE.parent)}
    return subprocess.Popen(
        [*command, *arguments],
        env=environment | {"CHEXSTUDY_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _torchrun(processes, arguments, home):
    started = _start_torchrun(processes, arguments, home)
    output, errors = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_gradient_of_several_is_the_gradient_of_one(tmp_path, processes):
    script = tmp_path / "gradients.py"
    script.write_text(_GRADIENTS.replace("CASES", _CASES))
    done = _torchrun(processes, [str(script)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreed") == 3


def _ask_for(arm, config, home):
    """What `_torchrun` is told to train an arm."""
    settings = home / "config.json"
    settings.write_text(json.dumps(config.to_dict()))
    return [*_ENGINE, "--arm", arm, "--config", str(settings)]


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"frozen_towers": ("text",), "micro_batch": 64, "dropout": True}, marks=pytest.mark.slow)],
)
def test_two_processes_keep_the_same_pairs_and_end_with_the_same_model(home, one_thread, changes):
    # Reports whose rare words are tokens: spelled ones lie so close together that rounding decides between pairs.
    tiny_study = make_tiny_study(report_origin="template")
    config = tiny_config(**_CONSTANTS | changes)
    for arm in ("warm_up", "curated"):
        pretrain(tiny_study, arm, 0, config, "cpu")
    folder = tiny_study.path(arm_folder("curated", 0))
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("ledger", "subset", "history")}
    weights = load_file(folder / "model" / "image_encoder" / "model.safetensors")
    alone = json.loads((folder / "compute.json").read_text())
    for arm in ("warm_up", "curated"):
        tiny_study.path(f"{arm_folder(arm, 0)}/compute.json").unlink()
        done = _torchrun(2, _ask_for(arm, config, home), home)
        assert done.returncode == 0, done.stderr
    together = json.loads((folder / "compute.json").read_text())
    assert together["processes"] == 2
    assert together["flops"] == pytest.approx(alone["flops"], rel=0.05)
    assert together["pairs_trained"] == alone["pairs_trained"]
    again = {name: pd.read_parquet(folder / f"{name}.parquet") for name in tables}
    if changes.get("dropout"):
        # Each process drops units of its own: another draw, but as many pairs.
        assert len(again["subset"]) == len(tables["subset"])
        return
    pd.testing.assert_frame_equal(again["subset"], tables["subset"])
    assert (again["ledger"].kept == tables["ledger"].kept).all()
    assert (again["ledger"].image_id == tables["ledger"].image_id).all()
    assert np.allclose(again["history"].loss, tables["history"].loss, rtol=1e-4)
    for name, value in load_file(folder / "model" / "image_encoder" / "model.safetensors").items():
        assert torch.allclose(value, weights[name], atol=2e-3), name


@pytest.mark.slow
def test_asked_to_stop_all_processes_stop_at_one_step_and_go_on_to_the_same_model(tiny_study, home, one_thread):
    config = tiny_config(**_CONSTANTS, subset_epochs=20)
    pretrain(tiny_study, "full", 0, config, "cpu")
    folder = tiny_study.path(arm_folder("full", 0))
    losses = pd.read_parquet(folder / "history.parquet").loss
    shutil.rmtree(folder)
    arguments = _ask_for("full", config, home)
    started = _start_torchrun(2, arguments, home)
    for line in started.stdout:
        if "epoch 3," in line:
            # As Slurm does: to torchrun, which hands it on.
            started.send_signal(signal.SIGTERM)
            break
    _, said = started.communicate(timeout=120)
    assert "was asked to stop after step" in said
    assert started.returncode != 0
    steps = [int(path.stem.removeprefix("step-")) for path in folder.glob("checkpoints/step-*.pt")]
    assert steps
    assert max(steps) < len(losses)
    done = _torchrun(2, arguments, home)
    assert done.returncode == 0, done.stderr
    assert f"goes on after step {max(steps)}" in done.stdout
    # Beyond, last bits grow: two processes add up in another order than one.
    near = max(steps) + 3
    assert np.allclose(pd.read_parquet(folder / "history.parquet").loss[:near], losses[:near], rtol=1e-2)


def test_rows_are_shared_out_once_each_and_evenly():
    for count in (0, 1, 2, 7, 40):
        shares = [Processes(rank, 3).share(count) for rank in range(3)]
        assert [row for share in shares for row in range(count)[share]] == list(range(count))
        sizes = [share.stop - share.start for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_one_process_alone_asks_nobody():
    alone, own = Processes(), torch.arange(6.0).reshape(3, 2)
    assert torch.equal(alone.gather(own, 3), own)
    assert alone.add_up([1.5]) == [1.5]
    alone.require_agreement(torch.tensor([True]))
    with open_processes("cpu") as processes:
        assert processes.size == 1


def test_too_few_pairs_for_the_processes_is_one_sentence(tiny_study):
    config = tiny_config(batch_size=4)
    with pytest.raises(StudyError, match=r"batch_size \(4\) must hold at least one pair for each of the 5 processes"):
        pretrain(tiny_study, "full", 0, config, "cpu", _Absent(0, 5))


class _Absent(Processes):
    """A group whose other processes never come."""

    def wait(self):
        """Not for anybody."""

    def add_up(self, values):
        return values


def test_several_processes_without_an_arm_are_one_sentence(tmp_path):
    done = _torchrun(2, _ENGINE, tmp_path)
    assert done.returncode != 0
    assert "several processes train one arm: give --arm." in done.stderr
    assert "process 1: several processes train one arm" in done.stderr
    assert START_AGAIN == 75
