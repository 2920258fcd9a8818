"""A training's history logged to TensorBoard as it grows. Weights & Biases reads it: ``wandb sync --sync-tensorboard``.

Off by default. What is written is numbers and the configuration, in the arm's own folder. A tracker that fails is
dropped with one sentence; the training goes on and is the same.
"""

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path

from chexstudy.errors import StudyError


class Tracker:
    """Where the rows of a history are logged; made by `open_tracker`.

    ``make_writer`` goes from the first step to TensorBoard's ``SummaryWriter``; without, nothing is logged.
    """

    def __init__(self, make_writer=None):
        self._make_writer, self._writer = make_writer, None

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Log a row of the history. Values that are no finite numbers are left out. Never raises."""
        if self._make_writer is None:
            return
        try:
            if self._writer is None:
                self._writer = self._make_writer(int(step))
            for name, value in values.items():
                if isinstance(value, numbers.Real) and math.isfinite(value):
                    self._writer.add_scalar(name, float(value), int(step))
            # A killed process must not take the steps before its last checkpoint with it.
            self._writer.flush()
        except Exception as error:
            _say_stopped(error)
            self.close(says=False)

    def close(self, says: bool = True) -> None:
        """Write what is still held back and let go. May be called twice. Never raises."""
        writer, self._make_writer, self._writer = self._writer, None, None
        try:
            if writer is not None:
                writer.close()
        except Exception as error:
            if says:
                _say_stopped(error)


def open_tracker(name: str, folder: Path, run_name: str, parameters: dict) -> Tracker:
    """A tracker for one training; a training that goes on logs on where it stopped, no step twice.

    ``name`` is ``tensorboard``, or empty for none; ``run_name`` is what the training is called.
    """
    if not name:
        return Tracker()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise StudyError(
            "TensorBoard is not installed: run `pip install tensorboard`, or leave tracker empty."
        ) from None
    description = json.dumps({"run": run_name, **parameters}, indent=2, default=str)

    def make_writer(step: int) -> SummaryWriter:
        # What an earlier process logged from here on is purged: that process was killed, and these steps come anew.
        writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step)
        writer.add_text("configuration", f"```\n{description}\n```", step)
        return writer

    return Tracker(make_writer)


def _say_stopped(error: Exception) -> None:
    # The message of a foreign error may hold a path; its type does not.
    reason = getattr(error, "strerror", None) or type(error).__name__
    print(f"TensorBoard stopped ({reason}): the training goes on, its history is kept as always.", flush=True)
