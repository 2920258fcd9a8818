"""What a step of self-supervision costs, beside our plain restatement of the published step.

On a CPU, on a drawn study: a step by either scheme in seconds, counted operations and memory, and how far their losses
and gradients are apart; the patch head by number of prototypes, chunked and whole; the gradient in pieces; what curated
self-supervision costs, counted with the published crops; and lightly's losses beside ours, where `--lightly` names a
folder that holds it:

    pip install --target lightly_peer --no-deps lightly
    python benchmarks/self_supervised.py --lightly lightly_peer

With ``--gpu``, on one CUDA device, the same steps with ViT-B/16 at 224 and 512 pixels beside the device's own matrix
product, and the largest batch that fits.
"""

import argparse
import importlib
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from pretraining import find_largest, measure_ceiling
from record import Goal, benchmark_parser, measure_in_turns, reach, write_record
from self_supervised_steps import (
    Scale,
    Step,
    balance_plainly,
    build_objective,
    cross_entropy,
    drawn_study,
    flat_gradient,
    least_scale,
    paper_scale,
    small_scale,
)
from torch import Tensor
from torch.nn.functional import normalize

from chexstudy.devices import autocast_dtype, use_threads
from chexstudy.pretraining.engine.compute import count_flops, peak_memory_bytes, reset_peak_memory
from chexstudy.pretraining.self_supervision.centring import Centre, Logits, balance_by_sinkhorn
from chexstudy.pretraining.self_supervision.distillation_losses import crop_loss, koleo_loss, patch_gradient

_CPU = torch.device("cpu")
_SCALES = {"small": small_scale, "least": least_scale, "paper": paper_scale}
_SCHEMES = ("ours", "published")
_TEMPERATURE, _STUDENT_TEMPERATURE = 0.04, 0.1
# As many patches as 64 images of 64 pixels mask, and the published width of what is compared with prototypes.
_PATCHES, _BOTTLENECK = 1228, 256
_GOAL_PROTOTYPES, _KEPT = 65_536, 0.227
_LOCAL_CROPS = 4
_LARGEST = 512


