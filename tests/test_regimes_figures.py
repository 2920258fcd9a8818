"""Figures of the bench of regimes show its gains at the cells where they were measured, and nowhere else."""

import re
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from drawn import describe, draw, marks, plot, texts, titles

from chexstudy.experiments.regimes.contrasts import MAIN_METHOD, answer_questions, compare_main, tabulate_answer
from chexstudy.experiments.regimes.design import read_design
from chexstudy.experiments.regimes.evidence import COMMITTED, leave_out_findings, read_evidence
from chexstudy.plots import figures
from chexstudy.plots.looks import ACCENT, GREY, INK, SEQUENCE
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.regime_parts import COSTS
from chexstudy.plots.regimes import AUROCS

BLUE = SEQUENCE[1]
DESIGN = read_design()
CENTRE, UPSTREAM = DESIGN.centre, replace(DESIGN.centre, start="upstream")
METRICS = [*AUROCS, *COSTS]
# What pools add to a gain: the first is beyond chance at three pools, the second is not.
SURE, UNSURE = (-0.001, 0.0, 0.001), (-0.2, 0.0, 0.2)


def gain(cell, method, mean, spread=SURE, **others):
    """Outcomes of a method at a cell in three pools; all that is measured is that far above random, or as given."""
    rows = []
    for seed, aside in enumerate(spread):
        where = asdict(cell) | {"method": method, "seed": seed, "choice": 0, "training": 0}
        rows.append(where | {metric: 0.5 + others.get(metric, mean) + aside for metric in METRICS})
    return rows


def tabulate(*parts):
    """Outcomes with a random choice at every cell."""
    rows = [row for part in parts for row in part]
    cells = {replace(CENTRE, **{name: row[name] for name in asdict(CENTRE)}): None for row in rows}
    return pd.DataFrame([*rows, *(row for cell in cells for row in gain(cell, "random", 0.0, (0, 0, 0)))])


def answer(*parts):
    return answer_questions(tabulate(*parts), DESIGN, METRICS)


@pytest.fixture
def cells():
    """The main method at three cells from scratch and one from pretrained encoders, and at a cell of another scorer."""
    return answer(
        gain(CENTRE, MAIN_METHOD, 0.05, zero_shot_auroc_tail=0.08),
        gain(replace(CENTRE, wrong=0.12), MAIN_METHOD, -0.02, UNSURE),
        gain(replace(CENTRE, pool=64000, budget=500), MAIN_METHOD, -0.03),
        gain(UPSTREAM, MAIN_METHOD, 0.01),
        gain(replace(CENTRE, scorer="quarter"), MAIN_METHOD, 0.3),
    )


def squares(axes):
    (drawn,) = [one for one in axes.collections if one.get_gid() == "cells"]
    places = map(tuple, drawn.get_offsets().data)
    return dict(zip(places, zip(drawn.get_array().data, drawn.get_linewidths(), strict=True), strict=True)), drawn.norm


def test_the_phase_diagram_has_a_square_at_each_measured_cell_and_one_scale(cells):
    drawn = draw(figures.regimes_phase, cells)
    panels = drawn.axes[:8]
    assert titles(drawn.drawing)[:8] == ["All findings", "Head", "Medium", "Tail"] * 2
    shown, norm = squares(panels[0])
    # Pool over budget is 8 and 128; lines are 4 % with 500, 4 % with 2,000 and 12 % with 2,000 pairs.
    assert {place: round(float(value), 6) for place, (value, _) in shown.items()} == {
        (3.0, 1.0): 0.05, (3.0, 2.0): -0.02, (7.0, 0.0): -0.03,
    }  # fmt: skip
    assert {place: width > 1 for place, (_, width) in shown.items()} == {
        (3.0, 1.0): True, (3.0, 2.0): False, (7.0, 0.0): True,
    }  # fmt: skip
    assert list(squares(panels[4])[0]) == [(3.0, 1.0)]
    assert {(one.vmin, one.vmax) for one in (squares(axes)[1] for axes in panels)} == {(-0.08, 0.08)}
    assert norm(0) == 0.5
    written = [text.get_text() for text in panels[0].texts]
    assert written == ["+.050", "n 3", "\N{MINUS SIGN}.020", "n 3", "\N{MINUS SIGN}.030", "n 3"]
    assert "of 4 cells 2 gain and 1 lose over all findings" in drawn.caption
    assert "4 % near-duplicates, scorer trained, 64 px" in drawn.caption
    assert "n = 3 pools" in drawn.caption
    assert drawn.said == (
        "Filter (50 %), budgeted bands minus random, zero-shot, all findings: above zero in 2 and below in 1 of 4 "
        "cells, from \N{MINUS SIGN}0.030 to +0.050."
    )


