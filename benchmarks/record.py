"""Side-by-side measurement: time several callables in turns, print a table, write `results/NAME.json`.

On a machine that others use as well, only what ran at the same time can be compared. So the callables take turns,
round after round, and a ratio is taken between the fastest calls of each.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chexstudy.runs import atomic_path, code_revision

RESULTS = Path(__file__).resolve().parent / "results"
_VERSIONS = ("numpy", "torch", "numba", "pandas", "scipy", "scikit-learn", "faiss-cpu", "faiss-gpu-cu12")
_SECONDS_OF_A_TURN = 0.05
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one callable over its rounds.

    Attributes:
        best: fastest call; ratios are taken of it.
        median: median call.
        rounds: how many turns it had.
    """

    best: float
    median: float
    rounds: int


@dataclass(frozen=True)
class Goal:
    """A target and what was measured.

    Attributes:
        name: what is compared with what, in words.
        target: the number to reach.
        measured: the number reached; None where this machine cannot measure it.
        met: whether it was reached; None where it was not measured.
        note: why it was not measured or not met.
    """

    name: str
    target: float
    measured: float | None
    met: bool | None
    note: str = ""


def measure_in_turns(
    callables: dict[str, Callable[[], object]], rounds: int, seconds: float = 60.0, warm_up: bool = True
) -> dict[str, Timing]:
    """Time callables in turns: first, second, ..., first, second, ...

    A short callable is called again and again within its turn, so that what the others left in the caches, or took
    from them, does not count.

    Args:
        callables: what is timed, by name. They must wait for their own device work (``torch.cuda.synchronize``).
        rounds: how many turns each gets at most.
        seconds: a callable gets no further turn once it has spent so long; each gets at least one.
        warm_up: run each once beforehand, untimed (compilation, caches).

    Returns:
        The timing of each.
    """
    if warm_up:
        for call in callables.values():
            call()
    spent: dict[str, list[float]] = {name: [] for name in callables}
    turns = dict.fromkeys(callables, 0)
    for _ in range(rounds):
        for name, call in callables.items():
            if sum(spent[name]) > seconds:
                continue
            gc.collect()
            turns[name] += 1
            start = before = time.perf_counter()
            while True:
                call()
                after = time.perf_counter()
                spent[name].append(after - before)
                before = after
                if after - start >= _SECONDS_OF_A_TURN:
                    break
    return {name: Timing(min(times), statistics.median(times), turns[name]) for name, times in spent.items()}


def reach(name: str, target: float, measured: float | None, at_least: bool = True, note: str = "") -> Goal:
    """Compare a measured number with its target.

    Args:
        name: what is compared with what.
        target: the number to reach.
        measured: the number reached, or None if it could not be measured here; ``note`` then says why.
        at_least: whether the target is a lower bound (a speed-up) or an upper one (seconds, bytes).
        note: see `Goal`.
    """
    if measured is None:
        return Goal(name, target, None, None, note)
    measured = float(measured)
    return Goal(name, target, measured, bool(measured >= target if at_least else measured <= target), note)


def describe_machine() -> dict[str, object]:
    """Processor, cores, threads, memory and GPU of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "thread_variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(memory / 2**30, 1) if memory else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe_versions(*more: str) -> dict[str, str]:
    """Versions of Python, of the package's code and of the installed distributions that matter, and of ``more``."""
    versions = {"python": platform.python_version(), "chexstudy": code_revision()}
    for name in (*_VERSIONS, *more):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_record(
    name: str, rows: Iterable[dict], goals: Iterable[Goal], folder: str | Path = RESULTS, packages: Iterable[str] = ()
) -> Path:
    """Print what was measured and write it to ``folder/name.json``, atomically.

    Neighbouring rows with the same columns are printed as one table.

    Args:
        name: name of the benchmark.
        rows: what was measured, one dictionary a row.
        goals: the targets and whether they were met.
        folder: where the file is written.
        packages: distributions whose versions are recorded beside the usual ones.

    Returns:
        Path of the file: ``machine``, ``versions``, ``command``, ``written_at``, ``rows``, ``goals``.
    """
    rows, goals = [dict(row) for row in rows], list(goals)
    for _, alike in groupby(rows, key=tuple):
        print_table(name, list(alike))
    print_goals(goals)
    record = {
        "machine": describe_machine(),
        "versions": describe_versions(*packages),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "goals": [asdict(goal) for goal in goals],
    }
    path = Path(folder) / f"{name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, default=_plain, allow_nan=False) + "\n")
    print(f"written to {path}")
    return path


def print_table(title: str, rows: list[dict]) -> None:
    """Print rows as an aligned table; an empty cell is a dash."""
    print(f"\n{title}")
    if rows:
        print(pd.DataFrame(rows).to_string(index=False, na_rep="-", float_format=lambda value: f"{value:,.4g}"))


def print_goals(goals: list[Goal]) -> None:
    """Print one line a goal: met, missed or not measured."""
    print()
    for goal in goals:
        verdict = {True: "met", False: "missed", None: "not measured"}[goal.met]
        measured = "" if goal.measured is None else f" {goal.measured:,.4g}"
        note = f" ({goal.note})" if goal.note else ""
        print(f"goal {verdict}: {goal.name}, target {goal.target:,.4g}, measured{measured or ' nothing'}{note}")


def _plain(value: object) -> object:
    """JSON has no numpy or torch scalars."""
    if isinstance(value, np.generic | torch.Tensor):
        return value.item()
    return str(value)


def benchmark_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A command line with the options all benchmarks share: ``--rounds``, ``--threads``, ``--seed``, ``--out``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="turns each candidate gets at most")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads torch and BLAS may use")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic data")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser
