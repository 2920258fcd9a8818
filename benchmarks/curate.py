"""`chexstudy curate` on embeddings of both sides: seconds and memory of methods, each in a process of its own.

    python benchmarks/curate.py                           300,000 pairs of 1,024 numbers in float16, 22.7 % kept
    python benchmarks/curate.py --rows 1000000            a million

Pairs share a direction of 200, some far more frequent than others; a report of 25 is another pair's. Files are written
beside each other in a temporary folder and gone at the end.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from record import benchmark_parser, reach, write_record

from chexstudy.cli.main import main as run_command

_BLOCK = 20_000
_WRONG_EVERY = 25


def write_pairs(folder: Path, rows: int, dim: int, seed: int) -> None:
    """Write ``image.npy`` and ``text.npy`` ``(rows, dim)`` float16, and ``ids.parquet``."""
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((200, dim), np.float32)
    sides = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (rows, dim)) for name in ("image", "text")
    ]
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        shared = directions[(200 * generator.random(count) ** 2).astype(int)]
        shared = shared + generator.standard_normal((count, dim), np.float32)
        for side in sides:
            side[start : start + count] = shared + generator.standard_normal((count, dim), np.float32)
        text = sides[1][start : start + count]
        text[::_WRONG_EVERY] = np.roll(text[::_WRONG_EVERY], 1, axis=0)
    pd.DataFrame({"image_id": [f"{number:07d}" for number in range(rows)]}).to_parquet(folder / "ids.parquet")


def curate(folder: Path, method: str, keep: float, threads: int) -> None:
    """Curate in this process and print what it took as the last line."""
    start = time.perf_counter(), time.process_time()
    files = {"--embeddings": "image.npy", "--text": "text.npy", "--ids": "ids.parquet", "--out": f"{method}.parquet"}
    named = [word for name, file in files.items() for word in (name, str(folder / file))]
    if run_command(["curate", "--method", method, "--keep", str(keep), "--threads", str(threads), *named]):
        raise SystemExit("curate was refused")
    took = {"seconds": time.perf_counter() - start[0], "processor_seconds": time.process_time() - start[1]}
    print(json.dumps(took | {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--rows", type=int, default=300_000, help="pairs")
    parser.add_argument("--dim", type=int, default=1024, help="numbers of an embedding")
    parser.add_argument("--methods", nargs="+", default=["bands", "budgeted", "filtered"], help="methods, bands first")
    parser.add_argument("--keep", type=float, default=0.227, help="share kept")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        curate(options.folder, options.methods[0], options.keep, options.threads)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), options.rows, options.dim, options.seed)
        for method in options.methods:
            command = [sys.executable, __file__, "--folder", folder, "--methods", method]
            command += ["--keep", str(options.keep), "--threads", str(options.threads)]
            runs = []
            for _ in range(options.rounds):
                shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                runs.append(json.loads(shown.splitlines()[-1]))
            best = min(runs, key=lambda run: run["processor_seconds"])
            wrong = pd.read_parquet(f"{folder}/{method}.parquet").image_id.astype(int) % _WRONG_EVERY == 0
            sizes = {"method": method, "rows": options.rows, "dim": options.dim}
            rows.append(sizes | best | {"wrong_kept": float(wrong.mean())})
            print(f"measured {method}", flush=True)
    by_method, goals = {row["method"]: row for row in rows}, []
    if {"bands", "filtered"} <= by_method.keys():
        bands, filtered = (by_method[name] for name in ("bands", "filtered"))
        times = filtered["processor_seconds"] / bands["processor_seconds"]
        goals.append(reach("filtered over bands, processor seconds", 2.0, times, at_least=False))
        memory = filtered["gib"] / bands["gib"]
        goals.append(reach("filtered over bands, memory", 1.5, memory, at_least=False))
    write_record("curate", rows, goals, options.out)


if __name__ == "__main__":
    main()
