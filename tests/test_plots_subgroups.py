"""The figure of subgroups shows the table's numbers and leaves out what was not measured."""

import pandas as pd
import pytest
from drawn import describe, draw, marks, plot

from chexstudy.plots import figures
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.subgroups import tabulate_gaps
from chexstudy.results import validate_results

ARMS = ("curated", "full")
GROUPS = {"sex": ("F", "M"), "age": ("18-39", "40-59", "60-79")}


def make_rows(metrics, data_set="phantom/test"):
    rows = []

    def add(arm, task, metric, setting, value, half=0.03, seed=-1, **more):
        row = {"study": "demo", "arm": arm, "task": task, "data_set": data_set, "metric": metric, "setting": setting}
        row |= {"value": value, "ci_low": value - half, "ci_high": value + half, "seed": seed, "finding": "macro"}
        rows.append(row | {"n": 500, "positives": -1, "exposure": "held_out"} | more)

    for kind, groups in GROUPS.items():
        for place, arm in enumerate(ARMS):
            for group in groups:
                for finding in ("Mass", "Edema", "macro"):
                    add(arm, "subgroup", "auroc", kind, 0.8, finding=finding, group=group)
                for metric in metrics:
                    add(arm, "subgroup_gap", f"{metric}_against_rest", kind, 0.01 * (place + 1), group=group)
            for seed in (0, 1, -1):
                add(arm, "subgroup_gap", "auroc_gap", kind, -0.05 - 0.01 * seed, seed=seed)
            add(arm, "subgroup_gap", "auroc_gap_p_holm", kind, 0.01 if (kind, arm) == ("sex", "curated") else 0.6)
            if "tpr" in metrics:
                add(arm, "subgroup_gap", "equalised_odds_gap", kind, 0.12)
        add("curated", "subgroup_gap", "auroc_gap_widening", kind, 0.02, reference="full")
        add("curated", "subgroup_gap", "auroc_gap_widening_p_holm", kind, 0.9, reference="full")
    return validate_results(pd.DataFrame(rows))


def test_every_group_and_arm_has_its_mark_where_the_table_says():
    results = make_rows(("auroc", "auroc_standardised", "tpr", "fpr"))
    figure = plot(figures.subgroups, results)
    assert len(figure.axes) == 6
    for axes in figure.axes[:4]:
        drawn = marks(axes, "estimate")
        assert len(drawn) == len(ARMS) * 5
        assert sorted({round(x, 6) for x, _ in drawn}) == [0.01, 0.02]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == ["women (500)", "men (500)", "18-39 (500)", "40-59 (500)", "60-79 (500)"]
        assert axes.get_xlim() == figure.axes[0].get_xlim()
    gaps, widened = figure.axes[4:]
    assert {round(x, 6) for x, _ in marks(gaps, "estimate")} == {-0.04}
    assert len(marks(gaps, "seeds")) == 2 * len(ARMS) * 2
    assert {round(x, 6) for x, _ in marks(widened, "estimate")} == {0.02}


def test_captions_name_what_is_beyond_chance_and_on_what_groups_are_compared():
    caption = describe(figures.subgroups, make_rows(("auroc", "tpr", "fpr")))
    assert "(sex 2, age (years) 2)" in caption
    assert "sex, curated" in caption
    assert "age (years), curated" not in caption
    assert "gaps widened or narrowed by curation: none (of 2)" in caption
    assert "sex 0.120 [0.090, 0.150]" in caption
    plain = describe(figures.subgroups, make_rows(("auroc",)))
    assert "Thresholds" not in plain
    assert "mix of findings" not in plain


def test_one_arm_without_thresholds_still_has_its_figure():
    results = make_rows(("auroc", "auroc_standardised"))
    drawn = draw(
        figures.subgroups, results[(results.arm == "curated") & (results.reference == "") & (results.seed != 1)]
    )
    assert len(drawn.axes) == 3
    assert set(drawn.numbers.task) == {"subgroup", "subgroup_gap"}


def test_the_enriched_test_is_preferred_and_another_can_be_named():
    both = pd.concat([make_rows(("auroc",)), make_rows(("auroc",), "phantom/test_enriched")])
    assert set(figures.subgroups.choose(both)[0].data_set) == {"phantom/test_enriched"}
    table = tabulate_gaps(both)
    assert table.loc[("phantom/test", "sex", "curated"), "gap"].startswith("\N{MINUS SIGN}0.040 [")
    assert table.loc[("phantom/test", "sex", "curated"), "p (Holm)"] == 0.01


def test_nothing_measured_is_said():
    with pytest.raises(NothingToDraw, match="without two groups"):
        plot(figures.subgroups, make_rows(("auroc",)).iloc[:0])
