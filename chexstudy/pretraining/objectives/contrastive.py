"""The contrastive objective: each image must find its report among the batch, and back (CLIP)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chexstudy.curation.online.prototypes import join_features
from chexstudy.encoders.build import compile_blocks
from chexstudy.pretraining.configuration import TOWERS, PretrainingConfig
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, build_model, load_model, save_model
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.models.parameter_efficient import (
    add_low_rank_updates,
    freeze_encoder,
    merge_low_rank_updates,
)
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder
from chexstudy.pretraining.objectives.frozen_towers import frozen_features
from chexstudy.pretraining.objectives.objective import Objective


class ContrastiveObjective(Objective):
    """Two towers that learn from pairs of images and reports."""

    _judge: PairEncoder | None = None

    def _build(self, cohort: pd.DataFrame, seed: int) -> None:
        config, device = self._config, self._device
        self.model = build_model(config, cohort[cohort.split == "train"], seed)
        _prepare_towers(self.model, config, seed)
        self.model.to(device)
        self.examples = TrainingPairs(cohort, self._store, self.model.text_tower.tokenize)
        if config.scoring_size:
            self.model.image_tower.encoder.check_size(config.scoring_size)
        if config.text_layout == "packed":
            self.model.text_tower.encoder.check_packing()
        how = config.micro_batch, self._autocast, self._processes, config.text_layout, config.compile_blocks
        self._encoder = PairEncoder(self.model, self.examples, device, *how)
        self.stall, self.width = self._encoder.stall, 2 * config.dim
        decisive = {
            "precision": str(self._encoder.autocast),
            "threads": config.threads,
            "image_size": config.image_size,
        }
        for side in config.frozen_towers:
            self._encoder.features[side], cost = frozen_features(self._run, side, self._encoder, decisive)
            self.prepared = {part: spent + cost[part] for part, spent in self.prepared.items()}

    @property
    def flops(self) -> float:
        return self._encoder.flops + (self._judge.flops if self._judge else 0.0)

    def embed_by(self, folder: Path) -> Callable[[np.ndarray], tuple[Tensor, Tensor]]:
        """What a trained pair of encoders, which stays as it is, makes of rows; its operations count as this model's.

        Image and text embeddings ``(len(rows), dim)``, as of `embed`.
        """
        config, model = self._config, load_model(folder).to(self._device)
        pairs = TrainingPairs(self.examples.table, self._store, model.text_tower.tokenize)
        how = config.micro_batch, self._autocast, self._processes
        self._judge = judge = PairEncoder(model, pairs, self._device, *how)
        return lambda rows: judge.embed(rows)

    def parameter_groups(self) -> list[dict]:
        """Weight decay is for matrices, and for the temperature where that is asked for (F12)."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        scale = self.model.logit_scale if self._config.decay_logit_scale else None
        decayed = [p for p in trained if p.ndim > 1 or p is scale]
        chosen = {id(p) for p in decayed}
        others = [p for p in trained if id(p) not in chosen]
        return [{"params": decayed, "weight_decay": self._config.weight_decay}, {"params": others, "weight_decay": 0.0}]

    def embed(self, rows: np.ndarray, size: int | None = None) -> tuple[Tensor, Tensor]:
        self.model.eval()
        return self._encoder.embed(rows, size)

    def join(self, embedded: tuple[Tensor, Tensor]) -> Tensor:
        return join_features(*embedded)

    def backward(
        self,
        rows: np.ndarray,
        step: int,
        embedded: tuple[Tensor, Tensor] | None = None,
        weights: np.ndarray | None = None,
    ) -> dict[str, float]:
        encoder = self._encoder
        self.model.train(self._config.dropout)
        if len(rows) < 2:
            # One pair has no negatives: its loss is zero and so is the gradient.
            self.model.zero_grad(set_to_none=True)
            return {"loss": 0.0, "matched_cosine": float("nan"), "unmatched_cosine": float("nan")}
        if self._config.dropout:
            place = (step, self._processes.rank)
            encoder.dropout_seed = lambda piece: self._streams.draw_seed("dropout", *place, piece)
        drawn = None if weights is None else torch.from_numpy(weights).to(encoder.device)
        told = encoder.backward(rows, embedded, drawn)
        encoder.dropout_seed = None
        return told

    def finish_step(self, step: int) -> dict[str, float]:
        return {"logit_scale": self.model.bounded_logit_scale().item()}

    def count_step(self, rows: np.ndarray) -> float:
        return self._encoder.count_step(rows)

    def describe(self) -> dict:
        return {"micro_batch": self._encoder.micro.size, **super().describe()}

    def export(self, folder: Path) -> None:
        for side in TOWERS:
            merge_low_rank_updates(self.model.tower(side).encoder)
        save_model(folder, self.model, self._config)


def _prepare_towers(model: ImageTextModel, config: PretrainingConfig, seed: int) -> None:
    """Freeze encoders, add low-rank updates and compile blocks as the configuration says."""
    for side in TOWERS:
        encoder = model.tower(side).encoder
        if side in config.frozen_towers:
            freeze_encoder(encoder)
        elif config.lora_rank:
            add_low_rank_updates(encoder, config.lora_rank, config.lora_alpha, seed)
        if config.compile_blocks:
            compile_blocks(encoder)
