"""Reports to one vector each, padded or packed."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.encoders.encoder import Encoder
from chexstudy.errors import StudyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Positions are absolute and every token sees every other: many texts can share one row if attention keeps them apart.
_PACKS_TEXTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")


class TextEncoder(Encoder):
    """Reports to one vector each; they are cut to ``max_tokens`` tokens."""

    def __init__(
        self,
        model: "PreTrainedModel",
        pooling: str,
        origin: dict,
        tokenizer: "PreTrainedTokenizerBase",
        max_tokens: int,
        pads_to_full_length: bool,
    ):
        super().__init__(model, pooling, origin)
        self.tokenizer = tokenizer
        self._pads_to_full_length, self._first_position = pads_to_full_length, _first_position(model)
        positions = getattr(model.config, "max_position_embeddings", None)
        longest = max_tokens if positions is None else positions - self._first_position
        self.max_tokens = min(max_tokens, longest, tokenizer.model_max_length)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 ``(batch, length)``, padded on the right to the longest text."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length" if self._pads_to_full_length else "longest",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        mask = torch.ones_like(tokens["input_ids"]) if self._pads_to_full_length else tokens["attention_mask"]
        return {"input_ids": tokens["input_ids"], "attention_mask": mask}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens and mask ``(batch, length)``, padded on the right, to vectors ``(batch, dim)``, not normalised.

        The amount of padding does not matter.
        """
        output = self.model(input_ids=input_ids, attention_mask=None if self._pads_to_full_length else attention_mask)
        if self.pooling == "pooler":
            return output.pooler_output
        if self.pooling == "projection":
            return output.text_embeds
        tokens = output.last_hidden_state
        if self.pooling == "first":
            return tokens[:, 0]
        if self.pooling == "last":
            last = (attention_mask.sum(1) - 1).clamp(min=0)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)

    def check_packing(self) -> None:
        """Make sure that `forward_packed` gives what `forward` gives."""
        config = self.model.config
        packs = config.model_type in _PACKS_TEXTS and not getattr(config, "is_decoder", False)
        if not packs or self._pads_to_full_length or self.pooling == "projection":
            raise StudyError(
                f"texts cannot be packed for {self.origin['name']}, a {config.model_type} pooled by {self.pooling}: "
                "lay them out in buckets or padded."
            )

    def forward_packed(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Texts behind one another, ``(tokens,)``, to what `forward` gives with padding, ``(texts, dim)``.

        Every linear layer sees exactly these tokens; attention keeps to each text. On a CPU, texts of equal length
        attend as one batch, which is fastest where they stand side by side. The ``lengths`` of the texts lie on the
        CPU, so that a GPU need not be waited for.
        """
        from chexstudy.encoders.packed_attention import allow_packing

        self.check_packing()
        allow_packing(self.model)
        device = input_ids.device
        lengths = lengths.cpu()
        ends = lengths.cumsum(0)
        starts = ends - lengths
        places = torch.arange(len(input_ids)) - starts.repeat_interleave(lengths) + self._first_position
        output = self.model(
            input_ids=input_ids.unsqueeze(0),
            position_ids=places.unsqueeze(0).to(device, non_blocking=True),
            cu_seq_lens_q=functional.pad(ends, (1, 0)).to(torch.int32),
            max_length_q=int(lengths.max()),
        )
        tokens = output.last_hidden_state[0]
        if self.pooling == "mean":
            return torch.segment_reduce(tokens, "mean", lengths=lengths.to(device), unsafe=True)
        chosen = tokens.index_select(0, (ends - 1 if self.pooling == "last" else starts).to(device))
        # The model has pooled the row's first text only.
        return self.model.pooler(chosen.unsqueeze(1)) if self.pooling == "pooler" else chosen

    def describe(self) -> dict:
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return super().describe() | {
            "max_tokens": self.max_tokens,
            "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16],
        }


def _first_position(model: nn.Module) -> int:
    for name, module in model.named_modules():
        # RoBERTa numbers its positions from the padding token's id on.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.padding_idx + 1
    return 0
