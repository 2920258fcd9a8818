"""Do our curator and loss give the numbers that the published ones give?"""

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

_TOLERANCE = 1e-9
_ARRAYS = (
    *("image", "text", "prototypes", "logit_scale", "keep", "outlier", "support", "central"),
    *("loss", "usage", "prototypes_after"),
)


def check_golden(path: str | Path) -> pd.DataFrame:
    """Run every case of a golden file through selection, loss and prototype update.

    Masks and usage must be identical, the loss within 1e-9 relative, the updated prototypes within 1e-9 absolute.

    The file is ``.npz`` with float64 arrays ``caseN/image``, ``caseN/text`` ... as published numbers are kept here.

    Gives one row a case: ``case``, ``masks``, ``loss``, ``usage``, ``prototypes`` (did each agree?) and ``passed``.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"there is no file of golden numbers at {path}: check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # An array may claim a shape that no memory holds.
    except (OSError, ValueError, zipfile.BadZipFile, MemoryError, OverflowError, TypeError):
        raise StudyError(f"{path} is not a readable .npz file: expected arrays named case0/image and so on.") from None
    cases = sorted({name.split("/")[0] for name in arrays if "/" in name})
    if not cases:
        raise StudyError(f"{path} holds no cases: expected arrays named case0/image and so on.")
    rows = []
    for case in cases:
        missing = [name for name in _ARRAYS if f"{case}/{name}" not in arrays]
        if missing:
            raise StudyError(f"{path}: {case} lacks the array {missing[0]!r}; it needs {', '.join(_ARRAYS)}.")
        tensors = {name: torch.from_numpy(arrays[f"{case}/{name}"]) for name in _ARRAYS}
        rows.append({"case": case, **_check_case(tensors)})
    return pd.DataFrame(rows)


def _check_case(case: dict[str, torch.Tensor]) -> dict[str, bool]:
    config = CuratorConfig()
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
