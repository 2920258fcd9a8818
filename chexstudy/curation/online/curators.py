"""Curators: given a super-batch, say which of its pairs are trained on. The engine knows only this interface."""

from collections.abc import Callable
from dataclasses import fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chexstudy.curation.online.budgeted import BudgetedCurator
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import MISMATCHED, Reason, Selection
from chexstudy.curation.online.mismatch_filter import judge_filter, rank_pairs
from chexstudy.curation.online.prototypes import initial_prototypes, update_prototypes
from chexstudy.curation.online.selection import form_for, select_samples

Embed = Callable[[np.ndarray], tuple[Tensor, Tensor]]


class Curator(Protocol):
    """What the engine asks of a curator."""

    scores: bool = False  # whether it needs features; if not, the engine spends no compute on scoring

    def begin_epoch(self, pairs: int) -> None:
        """Called before an epoch in which ``pairs`` pairs will be considered."""

    def choose(
        self, step: int, rows: Tensor, features: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Selection | None]:
        """The mask of kept pairs ``(batch,)`` of a super-batch and, if there are grounds to record, the selection.

        Super-batches are numbered over all curation epochs, ``rows (batch,)`` are row numbers in the training set,
        int64, ``features (batch, dim)`` unit-norm joint ones, or None if the curator does not score.
        """


class ScoringCurator(Curator, Protocol):
    """A curator with prototypes."""

    prototypes: Tensor | None  # unit-norm ``(K, dim)``, once warmed up

    def warm_up(self, features: Tensor, rows: Tensor) -> None:
        """Fit the first prototypes on a sample's unit-norm joint features ``(n, dim)`` with row numbers ``(n,)``."""

    def update(self, features: Tensor, kept: Tensor) -> Tensor:
        """Move the prototypes after a super-batch ``(batch, dim)`` of which some were ``kept`` ``(batch,)``.

        Returns how many pairs each prototype was assigned ``(K,)``.
        """

    def state_dict(self) -> dict:
        """Everything needed to go on, as tensors and plain values."""

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""


class PrototypeCurator(ScoringCurator):
    """The published online curator: prototypes, distance bands, moving average (CheXficient)."""

    scores = True

    def __init__(self, config: CuratorConfig):
        self.config = config
        self.prototypes: Tensor | None = None

    def warm_up(self, features: Tensor, rows: Tensor) -> None:
        self.prototypes = initial_prototypes(features, self.config)

    def set_aside(self, count: int, batch: int) -> int:
        """As `BudgetedCurator.set_aside`; there is no budget to keep within reach."""
        return count

    def choose(self, step, rows, features, generator):
        selection = select_samples(features, self.prototypes, self.config, generator)
        return selection.kept, selection

    def update(self, features: Tensor, kept: Tensor) -> Tensor:
        seen = features[kept] if self.config.update_features == "kept" else features
        self.prototypes, usage = update_prototypes(self.prototypes, seen, self.config)
        return usage

    def state_dict(self) -> dict:
        return {"prototypes": self.prototypes}

    def load_state_dict(self, state: dict) -> None:
        self.prototypes = state["prototypes"]


class FilteredCurator(ScoringCurator):
    """Shows another curator only the pairs whose image and report are not rather mismatched.

    Each super-batch is judged by itself, so nothing is remembered. Prototypes are fitted on all pairs of the warm-up
    sample. ``embed`` gives the image and text embeddings ``(batch, dim)`` of row numbers by encoders that are not in
    training; without it the halves of the features are ranked.
    """

    scores = True

    def __init__(self, curator: PrototypeCurator | BudgetedCurator, embed: Embed | None = None):
        self.curator, self._embed, self._abstained = curator, embed, None
        self.begin_epoch, self.warm_up, self.update = curator.begin_epoch, curator.warm_up, curator.update
        self.state_dict, self.load_state_dict = curator.state_dict, curator.load_state_dict

    @property
    def prototypes(self) -> Tensor | None:
        return self.curator.prototypes

    def choose(self, step, rows, features, generator):
        sides = self._embed(rows.cpu().numpy()) if self._embed else features.chunk(2, dim=1)
        matched, shuffled = rank_pairs(*sides)
        verdict = judge_filter(matched.cpu().numpy(), shuffled.cpu().numpy())
        if verdict.abstains != self._abstained:
            print(f"Super-batch {step}: {verdict}", flush=True)
            self._abstained = verdict.abstains
        aside = self.curator.set_aside(int((matched < verdict.cut).sum()), len(rows))
        if not aside:
            return self.curator.choose(step, rows, features, generator)
        by_rank = torch.sort(matched, stable=True).indices
        out, shown = by_rank[:aside], by_rank[aside:].sort().values
        prototype, distance = form_for(features).assign_nearest(features[out], self.prototypes)
        _, selection = self.curator.choose(step, rows[shown.cpu()], features[shown], generator)
        blank = torch.full_like(distance, torch.nan)
        decided = (
            *(prototype, distance, blank, blank, torch.full_like(out, MISMATCHED), torch.full_like(out, -1), blank),
            *(torch.zeros_like(out), torch.full_like(out, Reason.MISMATCHED)),
        )
        place = torch.cat([shown, out]).argsort()
        columns = [getattr(selection, column.name) for column in fields(Selection)]
        selection = Selection(
            *(torch.cat([one, other.to(one)])[place] for one, other in zip(columns, decided, strict=True))
        )
        return selection.kept, selection


def build_curator(config: CuratorConfig, embed: Embed | None = None) -> ScoringCurator:
    """The curator that follows ``config.rule``, behind the mismatch filter if there is to be one, which may ``embed``
    by itself.
    """
    curator = BudgetedCurator(config) if config.rule == "budgeted" else PrototypeCurator(config)
    return FilteredCurator(curator, embed) if config.mismatch_filter else curator


class RandomCurator(Curator):
    """Keeps as many pairs of each super-batch as another curator kept there, drawn uniformly: the paired control."""

    def __init__(self, kept_by_step: list[int]):
        self.kept_by_step = kept_by_step

    def choose(self, step, rows, features, generator):
        kept = torch.zeros(len(rows), dtype=torch.bool)
        kept[torch.randperm(len(rows), generator=generator)[: self.kept_by_step[step]]] = True
        return kept, None


class SubsetCurator(Curator):
    """Keeps the pairs of a subset chosen beforehand, by their row numbers in the training set."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def choose(self, step, rows, features, generator):
        return torch.isin(rows, torch.from_numpy(self.rows)), None


def select_label_balanced(labels: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """An oracle's subset: take turns over the findings, rarest first, and draw a pair that shows the finding.

    It reads the labels ``(pairs, findings)`` a curator must not see: the positive control (can this bench see an effect
    of the data?) and a ceiling for what curation could do about the long tail. Pairs without any finding count as a
    class of their own. Returns sorted row numbers ``(count,)``.
    """
    pairs = len(labels)
    if count > pairs:
        raise ValueError(f"cannot choose {count} of {pairs} pairs")
    present = labels == 1
    classes = np.column_stack([present, ~present.any(axis=1)])
    shuffled = torch.randperm(pairs, generator=generator).numpy()
    queues = [list(shuffled[classes[shuffled, c]]) for c in np.argsort(classes.sum(axis=0), kind="stable")]
    chosen: set[int] = set()
    while len(chosen) < count:
        for queue in queues:
            while queue and queue[-1] in chosen:
                queue.pop()
            if queue and len(chosen) < count:
                chosen.add(int(queue.pop()))
    return np.array(sorted(chosen))
