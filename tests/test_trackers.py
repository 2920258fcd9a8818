import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from chexstudy.errors import StudyError
from chexstudy.pretraining import trackers
from chexstudy.pretraining.trackers import Tracker, open_tracker

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

    def write(self, step, values):
        raise OSError(28, "No space left on device", "/secret/place")

    def close(self):
        self.closed += 1
        raise RuntimeError("key=abc")


def test_no_tracker_writes_nothing(tmp_path):
    log_steps("", tmp_path, range(3)).close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_and_a_missing_library_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(StudyError, match="one of tensorboard, wandb, mlflow, or empty for none, not 'comet'"):
        open_tracker("comet", tmp_path, "x", {})
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(StudyError, match=rf"'{name}' is not installed: run `pip install 'chexstudy\[trackers\]'`"):
            open_tracker(name, tmp_path, "x", {})


def test_a_tracker_that_fails_is_dropped_with_one_sentence(capsys):
    backend = _Failing()
    tracker = Tracker("tensorboard", backend)
    for step in range(3):
        tracker.log(step, row(step))
    tracker.close()
    said = capsys.readouterr()
    assert said.out == (
        "The tracker tensorboard stopped (No space left on device): the training goes on, "
        "its history is kept as always.\n"
    )
    assert said.err == ""
    assert backend.closed == 1


def test_a_tracker_that_cannot_close_does_not_raise(capsys):
    tracker = Tracker("wandb", _Failing())
    tracker.close()
    tracker.close()
    assert capsys.readouterr().out.count("(RuntimeError)") == 1


def test_a_tracker_that_cannot_open_does_not_stop_the_training(tmp_path, monkeypatch, capsys):
    def refuse(folder, run_name, parameters):
        raise ConnectionError("the server at key=abc is down")

    monkeypatch.setitem(trackers._BACKENDS, "mlflow", refuse)
    log_steps("mlflow", tmp_path, range(2)).close()
    assert capsys.readouterr().out.startswith("The tracker mlflow stopped (ConnectionError): ")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_random_states_are_left_alone(tmp_path, name):
    pytest.importorskip("torch.utils.tensorboard" if name == "tensorboard" else name)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    log_steps(name, tmp_path, range(2)).close()
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


def scan_records(data):
    """The records of a run file: 32 KiB blocks of pieces, each behind a checksum, its length and its kind."""
    place, record = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def read_wandb(folder, count):
    """The logged rows of every run file in the folder, in the order written; the library writes them a little late."""
    deadline = time.monotonic() + 10
    while len(rows := scan_rows(folder)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return rows


def scan_rows(folder):
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in scan_records(path.read_bytes()):
            record = records.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {"".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                rows.append({name: float(value) for name, value in items.items() if not name.startswith("_")})
    return rows


def test_wandb_holds_the_numbers_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    pytest.importorskip("wandb")
    log_steps("wandb", tmp_path, range(4)).close()
    assert read_wandb(tmp_path, 4) == [{"loss": 1 / (step + 1), "pairs_trained": step} for step in range(4)]
    assert len({path.stem for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}) == 1
    assert capfd.readouterr().out == ""


def test_wandb_has_no_step_twice_and_one_run(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    pytest.importorskip("wandb")
    # The folder of a run is named by the second it began in.
    log_steps("wandb", tmp_path, range(6)).close()
    time.sleep(1.1)
    log_steps("wandb", tmp_path, range(3, 8)).close()
    assert [values["pairs_trained"] for values in read_wandb(tmp_path, 8)] == list(range(8))
    assert len({path.stem for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}) == 1


def read_mlflow(folder):
    with sqlite3.connect(folder / "mlflow" / "mlflow.db") as database:
        runs = database.execute("select run_uuid, name, status from runs").fetchall()
        metrics = database.execute("select run_uuid, key, step, value from metrics order by key, step").fetchall()
        parameters = dict(database.execute("select key, value from params").fetchall())
    return runs, metrics, parameters


def test_mlflow_holds_the_numbers_and_resumes_the_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_steps("mlflow", tmp_path, range(3))
    log_steps("mlflow", tmp_path, range(1, 5)).close()
    runs, metrics, parameters = read_mlflow(tmp_path)
    assert [(name, status) for _, name, status in runs] == [("demo/curated/seed0", "FINISHED")]
    expected = [("loss", step, 1 / (step + 1)) for step in range(5)]
    expected += [("pairs_trained", step, step) for step in range(5)]
    assert [metric[1:] for metric in metrics] == expected
    assert parameters == {"learning_rate": "0.001", "fixed_streams": "['order']", "curator.prototypes": "6"}
    log_steps("mlflow", tmp_path, range(2), {**PARAMETERS, "learning_rate": 1e-2}).close()
    assert len(read_mlflow(tmp_path)[0]) == 2


def test_wandb_logs_again_what_a_killed_process_may_not_have_written(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    pytest.importorskip("wandb")
    monkeypatch.setattr(trackers, "source_hash", lambda: "code")
    program = (
        "import os, pathlib, signal, sys, time\n"
        "from chexstudy.pretraining import trackers\n"
        "trackers._SETTLED_SECONDS, trackers.source_hash = 0.0, lambda: 'code'\n"
        f"tracker = trackers.open_tracker('wandb', pathlib.Path(sys.argv[1]), 'x', {PARAMETERS!r})\n"
        "for step in range(4):\n"
        "    tracker.log(step, {'pairs_trained': step})\n"
        "    time.sleep(0.01)\n"
        "time.sleep(3)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The library hands its service to child processes; a training starts its own.
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, env=own)
    assert killed.returncode == -signal.SIGKILL
    log_steps("wandb", tmp_path, range(1, 6)).close()
    # Steps 0 to 2 had settled, step 3 had not.
    assert [values["pairs_trained"] for values in read_wandb(tmp_path, 7)] == [0, 1, 2, 3, 3, 4, 5]
