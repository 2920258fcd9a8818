"""Tokenised reports, held without padding and laid out for the text encoder with as little of it as wanted.

Real reports have a long tail: padded to the longest of a batch, two thirds of the tokens that are computed are padding.
``buckets`` pad texts of like length together, ``packed`` pads nothing, and ``padded`` is the published layout.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import TEXT_LAYOUTS

# Lengths are rounded up so that few shapes occur: fewer compilations, fewer counts of operations.
_LENGTH_STEP = 8
_MOST_BUCKETS = 8
# What one more call of the encoder costs, in tokens.
_CALL_COST = 128


@dataclass(frozen=True)
class PaddedTexts:
    """Texts padded to one length."""

    input_ids: Tensor  # ``(texts, length)``
    mask: Tensor  # ``(texts, length)``, 1 for tokens


@dataclass(frozen=True)
class PackedTexts:
    """Texts behind one another, without padding."""

    input_ids: Tensor  # ``(tokens,)``
    lengths: Tensor  # of the texts ``(texts,)``, on the CPU


@dataclass(frozen=True)
class TextBatch:
    """The texts of a batch, on the device, ready to be encoded."""

    parts: tuple[PaddedTexts | PackedTexts, ...]  # each encoded in one call; together they hold every text once
    # Where the texts of the batch stand in the parts, one part after the other ``(batch,)``; None if they stand in the
    # batch's order.
    order: Tensor | None


class TokenisedTexts:
    """Tokenised texts by row number, held without padding in 4 bytes a token.

    They are given ``(texts, length)``, padded on the right; the layout ``padded`` has this length.
    """

    def __init__(self, input_ids: Tensor, mask: Tensor):
        mask = mask.bool()
        if input_ids.shape != mask.shape or bool((mask[:, 1:] & ~mask[:, :-1]).any()) or not bool(mask[:, 0].all()):
            raise StudyError(
                "tokenised texts need at least one token each and their padding on the right: set the tokenizer's "
                "padding_side to right."
            )
        self.longest = input_ids.shape[1]
        self.lengths = mask.sum(dim=1).numpy()
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._tokens = input_ids[mask].to(torch.int32).numpy()
        padding = input_ids[~mask]
        # Some encoders tell padding from tokens by the id.
        self._padding_id = int(padding[0]) if len(padding) else 0

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray, device: torch.device, layout: str) -> TextBatch:
        """Lay the texts of some rows out for the encoder.

        ``padded`` to the longest of all texts; ``buckets``: sorted by length and cut into at most 8 groups so that the
        padded tokens, and a fixed cost of each group, are fewest; ``packed``: behind one another, sorted by length,
        without padding.
        """
        if layout not in TEXT_LAYOUTS:
            raise StudyError(f"text_layout must be one of {', '.join(TEXT_LAYOUTS)}, not {layout!r}.")
        rows = np.asarray(rows)
        lengths = self.lengths[rows]
        if layout == "padded":
            return TextBatch((self._pad(rows, self.longest, device),), None)
        order = np.argsort(lengths, kind="stable")
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        if layout == "packed":
            flat = self._gather(rows[order]).to(device, non_blocking=True).long()
            parts = (PackedTexts(flat, torch.from_numpy(lengths[order])),)
        else:
            groups = cut_into_buckets(lengths[order], self.longest)
            parts = tuple(self._pad(rows[order[span]], length, device) for span, length in groups)
        return TextBatch(parts, torch.from_numpy(places).to(device, non_blocking=True))

    def _gather(self, rows: np.ndarray) -> Tensor:
        """The tokens of some texts, one after the other, int32."""
        lengths = self.lengths[rows]
        shift = self._starts[rows] - (np.cumsum(lengths) - lengths)
        return torch.from_numpy(self._tokens[np.arange(lengths.sum()) + np.repeat(shift, lengths)])

    def _pad(self, rows: np.ndarray, length: int, device: torch.device) -> PaddedTexts:
        mask = torch.arange(length) < torch.from_numpy(self.lengths[rows]).unsqueeze(1)
        input_ids = torch.full(mask.shape, self._padding_id, dtype=torch.int32)
        input_ids[mask] = self._gather(rows)
        input_ids, mask = (part.to(device, non_blocking=True).long() for part in (input_ids, mask))
        return PaddedTexts(input_ids, mask)


def cut_into_buckets(lengths: np.ndarray, longest: int) -> list[tuple[slice, int]]:
    """Cut sorted texts into at most 8 groups that are cheapest to encode: which texts, of rising ``lengths``, and the
    length they are padded to.

    The cost is the number of padded tokens and a fixed cost of each group. The groups are the best there are, found by
    dynamic programming over the lengths, rounded up to a multiple of 8 but never beyond the ``longest``.
    """
    rounded = np.minimum(-(-lengths // _LENGTH_STEP) * _LENGTH_STEP, longest)
    levels, firsts = np.unique(rounded, return_index=True)
    bounds = np.append(firsts, len(rounded))
    # cost[i, j]: one group of the levels i to j; impossible below the diagonal.
    cost = (bounds[None, 1:] - bounds[:-1, None]) * levels[None, :] + float(_CALL_COST)
    cost[np.tril_indices(len(levels), -1)] = np.inf
    best, cuts = cost[0], []
    for _ in range(min(_MOST_BUCKETS, len(levels)) - 1):
        before = np.concatenate([[0.0], best[:-1]])
        candidates = before[:, None] + cost
        cuts.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)
    last, spans = len(levels) - 1, []
    for cut in reversed([np.zeros(len(levels), dtype=int), *cuts]):
        if last < 0:
            break
        first = int(cut[last])
        spans.append((slice(int(bounds[first]), int(bounds[last + 1])), int(levels[last])))
        last = first - 1
    return spans[::-1]


def encode_texts(tower: Callable[..., Tensor], batch: TextBatch) -> Tensor:
    """Embed the texts of a batch by a tower or encoder: ``(batch, dim)``, in its order."""
    encoded = [
        tower.forward_packed(part.input_ids, part.lengths)
        if isinstance(part, PackedTexts)
        else tower(part.input_ids, part.mask)
        for part in batch.parts
    ]
    embedded = encoded[0] if len(encoded) == 1 else torch.cat(encoded)
    return embedded if batch.order is None else embedded.index_select(0, batch.order)
