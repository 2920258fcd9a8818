"""Trackers: a training's history logged to TensorBoard, Weights & Biases or MLflow as it grows.

Off by default, and on this machine only unless the tracker's own environment variables say otherwise. What leaves is
numbers and the configuration. A tracker that fails is dropped with one sentence; the training goes on and is the same.
"""

import contextlib
import json
import logging
import math
import numbers
import os
import time
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import TRACKERS
from chexstudy.runs import atomic_path, hash_values, source_hash

_PROJECT = "chexstudy"
_PARAMETERS_A_BATCH = 100  # MLflow refuses more
_STEP_DIGITS = 20
_FLUSH_SECONDS = 1.0  # Weights & Biases writes at its leisure; a killed process loses what was not written yet
_SETTLED_SECONDS = 30.0  # by then even a version that cannot be told to flush has written


class _Backend(Protocol):
    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Where the rows of a history are logged; made by `open_tracker`.

    Args:
        name: the tracker's name, for its last words.
        backend: what writes; None for a tracker that does nothing.
    """

    def __init__(self, name: str, backend: _Backend | None):
        self._name, self._backend = name, backend

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Log a row of the history. Values that are no finite numbers are left out. Never raises."""
        if self._backend is None:
            return
        finite = {name: float(value) for name, value in values.items() if _is_finite(value)}
        try:
            self._backend.write(int(step), finite)
        except Exception as error:
            backend, self._backend = self._backend, None
            _say_stopped(self._name, error)
            with contextlib.suppress(Exception):
                backend.close()

    def close(self) -> None:
        """Write what is still held back and let go. May be called twice. Never raises."""
        backend, self._backend = self._backend, None
        if backend is None:
            return
        try:
            backend.close()
        except Exception as error:
            _say_stopped(self._name, error)


def open_tracker(name: str, folder: Path, run_name: str, parameters: dict) -> Tracker:
    """A tracker for one training; a training that goes on logs on where it stopped.

    TensorBoard drops the steps that a resumed training does again; the others skip them, for they are the same. After a
    kill, Weights & Biases may have a second of steps twice or not at all.

    Args:
        name: ``tensorboard``, ``wandb`` (offline unless ``WANDB_MODE`` says otherwise), ``mlflow`` (a database in the
            folder unless ``MLFLOW_TRACKING_URI`` is set), or empty for none.
        folder: where the tracker may write; it makes a folder of its own there.
        run_name: what the training is called, for example ``demo/curated/seed0``.
        parameters: the configuration, JSON-serialisable. With other parameters or other code it is another run.

    Raises:
        StudyError: there is no such tracker, or its library is not installed.
    """
    if name not in TRACKERS:
        raise StudyError(
            f"tracker must be one of {', '.join(filter(None, TRACKERS))}, or empty for none, not {name!r}."
        )
    if not name:
        return Tracker(name, None)
    try:
        return Tracker(name, _BACKENDS[name](Path(folder), run_name, parameters))
    except ImportError:
        raise StudyError(
            f"the tracker {name!r} is not installed: run `pip install 'chexstudy[trackers]'`, or leave tracker empty."
        ) from None
    except Exception as error:
        _say_stopped(name, error)
        return Tracker(name, None)


def _is_finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _say_stopped(name: str, error: Exception) -> None:
    # The message of a foreign error may hold an address or a key; its type does not.
    reason = getattr(error, "strerror", None) or type(error).__name__
    print(f"The tracker {name} stopped ({reason}): the training goes on, its history is kept as always.", flush=True)


