"""Fitted learning curves with their bands, at enough label counts to draw a line."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexstudy.label_planning.posterior import Posterior
from chexstudy.statistics.bootstrap import CONFIDENCE


def trace_bands(
    posteriors: Sequence[Posterior], points: int = 60, reach: float = 2.0, confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """Median and interval of each curve along its labels and some way beyond.

    Args:
        posteriors: of curves.
        points: label counts, evenly on a logarithmic scale.
        reach: how far beyond the largest n, as a multiple of it.
        confidence: of the band, which holds at each label count alone, not for all at once.

    Returns:
        ``encoder, finding, data_set, unit, labels, value, low, high`` and ``observed``, whether the label count lies
        within those measured.
    """
    tail, tables = (1 - confidence) / 2, []
    for posterior in posteriors:
        curve = posterior.curve
        labels = np.geomspace(curve.labels[0], reach * curve.most, points)
        low, value, high = np.quantile(posterior.predict(labels), [tail, 0.5, 1 - tail], axis=0)
        place = {name: getattr(curve, name) for name in ("encoder", "finding", "data_set", "unit")}
        lines = {"labels": labels, "value": value, "low": low, "high": high, "observed": labels <= curve.most}
        tables.append(pd.DataFrame(place | lines))
    return pd.concat(tables, ignore_index=True)
