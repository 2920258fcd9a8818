"""Steps of pretraining on one device, beside what the device can do at all."""

import gc
import time
from collections.abc import Callable

import torch
from pretraining_pairs import GeneratedPairs, Scale, build_model
from pretraining_schemes import (
    LOW_RESOLUTION,
    PACKED,
    PUBLISHED,
    TWO_PASS,
    Scheme,
    Step,
    make_optimizer,
)
from record import Goal, measure_in_turns, reach

from chexstudy.curation.online.prototypes import join_features
from chexstudy.devices import autocast_dtype
from chexstudy.encoders.build import compile_blocks
from chexstudy.pretraining.engine.compute import peak_memory_bytes, reset_peak_memory

_SCHEMES = (PUBLISHED, TWO_PASS, LOW_RESOLUTION, PACKED)
_PRODUCT_SIDE = {"cuda": 8192, "cpu": 256}
_PRODUCTS = 20
# The published step's largest batch is found to within so many pairs.
_BATCH_STEP = 16
_ROOM = 0.9
_IMAGES = 2048
_CURATOR_CALLS = 10


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a plain large matrix product on random data, the best of several."""
    side = _PRODUCT_SIDE.get(device.type, 8192)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = min(_wait_and_time(device, lambda: left @ right) for _ in range(_PRODUCTS))
    return 2.0 * side**3 / best


def _wait_and_time(device: torch.device, call: Callable[[], object]) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_gpu(
    scale: Scale,
    device: torch.device,
    super_batch: int,
    micro_batch: int,
    largest: int,
    rounds: int,
    seed: int,
    compiled: bool,
) -> list[dict]:
    """All rows of one device.

    Args:
        scale: architectures and sizes.
        device: where it runs.
        super_batch: pairs scored together; the published step gets fewer if so many do not fit.
        micro_batch: pairs that the package's schemes encode at once.
        largest: the largest super-batch that is tried.
        rounds: turns each scheme gets.
        seed: of weights, pairs and chance.
        compiled: whether the steps are measured with compiled blocks too.
    """
    autocast = autocast_dtype(device)
    pairs = GeneratedPairs(max(largest, super_batch), scale, seed, images=_IMAGES)
    model = build_model(scale, device, seed)
    plain_learner = model, make_optimizer(model)
    ceiling = measure_ceiling(device, autocast or torch.float32)
    rows = [
        {
            "section": "matrix product",
            "scheme": str(autocast or torch.float32).removeprefix("torch."),
            "tflop_a_second": ceiling / 1e12,
        }
    ]

    def make_step(scheme: Scheme, learner: tuple, pairs_a_step: int, on: bool = False) -> Step:
        step = Step(scheme, *learner, pairs, pairs_a_step, micro_batch, scale.scoring_size, autocast, on, seed)
        step.warm_up()
        return step

    fits = find_largest(lambda size: make_step(PUBLISHED, plain_learner, size), largest)
    _free()
    rows.append({"section": "largest super-batch", "scheme": PUBLISHED.name, "pairs": fits})
    # A second model, compiled, is to find room beside the first.
    roomy = max(_BATCH_STEP, int(_ROOM * fits))
    sizes = {scheme: min(super_batch, roomy) if scheme.published else super_batch for scheme in _SCHEMES}
    plain = {scheme.name: make_step(scheme, plain_learner, sizes[scheme]) for scheme in _SCHEMES}
    rows += _measure_steps(plain, device, rounds, ceiling)
    if compiled:
        model = build_model(scale, device, seed)
        for tower in (model.image_tower, model.text_tower):
            compile_blocks(tower.encoder)
        learner = model, make_optimizer(model)
        fast = {scheme.name: make_step(scheme, learner, sizes[scheme], True) for scheme in _SCHEMES}
        # What fills micro-batches up to one shape is not counted: it is of no use.
        rows += _measure_steps(fast, device, rounds, ceiling, {name: step.flops for name, step in plain.items()})
        del model, learner, fast
    rows.append(_measure_large(make_step(LOW_RESOLUTION, plain_learner, largest)))
    return rows


def _measure_steps(
    steps: dict[str, Step], device: torch.device, rounds: int, ceiling: float, flops: dict[str, float] | None = None
) -> list[dict]:
    peaks, first = {}, {}
    # A step's memory is measured alone; the first call also compiles.
    for name, step in steps.items():
        first[name] = _wait_and_time(device, step)
        _free()
        reset_peak_memory(device)
        step()
        peaks[name] = peak_memory_bytes(device)
    timings = measure_in_turns(steps, rounds, warm_up=False)
    rows = []
    for name, step in steps.items():
        seconds, spent = timings[name].best, step.flops if flops is None else flops[name]
        rows.append(
            {
                "section": "step",
                "scheme": name,
                "compiled": flops is not None,
                "pairs": len(step.rows),
                "micro_batch": len(step.rows) if step.scheme.published else step.encoder.micro_batch,
                "kept": step.kept,
                "first_seconds": first[name],
                "seconds": seconds,
                "pairs_a_second": len(step.rows) / seconds,
                "trained_a_second": step.kept / seconds,
                "tflop_a_second": spent / seconds / 1e12,
                "of_ceiling": spent / seconds / ceiling,
                "curator_share": None if step.scheme.published else _time_curator(step, device) / seconds,
                "peak_gib": peaks[name] / 2**30,
            }
        )
    return rows


def _time_curator(step: Step, device: torch.device) -> float:
    """Seconds of selection and update, the best of several."""
    features = join_features(*step.encoder.embed(step.rows, step.scoring_size))

    def curate() -> None:
        step.move(features[step.select(features)])

    return min(_wait_and_time(device, curate) for _ in range(_CURATOR_CALLS))


def find_largest(make: Callable[[int], Callable[[], None]], largest: int) -> int:
    """The largest batch whose step fits in the memory, at most ``largest``, to within 16 pairs."""
    fits, size = 0, _BATCH_STEP
    while size <= largest and _fits(make, size):
        fits, size = size, 2 * size
    fails = min(size, largest + _BATCH_STEP)
    while fails - fits > _BATCH_STEP:
        middle = (fits + fails) // 2 // _BATCH_STEP * _BATCH_STEP
        fits, fails = (middle, fails) if _fits(make, middle) else (fits, middle)
    return fits


def _fits(make: Callable[[int], Callable[[], None]], size: int) -> bool:
    _free()
    try:
        make(size)()
    except torch.OutOfMemoryError:
        return False
    return True


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _measure_large(step: Step) -> dict:
    """One step over the largest super-batch that was asked for: what it holds is decided by the micro-batch."""
    _free()
    reset_peak_memory(step.device)
    seconds = _wait_and_time(step.device, step)
    return {
        "section": "largest super-batch",
        "scheme": step.scheme.name,
        "pairs": len(step.rows),
        "micro_batch": step.encoder.micro_batch,
        "kept": step.kept,
        "seconds": seconds,
        "pairs_a_second": len(step.rows) / seconds,
        "peak_gib": peak_memory_bytes(step.device) / 2**30,
    }


def state_gpu_goals(rows: list[dict]) -> list[Goal]:
    """The goals that need a GPU; without rows of one they are not measured."""

    def best(scheme: Scheme, column: str) -> float | None:
        values = [row[column] for row in rows if row["section"] == "step" and row["scheme"] == scheme.name]
        return max(values, default=None)

    note = "" if rows else "no GPU on this machine: run with --gpu where there is one"
    goals = []
    published = best(PUBLISHED, "trained_a_second")
    for scheme, target in ((TWO_PASS, 2.0), (LOW_RESOLUTION, 2.0)):
        ours = best(scheme, "trained_a_second")
        ratio = None if ours is None else ours / published
        goals.append(
            reach(f"GPU, {scheme.name}: trained pairs a second over the published step", target, ratio, note=note)
        )
    share = best(TWO_PASS, "of_ceiling")
    goals.append(reach(f"GPU, {TWO_PASS.name}: share of the matrix product's speed", 0.5, share, note=note))
    shares = [row["curator_share"] for row in rows if row["section"] == "step" and row["curator_share"] is not None]
    worst = max(shares, default=None)
    goals.append(reach("GPU: the curator's share of a step, worst row", 0.01, worst, at_least=False, note=note))
    return goals