def in_child(function: Callable, *arguments: object) -> object:
    """What a function gives in a fresh process, whose memory nothing has touched before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# --- the step ---------------------------------------------------------------------------------------------------------


def measure_steps(scale: Scale, threads: int, rounds: int, seconds: float, seed: int, memory: bool) -> list[dict]:
    """A step by either scheme, in turns, in float32 and in what the processor multiplies faster, if it does."""
    rows = []
    for precision in ("fp32", "bf16") if autocast_dtype(_CPU) else ("fp32",):
        step = Step(scale, seed, precision=precision)
        losses, gradient = step.compare()
        timings = measure_in_turns({name: partial(step.take, name) for name in _SCHEMES}, rounds, seconds)
        counted = {name: count_flops(step.gradients[name]) for name in _SCHEMES}
        for name in _SCHEMES:
            row = {
                "section": "step",
                "scheme": name,
                "precision": precision,
                "images": scale.images,
                "threads": threads,
                "seconds": timings[name].best,
                "images_a_second": scale.images / timings[name].best,
                "times_published": timings["published"].best / timings[name].best,
                "median_times_published": timings["published"].median / timings[name].median,
                "gflop": counted[name] / 1e9,
                "counted_times_published": counted["published"] / counted[name],
            }
            if name == "ours":
                row |= {"loss_differs": max(losses.values()), "gradient_differs": gradient}
            if memory:
                row["mebibytes"] = in_child(_peak_of_step, scale, precision, name, threads, seed)
            rows.append(row)
    return rows


def _peak_of_step(scale: Scale, precision: str, scheme: str, threads: int, seed: int) -> float:
    torch.set_num_threads(threads)
    with drawn_study(scale.images, seed):
        step = Step(scale, seed, precision=precision)
        return _peak(partial(step.take, scheme))


def _peak(call: Callable[[], object]) -> float:
    """Mebibytes that one call takes at its worst, above what was there before it."""
    reset_peak_memory(_CPU)
    before = peak_memory_bytes(_CPU)
    call()
    return (peak_memory_bytes(_CPU) - before) / 2**20


def measure_pieces(scale: Scale, seed: int) -> list[dict]:
    """The gradient in pieces beside that of one batch: relative norm of the difference."""
    rows, whole = np.arange(scale.images), None
    told = []
    for pieces in (1, 2, 4):
        objective = build_objective(scale, seed, precision="fp32", micro_batch=scale.images // pieces)
        objective.backward(rows, 0)
        gradient = flat_gradient(objective.model)
        whole = gradient if whole is None else whole
        told.append(
            {
                "section": "gradient in pieces",
                "images": scale.images,
                "micro_batch": scale.images // pieces,
                "relative_difference": float((gradient - whole).norm() / whole.norm()),
            }
        )
    return told


# --- the patch head ---------------------------------------------------------------------------------------------------


def draw_patches(prototypes: int, patches: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What enters the last layer of teacher and student, their prototypes, and the weights of the patches."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (patches, patches, prototypes)
    drawn = [normalize(torch.randn(rows, _BOTTLENECK, generator=generator), dim=1) for rows in sizes]
    return *drawn, torch.full((patches,), 1 / patches)


def learn_in_chunks(teacher: Tensor, student: Tensor, prototypes: Tensor, weights: Tensor) -> tuple:
    """Targets, loss and gradients of the patch head as our step takes them."""
    targets = balance_by_sinkhorn(Logits(teacher, prototypes), _TEMPERATURE)
    return patch_gradient(student, prototypes, targets, slice(0, len(student)), weights)


def learn_whole(teacher: Tensor, student: Tensor, prototypes: Tensor, weights: Tensor) -> tuple:
    """The same with all logits held."""
    targets = balance_plainly(teacher @ prototypes.T, _TEMPERATURE)
    student, prototypes = student.clone().requires_grad_(), prototypes.clone().requires_grad_()
    loss = weights @ cross_entropy(targets, student @ prototypes.T)
    loss.backward()
    return loss.detach(), student.grad, prototypes.grad


_PATCH_HEADS = {"ours": learn_in_chunks, "published": learn_whole}


def measure_patch_head(
    counts: list[int], patches: int, threads: int, rounds: int, seconds: float, seed: int, memory: bool
) -> list[dict]:
    """Targets, loss and gradient by number of prototypes: seconds in turns, peak memory in a process of its own."""
    rows = []
    for count in counts:
        drawn = draw_patches(count, patches, seed)
        results = {name: learn(*drawn) for name, learn in _PATCH_HEADS.items()}
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(*results.values(), strict=True))
        calls = {name: partial(learn, *drawn) for name, learn in _PATCH_HEADS.items()}
        timings = measure_in_turns(calls, rounds, seconds, warm_up=False)
        of_count = {
            name: {
                "section": "patch head",
                "scheme": name,
                "prototypes": count,
                "patches": patches,
                "threads": threads,
                "seconds": timings[name].best,
                "times_published": timings["published"].best / timings[name].best,
                "differs": apart,
            }
            for name in _PATCH_HEADS
        }
        if memory:
            peaks = {name: in_child(_peak_of_patch_head, name, count, patches, threads, seed) for name in _PATCH_HEADS}
            for name, peak in peaks.items():
                of_count[name] |= {"mebibytes": peak, "of_published_memory": peak / peaks["published"]}
        rows += of_count.values()
        print(f"measured the patch head with {count} prototypes", flush=True)
    return rows


def _peak_of_patch_head(scheme: str, count: int, patches: int, threads: int, seed: int) -> float:
    torch.set_num_threads(threads)
    return _peak(partial(_PATCH_HEADS[scheme], *draw_patches(count, patches, seed)))


# --- curated self-supervision -----------------------------------------------------------------------------------------


def count_curation(scale: Scale, seed: int) -> list[dict]:
    """What curated self-supervision costs beside full, counted by the objective itself, without computing anything.

    All images are scored, at full side and at half, and 22.7 % of them are trained on, without and with the published
    share of paths left out, which makes training cheaper and scoring not.
    """
    rows, told = np.arange(scale.images), []
    for drop_path in (0.0, 0.4):
        objective = build_objective(scale, seed, "meta", precision="fp32", drop_path=drop_path)
        full, size = objective.count_step(rows), scale.constants["image_size"]
        for side in (size, size // 2):
            before = objective.flops
            objective.embed(rows, side)
            scored = objective.flops - before
            told.append(
                {
                    "section": "counted cost of curation",
                    "image_size": size,
                    "drop_path": drop_path,
                    "scored_at": side,
                    "scoring": scored / full,
                    "relative": scored / full + _KEPT,
                }
            )
    return told


# --- lightly ----------------------------------------------------------------------------------------------------------


def import_lightly(folder: str) -> dict[str, type]:
    """lightly's losses from a folder that pip filled.

    Its packages import torchvision for what we do not need, so they are entered without running them.
    """
    for name in ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules"):
        package = ModuleType(name)
        package.__path__ = [str(Path(folder, *name.split(".")))]
        sys.modules[name] = package
    losses = {"DINOLoss": "dino_loss", "IBOTPatchLoss": "ibot_loss", "KoLeoLoss": "koleo_loss"}
    return {loss: getattr(importlib.import_module(f"lightly.loss.{file}"), loss) for loss, file in losses.items()}


def measure_lightly(
    folder: str, images: int, prototypes: int, threads: int, rounds: int, seconds: float, seed: int
) -> list[dict] | str:
    """Loss and gradient by lightly and by us, in turns, from what enters the last layer on; or why there is none.

    Settings are equal: softmax with a centre, two global crops and four local ones, as many masked patches in each
    global crop.
    """
    try:
        theirs = import_lightly(folder)
    except (ImportError, AttributeError) as error:
        return f"lightly could not be imported from {folder}: {error}"
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, _BOTTLENECK, generator=generator), dim=-1)

    weights, side = draw(prototypes).requires_grad_(), 8
    fixed = weights.detach()
    teacher, student = draw(2, images), draw(2 + _LOCAL_CROPS, images).requires_grad_()
    mask = torch.zeros(2 * images, side, side, dtype=torch.bool)
    mask[:, : side // 4] = True
    patches = int(mask.sum())
    seen, guessed = draw(patches), draw(patches).requires_grad_()
    of_patch = torch.full((patches,), 1 / patches)
    constants = {"output_dim": prototypes, "teacher_temp": _TEMPERATURE, "student_temp": _STUDENT_TEMPERATURE}
    # A new one each time, so that the centre does not move on.
    dino, ibot = partial(theirs["DINOLoss"], **constants), partial(theirs["IBOTPatchLoss"], **constants)

    def our_dino() -> Tensor:
        targets = Centre(prototypes).balance(Logits(teacher.flatten(0, 1), fixed), _TEMPERATURE)
        logits = student @ weights.T
        return crop_loss(targets.chunk(slice(None)).view(2, images, -1), logits[2:], logits[:2])

    def our_ibot() -> Tensor:
        targets = Centre(prototypes).balance(Logits(seen, fixed), _TEMPERATURE)
        loss, *gradients = patch_gradient(guessed.detach(), fixed, targets, slice(0, patches), of_patch)
        torch.autograd.backward([guessed, weights], gradients)
        return loss

    pairs = {
        "DINOLoss": (our_dino, lambda: dino()(list(teacher @ fixed.T), list(student @ weights.T), _TEMPERATURE)),
        "IBOTPatchLoss": (our_ibot, lambda: ibot()(seen @ fixed.T, guessed @ weights.T, mask)),
        "KoLeoLoss": (lambda: koleo_loss(student[0]), lambda: theirs["KoLeoLoss"]()(student[0])),
    }
    rows = []
    for name, pair in pairs.items():
        ours, lightly = (partial(_take_gradient, call, (student, guessed, weights)) for call in pair)
        values = ours(), lightly()
        timings = measure_in_turns({"ours": ours, "lightly": lightly}, rounds, seconds)
        rows.append(
            {
                "section": "losses beside lightly",
                "loss": name,
                "images": images,
                "prototypes": prototypes,
                "threads": threads,
                "ours_milliseconds": 1e3 * timings["ours"].best,
                "lightly_milliseconds": 1e3 * timings["lightly"].best,
                "times_lightly": timings["lightly"].best / timings["ours"].best,
                "value_differs": abs(values[0] - values[1]) / abs(values[1]),
            }
        )
    return rows


def _take_gradient(loss: Callable[[], Tensor], features: tuple[Tensor, ...]) -> float:
    for one in features:
        one.grad = None
    value = loss()
    if value.requires_grad:
        value.backward()
    return value.item()


# --- a GPU ------------------------------------------------------------------------------------------------------------


def measure_gpu(scale: Scale, sizes: list[int], device: torch.device, rounds: int, seed: int) -> list[dict]:
    """Steps at each size beside the device's matrix product, and the largest batch that is taken in one piece."""
    ceiling = measure_ceiling(device, autocast_dtype(device) or torch.float32)
    rows = [{"section": "matrix product", "tflop_a_second": ceiling / 1e12}]
    for size in sizes:
        at_size = scale if len(sizes) == 1 else paper_scale(size, scale.images)
        step = Step(at_size, seed, device, micro_batch=_LARGEST)
        for name in _SCHEMES:
            images = find_largest(partial(_take_rows, step, name, at_size.images), _LARGEST)
            rows.append({"section": "largest batch", "scheme": name, "image_size": size, "images": images})
        step.rows = np.arange(at_size.images)
        spent = {name: count_flops(step.gradients[name]) for name in _SCHEMES}
        peaks = {}
        for name in _SCHEMES:
            torch.cuda.empty_cache()
            reset_peak_memory(device)
            step.take(name)
            peaks[name] = peak_memory_bytes(device)
        timings = measure_in_turns({name: partial(step.take, name) for name in _SCHEMES}, rounds)
        rows += [
            {
                "section": "step",
                "scheme": name,
                "image_size": size,
                "images": at_size.images,
                "seconds": timings[name].best,
                "images_a_second": at_size.images / timings[name].best,
                "times_published": timings["published"].best / timings[name].best,
                "of_ceiling": spent[name] / timings[name].best / ceiling,
                "peak_gib": peaks[name] / 2**30,
            }
            for name in _SCHEMES
        ]
    return rows


