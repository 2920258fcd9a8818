"""Figures of adaptation draw what the rows say, and refuse in one sentence what was not measured."""

import numpy as np
import pandas as pd
import pytest
from drawn import draw, marks, plot

from chexstudy.plots import figures
from chexstudy.plots.adaptation import name_head, tabulate_heads
from chexstudy.plots.measurements import NothingToDraw

FINDINGS = ["Nodule", "Edema", "macro", "head", "tail"]


def row(arm, head, finding, metric, value, seed, task="adaptation", reference=""):
    head, _, share = head.partition("@")
    head, _, variant = head.partition(".")
    return {
        "study": "s", "arm": arm, "seed": seed, "task": task, "data_set": "phantom/test_enriched", "finding": finding,
        "metric": metric, "head": head, "variant": variant, "setting": share, "reference": reference, "group": "",
        "value": value, "ci_low": value - 0.02, "ci_high": value + 0.02, "n": 600,
        "positives": 30, "exposure": "held_out", "flops": np.nan, "seconds": np.nan,
    }  # fmt: skip


@pytest.fixture
def results():
    heads = ["linear", "glori_v1", "logistic", "logistic@0.1", "logistic@0.5", "linear.pooled"]
    rows = [
        row(arm, head, finding, metric, 0.6 + 0.01 * place + 0.05 * (arm == "full"), seed)
        for arm in ("curated", "full")
        for place, head in enumerate(heads)
        for finding in FINDINGS
        for metric in ("auroc", "auprc")
        for seed in (-1, 0, 1)
    ]
    task = "adaptation_difference"
    for finding in FINDINGS:
        for metric in ("auroc_difference", "auprc_difference"):
            small = 0.1 if finding == "Nodule" else -0.03
            rows.append(row("curated", "glori_v1", finding, metric, small, -1, task, "linear"))
            rows.append(row("curated", "linear.pooled", finding, metric, 0.02, -1, task, "linear"))
            rows.append(row("curated", "logistic@0.1", finding, metric, -0.04, -1, task, "full"))
    return pd.DataFrame(rows)


def values(axes):
    return sorted(round(value, 6) for value in marks(axes, "estimate", "x"))


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_heads_are_drawn_by_prevalence_without_variants_or_shares(results):
    drawn = draw(figures.heads, results)
    assert set(drawn.numbers["head"]) == {"linear", "glori_v1", "logistic"}
    assert len(drawn.axes) == 2 * 3
    assert values(drawn.axes[0]) == [0.6, 0.61, 0.62, 0.65, 0.66, 0.67]
    assert "2 seeds" in drawn.caption
    assert "n = 600" in drawn.caption


def test_gains_are_ordered_by_the_size_of_lesions(results):
    given = (results, "curated", [("glori_v1", "linear")])
    assert names(plot(figures.glori_gains, *given, pd.Series(dtype=float)).axes[0]) == ["Nodule", "Edema"]
    drawn = draw(figures.glori_gains, *given, pd.Series({"Edema": 0.2, "Nodule": 0.004}))
    assert names(drawn.axes[0]) == ["Nodule (0.4%)", "Edema (20.0%)"]
    assert values(drawn.axes[0]) == [-0.03, 0.1]
    assert "cover" in drawn.caption
    assert "gains on 1 and loses on 1" in drawn.said


def test_label_efficiency_takes_shares_of_one_head_and_claims_at_unequal_shares(results):
    drawn = draw(figures.label_efficiency, results)
    assert sorted(set(drawn.numbers.share)) == [0.1, 0.5, 1.0]
    curves, claims = drawn.axes
    assert [label.get_text() for label in curves.get_xticklabels()] == ["10%", "50%", "100%"]
    assert values(claims) == [-0.04]
    assert "thinned alike" in drawn.caption


def test_variants_are_held_against_their_head(results):
    drawn = draw(figures.glori_parts, results, "curated", "linear")
    assert names(drawn.axes[0]) == ["pooled"]
    assert values(drawn.axes[0]) == [0.02], "another head is no variant"
    assert set(drawn.numbers.finding) == {"macro", "tail"}
    assert "linear probe" in drawn.caption
    without_tail = results[results.finding != "tail"]
    assert len(plot(figures.glori_parts, without_tail, "curated", "linear").axes) == 2


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("heads", (), "adapted encoders"),
        ("glori_gains", ("curated", [("glori_v2", "linear")], {}), "comparison of glori_v2 with linear"),
        ("glori_gains", ("curated", [], {}), "no heads were compared"),
        ("label_efficiency", (), "shares of the labels"),
        ("probe_variants", ("full", "linear"), "variants of linear on full"),
    ],
)
def test_what_was_not_measured_is_named(results, name, given, reason):
    whole = results[(results.setting == "") & (results.task != "adaptation" if name == "heads" else True)]
    with pytest.raises(NothingToDraw, match=reason):
        getattr(figures, name).choose(whole, *given)


def test_the_table_holds_means_over_seeds_of_whole_labels(results):
    table = tabulate_heads(results, "auroc")
    assert list(table.columns) == ["macro", "head", "tail"]
    assert table.loc[("phantom, test enriched", "full", "linear"), "macro"] == "0.650 [0.630, 0.670]"
    assert set(table.index.get_level_values("head")) == {"linear", "glori_v1", "logistic"}
    assert name_head("glori_v2", "no_pyramid") == "GLoRI, version 2, no pyramid"
