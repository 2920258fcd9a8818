"""Faults planted in a cohort: does the mismatch filter find them, and does anything without reports?

    python benchmarks/planted_faults.py --studies nih nlm_tb drawn --trained nih nlm_tb

A study is a cohort that was built before (`chexstudy cohort build`), one's own or a drawn one; of a drawn one the pairs
that were spoiled when it was drawn are left out, and of a cohort with written reports the pairs without. Into the sound
pairs faults are planted at each rate, anew in each round (see `planting.py`), and every score is judged by its AUROC
and by its precision when as many pairs are set aside as were planted. Pairs are scored by the upstream pair, which has
seen none of them, and for the studies of ``--trained`` by scorers that begin with its encoders and learn from the other
patients' pairs, faults among them: five folds of patients, each scored by the one that has not seen it. Their scores
are ranks within the fold. Intervals draw patients and rounds. Each study has a file of results of its own.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image
from planting import COPY, JUNK, SWAP, Planted, plant_faults, score_images
from record import benchmark_parser, reach, write_record
from scipy.stats import rankdata
from sklearn.model_selection import GroupKFold

from chexstudy.cohort.pixels.store import build_pixel_store, open_pixel_store
from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers, tiers_of_pairs
from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import NO_FINDING, read_cohort
from chexstudy.curation.online.mismatch_filter import FilterVerdict, judge_filter, rank_pairs
from chexstudy.curation.quality.pair_mismatch import score_mismatch
from chexstudy.encoders.embeddings import embed_images, embed_texts
from chexstudy.encoders.upstream_encoders import FOLDER, PAIR
from chexstudy.pretraining.arms.definitions import arm_folder, name_method_arm, subset_artifact
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, load_model
from chexstudy.pretraining.training.scoring import joint_features
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import (
    RESAMPLES,
    bootstrap_patients,
    count_scarcer_patients,
    interval,
    resample_seeds,
)
from chexstudy.statistics.ranking import auroc

_FOLDS, _SUPER_BATCH = 5, 480
UPSTREAM, TRAINED, IMAGES = "upstream pair", "trained on the rest", "images alone"
WRONG, RARE = "swap or junk", "rare, sound"
_FILTER = "filter"
_GOALS = {(_FILTER, SWAP): 0.7, ("orientation", JUNK): 0.95, ("near-duplicate", COPY): 0.95}


@dataclass(frozen=True)
class Seen:
    """What a scorer says of the pairs."""

    scores: dict[str, np.ndarray]  # by name ``(n,)``, high where a pair is rather wrong
    verdict: FilterVerdict | None = None


def read_sound(study: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The pairs of a study that may be taken for sound, and their images ``uint8 (n, side, side)``."""
    run = Run(study)
    cohort = read_cohort(run.path("cohort.parquet")).query("split != 'test_enriched'")
    if run.has("truth.parquet"):
        truth = run.read_table("truth.parquet").set_index("image_id").loc[cohort["image_id"]]
        cohort = cohort[~(truth["mismatched"] | truth["junk"] | truth["duplicate_of"].fillna("").ne("")).to_numpy()]
    if cohort["report_origin"].eq("written").any():
        cohort = cohort[cohort["report_origin"] == "written"]
    has_text = cohort["report"].map(training_text).ne("")
    cohort = cohort[has_text | ~has_text.any()].assign(split="train").reset_index(drop=True)
    return cohort, open_pixel_store(run).read(cohort["image_id"])


def see_pairs(planted: Planted, batches: list[np.ndarray], embed: Callable[[int], tuple], whole: bool) -> Seen:
    """Scores of the pairs in batches of rows, whose embeddings ``(rows, dim)`` are ``embed(number of the batch)``.

    If all are of one scorer, cosine and doubt are compared over the ``whole``; else they become ranks in their batch.
    """
    count = len(planted.cohort)
    matched, shuffled, sides = np.empty(count), np.empty(count), {}
    scores = {_FILTER: np.empty(count), "cosine": np.empty(count), "doubt": np.empty(count)}
    for number, rows in enumerate(batches):
        image, text = sides[number] = embed(number)
        matched[rows], shuffled[rows] = (one.numpy() for one in rank_pairs(*map(torch.from_numpy, (image, text))))
    groups = [np.concatenate(batches)] if whole else batches
    joined = [tuple(map(np.concatenate, zip(*sides.values(), strict=True)))] if whole else list(sides.values())
    for rows, (image, text) in zip(groups, joined, strict=True):
        said = score_mismatch(joint_features(image, text))
        for name, values in (("cosine", -said.agreement), ("doubt", said.score)):
            scores[name][rows] = values if whole else rankdata(values) / len(rows)
    scores[_FILTER] = -matched
    return Seen(scores, judge_filter(matched, shuffled))


