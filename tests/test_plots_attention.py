import numpy as np
import pandas as pd
import pytest
from drawn import describe, plot

from chexstudy.evaluation.localisation.pointing_game import METRICS, Regions, spread_map
from chexstudy.plots import figures
from chexstudy.plots.attention import AttentionCard, make_cards
from chexstudy.plots.measurements import NothingToDraw

FINDINGS = ["Nodule", "Mass", "Hernia"]
PLACE = (("glori_v1", ""), "phantom/test")


def make_card(findings=24, finding="Nodule", mask=True):
    names = [*FINDINGS, *(f"Finding {number}" for number in range(findings - 3))]
    confidences = {name: (place + 1) / (findings + 1) for place, name in enumerate(names)}
    weights = np.zeros(144)
    weights[30] = 1
    outline = np.zeros((96, 96), dtype=bool)
    outline[10:20, 40:60] = True
    pixels = np.tile(np.arange(96, dtype=np.uint8), (96, 1))
    return AttentionCard(pixels, finding, weights, confidences, frozenset({finding}), outline if mask else None)


def make_results(group=""):
    rows = []
    areas = {"Nodule": 0.01, "Mass": 0.05, "Hernia": np.nan, "macro": 0.03}
    for finding, area in areas.items():
        for metric in METRICS:
            value = area if metric == "area_inside" else (np.nan if np.isnan(area) else 0.4)
            n = 0 if np.isnan(area) else {"macro": 30}.get(finding, 15)
            rows.append((finding, metric, value, value - 0.1, value + 0.1, n))
    table = pd.DataFrame(rows, columns=["finding", "metric", "value", "ci_low", "ci_high", "n"])
    return table.assign(task="attention", head="glori_v1", variant="", group=group, data_set="phantom/test")


def marks(figure, gid):
    return [artist for artist in figure.findobj() if artist.get_gid() == gid]


def test_each_example_has_an_overlay_and_a_bar_a_finding():
    figure = plot(figures.attention, [make_card(), make_card(finding="Mass", mask=False), make_card(findings=3)])
    overlays = marks(figure, "attention")
    assert len(overlays) == 3
    alpha = overlays[0].get_alpha()
    # Weight 1 in the third row and seventh column of 12 x 12 patches, of 8 pixels each.
    assert alpha[20, 52] == alpha.max() > 0.5
    assert alpha[80, 10] == 0
    bars = [len(axes.patches) for axes in figure.axes if axes.patches]
    assert bars == [24, 24, 3]


def test_present_findings_and_the_one_shown_are_marked():
    figure = plot(figures.attention, [make_card()])
    labels = {label.get_text(): label for label in figure.axes[1].get_yticklabels()}
    assert labels["Nodule"].get_fontweight() == "bold"
    assert labels["Nodule"].get_color() != labels["Mass"].get_color()
    assert [label.get_fontweight() for name, label in labels.items() if name != "Nodule"] == ["normal"] * 23


def test_at_most_forty_bars_and_always_the_finding_shown():
    # The nodule has the lowest confidence of fifty.
    table = figures.attention.choose([make_card(findings=50)])[0]
    assert len(table) == 40
    assert table.finding.iloc[-1] == "Nodule"
    assert table.confidence.iloc[:-1].is_monotonic_decreasing
    assert table.present.sum() == 1
    assert list(table.columns) == ["example", "attention_of", "finding", "confidence", "present"]


def test_the_weakest_attention_is_raised_to_the_power_of_a_half():
    card = make_card()
    card.weights[:] = np.linspace(0, 1, 144)
    alpha = marks(plot(figures.attention, [card]), "attention")[0].get_alpha()
    np.testing.assert_allclose(alpha / alpha.max(), np.sqrt(spread_map(card.weights, 96)), atol=1e-6)


def test_captions_say_how_many_how_chosen_and_of_what():
    caption = describe(
        figures.attention,
        [make_card(), make_card(mask=False)],
        head=PLACE[0],
        encoder="curated, seed 0",
        specificity=0.9,
    )
    assert "2 test radiographs" in caption
    assert "outlined on 1 of 2" in caption
    caption = describe(figures.pointing_test, make_results(), *PLACE, encoder="curated, seed 0")
    assert "30 cases" in caption
    assert "of 2 findings" in caption
    assert "95 % intervals, patients drawn" in caption


def test_the_smallest_regions_come_first_after_the_mean_and_nothing_unmeasured():
    table = figures.pointing_test.choose(make_results(), *PLACE)[0]
    assert table.finding.tolist() == ["macro", "Nodule", "Mass"] * 2
    assert set(table.region) == {"finding"}
    assert table.chance[table.finding == "Mass"].tolist() == [0.05, 0.05]


@pytest.mark.parametrize(("group", "region"), [("", "the finding"), ("lungs", "the lungs")])
def test_every_finding_has_its_estimate_interval_and_three_blind_maps(group, region):
    results = make_results(group)
    figure = plot(figures.pointing_test, results, *PLACE)
    assert len(marks(figure, "estimate")) == len(marks(figure, "interval")) == 6
    for baseline in ("chance", "mean_map", "centre"):
        lines = marks(figure, baseline)
        assert [len(line.get_xdata()) for line in lines] == [3, 3]
        # On the level of the estimates they belong to.
        levels = sorted(estimate.get_ydata()[0] for estimate in marks(figure, "estimate"))[::2]
        np.testing.assert_allclose(sorted(lines[0].get_ydata()), levels)
    assert region in describe(figures.pointing_test, results, *PLACE, encoder="curated, seed 0")
    assert {axes.get_xlabel().rpartition("inside ")[2] for axes in figure.axes} == {region}


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(NothingToDraw, match="without a finding detected"):
        figures.attention.choose([])
    with pytest.raises(NothingToDraw, match="no region of a finding is known on phantom/test"):
        figures.pointing_test.choose(make_results(), ("glori_v2", ""), "phantom/test")


def test_cards_are_made_of_scores_labels_and_regions():
    rows = pd.DataFrame({"image_id": ["a", "b"], "Nodule": [1, 0], "Mass": pd.array([None, 1], dtype="Int8")})
    mask = np.eye(8, dtype=bool)
    table = pd.DataFrame([("b", "Mass", mask)], columns=["image_id", "finding", "mask"])
    chosen = pd.DataFrame([("b", "Mass"), ("a", "Nodule")], columns=["image_id", "finding"])
    scores = np.array([[0.0, 1.0], [2.0, -1.0]])
    given = (chosen, rows, scores, ["Nodule", "Mass"], np.eye(2, 4), np.zeros((2, 8, 8), np.uint8))
    first, second = make_cards(*given, Regions(table))
    assert (first.finding, second.finding) == ("Mass", "Nodule")
    assert first.present == {"Mass"}
    assert second.present == {"Nodule"}
    assert first.confidences == pytest.approx({"Nodule": 1 / (1 + np.exp(-2)), "Mass": 1 / (1 + np.e)})
    assert first.mask is mask
    assert second.mask is None
    assert make_cards(*given, Regions(table, "lungs"))[0].mask is None
