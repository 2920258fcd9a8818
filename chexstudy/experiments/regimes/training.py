"""Train one model on chosen pairs for a number of steps, and judge it on patients nobody has trained on."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.encoders.embeddings import embed_images, embed_texts
from chexstudy.evaluation.adaptation.logistic_path import fit_linear_probe
from chexstudy.evaluation.image_text.prompts import FAMILIES, choose_prompts
from chexstudy.evaluation.image_text.retrieval import DIRECTIONS, measure_ranks, rank_pairs
from chexstudy.evaluation.image_text.zero_shot import prompt_directions, score_directions
from chexstudy.evaluation.robustness.calibration import assign_bins, fit_platt, to_log_odds
from chexstudy.evaluation.robustness.spectrum import find_healthy
from chexstudy.experiments.regimes.pools import Pool
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.engine.schedule import LearningRate
from chexstudy.pretraining.models.dual_encoder import ImageTextModel
from chexstudy.pretraining.objectives.contrastive import ContrastiveObjective
from chexstudy.pretraining.training.trainer import Trainer
from chexstudy.runs import Run
from chexstudy.statistics.ranking import macro_mean, rank_metrics

_CPU = torch.device("cpu")
# Images of the pool whose labels a linear probe learns from, the same for every method.
PROBED = 3_000
_SENSITIVITY = 0.9


def train_on(
    run: Run, pairs: pd.DataFrame, weights: np.ndarray, config: PretrainingConfig, steps: int, seed: int
) -> tuple[ImageTextModel, float]:
    """Train a model of a configuration on pairs, rows of a study's cohort, for a number of steps.

    ``weights`` ``(pairs,)`` count in the loss. Gives the model, in evaluation mode, and the operations spent.
    """
    trainer = _prepare(run, pairs, config, seed)
    trainer.weights = None if (weights == 1).all() else weights
    rate = LearningRate(config.learning_rate, config.min_learning_rate, config.ramp_steps, 0, steps)
    trainer.objective.plan(steps)
    while trainer.step < steps:
        trainer.train_epoch("subset", np.arange(len(pairs)), rate, steps)
    return trainer.objective.model.eval(), trainer.flops


def count_step(run: Run, pairs: pd.DataFrame, config: PretrainingConfig, seed: int) -> float:
    """Operations of a mean step of `train_on`, without spending them."""
    return _prepare(run, pairs, config, seed).mean_flops_a_step(np.arange(len(pairs)))


def _prepare(run: Run, pairs: pd.DataFrame, config: PretrainingConfig, seed: int) -> Trainer:
    streams = RandomStreams(seed)
    objective = ContrastiveObjective(run, pairs, config, streams, _CPU, Processes())
    return Trainer(config, run.study, streams, objective, _CPU, Processes())


def judge(model: ImageTextModel, pool: Pool, tiers: dict[str, str]) -> dict[str, float]:
    """How well a model does on the held-out patients of a pool.

    AUROC and average precision on the enriched test, zero-shot (prompts chosen on validation) and by linear probe, of
    each finding, of each tier and over all; on the natural test recall at 10 both ways, the mean calibration error of
    zero-shot scores after Platt's line from validation, and the specificity on healthy patients where validation gives
    90 % sensitivity for any finding.
    """
    findings = finding_columns(pool.pairs)
    parts = pool.held_out | {"probe": pool.pairs[pool.sound].iloc[:PROBED]}
    features = {
        name: embed_images(model.image_tower.encoder, pool.store.read(one.image_id)) for name, one in parts.items()
    }
    labels = {name: label_matrix(one, findings) for name, one in parts.items()}
    with torch.no_grad():
        projected = {name: model.image_tower.project(torch.from_numpy(one)).numpy() for name, one in features.items()}

    def encode(texts: list[str]) -> np.ndarray:
        return embed_texts(model.text_tower, model.text_tower.tokenize, texts)

    directions = {
        name: prompt_directions(encode, findings, family) for name, family in FAMILIES.items() if family.candidate
    }
    chosen = choose_prompts(
        {name: score_directions(projected["validate"], one) for name, one in directions.items()}, labels["validate"]
    )
    scores = {name: score_directions(one, directions[chosen]) for name, one in projected.items()}
    probe = fit_linear_probe(features["probe"], labels["probe"], features["validate"], labels["validate"])
    told = _rank("zero_shot", findings, labels["test_enriched"], scores["test_enriched"], tiers)
    told |= _rank("probe", findings, labels["test_enriched"], probe.score(features["test_enriched"]), tiers)
    texts = pool.held_out["test"].report.map(training_text).tolist()
    ranks = rank_pairs(projected["test"], encode(texts), texts)
    told |= {f"recall_at_10_{direction}": float(measure_ranks(ranks, direction)[2]) for direction in DIRECTIONS}
    return told | _calibrate(findings, labels, scores) | {"prompts": chosen}


def _rank(task: str, findings: list[str], labels: np.ndarray, scores: np.ndarray, tiers: dict[str, str]) -> dict:
    told = {}
    for metric, values in zip(("auroc", "ap"), rank_metrics(labels, scores), strict=True):
        told |= {f"{task}_{metric}/{name}": float(one) for name, one in zip(findings, values, strict=True)}
        told[f"{task}_{metric}_macro"] = float(macro_mean(values))
        for tier in TIERS:
            own = np.array([tiers.get(name) == tier for name in findings])
            told[f"{task}_{metric}_{tier}"] = float(macro_mean(values[own]))
    return told


def _calibrate(findings: list[str], labels: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> dict[str, float]:
    odds = {name: to_log_odds(scores[name]) for name in ("validate", "test")}
    line = fit_platt(odds["validate"], labels["validate"])
    probabilities = 1 / (1 + np.exp(-line.apply(odds["test"])))
    errors = []
    for column, label in zip(probabilities.T, labels["test"].T, strict=True):
        known = label >= 0
        if not np.isnan(column).any() and known.any():
            gap, bins = column[known] - (label[known] == 1), assign_bins(column[known], label[known])
            errors.append(np.abs(np.bincount(bins, weights=gap)).sum() / known.sum())
    sick = {name: -scores[name][:, findings.index(NO_FINDING)] for name in odds}
    healthy = {name: find_healthy(labels[name], findings) for name in odds}
    threshold = np.quantile(sick["validate"][~healthy["validate"]], 1 - _SENSITIVITY)
    return {
        "calibration_error": float(np.mean(errors)),
        "specificity_healthy": float((sick["test"][healthy["test"]] < threshold).mean()),
        "sensitivity_sick": float((sick["test"][~healthy["test"]] >= threshold).mean()),
    }


def configure(start: str, side: int, batch_size: int) -> PretrainingConfig:
    """The constants of a training from scratch or from the upstream encoders."""
    own = {"image_size": side, "batch_size": batch_size, "micro_batch": batch_size}
    if start == "scratch":
        own |= {"image_encoder": "tiny-resnet", "text_encoder": "tiny-bert", "learning_rate": 1e-3}
    return replace(PretrainingConfig(), **own)
