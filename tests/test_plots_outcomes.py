"""X5: curves and forests are the numbers given, and the caption tells what they rest on."""

import numpy as np
import pandas as pd
import pytest
from drawn import draw, marks, plot
from matplotlib.colors import to_hex

from chexstudy.errors import StudyError
from chexstudy.evaluation.outcomes.prediction import AGE_SEX, BOTH, IMAGE, ORACLE
from chexstudy.plots import figures
from chexstudy.results import OVER_SEEDS, validate_results


def make_results(arms=("curated",)):
    rows = []
    for arm in arms:
        for data_set in ("phantom/test", "phantom/test_enriched"):
            for finding, metric, settings in (
                ("cvd_event", "c_index", (AGE_SEX, IMAGE, BOTH, ORACLE)),
                ("death", "c_index", (AGE_SEX, IMAGE, BOTH, ORACLE)),
                ("tube_malposition", "auroc", (AGE_SEX, IMAGE, BOTH)),
            ):
                for place, setting in enumerate(settings):
                    for seed in (0, 1, OVER_SEEDS):
                        value = 0.6 + 0.05 * place + 0.01 * seed
                        measured = (arm, data_set, finding, metric, setting, "", seed)
                        rows.append((*measured, value, value - 0.05, value + 0.05))
                for setting, gain in ((BOTH, 0.1), (IMAGE, 0.05)):
                    place = (arm, data_set, finding, f"{metric}_difference", setting, AGE_SEX, OVER_SEEDS)
                    rows.append((*place, gain, gain - 0.03, gain + 0.03))
    columns = ["arm", "data_set", "finding", "metric", "setting", "reference", "seed", "value", "ci_low", "ci_high"]
    table = pd.DataFrame(rows, columns=columns)
    return validate_results(table.assign(study="s", task="outcome", n=400, positives=80, exposure="held_out"))


def make_curves():
    tables = []
    for outcome in ("death", "cvd_event"):
        for seed in (0, 1):
            for group, loss in (("low", 0.01), ("medium", 0.03), ("high", 0.06)):
                years = np.r_[0.0, np.arange(0.5, 10.1, 0.5)]
                survival = np.exp(-loss * years * (1 + seed))
                table = pd.DataFrame({"years": years, "survival": survival, "at_risk": 101 - 5 * np.arange(21)})
                tables.append(
                    table.assign(
                        ci_low=survival - 0.02, ci_high=np.minimum(survival + 0.02, 1), group=group, seed=seed,
                        outcome=outcome, n=101, events=20, log_rank_p=3e-8, setting=BOTH, data_set="phantom/test",
                    )
                )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def panels(figure):
    figure.canvas.draw()
    return {
        axes.get_title(loc="left").partition("   ")[2] or axes.get_title(loc="left"): axes for axes in figure.get_axes()
    }


@pytest.fixture(scope="module")
def drawn():
    return draw(figures.outcomes, make_results(), make_curves())


def test_curves_are_the_first_seeds_survival_with_their_bands(drawn):
    axes = panels(drawn.drawing)["Death, by predicted risk"]
    lines = {line.get_gid(): line for line in axes.lines}
    assert set(lines) == {"survival low", "survival medium", "survival high"}
    years = np.r_[0.0, np.arange(0.5, 10.1, 0.5)]
    np.testing.assert_allclose(lines["survival high"].get_ydata(), np.exp(-0.06 * years))
    assert len([band for band in axes.collections if band.get_gid() == "band"]) == 3
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in lines.values()}) == 3
    legend = axes.get_legend()
    assert legend.get_title().get_text() == "log-rank p < 10$^{-7}$"
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{group} risk (20 of 101)" for group in ("low", "medium", "high")
    ]


def test_numbers_at_risk_are_those_still_observed_at_the_tick(drawn):
    below = next(axes for axes in drawn.axes if axes.get_title(loc="left") == "Patients still observed")
    numbers = [text for text in below.texts if text.get_gid() == "at risk"]
    ticks = [0, 2, 4, 6, 8]
    first = [text.get_text() for text in numbers[: len(ticks)]]
    assert [text.get_position()[0] for text in numbers[: len(ticks)]] == ticks
    assert first == [str(101 - 5 * 2 * tick) for tick in ticks]


def test_the_forest_draws_every_model_of_every_outcome_and_the_paired_gain(drawn):
    by_title = panels(drawn.drawing)
    values = by_title["How well patients are ranked"]
    estimates = marks(values, "estimate", "x")
    over_seeds = 0.01 * OVER_SEEDS
    expected = [0.6, 0.65, 0.7, 0.75, 0.6, 0.65, 0.7, 0.75, 0.6, 0.65, 0.7]
    np.testing.assert_allclose(estimates, np.array(expected) + over_seeds)
    # Those that do not look at the image have no seeds.
    assert len([line for line in values.lines if line.get_gid() == "seeds"]) == 6
    headings = [text.get_text() for text in values.texts]
    assert [heading.partition("  ·  ")[0] for heading in headings] == [
        "Death",
        "Cardiovascular event",
        "Tube malposition",
    ]
    gains = by_title["Gain over age and sex, 95 % intervals"]
    assert marks(gains, "estimate", "x") == [0.05, 0.1] * 3
    assert "+0.100 [0.070, 0.130]" in [text.get_text() for text in gains.texts]


def test_several_encoders_are_named_and_age_and_sex_stand_once():
    drawn = panels(plot(figures.outcomes, make_results(("curated", "full")), make_curves()))
    labels = [label.get_text() for label in drawn["How well patients are ranked"].get_yticklabels()]
    assert labels[:6] == [
        "Age and sex", "Image (curated)", "Image (all pairs)", "Image, age and sex (curated)",
        "Image, age and sex (all pairs)", "True hazard",
    ]  # fmt: skip


def test_without_curves_the_forests_stand_alone_and_without_rows_nothing_is_drawn():
    drawn = draw(figures.outcomes, make_results(), make_curves().iloc[:0])
    assert set(panels(drawn.drawing)) == {"How well patients are ranked", "Gain over age and sex, 95 % intervals"}
    assert "Kaplan-Meier" not in drawn.caption
    with pytest.raises(StudyError, match="nothing to draw without outcomes"):
        figures.outcomes.choose(make_results().iloc[:0], make_curves())


def test_the_caption_tells_n_seeds_and_intervals(drawn):
    assert set(drawn.numbers.data_set) == {"phantom/test"}
    for part in (
        "303 patients", "(seed 0)", "log-log", "log-rank", "Large marks are means over 2 seeds",
        "hierarchical bootstrap", "n = 400 (phantom, test)", "thirds of the risk by image, age and sex",
    ):  # fmt: skip
        assert part in drawn.caption
