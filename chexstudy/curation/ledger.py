"""The ledger: what was decided about each considered pair, and on which grounds."""

import numpy as np
import pandas as pd

from chexstudy.curation.selection import BANDS, CENTRAL, OUTLIER, SUPPORT, Selection

LEDGER_COLUMNS = (
    *("image_id", "epoch", "step", "prototype", "distance", "threshold_support", "threshold_outlier"),
    *("band", "order", "kept", "reason"),
)


def ledger_rows(image_ids: np.ndarray, epoch: int, step: int, selection: Selection) -> pd.DataFrame:
    """One row for each pair of a batch.

    Args:
        image_ids: ``(batch,)`` strings.
        epoch: epoch of the whole training, from 0.
        step: step of the whole training, from 0.
        selection: the decision of `select_samples`.

    Returns:
        Table with `LEDGER_COLUMNS`.
    """
    band, order, kept = selection.band.cpu().numpy(), selection.order.cpu().numpy(), selection.kept.cpu().numpy()
    reasons = np.select(
        [
            kept & (band == OUTLIER),
            band == OUTLIER,
            band == SUPPORT,
            kept & (order >= 0),
            kept,
        ],
        [
            "kept because the batch would have been empty",
            "dropped: farther from its prototype than the outlier quantile",
            "kept: in the support band",
            "kept: picked by farthest-point selection among the central members",
            "kept: its prototype has no more central members than the cap",
        ],
        default="dropped: a central member that farthest-point selection passed over",
    )
    return pd.DataFrame(
        {
            "image_id": image_ids,
            "epoch": epoch,
            "step": step,
            "prototype": selection.prototype.cpu().numpy(),
            "distance": selection.distance.cpu().numpy(),
            "threshold_support": selection.threshold_support.cpu().numpy(),
            "threshold_outlier": selection.threshold_outlier.cpu().numpy(),
            "band": np.asarray(BANDS)[band],
            "order": order,
            "kept": kept,
            "reason": reasons,
        }
    )


def summarise_bands(ledger: pd.DataFrame) -> pd.DataFrame:
    """Pairs and kept pairs by band, in the order central, support, outlier."""
    summary = ledger.groupby("band").agg(pairs=("kept", "size"), kept=("kept", "sum"))
    return summary.reindex([BANDS[CENTRAL], BANDS[SUPPORT], BANDS[OUTLIER]], fill_value=0).reset_index()
