"""Near-duplicates: how many known copies are found, how many found are none, and what it costs.

Three parts. The second exposures of a drawn cohort, a study of notebook 1, once with the ids of studies and once by
pixels alone. Copies made of real images, one of each and under a name of its own, with the other images of the same
patients among those that must not be linked (in the folder of CHEXSTUDY_REAL_DATA, left out where there is none). And
the time for `--images` images, each a blend of two drawn ones; with fewer than 100,000 the goal's time is that of the
search times the square of the ratio and of all else times the ratio. Processor seconds count, of all threads, since
wall seconds depend on who else is at work; two cores do 600 of them in 5 minutes.
"""

import io
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from record import benchmark_parser, reach, write_record

from chexstudy.cohort.adapters import build_source
from chexstudy.cohort.images.decode import decode_radiograph, fit_square, read_bytes
from chexstudy.cohort.near_duplicates import find_pairs
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.quality import resolve_image_paths
from chexstudy.cohort.table import read_cohort
from chexstudy.runs import Run
from chexstudy.vectors.neighbours import find_most_similar

_GOAL_IMAGES, _GOAL_SECONDS = 100_000, 600
_SIDE = 96
_REAL = {"nih": "nih", "nlm_tb": "nlm_tb"}
_WHO = ["image_id", "patient_id", "study_id"]


def time_work(work, *given):
    """What the work gives, with its processor seconds and wall seconds."""
    processor, wall = time.process_time(), time.perf_counter()
    given = work(*given)
    return given, time.process_time() - processor, time.perf_counter() - wall


def measure_phantom(run: Run) -> list[dict]:
    store, cohort = open_pixel_store(run), read_cohort(run.path("cohort.parquet"))
    truth = run.read_table("truth.parquet").set_index("image_id").reindex(cohort["image_id"])
    original = pd.Index(cohort["image_id"]).get_indexer(truth["duplicate_of"].fillna(""))
    known = {(first, second) for second, first in enumerate(original.tolist()) if first >= 0}
    rows = []
    for by in ("pixels and ids of studies", "pixels alone"):
        who = (
            cohort
            if by != "pixels alone"
            else cohort.assign(patient_id=cohort["image_id"], study_id=cohort["image_id"])
        )
        pairs, processor, wall = time_work(find_pairs, store.images, who)
        found = set(zip(pairs["first"], pairs["second"], strict=True))
        right = len(found & known)
        rows.append(
            {
                "by": by, "images": len(cohort), "known": len(known), "found": len(found), "right": right,
                "recall": right / len(known), "precision": right / max(1, len(found)),
                "processor_s": processor, "wall_s": wall,
            }
        )  # fmt: skip
    return rows


def spoil(image: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """A copy of an image as archives have them."""
    picture, side = Image.fromarray(image), image.shape[0]
    if kind == "resized":
        small = int(side * generator.uniform(0.4, 0.7))
        return np.asarray(picture.resize((small, small), Image.Resampling.BILINEAR))
    if kind == "cropped 5-10 %":
        share = generator.uniform(0.05, 0.10)
        left, top = (generator.random(2) * share * side).astype(int).tolist()
        left_over = int(side * (1 - share))
        return np.asarray(picture.crop((left, top, left + left_over, top + left_over)))
    if kind == "inverted":
        return 255 - image
    if kind == "JPEG of quality 30":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=30)
        return np.asarray(Image.open(file))
    if kind == "rotated 3-10 degrees":
        return np.asarray(
            picture.rotate(generator.uniform(3, 10) * generator.choice([-1, 1]), Image.Resampling.BILINEAR)
        )
    if kind == "shifted":
        right, down = (generator.uniform(-0.04, 0.04, 2) * side).astype(int).tolist()
        return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down)))
    if kind == "noise":
        noise = generator.normal(0, generator.uniform(5, 12), image.shape)
    elif kind == "exposure":
        curve = 255 * (image / 255) ** generator.uniform(0.65, 1.5)
        noise = curve * generator.uniform(0.8, 1.1) + generator.uniform(-10, 15) - image
    return np.clip(image + noise, 0, 255).astype(np.uint8)


COPIES = (
    *("resized", "cropped 5-10 %", "inverted", "JPEG of quality 30", "rotated 3-10 degrees", "shifted"),
    *("noise", "exposure"),
)


