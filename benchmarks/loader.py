"""The way of the pixels: conversion and loading beside the published transform and loader, and what a step waits.

    python benchmarks/loader.py --images 24
    python benchmarks/loader.py --folder ~/radiographs          real PNGs instead of drawn ones

The published way (our own plain restatement: Pillow reads 8 bit, converts to RGB, resizes by a bicubic filter, cuts out
the centre; then float, channels first, normalised) decodes every image in every epoch, in workers of a ``DataLoader``.
Ours decodes once, into the pixel store, and copies rows of it in a thread; the model normalises on its device.

Images are 1,024 x 1,024: drawn or real ones, enlarged if they are smaller, with the grain of a detector, so that they
compress as radiographs do. Conversion runs in the same number of processes for both.
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))

from record import benchmark_parser, measure_in_turns, reach, write_record

from chexstudy.cohort.images.decode import decode_radiograph, fit_square
from chexstudy.cohort.phantom.build import build_phantom
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels.shards import ShardedImages
from chexstudy.cohort.pixels.store import PixelStore
from chexstudy.cohort.quality import check_image
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.spec import NORMALISATIONS, EncoderSpec
from chexstudy.pretraining.engine.loading import StallMeter, gather_pixels, prefetch

SIDE, GRAIN = 1024, 1.5
FEWEST_DRAWN = 60
MEAN, DEVIATION = (torch.tensor(values)[:, None, None] for values in NORMALISATIONS["clip"])


def draw_files(folder: Path, source: Path | None, count: int, seed: int) -> list[str]:
    """Write ``count`` grey PNGs of 1,024 x 1,024 and return their paths."""
    if source is None:
        settings = {"size": 192, "seed": seed, "junk_share": 0.0, "broken_files": 0}
        build_phantom(folder / "phantom", PhantomConfig(max(count, FEWEST_DRAWN), **settings))
        source = folder / "phantom"
    found = [path for path in sorted(source.rglob("*.png")) if _is_whole(path)][:count]
    if not found:
        raise SystemExit(f"there is no PNG that can be read in {source}: name another folder.")
    rng, paths = np.random.default_rng(seed), []
    for number in range(count):
        picture = Image.open(found[number % len(found)]).convert("L")
        if min(picture.size) < SIDE:
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            grey = np.asarray(picture) + rng.normal(0, GRAIN, (SIDE, SIDE))
            picture = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
        paths.append(str(folder / f"{number}.png"))
        picture.save(paths[-1])
    return paths


def _is_whole(path: Path) -> bool:
    try:
        decode_radiograph(path.read_bytes())
    except Exception:
        return False
    return True


# --- the published way ------------------------------------------------------------------------------------------------


def transform_as_published(path: str, size: int) -> torch.Tensor:
    """float32 ``(3, size, size)``, normalised."""
    picture = Image.open(path).convert("RGB")
    short = min(picture.size)
    width, height = (size * length // short for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    picture = picture.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    return pixels.sub_(MEAN).div_(DEVIATION)


class Files(Dataset):
    """Image files, read again whenever they are asked for."""

    def __init__(self, paths: list[str], size: int):
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return transform_as_published(self.paths[row], self.size)


# --- conversion -------------------------------------------------------------------------------------------------------


def _publish(path: str, size: int) -> None:
    transform_as_published(path, size)


def _convert(path: str, size: int) -> None:
    check_image(path, size, "crop")


TRANSFORMS = {"published transform": _publish, "ours: hash, decode, resize, check": _convert}


def _spend(task: tuple[str, str, int]) -> float:
    """Processor seconds of one image."""
    name, path, size = task
    start = time.process_time()
    TRANSFORMS[name](path, size)
    return time.process_time() - start


def _limit_threads() -> None:
    torch.set_num_threads(1)


def measure_conversion(paths: list[str], size: int, workers: int, rounds: int) -> list[dict]:
    """Images a second and core of both transforms, in turns, each in as many processes at once.

    Processor time, not wall clock: an image takes milliseconds, less than others on the machine may hold a core.
    """
    spent = {name: [] for name in TRANSFORMS}
    with multiprocessing.get_context("spawn").Pool(workers, _limit_threads) as pool:
        for number in range(rounds + 1):
            for name, times in spent.items():
                seconds = sum(pool.map(_spend, [(name, path, size) for path in paths], chunksize=1))
                # The first round loads compiled code and fills the caches.
                times.extend([seconds] * (number > 0))
    return [_row("conversion, one core", name, len(paths) / min(times), rounds) for name, times in spent.items()]


def count_differences(paths: list[str], size: int) -> tuple[int, int]:
    """Pixels that differ from Pillow's, decoded and resized."""
    decoded = resized = 0
    for path in paths:
        picture = Image.open(path)
        grey = decode_radiograph(Path(path).read_bytes())
        decoded += int((grey != np.asarray(picture)).sum())
        if picture.width == picture.height:
            expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
            resized += int((fit_square(grey, size) != expected).sum())
    return decoded, resized


