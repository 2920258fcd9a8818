"""Train one arm of the study: warm up, curate, train on the subset; or train on everything.

    python -m chexstudy.pretraining.engine --study demo --arm curated --seed 0 --config arm.json

The curation epoch takes super-batches: score without gradient, let the curator choose, train on the chosen pairs only,
then move the prototypes by the features from before the step (CheXficient; the published code computes the gradient for
all pairs and throws most of it away). After each epoch everything needed to go on is on disk, and all chance is drawn
from named streams, so a killed run ends with the weights of one that was not.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chexstudy.cohort.pixels import PixelStore, open_pixel_store
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix, read_cohort
from chexstudy.curation.curators import (
    Curator,
    RandomCurator,
    ScoringCurator,
    SubsetCurator,
    build_curator,
    select_label_balanced,
)
from chexstudy.curation.doubt import review_list, score_doubt, split_features
from chexstudy.curation.ledger import LedgerWriter, ledger_rows, read_ledger
from chexstudy.curation.prototypes import balanced_assignment, join_features, prototype_spread
from chexstudy.encoders import autocast_dtype
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms import (
    ARMS,
    JOB_DONE,
    Arm,
    arm_folder,
    choice_cost_artifact,
    find_arm,
    subset_artifact,
)
from chexstudy.pretraining.checkpoint import load_checkpoint, save_checkpoint
from chexstudy.pretraining.compute import peak_memory_bytes, reset_peak_memory
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.model import ImageTextModel, build_model, save_model
from chexstudy.pretraining.pairs import TrainingPairs
from chexstudy.pretraining.schedule import LearningRate
from chexstudy.pretraining.steps import PairEncoder, StepStatistics
from chexstudy.pretraining.streams import stream_generator, stream_seed
from chexstudy.runs import Run

_CHECKPOINT = "checkpoint.pt"
_MADE_BY = "04_pretrain_curated"
_AFTER_WARM_UP = (
    *("curator", "curation_epochs", "curation_learning_rate", "subset_epochs", "super_batch"),
    *("min_learning_rate", "schedule"),
)


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs of one kind.

    Attributes:
        name: ``warm_up``, ``curate``, ``subset`` or ``full``.
        epochs: how many.
        steps: stop after so many steps, 0 for all.
    """

    name: str
    epochs: int
    steps: int = 0


