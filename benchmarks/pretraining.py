"""What a step of curated pretraining costs, beside our plain restatement of the published step.

On a CPU, with a small model on generated pairs: a step over a super-batch by each scheme, in seconds, counted
operations and memory; the gradient in pieces beside that of one big batch; the selection by low-resolution scores
beside that by full ones; layouts of texts; options of training. And 20 epochs at the published scale, counted.

With ``--gpu``, on one CUDA device with ViT-B/14 at 378 pixels and BERT-base: the same steps beside the device's own
matrix product, the largest super-batch, and what curator and compilation take. Nothing is downloaded.
"""

import argparse
import gc
import multiprocessing
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from pretraining_costs import EVERY_EPOCH, ONE_SHOT, count_paper_scale
from pretraining_steps import (
    LOW_RESOLUTION,
    PACKED,
    PUBLISHED,
    SCHEMES,
    TWO_PASS,
    TWO_PASS_PADDED,
    GeneratedPairs,
    Scale,
    Scheme,
    Step,
    build_model,
    least_scale,
    make_optimizer,
    pad_to_longest,
    paper_scale,
    small_scale,
)
from record import Goal, benchmark_parser, measure_in_turns, reach, write_record
from torch import Tensor
from torch.nn.functional import pad

from chexstudy.curation.online.prototypes import join_features
from chexstudy.devices import autocast_dtype
from chexstudy.encoders.build import compile_blocks
from chexstudy.pretraining.engine.compute import peak_memory_bytes, reset_peak_memory
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.pretraining.models.parameter_efficient import add_low_rank_updates, freeze_encoder
from chexstudy.pretraining.models.texts import PaddedTexts, TextBatch, encode_texts
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder

_CPU = torch.device("cpu")
_MICRO_BATCH = 128
# Small enough that the kept pairs of every batch come in several pieces.
_GRADIENT_MICRO_BATCH = 8
# Of low-rank updates.
_RANK = 8
_IN_MEMORY = tuple(scheme for scheme in SCHEMES if scheme is not TWO_PASS_PADDED)
_GPU_SCHEMES = (PUBLISHED, TWO_PASS, LOW_RESOLUTION, PACKED)
_PRODUCT_SIDE = {"cuda": 8192, "cpu": 256}
_PRODUCTS = 20
# The published step's largest batch is found to within so many pairs.
_BATCH_STEP = 16
_ROOM = 0.9
_IMAGES = 2048
_CURATOR_CALLS = 10
_SCALES = {"small": small_scale, "least": least_scale, "paper": paper_scale}


def measure_steps(scale: Scale, super_batch: int, threads: int, rounds: int, seconds: float, seed: int) -> list[dict]:
    """Time one step over a super-batch by each scheme, in turns; the counts are of the same calls."""
    torch.set_num_threads(threads)
    steps = _make_steps(SCHEMES, scale, super_batch, seed)
    timings = measure_in_turns(steps, rounds, seconds, warm_up=False)
    published, counted = timings[PUBLISHED.name].best, steps[PUBLISHED.name].flops
    return [
        {
            "section": "step",
            "scheme": name,
            "pairs": super_batch,
            "threads": threads,
            "kept": step.kept,
            "seconds": timings[name].best,
            "pairs_a_second": super_batch / timings[name].best,
            "gflop": step.flops / 1e9,
            "times_published": published / timings[name].best,
            "counted_times_published": counted / step.flops,
        }
        for name, step in steps.items()
    ]


def _make_steps(schemes: tuple[Scheme, ...], scale: Scale, super_batch: int, seed: int) -> dict[str, Step]:
    """A step by each scheme, by name, ready to be called: one model, one optimiser, the same pairs."""
    model, pairs = build_model(scale, _CPU, seed), GeneratedPairs(super_batch, scale, seed)
    learner = model, make_optimizer(model)
    steps = {
        scheme.name: Step(scheme, *learner, pairs, super_batch, _MICRO_BATCH, scale.scoring_size, seed=seed)
        for scheme in schemes
    }
    for step in steps.values():
        step.warm_up()
    return steps


def measure_memory(scale: Scale, super_batch: int, threads: int, seed: int) -> list[dict]:
    """Peak memory of one step by each scheme, in a fresh process each, above what was there before it."""
    rows = []
    for scheme in _IN_MEMORY:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            mebibytes = pool.apply(_measure_one_step, (scheme, scale, super_batch, threads, seed))
        rows.append(
            {
                "section": "memory of a step",
                "scheme": scheme.name,
                "pairs": super_batch,
                "threads": threads,
                "mebibytes": mebibytes,
            }
        )
    return rows


