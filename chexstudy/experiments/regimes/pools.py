"""Pools to choose from: drawn once for each seed, then mixed to any size and share of wrong pairs and copies."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.phantom.build import build_phantom
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels.store import PixelStore, build_pixel_store, open_pixel_store
from chexstudy.cohort.table import finding_columns, label_matrix, read_cohort
from chexstudy.errors import StudyError
from chexstudy.experiments.regimes.design import Cell
from chexstudy.runs import Run

HELD_OUT = 600  # images of validation, and of each test set
# Of each finding in the enriched test set.
_POSITIVES = 40
# Of the pool of 16,000, as much as any cell asks for; of a larger one, the share of the centre.
_MOST_COPIES, _MOST_JUNK, _AT = 0.2, 0.04, 16_000
_SHARE = 0.04
# A third of the wrong pairs has no radiograph, the others another patient's report, as in the phantom of the study.
_JUNK_OF_WRONG = 1 / 3
# The patients of the bench are those of no study and not those of the upstream encoders.
_FIRST_SEED = 5_000
_CANDIDATES = 64


@dataclass(frozen=True)
class _BankConfig(PhantomConfig):
    """A cohort of which all but a fixed number of patients is for training."""

    def split_sizes(self) -> dict[str, int]:
        held_out = dict.fromkeys(("validate", "test", "test_enriched"), HELD_OUT)
        return {"train": self.pairs - sum(held_out.values()), **held_out}


@dataclass(frozen=True)
class Pool:
    """What a cell chooses from and is judged by."""

    pairs: pd.DataFrame  # ``(pool,)`` rows of the cohort, reports as the cell has them
    truth: pd.DataFrame  # ``(pool,)``: ``image_id``, ``mismatched``, ``junk``, ``duplicate_of``
    held_out: dict[str, pd.DataFrame]  # rows of the cohort by split
    store: PixelStore  # where the images of all are

    @property
    def sound(self) -> np.ndarray:
        """Which pairs belong together and show a chest ``(pool,)``."""
        return ~(self.truth.mismatched | self.truth.junk).to_numpy()


def bank_of(cell: Cell, seed: int) -> Run:
    """The study that holds what the pools of a seed are mixed from."""
    return Run(f"regimes-{max(cell.pool, _AT)}-{cell.side}px-seed{seed}")


def draw_bank(cell: Cell, seed: int, workers: int = 2) -> Run:
    """Draw the patients of a seed, unless they are there, for every pool up to the cell's size.

    Which finding is how rare is permuted by the seed, so that nothing hangs on one being rare and hard to see at once.
    """
    run, size = bank_of(cell, seed), max(cell.pool, _AT)
    copies, junk = (
        max(most * _AT, share * size) for most, share in ((_MOST_COPIES, _SHARE), (_MOST_JUNK, _SHARE * _JUNK_OF_WRONG))
    )
    training = size + round(copies) + round(junk)
    config = _BankConfig(
        training + 3 * HELD_OUT,
        cell.side,
        _FIRST_SEED + seed,
        permutation_seed=_FIRST_SEED + seed,
        duplicate_share=copies / training,
        mismatch_share=0.0,
        junk_share=junk / training,
        broken_files=0,
        enriched_positives=_POSITIVES,
        workers=workers,
    )
    if not run.has("pixels/manifest.json"):
        cohort = build_phantom(run, config)
        build_pixel_store(run, cohort, cell.side, "pad", workers, run.path("phantom"))
    return run


def mix_pool(run: Run, cell: Cell, seed: int) -> Pool:
    """The pool of a cell out of a bank: so many sound pairs, swapped reports, junk and copies, in random order.

    The pools of a seed are nested as far as can be: a smaller one holds the first pairs of a larger one, and the pairs
    that are wrong at a small share are so at a large one.
    """
    cohort = read_cohort(run.path("cohort.parquet"))
    training = cohort[cohort.split == "train"].reset_index(drop=True)
    truth = run.read_table("truth.parquet").set_index("image_id").loc[training.image_id].reset_index()
    generator = np.random.default_rng((seed, 0))
    order = generator.permutation(len(training))
    is_copy, is_junk = (truth.duplicate_of != "").to_numpy(), truth.junk.to_numpy(dtype=bool)
    wanted = {"junk": round(cell.wrong * cell.pool * _JUNK_OF_WRONG), "copies": round(cell.duplicates * cell.pool)}
    junk = order[is_junk[order]][: wanted["junk"]]
    copies = order[is_copy[order]][: wanted["copies"]]
    copied = pd.Index(training.image_id).get_indexer(truth.duplicate_of[copies])
    others = order[~is_copy[order] & ~is_junk[order] & ~np.isin(order, copied)]
    others = others[: cell.pool - len(junk) - len(copies) - len(copied)]
    rows = np.concatenate([junk, copies, copied, others])
    if len(rows) != cell.pool:
        raise StudyError(f"the bank {run.study} has not enough pairs for {cell.name}: remove it to draw it anew.")
    pairs, swapped = training.copy(), others[: round(cell.wrong * cell.pool) - len(junk)]
    given = _find_strangers(training, swapped, others, np.random.default_rng((seed, 1)))
    pairs.loc[swapped, ["report", "report_origin"]] = training.loc[given, ["report", "report_origin"]].to_numpy()
    truth["mismatched"] = False
    truth.loc[swapped, "mismatched"] = True
    rows = rows[np.random.default_rng((seed, 2)).permutation(len(rows))]
    told = truth.loc[rows, ["image_id", "mismatched", "junk", "duplicate_of"]]
    held_out = {split: part.reset_index(drop=True) for split, part in cohort.groupby("split") if split != "train"}
    store = open_pixel_store(run)
    return Pool(pairs.loc[rows].reset_index(drop=True), told.reset_index(drop=True), held_out, store)


def _find_strangers(
    training: pd.DataFrame, rows: np.ndarray, among: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """For each row another patient's with other findings, whose report is therefore wrong for the image."""
    patients, labels = training.patient_id.to_numpy(), label_matrix(training, finding_columns(training))
    given = np.empty(len(rows), dtype=int)
    for place, row in enumerate(rows):
        drawn = generator.choice(among, size=_CANDIDATES)
        fits = (patients[drawn] != patients[row]) & (labels[drawn] != labels[row]).any(axis=1)
        given[place] = drawn[np.argmax(fits)]
    return given
