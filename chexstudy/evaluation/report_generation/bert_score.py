"""BERTScore: how near the tokens of a report are to those of its reference, in the space of a text encoder.

The encoder lies in a folder or in the local cache of the Hub; nothing is downloaded for it. Other metrics of trained
weights (CheXbert, RadGraph, GREEN) come as code and pickles of their own, which are not run here.

Source: Zhang et al. 2020, BERTScore, without idf weights and without rescaling by a baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from chexstudy.encoders.build import build_text_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.text import TextEncoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import Measured
from chexstudy.progress import progress
from chexstudy.statistics.bootstrap import count_patients

BERT_SCORE = "bert_score"
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class BertScore:
    """The metric by one layer of one encoder."""

    encoder: TextEncoder
    layer: int  # counted from 1; the numbers of two layers are not comparable

    @property
    def signature(self) -> str:
        """Which encoder at which revision, and how it is used."""
        origin, tokens = self.encoder.origin, self.encoder.max_tokens
        revision = origin["revision"] or "a folder"
        return (
            f"BERTScore|F1|idf:no|rescaled:no|model:{origin['name']}|revision:{revision}|layer:{self.layer}|"
            f"tokens:at most {tokens}|level:mean of reports"
        )

    def score(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """F1 of each pair ``(reports,)``; 0 where a side has no token."""
        scores = []
        for start in progress(range(0, len(references), _PAIRS_AT_ONCE), label="comparing tokens"):
            rows = slice(start, start + _PAIRS_AT_ONCE)
            pairs = zip(self._embed(hypotheses[rows]), self._embed(references[rows]), strict=True)
            scores += [_match(*said, *told) for said, told in pairs]
        return np.array(scores)

    def _embed(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text its tokens' unit vectors ``(tokens, dim)``, and which of them are words."""
        tokens = self.encoder.tokenize(texts)
        with torch.no_grad():
            hidden = self.encoder.model(**tokens, output_hidden_states=True).hidden_states[self.layer]
        vectors = torch.nn.functional.normalize(hidden, dim=-1).numpy()
        is_word = ~np.isin(tokens["input_ids"].numpy(), self.encoder.tokenizer.all_special_ids)
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        return [(one[:end], words[:end]) for one, words, end in zip(vectors, is_word, lengths, strict=True)]

    def measure(self, hypotheses: Sequence[str], references: Sequence[str], weights: np.ndarray) -> Measured:
        """Mean over reports with resamples of patients ``(resamples, reports)``; references that say something."""
        scores = self.score(hypotheses, references)
        replicates = weights @ scores / weights.sum(axis=1)
        columns = pd.DataFrame([{"finding": "all", "n": len(scores), "positives": -1}])
        patients = count_patients(np.ones((len(scores), 1), dtype=bool), weights)
        values = np.full((1, 1, 1), scores.mean())
        return Measured((BERT_SCORE,), columns, values, replicates[None, :, None, None], patients, (-1, 1))


def load_bert_score(name: str) -> BertScore:
    """The metric by ``MODEL`` at its last layer, or by ``MODEL@5`` at its fifth, of a folder or a Hub id."""
    model, _, layer = name.rpartition("@") if "@" in name else (name, "", "")
    encoder = build_text_encoder(EncoderSpec(model, max_tokens=512))
    layers = encoder.model.config.num_hidden_layers
    if layer and not (layer.isdecimal() and 1 <= int(layer) <= layers):
        raise StudyError(f"{model} has layers 1 to {layers}, none {layer!r}: write {model}@{layers} for the last.")
    return BertScore(encoder, int(layer or layers))


def _match(said: np.ndarray, is_said: np.ndarray, told: np.ndarray, is_told: np.ndarray) -> float:
    """Each word's nearest token on the other side: mean cosine over words said and over words told, as an F1."""
    if not (is_said.any() and is_told.any()):
        return 0.0
    cosines = said @ told.T
    precision, recall = cosines.max(axis=1)[is_said].mean(), cosines.max(axis=0)[is_told].mean()
    return float(2 * precision * recall / (precision + recall))
