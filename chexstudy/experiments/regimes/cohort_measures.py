"""What decides, of a cohort, whether curation will pay: its size, copies, wrong pairs, and what its scorer can tell.

Second exposures cannot be told from embeddings: in a pool of the bench under the upstream pair, the nearest of 98 of
them was the other one for 32 %. So embeddings count exact copies only, and near-duplicates are those that `chexstudy
cohort duplicates` found in the images of a study.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.groups import mark_near_duplicates
from chexstudy.cohort.near_duplicates import DUPLICATES
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import NO_FINDING, read_cohort
from chexstudy.curation.embeddings.inputs import (
    allocate_features,
    normalise_rows,
    open_embeddings,
    read_image_ids,
    read_matching_table,
    require_one_space,
    require_same_rows,
)
from chexstudy.curation.methods.filtered import rank_all_pairs
from chexstudy.curation.online.mismatch_filter import FilterVerdict
from chexstudy.encoders.embeddings import embed_cohort, read_embeddings
from chexstudy.encoders.upstream_encoders import FOLDER, PAIR
from chexstudy.errors import StudyError
from chexstudy.pretraining.models.dual_encoder import load_model
from chexstudy.runs import Run
from chexstudy.workflow.locks import hold_study

SCORERS = ("upstream", "study")
_SUPER_BATCH = 480


@dataclass(frozen=True)
class CohortMeasures:
    """A cohort in numbers; shares are from 0 to 1."""

    pairs: int  # that can be chosen from
    verdict: FilterVerdict  # what the mismatch filter tells of the pairs under the scorer
    exact_copies: float  # share of images that are embedded exactly like an earlier one
    copies: float  # share of images that are near-duplicates of another that stays; NaN where nobody looked
    healthy: float  # share of the labelled pairs without any finding; NaN without labels


def measure_cohort(
    image: np.ndarray, text: np.ndarray, labels: pd.DataFrame | None = None, copies: float = np.nan, seed: int = 0
) -> CohortMeasures:
    """Measure pairs by their unit-norm embeddings of one space ``(pairs, dim)``, float32, and their labels if known.

    ``seed`` is that of the super-batches in which pairs are ranked.
    """
    _, verdict = rank_all_pairs(image, text, _SUPER_BATCH, torch.Generator().manual_seed(seed))
    known = labels[NO_FINDING].dropna() if labels is not None and NO_FINDING in labels else pd.Series(dtype=float)
    repeated = mark_near_duplicates(pd.DataFrame(index=range(len(image))), features=image)
    healthy = float((known == 1).mean()) if len(known) else np.nan
    return CohortMeasures(len(image), verdict, float(repeated.mean()), copies, healthy)


def measure_files(
    embeddings: Path, text: Path | None, ids: Path | None = None, table: Path | None = None, seed: int = 0
) -> CohortMeasures:
    """Measure anybody's embeddings, as `chexstudy curate` reads them; ``table`` has labels by ``image_id``."""
    if text is None:
        raise StudyError("whether reports fit their images cannot be told without texts: give --text TEXT.npy.")
    if table is not None and ids is None:
        raise StudyError("--table needs --ids, which say whose embeddings are in which row.")
    paths = {"image": embeddings, "text": text}
    sides = {side: open_embeddings(path) for side, path in paths.items()}
    require_one_space("advise", sides, paths)
    require_same_rows(paths, sides, embeddings, len(sides["image"]))
    labels = None
    if ids is not None:
        image_ids = read_image_ids(ids)
        require_same_rows(paths, sides, ids, len(image_ids))
        labels = read_matching_table(table, image_ids, optional=[NO_FINDING]) if table is not None else None
    return measure_cohort(**_normalise(sides, paths), labels=labels, seed=seed)


def measure_study(run: Run, scorer: str = "upstream", seed: int = 0) -> CohortMeasures:
    """Measure the training pairs of a study that have a report.

    Under the ``upstream`` pair, which embeds them once, or by the embeddings that the ``study`` has of its scoring
    model, as notebook 2 left them.
    """
    if scorer not in SCORERS:
        raise StudyError(f"the scorer must be one of {', '.join(SCORERS)}, not {scorer!r}.")
    cohort = read_cohort(run.require("cohort.parquet"))
    pairs = cohort[cohort.split == "train"].reset_index(drop=True)
    if pairs.empty:
        raise StudyError(f"study {run.study!r} has no training pairs: there is nothing to choose from.")
    told = (pairs.report.fillna("").map(training_text) != "").to_numpy()
    if not told.any():
        raise StudyError(f"no training image of study {run.study!r} has a report: only pairs can be advised on.")
    pairs = pairs[told].reset_index(drop=True)
    if scorer == "upstream":
        model = load_model(FOLDER / "pair")
        with hold_study(run, "`chexstudy advise`"):
            kept = embed_cohort(run, pairs, open_pixel_store(run), model.image_tower, model.text_tower, PAIR)
    else:
        kept = read_embeddings(run, "scoring")
    rows = pd.Index(kept.image_ids).get_indexer(pairs.image_id)
    if (rows < 0).any():
        raise StudyError(f"{(rows < 0).sum():,} training pairs are not embedded yet: run `chexstudy embed` again.")
    sides = {"image": kept.image[rows], "text": kept.text[rows]}
    paths = {side: Path(f"the {side} embeddings of study {run.study!r}") for side in sides}
    require_one_space("advise", sides, paths)
    copies = np.nan
    if run.has(DUPLICATES):
        groups = run.read_table(DUPLICATES)
        own = groups[groups.image_id.isin(pairs.image_id)]
        copies = float(own.group.duplicated().sum() / len(pairs))
    return measure_cohort(**_normalise(sides, paths), labels=pairs, copies=copies, seed=seed)


def _normalise(sides: Mapping[str, np.ndarray], paths: Mapping[str, Path]) -> dict[str, np.ndarray]:
    units = {}
    for side, embeddings in sides.items():
        units[side] = allocate_features(*embeddings.shape, Path(tempfile.gettempdir()))
        normalise_rows(embeddings, str(paths[side]), units[side])
    return units
