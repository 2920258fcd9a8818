"""The masked-language objective: a text encoder names the tokens that it is not shown (BERT: Devlin et al. 2019)."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.devices import autocast
from chexstudy.encoders.build import build_text_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.text import TextEncoder
from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import seal_model
from chexstudy.pretraining.engine.compute import FlopMeter
from chexstudy.pretraining.engine.micro_batch import MicroBatch
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.models.vocabulary import texts_to_learn_from
from chexstudy.pretraining.objectives.objective import Objective

# Of the tokens 15 % are to be named; of these 80 % are hidden, 10 % are another token and 10 % are shown.
_NAMED, _HIDDEN, _OTHER = 0.15, 0.8, 0.9
# Lengths are rounded up so that few shapes are counted.
_LENGTH_STEP = 8


class MaskedLanguageObjective(Objective):
    """A text encoder that learns from reports alone."""

    def _build(self, cohort: pd.DataFrame, seed: int) -> None:
        config = self._config
        of_text = {"pooling": config.text_pooling, "max_tokens": config.max_tokens, "dropout": config.dropout}
        spec = EncoderSpec(config.text_encoder, config.text_revision, **of_text)
        self._encoder = build_text_encoder(spec, texts_to_learn_from(cohort[cohort.split == "train"]), seed)
        self.model = _add_head(self._encoder, seed).to(self._device)
        self.examples = TrainingPairs(cohort, self._store, self._encoder.tokenize)
        self._special = torch.tensor(self._encoder.tokenizer.all_special_ids, device=self._device)
        self._micro = MicroBatch(config.micro_batch, self._device, "report", "text_encoder or max_tokens")
        self.width, self._meter = self._encoder.dim, FlopMeter(self.model)

    def parameter_groups(self) -> list[dict]:
        """Weight decay is for matrices."""
        decayed, others = ([p for p in self.model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
        return [{"params": decayed, "weight_decay": self._config.weight_decay}, {"params": others, "weight_decay": 0.0}]

    def _read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Token ids and their mask ``(rows, length)``, padded to the longest text of the rows."""
        texts = self.examples.texts
        (padded,) = texts.batch(rows, self._device, "padded").parts
        longest = -(-int(texts.lengths[rows].max()) // _LENGTH_STEP) * _LENGTH_STEP
        return padded.input_ids[:, :longest], padded.mask[:, :longest]

    def _hide(self, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Tokens as the model is shown them, and which it has to name, drawn for the whole batch."""
        generator = self._streams.generator("masks", step)
        chances = torch.rand(2, *ids.shape, generator=generator).to(self._device)
        others = torch.randint(len(self._encoder.tokenizer), ids.shape, generator=generator).to(self._device)
        named = (chances[0] < _NAMED) & ~torch.isin(ids, self._special)
        shown = ids.masked_fill(named & (chances[1] < _HIDDEN), self._encoder.tokenizer.mask_token_id)
        return torch.where(named & (chances[1] >= _HIDDEN) & (chances[1] < _OTHER), others, shown), named

    def backward(
        self, rows: np.ndarray, step: int, embedded: tuple[Tensor, ...] | None = None, weights: np.ndarray | None = None
    ) -> dict[str, float]:
        self.model.train(self._config.dropout)
        ids, mask = self._read(rows)
        shown, named = self._hide(ids, step)
        of_row = torch.ones(len(rows)) if weights is None else torch.from_numpy(weights).float()
        of_row, total = of_row.to(self._device), max(int(named.sum()), 1)
        share = self._processes.share(len(rows))

        def learn() -> tuple[float, int]:
            self.model.zero_grad(set_to_none=True)
            loss, right = 0.0, 0
            for piece in self._micro.cut(share):
                torch.manual_seed(self._streams.draw_seed("dropout", step, piece.start))
                with autocast(self._device, self._autocast):
                    logits = self.model(input_ids=shown[piece], attention_mask=mask[piece]).logits
                wanted = named[piece]
                logits, truth = logits[wanted].float(), ids[piece][wanted]
                of_token = functional.cross_entropy(logits, truth, reduction="none")
                part = (of_token * of_row[piece, None].expand(-1, ids.shape[1])[wanted]).sum() / total
                part.backward()
                loss, right = loss + part.item(), right + int((logits.argmax(dim=1) == truth).sum())
            return loss, right

        loss, right = self._processes.add_up(self._micro.halving(learn))
        self.flops += (share.stop - share.start) * self._count(ids.shape[1], backward=True)
        self._processes.sum_gradients(self.model.parameters())
        return {"loss": loss, "named_right": right / total}

    def _count(self, length: int, backward: bool) -> float:
        sample = torch.ones(2, length, dtype=torch.long, device=self._device)

        def read() -> Tensor:
            if backward:
                return self.model(input_ids=sample, attention_mask=sample).logits
            return self._encoder(sample, sample)

        return self._meter.count((length, backward), read, backward) / 2

    def count_step(self, rows: np.ndarray) -> float:
        return len(rows) * self._count(self._read(rows)[0].shape[1], backward=True)

    @torch.no_grad()
    def embed(self, rows: np.ndarray, size: int | None = None) -> tuple[Tensor]:
        own, found = rows[self._processes.share(len(rows))], torch.empty((0, self.width), device=self._device)
        if len(own):
            (ids, mask), encoder = self._read(own), self._encoder.eval()

            def see() -> Tensor:
                pieces = self._micro.cut(slice(0, len(own)))
                return torch.cat([encoder(ids[piece], mask[piece]).float() for piece in pieces])

            found = self._micro.halving(see)
            self.flops += len(own) * self._count(ids.shape[1], backward=False)
        return (self._processes.gather(found, len(rows)),)

    def join(self, embedded: tuple[Tensor]) -> Tensor:
        return functional.normalize(embedded[0], dim=1)

    def describe(self) -> dict:
        return {"micro_batch": self._micro.size, **super().describe()}

    def export(self, folder: Path) -> None:
        save_encoder(self._encoder, folder / "text_encoder")
        seal_model(folder, self._config)


def _add_head(encoder: TextEncoder, seed: int) -> nn.Module:
    """The model of transformers that names tokens, with the encoder in its place."""
    import transformers

    config, name = encoder.model.config, encoder.origin["name"]
    model_class = transformers.MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    if model_class is None or encoder.tokenizer.mask_token_id is None:
        raise StudyError(
            f"{name} is a {config.model_type}, which has no token for a hidden one: use tiny-bert, a BERT or a RoBERTa."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    setattr(model, model.base_model_prefix, encoder.model)
    model.tie_weights()
    return model
