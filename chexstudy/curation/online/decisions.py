"""What a curator decides about each pair of a batch, and the reasons it can give."""

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from torch import Tensor

CENTRAL, SUPPORT, OUTLIER = 0, 1, 2
BANDS = ("central", "support", "outlier")

REASONS = (
    "dropped: the sampler passed over it among the central members of its prototype",
    "kept: the sampler picked it among the central members of its prototype",
    "kept: its prototype has no more central members than the cap",
    "kept: in the support band",
    "dropped: farther from its prototype than the outlier quantile",
    "kept: farther from its prototype than the outlier quantile, and outliers are kept",
    "dropped: farther from its prototype than the outlier quantile, put on the review list",
    "kept: nothing else of its batch would have been kept",
    "kept: less like the pairs kept before than its prototype's share asks for",
    "dropped: too like the pairs kept before",
    "kept: the budget had to be filled",
    "dropped: the budget was spent",
)
(
    PASSED_OVER,
    PICKED,
    UNDER_CAP,
    IN_SUPPORT,
    OUTLIER_DROPPED,
    OUTLIER_KEPT,
    OUTLIER_REVIEWED,
    BATCH_EMPTY,
    NOVEL,
    REDUNDANT,
    BUDGET_FILLED,
    BUDGET_SPENT,
) = range(len(REASONS))
OUTLIER_REASONS = {"drop": OUTLIER_DROPPED, "keep": OUTLIER_KEPT, "review": OUTLIER_REVIEWED}


@dataclass(frozen=True)
class Selection:
    """What was decided for each pair of a batch, and on which grounds. All tensors are ``(batch,)``."""

    prototype: Tensor  # nearest prototype, int64
    distance: Tensor  # Euclidean distance to it
    threshold_support: Tensor  # lower edge of the support band at that prototype, when the pair was decided
    threshold_outlier: Tensor  # its upper edge
    band: Tensor  # ``CENTRAL``, ``SUPPORT`` or ``OUTLIER``, int8
    order: Tensor  # place in the sampler's order of its prototype's central members, -1 if not picked, int64
    priority: Tensor  # the higher, the sooner a curator with a budget would keep it; NaN where the rule has no budget
    kept: Tensor  # the decision
    reason: Tensor  # index into `REASONS`, int8


def ledger_rows(image_ids: np.ndarray, epoch: int, step: int, selection: Selection) -> pd.DataFrame:
    """The rows of the ledger for a batch with these image ids ``(batch,)``; epoch and step count from 0."""
    columns = {field.name: getattr(selection, field.name).cpu().numpy() for field in fields(selection)}
    words = {"band": np.asarray(BANDS)[columns["band"]], "reason": np.asarray(REASONS)[columns["reason"]]}
    return pd.DataFrame({"image_id": image_ids, "epoch": epoch, "step": step, **columns, **words})
