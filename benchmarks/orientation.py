"""Images that lie wrong: how many of those turned by us are found, and how many sound ones are called wrong.

    python benchmarks/orientation.py --study demo --folders ~/nih/images ~/nlm_tb/images

A study is a drawn one that was built before; of its training images those that are no whole radiograph are left out. A
folder holds real radiographs; what stands before the last underscore of a file's name is the patient. In each round
other images are turned, a fifth of them in each way, or all in one way. Intervals are Wilson's; rounds share images, so
that those of more than one round are too narrow.
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from record import benchmark_parser, reach, write_record

from chexstudy.cohort.orientation import ASKED, find_orientation
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.quality import read_checked
from chexstudy.cohort.table import read_cohort
from chexstudy.runs import Run
from chexstudy.statistics.proportions import wilson_interval

SIZE = 96


def read_study(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, size, size)`` and patients of a drawn study, without the junk that was planted in it."""
    run = Run(name)
    cohort = read_cohort(run.path("cohort.parquet"))
    junk = run.read_table("truth.parquet").set_index("image_id")["junk"]
    cohort = cohort[~cohort["image_id"].map(junk).fillna(False).astype(bool)]
    return open_pixel_store(run).read(cohort["image_id"]), cohort["patient_id"].to_numpy()


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and patients of a folder of real radiographs."""
    files = sorted(folder.glob("*.png"))
    read = [
        (one.pixels, file.stem.rpartition("_")[0])
        for file, one in zip(files, read_checked(files, SIZE, "pad"), strict=True)
    ]
    images, patients = zip(*[pair for pair in read if pair[0] is not None], strict=True)
    return np.stack(images), np.array(patients)


def lay(image: np.ndarray, kind: str) -> np.ndarray:
    """An upright image as it lies after one of `ASKED` was done to it."""
    if kind.startswith("rotated"):
        return np.rot90(image, -int(kind.split()[1]) // 90)
    return 255 - image if kind == "negative" else image[:, ::-1]


def measure(images: np.ndarray, patients: np.ndarray, share: float, kinds: tuple[str, ...], most: int, rounds: int):
    """Rows of what was found of each kind, and of sound images, over the rounds."""
    right, alarms = {kind: [] for kind in kinds}, []
    start = time.process_time()
    for number in range(rounds):
        generator = np.random.default_rng(number)
        order = generator.permutation(np.unique(patients))
        chosen = np.flatnonzero(np.isin(patients, order[:most]))[:most]
        lying, planted = images[chosen].copy(), np.full(len(chosen), "", dtype=object)
        rows = generator.permutation(len(chosen))[: max(len(kinds), round(share * len(chosen)))]
        planted[rows] = np.resize(kinds, len(rows))
        for row in rows:
            lying[row] = lay(lying[row], planted[row])
        found = find_orientation(lying, patients[chosen], np.zeros(len(chosen), bool))[0]["found"].to_numpy()
        for kind in kinds:
            right[kind] += list(found[planted == kind] == kind)
        alarms += list(found[planted == ""] != "upright")
    seconds = (time.process_time() - start) / rounds
    about = {"images": len(chosen), "planted": share, "in": "all ways" if len(kinds) > 1 else "one way"}
    about |= {"rounds": rounds, "seconds_a_round": seconds}
    for kind, hits in {**right, "false alarms": alarms}.items():
        low, high = wilson_interval(np.mean(hits), len(hits))
        yield {**about, "kind": kind, "cases": len(hits), "share": float(np.mean(hits)), "low": low, "high": high}


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--study", help="a drawn study, built before")
    parser.add_argument("--folders", nargs="*", type=Path, default=[], help="folders of real radiographs")
    options = parser.parse_args()
    cohorts = {"drawn": read_study(options.study)} if options.study else {}
    cohorts |= {folder.resolve().parent.name: read_folder(folder) for folder in options.folders}
    rows = []
    for name, (images, patients) in cohorts.items():
        plans = [(0.01, ASKED, len(images)), (0.05, ASKED, len(images)), (0.05, ASKED, 100)]
        plans += [(0.05, (kind,), len(images)) for kind in ASKED]
        for share, kinds, most in plans:
            rounds = options.rounds * (10 if most == 100 else 1)
            rows += [{"cohort": name, **row} for row in measure(images, patients, share, kinds, most, rounds)]
    whole = [row for row in rows if row["images"] > 100]
    goals = []
    for name in cohorts:
        seen = [one for one in whole if one["cohort"] == name]
        plain = min(one["share"] for one in seen if one["kind"] not in ("mirrored", "false alarms"))
        alarms = max(1000 * one["share"] for one in seen if one["kind"] == "false alarms")
        goals.append(reach(f"{name}: negative and rotated images found, least share", 0.95, plain))
        goals.append(reach(f"{name}: false alarms in 1,000 sound images", 2.0, alarms, at_least=False))
    write_record("orientation", rows, goals, options.out)


if __name__ == "__main__":
    main()
