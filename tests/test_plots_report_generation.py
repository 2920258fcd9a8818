"""C7 and C8: marks are the rows given, what sees no image is apart, texts are drawn only if they are to be shown."""

import numpy as np
import pandas as pd
import pytest
from drawn import describe, draw, marks, plot, texts, titles

from chexstudy.errors import StudyError
from chexstudy.plots import figures
from chexstudy.plots.report_generation import ReportCard, tabulate_encoders
from chexstudy.results import OVER_SEEDS, validate_results

ARMS = ("curated", "full")
GENERATORS = ("nearest_image", "language_model")
CONTROLS = ("", "mean_image", "shuffled")
PANELS = {("macro_f1", "report"): 0.4, ("macro_f1", "image"): 0.35, ("bleu_4", ""): 0.1, ("rouge_l", ""): 0.2}


def make_results():
    rows = []
    for arm in ARMS:
        for generator in GENERATORS:
            for place, control in enumerate(CONTROLS):
                for (metric, group), value in PANELS.items():
                    own = value - 0.05 * place + 0.01 * ARMS.index(arm)
                    rows.append((arm, generator, control, "all", metric, group, "", own, own - 0.02, own + 0.02))
    for generator, value in (("commonest", 0.03), ("random", 0.05), ("turned", 0.9), ("itself", 1.0)):
        for metric, group in PANELS:
            rows.append(("no_encoder", generator, "", "all", metric, group, "", value, value, value))
    for place, finding in enumerate(("Edema", "Mass")):
        for generator in GENERATORS:
            value = 0.5 - 0.2 * place
            rows.append(("curated", generator, "", finding, "f1", "report", "", value, value - 0.1, value + 0.1))
            rows.append(("curated", generator, "", finding, "f1_of_best_constant", "report", "", 0.3, np.nan, np.nan))
    table = pd.DataFrame(
        rows,
        columns=["arm", "head", "variant", "finding", "metric", "group", "reference", "value", "ci_low", "ci_high"],
    )
    table = table.assign(task="report_generation", positives=np.where(table.finding == "Mass", 9, 20))
    lost = table[(table.arm == "curated") & (table.variant == "") & (table.finding == "all")]
    lost = lost.assign(task="report_generation_difference", reference="full")
    differences = [
        lost.assign(metric=lost.metric + end, value=value)
        for end, value in (("_difference", -0.01), ("_difference_p", 0.02), ("_difference_p_holm", 0.08))
    ]
    table = pd.concat([table, *differences])
    place = {"study": "s", "data_set": "phantom/test", "seed": OVER_SEEDS, "setting": "findings", "n": 200}
    return validate_results(table.assign(exposure="held_out", **place))


def make_cards(texts=()):
    columns = {"nearest_image": ["agreed", "missed", ""], "language_model": ["agreed", "agreed", "invented"]}
    told = pd.DataFrame(columns, index=["Edema", "Mass", "Nodule"])
    return [ReportCard(np.zeros((8, 8), np.uint8), "Edema", told, dict(texts))]


@pytest.fixture(scope="module")
def drawn():
    return draw(figures.report_generation, make_results())


def test_a_panel_holds_the_image_every_control_and_the_floors(drawn):
    assert titles(drawn.drawing) == ["F1 of findings", "F1, image truth", "BLEU-4", "ROUGE-L"]
    for axes, value in zip(drawn.axes, PANELS.values(), strict=True):
        seen = sorted(marks(axes, "estimate", "x"))
        expected = [value - 0.05 * place + 0.01 * arm for place in range(3) for arm in range(2) for _ in GENERATORS]
        assert seen == pytest.approx(sorted([*expected, 0.03, 0.05]))
        # What is made of the reference does not stretch the scale.
        assert axes.get_xlim()[1] < 0.7
        assert [text.get_text() for text in axes.texts if text.get_gid() == "above"] == ["0.90 →", "1.00 →"]
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels[:3] == ["the image", "mean training image", "another patient's image"]
    assert labels[-2:] == ["reference, one finding turned", "the reference itself"]