# --- loading ----------------------------------------------------------------------------------------------------------


def make_store(folder: Path, size: int, images: int, seed: int) -> PixelStore:
    """A store of noise in two mapped shards."""
    rng, shards = np.random.default_rng(seed), []
    for number in range(2):
        path = folder / f"store-{size}-{number}.npy"
        np.save(path, rng.integers(0, 256, (images // 2, size, size), dtype=np.uint8))
        shards.append(np.load(path, mmap_mode="r"))
    return PixelStore(ShardedImages(shards), [], "crop")


def measure_loaders(paths: list[str], store: PixelStore, options) -> list[dict]:
    """Images a second of both loaders, batches of random rows, workers started beforehand."""
    rng = np.random.default_rng(options.seed)
    repeated = [paths[row] for row in rng.integers(0, len(paths), 2 * options.batch)]
    published = DataLoader(
        Files(repeated, options.size), options.batch, num_workers=options.workers, persistent_workers=True
    )
    pieces = [rng.integers(0, len(store), options.batch) for _ in range(25)]

    def load_ours() -> None:
        for _ in prefetch(pieces, lambda rows: gather_pixels(store, rows)):
            pass

    def load_published() -> None:
        for _ in published:
            pass

    callables = {"published loader": load_published, "ours: take and prefetch": load_ours}
    timings = measure_in_turns(callables, options.rounds)
    loaded = {"published loader": len(repeated), "ours: take and prefetch": len(pieces) * options.batch}
    return [_row("loading", name, loaded[name] / timing.best, timing.rounds) for name, timing in timings.items()]


def measure_stall(store: PixelStore, batch: int, steps: int, seed: int) -> float:
    """Share of its time that a small training step waits for its input: tiny-vit, forward, backward and AdamW."""
    encoder = build_image_encoder(EncoderSpec("tiny-vit", pretrained=False, image_size=store.size), seed).train()
    optimizer = torch.optim.AdamW(encoder.parameters())
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(0, len(store), batch) for _ in range(steps)]
    meter, start = StallMeter(), time.perf_counter()
    for pixels in prefetch(pieces, lambda rows: gather_pixels(store, rows), meter=meter):
        optimizer.zero_grad(set_to_none=True)
        encoder(pixels).square().mean().backward()
        optimizer.step()
    return meter.seconds / (time.perf_counter() - start)


def _row(part: str, name: str, rate: float, rounds: int) -> dict:
    return {"part": part, "method": name, "images_a_second": rate, "rounds": rounds}


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=5)
    parser.add_argument("--images", type=int, default=24, help="PNGs converted")
    parser.add_argument("--folder", type=Path, help="take PNGs from here instead of drawing them")
    parser.add_argument("--size", type=int, default=378, help="pixels on a side of what is stored and loaded")
    parser.add_argument("--batch", type=int, default=80, help="images a batch")
    parser.add_argument("--stored", type=int, default=2_000, help="images in the store that is read")
    parser.add_argument("--steps", type=int, default=30, help="training steps in which waiting is measured")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes of both conversions and of the published loader"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = draw_files(folder, options.folder, options.images, options.seed)
        megabytes = sum(Path(path).stat().st_size for path in paths) / len(paths) / 1e6
        decoded, resized = count_differences(paths, options.size)
        conversion = measure_conversion(paths, options.size, options.workers, options.rounds)
        loading = measure_loaders(paths, make_store(folder, options.size, options.stored, options.seed), options)
        start = time.perf_counter()
        share = measure_stall(make_store(folder, 96, options.stored, options.seed), options.batch, options.steps, 0)
        rate = options.steps * options.batch / (time.perf_counter() - start)
    stall = _row("training tiny-vit at 96 px", "ours: take and prefetch", rate, 1)
    rows = [*conversion, *loading, {**stall, "share_waited": share}]
    inflating = f"streams inflated by isal_zlib, files of {megabytes:.2g} MB"
    speed = conversion[1]["images_a_second"] / conversion[0]["images_a_second"]
    faster = loading[1]["images_a_second"] / loading[0]["images_a_second"]
    goals = [
        reach("conversion over the published transform, times as fast", 3, speed, note=inflating),
        reach("decoded pixels that differ from Pillow's", 0, decoded, at_least=False),
        reach("resized pixels that differ from Pillow's", 0, resized, at_least=False),
        reach("loader over the published loader, times as fast", 100, faster),
        reach("share of a training step that waits for its input", 0.02, share, at_least=False),
    ]
    write_record("loader", rows, goals, options.out, packages=("pillow", "isal"))


if __name__ == "__main__":
    main()