def measure_real(source: str, folder: Path, seed: int) -> list[dict]:
    cohort = build_source(source, folder, seed, folder)
    films = [decode_radiograph(read_bytes(path)) for path in resolve_image_paths(cohort, folder)]
    generator = np.random.default_rng(seed)
    kinds = np.array(COPIES)[generator.permutation(len(films)) % len(COPIES)]
    made = [spoil(film, kind, generator) for film, kind in zip(films, kinds, strict=True)]
    images = np.stack([fit_square(np.ascontiguousarray(film), _SIDE, "pad") for film in (*films, *made)])
    strangers = pd.DataFrame(dict.fromkeys(_WHO, "copy/" + cohort["image_id"]))
    pairs = find_pairs(images, pd.concat([cohort[_WHO], strangers], ignore_index=True))
    shown = pairs[["first", "second"]].to_numpy() % len(films)
    is_right = shown[:, 0] == shown[:, 1]
    patient = cohort["patient_id"].to_numpy()
    copied = np.where(pairs["second"] >= len(films), kinds[shown[:, 1]], "none planted")
    wrong = pd.Series(copied[~is_right])
    rows = []
    for kind in COPIES:
        right, planted, false = (is_right & (copied == kind)).sum(), (kinds == kind).sum(), wrong.eq(kind).sum()
        rows.append((source, kind, planted, right, right / planted, right / max(1, right + false)))
    of_one = (patient[shown[:, 0]] == patient[shown[:, 1]]) & ~is_right
    others = cohort.groupby("patient_id").size()
    right = is_right.sum()
    rows.append((source, "all", len(films), right, right / len(films), right / max(1, len(pairs))))
    columns = ("source", "kind", "planted", "found", "recall", "precision")
    one_patient = {"same_patient_pairs": int((others * (others - 1) // 2).sum()), "linked_wrongly": int(of_one.sum())}
    return [dict(zip(columns, row, strict=True)) | one_patient for row in rows]


def measure_time(run: Run, count: int, seed: int) -> dict:
    films = open_pixel_store(run).images[:]
    generator = np.random.default_rng(seed)
    first, second = generator.integers(len(films), size=(2, count))
    share = generator.uniform(0.3, 0.7, count).astype(np.float32)[:, None, None]
    images = np.concatenate(
        [
            (share[rows] * films[first[rows]] + (1 - share[rows]) * films[second[rows]]).astype(np.uint8)
            for rows in np.array_split(np.arange(count), max(1, count // 1000))
        ]
    )
    who = pd.DataFrame(dict.fromkeys(_WHO, pd.Series(np.arange(count)).astype(str)))
    pairs, processor, wall = time_work(find_pairs, images, who)
    random = generator.standard_normal((count, 128), dtype=np.float32)
    _, search, _ = time_work(find_most_similar, random, random, 6)
    ratio = _GOAL_IMAGES / count
    scaled = max(0.0, processor - search) * ratio + search * ratio**2
    return {
        "images": count, "processor_s": processor, "of_it_search_s": search, "wall_s": wall, "linked": len(pairs),
        "processor_s_of_100000": scaled,
    }  # fmt: skip


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--study", default="demo", help="a drawn study whose notebook 1 has run")
    parser.add_argument("--images", type=int, default=_GOAL_IMAGES, help="images of the timing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run = Run(given.study)
    drawn = measure_phantom(run)
    data = Path(os.environ.get("CHEXSTUDY_REAL_DATA", ""))
    real = [
        row
        for source, folder in _REAL.items()
        if os.environ.get("CHEXSTUDY_REAL_DATA") and (data / folder).is_dir()
        for row in measure_real(source, data / folder, given.seed)
    ]
    timed = measure_time(run, given.images, given.seed)
    goals = []
    for row in drawn:
        note = "a patient's studies of two days can be drawn as alike as two exposures" * (row["by"] == "pixels alone")
        for name, target in (("recall", 0.95), ("precision", 0.98)):
            goals.append(reach(f"second exposures drawn, by {row['by']}: {name}", target, row[name], note=note))
    for source in _REAL:
        of_all = next((row for row in real if (row["source"], row["kind"]) == (source, "all")), {})
        for name, target in (("recall", 0.95), ("precision", 0.98)):
            note = "" if of_all else "no real images here"
            goals.append(reach(f"copies planted in {source}: {name}", target, of_all.get(name), note=note))
    note = (
        "" if given.images == _GOAL_IMAGES else f"from {given.images:,}: search by the square, all else in proportion"
    )
    seconds = timed["processor_s_of_100000"]
    goals.append(reach("processor seconds, 100,000 images", _GOAL_SECONDS, seconds, at_least=False, note=note))
    write_record("near_duplicates", [*drawn, *real, timed], goals, given.out)


if __name__ == "__main__":
    main()
