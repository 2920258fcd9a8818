"""Figures of adaptation draw what the rows say, and refuse in one sentence what was not measured."""

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.plots.adaptation import (
    describe_gains,
    describe_heads,
    describe_label_efficiency,
    describe_variants,
    glori_gains,
    name_head,
    plot_gains,
    plot_heads,
    plot_label_efficiency,
    plot_variants,
    select_gains,
    select_heads,
    select_label_efficiency,
    tabulate_heads,
)
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


def marks(axes):
    return sorted(round(float(line.get_xdata()[0]), 6) for line in axes.lines if line.get_gid() == "estimate")


def test_heads_are_drawn_by_prevalence_without_variants_or_shares(results):
    rows = select_heads(results)
    assert set(rows["head"]) == {"linear", "glori_v1", "logistic"}
    figure = plot_heads(results)
    assert len(figure.axes) == 2 * 3
    assert marks(figure.axes[0]) == [0.6, 0.61, 0.62, 0.65, 0.66, 0.67]
    assert "2 seeds" in describe_heads(results)
    assert "n = 600" in describe_heads(results)


def test_gains_are_ordered_by_the_size_of_lesions(results):
    pair = [("glori_v1", "linear")]
    assert list(select_gains(results, "curated", *pair[0]).finding) == ["Nodule", "Edema"]
    sizes = pd.Series({"Edema": 0.2, "Nodule": 0.004})
    axes = plot_gains(results, "curated", pair, sizes).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Nodule (0.4%)", "Edema (20.0%)"]
    assert marks(axes) == [-0.03, 0.1]
    assert "cover" in describe_gains(results, "curated", pair, sizes)
    with pytest.raises(NothingToDraw, match="comparison of glori_v2 with linear"):
        plot_gains(results, "curated", [("glori_v2", "linear")], sizes)


def test_label_efficiency_takes_shares_of_one_head_and_claims_at_unequal_shares(results):
    rows = select_label_efficiency(results)
    assert sorted(set(rows.share)) == [0.1, 0.5, 1.0]
    curves, claims = plot_label_efficiency(results).axes
    assert [label.get_text() for label in curves.get_xticklabels()] == ["10%", "50%", "100%"]
    assert marks(claims) == [-0.04]
    assert "thinned alike" in describe_label_efficiency(results)
    whole = results[results.setting == ""]
    with pytest.raises(StudyError, match="shares of the labels"):
        plot_label_efficiency(whole)


def test_variants_are_held_against_their_head(results):
    figure = plot_variants(results, "curated", "linear")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["pooled"]
    assert marks(figure.axes[0]) == [0.02], "another head is no variant"
    assert "linear probe" in describe_variants(results, "curated", "linear")


def test_names_are_words():
    assert name_head("glori_v2", "no_pyramid") == "GLoRI, version 2, no pyramid"


def test_the_table_holds_means_over_seeds_of_whole_labels(results):
    table = tabulate_heads(results)
    assert list(table.columns) == ["macro", "head", "tail"]
    assert table.loc[("phantom, test enriched", "full", "linear"), "macro"] == "0.650 [0.630, 0.670]"
    assert set(table.index.get_level_values("head")) == {"linear", "glori_v1", "logistic"}


def test_where_no_heads_were_compared_there_are_no_gains_to_draw(results):
    with pytest.raises(NothingToDraw, match="no heads were compared"):
        glori_gains.select(results[:0], "curated", [], pd.Series(dtype=float))
