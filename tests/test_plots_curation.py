"""Figures of the curator show the numbers of their tables, and say what they rest on."""

import numpy as np
import pandas as pd
import pytest
from drawn import describe, draw, marks, plot, read_nothing, texts, titles

from chexstudy.curation.quality.audit import AuditReport
from chexstudy.curation.records.ledger import measure_churn
from chexstudy.plots import figures
from chexstudy.plots.curators import order_methods
from chexstudy.plots.looks import ACCENT, GREY, SEQUENCE
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.prototypes import choose_snapshots


@pytest.fixture
def staged():
    """Three stages of 30 pairs; from the second on, the first half was scored in the stage before."""
    rows = []
    for stage in range(3):
        for place in range(30):
            is_old = stage > 0 and place < 15
            step = 10 + stage - is_old
            # The new pairs of the second stage are its last fifteen; the third carries those on.
            name = f"t/{step}-{place + 15 * (is_old and stage > 1)}"
            rows.append({"image_id": name, "stage": stage, "step": step, "x": place, "y": 10.0 * stage})
    table = pd.DataFrame(rows).assign(prototype=0, distance=0.5, kept=True)
    return table.assign(band=np.tile(np.repeat(["central", "support", "outlier"], [24, 4, 2]), 3))


@pytest.fixture
def trajectory():
    return pd.DataFrame(
        {"snapshot": [0, 1, 2, 3], "step": [10, 11, 12, 13], "stage": [0, 0, 1, 2], "phase": "curate", "prototype": 0}
    ).assign(x=[1.0, 2, 3, 4], y=[0.0, 1, 11, 21])


def test_each_panel_shows_the_map_of_its_stage(staged, trajectory):
    figure = plot(figures.prototype_evolution, staged, trajectory)
    assert titles(figure)[:4] == [
        "step 10 · start",
        "step 11 · 30 scored",
        "step 12 · 15 scored",
        "step 13 · 15 scored",
    ]
    for axes, stage in zip(figure.axes, (0, 0, 1, 2), strict=False):
        background = next(one for one in axes.collections if one.get_gid() == "pairs").get_offsets()
        assert set(background[:, 1]) == {10.0 * stage}
    paths = [line.get_ydata().tolist() for line in figure.axes[3].get_lines() if line.get_gid() == "path"]
    assert paths == [[0, 1, 11, 21]]
    # One frame: a point that stays where it was stays in the picture.
    assert len({axes.get_xlim() for axes in figure.axes[:4]}) == 1
    caption = describe(figures.prototype_evolution, staged, trajectory, seed=4)
    assert "3 stages" in caption
    assert "n = 60 pairs" in caption
    assert "seed 4" in caption


def test_snapshots_are_spread_with_both_ends_and_with_stages_those_of_stages():
    many = pd.DataFrame({"snapshot": np.arange(101)})
    assert choose_snapshots(many) == [0, 20, 40, 60, 80, 100]
    assert choose_snapshots(many[:1]) == [0]
    stages = pd.DataFrame({"snapshot": range(21), "stage": [0, *np.repeat(range(4), 5)]})
    assert choose_snapshots(stages) == [0, 5, 10, 15, 20]


@pytest.fixture
def ledger():
    """Prototype 0 has 20 pairs, 1 has 10, 2 has 2; every second pair is kept."""
    prototype = np.repeat([0, 1, 2], [20, 10, 2])
    distance = np.concatenate([np.arange(count) / 20 for count in (20, 10, 2)])
    table = pd.DataFrame({"image_id": [f"t/{row:02d}" for row in range(32)], "epoch": 0, "prototype": prototype})
    return table.assign(
        distance=distance, kept=np.arange(32) % 2 == 0, band=np.where(distance > 0.4, "support", "central")
    )


def test_cards_list_the_nearest_median_and_farthest(ledger):
    cards = figures.prototype_cards.choose(ledger, read_nothing)[0]
    first = cards[cards.prototype == 0]
    assert first[first.place == "nearest"].image_id.tolist() == ["t/00", "t/01", "t/02"]
    assert first[first.place == "median"].image_id.tolist() == ["t/08", "t/09", "t/10"]
    assert first[first.place == "farthest"].image_id.tolist() == ["t/17", "t/18", "t/19"]
    assert (first.members.iloc[0], first.usage.iloc[0], first.keep_rate.iloc[0]) == (20, 20 / 32, 0.5)
    # No pair stands on a card twice, however few there are.
    assert cards[cards.prototype == 2].image_id.tolist() == ["t/30", "t/31"]


