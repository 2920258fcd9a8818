"""The ledger: what was decided about each considered pair, and on which grounds."""

import numpy as np
import pandas as pd

from chexstudy.curation.decisions import BANDS, CENTRAL, OUTLIER, REASONS, SUPPORT, Selection

LEDGER_COLUMNS = (
    *("image_id", "epoch", "step", "prototype", "distance", "threshold_support", "threshold_outlier"),
    *("band", "order", "priority", "kept", "reason"),
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
    return pd.DataFrame(
        {
            "image_id": image_ids,
            "epoch": epoch,
            "step": step,
            "prototype": selection.prototype.cpu().numpy(),
            "distance": selection.distance.cpu().numpy(),
            "threshold_support": selection.threshold_support.cpu().numpy(),
            "threshold_outlier": selection.threshold_outlier.cpu().numpy(),
            "band": np.asarray(BANDS)[selection.band.cpu().numpy()],
            "order": selection.order.cpu().numpy(),
            "priority": selection.priority.cpu().numpy(),
            "kept": selection.kept.cpu().numpy(),
            "reason": np.asarray(REASONS)[selection.reason.cpu().numpy()],
        }
    )


def summarise_bands(ledger: pd.DataFrame) -> pd.DataFrame:
    """Pairs and kept pairs by band, in the order central, support, outlier."""
    summary = ledger.groupby("band").agg(pairs=("kept", "size"), kept=("kept", "sum"))
    return summary.reindex([BANDS[CENTRAL], BANDS[SUPPORT], BANDS[OUTLIER]], fill_value=0).reset_index()
