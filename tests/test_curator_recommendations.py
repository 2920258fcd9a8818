"""Which method when: verdicts, the table to act on, and sentences, from results written by hand."""

import numpy as np
import pandas as pd

from chexstudy.experiments.curator_comparison import DIFFERENCE, KEPT, P_HOLM, STABILITY, ZERO_SHOT
from chexstudy.experiments.curator_recommendations import (
    MEASURES,
    advise_methods,
    judge_methods,
    state_comparison,
    summarise_kept,
    summarise_trained,
)
from chexstudy.plots.curators import METHOD_METRICS

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


def _verdicts(results):
    return judge_methods(results).set_index(["method", "metric", "budget_kind"]).verdict


def test_kept_sets_are_judged_by_their_interval_and_models_by_the_paired_difference():
    verdicts = _verdicts(_results())
    assert verdicts["random", "rare_recall", "same_data"] == "baseline"
    assert verdicts["loss", "rare_recall", "same_data"] == "better"
    assert verdicts["agreement", "rare_recall", "same_data"] == "even"
    # More of the wrong reports is worse.
    assert verdicts["loss", "mismatched_kept", "same_data"] == "worse"
    assert verdicts["agreement", "mismatched_kept", "same_data"] == "better"
    # The arms' own intervals hold each other; the difference, paired, does not hold zero.
    assert verdicts["agreement", "auroc_macro", "same_compute"] == "better"
    assert verdicts["loss", "auroc_macro", "same_data"] == "worse"
    assert verdicts["agreement", "auroc_tail", "same_data"] == "even"


def test_the_table_says_where_each_method_is_strong_and_where_weak():
    table = advise_methods(_results())
    assert list(table.index) == ["random", "agreement", "loss"]
    assert table.loc["loss", "best of all at"] == "keeping rare findings"
    assert table.loc["loss", "better than random at"] == "keeping rare findings"
    assert table.loc["loss", "worse than random at"] == "avoiding wrong reports, AUROC of all findings"
    assert table.loc["agreement", "better than random at"] == "avoiding wrong reports, AUROC of all findings"
    assert table.loc["random", ["better than random at", "worse than random at"]].tolist() == ["", ""]
    assert table.loc["agreement", "needs"] == "image, text"
    assert table.operations.to_dict() == {"random": 1.0, "agreement": 1.2, "loss": 1.2}
    assert table.loc["loss", "alike across seeds"] == 0.5


def test_sentences_follow_the_numbers():
    text = " ".join(state_comparison(_results()))
    assert "Most of the rare findings are kept by loss: 50% (random: 23%); its interval does not hold" in text
    assert "Fewest of the wrong reports are kept by agreement: 5% (random: 22%)" in text
    tail = "The best AUROC of rare findings has agreement at the same data: 0.740 (random: 0.720), but its difference"
    assert tail in text
    assert "+0.020 (-0.030 to +0.070), spans zero: this study cannot tell the two apart" in text
    assert "at the same compute better is agreement and worse is loss." in text
    alone = "not that of training"
    assert alone not in text
    assert alone in " ".join(state_comparison(_results()[lambda rows: rows.seed != 1]))
    # Other numbers, other words.
    results = _results()
    results.loc[(results.arm == "by_random") & (results.metric == "rare_recall"), "value"] = 0.9
    best = "Most of the rare findings are kept by random choice: 90%; no method has a better mean."
    assert best in state_comparison(results)
    other = " ".join(state_comparison(_results(tail_reach=0.01, tail_p=0.2)))
    assert "+0.020 (+0.010 to +0.030), does not span zero but not so after correction by Holm" in other


def test_without_labels_and_truth_the_rest_is_still_judged():
    results = pd.DataFrame([_row(f"by_{method}", KEPT, "redundancy", 0.9) for method in ("random", "d4")])
    table = advise_methods(results)
    assert table.loc["d4", "best of all at"] == "avoiding redundancy"
    assert "operations" not in table
    (sentence,) = state_comparison(results)
    assert (
        sentence
        == "The least redundancy is left by random choice: 0.900 (shared by random, d4); no method has a better mean."
    )


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


def test_every_measure_of_the_figure_is_judged_as_it_is_there():
    assert {name: MEASURES[name].more_is_better for name in METHOD_METRICS} == {
        name: one[1] for name, one in METHOD_METRICS.items()
    }
