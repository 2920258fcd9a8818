"""Do our curator and its loss give the numbers that the published ones give?"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import CENTRAL, OUTLIER, SUPPORT
from chexstudy.curation.online.prototypes import join_features, update_prototypes
from chexstudy.curation.online.selection import select_samples
from chexstudy.pretraining.objectives.contrastive_loss import contrastive_loss

_TOLERANCE = 1e-9
_ARRAYS = (
    *("image", "text", "prototypes", "logit_scale", "keep", "outlier", "support", "central"),
    *("loss", "usage", "prototypes_after"),
)

Arrays = Mapping[str, np.ndarray]


def check_curation(arrays: Arrays) -> pd.DataFrame:
    """Select, update and measure the loss from float64 arrays ``caseN/image``, ``caseN/text`` and so on.

    Returns:
        One row a case: ``case``, what was compared, and ``passed``. Masks and usage must be identical, the loss within
        1e-9 relative, the updated prototypes within 1e-9 absolute.
    """
    cases = sorted({name.split("/")[0] for name in arrays if "/" in name})
    return pd.DataFrame([{"case": case, **_check_case(case, arrays)} for case in cases])


def _check_case(name: str, arrays: Arrays) -> dict[str, bool]:
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
