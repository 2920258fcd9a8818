"""Features of encoders that are not trained: computed once for all arms and epochs that start from the same weights."""

import time
from contextlib import nullcontext

import numpy as np

from chexstudy.arrays import GrowingArray
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder
from chexstudy.progress import progress
from chexstudy.runs import Run, hash_values, hold_lock

_BLOCK = 1024
_INPUTS = ("cohort.parquet", "pixels/index.parquet")


def frozen_features(run: Run, side: str, encoder: PairEncoder, parameters: dict) -> tuple[np.ndarray, dict]:
    """What a tower's encoder makes of every training pair, mapped from disk.

    Kept as ``pretraining/frozen/SIDE-HASH.npy``; a killed computation goes on at its last block of rows.

    ``parameters`` are what decides the features beside encoder, cohort and pixels.

    Gives ``(pairs, encoder dim)``, float32, before the projection, and what they cost: ``flops`` and ``seconds``.
    """
    tower = encoder.model.tower(side)
    parameters = parameters | {"encoder": tower.encoder.describe()}
    key = run.key(parameters, _INPUTS)
    stem = f"pretraining/frozen/{side}-{hash_values(key)[:16]}"
    array, record = f"{stem}.npy", f"{stem}.json"
    # Arms trained side by side take turns: the second finds the features that the first has computed.
    with hold_lock(run.path(f"{stem}.lock"), wait=True) if encoder.processes.first else nullcontext():
        # Everybody looks once it is their turn, and before the first one writes.
        encoder.processes.wait()
        there = run.is_current(record, key)
        encoder.processes.wait()
        if not there:
            _compute(run, side, encoder, array, record)
            if encoder.processes.first:
                run.record(record, parameters, _INPUTS, files=(array,))
            encoder.processes.wait()
    cost = run.read_json(record)
    return run.read_array(array, memory_map=True), {part: cost[part] for part in ("flops", "seconds")}


def _compute(run: Run, side: str, encoder: PairEncoder, array: str, record: str) -> None:
    tower = encoder.model.tower(side)
    tower.eval()
    count, dim = len(encoder.pairs), tower.encoder.dim
    before, start = encoder.flops, time.perf_counter()
    growing, done = None, 0
    if encoder.processes.first:
        growing = GrowingArray(run.path(array), (count, dim), np.float32, keep=True)
        done = growing.rows // _BLOCK * _BLOCK
    done = int(encoder.processes.add_up([done])[0])
    blocks = [np.arange(start, min(start + _BLOCK, count)) for start in range(done, count, _BLOCK)]
    for rows in progress(blocks, label=f"{side} features of the frozen encoder, blocks of {_BLOCK}"):
        features = encoder.embed_frozen(side, rows).cpu().numpy()
        if growing:
            growing.write(int(rows[0]), features)
            growing.flush()
    (flops,) = encoder.processes.add_up([encoder.flops - before])
    encoder.flops = before
    if growing:
        growing.finish()
        # A computation that went on counts its earlier part at the same rate.
        whole = count / max(count - done, 1)
        run.write_json(record, {"flops": flops * whole, "seconds": (time.perf_counter() - start) * whole})