def test_caption_and_sentence_tell_the_best_and_what_it_gets_without_the_image(drawn):
    assert "n = 200 (phantom, test)" in drawn.caption
    assert "nearest report, by image on all pairs, 0.410 [0.390, 0.430]" in drawn.said
    assert "shown the mean training image it gets 0.360" in drawn.said
    assert "commonest training report 0.030, random report of another patient 0.050" in drawn.said


def test_findings_stand_against_the_best_constant():
    shown = draw(figures.report_findings, make_results(), "curated")
    assert [label.get_text() for label in shown.axes[0].get_yticklabels()] == ["Edema (20)", "Mass (9)"]
    assert set(marks(shown.axes[0], "best constant", "x")) == {0.3}
    assert sorted(marks(shown.axes[0], "estimate", "x")) == pytest.approx([0.3, 0.3, 0.5, 0.5])
    assert "told better than by the best constant: nearest report, by image 1; language model 1." in shown.said
    with pytest.raises(StudyError, match="nothing to draw without findings told in reports on full"):
        plot(figures.report_findings, make_results(), "full")


def test_examples_are_marks_and_texts_only_if_asked():
    shown = draw(figures.report_examples, make_cards(), encoder="curated, seed 0")
    table = next(axes for axes in shown.axes if axes.get_yticklabels())
    assert marks(table, "agreed") == [(0, 0), (1, 0), (1, 1)]
    assert marks(table, "missed") == [(0, 1)]
    assert marks(table, "invented") == [(1, 2)]
    assert "nearest report, by image 1 agreed, 1 missed, 0 invented" in shown.said
    assert not any("secret" in text for text in [*texts(shown.drawing), shown.caption, shown.said])
    told = {"reference": "A secret of one patient.", "nearest_image": "Another secret."}
    shown = draw(figures.report_examples, make_cards(texts=told), encoder="curated, seed 0")
    assert any("Reference: A secret of one patient." in text for text in texts(shown.drawing))
    assert "secret" not in shown.caption + shown.said + shown.numbers.to_csv()
    with pytest.raises(StudyError, match="nothing to draw without a finding in a reference"):
        plot(figures.report_examples, [])


def test_encoders_are_tabulated_with_corrected_p():
    table = tabulate_encoders(make_results(), ["full"])
    row = table.loc[("phantom/test", "nearest_image", "full", "macro_f1", "report")]
    assert (row.value, row.p) == (-0.01, 0.08)
    assert tabulate_encoders(make_results(), []).empty


def test_published_encoders_stand_apart_with_their_source():
    results = make_results()
    zero_shot = results[(results.metric == "macro_f1") & (results["head"] == "nearest_image") & (results.variant == "")]
    zero_shot = zero_shot[zero_shot.group == "report"].assign(
        task="zero_shot", head="", group="", setting="chosen", metric="auroc", finding="macro"
    )
    scale = pd.DataFrame({"arm": ARMS, "pairs": [1000.0, 0.0], "parameters": [3e5, 3e5]})
    shown = draw(figures.performance_by_scale, pd.concat([results, zero_shot]), scale)
    assert titles(shown.drawing) == ["Zero-shot, AUROC", "Reports, F1 of findings"]
    places = dict(marks(shown.axes[0], "estimate"))
    assert sorted(places.values()) == pytest.approx([0.4, 0.41])
    # Trained on nothing here: at the left end, left of the other.
    assert min(places, key=places.get) > max(places, key=places.get)
    assert sorted(marks(shown.axes[0], "published", "y")) == pytest.approx([0.795, 0.95, 0.969])
    assert marks(shown.axes[1], "published") == []
    assert "were not measured here: Zero-shot 1: CheXficient (ViT-B/14), AUROC of tuberculosis, Montgomery 0.969 (" in (
        shown.caption
    )
    assert "Zero-shot, AUROC (chosen prompts): phantom, test" in shown.caption
    assert "Reports, F1 of findings (language model): phantom, test" in shown.caption
    assert "No number that could honestly stand beside is at hand of reports." in shown.caption
    assert "Published, not measured here: CheXficient (86 M)" in texts(shown.drawing)
    with pytest.raises(StudyError, match="nothing to draw without encoders measured on a task"):
        describe(figures.performance_by_scale, results.iloc[:0], scale)
