"""Do our curator, its loss and the self-supervised step give the numbers that the published ones give?"""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import CENTRAL, OUTLIER, SUPPORT
from chexstudy.curation.online.prototypes import join_features, update_prototypes
from chexstudy.curation.online.selection import select_samples
from chexstudy.errors import StudyError
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss
from chexstudy.pretraining.self_supervision.golden_step import MARK, check_self_supervision

_TOLERANCE = 1e-9
_ARRAYS = (
    *("image", "text", "prototypes", "logit_scale", "keep", "outlier", "support", "central"),
    *("loss", "usage", "prototypes_after"),
)


class _Arrays(dict):
    """Arrays of a golden file by name."""

    def __missing__(self, name: str):
        raise StudyError(f"the file of golden numbers lacks the array {name!r}: take the whole file.")


def check_golden(path: str | Path) -> pd.DataFrame:
    """Compute what a golden file holds, of the curator or of the self-supervised step, and compare.

    The file is ``.npz`` with float64 arrays ``caseN/image``, ``caseN/text`` ..., or with those that
    `chexstudy.pretraining.self_supervision.golden_step` reads.

    Returns:
        One row a case: ``case``, what was compared, and ``passed``. Of the curator, masks and usage must be identical,
        the loss within 1e-9 relative, the updated prototypes within 1e-9 absolute.
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
    if MARK in arrays:
        return check_self_supervision(arrays)
    cases = sorted({name.split("/")[0] for name in arrays if "/" in name})
    if not cases:
        raise StudyError(f"{path} holds no cases: expected arrays named case0/image and so on.")
    return pd.DataFrame([{"case": case, **_check_case(case, arrays)} for case in cases])


def _check_case(name: str, arrays: _Arrays) -> dict[str, bool]:
    config, case = CuratorConfig(), {array: torch.from_numpy(arrays[f"{name}/{array}"]) for array in _ARRAYS}
    image, text = normalize(case["image"], dim=1), normalize(case["text"], dim=1)
    features = join_features(image, text)
    selection = select_samples(features, case["prototypes"], config, generator=None)
    kept = selection.kept
    masks = {
        "keep": kept,
        "outlier": selection.band == OUTLIER,
        "support": kept & (selection.band == SUPPORT),
        "central": kept & (selection.band == CENTRAL),
    }
    loss = contrastive_loss(image[kept], text[kept], case["logit_scale"])
    after, usage = update_prototypes(case["prototypes"], features[kept], config)
    checks = {
        "masks": all(torch.equal(mask, case[name]) for name, mask in masks.items()),
        "loss": bool(torch.isclose(loss, case["loss"], rtol=_TOLERANCE, atol=0.0)),
        "usage": torch.equal(usage.double(), case["usage"].double()),
        "prototypes": bool((after - case["prototypes_after"]).abs().max() <= _TOLERANCE),
    }
    return {**checks, "passed": all(checks.values())}
