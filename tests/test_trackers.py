import random
import sys

import numpy as np
import pytest
import torch

from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.trackers import Tracker, open_tracker

PARAMETERS = {"learning_rate": 1e-3, "fixed_streams": ["order"], "curator": {"prototypes": 6}}


def row(step):
    """A row of a history, with what no tracker takes."""
    return {
        "phase": "curate",
        "loss": 1 / (step + 1),
        "pairs_trained": np.int64(step),
        "keep_ratio": float("nan"),
        "grad": float("inf"),
        "usage": [1, 2],
    }


def log_steps(name, folder, steps, parameters=PARAMETERS):
    tracker = open_tracker(name, folder, "demo/curated/seed0", parameters)
    for step in steps:
        tracker.log(step, row(step))
    return tracker


class _Failing:
    closed = 0

    def add_scalar(self, name, value, step):
        raise OSError(28, "No space left on device", "/secret/place")

    def flush(self):
        pass

    def close(self):
        self.closed += 1
        raise RuntimeError("key=abc")


def test_no_tracker_writes_nothing(tmp_path):
    log_steps("", tmp_path, range(3)).close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(StudyError, match="not installed: run `pip install tensorboard`"):
        open_tracker("tensorboard", tmp_path, "x", {})


def test_a_tracker_that_fails_is_dropped_with_one_sentence(capsys):
    writer = _Failing()
    tracker = Tracker(lambda step: writer)
    for step in range(3):
        tracker.log(step, row(step))
    tracker.close()
    said = capsys.readouterr()
    assert said.out == (
        "TensorBoard stopped (No space left on device): the training goes on, its history is kept as always.\n"
    )
    assert said.err == ""
    assert writer.closed == 1


def test_a_tracker_that_cannot_close_does_not_raise(capsys):
    tracker = Tracker(lambda step: _Failing())
    tracker.log(0, {})
    tracker.close()
    tracker.close()
    assert capsys.readouterr().out.count("(RuntimeError)") == 1


def test_a_tracker_that_cannot_open_does_not_stop_the_training(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    pytest.importorskip("torch.utils.tensorboard")
    log_steps("tensorboard", tmp_path, range(2)).close()
    assert capsys.readouterr().out.count("TensorBoard stopped (") == 1


def test_random_states_are_left_alone(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    log_steps("tensorboard", tmp_path, range(2)).close()
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def read_events(folder):
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulation.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_holds_the_numbers(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    tracker = log_steps("tensorboard", tmp_path, range(4))
    # Before it is closed: a killed process has logged what it did.
    assert read_events(tmp_path) == {
        "loss": [(step, pytest.approx(1 / (step + 1))) for step in range(4)],
        "pairs_trained": [(step, step) for step in range(4)],
    }
    tracker.close()
    texts = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b'"prototypes": 6' in texts
    assert b"demo/curated/seed0" in texts


def test_tensorboard_has_no_step_twice_after_a_kill(tmp_path):
    log_steps("tensorboard", tmp_path, range(6))
    log_steps("tensorboard", tmp_path, range(3, 8)).close()
    assert [step for step, _ in read_events(tmp_path)["loss"]] == list(range(8))
