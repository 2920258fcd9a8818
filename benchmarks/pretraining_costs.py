"""What schemes of pretraining cost at the published scale, counted: no weights, no pixels, no seconds.

torch counts the operations of the package's own encoders, built from the real architectures on the meta device, for
one pair at each size and length. The rest is arithmetic over 20 epochs of 1,234,995 pairs.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from pretraining_steps import Scale, build_model, draw_lengths

from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.compute import count_flops
from chexstudy.pretraining.models.texts import cut_into_buckets

PAIRS = 1_234_995
EPOCHS = 20
KEPT = 0.227
SUPER_BATCH = 480
OVERLAP_EVERY = PretrainingConfig().overlap_every
_BATCHES = 40
# Two rows, because some backends treat a batch of one as a special case.
_ROWS = 2


class PairCosts:
    """Operations for one pair at a scale, counted."""

    def __init__(self, scale: Scale):
        self.scale = scale
        self._model = build_model(scale, "cpu", seed=0).to("meta")
        self.image = lru_cache(self._count_image)
        self._of_length = lru_cache(self._fit_lengths)

    def _count_image(self, backward: bool, size: int | None = None) -> float:
        """Operations for one image of ``size`` pixels a side, that of the scale by default."""
        tower, side = self._model.image_tower, self.scale.image_size
        pixels = torch.zeros((_ROWS, 1, side, side), dtype=torch.uint8, device="meta")
        return _count(lambda: tower(pixels, size), backward)

    def text(self, batches: np.ndarray, backward: bool, layout: str) -> float:
        """Mean operations for one text of batches of lengths ``(batches, texts)``.

        The layout is ``longest`` of each batch, ``buckets`` or ``packed``.
        """
        of_length = self._of_length(backward)
        if layout == "packed":
            return float(np.polyval(of_length, batches).mean())
        if layout == "longest":
            return float(np.polyval(of_length, batches.max(axis=1)).mean())
        buckets = [part for lengths in batches for part in cut_into_buckets(np.sort(lengths), self.scale.max_tokens)]
        return sum((span.stop - span.start) * np.polyval(of_length, length) for span, length in buckets) / batches.size

    def _fit_lengths(self, backward: bool) -> np.ndarray:
        """Coefficients of the operations for a text as a polynomial of its length: a transformer's are of degree 2."""
        lengths = [self.scale.max_tokens // part for part in (4, 2, 1)]
        return np.polyfit(lengths, [self.count_text(length, backward) for length in lengths], 2)

    def count_text(self, length: int, backward: bool) -> float:
        """Operations for one text of so many tokens."""
        tower = self._model.text_tower
        ids = torch.zeros((_ROWS, length), dtype=torch.long, device="meta")
        # Past the mask, which cannot be read on the meta device; masking is no operation, and neither is pooling.
        return _count(lambda: tower.project(tower.encoder.model(input_ids=ids).last_hidden_state[:, 0]), backward)


def _count(encode, backward: bool) -> float:
    with torch.set_grad_enabled(backward):
        return count_flops(lambda: encode().sum().backward() if backward else encode()) / _ROWS


@dataclass(frozen=True)
class Plan:
    """20 epochs of one scheme."""

    name: str  # in a row
    curated_epochs: int = 1  # epochs in which all pairs are scored; the others train on what was kept
    published: bool = False  # the pairs are scored by training on all of them
    low_resolution: bool = False  # they are scored at a third of the side
    layout: str = "longest"  # of the texts


ONE_SHOT = Plan("scored once at a third of the side, packed", low_resolution=True, layout="packed")
EVERY_EPOCH = Plan("scored in every epoch at a third of the side, packed", EPOCHS, low_resolution=True, layout="packed")
PLANS = (
    Plan("published", published=True),
    Plan("two-pass"),
    Plan("two-pass, buckets", layout="buckets"),
    Plan("two-pass, packed", layout="packed"),
    ONE_SHOT,
    EVERY_EPOCH,
)


def cost_plan(plan: Plan, costs: PairCosts, batches: np.ndarray) -> dict:
    """One row: operations of a plan relative to 20 epochs over all pairs, padded, forward and backward.

    ``relative`` holds where the trained pairs of a step are encoded at once, ``in_pieces`` where they are not: then
    cached gradients cost one more pass wherever scoring has not left the embeddings. ``overlap_checks`` is what it adds
    to compare low-resolution scores with full ones as often as is the default.
    """

    def pair(backward: bool, layout: str, size: int | None = None) -> float:
        return costs.image(backward, size) + costs.text(batches, backward, layout)

    epochs, layout = plan.curated_epochs, plan.layout
    full = EPOCHS * pair(True, "longest")
    trained = pair(True, layout)
    if plan.published:
        spent = epochs * pair(True, "longest") + KEPT * (EPOCHS - epochs) * trained
    else:
        scored = pair(False, layout, costs.scale.scoring_size if plan.low_resolution else None)
        spent = epochs * scored + KEPT * EPOCHS * trained
    # Scores at full size are embeddings to train on.
    embedded = 0 if plan.low_resolution else epochs
    again = KEPT * (EPOCHS - embedded) * pair(False, layout)
    checks = epochs * pair(False, layout) / OVERLAP_EVERY if plan.low_resolution else 0.0
    return {
        "section": "counted at paper scale",
        "scheme": plan.name,
        "mean_tokens": round(float(batches.mean())),
        "exaflop": spent * PAIRS / 1e18,
        "relative": spent / full,
        "in_pieces": (spent + again) / full,
        "overlap_checks": checks / full,
    }


def count_paper_scale(scale: Scale, mean_tokens: tuple[int, ...], seed: int) -> list[dict]:
    """A row for each plan and mean length of the texts."""
    costs, rows = PairCosts(scale), []
    for mean in mean_tokens:
        lengths = draw_lengths(SUPER_BATCH * _BATCHES, mean, scale.max_tokens, np.random.default_rng(seed))
        rows += [cost_plan(plan, costs, lengths.reshape(_BATCHES, SUPER_BATCH)) for plan in PLANS]
    return rows