def test_a_card_shows_every_radiograph_in_its_band_and_what_became_of_it(ledger):
    read = []
    drawn = draw(figures.prototype_cards, ledger, lambda image_id: read.append(image_id) or read_nothing(image_id))
    assert read == drawn.numbers.image_id.tolist()
    assert sum(len(axes.get_images()) for axes in drawn.axes) == len(read)
    words = texts(drawn.drawing)
    assert {"Prototype 0", "20 pairs (62 %)", "50 % kept", "nearest", "median", "farthest"} <= set(words)
    assert {"0.00 kept", "0.05 dropped"} <= set(words)
    assert "all prototypes" in drawn.caption
    many = ledger.assign(prototype=np.arange(32) % 9)
    assert "the 8 most used of 9 prototypes" in describe(figures.prototype_cards, many, read_nothing)


@pytest.fixture
def history():
    return pd.DataFrame(
        {"phase": ["warm_up", "curate", "curate"], "step": [0, 1, 2], "prototype_spread": [np.nan, 0.7, 0.8]}
    ).assign(usage=[[], [3, 1], [2, 2]])


@pytest.fixture
def epochs():
    """Ten pairs kept 0-4, then 3-6, then 3-6 again; one pair is considered in the first epoch only."""
    kept = [range(5), range(3, 7), range(3, 7)]
    rows = [(f"t/{n}", epoch, n in kept[epoch]) for epoch in range(3) for n in range(10)]
    return pd.DataFrame([*rows, ("t/once", 0, True)], columns=["image_id", "epoch", "kept"])


def test_churn_counts_what_changed_between_epochs(epochs):
    churn = measure_churn(epochs.sample(frac=1, random_state=0))
    assert churn.epoch.tolist() == [1, 2]
    # Kept before 0-4 and now 3-6: 5 and 6 come in, 0, 1 and 2 go; seven were kept in either.
    first = churn.iloc[0]
    assert (first.pairs, first.kept, first.readmitted, first.newly_dropped) == (10, 4, 2, 3)
    assert (first.readmitted_share, first.newly_dropped_share, first.differ) == (2 / 4, 3 / 5, 5 / 7)
    assert churn.iloc[1][["readmitted", "newly_dropped", "differ"]].tolist() == [0, 0, 0]
    assert measure_churn(epochs[epochs.epoch == 0]).empty


def test_panels_are_drawn_where_there_are_numbers(history, ledger, epochs):
    assert titles(plot(figures.prototype_dynamics, history, ledger)) == ["Prototype usage", "Between prototypes"]
    assert "no churn to show" in describe(figures.prototype_dynamics, history, ledger)
    assigned = history.assign(assignment_min=[np.nan, 0.1, 0.2], assignment_max=[np.nan, 0.6, 0.5])
    figure = plot(figures.prototype_dynamics, assigned, epochs)
    assert titles(figure) == ["Prototype usage", "Between prototypes", "Assignment probability", "Churn"]
    usage, spread, probability, churn = figure.axes
    assert [bar.get_height() for bar in usage.patches] == [75, 50, 25, 50]
    assert spread.get_lines()[0].get_ydata().tolist() == [0.7, 0.8]
    assert [line.get_ydata().tolist() for line in probability.get_lines()] == [[0.6, 0.5], [0.1, 0.2]]
    assert churn.get_lines()[0].get_ydata() == pytest.approx([500 / 7, 0])
    caption = describe(figures.prototype_dynamics, assigned, epochs, seed=2)
    assert "From epoch 1 to 2, 0.0 % differ, over 10 pairs" in caption
    assert "d, decisions that differ" in caption
    # Columns without a value are no panel.
    assert (
        len(
            plot(figures.prototype_dynamics, assigned.assign(assignment_min=np.nan, assignment_max=np.nan), ledger).axes
        )
        == 2
    )


@pytest.fixture
def report():
    rows = [
        ("finding", "Hernia", 10, 0.6, 0.4, 0.8, 1.0, False, False),
        ("finding", "Effusion", 90, 0.3, 0.25, 0.35, 0.01, True, True),
        ("finding", "No Finding", 200, 0.1, 0.08, 0.12, 0.01, True, False),
        ("sex", "F", 150, 0.2, 0.15, 0.25, 1.0, False, False),
    ]
    names = ["kind", "group", "n", "keep_rate", "ci_low", "ci_high", "p_holm", "dropped_more", "warning"]
    table = pd.DataFrame(rows, columns=names).assign(others_rate=0.4)
    left_out = pd.DataFrame({"kind": ["sex"], "group": ["M"], "reason": ["no pairs"]})
    return AuditReport(table, left_out, pairs=300, patients=120, kept=60, permutations=2000)


