from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from kept_sets import list_rows

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.experiments.curator_ablation import JACCARD, REFERENCE, change_constants, list_settings, take_reference
from chexstudy.experiments.published_vs_fixed import (
    ELSEWHERE,
    QUIRKS,
    STREAM,
    TRAINED,
    compare_quirks,
    describe_quirks,
    lay_out_quirks,
)
from chexstudy.experiments.trained_variants import list_variants
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.results import OVER_SEEDS

MEASURES = {"keep_ratio": "all", "rare_recall": "tail"}


def difference(value, **more):
    place = {"variant": "schedule_published", "reference": "published"}
    row = place | {"task": "ablation_zero_shot_difference", "seed": OVER_SEEDS, "metric": "auroc_difference"}
    return row | {"finding": "macro", "value": value, "ci_low": value - 0.01, "ci_high": value + 0.02} | more


def pick(table, quirk, metric, measured=STREAM, constant=None):
    chosen = (table.quirk == quirk) & (table.metric == metric) & (table.measured == measured)
    row = table[chosen & (table.constant == constant if constant else True)]
    assert len(row) == 1
    return row.iloc[0]


def test_every_quirk_of_the_notes_is_measured_or_said_to_be_elsewhere():
    measured = {quirk.number for quirk in QUIRKS}
    assert measured | set(ELSEWHERE) == {f"F{number}" for number in range(1, 15)}
    assert measured & set(ELSEWHERE) == set()


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.constant)
def test_published_values_are_the_defaults_and_corrected_ones_are_valid(quirk):
    published = asdict(CuratorConfig()) | {"schedule": "published"}
    assert published[quirk.constant] == quirk.published
    change_constants(PretrainingConfig(), {quirk.constant: quirk.corrected})


def test_every_quirk_has_a_setting_or_a_variant():
    reference = take_reference(PretrainingConfig())
    settings = {one.name for one in list_settings(reference, 5000)}
    variants = {one.name for one in list_variants(reference)}
    for quirk in QUIRKS:
        on_stream = set(quirk.settings) <= settings
        trained = any(set(pair) <= variants for pair in quirk.variants)
        assert on_stream or trained, quirk.constant
        # Where features stand still, these two cannot change what is kept.
        assert on_stream == (quirk.constant not in ("update_timing", "schedule")), quirk.constant


def test_differences_are_corrected_minus_published():
    stream = pd.concat(
        [
            list_rows({REFERENCE: [0.2, 0.3], "outlier_policy=keep": [0.3, 0.4]}),
            list_rows({REFERENCE: [1.0, 1.0], "outlier_policy=keep": [0.5, 0.7]}, JACCARD),
            list_rows({REFERENCE: [np.nan, np.nan], "outlier_policy=keep": [np.nan, np.nan]}, "rare_recall", "tail"),
        ]
    )
    trained = pd.concat(
        [
            list_rows({REFERENCE: [0.2, 0.2], "schedule_published": [0.25, 0.15], "two_epochs": [0.2, 0.2]}),
            list_rows({REFERENCE: [1.0, 1.0], "schedule_published": [0.4, 0.2], "two_epochs": [0.3, 0.3]}, JACCARD),
        ]
    )
    zero_shot = pd.DataFrame(
        [
            difference(0.03),
            difference(0.9, finding="tail"),
            difference(0.7, seed=0, task="ablation_zero_shot", metric="auroc"),
            difference(0.7, seed=1, task="ablation_zero_shot", metric="auroc"),
        ]
    )
    table = compare_quirks(stream, trained, zero_shot, MEASURES)
    kept = pick(table, "F1", "keep_ratio")
    assert (kept.value, kept.published, kept.corrected, kept.seeds) == (pytest.approx(0.1), "drop", "keep", 2)
    assert pick(table, "F1", JACCARD).value == pytest.approx(0.6)
    assert "rare_recall" not in set(table.metric)
    # The reference has the corrected schedule already: the variant is what is subtracted.
    assert pick(table, "F10", "keep_ratio", TRAINED).value == pytest.approx(0.0)
    assert pick(table, "F10", JACCARD, TRAINED).value == pytest.approx(0.3)
    auroc = pick(table, "F10", "auroc", TRAINED)
    assert (auroc.value, auroc.ci_low, auroc.ci_high) == pytest.approx((-0.03, -0.05, -0.02))
    assert auroc.seeds == 2
    assert set(table.quirk) == {"F1", "F10"}


def test_a_reference_with_the_published_schedule_is_compared_the_other_way():
    trained = pd.concat(
        [list_rows({REFERENCE: [0.2], "schedule_held": [0.3]}), list_rows({"schedule_held": [0.5]}, JACCARD)]
    )
    stream = list_rows({REFERENCE: [0.2], "warm_up_features=normalised": [0.2]})
    table = compare_quirks(stream, trained, pd.DataFrame(), MEASURES)
    assert pick(table, "F10", "keep_ratio", TRAINED).value == pytest.approx(0.1)
    assert pick(table, "F10", JACCARD, TRAINED).value == 0.5
    assert "auroc" not in set(table.metric)


def test_quirks_are_laid_out_in_their_order_and_those_beyond_their_interval_are_told():
    stream = pd.concat(
        [
            list_rows({REFERENCE: [0.2, 0.3], "rule=budgeted": [0.1, 0.4], "outlier_policy=keep": [0.3, 0.4]}),
            list_rows({"rule=budgeted": [0.5, 0.5], "outlier_policy=keep": [0.5, 0.7]}, JACCARD),
        ]
    )
    wide = lay_out_quirks(compare_quirks(stream, stream[:0], pd.DataFrame(), MEASURES))
    assert list(wide.columns) == [JACCARD, "keep_ratio"]
    assert [index[0] for index in wide.index] == ["F1", "F2"]
    assert wide.keep_ratio.tolist() == ["+0.100 [0.100, 0.100]", "+0.000 [\N{MINUS SIGN}1.000, 1.000]"]
    assert wide[JACCARD].tolist()[1] == "0.500 [0.500, 0.500]"
    said = describe_quirks(compare_quirks(stream, stream[:0], pd.DataFrame(), MEASURES)).splitlines()
    assert said[0].startswith("1 of 2 differences")
    assert said[1:] == ["F1, outlier_policy (unchanging features): keep ratio +0.100."]
    single = stream[stream.seed == 0]
    assert "no intervals" in describe_quirks(compare_quirks(single, single[:0], pd.DataFrame(), MEASURES))
    assert lay_out_quirks(compare_quirks(single, single[:0], pd.DataFrame(), MEASURES)).keep_ratio.iloc[0] == "+0.100"
