"""Scorers of three qualities, none of which has seen a pool: what they say of its pairs, and what that costs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.phantom.build import build_phantom
from chexstudy.cohort.phantom.plan import UPSTREAM_SEED, PhantomConfig
from chexstudy.cohort.pixels.store import build_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.upstream_encoders import FOLDER
from chexstudy.experiments.regimes.pools import Pool
from chexstudy.experiments.regimes.training import train_on
from chexstudy.experiments.upstream import COMMITTED
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, build_model, load_model, save_model
from chexstudy.pretraining.training.scoring import Scores, measure_pairs
from chexstudy.runs import Run

# Of the steps of the upstream pair, those that the scorer of middling quality has made.
_QUARTER = 0.25
_BATCH = 128
_HOME = "regimes-scorer"


def train_quarter_scorer(workers: int = 2) -> None:
    """Train an aligned pair as the upstream one was, on the same patients, for a quarter of its steps."""
    run = Run(_HOME)
    if run.has("model/pretraining.json"):
        return
    size = PretrainingConfig().image_size
    if not run.has("pixels/manifest.json"):
        phantom = PhantomConfig(COMMITTED.pairs, size, UPSTREAM_SEED, workers=workers)
        build_pixel_store(run, build_phantom(run, phantom), size, "pad", workers, run.path("phantom"))
    cohort = read_cohort(run.path("cohort.parquet"))
    training = cohort[cohort.split == "train"]
    config = replace(_read_upstream_config(), batch_size=_BATCH, micro_batch=_BATCH)
    steps = round(_QUARTER * COMMITTED.pair_epochs * len(training) / _BATCH)
    model, _ = train_on(run, training, np.ones(len(training)), config, steps, seed=0)
    save_model(run.path("model"), model, config)


def _read_upstream_config() -> PretrainingConfig:
    scratch = {"image_encoder": "tiny-resnet", "text_encoder": "tiny-bert", "learning_rate": 1e-3}
    return PretrainingConfig.from_dict(scratch)


def load_scorer(name: str, pairs: pd.DataFrame, seed: int) -> ImageTextModel:
    """The upstream pair (``trained``), that of `train_quarter_scorer`, or the upstream image and text encoders that
    were never aligned, with random projections by the seed (``unaligned``), as the published curator begins.
    """
    if name == "unaligned":
        return build_model(PretrainingConfig(), pairs, seed).eval()
    return load_model(FOLDER / "pair" if name == "trained" else Run(_HOME).path("model"))


def score_pool(pool: Pool, scorer: str, seed: int) -> Scores:
    """Embeddings and losses of a pool's pairs under a scorer; losses are in random batches by the seed."""
    model, config = load_scorer(scorer, pool.pairs, seed), replace(PretrainingConfig(), batch_size=_BATCH)
    return measure_pairs(model, pool.pairs, pool.store, seed, config, torch.device("cpu"))
