"""Arms trained in worker processes, several side by side, each after those that it needs."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryFile

from chexstudy import paths
from chexstudy.children import temporary_folder
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import find_arm
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.progress import JobProgress
from chexstudy.runs import Run
from chexstudy.workflow.locks import hold_study
from chexstudy.workflow.warm import start_python

# A worker says so after each arm, on a line of its own.
JOB_DONE = "<arm finished>"
_SECONDS_TO_STOP = 10


def train_arms(
    run: Run,
    arms: Iterable[str],
    seeds: Iterable[int],
    config: PretrainingConfig,
    device: str = "auto",
    workers: int = 1,
    variants: Mapping[str, PretrainingConfig] | None = None,
) -> None:
    """Train arms over seeds in worker processes, several side by side; finished ones are skipped.

    What an arm needs is trained too. On a CPU two jobs of one thread do more than one job of two; on a GPU use one
    worker. The constants of arms ``NAME.VARIANT`` are those of ``variants``; of others, and of all other arms, they are
    ``config``.
    """
    if workers < 1:
        raise StudyError(f"the number of arms trained at once must be at least 1, not {workers}.")
    configs = {"": config} | dict(variants or {})
    jobs = _plan(list(arms), list(seeds), configs)
    print(f"{len(jobs)} trainings, {min(workers, len(jobs))} at a time; finished ones are skipped", flush=True)
    with (
        hold_study(run, "a training of arms"),
        closing(JobProgress(len(jobs), "training")) as shown,
        temporary_folder() as folder,
        ThreadPoolExecutor(workers) as pool,
    ):
        settings = {variant: folder / f"{variant or 'config'}.json" for variant in configs}
        for variant, path in settings.items():
            path.write_text(json.dumps(configs[variant].to_dict()))
        idle = [_Worker(run, settings[""], device, config.threads) for _ in range(workers)]
        every_worker = tuple(idle)
        finished: set[tuple[str, int]] = set()
        running: dict[Future, tuple[tuple[str, int], _Worker]] = {}
        waiting = list(jobs)
        try:
            while waiting or running:
                for job in [job for job in waiting if jobs[job] <= finished][: len(idle)]:
                    waiting.remove(job)
                    worker = idle.pop(0)
                    own = settings.get(find_arm(job[0]).variant, settings[""])
                    running[pool.submit(worker.train, *job, own, shown.tell)] = (job, worker)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job, worker = running.pop(future)
                    future.result()
                    finished.add(job)
                    shown.finish_job()
                    idle.insert(0, worker)
        finally:
            for worker in every_worker:
                worker.stop()


class _Worker:
    """A process that trains one arm after the other; started when the first one comes."""

    def __init__(self, run: Run, settings: Path, device: str, threads: int):
        self._arguments = ["--study", run.study, "--config", str(settings), "--device", device]
        own = {"OMP_NUM_THREADS": str(threads), "CHEXSTUDY_HOME": str(paths.home())}
        self._environment = {**os.environ, **own}
        self._process = None
        # A file and not a pipe: a pipe that nobody empties stops the process that fills it.
        self._errors = TemporaryFile("w+")  # noqa: SIM115

    def train(self, arm: str, seed: int, settings: Path, tell: Callable[[str], None]) -> None:
        if self._process is None:
            module, errors = "chexstudy.pretraining.training.arm_run", self._errors.fileno()
            self._process = start_python(module, self._arguments, self._environment, errors, paths.home(), piped=True)
        with suppress(BrokenPipeError):
            # It has ended already: below, it says why.
            self._process.stdin.write(f"{arm} {seed} {settings}\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.strip() == JOB_DONE:
                return
            tell(line.rstrip("\n"))
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        last = lines[-1] if lines else f"its process ended with code {code}; it may have run out of memory"
        raise StudyError(last if code == 2 else f"arm {arm!r} (seed {seed}) failed: {last}")

    def stop(self) -> None:
        if self._process is not None:
            # Asked to end and not killed, it takes away the file it is just writing.
            self._process.terminate()
            try:
                self._process.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()


def _plan(
    arms: list[str], seeds: list[int], configs: Mapping[str, PretrainingConfig]
) -> dict[tuple[str, int], set[tuple[str, int]]]:
    """Jobs with what each waits for, the long ones first so that the workers end together."""
    wanted, needs = list(dict.fromkeys(arms)), {}
    for name in wanted:
        arm = find_arm(name)
        needs[name] = arm.needs(configs.get(arm.variant, configs[""]))
        wanted += [other for other in needs[name] if other not in wanted]
    priority = ["warm_up", "curated", "full", "filtered", "random_same_compute", "random_same_data", "oracle_balanced"]
    base = {name: name.partition(".")[0] for name in wanted}
    wanted.sort(key=lambda name: priority.index(base[name]) if base[name] in priority else len(priority))
    return {(name, seed): {(other, seed) for other in needs[name]} for name in wanted for seed in seeds}