def test_the_audit_draws_rates_in_percent_and_marks_warnings(report):
    figure = plot(figures.audit, report)
    findings, others = figure.axes
    assert marks(findings, "estimate", "x") == pytest.approx([10, 30, 60])
    assert marks(findings, "interval", "x") == pytest.approx([8, 12, 25, 35, 40, 80])
    assert marks(others, "estimate", "x") == pytest.approx([20])
    colours = [line.get_color() for line in findings.get_lines() if line.get_gid() == "estimate"]
    assert colours == [SEQUENCE[1], ACCENT, GREY]
    assert [label.get_text() for label in findings.get_yticklabels()] == [
        "No Finding (200)",
        "Effusion (90)",
        "Hernia (10)",
    ]
    assert "all pairs (20.0 %)" in texts(figure)
    caption = describe(figures.audit, report, seed=1)
    assert "Warnings: Effusion (30 % against 40 % of the others, p 0.010)." in caption
    assert "n = 300 pairs of 120 patients, 60 kept, seed 1" in caption


def test_an_audit_without_a_warning_says_so_and_one_side_may_be_missing(report):
    table = report.table[report.table.kind == "sex"]
    alone = AuditReport(table, report.left_out[:0], 300, 120, 60, 2000)
    assert len(plot(figures.audit, alone).axes) == 1
    assert "No group was kept less often than chance allows." in describe(figures.audit, alone)


@pytest.fixture
def ablation():
    rows = []
    for factor, values in (("prototypes", ("3", "6", "12")), ("quirk F1", ("drop", "keep"))):
        for place, value in enumerate(values):
            published = value in ("6", "drop")
            for metric, level in (("auroc", 0.7), ("keep_ratio", 0.2)):
                measure = level + (0.0 if published else 0.01 * (place + 1))
                rows.append((factor, value, published, metric, measure, measure - 0.02, measure + 0.02, 3, 400))
    names = ["factor", "value", "published", "metric", "measure", "ci_low", "ci_high", "seeds", "n"]
    return pd.DataFrame(rows, columns=names)


def test_the_ablation_draws_each_setting_in_each_measure(ablation):
    figure = plot(figures.curator_ablation, ablation)
    kept, auroc = figure.axes
    assert titles(figure) == ["Kept (%)", "Zero-shot\nAUROC \N{RIGHTWARDS ARROW}"]
    assert marks(kept, "estimate", "x") == pytest.approx([21, 20, 23, 20, 22])
    assert marks(auroc, "estimate", "x") == pytest.approx([0.71, 0.7, 0.73, 0.7, 0.72])
    assert set(marks(kept, "published", "x")) == {20.0}
    labels = kept.get_yticklabels()
    assert [label.get_text() for label in labels] == ["3", "6", "12", "drop", "keep"]
    assert [label.get_text() for label in labels if label.get_fontweight() == "bold"] == ["6", "drop"]
    assert {"prototypes", "quirk F1"} <= set(texts(figure))
    caption = describe(figures.curator_ablation, ablation)
    assert "2 constants, 5 settings, n = 400 pairs, 3 seeds." in caption
    assert "95 % intervals" in caption


def test_a_setting_that_was_not_measured_leaves_a_gap(ablation):
    ablation.loc[(ablation.value == "12") & (ablation.metric == "auroc"), ["measure", "ci_low", "ci_high"]] = np.nan
    ablation.loc[ablation.metric == "keep_ratio", ["ci_low", "ci_high"]] = np.nan
    kept, auroc = plot(figures.curator_ablation, ablation).axes
    assert len(marks(auroc, "estimate", "x")) == 4
    assert marks(kept, "interval", "x") == []
    assert "None for: Kept (%)." in describe(figures.curator_ablation, ablation)


def test_the_ratio_law_is_that_of_the_design():
    measured = {"law": [0.225, 0.95, 0.35], "measure": [0.22, 0.9, 0.34], "ci_low": np.nan, "ci_high": np.nan}
    table = pd.DataFrame({"prototypes": [6, 6, 12], "central_cap": 10, "super_batch": [480, 60, 480], **measured})
    drawn = draw(figures.ratio_law, table.assign(n=400, seeds=1))
    law, departure = drawn.axes
    assert sorted(marks(law, "estimate")) == [pytest.approx(point) for point in ((22.5, 22), (35, 34), (95, 90))]
    assert sorted(marks(departure, "estimate", "y")) == pytest.approx([-5, -1, -0.5])
    caption = drawn.caption
    assert "from \N{MINUS SIGN}5.0 to \N{MINUS SIGN}0.5 points off" in caption
    assert "No intervals, n = 400 pairs, 1 seed." in caption
    assert "Super" not in caption


