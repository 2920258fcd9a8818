"""How decisions change from one epoch of curation to the next."""

import numpy as np
import pandas as pd


def measure_churn(ledger: pd.DataFrame) -> pd.DataFrame:
    """How decisions change from one epoch of curation to the next, over the pairs considered in both.

    Args:
        ledger: decisions with ``image_id``, ``epoch`` and ``kept``; one decision a pair and epoch.

    Returns:
        One row for each epoch but the first: ``epoch``; ``pairs`` considered in both; ``kept`` in it; ``readmitted``,
        kept now and dropped before, and ``readmitted_share`` of those kept now; ``newly_dropped``, dropped now and kept
        before, and ``newly_dropped_share`` of those kept before; ``differ``, the share of the pairs kept in either
        epoch that were not kept in both (one minus the Jaccard index).
    """
    rows, before = [], None
    for epoch, decisions in ledger.groupby("epoch"):
        now = decisions.set_index("image_id").kept.astype(bool)
        if before is not None:
            was, kept = (one.loc[before.index.intersection(now.index)].to_numpy() for one in (before, now))
            readmitted, dropped = int((kept & ~was).sum()), int((was & ~kept).sum())
            either = int((kept | was).sum())
            rows.append(
                {
                    "epoch": epoch,
                    "pairs": len(kept),
                    "kept": int(kept.sum()),
                    "readmitted": readmitted,
                    "readmitted_share": readmitted / kept.sum() if kept.any() else np.nan,
                    "newly_dropped": dropped,
                    "newly_dropped_share": dropped / was.sum() if was.any() else np.nan,
                    "differ": (readmitted + dropped) / either if either else np.nan,
                }
            )
        before = now
    names = ["epoch", "pairs", "kept", "readmitted", "readmitted_share", "newly_dropped", "newly_dropped_share"]
    return pd.DataFrame(rows, columns=[*names, "differ"])
