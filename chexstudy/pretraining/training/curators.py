"""Who says what an arm is trained on, and what a curator that scores leaves on disk."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from chexstudy.arrays import GrowingArray, count_grown_rows
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.curation.online.curators import (
    Curator,
    RandomCurator,
    SubsetCurator,
    build_curator,
    select_label_balanced,
)
from chexstudy.curation.records.ledger import LedgerWriter, check_ledger, read_ledger
from chexstudy.encoders.upstream_encoders import IMAGE, PAIR, find_pair
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import Arm, arm_folder, subset_artifact
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.runs import Run

if TYPE_CHECKING:
    from chexstudy.pretraining.training.trainer import Trainer

RECORDS = ("ledger.parquet", "features.npy", "prototypes.npy")


@dataclass
class CurationRecords:
    """What a curator that scores leaves on disk, super-batch by super-batch."""

    ledger: LedgerWriter  # each decision
    features: GrowingArray  # of the considered pairs, in the order of the ledger, float16
    prototypes: GrowingArray  # before the first super-batch and after each

    def flush(self) -> None:
        """Make sure that all of it outlives a power cut."""
        self.features.flush()
        self.prototypes.flush()

    def finish(self) -> None:
        """Put the whole of it in its place."""
        self.ledger.finish()
        self.features.finish()
        self.prototypes.finish()


def open_records(folder: Path, trainer: "Trainer") -> CurationRecords:
    """Go on with what was written in an arm's folder before the state that its training starts from."""
    config, decided, width = trainer.config, trainer.super_batches, trainer.objective.width
    rows, rounds = len(trainer.objective.examples), config.curation_epochs
    per_epoch = -(-rows // config.super_batch)
    features = GrowingArray(folder / "features.npy", (rounds * rows, width), np.float16, bool(decided))
    shape = (rounds * per_epoch + 1, config.curator.prototypes, width)
    prototypes = GrowingArray(folder / "prototypes.npy", shape, np.float32, bool(decided))
    if decided:
        features.require(trainer.curated_epochs * rows + min(trainer.batch * config.super_batch, rows))
        prototypes.require(decided + 1)
    return CurationRecords(LedgerWriter(folder / "ledger.parquet", decided), features, prototypes)


def find_lost_records(run: Run, folder: str, config: PretrainingConfig, rounds: int, decided: int) -> str:
    """Why curation cannot go on in an arm's folder after epochs done and super-batches decided; empty if it can."""
    try:
        if rounds == config.curation_epochs:
            for name in RECORDS:
                run.require(f"{folder}/{name}")
            return ""
        check_ledger(run.path(f"{folder}/ledger.parquet"), decided)
        for name, least in (("prototypes.npy", decided + 1), ("features.npy", 1)):
            path = run.path(f"{folder}/{name}")
            if count_grown_rows(path) < least:
                return f"{path} is not what was written before the last checkpoint."
    except StudyError as error:
        return str(error)
    return ""


def configure_arm(run: Run, arm: Arm, seed: int, config: PretrainingConfig) -> PretrainingConfig:
    """The constants of an arm: the filtered one keeps as many pairs as the curated arm of its seed, which takes the
    budgeted rule; all others have those of the study.

    A model that only begins to be trained cannot tell which reports fit. Where a study starts from the upstream image
    encoder, the filter ranks by the aligned pair that comes with it; its pass is charged, its training is not.
    """
    if arm.data != "filtered":
        return config
    decided = read_ledger(run, arm.partner, seed, columns=["epoch", "kept"])
    share = float(decided.kept[decided.epoch == decided.epoch.max()].mean())
    own = {"mismatch_filter": True, "rule": "budgeted", "budget": share, "update_timing": "before_step"}
    if config.image_encoder == IMAGE and not config.curator.filter_pair:
        own["filter_pair"] = PAIR
    return replace(config, curator=replace(config.curator, **own))


def choose_curator(run: Run, arm: Arm, seed: int, trainer: "Trainer") -> Curator:
    """The curator of an arm that is not trained on everything."""
    if arm.curates:
        curator = trainer.config.curator
        embed = None
        if curator.mismatch_filter and curator.filter_pair:
            embed = trainer.objective.embed_by(find_pair(curator.filter_pair))
        return build_curator(curator, embed)
    if arm.data == "random":
        ledger = read_ledger(run, arm.partner, seed, columns=["step", "kept"])
        return RandomCurator(ledger.groupby("step").kept.sum().sort_index().tolist())
    if arm.data == "subset":
        return read_subset(run, arm, seed, trainer)
    table = trainer.objective.examples.table
    findings = [name for name in finding_columns(table) if name != NO_FINDING]
    count = len(run.read_table(f"{arm_folder(arm.partner, seed)}/subset.parquet"))
    return SubsetCurator(
        select_label_balanced(label_matrix(table, findings), count, trainer.streams.generator("subset"))
    )


def read_subset(run: Run, arm: Arm, seed: int, trainer: "Trainer") -> SubsetCurator:
    """The subset that a method has left for an arm; the trainer is told its weights."""
    name, image_ids = subset_artifact(arm.method, seed), trainer.objective.examples.image_ids
    subset = run.read_table(name)
    places = pd.Index(image_ids).get_indexer(subset.image_id)
    if (places < 0).any():
        raise StudyError(
            f"{name} names {int((places < 0).sum())} images that are no training pairs of study {run.study!r}: choose "
            "the subset from its training split."
        )
    if not (subset.weight == 1).all():
        trainer.weights = np.ones(len(image_ids), np.float32)
        trainer.weights[places] = subset.weight
    return SubsetCurator(np.sort(places))
