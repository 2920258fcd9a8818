"""The figure shows the rows, marks what is inverted, and says what it is about."""

import pandas as pd
import pytest
from drawn import describe, draw, plot

from chexstudy.plots import figures
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.results import validate_results


def row(task, finding, setting, value, metric="auroc", half=0.05, **more):
    place = {"study": "s", "arm": "curated", "seed": -1, "data_set": "a/test", "exposure": "held_out", "n": 100}
    ends = {"ci_low": value - half, "ci_high": value + half, "positives": -1}
    return (
        place | {"task": task, "finding": finding, "setting": setting, "metric": metric, "value": value} | ends | more
    )


@pytest.fixture
def results():
    rows = []
    for finding, healthy, sick in (("Mass", 0.9, 0.6), ("Edema", 0.95, 0.9), ("macro", 0.92, 0.75)):
        rows += [
            row("spectrum", finding, "chosen", one, group=name) for name, one in (("healthy", healthy), ("sick", sick))
        ]
        rows += [row("prompt_family", finding, name, one) for name, one in (("published", sick), ("clinical", 0.4))]
    rows.append(row("spectrum", "macro", "chosen", 0.17, metric="auroc_difference", group="healthy", reference="sick"))
    rows.append(row("spectrum", "Mass", "chosen", 0.3, group="Edema"))
    return validate_results(pd.DataFrame(rows))


def test_it_shows_both_sorts_of_negatives_and_all_families(results):
    drawn = draw(figures.spectrum, results)
    left, right = drawn.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["Mean over findings", "Mass", "Edema"]
    assert len([one for one in left.collections if one.get_gid() == "interval"]) == 2
    shown = {line.get_label(): list(line.get_xdata()) for line in right.lines}
    assert sorted(shown["published"]) == [0.6, 0.75, 0.9]
    rings = [line for line in right.lines if line.get_gid() == "inverted"]
    assert sum(len(line.get_xdata()) for line in rings) == 3
    assert set(drawn.numbers.setting) == {"chosen", "published", "clinical"}
    assert set(drawn.numbers.group) == {"healthy", "sick", ""}


def test_the_caption_has_the_difference_the_spread_and_n(results):
    text = describe(figures.spectrum, results)
    for part in ("0.170 [0.120, 0.220]", "from 0.400 (clinical) to 0.750 (published)", "n = 100", "95 % intervals"):
        assert part in text


def test_it_draws_what_is_there(results):
    plot(figures.spectrum, results[results.task == "prompt_family"])
    plot(figures.spectrum, results[results.task == "spectrum"])
    plot(figures.spectrum, results[results.group != "healthy"])
    with pytest.raises(NothingToDraw, match="without AUROC by negatives"):
        plot(figures.spectrum, results[:0])
