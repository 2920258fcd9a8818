"""Embeddings: of images and texts in memory, and of a whole cohort kept in a study's folder.

A cohort is embedded in parts of fixed size, each written when it is done, and the parts are joined at the end. A killed
run goes on at the first part that is missing, and the parts do not depend on each other or on who makes them.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chexstudy.arrays import grow_arrays
from chexstudy.cohort.reports import training_text
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.text import TextEncoder
from chexstudy.errors import StudyError
from chexstudy.runs import Run, forget_artifact
from chexstudy.steps import find_step

_PART_ROWS = 1024
_PIXELS = "pixels/manifest.json"


class PixelSource(Protocol):
    """Where pixels come from, such as the pixel store of a study."""

    def read(self, image_ids: Sequence[str]) -> np.ndarray:
        """uint8 ``(n, height, width)`` in the order of the ids."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a cohort; row ``i`` of both arrays belongs to ``image_ids[i]``."""

    image_ids: list[str]  # in the order of the cohort table
    image: np.ndarray  # ``(images, dim)``, not normalised
    text: np.ndarray  # ``(images, dim)``, not normalised; images with the same report share their values


@torch.no_grad()
def embed_images(
    encode: Callable[[Tensor], Tensor], pixels: np.ndarray, batch_size: int = 256, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Images, uint8 ``(n, height, width)``, embedded in batches without gradient: float32 ``(n, dim)``.

    ``encode`` is an image encoder in evaluation mode, or any function of uint8 ``(batch, 1, height, width)``.
    """
    if len(pixels) == 0:
        raise StudyError("there are no images to embed: the selection of the cohort is empty.")
    device, batches = torch.device(device), []
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(np.array(pixels[start : start + batch_size])).unsqueeze(1).to(device)
        batches.append(encode(batch).float().cpu().numpy())
    return np.concatenate(batches)


@torch.no_grad()
def embed_texts(
    encode: Callable[[Tensor, Tensor], Tensor],
    tokenize: Callable[[Sequence[str]], dict[str, Tensor]],
    texts: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Texts embedded without gradient, each distinct one once, those of like length together: float32 ``(texts, dim)``.

    ``encode`` is a text encoder in evaluation mode, or any function of the ``input_ids`` and the ``attention_mask``
    that ``tokenize`` gives.
    """
    if len(texts) == 0:
        raise StudyError("there are no texts to embed: the selection of the cohort is empty.")
    distinct = distinct_texts(texts)
    device, batches = torch.device(device), []
    for start in range(0, len(distinct), batch_size):
        tokens = tokenize(distinct[start : start + batch_size])
        embedded = encode(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
        batches.append(embedded.float().cpu().numpy())
    return np.concatenate(batches)[_rows_of(texts, distinct)]


def distinct_texts(texts: Sequence[str]) -> list[str]:
    """Each text once, shortest first, equal lengths in alphabetical order: batches of them waste little padding."""
    return sorted(set(texts), key=lambda text: (len(text), text))


def _rows_of(texts: Sequence[str], distinct: Sequence[str]) -> np.ndarray:
    row = {text: number for number, text in enumerate(distinct)}
    return np.array([row[text] for text in texts])


def embed_cohort(
    run: Run,
    cohort: pd.DataFrame,
    pixels: PixelSource,
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    name: str,
    device: torch.device | str = "cpu",
) -> Embeddings:
    """Embed every pair of a cohort and keep the result as ``embeddings/<name>/`` of the study.

    Embeddings that are current (same weights, commit, preprocessing, cohort, pixels and code) are read, stale ones are
    computed again, unfinished ones are finished.

    The encoders are moved to ``device`` and put into evaluation mode; the text of a pair is that used in training.
    """
    if cohort.empty:
        raise StudyError("there are no pairs to embed: the cohort table is empty.")
    texts = [training_text(report) for report in cohort["report"]]
    inputs = (_PIXELS,) if run.has(_PIXELS) else ()
    parameters = {
        "image_encoder": image_encoder.describe(),
        "text_encoder": text_encoder.describe(),
        "pairs": hash_texts(text for pair in zip(cohort["image_id"], texts, strict=True) for text in pair),
    }
    key, ids = run.key(parameters, inputs), _artifact(name, "ids.parquet")
    if run.is_current(ids, key):
        return read_embeddings(run, name)
    for encoder in (image_encoder, text_encoder):
        encoder.to(device).eval()
    image_ids, distinct = cohort["image_id"].tolist(), distinct_texts(texts)

    def grow(artifact: str, rows: int, label: str, compute: Callable[[slice], np.ndarray]) -> None:
        grow_arrays([run.path(artifact)], rows, _PART_ROWS, key, lambda part: [compute(part)], label)

    def embed_distinct(part: slice) -> np.ndarray:
        return embed_texts(text_encoder, text_encoder.tokenize, distinct[part], device=device)

    image, text, distinct_text = (_artifact(name, f"{kind}.npy") for kind in ("image", "text", "distinct_text"))
    embed_part = partial(embed_images, image_encoder, device=device)
    grow(image, len(image_ids), "embedding images", lambda part: embed_part(pixels.read(image_ids[part])))
    grow(distinct_text, len(distinct), "embedding texts", embed_distinct)
    unique, places = run.read_array(distinct_text), _rows_of(texts, distinct)
    grow(text, len(places), "a text for each image", lambda part: unique[places[part]])
    forget_artifact(run.path(distinct_text))
    run.write_table(ids, pd.DataFrame({"image_id": image_ids}))
    run.record(ids, parameters, inputs, files=(image, text))
    return read_embeddings(run, name)


def read_embeddings(run: Run, name: str) -> Embeddings:
    """The embeddings of a study, mapped from disk."""
    image_ids = run.read_table(_artifact(name, "ids.parquet"))["image_id"].tolist()
    image, text = (run.read_array(_artifact(name, file), memory_map=True) for file in ("image.npy", "text.npy"))
    if not len(image_ids) == len(image) == len(text):
        raise StudyError(
            f"the embeddings {name!r} of study {run.study!r} are damaged: {len(image_ids)} ids, {len(image)} images "
            f"and {len(text)} texts; delete {run.path(_artifact(name, 'ids.parquet'))} and "
            f"run {find_step('embeddings/')} again."
        )
    return Embeddings(image_ids, image, text)


def _artifact(name: str, file: str) -> str:
    return f"embeddings/{name}/{file}"


def hash_texts(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()