def embed_pairs(model: ImageTextModel, planted: Planted, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    texts = planted.cohort["report"].iloc[rows].map(training_text).tolist()
    tower = model.text_tower
    return embed_images(model.image_tower, planted.images[rows]), embed_texts(tower, tower.tokenize, texts)


def see_upstream(planted: Planted, generator: np.random.Generator) -> Seen:
    order = generator.permutation(len(planted.cohort))
    batches, model = np.array_split(order, -(-len(order) // _SUPER_BATCH)), load_model(FOLDER / "pair")
    return see_pairs(planted, batches, lambda number: embed_pairs(model, planted, batches[number]), whole=True)


def see_trained(planted: Planted, run: Run, epochs: int, workers: int, seed: int) -> Seen:
    """Scorers that each learn from all but a fold of patients, and score that; the run is for them alone."""
    run.path("planted").mkdir(parents=True)
    names = [f"planted/{row}.png" for row in range(len(planted.cohort))]
    for name, pixels in zip(names, planted.images, strict=True):
        Image.fromarray(pixels).save(run.path(name))
    cohort = planted.cohort.assign(image_path=names)
    # A crop of the dark margin is blank and set aside.
    stored = build_pixel_store(run, cohort, planted.images.shape[1], "pad", workers, root=run.folder).image_ids
    splits = GroupKFold(_FOLDS, shuffle=True, random_state=seed).split(cohort, groups=cohort["patient_id"])
    arms, judged = [], []
    for number, (learned, rows) in enumerate(splits):
        ids = cohort["image_id"].iloc[learned]
        ids = ids[ids.isin(stored)].to_numpy()
        run.write_table(subset_artifact(f"fold{number}", seed), pd.DataFrame({"image_id": ids, "weight": 1.0}))
        arms.append(name_method_arm(f"fold{number}"))
        judged.append(rows)
    told = {"image_encoder": f"{PAIR}-image", "text_encoder": f"{PAIR}-text", "image_size": planted.images.shape[1]}
    told |= {"batch_size": 64, "super_batch": 64, "subset_epochs": epochs - 1, "learning_rate": 1e-3}
    train_arms(run, arms, [seed], PretrainingConfig.from_dict(told), "cpu", workers)
    models = [load_model(run.path(f"{arm_folder(arm, seed)}/model")) for arm in arms]
    return see_pairs(planted, judged, lambda number: embed_pairs(models[number], planted, judged[number]), whole=False)


def ask(planted: Planted) -> dict[str, np.ndarray]:
    """Labels ``(n,)`` of what is to be found: 1, 0 for sound pairs, -1 for those that a question leaves out."""
    fault, sound = planted.fault, (planted.fault == "") & ~planted.is_copied
    tiers = tiers_of_pairs(planted.cohort, prevalence_tiers(measure_prevalence(planted.cohort)))
    wanted = {SWAP: fault == SWAP, JUNK: fault == JUNK, WRONG: np.isin(fault, (SWAP, JUNK)), COPY: fault == COPY}
    labels = {name: np.select([found, sound], [1, 0], -1) for name, found in wanted.items()}
    return labels | {RARE: np.select([sound & (tiers == "tail"), sound], [1, 0], -1)}


def measure_share(labels: np.ndarray, aside: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the wanted among those set aside in each resample ``(resamples,)``."""
    chosen = weights[:, aside & (labels >= 0)].sum(axis=1)
    with np.errstate(invalid="ignore"):
        return weights[:, aside & (labels == 1)].sum(axis=1) / chosen


def set_aside(labels: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many of the pairs asked about as are wanted, the highest scores first, equal ones in a random order."""
    asked = np.flatnonzero(labels >= 0)
    order = asked[np.lexsort((generator.random(len(asked)), -scores[asked]))]
    aside = np.zeros(len(labels), dtype=bool)
    aside[order[: (labels == 1).sum()]] = True
    return aside


def measure_rounds(rounds: list[tuple[Planted, dict[str, Seen]]], patients, generator) -> list[dict]:
    """AUROC and precision of each score for each fault, means over rounds, with intervals."""
    drawn = bootstrap_patients(patients, RESAMPLES, generator)
    found: dict[tuple, list] = {}
    for planted, seen in rounds:
        weights = np.concatenate([np.ones((1, len(planted.origin)), dtype=drawn.dtype), drawn[:, planted.origin]])
        for fault, labels in ask(planted).items():
            if not (labels == 1).any():
                continue
            fewest = count_scarcer_patients(labels[:, None], drawn[:, planted.origin])[0]
            for scorer, said in seen.items():
                for score, values in said.scores.items():
                    area = auroc(labels[:, None], values[:, None], weights)[:, 0]
                    precision = measure_share(labels, set_aside(labels, values, generator), weights)
                    found.setdefault((scorer, score, fault), []).append((area, precision, fewest, labels))
    rows = []
    for (scorer, score, fault), measured in found.items():
        areas, precisions, fewest, labels = zip(*measured, strict=True)
        row = {"scorer": scorer, "score": score, "fault": fault}
        for name, values in (("auroc", np.stack(areas)), ("precision", np.stack(precisions))):
            ends = interval(resample_seeds(values[:, 1:], generator), patients=np.min(fewest))
            low, high = (_known(np.clip(end, 0, 1)) for end in ends)
            row |= {name: values[:, 0].mean(), f"{name}_low": low, f"{name}_high": high}
        wanted = np.mean([(one == 1).sum() for one in labels])
        rows.append(row | {"planted": wanted, "share": wanted / np.mean([(one >= 0).sum() for one in labels])})
    return rows


def _known(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if np.isnan(value) else float(value)


def count_kinds(rounds: list[tuple[Planted, dict[str, Seen]]], generator) -> list[dict]:
    """How many of each kind of junk and of copy are among as many images as were planted, all rounds together."""
    rows = []
    for fault, score in ((JUNK, "orientation"), (JUNK, "small cluster"), (COPY, "near-duplicate")):
        kinds, aside = [], []
        for planted, seen in rounds:
            labels = ask(planted)[fault]
            chosen = set_aside(labels, seen[IMAGES].scores[score], generator)
            kinds += planted.kind[labels == 1].tolist()
            aside += chosen[labels == 1].tolist()
        found = pd.Series(aside).groupby(kinds).agg(["size", "mean"])
        rows += [
            {"fault": fault, "kind": kind, "score": score, "planted": int(size), "found": mean}
            for kind, size, mean in found.itertuples()
        ]
    return rows


def describe_cut(planted: Planted, verdict: FilterVerdict, ranks: np.ndarray) -> dict:
    """What the filter does by itself: what it sets aside, and of whom."""
    aside = ranks < verdict.cut
    healthy = planted.cohort.get(NO_FINDING, pd.Series(0, planted.cohort.index)).eq(1).to_numpy()
    sound = planted.fault == ""

    def share(of: np.ndarray) -> float | None:
        return float(aside[of].mean()) if of.any() else None

    area = {"told_apart": verdict.area, "told_low": verdict.ci_low, "told_high": verdict.ci_high}
    said = {name: _known(value) for name, value in area.items()}
    said |= {"abstains": verdict.abstains, "set_aside": aside.mean()}
    said |= {"wrong_among_these": float(np.isin(planted.fault[aside], (SWAP, JUNK)).mean()) if aside.any() else None}
    said |= {f"of_{fault}": share(planted.fault == fault) for fault in (SWAP, JUNK, COPY)}
    return said | {"of_sound_healthy": share(sound & healthy), "of_sound_others": share(sound & ~healthy)}


def measure_study(study: str, rate: float, options, is_trained: bool) -> tuple[list[dict], ...]:
    """Rows of what was measured, of what the filter does by itself, and of what is found of each kind."""
    cohort, images = read_sound(study)
    rounds, cuts, begun = [], [], time.perf_counter()
    about = {"study": study, "text": cohort["report_origin"].iloc[0], "pairs": len(cohort), "rate": rate}
    for number in range(options.rounds):
        generator = np.random.default_rng([options.seed, number])
        planted = plant_faults(cohort, images, rate, generator)
        has_texts = cohort["report"].map(training_text).ne("").all()
        seen = {UPSTREAM: see_upstream(planted, generator)} if has_texts else {}
        if is_trained and has_texts:
            run = Run(f"{study}-planted-{os.getpid()}")
            try:
                seen[TRAINED] = see_trained(planted, run, options.epochs, options.workers, number)
            finally:
                shutil.rmtree(run.folder, ignore_errors=True)
        for scorer, said in seen.items():
            cut = describe_cut(planted, said.verdict, -said.scores[_FILTER])
            cuts.append({**about, "round": number, "scorer": scorer, **cut})
            print(f"{study} at {rate:.0%}, round {number}, {scorer}: {said.verdict}", flush=True)
        seen[IMAGES] = Seen(score_images(planted, generator))
        rounds.append((planted, seen))
    measured = measure_rounds(rounds, cohort["patient_id"].to_numpy(), np.random.default_rng(options.seed))
    seconds = (time.perf_counter() - begun) / options.rounds
    about |= {"rounds": options.rounds, "seconds_a_round": seconds}
    kinds = count_kinds(rounds, np.random.default_rng(options.seed))
    return [about | row for row in measured], cuts, [about | row for row in kinds]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--studies", nargs="+", required=True, help="studies whose cohort was built before")
    parser.add_argument("--trained", nargs="*", default=[], help="those for which a scorer is trained on the rest")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.04, 0.12], help="shares planted of each fault")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a scorer that is trained")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for study in options.studies:
        tables = [[], [], []]
        for rate in options.rates:
            measured = measure_study(study, rate, options, study in options.trained)
            tables = [[*table, *more] for table, more in zip(tables, measured, strict=True)]
        goals = []
        for row in tables[0]:
            if target := _GOALS.get((row["score"], row["fault"])):
                name = f"{row['rate']:.0%} planted, {row['scorer']}: AUROC of {row['score']}, {row['fault']}"
                goals.append(reach(name, target, row["auroc"]))
        write_record(f"planted_faults_{study}", [row for table in tables for row in table], goals, options.out)


if __name__ == "__main__":
    main()
