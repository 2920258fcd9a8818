"""Train one arm of the study in its folder: what it depends on, where it stopped, what it leaves behind.

    python -m chexstudy.pretraining.training.arm_run --study demo --arm curated --seed 0 --config arm.json
    torchrun --nproc_per_node=4 -m chexstudy.pretraining.training.arm_run --study demo --arm curated --config arm.json

Both are one path: one process is a group of one. Asked to stop (Ctrl-C, SIGTERM, or SIGUSR1 as Slurm can be told to
send it before it preempts a job), the arm finishes its step, writes a checkpoint and ends with exit code 75: start me
again.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chexstudy import paths
from chexstudy.children import end_with_parent
from chexstudy.code_closure import code_revision, hash_closure, name_computing_modules
from chexstudy.cohort.table import read_cohort
from chexstudy.curation.online.configuration import expected_fraction
from chexstudy.curation.quality.pair_mismatch import review_list, score_mismatch
from chexstudy.curation.records.ledger import read_scored_pairs
from chexstudy.devices import choose_device, use_threads
from chexstudy.encoders import upstream_encoders
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import (
    ARMS,
    Arm,
    arm_folder,
    choice_cost_artifact,
    find_arm,
    name_warm_up,
    subset_artifact,
)
from chexstudy.pretraining.arms.study_config import settle_config
from chexstudy.pretraining.arms.worker_pool import JOB_DONE
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from chexstudy.pretraining.engine.compute import peak_memory_bytes, reset_peak_memory
from chexstudy.pretraining.engine.distributed import Processes, open_processes
from chexstudy.pretraining.engine.energy import EnergyMeter
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.engine.schedule import LearningRate
from chexstudy.pretraining.engine.stop_requests import START_AGAIN, Stopped, StopRequests
from chexstudy.pretraining.engine.trackers import open_tracker
from chexstudy.pretraining.objectives.objective import Objective
from chexstudy.pretraining.self_supervision.configuration import WATCHING
from chexstudy.pretraining.training.curators import (
    RECORDS,
    choose_curator,
    configure_arm,
    find_lost_records,
    open_records,
    read_subset,
)
from chexstudy.pretraining.training.trainer import Trainer, count_steps
from chexstudy.runs import Run, forget_artifact, hash_artifact, hold_lock, seal_artifact
from chexstudy.steps import find_step
from chexstudy.workflow.identity import OBSERVATION
from chexstudy.workflow.locks import release_study
from chexstudy.workflow.unforeseen import tell_mistake, tell_unforeseen

# By module and name: what one of them computes does not depend on the code of the others.
OBJECTIVES = {
    "contrastive": "contrastive.ContrastiveObjective",
    "self_supervised": "self_supervised.SelfSupervisedObjective",
    "masked_language": "masked_language.MaskedLanguageObjective",
}
_SECONDS_BETWEEN_LINES = 30.0
_SUMMED_UP = ("phase", "step", "pairs_scored", "pairs_trained", "selection_overlap")
_AFTER_WARM_UP = (
    *("curator", "curation_epochs", "curation_learning_rate", "subset_epochs", "super_batch"),
    *("min_learning_rate", "schedule", "scoring_size", "overlap_every"),
)


class _ArmRun:
    def __init__(
        self,
        run: Run,
        arm: Arm,
        seed: int,
        config: PretrainingConfig,
        device: torch.device,
        processes: Processes | None = None,
        requests: StopRequests | None = None,
    ):
        self.run, self.arm, self.seed, self.device = run, arm, seed, device
        self.processes, self.requests = processes or Processes(), requests
        self.folder = arm_folder(arm.name, seed)
        run.require("cohort.parquet")
        run.require("pixels/manifest.json")
        self.inputs = ["cohort.parquet", "pixels/index.parquet"]
        for other in arm.needs(config):
            result = f"{arm_folder(other, seed)}/{'warm_up.pt' if find_arm(other).is_warm_up else 'subset.parquet'}"
            run.require(result)
            self.inputs.append(result)
        self.config = config = configure_arm(run, arm, seed, config)
        # What comes after the warm-up must not make it stale: studies that vary the curator share it.
        idle = {*OBSERVATION, *(_AFTER_WARM_UP if arm.is_warm_up else ())}
        constants = {name: value for name, value in config.to_dict().items() if name not in idle}
        of_images = constants.pop("self_supervision")
        if config.objective == "self_supervised":
            # What only watches a training can be changed while it goes on.
            constants["self_supervision"] = {name: one for name, one in of_images.items() if name not in WATCHING}
        manifest = run.read_json("pixels/manifest.json")
        # What the pixels are, and not when their files were last touched.
        pixels = [manifest["size"], manifest["fit"]]
        self.parameters = {"arm": arm.name, "seed": seed, "config": constants, "pixels": pixels}
        # An encoder on this disk counts by what is in it.
        named = {name for name in (config.image_encoder, config.text_encoder) if name and not name.startswith("tiny-")}
        places = {name: upstream_encoders.FOLDERS.get(name) or paths.resolve_user_path(name) for name in named}
        if arm.curates and (pair := config.curator.filter_pair):
            places[pair] = upstream_encoders.find_pair(pair)
        begun_with = {name: hash_artifact(place) for name, place in places.items() if place.exists()}
        self.parameters |= {"begun_with": begun_with} if begun_with else {}
        if arm.method:
            subset = subset_artifact(arm.method, seed)
            if not run.has(subset):
                where = f"run {find_step(subset)}, or write the subset there, first"
                raise StudyError(f"study {run.study!r} has no {subset} yet: {where}.")
            self.inputs.append(subset)
        self.build = find_objective(config.objective)
        self.code = (_ArmRun, self.build)
        self.key = run.key(self.parameters, tuple(self.inputs), self.code)
        # Other code makes a trained arm stale, but a training that was stopped goes on under it.
        self.data_key = run.data_key(self.parameters, tuple(self.inputs))
        self.checkpoints = Checkpoints(self._path("checkpoints"), self.data_key)
        self._saved_at = self._spoken_at = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether the arm is trained under this key and all that it leaves behind is still there, as it was written."""
        return self.run.is_current(f"{self.folder}/compute.json", self.key)

    @property
    def _files(self) -> tuple[str, ...]:
        """What the arm leaves behind beside its costs."""
        files = ["history.parquet", "model", "warm_up.pt" if self.arm.is_warm_up else "subset.parquet"]
        if self.arm.curates:
            files += [*RECORDS, "snapshots.parquet"]
            files += ["review.parquet"] if self.config.curator.outlier_policy == "review" else []
        return tuple(f"{self.folder}/{file}" for file in files)

    @property
    def _title(self) -> str:
        return f"{self.arm.name} (seed {self.seed})"

    def _path(self, name: str) -> Path:
        return self.run.path(f"{self.folder}/{name}")

    def _say(self, sentence: str) -> None:
        self._spoken_at = time.monotonic()
        if self.processes.first:
            print(f"{self._title}: {sentence}", flush=True)

    def train(self) -> None:
        reset_peak_memory(self.device)
        self._require_pairs_for_all_processes()
        config, streams = self.config, RandomStreams(self.seed, self.config.fixed_streams)
        cohort, together = read_cohort(self.run.path("cohort.parquet")), (self.device, self.processes)
        objective = self.build(self.run, cohort, config, streams, *together)
        self.trainer = Trainer(config, self._title, streams, objective, *together)
        if self.arm.data == "subset":
            # Weights are read again from the subset and not kept in checkpoints.
            read_subset(self.run, self.arm, self.seed, self.trainer)
        self._energy = EnergyMeter(self.device)
        self._energy.start()
        self._curator_state, self._spent = None, {"joules": 0.0, "memory": 0, "stall": 0.0}
        state, passed_over = self.checkpoints.load()
        if state is not None and (damage := self._find_lost_records(state)):
            state, passed_over = None, [*passed_over, damage]
        for sentence in passed_over:
            self._say(sentence)
        if state is None and passed_over:
            self._say("starts anew")
        # Everybody has read before the first process writes.
        self.processes.wait()
        if state is None:
            self._start()
            # A disk that is too small is better found out now than after the first hour.
            self._save()
        else:
            self._curator_state = self.trainer.restore(state["trainer"])
            self._spent = state["spent"]
            self._say(f"goes on after step {self.trainer.step} (epoch {self.trainer.epoch})")
            before, now = state["code"], self._name_code()
            if before["hash"] != now["hash"]:
                self._say(f"was begun with other code: revision {before['revision']}, now {now['revision']}")
        self.trainer.after_step = self._after_step
        tracker, name = config.tracker * self.processes.first, f"{self.run.study} {self.arm.name} seed {self.seed}"
        self._tracker = open_tracker(tracker, self._path("tracker"), name, self.parameters["config"])
        try:
            if self.arm.data == "all":
                self._train_on_everything()
            elif self.arm.data != "none":
                self._curate_and_train()
        finally:
            self._tracker.close()
        self._finish()
        self.processes.wait()

    def _require_pairs_for_all_processes(self) -> None:
        for name in ("batch_size", "super_batch"):
            if getattr(self.config, name) < self.processes.size:
                raise StudyError(
                    f"{name} ({getattr(self.config, name)}) must hold at least one pair for each of the "
                    f"{self.processes.size} processes: use fewer, or a larger {name}."
                )

    def _find_lost_records(self, state: dict) -> str:
        """Why curation cannot go on from a checkpoint although the checkpoint is whole; empty if it can."""
        *_, rounds, decided = state["trainer"]["position"]
        lost = ""
        if self.arm.curates and decided and self.processes.first:
            lost = find_lost_records(self.run, self.folder, self.config, rounds, decided)
        # What the first process has found, all of them know.
        (found,) = self.processes.add_up([float(bool(lost))])
        return lost or ("the records of curation are damaged." if found else "")

    def _start(self) -> None:
        trainer, config = self.trainer, self.config
        if self.processes.first and self._path("checkpoints").is_dir():
            shutil.rmtree(self._path("checkpoints"))
        name = name_warm_up(config)
        if name in self.arm.needs(config):
            warm_up = self.run.path(f"{arm_folder(name, self.seed)}/warm_up.pt")
            key = _ArmRun(self.run, find_arm(name), self.seed, config, self.device).data_key
            state = load_checkpoint(warm_up, key)
            trainer.restore(state["trainer"])
            self._spent = state["spent"]
        else:
            prepared = trainer.objective.prepared
            trainer.flops, trainer.seconds = prepared["flops"], prepared["seconds"]
        cost = choice_cost_artifact(self.arm.method, self.seed)
        if self.arm.data == "subset" and self.run.has(cost):
            # Choosing a subset beforehand is charged where its method left beside it what it took.
            spent = self.run.read_json(cost)
            trainer.flops += spent["flops"]
            trainer.seconds += spent["seconds"]
            trainer.pairs_scored += spent["pairs_scored"]

    def _after_step(self) -> None:
        entry, config = self.trainer.history[-1], self.config
        self._tracker.log(entry["step"], entry)
        now = time.monotonic()
        late = now - self._saved_at >= 60 * config.checkpoint_minutes
        asked = self.requests is not None and self.requests.asked
        # One process decides when it is time; whoever was asked to stop, all stop.
        late, asked = self.processes.add_up([float(late and self.processes.first), float(asked)])
        if late or asked:
            self._save()
        if asked:
            stopped = f"was asked to stop after step {self.trainer.step}"
            raise Stopped(f"{self._title} {stopped}: the same command goes on from there.")
        if now - self._spoken_at >= _SECONDS_BETWEEN_LINES:
            self._say(self._describe_pace())

    def _describe_pace(self) -> str:
        trainer, last = self.trainer, self.trainer.history[-1]
        seconds = [entry["seconds"] for entry in trainer.history if entry["epoch"] == last["epoch"]]
        left = ""
        if len(seconds) > 1:
            to_come = (seconds[-1] - seconds[0]) / (len(seconds) - 1) * (trainer.batches - trainer.batch)
            left = f", about {to_come:.0f} s left of this epoch"
        place = f"epoch {trainer.epoch}, batch {trainer.batch} of {trainer.batches}"
        return f"{last['phase']}, {place}, loss {last['loss']:.3f}{left}"

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self.trainer.records:
            self.trainer.records.flush()
        if self.processes.first:
            self.checkpoints.save(self.trainer.step, self._state())

    def _state(self) -> dict:
        # What this process and those before it, which it goes on from, have used of the machine.
        before, joules = self._spent, self._energy.read()
        spent = {
            "joules": None if joules is None or before["joules"] is None else before["joules"] + joules,
            "memory": max(before["memory"], peak_memory_bytes(self.device)),
            "stall": before["stall"] + self.trainer.objective.stall.seconds,
        }
        return {"trainer": self.trainer.state(), "spent": spent, "code": self._name_code()}

    def _name_code(self) -> dict[str, str]:
        """The revision of the checkout, and the hash of what of it computes the arm."""
        return {"revision": code_revision(), "hash": hash_closure(name_computing_modules(self.code, sys._getframe()))}

    def _end_epoch(self) -> None:
        self._save()
        last = self.trainer.history[-1]
        self._say(f"{last['phase']}, epoch {self.trainer.epoch}, loss {last['loss']:.3f}, {self.trainer.seconds:.0f} s")
        if verdict := self.trainer.objective.judge(self.trainer.history):
            self._say(verdict)

    def _rate(
        self, steps_an_epoch: int, fall_from: float = np.inf, fall_to: float = np.inf, peak: float = 0.0
    ) -> LearningRate:
        """The rate that falls between two steps, or the published one, by the length of the current loader."""
        config = self.config
        ends = config.min_learning_rate, config.ramp_steps
        if config.schedule == "published" and not self.arm.is_warm_up:
            length = config.total_epochs * steps_an_epoch
            return LearningRate(config.learning_rate, *ends, 0, length, overshoots=True)
        return LearningRate(peak or config.learning_rate, *ends, fall_from, fall_to)

    def _train_epochs(self, phase: str, last: int, rows: np.ndarray, rate: LearningRate, most: int = 0) -> None:
        while self.trainer.epoch < last:
            self.trainer.train_epoch(phase, rows, rate, most)
            self._end_epoch()

    def _plan_steps(self) -> None:
        """Tell the objective how many steps an arm that curates has, of those after curation what is expected."""
        config, rows = self.config, len(self.trainer.objective.examples)
        # A budget is one of the whole epoch, and may be a number of pairs beyond a super-batch.
        considered = rows if config.curator.rule == "budgeted" else config.super_batch
        kept = rows * float(expected_fraction(config.curator, [considered])[0])
        self.trainer.objective.plan(
            config.warm_up_epochs * count_steps(rows, config.batch_size)
            + config.curation_epochs * -(-rows // config.super_batch)
            + config.subset_epochs * max(1, round(kept / config.batch_size))
        )

    def _partner_flops(self) -> float:
        """Operations of the curated arm that this one is to match."""
        return self.run.read_json(f"{arm_folder(self.arm.partner, self.seed)}/compute.json")["flops"]

    def _train_on_everything(self) -> None:
        config, trainer = self.config, self.trainer
        rows = np.arange(len(trainer.objective.examples))
        steps_an_epoch = count_steps(len(rows), config.batch_size)
        if self.arm.is_warm_up:
            self._plan_steps()
            return self._train_epochs("warm_up", config.warm_up_epochs, rows, self._rate(steps_an_epoch))
        total = config.total_epochs * steps_an_epoch
        if self.arm.compute == "matched":
            total = max(1, round(self._partner_flops() / trainer.mean_flops_a_step(rows)))
        trainer.objective.plan(total)
        # The peak is held for the same share of epochs as in the arms that curate.
        rate = self._rate(steps_an_epoch, total * (1 - config.subset_epochs / config.total_epochs), total)
        return self._train_epochs("full", -(-total // steps_an_epoch), rows, rate, total)

    def _curate_and_train(self) -> None:
        config, trainer = self.config, self.trainer
        self._plan_steps()
        if trainer.curated_epochs < config.curation_epochs:
            self._curate()
        steps_an_epoch = count_steps(len(trainer.subset), config.batch_size)
        epochs, steps = config.subset_epochs, 0
        if self.arm.compute == "matched":
            spent = next(entry["flops"] for entry in reversed(trainer.history) if entry["phase"] != "subset")
            steps = max(1, round((self._partner_flops() - spent) / trainer.mean_flops_a_step(trainer.subset)))
            epochs = -(-steps // steps_an_epoch)
        curated_at = sum(entry["phase"] != "subset" for entry in trainer.history)
        rate = self._rate(steps_an_epoch, curated_at, curated_at + (steps or epochs * steps_an_epoch))
        trainer.objective.plan(curated_at + (steps or epochs * steps_an_epoch))
        last = config.warm_up_epochs + config.curation_epochs + epochs
        self._train_epochs("subset", last, trainer.subset, rate, steps)

    def _curate(self) -> None:
        config, trainer = self.config, self.trainer
        super_batches = count_steps(len(trainer.objective.examples), config.super_batch)
        rate = self._rate(super_batches, peak=config.curation_learning_rate)
        curator = choose_curator(self.run, self.arm, self.seed, trainer)
        if curator.scores:
            records = open_records(self._path(""), trainer) if self.processes.first else None
            trainer.start_curating(curator, self._curator_state, records)
        while trainer.curated_epochs < config.curation_epochs:
            trainer.curate_epoch(curator, rate)
            if self.arm.data in ("oracle", "subset"):
                trainer.subset = curator.rows
            if trainer.curated_epochs == config.curation_epochs:
                trainer.curator = None
                self._close_records()
            self._end_epoch()

    def _close_records(self) -> None:
        if self.trainer.records is None:
            return
        self.trainer.records.finish()
        self.trainer.records = None
        # A list from an earlier configuration must not outlive it.
        forget_artifact(self._path("review.parquet"))
        if self.config.curator.outlier_policy == "review":
            last = read_scored_pairs(self.run, self.arm.name, self.seed).in_last_epoch()
            review = review_list(last.ledger, score_mismatch(last.features))
            self.run.write_table(f"{self.folder}/review.parquet", review)

    def _finish(self) -> None:
        run, folder, trainer, state = self.run, self.folder, self.trainer, self._state()
        self._energy.stop()
        if not self.processes.first:
            return
        history = pd.DataFrame(trainer.history, columns=None if trainer.history else _SUMMED_UP)
        run.write_table(f"{folder}/history.parquet", history)
        if self.arm.curates:
            steps = history.loc[history.phase == "curate", "step"]
            places = {"snapshot": range(len(steps) + 1), "step": [int(steps.iloc[0]), *(steps + 1)], "phase": "curate"}
            run.write_table(f"{folder}/snapshots.parquet", pd.DataFrame(places))
        if self.arm.is_warm_up:
            save_checkpoint(run.path(f"{folder}/warm_up.pt"), self.data_key, state)
            seal_artifact(run.path(f"{folder}/warm_up.pt"))
        else:
            image_ids = trainer.objective.examples.image_ids
            kept = image_ids if trainer.subset is None else image_ids[trainer.subset]
            run.write_table(f"{folder}/subset.parquet", pd.DataFrame({"image_id": kept, "weight": 1.0}))
        trainer.objective.export(run.path(f"{folder}/model"))
        pairs = {name: (name, "sum") for name in ("pairs_scored", "pairs_trained")}
        by_phase = history.groupby("phase", sort=False).agg(steps=("step", "size"), **pairs)
        overlap = history.selection_overlap.mean()
        charged = ("flops", "seconds", "pairs_scored", "pairs_trained")
        compute = {name: getattr(trainer, name) for name in charged} | {
            "steps": trainer.step,
            "energy_joules": state["spent"]["joules"],
            "peak_memory_bytes": state["spent"]["memory"],
            "input_stall_seconds": state["spent"]["stall"],
            "selection_overlap": None if np.isnan(overlap) else float(overlap),
            "overlap_flops": trainer.overlap_flops,
            "device": str(self.device),
            "processes": self.processes.size,
            "threads": torch.get_num_threads(),
            "by_phase": by_phase.to_dict("index"),
        }
        compute |= trainer.objective.describe()
        run.write_json(f"{folder}/compute.json", compute)
        run.record(f"{folder}/compute.json", self.parameters, tuple(self.inputs), self.seed, self._files, self.code)
        self.checkpoints.clear()


def find_objective(name: str) -> Callable[..., Objective]:
    """What a training step is, by the constant ``objective``."""
    if name not in OBJECTIVES:
        raise StudyError(f"objective must be one of {', '.join(OBJECTIVES)}, not {name!r}.")
    module, _, of_module = OBJECTIVES[name].rpartition(".")
    return getattr(import_module(f"chexstudy.pretraining.objectives.{module}"), of_module)


def pretrain(
    run: Run,
    arm: str,
    seed: int,
    config: PretrainingConfig,
    device: str = "auto",
    processes: Processes | None = None,
    requests: StopRequests | None = None,
) -> dict:
    """Train one arm, or go on where it was stopped, or return at once if it is done; gives what it cost, as in
    ``compute.json``.

    ``processes`` are those that train together; ``requests`` tells when to stop.

    Raises:
        StudyError: the arm is unknown, something it needs is missing, the device is not there, the loss diverged, or
            memory or disk do not suffice; the last checkpoint is intact.
        Stopped: it was asked to stop, and has written a checkpoint.
    """
    processes = processes or Processes()
    rank = processes.local_rank if processes.size > 1 else None
    arm_run = _ArmRun(run, find_arm(arm), seed, config, choose_device(device, rank), processes, requests)
    if not arm_run.done:
        with _be_the_only_writer(arm_run):
            done = arm_run.done
            # Everybody has looked before the first process writes.
            processes.wait()
            if not done:
                with use_threads(config.threads), requests or nullcontext():
                    arm_run.train()
    return run.read_json(f"{arm_run.folder}/compute.json")


@contextmanager
def _be_the_only_writer(arm_run: _ArmRun) -> Iterator[None]:
    """Hold the arm's folder; the system lets go of it when the first process ends, killed or not."""
    processes, lock = arm_run.processes, arm_run.run.path(f"{arm_run.folder}/.lock")
    with hold_lock(lock) if processes.first else nullcontext(True) as is_held:
        if processes.add_up([float(not is_held)])[0]:
            raise StudyError(
                f"the arm {arm_run.arm.name!r} (seed {arm_run.seed}) of study {arm_run.run.study!r} is in training by "
                "another process: wait until that has ended, then the same command goes on from there."
            )
        yield


def is_trained(run: Run, arm: str, seed: int, config: PretrainingConfig) -> bool:
    """Whether `pretrain` would return at once."""
    return _ArmRun(run, find_arm(arm), seed, config, torch.device("cpu")).done


def _read_values(path: Path | None) -> dict:
    if path and not path.is_file():
        raise StudyError(f"there is no file {path}: --config takes a JSON file of constants.")
    try:
        values = json.loads(path.read_text()) if path else {}
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise StudyError(f"--config {path!s:.200} cannot be read ({reason}): give a JSON file of constants.") from None
    if not isinstance(values, dict) or not isinstance(values.get("curator", {}), dict):
        raise StudyError(f'--config {path} holds no constants by name: write {{"batch_size": 64}} or the like.')
    return values


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 0 when done, 1 for a mistake of ours, 2 for what a user can mend, 75: start again."""
    parser = argparse.ArgumentParser(description="Train arms of a study, one after the other.")
    parser.add_argument("--study", required=True)
    parser.add_argument("--arm", help=f"one of {', '.join(ARMS)}; without it, lines `ARM SEED [CONFIG]` are read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="JSON file of the constants that differ from the study's")
    change = {"action": "append", "default": [], "metavar": "NAME"}
    parser.add_argument("--change", **change, help="let a constant differ from the study's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    requests = StopRequests()
    end_with_parent()
    rank = 0
    try:
        with open_processes(options.device) as processes:
            rank = processes.rank
            given, run = _read_values(options.config), Run(options.study)
            change = [name for names in options.change for name in names.split(",")]
            if options.arm:
                config = settle_config(run, find_arm(options.arm), given, processes, change)
                pretrain(run, options.arm, options.seed, config, options.device, processes, requests)
                return 0
            if processes.size > 1:
                raise StudyError("several processes train one arm: give --arm.")
            for line in sys.stdin:
                arm, seed, *own = line.rstrip("\n").split(" ", maxsplit=2)
                own_values = _read_values(Path(own[0])) if own else given
                config = settle_config(run, find_arm(arm), own_values, processes, change)
                pretrain(run, arm, int(seed), config, options.device, processes, requests)
                print(JOB_DONE, flush=True)
    except Exception as stop:
        if options.debug:
            raise
        sentence = str(stop) if isinstance(stop, StudyError | Stopped) else tell_mistake(stop)
        status = START_AGAIN if isinstance(stop, Stopped) else 2 if sentence else 1
        sentence = sentence or tell_unforeseen(stop)
        print(sentence if rank == 0 else f"process {rank}: {sentence}", file=sys.stderr)
        return status
    finally:
        release_study()
    return 0


if __name__ == "__main__":
    sys.exit(main())
