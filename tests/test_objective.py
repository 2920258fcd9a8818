"""Any objective behind the contract is trained, curated, stopped and gone on with by the same trainer."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_arms import break_off, tiny_config
from torch import nn

from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.engine.compute import FlopMeter
from chexstudy.pretraining.engine.loading import gather_pixels
from chexstudy.pretraining.objectives.objective import Objective
from chexstudy.pretraining.training import arm_run
from chexstudy.pretraining.training.arm_run import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")


class Images(list):
    """Training images as rows of the store."""


class MeansOfImages(Objective):
    """A linear layer finds the mean grey level under noise; a second one is the moving average of its weights."""

    width = 8

    def _build(self, cohort, seed):
        table = cohort[cohort.split == "train"].reset_index(drop=True)
        pixels = gather_pixels(self._store, self._store.rows(table.image_id)).flatten(1).float() / 255
        self._pixels = pixels
        self.examples = Images(table.image_id)
        self.examples.image_ids, self.examples.table = table.image_id.to_numpy(), table
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = {name: nn.Linear(pixels.shape[1], self.width) for name in ("student", "teacher")}
        self.model = nn.ModuleDict(layers)
        self.model["teacher"].requires_grad_(False).load_state_dict(self.model["student"].state_dict())
        self.prepared, self._meter = {"flops": 7.0, "seconds": 0.0}, FlopMeter(self.model)

    def parameter_groups(self):
        return [{"params": list(self.model["student"].parameters()), "weight_decay": 0.0}]

    @torch.no_grad()
    def embed(self, rows, size=None):
        self.flops += self._count(len(rows), False)
        return (self.model["teacher"](self._pixels[rows]),)

    def join(self, embedded):
        return nn.functional.normalize(embedded[0], dim=1)

    def backward(self, rows, step, embedded=None, weights=None):
        self.model.zero_grad(set_to_none=True)
        values = self._pixels[rows]
        noise = 0.1 * torch.rand(values.shape, generator=self._streams.generator("noise", step))
        loss = (self.model["student"](values + noise).mean(1) - values.mean(1)).square().mean()
        loss.backward()
        self.flops += self.count_step(rows)
        return {"loss": loss.item()}

    def finish_step(self, step):
        with torch.no_grad():
            for slow, fast in zip(*(self.model[name].parameters() for name in ("teacher", "student")), strict=True):
                slow.lerp_(fast, 0.1)
        return {"teacher_norm": float(self.model["teacher"].weight.norm())}

    def count_step(self, rows):
        return self._count(len(rows), True)

    def _count(self, rows, backward):
        sample = self._pixels[:1]
        return rows * self._meter.count(("row", backward), lambda: self.model["student"](sample), backward)

    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in self.model.state_dict().items()}, folder / "w.safetensors"
        )


@pytest.mark.parametrize("arm", ["full", "curated"])
def test_a_second_objective_is_trained_and_goes_on_to_the_same_bits(tiny_study, monkeypatch, arm):
    monkeypatch.setattr(arm_run, "find_objective", lambda name: MeansOfImages)
    config = tiny_config(
        objective="means", warm_up_epochs=0, subset_epochs=4, checkpoint_minutes=0.0, ramp_steps=20, learning_rate=1e-2
    )
    cost = pretrain(tiny_study, arm, 0, config, "cpu")
    folder = tiny_study.path(arm_folder(arm, 0))
    whole, history = load_file(folder / "model/w.safetensors"), pd.read_parquet(folder / "history.parquet")
    assert history.loss.iloc[-1] < history.loss.iloc[0] / 2
    assert cost["flops"] > 7.0
    assert history.teacher_norm.nunique() == len(history)
    (folder / "compute.json").unlink()
    break_off(monkeypatch, tiny_study, arm, config, lambda trainer: trainer.step == 4)
    again_cost = pretrain(tiny_study, arm, 0, config, "cpu")
    again = load_file(folder / "model/w.safetensors")
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert again_cost["flops"] == cost["flops"]
    columns = [name for name in history if name != "seconds"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "history.parquet")[columns], history[columns])
    if arm == "curated":
        assert np.load(folder / "features.npy").shape == (72, 8)