def _measure_one_step(scheme: Scheme, scale: Scale, super_batch: int, threads: int, seed: int) -> float:
    torch.set_num_threads(threads)
    (step,) = _make_steps((scheme,), scale, super_batch, seed).values()
    reset_peak_memory(_CPU)
    before = peak_memory_bytes(_CPU)
    step()
    return (peak_memory_bytes(_CPU) - before) / 2**20


def measure_gradient(scale: Scale, super_batch: int, seed: int) -> list[dict]:
    """The gradient of the kept pairs in pieces beside that of one plain big batch: relative norm of the difference."""
    (step,) = _make_steps((TWO_PASS,), scale, super_batch, seed).values()
    model, encoder = step.model, step.encoder
    embedded = encoder.embed(step.rows)
    mask = step.select(join_features(*embedded))
    kept = step.rows[mask.numpy()]
    expected = _plain_gradient(model, step.pairs, kept)
    encoder.micro.size = _GRADIENT_MICRO_BATCH
    rows = []
    for layout in ("buckets", "packed"):
        encoder.text_layout = layout
        encoder.backward(kept, tuple(side[mask] for side in embedded))
        rows.append(
            {
                "section": "gradient in pieces",
                "scheme": f"two-pass, texts {layout}",
                "pairs": super_batch,
                "kept": len(kept),
                "micro_batch": _GRADIENT_MICRO_BATCH,
                "relative_difference": float((_gradient(model) - expected).norm() / expected.norm()),
            }
        )
    return rows


def _plain_gradient(model: ImageTextModel, pairs: GeneratedPairs, rows: np.ndarray) -> Tensor:
    model.zero_grad(set_to_none=True)
    image = model.image_tower(pairs.pixels(rows))
    text = encode_texts(model.text_tower, pad_to_longest(pairs, rows, _CPU))
    contrastive_loss(image, text, model.bounded_logit_scale()).backward()
    return _gradient(model)


def _gradient(model: ImageTextModel) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def measure_overlap(scale: Scale, super_batch: int, training_steps: int, seed: int) -> list[dict]:
    """Selection by low-resolution scores beside that by full ones (Jaccard), untrained and twice a little trained.

    As in the engine, both are judged with the same prototypes and the same chance. The overlap moves much from one
    state of the model to the next, so one number of it says little.
    """
    (step,) = _make_steps((LOW_RESOLUTION,), scale, super_batch, seed).values()
    optimizer = torch.optim.AdamW(step.model.parameters(), lr=1e-3)
    batches = np.random.default_rng(seed)
    rows = []
    for trained in (0, training_steps, 2 * training_steps):
        for _ in range(training_steps if trained else 0):
            step.encoder.backward(batches.choice(super_batch, min(48, super_batch), replace=False))
            optimizer.step()
        step.warm_up()
        kept = []
        for size in (None, scale.scoring_size):
            step.generator.manual_seed(seed)
            kept.append(step.select(join_features(*step.encoder.embed(step.rows, size))))
        full, low = kept
        share = float(full.float().mean())
        rows.append(
            {
                "section": "selection overlap",
                "scheme": f"scored at {scale.scoring_size} beside {scale.image_size} pixels",
                "pairs": super_batch,
                "training_steps": trained,
                "kept": int(full.sum()),
                "jaccard": float((full & low).sum() / (full | low).sum()),
                "jaccard_by_chance": share / (2 - share),
            }
        )
    return rows


def measure_layouts(scale: Scale, count: int, threads: int, rounds: int, seconds: float, seed: int) -> list[dict]:
    """Forward and backward of the text tower over texts of Open-I's lengths, by layout, in turns."""
    torch.set_num_threads(threads)
    tower, pairs, every = (
        build_model(scale, _CPU, seed).text_tower,
        GeneratedPairs(count, scale, seed),
        np.arange(count),
    )
    batches = {
        "padded to max_tokens": lambda: _pad_fully(pad_to_longest(pairs, every, _CPU), scale.max_tokens),
        "padded to the longest": lambda: pad_to_longest(pairs, every, _CPU),
        "buckets": lambda: pairs.texts.batch(every, _CPU, "buckets"),
        "packed": lambda: pairs.texts.batch(every, _CPU, "packed"),
    }

    def encode(lay_out: Callable[[], TextBatch]) -> None:
        tower.zero_grad(set_to_none=True)
        encode_texts(tower, lay_out()).square().sum().backward()

    calls = {name: lambda lay_out=lay_out: encode(lay_out) for name, lay_out in batches.items()}
    timings = measure_in_turns(calls, rounds, seconds)
    longest = timings["padded to the longest"].best
    return [
        {
            "section": "text tower, forward and backward",
            "scheme": name,
            "pairs": count,
            "threads": threads,
            "seconds": timing.best,
            "texts_a_second": count / timing.best,
            "mean_tokens": float(pairs.texts.lengths.mean()),
            "computed_tokens": sum(part.input_ids.numel() for part in batches[name]().parts),
            "times_longest": longest / timing.best,
        }
        for name, timing in timings.items()
    ]


