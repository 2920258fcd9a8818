"""The arms of the study: which pairs each is trained on, and how long. All go through the same engine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.runs import Run


@dataclass(frozen=True)
class Arm:
    """One way to spend data and compute.

    Attributes:
        name: as in the results table.
        data: ``curated``, ``random``, ``oracle`` or ``all``.
        compute: ``epochs`` (as many as configured) or ``matched`` (as many operations as the curated arm spent).
        explanation: one sentence for captions.
    """

    name: str
    data: str
    compute: str
    explanation: str

    def needs(self, config: PretrainingConfig) -> list[str]:
        """Arms of the same seed that must be finished before this one."""
        if self.name == "warm_up":
            return []
        needed = []
        if self.data != "all" and config.warm_up_epochs:
            needed.append("warm_up")
        if self.data in ("random", "oracle") or self.compute == "matched":
            needed.append("curated")
        return needed


ARMS = {
    arm.name: arm
    for arm in (
        Arm("warm_up", "all", "epochs", "The epochs before curation, shared by the arms that start with them."),
        Arm("curated", "curated", "epochs", "The published curator chooses; then epochs over what it kept."),
        Arm(
            "random_same_data", "random", "epochs", "As curated, but as many pairs of each super-batch drawn at random."
        ),
        Arm("random_same_compute", "all", "matched", "Random batches of all pairs until the curated arm's operations."),
        Arm("full", "all", "epochs", "All pairs in every epoch."),
        Arm("oracle_balanced", "oracle", "epochs", "As curated, but a subset balanced by the true labels."),
    )
}


def arm_folder(arm: str, seed: int) -> str:
    """Where an arm's artifacts lie within a run."""
    return f"pretraining/{arm}/seed{seed}"


def train_arms(
    run: Run,
    arms: Iterable[str],
    seeds: Iterable[int],
    config: PretrainingConfig,
    device: str = "auto",
    workers: int = 1,
) -> None:
    """Train arms over seeds, each in a process of its own, several side by side; finished ones are skipped.

    On a CPU the cores are shared out among the workers: two jobs of one thread do more than one job of two.

    Args:
        run: the study.
        arms: names of `ARMS`; what they need is trained too.
        seeds: one training each.
        config: every constant.
        device: see `chexstudy.pretraining.engine.pretrain`.
        workers: processes at a time; use 1 on a GPU.

    Raises:
        StudyError: an arm is unknown or fails; what is finished is kept.
    """
    jobs = _plan(list(arms), list(seeds), config)
    threads = max(1, (os.cpu_count() or 1) // workers)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        settings = Path(folder) / "config.json"
        settings.write_text(json.dumps(config.to_dict()))
        finished: set[tuple[str, int]] = set()
        running: dict[Future, tuple[str, int]] = {}
        waiting = list(jobs)
        while waiting or running:
            for job in [job for job in waiting if jobs[job] <= finished][: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(_train_in_process, run, *job, settings, device, threads)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                try:
                    future.result()
                except StudyError:
                    waiting.clear()
                    for other in running:
                        other.cancel()
                    raise
                finished.add(job)


def _plan(arms: list[str], seeds: list[int], config: PretrainingConfig) -> dict[tuple[str, int], set]:
    """Jobs with what each waits for, the long ones first so that the workers end together."""
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise StudyError(
            f"unknown arm {unknown[0]!r}; there are {', '.join(name for name in ARMS if name != 'warm_up')}."
        )
    wanted = list(dict.fromkeys([*(other for arm in arms for other in ARMS[arm].needs(config)), *arms]))
    priority = ["warm_up", "curated", "full", "random_same_compute", "random_same_data", "oracle_balanced"]
    wanted.sort(key=priority.index)
    return {(arm, seed): {(other, seed) for other in ARMS[arm].needs(config)} for arm in wanted for seed in seeds}


def _train_in_process(run: Run, arm: str, seed: int, settings: Path, device: str, threads: int) -> None:
    command = [sys.executable, "-m", "chexstudy.pretraining.engine", "--study", run.study, "--arm", arm]
    command += ["--seed", str(seed), "--config", str(settings), "--device", device, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CHEXSTUDY_HOME": str(paths.home())}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=paths.home()
    )
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
        errors = process.stderr.read()
        code = process.wait()
    except BaseException:
        process.kill()
        raise
    if code:
        last = errors.strip().splitlines()[-1] if errors.strip() else f"it ended with code {code}"
        raise StudyError(last if code == 2 else f"arm {arm!r} (seed {seed}) failed: {last}")