def _take_rows(step: Step, scheme: str, drawn: int, images: int) -> Callable[[], None]:
    def take() -> None:
        step.rows = np.arange(images) % drawn
        step.take(scheme)

    return take


# --- goals ------------------------------------------------------------------------------------------------------------


def state_goals(rows: list[dict], lightly: str) -> list[Goal]:
    """The goals, each against the worst of its rows; ``lightly`` says why there is no row of it."""

    def rows_of(section: str, **where: object) -> list[dict]:
        return [row for row in rows if row["section"] == section and where.items() <= row.items()]

    def list_all(chosen: list[dict], name: str, value: str) -> str:
        return ", ".join(f"{row[name]}: {row[value]:.2f}" for row in chosen)

    steps, heads = rows_of("step", scheme="ours"), rows_of("patch head", scheme="ours")
    slowest = min(row["times_published"] for row in steps)
    note = f"{list_all(steps, 'precision', 'times_published')}; counted {steps[0]['counted_times_published']:.2f}"
    goals = [reach("step: images a second over the published step restated", 1.3, slowest, note=note)]
    (exact,) = rows_of("step", scheme="ours", precision="fp32")
    apart = max(exact["loss_differs"], exact["gradient_differs"])
    goals.append(reach("step: losses and gradient beside the restatement, relative difference", 1e-5, apart, False))
    shares = {row["prototypes"]: row["of_published_memory"] for row in heads if "mebibytes" in row}
    note = list_all(heads, "prototypes", "of_published_memory") if shares else "memory was not measured"
    share = shares.get(_GOAL_PROTOTYPES)
    goals.append(reach(f"patch head, {_GOAL_PROTOTYPES} prototypes: memory beside whole", 0.25, share, False, note))
    apart = max(row["relative_difference"] for row in rows_of("gradient in pieces"))
    goals.append(reach("gradient in pieces beside one batch, relative difference", 1e-5, apart, False))
    full = max(row["scored_at"] for row in rows_of("counted cost of curation"))
    for side, target in ((full, 0.31), (full // 2, 0.25)):
        plain, dropping = (row["relative"] for row in rows_of("counted cost of curation", scored_at=side))
        note = f"{dropping:.3f} where 0.4 of the paths are left out of training, as published"
        name = f"curated at 22.7 % beside full, scored at {side} of {full} pixels, counted"
        goals.append(reach(name, target, plain, False, note))
    beside = rows_of("losses beside lightly")
    slowest = min((row["times_lightly"] for row in beside), default=None)
    note = lightly or list_all(beside, "loss", "times_lightly")
    goals.append(reach("losses and gradients: speed beside lightly, slowest", 1.0, slowest, note=note))
    return goals


def state_gpu_goals(rows: list[dict]) -> list[Goal]:
    """The goal that needs a GPU; without rows of one it is not measured."""
    shares = [row["of_ceiling"] for row in rows if row["section"] == "step" and row["scheme"] == "ours"]
    note = "" if rows else "no GPU on this machine: run with --gpu where there is one"
    return [reach("GPU: worst share of the matrix product's speed", 0.45, min(shares, default=None), note=note)]


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(__doc__, rounds=5)
    parser.add_argument("--gpu", action="store_true", help="measure on one device at the published scale")
    parser.add_argument("--device", default="cuda", help="the device of --gpu")
    parser.add_argument("--scale", choices=_SCALES, help="what is trained; small without --gpu, paper with it")
    parser.add_argument(
        "--prototypes", type=int, nargs="+", default=[1024, 8192, 65_536, 131_072], help="of the patch head"
    )
    parser.add_argument("--patches", type=int, default=_PATCHES, help="rows of the patch head")
    parser.add_argument("--seconds", type=float, default=20.0, help="time a candidate may take in one cell")
    parser.add_argument("--lightly", default="", help="folder that holds lightly; without it, it is left out")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory")
    options = parser.parse_args()
    if options.gpu and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA device, and torch finds none: run it where there is one, or add --device cpu.")
    return options


def measure_on_cpu(options: argparse.Namespace) -> tuple[list[dict], list[Goal]]:
    """All rows and goals of a run without ``--gpu``."""
    scale, seed, threads = _SCALES[options.scale or "small"](), options.seed, options.threads
    turns = threads, options.rounds, options.seconds, seed
    with drawn_study(scale.images, seed):
        rows = measure_steps(scale, *turns, options.memory)
        print("measured steps", flush=True)
        rows += measure_pieces(scale, seed)
        at_paper = replace(paper_scale(), images=scale.images)
        rows += count_curation(scale if options.scale == "least" else at_paper, seed)
        print("compared gradients, counted curation", flush=True)
    rows += measure_patch_head(options.prototypes, options.patches, *turns, options.memory)
    reason = "" if options.lightly else "not asked for: name its folder with --lightly"
    if options.lightly:
        beside = in_child(measure_lightly, options.lightly, scale.images, options.prototypes[0], *turns)
        rows, reason = (rows, beside) if isinstance(beside, str) else (rows + beside, "")
    return rows, state_goals(rows, reason) + state_gpu_goals([])


def main() -> None:
    options = read_options()
    with use_threads(options.threads):
        if options.gpu:
            scale = _SCALES[options.scale or "paper"]()
            sizes = [224, 512] if scale.encoder == paper_scale().encoder else [scale.constants["image_size"]]
            with drawn_study(scale.images, options.seed):
                rows = measure_gpu(scale, sizes, torch.device(options.device), options.rounds, options.seed)
            goals = state_gpu_goals(rows)
        else:
            rows, goals = measure_on_cpu(options)
        name = "self_supervised_gpu" if options.gpu else "self_supervised"
        write_record(name, rows, goals, options.out, packages=("transformers",))


if __name__ == "__main__":
    main()
