"""Tables of the comparison of methods, from results written by hand."""

import numpy as np
import pandas as pd

from chexstudy.experiments.curator_comparison import DIFFERENCE, KEPT, P_HOLM, STABILITY, ZERO_SHOT
from chexstudy.experiments.curator_tables import summarise_kept, summarise_trained

_BUDGETS = ("same_data", "same_compute")


def _row(arm, task, metric, value, reach=np.nan, finding="all", setting="same_data", flops=np.nan):
    return {
        **{"study": "mine", "arm": arm, "seed": -1, "task": task, "data_set": "mine/test", "finding": finding},
        **{"metric": metric, "setting": setting, "value": value, "ci_low": value - reach, "ci_high": value + reach},
        **{"n": 50, "positives": -1, "exposure": "held_out", "flops": flops, "seconds": 1.0},
    }


def _results(tail_reach=0.05, tail_p=0.4):
    """``loss`` keeps more of the rare and of the wrong than chance; ``agreement`` less of both."""
    rows = []
    for method, rare, wrong, macro, flops in (
        ("random", 0.23, 0.22, 0.70, 10.0),
        ("loss", 0.50, 0.60, 0.68, 12.0),
        ("agreement", 0.20, 0.05, 0.72, 12.0),
    ):
        arm = f"by_{method}"
        rows.append(_row(arm, KEPT, "rare_recall", rare, 0.08, "tail"))
        rows.append(_row(arm, KEPT, "mismatched_kept", wrong, 0.05))
        rows.append(_row(arm, KEPT, STABILITY, rare))
        for setting in _BUDGETS:
            place = {"setting": setting, "flops": flops}
            rows.append(_row(arm, ZERO_SHOT, "auroc", macro, 0.1, "macro", **place))
            rows.append(_row(arm, ZERO_SHOT, "auroc", macro + 0.02, 0.1, "tail", **place))
            if method == "random":
                continue
            for finding, reach, p in (("macro", 0.01, 0.01), ("tail", tail_reach, tail_p)):
                pair = (arm, DIFFERENCE)
                rows.append(_row(*pair, "auroc_difference", macro - 0.70, reach, finding, setting))
                rows.append(_row(*pair, P_HOLM, p, finding=finding, setting=setting))
    one_seed = [row | {"seed": seed} for row in rows if row["task"] == ZERO_SHOT for seed in (0, 1)]
    return pd.DataFrame(rows + one_seed)


def test_tables_print_values_with_their_intervals():
    kept = summarise_kept(_results())
    assert kept.loc["loss", "rare recall"] == "0.500 [0.420, 0.580]"
    trained = summarise_trained(_results())
    assert trained.loc[("same data", "agreement"), "AUROC, macro"] == "0.720 [0.620, 0.820]"
    assert trained.loc[("same compute", "agreement"), "minus random, macro"] == "+0.020 [0.010, 0.030]"
    assert trained.loc[("same data", "loss"), "p (Holm), tail"] == "0.400"
    assert trained.loc[("same data", "random"), "minus random, macro"] == ""
    small = summarise_trained(_results(tail_p=1e-9))
    assert small.loc[("same data", "loss"), "p (Holm), tail"] == "< 0.001"
