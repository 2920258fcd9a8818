"""Figures show the table's numbers, keep their bytes, degrade to what is there, and name no patient."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import make_tiny_study
from drawn import describe, draw, marks, plot, read_nothing, texts, titles
from matplotlib.collections import PathCollection
from matplotlib.text import Text
from PIL import Image

from chexstudy import paths
from chexstudy.cohort.annotations import make_outline, write_annotations
from chexstudy.curation.quality.keep_rates import list_keep_rates, measure_keep_rates
from chexstudy.errors import StudyError
from chexstudy.plots import figures
from chexstudy.plots.composition import count_findings, count_report_lengths
from chexstudy.plots.figures import CATALOGUE
from chexstudy.plots.gallery import publish_figures, write_gallery
from chexstudy.plots.looks import arm_style, order_arms
from chexstudy.plots.measurements import NothingToDraw, summarise_seeds
from chexstudy.plots.radiographs import Sheet, collect_radiographs
from chexstudy.plots.saving import save_figure
from chexstudy.plots.style import DOUBLE_MM, new_figure, title_panel
from chexstudy.plots.words import describe_interval
from chexstudy.results import validate_results
from chexstudy.runs import Run
from chexstudy.study import Study

ARMS = ("curated", "random_same_data", "full")
FINDINGS = {"Effusion": 0.1, "Cardiomegaly": 0.05, "Fibrosis": 0.01, "Hernia": 0.002}


def row(arm, task, metric, value, half=0.02, **more):
    defaults = {
        "study": "demo", "seed": -1, "data_set": "phantom/test", "finding": "macro", "setting": "chosen", "n": 900,
        "positives": -1, "exposure": "held_out",
    }  # fmt: skip
    interval = {"ci_low": value - half, "ci_high": value + half}
    return defaults | {"arm": arm, "task": task, "metric": metric, "value": value} | interval | more


@pytest.fixture(scope="module")
def keep_rows():
    """What two seeds keep of 400 pairs, as the results table holds it: a fifth, and all junk."""
    numbers = np.arange(400)
    cohort = pd.DataFrame(
        {
            "image_id": [f"phantom/{number}" for number in numbers],
            "patient_id": [f"phantom/{number // 2}" for number in numbers],
            "report_origin": np.where(numbers < 300, "written", "template"),
            **{name: pd.array(numbers % round(1 / share) == 1, dtype="Int8") for name, share in FINDINGS.items()},
            "No Finding": pd.array(numbers % 10 > 1, dtype="Int8"),
        }
    )
    truth = cohort[["image_id"]].assign(duplicate_of="", mismatched=numbers < 20, junk=numbers % 100 == 50)
    kept = {seed: (numbers % 5 == seed) | truth.junk.to_numpy() for seed in (0, 1)}
    local = {seed: (numbers * 7919 % 400).astype(float) for seed in (0, 1)}
    rates = measure_keep_rates(cohort, kept, tiers={"Hernia": "tail", "Effusion": "head"}, truth=truth, density=local)
    place = {"study": "demo", "arm": "curated", "task": "curation", "data_set": "phantom/train", "exposure": "seen"}
    return list_keep_rates(rates).assign(**place)


@pytest.fixture(scope="module")
def results(keep_rows):
    """Two seeds and their mean for three arms: every task the figures read."""
    rows = []
    for place, arm in enumerate(ARMS):
        for seed, shift in ((0, -0.01), (1, 0.01), (-1, 0.0)):
            rows.append(row(arm, "zero_shot", "auroc", 0.7 + 0.05 * place + shift, seed=seed))
            for direction in ("image_to_text", "text_to_image"):
                setting = {"setting": direction, "n": 900 if direction == "image_to_text" else 700}
                for cutoff in (1, 5, 10):
                    value = 0.02 * cutoff + 0.01 * place + shift
                    more = {"seed": seed, "finding": "all", **setting}
                    rows.append(row(arm, "retrieval", f"recall@{cutoff}", value, **more))
                    if seed >= 0:
                        chance = {**more, "ci_low": np.nan, "ci_high": np.nan}
                        rows.append(row(arm, "retrieval", f"recall@{cutoff} by chance", cutoff / 700, **chance))
                rows.append(row(arm, "retrieval", "median_rank", 40 + place, 5, **more))
    for other, value in (("random_same_data", 0.012), ("full", -0.011)):
        for finding in ("macro", "tail", *FINDINGS, "No Finding"):
            more = {"finding": finding, "reference": other}
            rows.append(row("curated", "zero_shot_difference", "auroc_difference", value, **more))
        for direction in ("image_to_text", "text_to_image"):
            more = {"finding": "all", "setting": direction, "reference": other}
            rows.append(row("curated", "retrieval_difference", "recall@10_difference", value, **more))
    return validate_results(pd.concat([pd.DataFrame(rows), keep_rows]))


def with_trend(results, value, half, n=12):
    """The results with a trend of the gains over the random arm."""
    trend = row("curated", "gain_trend", "auroc_difference_per_decade", value, half, reference="random_same_data")
    return validate_results(pd.concat([results, pd.DataFrame([trend | {"finding": "all", "n": n}])]))


@pytest.fixture(scope="module")
def single(results):
    """One seed, two arms, one finding, no differences: the least a real cohort gives."""
    chosen = results[(results.seed == 0) & results.arm.isin(ARMS[:2])]
    gone = [*list(FINDINGS)[1:], "head", "medium", "tail", "mismatched", "junk", "near-duplicate", "sound pair"]
    return chosen[~chosen.finding.isin(gone) & (chosen.group != "density")].assign(data_set="nlm_tb/test")


@pytest.fixture(scope="module")
def costs():
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "pairs_trained": pairs, "flops": flops, "seconds": flops / 1e12}
            for arm, pairs, flops in zip(ARMS, (30_000, 30_000, 120_000), (2.5e14, 2.4e14, 1e15), strict=True)
            for seed in (0, 1)
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    generator = np.random.default_rng(0)
    prototype = np.arange(300) % 3
    x, y = np.array([0.0, 6, 3])[prototype] + generator.normal(size=300), generator.normal(size=300)
    table = pd.DataFrame({"image_id": [f"phantom/{i:04d}" for i in range(300)], "x": x, "y": y, "prototype": prototype})
    table["distance"] = np.linspace(0.4, 1.2, 300)
    table["band"] = np.repeat(["central", "support", "outlier"], [255, 30, 15])
    table["kept"] = (table.band == "support") | (np.arange(300) < 30)
    table["step"] = 10 + np.arange(300) // 100
    table["density"] = generator.random(300)
    return table


@pytest.fixture(scope="module")
def trajectory():
    step, prototype = (axis.ravel() for axis in np.mgrid[0:4, 0:3])
    table = pd.DataFrame({"snapshot": step, "step": 10 + step, "phase": "curate", "prototype": prototype})
    return table.assign(x=3.0 * prototype + 0.1 * step, y=0.2 * step)


@pytest.fixture(scope="module")
def history():
    steps = np.arange(40)
    phase = np.array(["warm_up"] * 20 + ["curate"] * 4 + ["subset"] * 16)
    curating = phase == "curate"
    return pd.DataFrame(
        {
            "phase": phase, "epoch": steps // 10, "step": steps, "loss": 5.0 - 0.1 * steps, "learning_rate": 1e-3,
            "logit_scale": np.log(14.0), "pairs_scored": np.where(curating, 100, 0),
            "pairs_trained": np.where(curating, 23, 16),
            "keep_ratio": np.where(curating, 0.23, np.nan), "matched_cosine": 0.5, "unmatched_cosine": 0.1,
            "prototype_spread": np.where(curating, 0.8, np.nan),
            "usage": [[10, 8, 5] if now else [] for now in curating],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def cohort():
    rows = 40
    return pd.DataFrame(
        {
            "image_id": [f"phantom/{i}" for i in range(rows)],
            "patient_id": [f"phantom/secret{i // 2}" for i in range(rows)],
            "study_id": [f"s{i}" for i in range(rows)], "source": "phantom",
            "split": ["train"] * 30 + ["validate"] * 4 + ["test"] * 6, "view": "PA", "sex": ["F", "M"] * 20,
            "age_years": np.linspace(20, 80, rows).astype("float32"), "image_path": "x.png",
            "report": ["clear lungs"] * 30 + ["a nodule in the left lung"] * 9 + [""], "report_origin": "written",
            "Nodule": pd.array([0] * 30 + [1] * 8 + [-1, pd.NA], dtype="Int8"),
            "Mass": pd.array([0] * 34 + [1] * 4 + [0, 0], dtype="Int8"),
            "No Finding": pd.array([1] * 30 + [0] * 10, dtype="Int8"),
        }
    )  # fmt: skip


QUARANTINE = pd.DataFrame({"image_id": "a", "image_path": "b", "reason": ["blank: 0", "blank: 255", "unreadable"]})
PREVALENCE = pd.Series(FINDINGS | {"No Finding": 0.8})


def test_the_row_over_seeds_wins_else_several_have_a_mean_without_interval_and_one_its_own(results, single):
    rows = results[(results.task == "zero_shot") & (results.arm == "full")]
    summary = summarise_seeds(rows)
    assert summary[["value", "ci_high", "seeds"]].to_numpy().tolist() == [pytest.approx([0.8, 0.82, 2])]
    of_seeds = rows[rows.seed >= 0]
    summary = summarise_seeds(of_seeds.assign(value=[0.5, 0.7]))
    assert summary.value[0] == pytest.approx(0.6)
    assert np.isnan(summary.ci_low[0])
    assert "No interval over seeds" in describe_interval(of_seeds)
    alone = single[single.task == "zero_shot"]
    assert summarise_seeds(alone).ci_low.notna().all()
    assert "One seed (0)" in describe_interval(alone)
    assert "n = 900" in describe_interval(alone)


def test_arms_keep_their_order_and_their_looks_differ():
    assert order_arms(["mine", "full", "curated"]) == ["curated", "full", "mine"]
    styles = [arm_style(arm, ["curated", "full", "mine", "other"]) for arm in ("curated", "full", "mine", "other")]
    assert len({style.colour for style in styles}) == 4
    assert len({style.marker for style in styles}) == 4


def test_zero_shot_draws_the_values_and_intervals_of_the_table(results):
    drawn = draw(figures.zero_shot, results)
    left, right = drawn.axes
    assert set(drawn.numbers.task) == {"zero_shot", "zero_shot_difference"}
    assert sorted(x for x, _ in marks(left, "estimate")) == pytest.approx([0.70, 0.75, 0.80])
    assert sorted(x for x, _ in marks(left, "interval")) == pytest.approx([0.68, 0.72, 0.73, 0.77, 0.78, 0.82])
    assert sorted(x for x, _ in marks(left, "seeds")) == pytest.approx([0.69, 0.71, 0.74, 0.76, 0.79, 0.81])
    assert sorted(x for x, _ in marks(right, "estimate")) == pytest.approx([-0.011, 0.012])
    assert "+0.012 [\N{MINUS SIGN}0.008, 0.032]" in texts(drawn.drawing)
    assert "2 seeds" in drawn.caption


def test_retrieval_draws_recall_in_percent_both_ways(results):
    figure = plot(figures.retrieval, results)
    reports, images = figure.axes[:2]
    for axes in (reports, images):
        drawn = sorted(y for _, y in marks(axes, "estimate"))
        assert drawn == pytest.approx(sorted(100 * (0.02 * k + 0.01 * place) for k in (1, 5, 10) for place in range(3)))
    assert sorted({y for _, y in marks(reports, "chance")}) == pytest.approx([100 / 700, 500 / 700, 1000 / 700])
    assert sorted(x for x, _ in marks(figure.axes[3], "estimate")) == pytest.approx([-1.1, -1.1, 1.2, 1.2])
    assert "700 of 900 differ" in describe(figures.retrieval, results)


def test_compute_draws_costs_against_values(results, costs):
    figure = plot(figures.compute, results, costs)
    by_data = np.array(sorted(marks(figure.axes[0], "estimate")))
    assert np.allclose(by_data, [(30_000, 0.70), (30_000, 0.75), (120_000, 0.80)])
    # 1e15 operations are one PFLOP.
    assert sorted(x for x, _ in marks(figure.axes[1], "estimate")) == pytest.approx([0.24, 0.25, 1.0])


@pytest.mark.parametrize(
    ("interval", "said", "annotated"),
    [
        ((-0.001, -0.010, 0.008), "no more than 0.02 is lost", True),
        ((-0.005, -0.030, 0.020), "is not excluded", False),
        ((-0.050, -0.070, -0.030), "has a price", False),
    ],
)
def test_a_saving_is_annotated_only_where_the_interval_allows_it(results, costs, interval, said, annotated):
    chosen = (results.arm == "curated") & (results.reference == "full")
    results = results.copy()
    results.loc[chosen, ["value", "ci_low", "ci_high"]] = interval
    drawn = draw(figures.compute, results, costs)
    assert "25 % of the operations" in drawn.said
    assert said in drawn.said
    assert said in drawn.caption
    assert ("75 % saved" in texts(drawn.drawing)) is annotated


def test_a_saving_without_the_paired_difference_is_not_judged(results, costs):
    without = results[results.reference != "full"]
    assert "was not measured" in draw(figures.compute, without, costs).said
    assert draw(figures.compute, results[results.arm != "full"], costs).said.startswith("Operations by arm: curated ")


def test_density_shares_add_up_and_keep_rates_are_the_tables(results, keep_rows, pairs):
    drawn = draw(figures.density, pairs, results)
    figure, caption = drawn.drawing, drawn.caption
    assert len(figure.axes) >= 3
    shares = [patch.get_data().values.sum() for patch in figure.axes[0].patches]
    assert shares == pytest.approx([100, 100, 100])
    over = keep_rows[(keep_rows.group == "density") & (keep_rows.metric == "keep_rate") & (keep_rows.seed == -1)]
    assert len(over) == 10
    expected = [(float(one.finding), 100 * one.value) for one in over.itertuples()]
    assert sorted(marks(figure.axes[1], "estimate")) == [pytest.approx(one) for one in sorted(expected)]
    assert len(marks(figure.axes[1], "seeds")) == 20
    assert len(marks(figure.axes[1], "interval")) == 20
    assert len(drawn.numbers) == 30
    assert "60 kept" in caption
    assert "2 seeds together" in caption
    assert "95 % intervals" in caption
    assert "c, the same densities over the map" in caption
    without_map = describe(figures.density, pairs.drop(columns="x"), results[results.seed == 0])
    assert "map" not in without_map
    assert "One seed; bars are 95 % intervals (Wilson's with patients as clusters)" in without_map


def test_long_tail_draws_gains_at_their_prevalence(results):
    whole = draw(figures.long_tail, results, PREVALENCE, "random_same_data")
    figure, caption = whole.drawing, whole.caption
    drawn = np.array(sorted(marks(figure.axes[0], "estimate")))
    assert np.allclose(drawn, sorted((100 * share, 0.012) for share in FINDINGS.values()))
    kinds = figure.axes[3]
    assert [label.get_text().partition(" (")[0] for label in kinds.get_yticklabels()] == [
        "common findings", "rare findings", "no finding", "mismatched", "junk", "sound pair", "written report",
        "template report",
    ]  # fmt: skip
    bars = dict(zip([label.get_text() for label in kinds.get_yticklabels()], kinds.patches, strict=True))
    assert bars["junk (4)"].get_width() == pytest.approx(100)
    # Every bar has the interval of all seeds and two seeds' own marks.
    assert len(marks(kinds, "interval")) == len(marks(kinds, "seeds")) == 2 * len(bars)
    enrichment = figure.axes[2].collections[0].get_segments()
    assert len(enrichment) == len(FINDINGS)
    assert np.isfinite(np.array(enrichment)).all()
    assert "Fibrosis" in texts(figure)
    assert "2 seeds together (small marks in d: single seeds)" in caption
    assert "patients and seeds as clusters" in caption


def test_the_long_tail_shows_what_the_filtered_arm_keeps_beside_the_curated_one(results):
    filtered = results[(results.task == "curation") & (results.group == "truth")].assign(arm="filtered", value=0.125)
    whole = draw(figures.long_tail, pd.concat([results, filtered]), PREVALENCE, "random_same_data")
    kinds = whole.axes[3]
    assert [x for x, _ in marks(kinds, "estimate")] == [12.5] * 3
    assert max(bar.get_width() for bar in kinds.patches) == pytest.approx(100)
    assert "that the curated arm kept (bars), and the filtered arm (pentagons)" in whole.caption


def test_the_trend_drawn_is_that_of_the_results_table(results):
    whole = draw(figures.long_tail, with_trend(results, -0.1, 0.04), PREVALENCE, "random_same_data")
    axes, numbers = whole.axes[0], whole.numbers
    (x, y), *_, (x_end, y_end) = marks(axes, "trend")
    assert (y_end - y) / np.log10(x_end / x) == pytest.approx(-0.1)
    # All gains are equal: the line passes them in the middle of the decades.
    middle = 100 * 10 ** np.log10(list(FINDINGS.values())).mean()
    assert y + (y_end - y) * np.log10(middle / x) / np.log10(x_end / x) == pytest.approx(0.012)
    assert "\N{MINUS SIGN}0.100 [\N{MINUS SIGN}0.140, \N{MINUS SIGN}0.060]" in whole.caption
    assert numbers[numbers.task == "gain_trend"].value.tolist() == [-0.1]
    assert set(numbers.task) == {"gain_trend", "zero_shot_difference", "curation"}
    assert numbers[numbers.finding == "Hernia"].prevalence.unique().tolist() == [0.002]


@pytest.mark.parametrize(
    ("trend", "said"),
    [
        ((-0.1, 0.2), "not drawn, the interval holds zero"),
        ((-0.1, 0.04, 4), "Too few findings for a trend"),
        (None, "Too few findings for a trend"),
    ],
)
def test_a_trend_that_may_be_none_or_rests_on_few_is_said_and_not_drawn(results, trend, said):
    results = with_trend(results, *trend) if trend else results
    drawn = draw(figures.long_tail, results, PREVALENCE, "random_same_data")
    assert marks(drawn.axes[0], "trend") == []
    assert said in drawn.caption
    assert said in drawn.said


def test_captions_name_no_panel_that_is_not_drawn(results):
    kept_alone = results[(results.task == "curation") & results.group.isin(["report", "density"])]
    drawn = draw(figures.long_tail, kept_alone, PREVALENCE[:0], "random_same_data")
    assert len(drawn.axes) == 1
    assert "a, share of the pairs of each kind" in drawn.caption
    assert "gain" not in drawn.caption
    assert "enrichment" not in drawn.caption


def test_the_framework_counts_bands_and_decisions(pairs, trajectory):
    asked = []
    drawn = draw(
        figures.framework, pairs, trajectory, lambda image_id: asked.append(image_id) or read_nothing(image_id)
    )
    figure, words = drawn.drawing, " ".join(texts(drawn.drawing))
    assert "300 pairs" in words
    assert "85 / 10 / 5 %" in words
    assert "on 60 pairs" in words
    points = {one.get_gid(): len(one.get_offsets()) for one in figure.findobj(PathCollection) if one.get_gid()}
    expected = {"band central": 255, "band support": 30, "band outlier": 15, "kept": 60, "dropped": 240}
    assert expected.items() <= points.items()
    assert drawn.numbers.pairs.sum() == 300
    assert "support 30 of 30 kept" in drawn.caption
    # The nearest, median and farthest of each prototype are shown.
    first = pairs[pairs.prototype == 0].sort_values("distance").image_id
    assert asked[:3] == [first.iloc[0], first.iloc[50], first.iloc[-1]]
    assert len(asked) == 9


def test_the_evolution_shows_pairs_scored_since_the_snapshot_before(pairs, trajectory):
    figure = plot(figures.prototype_evolution, pairs, trajectory)
    assert titles(figure)[:4] == [
        "step 10 · start", "step 11 · 100 scored", "step 12 · 100 scored", "step 13 · 100 scored",
    ]  # fmt: skip
    paths = [line for line in figure.axes[3].get_lines() if line.get_gid() == "path"]
    assert [line.get_xdata().tolist() for line in paths] == [
        pytest.approx([3 * k, 3 * k + 0.1, 3 * k + 0.2, 3 * k + 0.3]) for k in range(3)
    ]


def test_dynamics_draw_the_history(history):
    figure = plot(figures.training_dynamics, history, {})
    kept, _, _, usage, loss = figure.axes[:5]
    assert kept.get_lines()[0].get_ydata() == pytest.approx([23.0] * 4)
    heights = [bar.get_height() for bar in usage.patches if bar.get_gid() == "prototype 0" or bar.get_height() > 0]
    assert sum(heights) == pytest.approx(400)
    assert loss.get_lines()[0].get_ydata() == pytest.approx(history.loss.to_numpy())
    assert figure.axes[6].get_lines()[0].get_ydata() == pytest.approx([14.0] * 40)
    assert "92 of 400 scored pairs were kept (23.0 %)" in describe(figures.training_dynamics, history, {})
    # Many prototypes become an image.
    many = history.assign(usage=[list(range(40)) if counts else [] for counts in history.usage])
    image = plot(figures.training_dynamics, many, {}).axes[3].get_images()[0]
    assert image.get_array().shape == (40, 4)


def test_composition_counts(cohort):
    counts = count_findings(cohort).set_index("finding")
    assert counts.loc["Nodule", ["present", "uncertain", "absent", "not_stated"]].tolist() == [8, 1, 30, 1]
    # Of all images, the one without a statement too.
    assert counts.prevalence["Nodule"] == pytest.approx(8 / 40)
    assert count_findings(cohort, "train").set_index("finding").present["Nodule"] == 0
    lengths = count_report_lengths(cohort).iloc[0]
    # 30 reports of two words and nine of six; the empty one does not count.
    assert (lengths.reports, lengths["median"], lengths.longest) == (39, 2, 6)
    assert lengths["mean"] == pytest.approx((60 + 54) / 39)


def test_the_composition_leaves_findings_their_room_and_tells_what_was_set_aside_by_kind(cohort):
    drawn = draw(figures.composition, cohort, QUARANTINE)
    drawn.drawing.draw_without_rendering()
    findings = drawn.axes[3]
    assert sorted(marks(findings, "estimate", "x")) == pytest.approx([10, 20, 75])
    assert findings.get_xscale() == "log"
    words = texts(drawn.drawing)
    assert {"blank", "unreadable", "2", "1"} <= set(words)
    assert "20 patients" in drawn.caption
    assert not re.search("secret|patient_id", drawn.caption + " ".join(words))


def test_a_cohort_without_labels_is_drawn(cohort, pairs):
    bare = cohort.drop(columns=["Nodule", "Mass", "No Finding"])
    assert count_findings(bare).empty
    drawn = draw(figures.composition, bare, QUARANTINE[:0])
    drawn.drawing.draw_without_rendering()
    assert {"no labels", "No image was set aside."} <= set(texts(drawn.drawing))
    assert "no finding is labelled. e, report lengths" in drawn.caption
    drawn = draw(figures.embedding, pairs)
    drawn.drawing.draw_without_rendering()
    assert "tier" not in drawn.caption


def test_the_embedding_has_a_box_for_each_tier(pairs):
    tiered = pairs.assign(tier=np.repeat(["none", "head", "tail"], 100))
    drawn = draw(figures.embedding, tiered)
    labels = [label.get_text() for axes in drawn.axes for label in axes.get_yticklabels()]
    assert [label for label in labels if "n =" in label] == [
        "no finding\n(n = 100)", "head\n(n = 100)", "tail\n(n = 100)",
    ]  # fmt: skip
    percentile = tiered.density.rank(pct=True) * 100
    assert f"tail {percentile[tiered.tier == 'tail'].median():.0f}" in drawn.caption


def test_radiographs_show_the_pixels_and_outline_the_masks():
    pixels = [np.full((16, 16), value, dtype=np.uint8) for value in (10, 200)]
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:9, 4:9] = True
    figure = plot(figures.radiographs, Sheet(pixels, ["clear", "nodule"], [{}, {"nodule": mask}], "Two."))
    assert [axes.get_images()[0].get_array()[0, 0] for axes in figure.axes] == [10, 200]
    assert [len(axes.collections) for axes in figure.axes] == [0, 1]


def test_one_seed_one_finding_and_no_differences_are_drawn(single, costs):
    prevalence = pd.Series({"Effusion": 0.5})
    drawn = {"zero_shot": (1, single), "retrieval": (3, single), "compute": (3, single, costs[costs.seed == 0])}
    drawn["long_tail"] = (2, single, prevalence, "random_same_data")
    for name, (panels, *tables) in drawn.items():
        figure = draw(getattr(figures, name), *tables)
        assert len(figure.axes) == panels
        assert "seed" in figure.caption.lower()
    enrichment = single[(single.metric == "enrichment") & (single.finding == "Effusion")].value.iloc[0]
    assert marks(figure.axes[0], "estimate") == [(50.0, pytest.approx(enrichment))]


def test_little_data_still_gives_maps_and_composition(pairs, trajectory, cohort, history, results):
    start, bare = trajectory[trajectory.snapshot == 0], cohort.drop(columns=["Mass"])
    for drawing in (
        plot(figures.framework, pairs[:4], start, read_nothing),
        plot(figures.prototype_evolution, pairs[:4], start),
        plot(figures.composition, bare.assign(age_years=np.nan, report=""), QUARANTINE),
        plot(figures.training_dynamics, history[history.phase == "subset"], {}),
    ):
        drawing.draw_without_rendering()
    assert len(plot(figures.density, pairs.drop(columns=["x", "y"]), results[:0]).axes) == 1
    assert len(plot(figures.density, pairs[:0], results).axes) == 1


def test_nothing_to_draw_is_said_in_one_sentence(results, costs, pairs, trajectory, history, cohort):
    nothing = results[:0]
    for name, *tables in (
        ("zero_shot", nothing),
        ("retrieval", nothing),
        ("compute", nothing, costs),
        ("density", pairs[:0], nothing),
        ("long_tail", nothing, PREVALENCE, "full"),
        ("framework", pairs[:0], trajectory, read_nothing),
        ("prototype_evolution", pairs, trajectory[:0]),
        ("training_dynamics", history[:0], {}),
        ("composition", cohort[:0], QUARANTINE),
        ("radiographs", Sheet([], [], [], "None.")),
    ):
        with pytest.raises(NothingToDraw, match="there is nothing to draw without"):
            getattr(figures, name).choose(*tables)


def test_files_are_the_same_bytes_twice_and_as_wide_as_the_page(home, results, pairs, trajectory):
    run = Run("demo")
    for name, tables in (("zero_shot", (results,)), ("framework", (pairs, trajectory, read_nothing))):
        written = []
        for _ in range(2):
            png = save_figure(run, plot(getattr(figures, name), *tables), name, "A caption.", results)
            written.append([png.with_suffix(kind).read_bytes() for kind in (".png", ".pdf", ".json")])
        assert written[0] == written[1]
        assert b"CreationDate" not in written[0][1]
        with Image.open(png) as image:
            assert abs(image.width / 300 * 25.4 - DOUBLE_MM) < 0.2
            assert round(image.info["dpi"][0]) == 300
    assert {path.name.lstrip(".") for path in run.path("figures").iterdir()} == {
        f"{name}{kind}" for name in ("zero_shot", "framework") for kind in (".png", ".pdf", ".json")
    }


def test_show_stores_the_figure_and_says_what_came_out(home, results, capsys):
    study = SimpleNamespace(run=Run("demo"), findings=["Effusion"])
    figure = figures.zero_shot.show(study, results)
    assert len(figure.axes) == 2
    drawn = draw(figures.zero_shot, results)
    record = json.loads(study.run.path("figures/zero_shot.json").read_text())
    assert record["caption"] == drawn.caption
    assert [one["value"] for one in record["data"]] == pytest.approx(drawn.numbers.value.tolist())
    said = capsys.readouterr().out
    assert "curated 0.700 [0.680, 0.720]" in said
    assert "curated minus all pairs −0.011" in said


def test_show_says_why_there_is_nothing_to_draw(home, results, capsys):
    unlabelled = SimpleNamespace(run=Run("demo"), findings=[])
    unlabelled.run.write_table("cohort.parquet", pd.DataFrame({"image_id": ["s/1"]}))
    assert figures.zero_shot.show(unlabelled, results[results.task == "retrieval"]) is None
    assert figures.calibration.show(unlabelled, None, results) is None
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Figure zero_shot: there is nothing to draw without zero-shot auroc; the cohort has no labels."
    assert said[1].startswith("Figure calibration: ")
    assert not unlabelled.run.path("figures").exists()
    with pytest.raises(AttributeError, match="no figure 'zero'"):
        _ = figures.zero


def test_every_figure_of_the_gallery_can_be_shown():
    shown = {path.stem for path in paths.FIGURES.glob("*.json")}
    assert shown <= set(CATALOGUE)
    for name in ("radiographs", "composition", "compute", "zero_shot", "spectrum", "calibration", "retrieval"):
        assert name.startswith(getattr(figures, name).name)


def test_numbers_leave_out_columns_without_any_text(home):
    data = pd.DataFrame(
        {"arm": ["full", ""], "group": ["", ""], "outline": [np.zeros(2), np.ones(2)], "n": [0, np.nan]}
    )
    png = save_figure(Run("demo"), new_figure(30), "outlines", "A caption.", data)
    first, second = json.loads(png.with_suffix(".json").read_text())["data"]
    assert first == {"arm": "full", "outline": [0, 0], "n": 0}
    assert second == {"arm": "", "outline": [1, 1], "n": None}


def test_patients_stay_out_of_what_is_published(home, cohort, results):
    with pytest.raises(StudyError, match="column image_path: leave it out"):
        save_figure(Run("demo"), new_figure(30), "composition", "A caption.", cohort)
    with pytest.raises(StudyError, match="plain file name"):
        save_figure(Run("demo"), new_figure(30), "../composition", "A caption.")
    assert not Run("demo").has("figures")


def test_captions_give_n_seeds_and_the_kind_of_interval(results, costs, pairs, trajectory, history, cohort):
    captions = [
        describe(figures.zero_shot, results),
        describe(figures.retrieval, results),
        describe(figures.compute, results, costs),
        describe(figures.density, pairs, results),
        describe(figures.long_tail, results, PREVALENCE, "full"),
        describe(figures.framework, pairs, trajectory, read_nothing),
        describe(figures.prototype_evolution, pairs, trajectory),
        describe(figures.training_dynamics, history, {}),
        describe(figures.composition, cohort, QUARANTINE),
    ]
    for caption in captions:
        assert re.search(r"\d+ (steps|pairs)|n = [\d,]+", caption), caption
        assert "seed" in caption.lower(), caption
        assert "interval" in caption, caption
        assert "  " not in caption


def test_the_gallery_names_paper_figure_notebook_and_caption(home, results, tmp_path):
    run = Run("demo")
    with pytest.raises(StudyError, match="no figures"):
        publish_figures(run, tmp_path / "gallery")
    save_figure(run, plot(figures.zero_shot, results), "zero_shot", "What it shows, n = 900.")
    save_figure(run, new_figure(20), "my_own", "My own figure.")
    published = publish_figures(run, tmp_path / "gallery")
    assert [path.name for path in published] == ["my_own.png", "zero_shot.png"]
    page = (tmp_path / "gallery" / "README.md").read_text()
    entry = CATALOGUE["zero_shot"]
    assert entry.regenerates in page
    assert "Notebook: 05_compare_arms." in page
    assert "What it shows, n = 900." in page
    assert "![Zero-shot classification](zero_shot.png)" in page
    assert page.index("## Zero-shot classification") < page.index("## My own")
    assert write_gallery(tmp_path / "gallery").read_text() == page
    with pytest.raises(StudyError, match="no figures"):
        write_gallery(tmp_path / "empty")


def test_a_name_that_is_no_mathematics_is_drawn_as_it_is(home):
    figure = new_figure(30)
    axes = figure.subplots()
    title_panel(axes, "a")
    axes.bar([r"$\frac$", "US$ and A$", "plain", "$x$"], [1, 2, 3, 4], label=r"$\undefined$")
    axes.legend()
    save_figure(Run("demo"), figure, "bars", "Bars.", None)
    parsed = {text.get_text(): text.get_parse_math() for text in figure.findobj(Text)}
    assert not parsed[r"$\frac$"]
    assert not parsed[r"$\undefined$"]
    assert parsed[r"$\mathbf{a}$"]


def test_one_radiograph_may_stand_for_two_labels(home):
    run = make_tiny_study(pairs=20)
    cohort = pd.read_parquet(run.path("cohort.parquet"))
    first = (cohort.split == "train").to_numpy().argmax()
    cohort["Hernia"] = cohort["Mass"] = np.eye(len(cohort))[first]
    run.write_table("cohort.parquet", cohort)
    run.write_table("truth.parquet", cohort[["image_id"]])
    write_annotations([make_outline(cohort.image_id[first], "Hernia", np.eye(36) > 0)], run.path("annotations.parquet"))
    sheet = collect_radiographs(Study(run, {}))
    drawn = {title: list(masks) for title, masks in zip(sheet.titles, sheet.masks, strict=True)}
    assert drawn == {"Hernia": ["true outline"], "Mass": []}
