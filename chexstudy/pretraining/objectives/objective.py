"""What a training step is: the contract between an objective and the trainer, which knows nothing else of it."""

from abc import ABC, abstractmethod
from collections.abc import Sized
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.devices import choose_autocast
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.loading import StallMeter
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.runs import Run


class Examples(Sized):
    """What is trained on, by row number."""

    image_ids: np.ndarray  # ``(rows,)``
    table: pd.DataFrame  # their rows of the cohort


class Objective(ABC):
    """A model, what it learns from, and how. Rows are those of the whole batch, the same in every process."""

    examples: Examples
    model: nn.Module  # everything that learns
    width: int  # of the features that a curator sees
    stall: StallMeter  # how long the device waited for its input
    flops: float = 0.0  # operations spent so far by this process
    steps: int = 1  # of the whole training
    prepared: dict[str, float]  # ``flops`` and ``seconds`` of all processes that were spent before the first step

    def __init__(
        self,
        run: Run,
        cohort: pd.DataFrame,
        config: PretrainingConfig,
        streams: RandomStreams,
        device: torch.device,
        processes: Processes,
    ):
        """An objective of a study, whose cohort and pixels must be there."""
        self._run, self._config, self._streams = run, config, streams
        self._device, self._processes = device, processes
        self._store, self._autocast = open_pixel_store(run), choose_autocast(config.precision, device)
        self.stall, self.prepared = StallMeter(), {"flops": 0.0, "seconds": 0.0}
        self._build(cohort, streams.draw_seed("initialisation"))

    @abstractmethod
    def _build(self, cohort: pd.DataFrame, seed: int) -> None:
        """Make the model, by a seed, and the examples."""

    @abstractmethod
    def parameter_groups(self) -> list[dict]:
        """What the optimiser is told: ``params``, ``weight_decay`` and the like."""

    @abstractmethod
    def embed(self, rows: np.ndarray, size: int | None = None) -> tuple[Tensor, ...]:
        """What the model makes of rows, ``(rows, ...)`` each, without gradient; ``size`` is the side of the images."""

    @abstractmethod
    def join(self, embedded: tuple[Tensor, ...]) -> Tensor:
        """What a curator sees of it: unit-norm features ``(rows, width)``."""

    @abstractmethod
    def backward(
        self, rows: np.ndarray, step: int, embedded: tuple[Tensor, ...] | None = None, weights: np.ndarray | None = None
    ) -> dict[str, float]:
        """Set the gradient of a step, whatever the processes and the memory; none where there is nothing to learn.

        By its number everything random is drawn. ``embedded`` is what `embed` gives for these rows under the present
        parameters, if it is known; each row counts by its weight in the loss ``(rows,)``, or once. Gives numbers for
        the history, the ``loss`` among them.
        """

    @abstractmethod
    def count_step(self, rows: np.ndarray) -> float:
        """Operations that `backward` would spend on rows in all processes, without spending them."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained model as others read it. Nothing is trained afterwards."""

    def plan(self, steps: int) -> None:
        """Be told how many steps the training has, before the first of them."""
        self.steps = max(steps, 1)

    def set_constants(self, groups: list[dict], step: int, learning_rate: float) -> float:
        """Set what the optimiser's groups are trained with at a step, from the learning rate of the trainer's own
        schedule; gives the one for the history.
        """
        for group in groups:
            group["lr"] = learning_rate
        return learning_rate

    def finish_step(self, step: int) -> dict[str, float]:
        """What follows the optimiser's step, such as a moving average of the weights; numbers for the history."""
        return {}

    def finish_epoch(self, epochs: int, steps: int) -> dict[str, float]:
        """What is measured after so many epochs and steps; numbers for the last step of the history."""
        return {}

    def find_fault(self, history: list[dict]) -> str:
        """Why the training cannot go on after the last step of its history, and how to mend it; empty if it can."""
        last = history[-1]
        if np.isfinite(last["loss"]):
            return ""
        return f"the loss became {last['loss']} at step {last['step']}: lower learning_rate or use precision fp32"

    def judge(self, history: list[dict]) -> str:
        """How the training stands by its history, in words; empty where the loss says it all."""
        return ""

    def describe(self) -> dict:
        """How it was computed, as plain values."""
        return {"precision": str(self._autocast or torch.float32).removeprefix("torch.")}

    def state(self) -> dict:
        """Everything to go on from, as tensors and plain values."""
        return {"model": self.model.state_dict()}

    def restore(self, state: dict) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