@pytest.fixture
def comparison():
    rows = []
    for method, recall, radius, auroc in (
        ("random", 0.20, 0.50, 0.60),
        ("bands", 0.40, 0.50, 0.65),
        ("k_centre", 0.22, 0.30, 0.52),
    ):
        rows.append((method, "rare_recall", recall, recall - 0.05, recall + 0.05, "same_data"))
        rows.append((method, "coverage_radius", radius, radius - 0.05, radius + 0.05, "same_data"))
        for kind, more in (("same_data", 0.0), ("same_compute", 0.1)):
            rows.append((method, "auroc_macro", auroc + more, auroc + more - 0.03, auroc + more + 0.03, kind))
    names = ["method", "metric", "measure", "ci_low", "ci_high", "budget_kind"]
    return pd.DataFrame(rows, columns=names).assign(seeds=3, n=400)


def test_methods_are_judged_against_random_in_the_direction_of_each_measure(comparison):
    judged = figures.method_comparison.choose(comparison)[0].set_index(["method", "metric", "budget_kind"]).verdict
    assert judged["bands", "rare_recall", "same_data"] == "better"
    assert judged["k_centre", "rare_recall", "same_data"] == "even"
    # A smaller radius covers better.
    assert judged["k_centre", "coverage_radius", "same_data"] == "better"
    # Each kind of budget has its own random choice.
    assert judged["bands", "auroc_macro", "same_compute"] == "better"
    assert judged["k_centre", "auroc_macro", "same_compute"] == "worse"
    without_random = figures.method_comparison.choose(comparison[comparison.method != "random"])[0]
    assert set(without_random.verdict) == {"even"}


def test_methods_are_sorted_by_their_mean_rank(comparison):
    assert order_methods(comparison) == ["bands", "k_centre", "random"]
    # A measure that a method lacks does not move it.
    lacking = comparison[(comparison.method != "bands") | (comparison.metric == "rare_recall")]
    assert order_methods(lacking)[0] == "bands"


def test_the_comparison_draws_every_measure_with_random_as_a_line(comparison):
    figure = plot(figures.method_comparison, comparison)
    recall, radius, auroc = figure.axes
    assert marks(recall, "estimate", "x") == pytest.approx([20, 40, 22])
    assert set(marks(recall, "random", "x")) == {20.0}
    assert marks(radius, "estimate", "x") == pytest.approx([0.5, 0.5, 0.3])
    assert sorted(set(marks(auroc, "random", "x"))) == pytest.approx([0.6, 0.7])
    assert len(marks(auroc, "estimate", "x")) == 6
    names = [label.get_text() for label in recall.get_yticklabels()]
    assert names == ["Prototype bands (published)", "k-centre (farthest point)", "Random"]
    caption = describe(figures.method_comparison, comparison)
    assert "Of 8 measures 4 are better than random choice, 2 worse." in caption
    assert "n = 400" in caption
    assert "3 seeds" in caption


def test_what_is_missing_is_left_out(comparison):
    without_random = comparison[comparison.method != "random"]
    assert marks(plot(figures.method_comparison, without_random).axes[0], "random") == []
    assert len(plot(figures.method_comparison, comparison.assign(ci_low=np.nan, ci_high=np.nan)).axes) == 3


@pytest.mark.parametrize("name", ["cards", "dynamics", "audit", "ablation", "law", "comparison"])
def test_without_numbers_there_is_nothing_to_draw(name, ledger, history, report, ablation, comparison):
    given = {
        "cards": (figures.prototype_cards, ledger[:0], read_nothing),
        "dynamics": (figures.prototype_dynamics, history[:1], ledger),
        "audit": (figures.audit, AuditReport(report.table[:0], report.left_out, 300, 120, 60, 2000)),
        "ablation": (figures.curator_ablation, ablation[:0]),
        "law": (figures.ratio_law, ablation[:0]),
        "comparison": (figures.method_comparison, comparison.assign(measure=np.nan)),
    }
    with pytest.raises(NothingToDraw, match="nothing to draw"):
        given[name][0].choose(*given[name][1:])
