"""Checkpoints come back as they went, are refused where they do not belong, and are whole or not there."""

import os

import pytest
import torch

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.checkpoint import Checkpoints, load_checkpoint, save_checkpoint


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
    with pytest.raises(StudyError, match=r"c\.pt belongs to another configuration or other data: delete it"):
        load_checkpoint(path, "other")
    whole = path.read_bytes()
    for damaged in (whole[:5000], whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]):
        path.write_bytes(damaged)
        with pytest.raises(StudyError, match=r"c\.pt is damaged or incomplete: delete it to train this arm anew\.$"):
            load_checkpoint(path, "key")
    path.write_bytes(whole)
    path.with_suffix(".json").unlink()
    with pytest.raises(StudyError, match=r"c\.pt is damaged or incomplete"):
        load_checkpoint(path, "key")


def test_code_within_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, "key", {"planted": os.system})
    with pytest.raises(StudyError, match=r"c\.pt cannot be read \(UnpicklingError\)"):
        load_checkpoint(path, "key")


@pytest.mark.parametrize("largest_file", [0, 100, 20_000, 150_000])
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path, full_disk, largest_file):
    path = tmp_path / "c.pt"
    save_checkpoint(path, "key", make_state())
    before = path.read_bytes()
    with full_disk(largest_file), pytest.raises(StudyError, match=r"could not write .*c\.pt: File too large; free"):
        save_checkpoint(path, "key", make_state() | {"counters": [3]})
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["c.json", "c.pt"]
    assert load_checkpoint(path, "key")["counters"] == [1, 2]


def _save_steps(folder, *steps, key="key"):
    checkpoints = Checkpoints(folder, key)
    for step in steps:
        checkpoints.save(step, {"step": step})
    return checkpoints


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path):
    checkpoints = _save_steps(tmp_path / "c", 3, 20, 100)
    assert sorted(path.name for path in (tmp_path / "c").glob("*.pt")) == ["step-00000020.pt", "step-00000100.pt"]
    assert checkpoints.load() == ({"step": 100}, [])
    checkpoints.clear()
    assert not (tmp_path / "c").exists()
    assert checkpoints.load() == (None, [])


def test_where_the_newest_is_damaged_the_one_before_is_read_and_it_is_said(tmp_path):
    checkpoints = _save_steps(tmp_path / "c", 1, 2)
    newest = tmp_path / "c" / "step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    state, passed_over = checkpoints.load()
    assert state == {"step": 1}
    assert len(passed_over) == 1
    assert "step-00000002.pt is damaged" in passed_over[0]
    _save_steps(tmp_path / "c", 2, 3)
    newest.write_bytes(b"")
    _save_steps(tmp_path / "c", 1)
    assert [path.name for path in (tmp_path / "c").glob("*.pt")] == ["step-00000001.pt"]


def test_none_of_another_configuration_is_read(tmp_path):
    _save_steps(tmp_path / "c", 1, 2)
    state, passed_over = Checkpoints(tmp_path / "c", "other").load()
    assert state is None
    assert all("belongs to another configuration" in sentence for sentence in passed_over)
    assert len(passed_over) == 2


def test_a_disk_that_fills_up_leaves_no_half_encoder(tmp_path, full_disk):
    encoder = build_image_encoder(EncoderSpec("tiny-resnet", image_size=32))
    with full_disk(20_000), pytest.raises(StudyError, match=r"could not write .*model\.safetensors: File too large"):
        save_encoder(encoder, tmp_path / "encoder")
    assert os.listdir(tmp_path / "encoder") == []
