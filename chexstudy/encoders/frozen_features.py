"""Features of a frozen encoder, computed once and kept: what every head learns from, so that a CPU suffices.

Kept in ``features/<name>/`` of the study: the pooled embedding, [CLS] and mean patch of the last blocks in float32, and
the patches themselves in float16, mapped from disk. ViT-L at 512 pixels has 1,024 patches of 4,096 channels, 8.4 MB an
image; ``tiny-resnet`` at 96 pixels has 144 of 240, 69 kB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import torch

from chexstudy.arrays import grow_arrays
from chexstudy.encoders.embeddings import PixelSource, hash_texts
from chexstudy.encoders.image import ImageEncoder
from chexstudy.errors import StudyError
from chexstudy.runs import Run, forget_artifact
from chexstudy.steps import find_step

_BLOCKS = 4
_BATCH = 256
_MEASURED = 1024
_PART_ROWS = 1024
_PART_BYTES = 256 * 2**20
_PIXELS = "pixels/manifest.json"
_VECTORS = ("pooled", "cls", "mean")
# What an encoder is called and where it came from do not change its features.
_DECIDES = ("architecture", "weights", "pooling", "dim", "image_size", "mean", "std")


@dataclass(frozen=True)
class FeatureBatch:
    """Features of some images, as a head's ``forward`` takes them."""

    pooled: torch.Tensor  # ``(batch, dim)``
    cls: torch.Tensor  # ``(batch, channels)``
    mean: torch.Tensor  # ``(batch, channels)``
    patches: torch.Tensor | None  # float32 ``(batch, tokens, channels)``; None for heads that do not need them


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of images by one encoder; row ``i`` of every array belongs to ``image_ids[i]``."""

    image_ids: list[str]  # in the order they were asked for
    pooled: np.ndarray  # ``(images, dim)`` float32, what `ImageEncoder.forward` gives and the projection sees
    cls: np.ndarray  # ``(images, channels)`` float32, [CLS] of the last blocks side by side
    mean: np.ndarray  # ``(images, channels)`` float32, mean over the patches
    # ``(images, tokens, channels)`` float16, mapped from disk; None where they were not asked for
    patches: np.ndarray | None
    widths: tuple[int, ...]  # channels of each block; they sum to ``channels``
    grid: int  # patches a side; ``tokens`` is its square
    encoder: dict  # `ImageEncoder.describe` of the encoder

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Where images lie, ``int64 (n,)``, in the order asked for."""
        rows = pd.Index(self.image_ids).get_indexer(list(image_ids))
        if (rows < 0).any():
            raise StudyError(
                f"{(rows < 0).sum()} of {len(rows)} images have no frozen features (the first is number "
                f"{int((rows < 0).argmax())} of those asked for, counted from 0): freeze the features of these images, "
                "too."
            )
        return rows.astype(np.int64)

    def read_batch(
        self, rows: np.ndarray, needs_patches: bool = True, device: torch.device | str = "cpu"
    ) -> FeatureBatch:
        """Features of some rows; rows in rising order are read from disk fastest."""
        if needs_patches and self.patches is None:
            raise StudyError("the head looks at patches and the features hold none: freeze them with patches.")
        vectors = (torch.from_numpy(array[rows]).to(device) for array in (self.pooled, self.cls, self.mean))
        patches = torch.from_numpy(np.asarray(self.patches[rows])).to(device).float() if needs_patches else None
        return FeatureBatch(*vectors, patches)

    def measure_channels(self, image_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel over the patches of images, each ``(channels,)`` float32.

        Of more than 1,024 images, so many spread evenly are looked at.
        """
        if self.patches is None:
            raise StudyError("these features hold no patches: freeze them with patches.")
        rows = np.sort(self.rows(image_ids))
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_MEASURED, len(rows))).round().astype(int))]
        total, squares = np.zeros((2, self.patches.shape[2]))
        for chunk in np.array_split(rows, max(1, len(rows) // 128)):
            values = self.patches[chunk].astype(np.float32)
            total += values.sum(axis=(0, 1), dtype=float)
            squares += np.einsum("itc,itc->c", values, values, dtype=float)
        count = len(rows) * self.patches.shape[1]
        mean = total / count
        return mean.astype(np.float32), np.sqrt(np.maximum(squares / count - mean**2, 0)).astype(np.float32)

    def check_encoder(self, encoder: dict) -> None:
        """Make sure that the features are of the encoder, here as described, that a head was trained on."""
        for part in _DECIDES:
            # A tuple comes back from JSON as a list.
            own, other = (
                list(value) if isinstance(value := one.get(part), tuple) else value for one in (self.encoder, encoder)
            )
            if own != other:
                raise StudyError(
                    f"the head was trained on features of another encoder ({part} {other}, these have {own}): freeze "
                    "the features of its encoder, or train it on these."
                )


def freeze_features(
    run: Run,
    name: str,
    encoder: ImageEncoder,
    image_ids: Sequence[str],
    pixels: PixelSource,
    *,
    patches: bool = True,
    device: torch.device | str = "cpu",
) -> FrozenFeatures:
    """Compute the features of images and keep them as ``features/<name>/`` of the study.

    Current features (same weights, preprocessing, images, pixels and code) are read; those with patches also serve
    where none are asked for. Stale ones are computed again, unfinished ones are finished.

    They are of the last four blocks, as published, or of all where there are fewer, see `ImageEncoder.embed_blocks`;
    with ``patches`` where heads look at places. The encoder is moved to ``device`` and put into evaluation mode.
    """
    _check_name(name)
    image_ids = [str(image_id) for image_id in image_ids]
    if not image_ids:
        raise StudyError("there are no images to compute features of: the selection of the cohort is empty.")
    if len(set(image_ids)) < len(image_ids):
        raise StudyError("features are computed once an image: pass each image_id once.")
    widths, description = encoder.block_widths()[-_BLOCKS:], encoder.describe()
    blocks = len(widths)
    parameters = {"encoder": description, "images": hash_texts(image_ids), "blocks": blocks, "patches": True}
    inputs = (_PIXELS,) if run.has(_PIXELS) else ()
    layout = _artifact(name, "layout.json")
    for kept in (True,) if patches else (True, False):
        if run.is_current(layout, run.key(parameters | {"patches": kept}, inputs)):
            return read_features(run, name)
    parameters["patches"] = patches
    encoder.to(device).eval()
    with torch.no_grad():
        first = torch.from_numpy(np.array(pixels.read(image_ids[:1]))).unsqueeze(1).to(device)
        tokens = encoder.embed_blocks(first, blocks)[2].shape[1]
    if round(tokens**0.5) ** 2 != tokens:
        raise StudyError(f"the encoder gives {tokens} patches, which are no square grid: use another encoder.")
    bytes_an_image = 4 * (encoder.dim + 2 * sum(widths)) + 2 * patches * tokens * sum(widths)
    rows_a_part = max(1, min(_PART_ROWS, _PART_BYTES // bytes_an_image))

    arrays, ids = _arrays(name, patches), _artifact(name, "ids.parquet")

    def compute(rows: slice) -> list[np.ndarray]:
        return _embed(encoder, image_ids[rows], pixels, blocks, device)[: len(arrays)]

    if not patches:
        forget_artifact(run.path(_artifact(name, "patches.npy")))
    files = [run.path(array) for array in arrays]
    grow_arrays(files, len(image_ids), rows_a_part, run.key(parameters, inputs), compute, "freezing features")
    run.write_table(ids, pd.DataFrame({"image_id": image_ids}))
    run.write_json(layout, {"widths": widths, "tokens": tokens, "patches": patches, "encoder": description})
    run.record(layout, parameters, inputs, files=(ids, *arrays))
    return read_features(run, name)


def read_features(run: Run, name: str) -> FrozenFeatures:
    """Kept features; the patches are mapped from disk."""
    _check_name(name)
    layout = run.read_json(_artifact(name, "layout.json"))
    image_ids = run.read_table(_artifact(name, "ids.parquet"))["image_id"].tolist()
    arrays = [run.read_array(array) for array in _arrays(name, patches=False)]
    patches = run.read_array(_artifact(name, "patches.npy"), memory_map=True) if layout["patches"] else None
    if {len(array) for array in (*arrays, patches) if array is not None} != {len(image_ids)}:
        raise StudyError(
            f"the features {name!r} of study {run.study!r} are damaged, for their files differ in rows: delete "
            f"{run.path(_artifact(name, 'layout.json'))} and run {find_step('features/')} again."
        )
    grid = round(layout["tokens"] ** 0.5)
    return FrozenFeatures(image_ids, *arrays, patches, tuple(layout["widths"]), grid, layout["encoder"])


def drop_patches(run: Run, name: str) -> None:
    """Give back the disk of the patches of kept features; their vectors stay current."""
    layout = _artifact(name, "layout.json")
    kept = run.read_json(layout)
    record = run.provenance(layout)
    if not kept["patches"] or record is None:
        return
    forget_artifact(run.path(_artifact(name, "patches.npy")))
    run.write_json(layout, kept | {"patches": False})
    parameters = record["parameters"] | {"patches": False}
    run.record(
        layout,
        parameters,
        tuple(record["inputs"]),
        files=(_artifact(name, "ids.parquet"), *_arrays(name, patches=False)),
    )


@torch.no_grad()
def _embed(encoder, image_ids, pixels, blocks, device) -> list[np.ndarray]:
    """Pooled, [CLS], mean and patches of some images."""
    batches: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, len(image_ids), _BATCH):
        images = np.array(pixels.read(image_ids[start : start + _BATCH]))
        pooled, cls, patches = encoder.embed_blocks(torch.from_numpy(images).unsqueeze(1).to(device), blocks)
        # The mean is taken before the patches are rounded.
        values = (pooled.float(), cls.float(), patches.float().mean(1), patches.half())
        for kept, value in zip(batches, values, strict=True):
            if not torch.isfinite(value).all():
                raise StudyError(
                    "the encoder gives features that are not finite or too large for float16: check its weights, or "
                    "train it again."
                )
            kept.append(value.cpu().numpy())
    return [np.concatenate(kept) for kept in batches]


def _check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or any(part.startswith((".", "/")) for part in parts) or str(PurePosixPath(*parts)) != name:
        raise StudyError(f"features need a name such as 'curated/seed0', not {name!r}.")


def _artifact(name: str, file: str) -> str:
    return f"features/{name}/{file}"


def _arrays(name: str, patches: bool) -> tuple[str, ...]:
    return tuple(_artifact(name, f"{kind}.npy") for kind in (*_VECTORS, *["patches"] * patches))
