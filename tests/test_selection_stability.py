import numpy as np
import pandas as pd
import pytest
from kept_sets import draw_features

from chexstudy.experiments.curator_ablation import take_reference
from chexstudy.experiments.selection_stability import (
    average_ratio_law,
    describe_stability,
    measure_ratio_law,
    measure_stability,
)
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.results import OVER_SEEDS

pytestmark = pytest.mark.usefixtures("one_thread")


def reference(**constants):
    return take_reference(PretrainingConfig.from_dict(constants))


def test_the_share_kept_is_the_law_where_prototypes_are_well_filled():
    law = measure_ratio_law(reference(prototypes=2), draw_features(1000), 0)
    assert sorted(set(law.super_batch)) == [120, 480]
    assert sorted(set(law.prototypes)) == [2, 6, 24]
    # Full super-batches only: eight of 120, two of 480.
    assert law.groupby("super_batch").n.unique().map(list).to_dict() == {120: [960], 480: [960]}
    assert (law.law == 0.10 + (law.central_cap * law.prototypes / law.super_batch).clip(upper=0.85)).all()
    # Of n members the support band holds n / 10 but for one.
    slack = law.prototypes / law.super_batch
    assert (law.measure <= law.law + slack).all()
    filled = 0.5 * law.super_batch / law.prototypes > 2 * law.central_cap
    assert filled.sum() >= 4
    assert ((law.measure - law.law).abs() <= slack)[filled].all()
    # A cohort smaller than any super-batch has its own.
    small = measure_ratio_law(reference(prototypes=3, super_batch=200), draw_features(90), 0)
    assert set(small.super_batch) == {90}
    assert (small.n == 90).all()


def test_shares_are_averaged_and_intervals_end_at_the_law():
    # 0.10 + 10 * 6 / 120 = 0.60, and seeds far below and just above it.
    constants = {"prototypes": 6, "central_cap": 10, "super_batch": 120, "law": 0.6}
    rows = pd.DataFrame({**constants, "measure": [0.2, 0.61, 0.6], "n": 480})
    law = average_ratio_law(rows.assign(seed=range(3)))
    assert law[["measure", "ci_high", "ci_low"]].iloc[0].tolist() == pytest.approx([0.47, 0.6, 0.0])
    # A mean above the law by rounding is not cut.
    above = average_ratio_law(rows.assign(measure=[0.605, 0.605, 0.605]))
    assert above[["measure", "ci_low", "ci_high"]].iloc[0].tolist() == pytest.approx([0.605] * 3)


def test_the_budgeted_rule_depends_on_nothing_but_the_order():
    features = {seed: draw_features(1500, seed) for seed in (0, 1)}
    table = measure_stability(reference(prototypes=3, central_cap=5, super_batch=96, budget=0.3), features)
    assert (table.n == 1500).all()
    assert list(dict.fromkeys(table.varied)) == ["super-batch", "order", "chance", "seed"]
    means = table.groupby(["rule", "varied"]).jaccard.mean()
    assert means["budgeted", "chance"] == 1
    assert means["published", "chance"] < 0.99
    assert means["budgeted", "super-batch"] > means["published", "super-batch"]
    assert means["budgeted", "super-batch"] > 0.8
    batches = table[(table.varied == "super-batch") & (table.rule == "budgeted") & (table.seed == 0)]
    assert list(zip(batches["first"], batches["second"], strict=True)) == [
        ("128", "480"),
        ("128", "1,500"),
        ("480", "1,500"),
    ]
    across = table[table.varied == "seed"]
    assert (across.seed == OVER_SEEDS).all()
    # Features drawn apart have nothing in common.
    assert np.allclose(across.jaccard, across.jaccard_by_chance, atol=0.06)
    # Two random thirds of 1,500 pairs share 0.3 / 1.7 of what they hold together.
    assert across.jaccard_by_chance[across.rule == "budgeted"].to_numpy() == pytest.approx(0.3 / 1.7, abs=0.002)


def test_one_seed_and_few_pairs_leave_out_what_cannot_be_compared_and_words_say_the_rest():
    table = measure_stability(reference(prototypes=3, central_cap=3, super_batch=30), {4: draw_features(100)})
    assert "seed" not in set(table.varied)
    assert set(table.seed) == {4}
    batches = table[table.varied == "super-batch"]
    assert set(batches["first"]) == {"32"}
    assert set(batches["second"]) == {"100"}
    said = describe_stability(table).splitlines()
    assert [line.split()[2] for line in said] == ["published", "budgeted"]
    assert "1.00 (chance; " in said[1]
    low = table[(table.rule == "published") & (table.varied == "order")].jaccard.item()
    assert f"{low:.2f} (order; " in said[0]
    many = measure_stability(reference(prototypes=40, central_cap=3, super_batch=60), {0: draw_features(60)})
    assert set(many.varied) == {"order", "chance"}
