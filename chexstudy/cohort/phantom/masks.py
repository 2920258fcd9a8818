"""Truth masks as run lengths: one row a structure of an image in ``truth_masks.parquet``.

A mask is read row by row from the top left; ``runs`` holds the lengths of alternating runs of background and
structure, beginning with background (0 if the first pixel is structure). The runs add up to height times width.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexstudy.errors import StudyError
from chexstudy.runs import artifact_path, require_whole

_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "structure": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "runs": pa.list_(pa.int32()),
    }
)
_ROWS_PER_GROUP = 2_000


def encode_mask(mask: np.ndarray) -> np.ndarray:
    """Run lengths (int32) of a boolean mask ``(height, width)``."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    if flat.size and flat[0]:
        edges = np.concatenate([[0], edges])
    return np.diff(edges).astype(np.int32)


def decode_mask(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """The boolean mask ``(height, width)`` of its run lengths."""
    runs = np.asarray(runs, dtype=np.int64)
    if runs.sum() != height * width:
        raise StudyError(
            f"the runs of a mask add up to {runs.sum()} pixels, not to {height} x {width}: build the masks again."
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def write_masks(rows: Iterable[tuple[str, str, int, int, np.ndarray]], path: str | Path) -> None:
    """Write rows of image id, structure, height, width and runs; rows of an image must stand side by side."""
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    table = pa.table([pa.array(column, type=kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
    with artifact_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=_ROWS_PER_GROUP, compression="zstd")


def read_masks(path: str | Path, image_id: str) -> dict[str, np.ndarray]:
    """The masks of one image by structure, boolean ``(height, width)``; empty for an image without masks."""
    if not Path(path).exists():
        raise StudyError(f"there are no truth masks at {path}: build the phantom first.")
    require_whole(Path(path))
    table = pq.read_table(path, filters=[("image_id", "==", image_id)])
    return {row["structure"]: decode_mask(row["runs"], row["height"], row["width"]) for row in table.to_pylist()}
