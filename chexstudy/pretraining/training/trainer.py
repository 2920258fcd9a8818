"""The training loop of one arm: plain epochs, and epochs in which a curator says what is trained on.

A curation epoch takes super-batches: score without gradient, let the curator choose, train on the chosen pairs only,
then move the prototypes by the features from before the step (CheXficient; the published code computes the gradient for
all pairs and throws most of it away). All chance is drawn from named streams by position in the training, never from a
random state that runs on. So `Trainer.state` after any step is all that is needed to go on to the same bits.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from chexstudy.curation.online.curators import Curator, ScoringCurator
from chexstudy.curation.online.decisions import ledger_rows
from chexstudy.curation.online.prototypes import balanced_assignment, prototype_spread
from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.engine.schedule import LearningRate
from chexstudy.pretraining.objectives.objective import Objective
from chexstudy.pretraining.training.curators import CurationRecords

# What a step of a curator that scores adds to the history.
_MEASURED = ("keep_ratio", "prototype_spread", "assignment_min", "assignment_max", "selection_overlap")


class Trainer:
    """The state of one arm and the loop over its epochs; ``name`` is what is trained, for sentences.

    Attributes:
        epoch: whole epochs done.
        batch: batches of the present epoch done, of ``batches``.
        step: steps of the optimiser done.
        flops: operations spent by all processes.
        seconds: spent on scoring, choosing and training.
        history: one entry a step.
        subset: rows that the last curation epoch kept, once it is over.
        weights: of all rows in the loss, or None.
        records: where a curator that scores writes its decisions; None in all processes but the first.
        after_step: called whenever the state is one that training can go on from.
    """

    def __init__(
        self,
        config: PretrainingConfig,
        name: str,
        streams: RandomStreams,
        objective: Objective,
        device: torch.device,
        processes: Processes,
    ):
        self.config, self.name, self.streams, self.objective = config, name, streams, objective
        self.device, self.processes = device, processes
        groups = objective.parameter_groups()
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=device.type == "cuda")
        self.epoch = self.batch = self.batches = self.step = 0
        self.curated_epochs = self.super_batches = 0
        self.pairs_scored = self.pairs_trained = 0
        self.flops = self.seconds = self.overlap_flops = 0.0
        self.history: list[dict] = []
        self.curator: ScoringCurator | None = None
        self.records: CurationRecords | None = None
        self.subset: np.ndarray | None = None
        self.weights: np.ndarray | None = None
        self.after_step: Callable[[], None] = lambda: None
        self._kept: list[np.ndarray] = []
        self._counted = 0.0

    def state(self) -> dict:
        """Everything the run needs to go on from here, as tensors and plain values."""
        return {
            "objective": self.objective.state(),
            "optimizer": self.optimizer.state_dict(),
            "position": [self.epoch, self.batch, self.step, self.curated_epochs, self.super_batches],
            "pairs": [self.pairs_scored, self.pairs_trained],
            "costs": [self.flops, self.seconds, self.overlap_flops],
            "history": self.history,
            "curator": None if self.curator is None else self.curator.state_dict(),
            "kept": [torch.from_numpy(rows) for rows in self._kept],
            "subset": None if self.subset is None else torch.from_numpy(self.subset),
        }

    def restore(self, state: dict) -> dict | None:
        """The inverse of `state`; returns that of the curator, if one was at work, for `start_curating`."""
        self.objective.restore(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.batch, self.step, self.curated_epochs, self.super_batches = state["position"]
        self.pairs_scored, self.pairs_trained = state["pairs"]
        self.flops, self.seconds, self.overlap_flops = state["costs"]
        self.history = state["history"]
        self._kept = [rows.numpy() for rows in state["kept"]]
        self.subset = None if state["subset"] is None else state["subset"].numpy()
        return state["curator"]

    def _train_step(
        self,
        rows: np.ndarray,
        phase: str,
        rate: LearningRate,
        embedded: tuple[Tensor, ...] | None = None,
        **measured: float,
    ) -> None:
        """Train on ``rows``; ``embedded`` is what the model makes of them, if it is known."""
        groups = self.optimizer.param_groups
        learning_rate = self.objective.set_constants(groups, self.step, rate.at(self.step))
        with self._clock():
            weights = None if self.weights is None else self.weights[rows]
            told = self.objective.backward(rows, self.step, embedded, weights)
            self.optimizer.step()
            told |= self.objective.finish_step(self.step)
        self.pairs_trained += len(rows)
        self.flops += self._count_spent()
        entry = {"phase": phase, "epoch": self.epoch, "step": self.step, "learning_rate": learning_rate}
        entry |= {"pairs_scored": 0, "pairs_trained": len(rows), "flops": self.flops, "seconds": self.seconds}
        self.history.append(entry | told | dict.fromkeys(_MEASURED, float("nan")) | {"usage": []} | measured)
        if fault := self.objective.find_fault(self.history):
            raise StudyError(f"{self.name}: {fault}; the last checkpoint is intact.")
        self.step += 1

    def _count_spent(self) -> float:
        """Operations of all processes since the last count."""
        (spent,) = self.processes.add_up([self.objective.flops - self._counted])
        self._counted = self.objective.flops
        return spent

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Add the seconds of the block; a GPU works on after the call returns, so it is waited for."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - start

    def mean_flops_a_step(self, rows: np.ndarray) -> float:
        """Operations of a training step, counted on the first batches of the first epoch."""
        return float(np.mean([self.objective.count_step(batch) for batch in self._batches(rows, epoch=0)[:8]]))

    def _shuffled(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return rows[torch.randperm(len(rows), generator=self.streams.generator("order", epoch)).numpy()]

    def _batches(self, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        # Batches of nearly equal size use every pair and leave no tiny, noisy last one.
        return np.array_split(self._shuffled(rows, epoch), count_steps(len(rows), self.config.batch_size))

    def train_epoch(self, phase: str, rows: np.ndarray, rate: LearningRate, most: int = 0) -> None:
        """One plain epoch over ``rows``, or what is left of it, or less where the ``most`` steps of the phase end."""
        taken = sum(entry["phase"] == phase for entry in self.history)
        batches = self._batches(rows, self.epoch)
        self.batches = len(batches)
        for batch in batches[self.batch :]:
            if most and taken >= most:
                break
            self._train_step(batch, phase, rate)
            taken += 1
            self.batch += 1
            self.after_step()
        self._end_epoch()

    def start_curating(self, curator: ScoringCurator, state: dict | None, records: CurationRecords | None) -> None:
        """Let a curator go on from its state, or fit its first prototypes on the present model's embeddings."""
        self.curator, self.records = curator, records
        if state is not None:
            curator.load_state_dict(_move(state, self.device))
            return
        config = self.config.curator
        rows = np.arange(len(self.objective.examples))
        if config.warm_up_order == "random":
            rows = torch.randperm(len(rows), generator=self.streams.generator("subset")).numpy()
        rows = rows[: config.warm_up_pairs]
        with self._clock():
            features = self.objective.join(self.objective.embed(rows, self.config.scoring_size or None))
            curator.warm_up(features, torch.from_numpy(rows))
        self.pairs_scored += len(rows)
        if records:
            records.prototypes.write(0, curator.prototypes.cpu().numpy()[None])

    def curate_epoch(self, curator: Curator, rate: LearningRate) -> None:
        """Score, choose and train, super-batch by super-batch, the last and smaller one too; or what is left of it.

        A curator that scores was given to `start_curating`.
        """
        rows = self._shuffled(np.arange(len(self.objective.examples)), self.epoch)
        if self.batch == 0:
            curator.begin_epoch(len(rows))
        starts = range(0, len(rows), self.config.super_batch)
        self.batches = len(starts)
        for start in starts[self.batch :]:
            batch = rows[start : start + self.config.super_batch]
            if curator.scores:
                kept = self._curate_scored(curator, batch, rate)
            else:
                # Curators that do not score draw on the CPU.
                generator = self.streams.generator("selection", self.super_batches)
                mask, _ = curator.choose(self.super_batches, torch.from_numpy(batch), None, generator)
                kept = batch[mask.numpy()]
                self._train_step(kept, "curate", rate, keep_ratio=len(kept) / len(batch))
            self._kept.append(kept)
            self.super_batches += 1
            self.batch += 1
            self.after_step()
        self.subset, self._kept = np.sort(np.concatenate(self._kept)), []
        self._end_epoch()
        self.curated_epochs += 1

    def _end_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.history[-1] |= self.objective.finish_epoch(self.epoch, self.step)

    def _curate_scored(self, curator: ScoringCurator, batch: np.ndarray, rate: LearningRate) -> np.ndarray:
        """One super-batch of a curator that scores; the rows that it keeps."""
        constants, size, objective = self.config.curator, self.config.scoring_size or None, self.objective
        records = self.records
        overlap = self._measure_overlap(curator, batch)
        with self._clock():
            embedded = objective.embed(batch, size)
            features = objective.join(embedded)
            generator = self.streams.generator("selection", self.super_batches)
            mask, selection = curator.choose(self.super_batches, torch.from_numpy(batch), features, generator)
            self.processes.require_agreement(mask)
            kept = batch[mask.cpu().numpy()]
            measured = {"selection_overlap": overlap(mask)}
            # A curator with a budget may keep nothing of a batch.
            if len(kept):
                probability = balanced_assignment(
                    features[mask], curator.prototypes, constants.sinkhorn_epsilon, constants.sinkhorn_iterations
                ).amax(dim=0)
                measured |= {"assignment_min": float(probability.min()), "assignment_max": float(probability.max())}
            measured["prototype_spread"] = float(prototype_spread(curator.prototypes.cpu()))
            if constants.update_timing == "before_step":
                usage = curator.update(features, mask)
        if records:
            table = ledger_rows(objective.examples.image_ids[batch], self.epoch, self.step, selection)
            records.ledger.write(self.super_batches, table)
            place = self.curated_epochs * len(objective.examples) + self.batch * self.config.super_batch
            records.features.write(place, features.half().cpu().numpy())
        self.pairs_scored += len(batch)
        # Scores at another size are no embeddings to train on.
        known = None if size else tuple(side[mask] for side in embedded)
        self._train_step(
            kept, "curate", rate, known, keep_ratio=len(kept) / len(batch), pairs_scored=len(batch), **measured
        )
        if constants.update_timing == "after_step":
            with self._clock():
                seen = batch if constants.update_features == "all" else kept
                moved = objective.join(objective.embed(seen, size))
                usage = curator.update(moved, torch.ones(len(moved), dtype=torch.bool, device=moved.device))
            self.pairs_scored += len(seen)
        self.history[-1]["usage"] = [int(count) for count in usage]
        if records:
            records.prototypes.write(self.super_batches + 1, curator.prototypes.cpu().numpy()[None])
        return kept

    def _measure_overlap(self, curator: ScoringCurator, batch: np.ndarray) -> Callable[[Tensor], float]:
        """How far a selection agrees with that of scores at full size (Jaccard), now and then; else not a number.

        The curator that judges the full-size scores is a copy: the measurement leaves no trace but its cost, which is
        counted apart.
        """
        if not self.config.scoring_size or self.super_batches % self.config.overlap_every:
            return lambda mask: float("nan")
        self.flops += self._count_spent()
        judge, generator = copy.deepcopy(curator), self.streams.generator("selection", self.super_batches)
        features = self.objective.join(self.objective.embed(batch))
        full_size, _ = judge.choose(self.super_batches, torch.from_numpy(batch), features, generator)
        self.overlap_flops += self._count_spent()
        return lambda mask: float((mask & full_size).sum() / (mask | full_size).sum().clamp(min=1))


def _move(state: object, device: torch.device) -> object:
    if isinstance(state, dict):
        return {name: _move(value, device) for name, value in state.items()}
    return state.to(device) if isinstance(state, Tensor) else state


def count_steps(rows: int, batch_size: int) -> int:
    """Steps of one epoch over so many rows."""
    return max(1, -(-rows // batch_size))
