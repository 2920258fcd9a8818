"""Does what we compute agree with numbers of the published code, from its inputs and weights?"""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.evaluation.segmentation import golden_decoders
from chexstudy.pretraining.golden_curation import check_curation
from chexstudy.pretraining.self_supervision import golden_step

_TOLERANCE, _OF_GRADIENTS = 1e-5, 1e-4
_COMPUTE = {
    golden_step.MARK: golden_step.compute_self_supervision,
    golden_decoders.MARK: golden_decoders.compute_decoders,
}


class _Arrays(dict):
    """Arrays of a golden file by name."""

    def __missing__(self, name: str):
        raise StudyError(f"the file of golden numbers lacks the array {name!r}: take the whole file.")


def check_golden(path: str | Path) -> pd.DataFrame:
    """Compute what a golden file holds, of the curator, of the self-supervised step or of decoders, and compare.

    The file is ``.npz``; what it is of is told by its arrays. Of the curator see `check_curation`. Other numbers and
    arrays must agree within 1e-5 relative to the largest expected value, gradients within 1e-4, whole numbers exactly.

    Returns:
        One row a case, number or array: ``case``, what was compared or its ``error``, and ``passed``.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"there is no file of golden numbers at {path}: check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = _Arrays({name: archive[name] for name in archive.files})
    # An array may claim a shape that no memory holds.
    except (OSError, ValueError, zipfile.BadZipFile, MemoryError, OverflowError, TypeError):
        raise StudyError(f"{path} is not a readable .npz file: expected arrays named case0/image and so on.") from None
    for mark, compute in _COMPUTE.items():
        if mark in arrays:
            return pd.DataFrame([_compare(name, *map(np.asarray, both)) for name, both in compute(arrays).items()])
    cases = check_curation(arrays)
    if cases.empty:
        raise StudyError(f"{path} holds no cases: expected arrays named case0/image and so on.")
    return cases


def _compare(name: str, found: np.ndarray, expected: np.ndarray) -> dict:
    error = _measure_error(found, expected)
    tolerance = _OF_GRADIENTS if name.endswith("_grad") else _TOLERANCE
    return {"case": name, "error": error, "passed": bool(error <= tolerance)}


def _measure_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected value; infinite where shapes or what is not finite differ."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind not in "fc":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(found[finite] - expected[finite]).max() / max(np.abs(expected[finite]).max(), 1e-12))