def test_the_published_bands_have_a_diagram_of_their_own(cells):
    with pytest.raises(NothingToDraw, match="without gains of bands"):
        figures.regimes_phase_bands.choose(cells)
    own = answer(gain(CENTRE, "bands", -0.01), gain(CENTRE, MAIN_METHOD, 0.02))
    assert list(figures.regimes_phase_bands.choose(own)[0].method.unique()) == ["bands"]


def test_the_linear_probe_has_a_diagram_and_curves_of_its_own():
    other = replace(CENTRE, budget=500)
    answers = answer(gain(CENTRE, MAIN_METHOD, 0.05, probe_auroc_macro=0.02), gain(other, MAIN_METHOD, 0.04))
    drawn = draw(figures.regimes_phase_probe, answers)
    assert {round(float(value), 6) for value, _ in squares(drawn.axes[0])[0].values()} == {0.02, 0.04}
    assert drawn.caption.startswith("When curation pays: linear-probe AUROC")
    curves = draw(figures.regimes_curves_probe, answers)
    assert marks(curves.axes[0], "estimate", "y") == pytest.approx([0.04, 0.02])
    assert "macro linear-probe AUROC" in curves.caption


def test_curves_run_along_one_condition_at_a_time():
    answers = answer(
        gain(CENTRE, "bands", 0.01),
        gain(replace(CENTRE, budget=500), "bands", 0.03),
        gain(replace(CENTRE, budget=8000), "bands", -0.01),
        gain(replace(CENTRE, scorer="unaligned"), "bands", 0.0),
        gain(replace(CENTRE, scorer="quarter"), "bands", 0.02),
        gain(replace(CENTRE, pool=64000, budget=8000), "bands", 0.09),
        gain(UPSTREAM, "bands", 0.5),
    )
    drawn = draw(figures.regimes_curves, answers)
    budget, scorer = drawn.axes[:2]
    assert [axes.get_xlabel() for axes in (budget, scorer)] == ["Pairs chosen (log)", "Scorer"]
    assert [label.get_text() for label in budget.get_xticklabels()] == ["500", "2,000", "8,000"]
    assert [label.get_text() for label in scorer.get_xticklabels()] == ["trained", "quarter", "unaligned"]
    assert marks(budget, "estimate", "y") == pytest.approx([0.03, 0.01, -0.01])
    assert marks(scorer, "estimate", "y") == pytest.approx([0.01, 0.02, 0.0], abs=1e-9)
    assert [line.get_gid() for line in scorer.get_lines()].count("curve") == 0
    assert len(drawn.numbers) == 6
    assert "in each of 2 panels" in drawn.caption
    with pytest.raises(NothingToDraw, match="differ from the centre in one condition"):
        figures.regimes_curves.choose(answer(gain(CENTRE, "bands", 0.01)))


def test_what_a_gain_is_made_of_stands_level_at_both_starts():
    outcomes = tabulate(
        gain(CENTRE, MAIN_METHOD, 0.05),
        gain(CENTRE, "truly_sound", 0.02),
        gain(CENTRE, "filtered_random_half", -0.01),
        gain(UPSTREAM, MAIN_METHOD, 0.03),
        gain(UPSTREAM, "truly_sound", 0.01, UNSURE),
    )
    answers = answer_questions(outcomes, DESIGN, METRICS)
    steps = compare_main(outcomes, ["truly_sound", "filtered_random_half", "k_centre"], AUROCS)
    drawn = draw(figures.regimes_parts, answers, steps)
    scratch, upstream = drawn.axes[0], drawn.axes[3]
    names = [label.get_text() for label in scratch.get_yticklabels()]
    assert names == [
        *("Truly sound", "Filter (50 %), random", "Filter (50 %), budgeted bands"),
        *("Truly sound", "Filter (50 %), random"),
    ]
    assert marks(scratch, "estimate", "x") == pytest.approx([0.02, -0.01, 0.05, 0.03, 0.06])
    assert marks(upstream, "estimate", "x") == pytest.approx([0.01, np.nan, 0.03, 0.02, np.nan], nan_ok=True)
    assert marks(scratch, "estimate", "y") == marks(upstream, "estimate", "y")
    colours = {
        axes: [line.get_color() for line in axes.get_lines() if line.get_gid() == "estimate"] for axes in drawn.axes
    }
    assert colours[scratch] == [BLUE, ACCENT, BLUE, BLUE, BLUE]
    assert colours[upstream][0] == GREY
    assert {"Noise removed (truth)", "Filter (50 %), budgeted bands minus"} <= set(texts(drawn.drawing))
    assert "Of 5 differences from random over all findings 3 are above zero and 1 below" in drawn.caption
    assert len(plot(figures.regimes_parts, answers, pd.DataFrame()).axes) == 6