def _pad_fully(batch: TextBatch, length: int) -> TextBatch:
    (part,) = batch.parts
    missing = (0, length - part.input_ids.shape[1])
    part = PaddedTexts(pad(part.input_ids, missing), pad(part.mask, missing))
    return TextBatch((part,), None)


def measure_options(
    scale: Scale, count: int, threads: int, rounds: int, seconds: float, seed: int, compiled: bool
) -> list[dict]:
    """Time a training step of ``count`` pairs with each option of training, in turns."""
    torch.set_num_threads(threads)
    pairs, rows = GeneratedPairs(count, scale, seed), np.arange(count)

    def make(prepare: Callable = lambda encoder: None, **options) -> PairEncoder:
        model = build_model(scale, _CPU, seed)
        for tower in (model.image_tower, model.text_tower):
            prepare(tower.encoder)
        return PairEncoder(model, pairs, _CPU, count, **options)

    frozen = make()
    freeze_encoder(frozen.model.text_tower.encoder)
    frozen.features["text"] = frozen.embed_frozen("text", rows).numpy()
    encoders = {
        "float32": make(),
        "bfloat16": make(autocast=torch.bfloat16),
        "float32, text tower frozen": frozen,
        "float32, low-rank updates": make(lambda encoder: add_low_rank_updates(encoder, _RANK, 2.0 * _RANK, seed)),
    }
    notes = {"bfloat16": "native" if autocast_dtype(_CPU) else "emulated: this processor does not multiply bfloat16"}
    if compiled:
        fast = encoders["float32, compiled"] = make(compile_blocks, equal_shapes=True)
        start = time.perf_counter()
        fast.backward(rows)
        notes["float32, compiled"] = f"first step {time.perf_counter() - start:.0f} s"
    calls = {name: partial(encoder.backward, rows) for name, encoder in encoders.items()}
    timings = measure_in_turns(calls, rounds, seconds)
    return [
        {
            "section": "training step",
            "scheme": name,
            "pairs": count,
            "threads": threads,
            "seconds": timing.best,
            "pairs_a_second": count / timing.best,
            "times_float32": timings["float32"].best / timing.best,
            "note": notes.get(name, ""),
        }
        for name, timing in timings.items()
    ]


def state_goals(rows: list[dict]) -> list[Goal]:
    """The goals, each against the worst of its rows."""

    def column(section: str, name: str, scheme: str = "") -> list[float]:
        return [row[name] for row in rows if row["section"] == section and row["scheme"].startswith(scheme)]

    def share(plan: str) -> tuple[float, str]:
        row = next(row for row in rows if row["section"] == "counted at paper scale" and row["scheme"] == plan)
        return row["relative"], (
            f"{row['in_pieces']:.3f} where a step's pairs do not fit at once; overlap checks add "
            f"{row['overlap_checks']:.3f}; texts of {row['mean_tokens']} tokens"
        )

    goals = []
    for scheme, target in ((TWO_PASS, 1.9), (LOW_RESOLUTION, 3.0)):
        of_scheme = [row for row in rows if row["section"] == "step" and row["scheme"] == scheme.name]
        note = "; ".join(
            f"{row['pairs']} pairs, {row['threads']} thread(s): {row['times_published']:.2f}x, counted "
            f"{row['counted_times_published']:.2f}x"
            for row in of_scheme
        )
        worst = min(row["times_published"] for row in of_scheme)
        goals.append(
            reach(f"{scheme.name}: speed-up of a selection step over the published one", target, worst, note=note)
        )
    worst = max(column("gradient in pieces", "relative_difference"))
    goals.append(reach("gradient in pieces beside one big batch, relative difference", 1e-6, worst, at_least=False))
    section = "text tower, forward and backward"
    ratios = {name: min(column(section, "times_longest", name)) for name in ("buckets", "packed")}
    best = max(ratios, key=ratios.__getitem__)
    note = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    goals.append(
        reach("text tower, speed-up of the best layout over padded to the longest", 2.8, ratios[best], note=note)
    )
    for plan, target in ((ONE_SHOT, 0.20), (EVERY_EPOCH, 0.25)):
        measured, note = share(plan.name)
        goals.append(
            reach(f"{plan.name}: counted operations beside full training", target, measured, at_least=False, note=note)
        )
    return goals


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

    The published step gets fewer pairs if a super-batch does not fit, the package's schemes encode a micro-batch at a
    time; ``largest`` is the largest super-batch that is tried.
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
    sizes = {scheme: min(super_batch, roomy) if scheme.published else super_batch for scheme in _GPU_SCHEMES}
    plain = {scheme.name: make_step(scheme, plain_learner, sizes[scheme]) for scheme in _GPU_SCHEMES}
    rows += _measure_on_device(plain, device, rounds, ceiling)
    if compiled:
        model = build_model(scale, device, seed)
        for tower in (model.image_tower, model.text_tower):
            compile_blocks(tower.encoder)
        learner = model, make_optimizer(model)
        fast = {scheme.name: make_step(scheme, learner, sizes[scheme], True) for scheme in _GPU_SCHEMES}
        # What fills micro-batches up to one shape is not counted: it is of no use.
        rows += _measure_on_device(fast, device, rounds, ceiling, {name: step.flops for name, step in plain.items()})
        del model, learner, fast
    rows.append(_measure_large(make_step(LOW_RESOLUTION, plain_learner, largest)))
    return rows


