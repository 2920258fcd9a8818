"""What a curator decides about each pair of a batch, and the reasons it can give."""

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import pandas as pd
from torch import Tensor

CENTRAL, SUPPORT, OUTLIER = 0, 1, 2
BANDS = ("central", "support", "outlier")
# Of a pair that the mismatch filter set aside: it is in no band of a prototype.
MISMATCHED = 3
LEDGER_BANDS = (*BANDS, "mismatched")


class Reason(IntEnum):
    """Why a pair was kept or dropped: a number for tensors, in words for the ledger."""

    def __new__(cls, words: str):
        reason = int.__new__(cls, len(cls.__members__))
        reason._value_, reason.words = int(reason), words
        return reason

    PASSED_OVER = "dropped: the sampler passed over it among the central members of its prototype"
    PICKED = "kept: the sampler picked it among the central members of its prototype"
    UNDER_CAP = "kept: its prototype has no more central members than the cap"
    IN_SUPPORT = "kept: in the support band"
    OUTLIER_DROPPED = "dropped: farther from its prototype than the outlier quantile"
    OUTLIER_KEPT = "kept: farther from its prototype than the outlier quantile, and outliers are kept"
    OUTLIER_REVIEWED = "dropped: farther from its prototype than the outlier quantile, put on the review list"
    BATCH_EMPTY = "kept: nothing else of its batch would have been kept"
    NOVEL = "kept: less like the pairs kept before than its prototype's share asks for"
    REDUNDANT = "dropped: too like the pairs kept before"
    BUDGET_FILLED = "kept: the budget had to be filled"
    BUDGET_SPENT = "dropped: the budget was spent"
    MISMATCHED = "dropped: its report rather fits other images of its super-batch, or its image other reports"


REASONS = tuple(reason.words for reason in Reason)
OUTLIER_REASONS = {"drop": Reason.OUTLIER_DROPPED, "keep": Reason.OUTLIER_KEPT, "review": Reason.OUTLIER_REVIEWED}


@dataclass(frozen=True)
class Selection:
    """What was decided for each pair of a batch, and on which grounds. All tensors are ``(batch,)``."""

    prototype: Tensor  # nearest prototype, int64
    distance: Tensor  # Euclidean distance to it
    threshold_support: Tensor  # lower edge of the support band at that prototype, when the pair was decided
    threshold_outlier: Tensor  # its upper edge
    band: Tensor  # ``CENTRAL``, ``SUPPORT``, ``OUTLIER`` or ``MISMATCHED``, int8
    order: Tensor  # place in the sampler's order of its prototype's central members, -1 if not picked, int64
    priority: Tensor  # the higher, the sooner a curator with a budget would keep it; NaN where the rule has no budget
    kept: Tensor  # the decision
    reason: Tensor  # index into `REASONS`, int8


def ledger_rows(image_ids: np.ndarray, epoch: int, step: int, selection: Selection) -> pd.DataFrame:
    """The rows of the ledger for a batch with these image ids ``(batch,)``; epoch and step count from 0."""
    columns = {field.name: getattr(selection, field.name).cpu().numpy() for field in fields(selection)}
    words = {"band": np.asarray(LEDGER_BANDS)[columns["band"]], "reason": np.asarray(REASONS)[columns["reason"]]}
    return pd.DataFrame({"image_id": image_ids, "epoch": epoch, "step": step, **columns, **words})