def test_costs_are_better_worse_or_only_changed():
    answers = answer(
        gain(CENTRE, MAIN_METHOD, 0.0, UNSURE, calibration_error=0.4, kept_healthy=-0.1),
        gain(UPSTREAM, MAIN_METHOD, 0.02),
    )
    drawn = draw(figures.regimes_costs, answers)
    of_choice = drawn.numbers[drawn.numbers.metric.str.startswith("kept_")]
    assert set(of_choice.start) == {"scratch"}
    assert set(drawn.numbers[drawn.numbers.metric == "specificity_healthy"].start) == {"scratch", "upstream"}
    specificity = drawn.axes[0]
    assert marks(specificity, "estimate", "x") == pytest.approx([0.0, 2.0], abs=1e-9)
    looks = [line.get_color() for line in specificity.get_lines() if line.get_gid() == "estimate"]
    assert looks == [GREY, BLUE]
    calibration = [line.get_color() for line in drawn.axes[2].get_lines() if line.get_gid() == "estimate"]
    assert calibration[1] == ACCENT, "a larger error is worse"
    changed = draw(figures.regimes_costs, answer(gain(CENTRE, MAIN_METHOD, -0.1)))
    shown = dict(zip(titles(changed.drawing), changed.axes, strict=False))
    healthy = next(axes for title, axes in shown.items() if title.startswith("Healthy"))
    assert [line.get_color() for line in healthy.get_lines() if line.get_gid() == "estimate"] == [INK]
    assert "Specificity on healthy" in changed.said
    assert "Calibration" not in changed.said


def test_all_methods_stand_by_their_gain_without_those_that_know_the_truth():
    answers = answer(
        gain(CENTRE, "d4", 0.01, UNSURE),
        gain(CENTRE, "density", 0.03),
        gain(CENTRE, "bands", 0.02),
        gain(CENTRE, "truly_sound", 0.09),
        gain(UPSTREAM, "bands", 0.5),
    )
    drawn = draw(figures.regimes_methods, answers)
    names = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert names == ["Density (inverse kNN)", "Prototype bands (published)", "D4"]
    assert marks(drawn.axes[0], "estimate", "x") == pytest.approx([0.03, 0.02, 0.01])
    assert "Of 3 methods 2 are better than random and 0 worse" in drawn.caption
    assert drawn.said.endswith("Density (inverse kNN), Prototype bands (published) (of 3 methods).")


def test_one_pool_is_drawn_without_interval_and_resolves_nothing(cells):
    one = answer(gain(CENTRE, MAIN_METHOD, 0.05, (0.0,)))
    for name in ("regimes_phase", "regimes_parts", "regimes_costs", "regimes_methods"):
        tables = (one, pd.DataFrame()) if name == "regimes_parts" else (one,)
        assert re.search(r"n = 1 pool\b", describe(getattr(figures, name), *tables))
        plot(getattr(figures, name), *tables)
    assert "above zero in 0 and below in 0 of 1" in draw(figures.regimes_phase, one).said


def test_a_table_says_what_varies_among_the_cells_of_a_question(cells):
    table = tabulate_answer(cells, DESIGN.questions["wrong"], ["zero_shot_auroc_macro", "zero_shot_auroc_tail"])
    assert list(table.columns) == ["method", "pools", "zero_shot_auroc_macro", "zero_shot_auroc_tail"]
    assert table.zero_shot_auroc_macro[0].startswith("\N{MINUS SIGN}0.020 [")
    assert not table.zero_shot_auroc_macro[0].endswith("*")
    table = tabulate_answer(cells, DESIGN.questions["gain"], ["zero_shot_auroc_macro"])
    assert table.start.tolist() == ["scratch", "upstream"]
    assert table.zero_shot_auroc_macro.str.endswith(" *").all()


def test_evidence_holds_no_single_findings(cells):
    outcomes = pd.DataFrame([{"method": "random", "how": {}, "probe_auroc/Mass": 0.5, "seed": 0}])
    assert list(leave_out_findings(outcomes)) == ["method", "seed"]


@pytest.mark.skipif(not COMMITTED.is_file(), reason="no outcomes of the bench are there yet")
def test_the_evidence_that_comes_with_the_package_answers_the_main_question():
    outcomes = read_evidence()
    assert set(outcomes.method) <= set(DESIGN.methods)
    assert set(METRICS) <= set(outcomes)
    answers = answer_questions(outcomes, DESIGN, ["zero_shot_auroc_macro"])
    main = answers[(answers.question == "gain") & (answers.method == MAIN_METHOD)]
    assert set(main.start) == {"scratch", "upstream"}
    assert main.pools.min() >= 3