class _TensorBoard:
    def __init__(self, folder: Path, run_name: str, parameters: dict):
        from torch.utils.tensorboard import SummaryWriter

        self._make_writer, self._folder, self._writer = SummaryWriter, folder / "tensorboard", None
        self._description = json.dumps({"run": run_name, **parameters}, indent=2, default=str)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._writer is None:
            # What an earlier process logged from here on is purged: that process was killed, and these steps come anew.
            self._writer = self._make_writer(str(self._folder), purge_step=step)
            self._writer.add_text("configuration", f"```\n{self._description}\n```", step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # A killed process must not take the steps before its last checkpoint with it.
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Memory:
    """Which run of a tracker a training logs to, and its last step, kept on disk.

    Args:
        folder: the tracker's own folder; who deletes it begins a new run.
        key: what the run depends on; with another key there is nothing to remember.
    """

    def __init__(self, folder: Path, key: str):
        self._path, self._steps, self._key = folder / "run.json", folder / "run.step", key
        self.run, self.last_step = "", -1
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(self._path.read_text())
            if record["key"] == key:
                self.run, self.last_step = record["run"], int(self._steps.read_text())

    def begin(self, run: str) -> None:
        self.run, self.last_step = run, -1
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._steps.write_text(str(-1).zfill(_STEP_DIGITS))
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps({"key": self._key, "run": run}))

    def reach(self, step: int) -> None:
        self.last_step = step
        # Always as many digits, in place: no moment at which the file holds less than a number.
        with open(self._steps, "r+") as file:
            file.write(str(step).zfill(_STEP_DIGITS))


class _WeightsAndBiases:
    def __init__(self, folder: Path, run_name: str, parameters: dict):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        # The library names its folder so itself, and takes another place if it is not there.
        own = folder / "wandb"
        own.mkdir(parents=True, exist_ok=True)
        self._memory = _Memory(own, hash_values(parameters, source_hash(), mode))
        if not self._memory.run:
            self._memory.begin(uuid.uuid4().hex[:16])
        self._last_step, self._unsettled = self._memory.last_step, deque[tuple[float, int]]()
        flushing = "x_transaction_log_flush_interval"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run_name,
            id=self._memory.run,
            resume="allow",
            reinit="create_new",
            dir=str(folder),
            mode=mode,
            config=parameters,
            # Nothing of the machine, the code or what is printed.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                disable_job_creation=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
                **({flushing: _FLUSH_SECONDS} if flushing in wandb.Settings.model_fields else {}),
            ),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        if step <= self._last_step:
            return
        self._run.log(values, step=step, commit=True)
        self._last_step = step
        now = time.monotonic()
        self._unsettled.append((now, step))
        # Only what is surely on disk is skipped after a kill: a step twice with the same values is better than none.
        while self._unsettled[0][0] < now - _SETTLED_SECONDS:
            self._memory.reach(self._unsettled.popleft()[1])

    def close(self) -> None:
        self._run.finish()
        self._memory.reach(self._last_step)


class _MLflow:
    def __init__(self, folder: Path, run_name: str, parameters: dict):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that is down must not hold a training up for the quarter of an hour that is the default.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        own = folder / "mlflow"
        own.mkdir(parents=True, exist_ok=True)
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client = MlflowClient(tracking_uri=given or f"sqlite:///{own / 'mlflow.db'}")
        self._metric = Metric
        self._memory = _Memory(own, hash_values(parameters, source_hash(), given))
        if self._memory.run:
            self._client.update_run(self._memory.run, status="RUNNING")
        else:
            self._begin(run_name, parameters, None if given else (own / "artifacts").as_uri())

    def _begin(self, run_name: str, parameters: dict, artifacts: str | None) -> None:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(_PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(_PROJECT, artifacts)
        run = self._client.create_run(number, run_name=run_name).info.run_id
        flat = [Param(name, str(value)) for name, value in _flatten(parameters).items()]
        for start in range(0, len(flat), _PARAMETERS_A_BATCH):
            self._client.log_batch(run, params=flat[start : start + _PARAMETERS_A_BATCH])
        self._memory.begin(run)

    def write(self, step: int, values: dict[str, float]) -> None:
        if step > self._memory.last_step:
            now = int(time.time() * 1000)
            metrics = [self._metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._memory.run, metrics=metrics)
            self._memory.reach(step)

    def close(self) -> None:
        self._client.set_terminated(self._memory.run)


def _flatten(values: Mapping, before: str = "") -> dict[str, object]:
    """``{"curator": {"cap": 10}}`` to ``{"curator.cap": 10}``."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


_BACKENDS = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases, "mlflow": _MLflow}