def _measure_on_device(
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
                "micro_batch": len(step.rows) if step.scheme.published else step.encoder.micro.size,
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
        "micro_batch": step.encoder.micro.size,
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


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--gpu", action="store_true", help="measure on one device at the published scale")
    parser.add_argument("--device", default="cuda", help="the device of --gpu")
    parser.add_argument("--scale", choices=_SCALES, help="architectures; small without --gpu, paper with it")
    parser.add_argument("--pairs", type=int, nargs="+", default=[128, 480], help="super-batches")
    parser.add_argument("--training-steps", type=int, default=12, help="between comparisons of selections")
    parser.add_argument("--seconds", type=float, default=20.0, help="time a candidate may take in one cell")
    parser.add_argument("--micro-batch", type=int, default=120, help="with --gpu: pairs encoded at once")
    parser.add_argument("--largest", type=int, default=16384, help="with --gpu: the largest super-batch tried")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="measure compiled blocks"
    )
    options = parser.parse_args()
    if options.gpu and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA device, and torch finds none: run it where there is one, or add --device cpu.")
    return options


def measure_on_cpu(options: argparse.Namespace) -> tuple[list[dict], list[Goal]]:
    """All rows and goals of a run without ``--gpu``."""
    scale, seed, rounds, seconds = _SCALES[options.scale or "small"](), options.seed, options.rounds, options.seconds
    threads = sorted({1, options.threads})
    rows = count_paper_scale(scale if options.scale == "least" else paper_scale(), (100, 57), seed)
    print("counted", flush=True)
    for super_batch in options.pairs:
        # All threads are shown at the first size, one thread at all of them.
        for count in threads if super_batch == options.pairs[0] else (1,):
            rows += measure_steps(scale, super_batch, count, rounds, seconds, seed)
            print(f"measured steps of {super_batch} pairs with {count} thread(s)", flush=True)
    if options.memory:
        rows += measure_memory(scale, options.pairs[-1], 1, seed)
    torch.set_num_threads(1)
    rows += measure_gradient(scale, options.pairs[-1], seed)
    rows += measure_overlap(scale, options.pairs[-1], options.training_steps, seed)
    print("compared gradients and selections", flush=True)
    for count in options.pairs:
        rows += measure_layouts(scale, count, 1, rounds, seconds, seed)
    rows += measure_options(scale, min(64, options.pairs[0]), 1, rounds, seconds, seed, options.compile)
    return rows, state_goals(rows) + state_gpu_goals([])


def main() -> None:
    options = read_options()
    folder, name = options.out, "pretraining_gpu" if options.gpu else "pretraining"
    if options.out.suffix == ".json":
        folder, name = options.out.parent, options.out.stem
    if options.gpu:
        torch.set_num_threads(options.threads)
        rows = measure_gpu(
            _SCALES[options.scale or "paper"](),
            torch.device(options.device),
            options.pairs[-1],
            options.micro_batch,
            options.largest,
            options.rounds,
            options.seed,
            options.compile,
        )
        goals = state_gpu_goals(rows)
    else:
        rows, goals = measure_on_cpu(options)
    write_record(name, rows, goals, folder, packages=("transformers",))


if __name__ == "__main__":
    main()
