"""What tests share that train arms of the tiny study: constants for a few seconds, and what an arm leaves behind."""

import pytest
import torch
from safetensors.torch import load_file

from chexstudy.pretraining.arms.definitions import arm_folder, find_arm
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.training.arm_run import pretrain
from chexstudy.pretraining.training.trainer import Trainer

_CONSTANTS = {
    **{"image_encoder": "tiny-resnet", "text_encoder": "tiny-bert", "learning_rate": 1e-3},
    **{"image_size": 36, "dim": 16, "max_tokens": 32, "batch_size": 16, "micro_batch": 16, "super_batch": 40},
    **{"warm_up_epochs": 1, "subset_epochs": 1, "ramp_steps": 2, "precision": "fp32"},
    **{"prototypes": 3, "central_cap": 4, "warm_up_pairs": 30},
}


def tiny_config(**changes):
    return PretrainingConfig.from_dict(_CONSTANTS | changes)


def train_arm(run, arm, config=None):
    """Train an arm and what it needs; its folder."""
    config = config or tiny_config()
    for needed in [*find_arm(arm).needs(config), arm]:
        pretrain(run, needed, 0, config, "cpu")
    return arm_folder(arm, 0)


def train_ids(run):
    cohort = run.read_table("cohort.parquet")
    return cohort[cohort.split == "train"].image_id.to_numpy()


def read_weights(run, arm, seed=0):
    folder = run.path(f"{arm_folder(arm, seed)}/model")
    files = [*folder.glob("projections.safetensors"), *folder.glob("*_encoder/model.safetensors")]
    # Copied, because what is loaded is mapped from the file.
    return {f"{file.parent.name}/{name}": value.clone() for file in files for name, value in load_file(file).items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def break_off(monkeypatch, run, arm, config, when):
    """Train an arm until ``when(trainer)`` holds before a step, as if it was interrupted there."""
    step = Trainer._train_step

    def interrupt(trainer, *arguments, **named):
        if when(trainer):
            raise KeyboardInterrupt
        step(trainer, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(run, arm, 0, config, "cpu")


def within(epoch):
    """That a step of an epoch has been taken, for `break_off`."""
    return lambda trainer: trainer.epoch == epoch and trainer.history[-1]["epoch"] == epoch
