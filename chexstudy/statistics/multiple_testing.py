"""Many findings, many tests: p values corrected for their number."""

import numpy as np


def correct_by_holm(p_values: np.ndarray) -> np.ndarray:
    """p values corrected by the step-down procedure of Holm (1979), ``(tests,)``.

    It holds the chance of one wrong claim or more, also for findings that go together on the same patients. NaN is a
    test that was not made: it stays NaN and counts for nothing.
    """
    p_values = np.asarray(p_values, dtype=float)
    made = np.flatnonzero(~np.isnan(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected = np.full_like(p_values, np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected
