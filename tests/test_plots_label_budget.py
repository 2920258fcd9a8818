import numpy as np
import pandas as pd
import pytest
from drawn import describe, draw, marks, plot

from chexstudy.errors import StudyError
from chexstudy.label_planning.accuracy import correlate_early, measure_families, measure_forecasts
from chexstudy.label_planning.fitting import compare_families
from chexstudy.label_planning.observations import list_curves
from chexstudy.label_planning.planner import forecast_plateau, infer_by_encoder, plan_labels
from chexstudy.label_planning.posterior import trace_bands
from chexstudy.plots import figures
from chexstudy.plots.label_budget import select_prevalence

FINDINGS = ("Effusion", "Mass", "Nodule", "Edema", "Hernia", "Fibrosis")
GRID = (10, 20, 30, 50, 100, 200, 500, 1000)


def make_table(encoders=("curated", "full"), draws=12):
    """Curves that follow the power law, findings of different plateaus and prevalences."""
    generator, rows = np.random.default_rng(0), []
    for place, encoder in enumerate(encoders):
        for number, finding in enumerate(FINDINGS):
            for n in GRID:
                truth = 0.62 + 0.05 * number + 0.02 * place - 0.4 * n**-0.5
                for one in range(draws if n < 1000 else 1):
                    value = truth + generator.normal(0, 0.1 / np.sqrt(n))
                    rows.append((encoder, 0, finding, "t/test", "cases", n, n // (number + 2), n, one, value, 0.3))
    columns = ["encoder", "seed", "finding", "data_set", "unit", "n", "positives", "patients", "draw", "auroc", "auprc"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def drawn():
    table = make_table()
    curves = list_curves(table)
    bands = trace_bands(infer_by_encoder(curves, 0))
    forecasts = forecast_plateau(curves, (50, 200), 0)
    generator, errors = np.random.default_rng(0), compare_families(curves)
    return {
        "table": table,
        "bands": bands,
        "forecasts": forecasts,
        "accuracy": measure_forecasts(forecasts, generator, 50),
        "correlations": correlate_early(forecasts, 50, generator, 50),
        "families": measure_families(errors[errors.family.isin(["power3", "logarithmic"])], generator, 50),
        "plans": plan_labels(curves, 0.8, 0),
    }


def lines(figure, gid):
    return [line for axes in figure.axes for line in axes.lines if line.get_gid() == gid]


def make_cohort():
    labels = {"Mass": [1, 0, 0, -1, 0, 1], "Hernia": [0, 0, 0, 0, 0, 1], "No Finding": [0, 1, 1, 0, 1, 0]}
    return pd.DataFrame(
        {
            "image_id": [f"t/{number}" for number in range(6)],
            "patient_id": ["a", "a", "b", "c", "d", "e"],
            "split": ["train"] * 4 + ["test"] * 2,
            **{name: pd.array(values, dtype="Int8") for name, values in labels.items()},
        }
    )


def test_prevalence_is_that_among_known_labels():
    table = select_prevalence(make_cohort())
    assert table.finding.tolist() == ["Mass", "Hernia"]
    mass, hernia = (row for _, row in table.iterrows())
    assert (mass.prevalence, mass.positives_train, mass.known_train) == (pytest.approx(1 / 3), 1, 3)
    assert (mass.positives_test, mass.patients, hernia.patients) == (1, 1, 0)
    assert "positives_validate" not in table
    figure = plot(figures.label_prevalence, table)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == ["1", "0", "1", "1", "1", "0"]
    assert "2 findings" in describe(figures.label_prevalence, table)


def test_a_cohort_without_findings_has_no_table_to_draw():
    with pytest.raises(StudyError, match="nothing to draw"):
        plot(figures.label_prevalence, select_prevalence(make_cohort().drop(columns=["Mass", "Hernia"])))


def test_curves_are_drawn_a_panel_a_finding_most_prevalent_first(drawn):
    figure = plot(figures.learning_curves, drawn["table"], drawn["bands"])
    panels = [axes for axes in figure.axes if axes.get_title("left")]
    assert [axes.get_title("left") for axes in panels] == list(FINDINGS)
    assert len(lines(figure, "fit")) == len(lines(figure, "measured")) == 12
    mean = drawn["table"].query("encoder == 'curated' and finding == 'Effusion'").groupby("n").auroc.mean()
    np.testing.assert_allclose(lines(figure, "measured")[0].get_ydata(), mean)
    assert "6 most prevalent of 6 findings" in describe(figures.learning_curves, drawn["table"], drawn["bands"])


def test_a_single_draw_has_no_spread_and_positives_are_counted_where_they_are_the_unit(drawn):
    data = figures.learning_curves.choose(drawn["table"], drawn["bands"])[0]
    assert set(data.finding) == set(FINDINGS)
    measured = data[data.kind == "measured"]
    assert measured[measured.labels == 1000].low.isna().all()
    assert measured[measured.labels < 1000].low.notna().all()
    table = drawn["table"].assign(unit="positives")
    data = figures.learning_curves.choose(table[table.finding == "Effusion"], drawn["bands"])[0]
    assert sorted(data[data.kind == "measured"].labels.unique()) == [n // 2 for n in GRID]


def test_families_are_drawn_best_first(drawn):
    whole = draw(figures.curve_families, drawn["families"])
    assert whole.axes[0].get_yticklabels()[0].get_text().startswith("power3")
    every = drawn["families"].query("encoder == 'all' and split == 'extrapolation'")
    estimates = [line.get_xdata()[0] for line in lines(whole.drawing, "estimate")]
    assert set(every.mae.round(12)) <= set(np.round(estimates, 12))
    assert "power3 errs least" in whole.caption


def test_forecasts_show_error_and_coverage_of_every_start(drawn):
    whole = draw(figures.label_forecasts, drawn["accuracy"], drawn["accuracy"])
    error, coverage = whole.axes[:2]
    assert error.get_ylim()[0] == 0
    assert marks(coverage, "stated", "y") == [0.95, 0.95]
    assert len(lines(whole.drawing, "alone")) == 2
    assert "50 labels: error" in whole.caption
    assert "12 curves of 6 findings" in whole.caption


def test_plans_show_the_states_and_an_arrow_where_there_is_no_end(drawn):
    plans = drawn["plans"]
    whole = draw(figures.labels_needed, plans, plans)
    for state, of_state in plans.groupby("state"):
        can_be_told = len(of_state) if state == "unreachable" else (of_state.need < np.inf).sum()
        assert len(lines(whole.drawing, state)) == can_be_told
    assert {"reached", "unreachable"} <= set(plans.state)
    assert "Of 12 curves" in whole.caption
    endless = plans.assign(state="cannot be told yet", need_low=500.0, need=np.inf, need_high=np.inf)
    figure = plot(figures.labels_needed, endless, endless)
    assert len(lines(figure, "open end")) == 12
    assert not lines(figure, "cannot be told yet")


def test_the_early_slope_is_drawn_against_the_end_with_its_correlation(drawn):
    whole = draw(figures.early_slope, drawn["forecasts"], drawn["correlations"], 50)
    assert [text.get_text()[:8] for axes in whole.axes for text in axes.texts] == ["Spearman"] * 2
    truth = whole.numbers.truth[whole.numbers.encoder == "full"]
    np.testing.assert_allclose(lines(whole.drawing, "full")[0].get_ydata(), truth)
    assert "12 curves of 6 findings" in whole.caption
    few = drawn["forecasts"][drawn["forecasts"].finding.isin(FINDINGS[:2])]
    figure = plot(figures.early_slope, few, correlate_early(few, 50, np.random.default_rng(0), 10), 50)
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words == ["too few findings for a correlation"] * 2
    with pytest.raises(StudyError, match="three label counts up to 7"):
        figures.early_slope.choose(few, drawn["correlations"], 7)


def test_nothing_measured_is_nothing_to_draw(drawn):
    for name, table in (("curve_families", "families"), ("label_forecasts", "accuracy"), ("labels_needed", "plans")):
        nothing = drawn[table].iloc[:0]
        with pytest.raises(StudyError, match="nothing to draw"):
            getattr(figures, name).choose(*[nothing] * (1 if table == "families" else 2))