class Trainer:
    """The state of one arm and the loop over its phases.

    Args:
        config: every constant.
        arm: which pairs, and how long.
        seed: the arm's seed.
        model: the image-text model, on ``device``.
        pairs: the training pairs.
        device: where to train.
    """

    def __init__(
        self,
        config: PretrainingConfig,
        arm: Arm,
        seed: int,
        model: ImageTextModel,
        pairs: TrainingPairs,
        device: torch.device,
    ):
        self.config, self.arm, self.seed, self.model, self.pairs, self.device = config, arm, seed, model, pairs, device
        self.optimizer = torch.optim.AdamW(_parameter_groups(model, config), lr=config.learning_rate)
        autocast = {"auto": autocast_dtype(device), "fp32": None, "bf16": torch.bfloat16}[config.precision]
        self.encoder = PairEncoder(model, pairs, device, config.micro_batch, autocast)
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.pairs_scored = 0
        self.pairs_trained = 0
        self.history: list[dict] = []
        self.prototypes: list[Tensor] = []
        self.super_batches = 0
        self.curated_epochs = 0
        self.curator_state: dict | None = None
        self.subset: np.ndarray | None = None
        self.weights: np.ndarray | None = None

    # --- chance ---------------------------------------------------------------------------------------------------

    def _generator(self, stream: str, *position: int) -> torch.Generator:
        return stream_generator(self.seed, stream, *position, fixed_streams=self.config.fixed_streams)

    def _seed(self, stream: str, *position: int) -> int:
        return stream_seed(self.seed, stream, *position, fixed_streams=self.config.fixed_streams)

    def _shuffled(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return rows[torch.randperm(len(rows), generator=self._generator("order", epoch)).numpy()]

    # --- state ----------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Everything the run needs to go on after this epoch, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": [self.epoch, self.step, self.pairs_scored, self.pairs_trained],
            "curated": [self.curated_epochs, self.super_batches],
            "curator": self.curator_state,
            "costs": [self.seconds, self.encoder.flops],
            "history": self.history,
            "prototypes": self.prototypes,
            "subset": None if self.subset is None else torch.from_numpy(self.subset),
        }

    def restore(self, state: dict) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.pairs_scored, self.pairs_trained = state["counters"]
        self.curated_epochs, self.super_batches = state["curated"]
        self.curator_state = state["curator"]
        self.seconds, self.encoder.flops = state["costs"]
        self.history, self.prototypes = state["history"], state["prototypes"]
        self.subset = None if state["subset"] is None else state["subset"].numpy()

    # --- steps ----------------------------------------------------------------------------------------------------

    def _train_step(
        self,
        rows: np.ndarray,
        phase: str,
        rate: LearningRate,
        embedded: tuple[Tensor, Tensor] | None = None,
        considered: int = 0,
        scored: int = 0,
        probability: Tensor | None = None,
    ) -> None:
        self.model.train(self.config.dropout)
        if probability is None:
            probability = torch.full((1,), torch.nan)
        learning_rate = rate.at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self._clock():
            statistics = self._descend(rows, embedded)
        self.pairs_trained += len(rows)
        self.history.append(
            {
                "phase": phase,
                "epoch": self.epoch,
                "step": self.step,
                "loss": statistics.loss,
                "learning_rate": learning_rate,
                "logit_scale": self.model.bounded_logit_scale().item(),
                "pairs_scored": scored,
                "pairs_trained": len(rows),
                "keep_ratio": len(rows) / considered if considered else float("nan"),
                "matched_cosine": statistics.matched_cosine,
                "unmatched_cosine": statistics.unmatched_cosine,
                "prototype_spread": float(prototype_spread(self.prototypes[-1])) if self.prototypes else float("nan"),
                "usage": [],
                "assignment_min": float(probability.min()),
                "assignment_max": float(probability.max()),
                "flops": self.encoder.flops,
                "seconds": self.seconds,
            }
        )
        self.step += 1

    def _descend(self, rows: np.ndarray, embedded: tuple[Tensor, Tensor] | None) -> StepStatistics:
        if len(rows) < 2:
            # One pair has no negatives: its loss is zero and so is the gradient.
            return StepStatistics(0.0, float("nan"), float("nan"))
        if self.config.dropout:
            self.encoder.dropout_seed = lambda piece: self._seed("dropout", self.step, piece)
        self.optimizer.zero_grad(set_to_none=True)
        weights = None if self.weights is None else torch.from_numpy(self.weights[rows]).to(self.device)
        statistics = self.encoder.backward(rows, embedded, weights)
        self.encoder.dropout_seed = None
        if not np.isfinite(statistics.loss):
            raise StudyError(
                f"the loss of {self.arm.name} (seed {self.seed}) became {statistics.loss} at step {self.step}: "
                "lower learning_rate or use precision fp32; the last checkpoint is intact."
            )
        self.optimizer.step()
        return statistics

    def _embed(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        self.model.eval()
        return self.encoder.embed(rows)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Add the seconds of the block; a GPU works on after the call returns, so it is waited for."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - start

    def mean_flops_a_step(self, rows: np.ndarray, steps: int = 8) -> float:
        """Operations of a plain training step, counted on the first batches of the first epoch."""
        return float(np.mean([self.encoder.count_step(batch) for batch in self._batches(rows, epoch=0)[:steps]]))

    # --- epochs ---------------------------------------------------------------------------------------------------

    def _batches(self, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        # Batches of nearly equal size use every pair and leave no tiny, noisy last one.
        return np.array_split(self._shuffled(rows, epoch), _steps_an_epoch(rows, self.config.batch_size))

    def train_epoch(self, phase: Phase, rows: np.ndarray, rate: LearningRate) -> None:
        """One plain epoch over ``rows``, or less where the phase's steps run out."""
        taken = sum(entry["phase"] == phase.name for entry in self.history)
        for batch in self._batches(rows, self.epoch):
            if phase.steps and taken >= phase.steps:
                break
            self._train_step(batch, phase.name, rate)
            taken += 1
        self.epoch += 1

    def curate_epoch(
        self,
        curator: Curator | ScoringCurator,
        rate: LearningRate,
        record: Callable[[int, pd.DataFrame], None] | None = None,
    ) -> np.ndarray:
        """Score, choose and train, super-batch by super-batch; the last, smaller one too.

        Args:
            curator: says which pairs are trained on.
            rate: the learning rate.
            record: takes the ledger's rows of each super-batch; called only where the curator scores.

        Returns:
            The features of the pairs in the order of the ledger ``(pairs, 2 * dim)``, float16; empty where the curator
            does not score.
        """
        rows = self._shuffled(np.arange(len(self.pairs)), self.epoch)
        curator.begin_epoch(len(rows))
        features_seen, kept_rows = [], []
        for start in range(0, len(rows), self.config.super_batch):
            batch = rows[start : start + self.config.super_batch]
            if curator.scores:
                features, keep = self._curate_scored(curator, batch, rate, record)
                features_seen.append(features)
            else:
                # Curators that do not score draw on the CPU.
                generator = self._generator("selection", self.super_batches)
                kept, _ = curator.choose(self.super_batches, torch.from_numpy(batch), None, generator)
                keep = kept.numpy()
                self._train_step(batch[keep], "curate", rate, considered=len(batch))
            self.super_batches += 1
            kept_rows.append(batch[keep])
        self.subset = np.sort(np.concatenate(kept_rows))
        self.epoch += 1
        self.curated_epochs += 1
        if not curator.scores:
            return np.empty((0, 2 * self.config.dim), np.float16)
        self.curator_state = curator.state_dict()
        return np.concatenate(features_seen)

    def _curate_scored(
        self,
        curator: ScoringCurator,
        batch: np.ndarray,
        rate: LearningRate,
        record: Callable[[int, pd.DataFrame], None] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One super-batch of a curator that scores: features ``(batch, 2 * dim)``, float16, and the mask of kept."""
        constants = self.config.curator
        with self._clock():
            image, text = self._embed(batch)
            features = join_features(image, text)
            generator = self._generator("selection", self.super_batches)
            kept, selection = curator.choose(self.super_batches, torch.from_numpy(batch), features, generator)
            keep = kept.cpu().numpy()
            # A curator with a budget may keep nothing of a batch.
            probability = None
            if keep.any():
                probability = balanced_assignment(
                    features[kept], curator.prototypes, constants.sinkhorn_epsilon, constants.sinkhorn_iterations
                ).amax(dim=0)
            if constants.update_timing == "before_step":
                usage = curator.update(features, kept)
        if record is not None:
            record(self.super_batches, ledger_rows(self.pairs.image_ids[batch], self.epoch, self.step, selection))
        self.pairs_scored += len(batch)
        self._train_step(batch[keep], "curate", rate, (image[kept], text[kept]), len(batch), len(batch), probability)
        if constants.update_timing == "after_step":
            with self._clock():
                seen = batch if constants.update_features == "all" else batch[keep]
                moved = join_features(*self._embed(seen))
                usage = curator.update(moved, torch.ones(len(moved), dtype=torch.bool, device=moved.device))
            self.pairs_scored += len(seen)
        self.history[-1]["usage"] = [int(count) for count in usage]
        self.prototypes.append(curator.prototypes.cpu().clone())
        return features.half().cpu().numpy(), keep

    def warm_up_prototypes(self, curator: ScoringCurator) -> None:
        """Fit the first prototypes on the present model's embeddings."""
        config = self.config.curator
        rows = np.arange(len(self.pairs))
        if config.warm_up_order == "random":
            rows = torch.randperm(len(rows), generator=self._generator("subset")).numpy()
        rows = rows[: config.warm_up_pairs]
        with self._clock():
            curator.warm_up(join_features(*self._embed(rows)), torch.from_numpy(rows))
        self.pairs_scored += len(rows)
        self.prototypes = [curator.prototypes.cpu().clone()]


def _steps_an_epoch(rows: np.ndarray, batch_size: int) -> int:
    return max(1, -(-len(rows) // batch_size))


def _parameter_groups(model: ImageTextModel, config: PretrainingConfig) -> list[dict]:
    """Weight decay is for matrices, and for the temperature where that is asked for (F12)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 or (p is model.logit_scale and config.decay_logit_scale)]
    chosen = {id(p) for p in decayed}
    others = [p for p in trained if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]


class _ArmRun:
    """One arm in its folder: what it depends on, where it stopped, what it leaves behind."""

    def __init__(self, run: Run, arm: Arm, seed: int, config: PretrainingConfig, device: torch.device):
        self.run, self.arm, self.seed, self.config, self.device = run, arm, seed, config, device
        self.folder = arm_folder(arm.name, seed)
        run.require("cohort.parquet", "01_build_cohort")
        run.require("pixels/manifest.json", "01_build_cohort")
        constants = config.to_dict()
        if arm.name == "warm_up":
            # What comes after the warm-up must not make it stale: studies that vary the curator share it.
            constants = {name: value for name, value in constants.items() if name not in _AFTER_WARM_UP}
        self.parameters = {"arm": arm.name, "seed": seed, "config": constants}
        manifest = run.read_json("pixels/manifest.json", "01_build_cohort")
        # What the pixels are, and not when their files were last touched.
        self.parameters["pixels"] = [manifest["size"], manifest["fit"]]
        self.inputs = ["cohort.parquet", "pixels/index.parquet"]
        for other in arm.needs(config):
            result = f"{arm_folder(other, seed)}/{'warm_up.pt' if other == 'warm_up' else 'subset.parquet'}"
            run.require(result, f"the arm {other!r} ({_MADE_BY})")
            self.inputs.append(result)
        if arm.method:
            run.require(subset_artifact(arm.method, seed), "08_compare_curators, or write the subset there,")
            self.inputs.append(subset_artifact(arm.method, seed))
        self.key = run.key(self.parameters, tuple(self.inputs))

    @property
    def done(self) -> bool:
        """Whether the arm is trained under this key and all that it leaves behind is still there."""
        files = ["history.parquet", "model/pretraining.json", "model/projections.safetensors"]
        files.append("warm_up.pt" if self.arm.name == "warm_up" else "subset.parquet")
        if self.arm.data == "curated":
            files += ["ledger.parquet", "features.npy", "prototypes.npy", "snapshots.parquet"]
            files += ["review.parquet"] if self.config.curator.outlier_policy == "review" else []
        here = all(self.run.has(f"{self.folder}/{file}") for file in files)
        return here and self.run.is_current(f"{self.folder}/compute.json", self.key)

    def train(self) -> None:
        reset_peak_memory(self.device)
        cohort = read_cohort(self.run.path("cohort.parquet"))
        store = open_pixel_store(self.run)
        model, pairs = self._prepare(cohort, store)
        trainer = Trainer(self.config, self.arm, self.seed, model, pairs, self.device)
        if self.arm.data == "subset":
            # Weights are read again from the subset and not kept in checkpoints.
            self._chosen_beforehand(trainer)
        checkpoint = self.run.path(f"{self.folder}/{_CHECKPOINT}")
        if checkpoint.exists() and (state := self._unfinished(checkpoint)) is not None:
            trainer.restore(state)
            print(f"{self._title}: goes on after epoch {trainer.epoch}", flush=True)
        else:
            if self.config.warm_up_epochs and "warm_up" in self.arm.needs(self.config):
                warm_up = self.run.path(f"{arm_folder('warm_up', self.seed)}/warm_up.pt")
                trainer.restore(load_checkpoint(warm_up, _warm_up_key(self.run, self.seed, self.config)))
            self._charge_choice(trainer)
        if self.arm.name == "warm_up":
            self._train_warm_up(trainer, checkpoint)
        elif self.arm.data == "all":
            self._train_on_everything(trainer, checkpoint)
        else:
            self._curate_and_train(trainer, checkpoint)
        self._finish(trainer, checkpoint)

    def _unfinished(self, checkpoint: Path) -> dict | None:
        try:
            return load_checkpoint(checkpoint, self.key)
        except StudyError as error:
            # A checkpoint of an older configuration is simply out of date; the arm starts anew.
            print(f"{self._title}: starts anew ({error})", flush=True)
            return None

    @property
    def _title(self) -> str:
        return f"{self.arm.name} (seed {self.seed})"

    def _prepare(self, cohort: pd.DataFrame, store: PixelStore) -> tuple[ImageTextModel, TrainingPairs]:
        model = build_model(
            self.config,
            cohort[cohort.split == "train"],
            stream_seed(self.seed, "initialisation", fixed_streams=self.config.fixed_streams),
        ).to(self.device)
        return model, TrainingPairs(cohort, store, model.text_tower.tokenize)

    # --- the three kinds of training --------------------------------------------------------------------------------

    def _rate(self, fall_from: float, fall_to: float) -> LearningRate:
        config = self.config
        return LearningRate(config.learning_rate, config.min_learning_rate, config.ramp_steps, fall_from, fall_to)

    def _published_rate(self, steps_an_epoch: int) -> LearningRate:
        config = self.config
        length = config.total_epochs * steps_an_epoch
        return LearningRate(
            config.learning_rate, config.min_learning_rate, config.ramp_steps, 0, length, overshoots=True
        )

    def _save(self, trainer: Trainer, checkpoint: Path) -> None:
        save_checkpoint(checkpoint, self.key, trainer.state())
        last = trainer.history[-1]
        print(
            f"{self._title}: {last['phase']}, epoch {trainer.epoch}, loss {last['loss']:.3f}, {trainer.seconds:.0f} s",
            flush=True,
        )

    def _train_warm_up(self, trainer: Trainer, checkpoint: Path) -> None:
        rows = np.arange(len(trainer.pairs))
        held = self._rate(np.inf, np.inf)
        while trainer.epoch < self.config.warm_up_epochs:
            trainer.train_epoch(Phase("warm_up", self.config.warm_up_epochs), rows, held)
            self._save(trainer, checkpoint)

    def _train_on_everything(self, trainer: Trainer, checkpoint: Path) -> None:
        config, rows = self.config, np.arange(len(trainer.pairs))
        steps_an_epoch = _steps_an_epoch(rows, config.batch_size)
        total = config.total_epochs * steps_an_epoch
        if self.arm.compute == "matched":
            budget = self.run.read_json(f"{arm_folder('curated', self.seed)}/compute.json", _MADE_BY)["flops"]
            total = max(1, round(budget / trainer.mean_flops_a_step(rows)))
        if config.schedule == "published":
            rate = self._published_rate(steps_an_epoch)
        else:
            # The peak is held for the same share of epochs as in the arms that curate.
            rate = self._rate(total * (1 - config.subset_epochs / config.total_epochs), total)
        phase = Phase("full", -(-total // steps_an_epoch), steps=total)
        while trainer.epoch < phase.epochs:
            trainer.train_epoch(phase, rows, rate)
            self._save(trainer, checkpoint)

    def _curate_and_train(self, trainer: Trainer, checkpoint: Path) -> None:
        config = self.config
        if trainer.curated_epochs < config.curation_epochs:
            self._curate(trainer, checkpoint)
        subset = trainer.subset
        steps_an_epoch = _steps_an_epoch(subset, config.batch_size)
        epochs, steps = config.subset_epochs, 0
        if self.arm.compute == "matched":
            budget = self.run.read_json(f"{arm_folder('curated', self.seed)}/compute.json", _MADE_BY)["flops"]
            spent = next(entry["flops"] for entry in reversed(trainer.history) if entry["phase"] != "subset")
            steps = max(1, round((budget - spent) / trainer.mean_flops_a_step(subset)))
            epochs = -(-steps // steps_an_epoch)
        curated_at = sum(entry["phase"] != "subset" for entry in trainer.history)
        if config.schedule == "published":
            rate = self._published_rate(steps_an_epoch)
        else:
            rate = self._rate(curated_at, curated_at + (steps or epochs * steps_an_epoch))
        while trainer.epoch < config.warm_up_epochs + config.curation_epochs + epochs:
            trainer.train_epoch(Phase("subset", epochs, steps), subset, rate)
            self._save(trainer, checkpoint)

    def _curate(self, trainer: Trainer, checkpoint: Path) -> None:
        config, count = self.config, len(trainer.pairs)
        if config.schedule == "published":
            rate = self._published_rate(-(-count // config.super_batch))
        else:
            rate = self._rate(np.inf, np.inf)
            if config.curation_learning_rate:
                rate = replace(rate, peak=config.curation_learning_rate)
        curator = self._curator(trainer)
        ledger = LedgerWriter(self._path("ledger.parquet"), trainer.super_batches) if curator.scores else None
        while trainer.curated_epochs < config.curation_epochs:
            features = trainer.curate_epoch(curator, rate, ledger.write if ledger else None)
            if ledger:
                self.run.write_array(self._features_part(trainer.curated_epochs - 1), features)
            if self.arm.data in ("oracle", "subset"):
                trainer.subset = curator.rows
            self._save(trainer, checkpoint)
        if ledger:
            ledger.finish()
            parts = [self._features_part(epoch) for epoch in range(config.curation_epochs)]
            features = [self.run.read_array(part, _MADE_BY, memory_map=True) for part in parts]
            self.run.write_array(f"{self.folder}/features.npy", np.concatenate(features))
            # A list from an earlier configuration must not outlive it.
            self._path("review.parquet").unlink(missing_ok=True)
            if config.curator.outlier_policy == "review":
                last = read_ledger(self._path("ledger.parquet"))
                last = last[last.epoch == last.epoch.max()]
                doubt = score_doubt(*split_features(features[-1]))
                self.run.write_table(f"{self.folder}/review.parquet", review_list(last, doubt))
            for part in parts:
                self.run.path(part).unlink()

    def _path(self, name: str) -> Path:
        return self.run.path(f"{self.folder}/{name}")

    def _features_part(self, epoch: int) -> str:
        return f"{self.folder}/features-{epoch:03d}.npy"

    def _curator(self, trainer: Trainer) -> Curator | ScoringCurator:
        if self.arm.data == "curated":
            curator = build_curator(self.config.curator)
            if trainer.curator_state is None:
                trainer.warm_up_prototypes(curator)
            else:
                curator.load_state_dict(trainer.curator_state)
            return curator
        if self.arm.data == "random":
            ledger = read_ledger(self.run, "curated", self.seed, columns=["step", "kept"])
            return RandomCurator(ledger.groupby("step").kept.sum().sort_index().tolist())
        if self.arm.data == "subset":
            return self._chosen_beforehand(trainer)
        findings = [name for name in finding_columns(trainer.pairs.table) if name != NO_FINDING]
        count = len(self.run.read_table(f"{arm_folder('curated', self.seed)}/subset.parquet", _MADE_BY))
        labels = label_matrix(trainer.pairs.table, findings)
        return SubsetCurator(select_label_balanced(labels, count, trainer._generator("subset")))

    def _chosen_beforehand(self, trainer: Trainer) -> SubsetCurator:
        name = subset_artifact(self.arm.method, self.seed)
        subset = self.run.read_table(name, _MADE_BY)
        places = pd.Index(trainer.pairs.image_ids).get_indexer(subset.image_id)
        if (places < 0).any():
            raise StudyError(
                f"{name} names {int((places < 0).sum())} images that are no training pairs of study "
                f"{self.run.study!r}: choose the subset from its training split."
            )
        if not (subset.weight == 1).all():
            trainer.weights = np.ones(len(trainer.pairs), np.float32)
            trainer.weights[places] = subset.weight
        return SubsetCurator(np.sort(places))

    def _charge_choice(self, trainer: Trainer) -> None:
        """Charge a subset chosen beforehand with what choosing it took, where its method left that beside it."""
        cost = choice_cost_artifact(self.arm.method, self.seed)
        if self.arm.data == "subset" and self.run.has(cost):
            spent = self.run.read_json(cost, _MADE_BY)
            trainer.encoder.flops += spent["flops"]
            trainer.seconds += spent["seconds"]
            trainer.pairs_scored += spent["pairs_scored"]

    # --- what is left behind ----------------------------------------------------------------------------------------

    def _finish(self, trainer: Trainer, checkpoint: Path) -> None:
        run, folder = self.run, self.folder
        history = pd.DataFrame(trainer.history)
        run.write_table(f"{folder}/history.parquet", history)
        if trainer.prototypes:
            run.write_array(f"{folder}/prototypes.npy", torch.stack(trainer.prototypes).numpy())
            steps = history.loc[history.phase == "curate", "step"]
            first = int(steps.iloc[0])
            run.write_table(
                f"{folder}/snapshots.parquet",
                pd.DataFrame({"snapshot": range(len(steps) + 1), "step": [first, *(steps + 1)], "phase": "curate"}),
            )
        if self.arm.name == "warm_up":
            save_checkpoint(run.path(f"{folder}/warm_up.pt"), self.key, trainer.state())
        else:
            rows = trainer.subset if trainer.subset is not None else np.arange(len(trainer.pairs))
            run.write_table(
                f"{folder}/subset.parquet", pd.DataFrame({"image_id": trainer.pairs.image_ids[rows], "weight": 1.0})
            )
        save_model(run.path(f"{folder}/model"), trainer.model, self.config)
        by_phase = history.groupby("phase", sort=False).agg(
            steps=("step", "size"), pairs_scored=("pairs_scored", "sum"), pairs_trained=("pairs_trained", "sum")
        )
        compute = {
            "flops": trainer.encoder.flops,
            "seconds": trainer.seconds,
            "pairs_scored": trainer.pairs_scored,
            "pairs_trained": trainer.pairs_trained,
            "steps": trainer.step,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "precision": str(trainer.encoder.autocast or torch.float32).removeprefix("torch."),
            "by_phase": by_phase.to_dict("index"),
        }
        run.write_json(f"{folder}/compute.json", compute)
        run.record(f"{folder}/compute.json", self.parameters, tuple(self.inputs), self.seed)
        checkpoint.unlink(missing_ok=True)


def _warm_up_key(run: Run, seed: int, config: PretrainingConfig) -> str:
    return _ArmRun(run, ARMS["warm_up"], seed, config, torch.device("cpu")).key


def pretrain(run: Run, arm: str, seed: int, config: PretrainingConfig, device: str = "auto") -> dict:
    """Train one arm, or go on where it was killed, or return at once if it is done.

    Args:
        run: the study; cohort and pixels must be there.
        arm: a name that `find_arm` knows.
        seed: the arm's seed.
        config: every constant.
        device: ``auto``, ``cpu``, ``cuda`` ...

    Returns:
        What it cost, as in ``compute.json``.

    Raises:
        StudyError: the arm is unknown, something it needs is missing, the device is not there, or the loss diverged.
    """
    arm_run = _ArmRun(run, find_arm(arm), seed, config, choose_device(device))
    if not arm_run.done:
        threads = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            arm_run.train()
        finally:
            torch.set_num_threads(threads)
    return run.read_json(f"{arm_run.folder}/compute.json", _MADE_BY)


def is_trained(run: Run, arm: str, seed: int, config: PretrainingConfig) -> bool:
    """Whether `pretrain` would return at once.

    Raises:
        StudyError: the arm is unknown, or something it needs is missing.
    """
    return _ArmRun(run, find_arm(arm), seed, config, torch.device("cpu")).done


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        StudyError: the name is no device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StudyError(f"unknown device {name!r}: use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StudyError("device is cuda, but torch sees no CUDA device: use device=auto, or run `chexstudy doctor`.")
    return device


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train arms of a study, one after the other.")
    parser.add_argument("--study", required=True)
    parser.add_argument("--arm", help=f"one of {', '.join(ARMS)}; without it, lines `ARM SEED [CONFIG]` are read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="JSON file of constants; the defaults otherwise")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    # As an exception, so that a file half written is taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        values = json.loads(options.config.read_text()) if options.config else {}
        config, run = PretrainingConfig.from_dict(values), Run(options.study)
        if options.arm:
            pretrain(run, options.arm, options.seed, config, options.device)
            return 0
        for line in sys.stdin:
            arm, seed, *own = line.rstrip("\n").split(" ", maxsplit=2)
            constants = PretrainingConfig.from_dict(json.loads(Path(own[0]).read_text())) if own else config
            pretrain(run, arm, int(seed), constants, options.device)
            print(JOB_DONE, flush=True)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
