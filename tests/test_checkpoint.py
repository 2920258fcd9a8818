"""Checkpoints come back as they went, are refused where they do not belong, and are whole or not there."""

import os

import pytest
import torch

from chexstudy.encoders import EncoderSpec, build_image_encoder, save_encoder
from chexstudy.errors import StudyError
from chexstudy.pretraining.checkpoint import load_checkpoint, save_checkpoint


def make_state():
    return {"weight": torch.arange(50_000, dtype=torch.float32), "counters": [1, 2], "history": [{"loss": 0.5}]}


def test_a_state_comes_back_as_it_went(tmp_path):
    save_checkpoint(tmp_path / "c.pt", "key", make_state())
    state = load_checkpoint(tmp_path / "c.pt", "key")
    assert torch.equal(state["weight"], make_state()["weight"])
    assert (state["counters"], state["history"]) == ([1, 2], [{"loss": 0.5}])


def test_a_checkpoint_of_something_else_and_a_damaged_one_are_one_sentence(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, "key", make_state())
    with pytest.raises(StudyError, match=r"c\.pt belongs to another configuration, data or code: delete it"):
        load_checkpoint(path, "other")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StudyError, match=r"c\.pt cannot be read \(\w+\): delete it to train this arm anew\.$"):
        load_checkpoint(path, "key")


@pytest.mark.parametrize("largest_file", [0, 100, 20_000, 150_000])
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path, full_disk, largest_file):
    path = tmp_path / "c.pt"
    save_checkpoint(path, "key", make_state())
    before = path.read_bytes()
    with full_disk(largest_file), pytest.raises(StudyError, match=r"could not write .*c\.pt: File too large; free"):
        save_checkpoint(path, "key", make_state() | {"counters": [3]})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_disk_that_fills_up_leaves_no_half_encoder(tmp_path, full_disk):
    encoder = build_image_encoder(EncoderSpec("tiny-resnet", image_size=32))
    with full_disk(20_000), pytest.raises(StudyError, match=r"could not write .*model\.safetensors: File too large"):
        save_encoder(encoder, tmp_path / "encoder")
    assert os.listdir(tmp_path / "encoder") == []
